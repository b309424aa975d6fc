"""The table of instructions: whole, sourced, and the only place where an opcode is written."""

from __future__ import annotations

import ast
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

import actplane.asm
from actplane import asm
from actplane.asm import isa
from actplane.asm.isa import BY_CODE, FORMS, Kind, find_form

PACKAGE = Path(actplane.asm.__file__).parent
MODULES = [path for part in ("asm", "verifier", "loader") for path in sorted((PACKAGE.parent / part).rglob("*.py"))]
MODULES.remove(PACKAGE / "isa.py")
DATA = Path(__file__).parents[3] / "shared/data/isa-instructions.jsonl.xz"


def test_every_form_names_its_source() -> None:
    for form in FORMS:
        assert form.source.startswith(("RFC 9669 section ", "uapi bpf.h (", "Linux ", "LLVM ")), form


def test_every_kind_has_a_form() -> None:
    assert {form.kind for form in FORMS} == set(Kind)


def test_the_table_knows_every_code_that_others_know() -> None:
    if not DATA.exists():
        pytest.skip(f"the shared data set is not at {DATA.name}")
    rows = [json.loads(line) for line in lzma.decompress(DATA.read_bytes()).splitlines()]
    known = {row["code"] for row in rows if row["llvm_reassembles"]}
    assert len(known) > 120
    assert known <= set(BY_CODE)


FIELD_NAMES = {"code", "op"}
"""What holds a code or a part of one, as an attribute, a parameter or a variable."""


def is_number(node: ast.AST) -> bool:
    """Whether an expression is a number, or a display in which one stands."""
    if isinstance(node, ast.Set | ast.Tuple | ast.List):
        return any(map(is_number, node.elts))
    if isinstance(node, ast.Dict):
        return any(key is not None and is_number(key) for key in node.keys)
    if isinstance(node, ast.Call):
        return getattr(node.func, "id", "") in ("frozenset", "set") and any(map(is_number, node.args))
    return isinstance(node, ast.Constant) and type(node.value) is int


def literal_opcodes(tree: ast.AST) -> list[int]:
    """
    Lines where a number is compared with a code (a range is none) or masks one, also where the code went through
    variables; where a table with numbers for keys is asked for one; where a number is the code of an
    Insn; and where a name of the table of instructions is given to a number again.
    """
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign) and node.value]
    named: dict[str, list[ast.expr]] = {}
    for node in assigned:
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for name, value in pairs:
                if isinstance(name, ast.Name) and value is not None:
                    named.setdefault(name.id, []).append(value)
    codes = set(FIELD_NAMES)

    def is_code(node: ast.AST) -> bool:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            return is_code(node.left) or is_code(node.right)
        return (isinstance(node, ast.Attribute) and node.attr == "code") or (
            isinstance(node, ast.Name) and node.id in codes
        )

    while True:
        found = {name for name, values in named.items() if any(map(is_code, values))} - codes
        if not found:
            break
        codes |= found
    tables = {name for name, values in named.items() if name not in codes and any(map(is_number, values))}
    tables -= {name for name, values in named.items() if all(isinstance(value, ast.Constant) for value in values)}

    def is_literal(node: ast.AST) -> bool:
        return is_number(node) or (isinstance(node, ast.Name) and node.id in tables)

    lines: list[int] = []
    for node in ast.walk(tree):
        sides: list[ast.AST] = []
        if isinstance(node, ast.Compare) and any(
            isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops
        ):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            sides = [node.left, node.right]
        elif isinstance(node, ast.Subscript):
            sides = [node.value, node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            sides = [node.func.value, *node.args[:1]]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Insn":
            first = next(iter(node.args), None) or next((k.value for k in node.keywords if k.arg == "code"), None)
            if isinstance(first, ast.Constant):
                lines.append(node.lineno)
        if any(map(is_code, sides)) and any(map(is_literal, sides)):
            lines.append(node.lineno)
    for node in getattr(tree, "body", ()):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and is_number(node.value):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and isinstance(getattr(isa, target.id, None), int):
                lines.append(node.lineno)
    return sorted(lines)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_an_opcode_is_written_in_the_table_alone(path: Path) -> None:
    assert literal_opcodes(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "insn.code == 0x18",
        "x = Insn(0x95)",
        "y = Insn(code=5)",
        "insn.code & 7 == ALU",
        "code in (0x05, JA)",
        "kind, x = insn.code & CLASS_MASK, 1; kind == 3",
        "op in frozenset({0x40, 0x50})",
        "SIGNS = {0x40: '|='}; SIGNS[op]",
        "SIGNS: Final = {0x40: '|='}; SIGNS.get(insn.code & OPERATION_MASK)",
        "KNOWN = {0x10}; op in KNOWN",
        "JEQ: Final = 0x10",
    ],
)
def test_that_check_finds_an_opcode(line: str) -> None:
    assert literal_opcodes(ast.parse(line)) == [1]


def test_that_check_leaves_other_numbers_alone() -> None:
    assert literal_opcodes(ast.parse("insn.code == LD_IMM64; insn.dst > 10; size & 7; LIMIT = 0x18; x[0] & 3")) == []


def test_find_form_and_the_names_agree() -> None:
    assert find_form(0x85, 0, 1, 0, -1).kind is Kind.CALL_SUBPROGRAM
    assert find_form(0x06, 0, 0, 0, 1 << 20).kind is Kind.GOTOL
    assert find_form(0x85, 0, 3, 0, 0) is None


def test_the_package_exports_what_it_names_and_imports_text_on_first_use_only() -> None:
    assert all(getattr(asm, name) is not None for name in asm.__all__)
    assert set(asm.__all__) <= set(dir(asm))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = asm.nothing
    code = "import sys; from actplane import asm; print(*sorted(sys.modules))"
    modules = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert "actplane.asm.encoding" in modules
    assert not modules & {"construct", "actplane.asm.assembler", "actplane.asm.uapi", "actplane.asm.layout"}
