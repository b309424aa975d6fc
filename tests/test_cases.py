"""
The case runner: every `tests/cases/*.case` file is a policy and what each stage makes of it.

A case is a text with sections:

    what the case is about, in a line or two
    === policy
    rule r: kill exec "git"
    === ir
    ...

`policy` is the input; every other section is the expected output of the stage of that name in
STAGES. Adding a case is adding a file; adding a stage is adding a function. Patterns are relative
to /work, and the only host that can be looked up is api.example.com.

ACTPLANE_UPDATE_CASES=1 rewrites the expected outputs: read the difference before keeping it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from actplane import dsl
from actplane.asm import Insn, encode
from actplane.asm.disasm import format_insn
from actplane.codegen.compile import compile_policy, weaknesses
from actplane.codegen.select import select
from actplane.codegen.tier import Tier
from actplane.dsl import explain, formatter, lint, parser, printer
from actplane.dsl.lexer import tokenize
from actplane.errors import PolicyError
from actplane.ir.bytecode import Function
from actplane.ir.listing import print_function
from actplane.ir.printer import print_policy
from actplane.loader.btf import Btf
from actplane.loader.relocate import relocate
from actplane.source import Source, render_all
from actplane.verifier import verify

FOLDER = Path(__file__).parent / "cases"
MARK = "=== "
VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")


@dataclass
class Case:
    """One file: what it is about, and its sections in order."""

    path: Path
    about: str
    sections: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Case:
        about, *parts = ("\n" + path.read_text(encoding="utf-8")).split("\n" + MARK)
        sections = {}
        for part in parts:
            name, _, body = part.partition("\n")
            assert name not in sections, f"{path.name}: the section {name!r} is there twice"
            sections[name] = body.rstrip("\n") + "\n"
        return cls(path, about.strip("\n"), sections)

    def write(self) -> None:
        parts = [f"{MARK}{name}\n{body}" for name, body in self.sections.items()]
        self.path.write_text(
            "\n".join([self.about + "\n", *parts]).replace("\n\n" + MARK, "\n" + MARK), encoding="utf-8"
        )

    @property
    def source(self) -> Source:
        return Source("policy", self.sections["policy"])


def resolve(name: str) -> list[str]:
    if name == "api.example.com":
        return ["192.0.2.7", "2001:db8::7"]
    raise OSError(-2, "Name or service not known")


def compilation(case: Case) -> dsl.Compilation:
    return dsl.compile_sources([case.source], root="/work", resolve=resolve, follow=None)


def warnings(case: Case) -> str:
    found = compilation(case)
    return render_all([*found.warnings, *lint.lint(found.policy, found.trees)])


def errors(case: Case) -> str:
    with pytest.raises(PolicyError) as caught:
        compilation(case)
    return str(caught.value)


def judging(case: Case) -> list[tuple[str, Function]]:
    """Return the functions that evaluate clauses on the LSM tier, each with the program it is in."""
    compiled = compile_policy(compilation(case).policy, Tier.LSM)
    found: dict[str, tuple[str, Function]] = {}
    for program, functions in compiled.functions.items():
        for function in functions:
            if function.name in ("judge_exec", "judge_file", "judge_endpoint"):
                found.setdefault(print_function(function), (program, function))
    return list(found.values())


def instructions(case: Case) -> list[tuple[str, tuple[Insn, ...]]]:
    return [(f"{program}/{function.name}", select([function])[0]) for program, function in judging(case)]


def hooks(case: Case) -> str:
    """What is attached on every tier, and what the tier cannot do as written."""
    policy = compilation(case).policy
    lines = []
    for tier in Tier:
        names = " ".join(hook.program or hook.dispatcher for hook in compile_policy(policy, tier).hooks)
        lines.append(f"{tier.value}: {names}")
        for weak in weaknesses(policy, tier):
            lines.append(f"  {weak.clause.text}: {weak.problem}; in force: {weak.in_force or 'nothing'}")
    return "\n".join(lines)


def verdict(case: Case) -> str:
    """What the mirror says of every program, with the types of the running kernel."""
    if not VMLINUX_BTF.exists():
        pytest.skip("no BTF: this kernel does not describe its types")
    btf = Btf.vmlinux()
    compiled = compile_policy(compilation(case).policy, Tier.TRACE)
    maps = {spec.name: spec for spec in compiled.object.maps}
    reports = [(program.name, verify(relocate(program, btf), maps, btf)) for program in compiled.object.programs]
    return "\n".join(f"{name}: {'accepted' if report.is_accepted else report.refusal}" for name, report in reports)


STAGES = {
    "tokens": lambda case: printer.print_tokens(tokenize(case.source)[0]),
    "ast": lambda case: printer.print_tree(parser.parse(case.source)[0]),
    "fmt": lambda case: formatter.format_policy(case.source),
    "errors": errors,
    "ir": lambda case: print_policy(compilation(case).policy),
    "warnings": warnings,
    "hooks": hooks,
    "bytecode": lambda case: "\n".join(print_function(function) for _, function in judging(case)),
    "asm": lambda case: "\n".join(
        f"{name}:\n" + "\n".join(map(format_insn, insns)) for name, insns in instructions(case)
    ),
    "bytes": lambda case: "\n".join(
        f"{name} {encode(replace(insn, symbol=None) for insn in insns).hex()}" for name, insns in instructions(case)
    ),
    "verdict": verdict,
    "explain": lambda case: "\n".join(item.text for item in explain.explain(compilation(case).policy)),
}


def name_of(case: Case) -> str:
    return case.path.stem


CASES = [Case.read(path) for path in sorted(FOLDER.glob("*.case"))]
STEPS = [(case, name) for case in CASES for name in case.sections if name != "policy"]


@pytest.mark.parametrize(("case", "name"), STEPS, ids=[f"{case.path.stem}-{name}" for case, name in STEPS])
def test_case(case: Case, name: str) -> None:
    assert name in STAGES, f"{case.path.name}: no stage {name!r}: expected one of {sorted(STAGES)}"
    found = STAGES[name](case).rstrip("\n") + "\n"
    if os.environ.get("ACTPLANE_UPDATE_CASES"):
        case.sections[name] = found
        case.write()
    assert found == case.sections[name]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_case_says_what_it_is_about_and_expects_something(case: Case) -> None:
    assert case.about
    assert "policy" in case.sections
    assert len(case.sections) > 1


@pytest.mark.parametrize(
    "case", [case for case in CASES if "errors" not in case.sections], ids=lambda case: case.path.stem
)
def test_the_canonical_form_says_the_same(case: Case) -> None:
    once = formatter.format_policy(case.source)
    again = Source("formatted", once)
    assert parser.parse(again)[0] == parser.parse(case.source)[0]
    assert formatter.format_policy(again) == once


@pytest.mark.parametrize("case", [case for case in CASES if "errors" in case.sections], ids=name_of)
def test_every_error_shows_its_line_and_a_caret(case: Case) -> None:
    with pytest.raises(PolicyError) as caught:
        compilation(case)
    for item in caught.value.diagnostics:
        assert item.span is not None
        lines = item.render().splitlines()
        column = item.span.column + 3
        assert lines[1].strip() in case.sections["policy"]
        assert set(lines[2].strip()) == {"^"}
        assert lines[2].index("^") == column
