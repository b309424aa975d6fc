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
from actplane.asm.isa import BY_CODE, FORMS, Kind, find_form

PACKAGE = Path(actplane.asm.__file__).parent
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


def literals_beside_code(tree: ast.AST) -> list[int]:
    """Lines where a number is compared with a `.code`, or given as the code of an Insn."""
    found: list[int] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            is_code = any(isinstance(side, ast.Attribute) and side.attr == "code" for side in sides)
            if is_code and any(isinstance(side, ast.Constant) and isinstance(side.value, int) for side in sides):
                found.append(node.lineno)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Insn":
            first = next(iter(node.args), None) or next((k.value for k in node.keywords if k.arg == "code"), None)
            if isinstance(first, ast.Constant):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_opcode_is_written_in_the_table_alone(path: Path) -> None:
    assert literals_beside_code(ast.parse(path.read_text())) == []


def test_that_check_finds_an_opcode() -> None:
    assert literals_beside_code(ast.parse("if insn.code == 0x18:\n  x = Insn(0x95)\n  y = Insn(code=5)")) == [1, 2, 3]


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
