"""
The house rules that a machine can check: who imports whom, and how long a module may be.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1] / "actplane"

# Whom a part of the house may import, besides itself and what everybody may: `source` and `errors`.
EVERYBODY = {"source", "errors"}
MAY_IMPORT = {
    "source": set[str](),
    "errors": set[str](),
    "asm": set[str](),
    "ir": set[str](),
    "dsl": {"ir"},
    "codegen": {"ir", "asm"},
    "verifier": {"asm"},
    "loader": {"asm"},
    "runtime": {"loader", "codegen", "verifier", "dsl", "ir", "asm"},
    "cli": {"runtime", "loader", "codegen", "verifier", "dsl", "ir", "asm"},
    "pytest_plugin": {"verifier", "asm"},
    "__main__": {"cli"},
}

LONGEST_MODULE_LINES = 800

MODULES = sorted(HOUSE.rglob("*.py"))
NAMES = [str(path.relative_to(HOUSE.parent)) for path in MODULES]


def part_of(path: Path) -> str:
    """The part of the house a module belongs to: its package, or its own name at the top."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    """Every import of something of ours as (line, dotted module, imported name or "")."""
    package = ("actplane", *path.relative_to(HOUSE).parts[:-1])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "actplane":
                    yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            if module.split(".")[0] == "actplane":
                for alias in node.names:
                    yield node.lineno, module, alias.name


def violations(path: Path, text: str) -> list[str]:
    """What a module imports although its part of the house must not, a line each."""
    part = part_of(path)
    if part == "__init__":
        allowed = EVERYBODY
    elif part in EVERYBODY:
        # The two lowest may know each other only downwards: errors speaks of sources.
        allowed = {"source"} if part == "errors" else set()
    else:
        allowed = MAY_IMPORT[part] | EVERYBODY | {part}
    found = []
    for line, module, name in imported(path, text):
        words = module.split(".")
        target = words[1] if len(words) > 1 else name
        if target and ((HOUSE / target).exists() or (HOUSE / f"{target}.py").exists()):
            if target not in allowed:
                found.append(f"{path.name}:{line}: {part} imports {target}")
            elif target != part and name.startswith("_"):
                found.append(f"{path.name}:{line}: {part} imports {name}, which is private to {target}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_go_one_way(path: Path):
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("verifier/a.py", "from actplane.codegen import x", ["a.py:1: verifier imports codegen"]),
        ("verifier/a.py", "from ..loader.btf import Btf", ["a.py:1: verifier imports loader"]),
        ("dsl/a.py", "def f():\n    from actplane import asm", ["a.py:2: dsl imports asm"]),
        ("asm/a.py", "import actplane.ir.policy", ["a.py:1: asm imports ir"]),
        ("source.py", "import actplane.errors", ["source.py:1: source imports errors"]),
        (
            "codegen/a.py",
            "from actplane.ir.nfa import _merge",
            ["a.py:1: codegen imports _merge, which is private to ir"],
        ),
        ("codegen/a.py", "from . import layout\nfrom actplane import asm, __version__\nimport ast", []),
    ],
)
def test_the_check_sees_every_form_of_import(module: str, text: str, expected: list[str]):
    assert violations(HOUSE / module, text) == expected


def test_every_part_of_the_house_is_known():
    parts = {part_of(path) for path in MODULES} - {"__init__"}
    assert parts <= set(MAY_IMPORT)


def test_the_architecture_page_says_the_same():
    table = {}
    for line in (HOUSE.parent / "docs/architecture.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].strip("`") in MAY_IMPORT:
            table[cells[0].strip("`")] = set(re.findall(r"`(\w+)`", cells[2])) or {cells[2]} - {""}
    table["cli"] = table.keys() - {"cli", "pytest_plugin"} if table["cli"] == {"all above"} else table["cli"]
    assert table == {part: below for part, below in MAY_IMPORT.items() if part not in {*EVERYBODY, "__main__"}}


def test_no_two_parts_import_each_other():
    circles = [(a, b) for a, below in MAY_IMPORT.items() for b in below if a in MAY_IMPORT[b]]
    assert circles == []


ON_FIRST_USE = {("asm", "insn"): {"disasm", "encoding"}}
"""An instruction has a text and bytes, and imports what makes them of it when it is asked for them."""


WOVEN = {"asm/machine"}
"""Folders that are one thing in several modules: what runs a program and what it calls name each other's types."""


def neighbours(package: str) -> dict[str, set[str]]:
    """Whom each module of a package imports within it, wherever in the module and for whatever purpose."""
    folder = HOUSE / package
    paths = [path for path in folder.rglob("*.py") if path.stem != "__init__"]
    paths = [path for path in paths if path.parent.relative_to(HOUSE).as_posix() not in WOVEN]
    modules = {".".join(path.relative_to(folder).with_suffix("").parts): path for path in paths}
    found: dict[str, set[str]] = {}
    for own, path in modules.items():
        wanted = set()
        for _, module, name in imported(path, path.read_text()):
            words = module.split(".")
            if words[1:2] == [package]:
                wanted |= {".".join(words[2:]), ".".join((*words[2:], name))}
        found[own] = wanted & modules.keys() - {own} - ON_FIRST_USE.get((package, own), set())
    return found


def circle_of(arrows: dict[str, set[str]]) -> set[str]:
    """What is left when whatever imports nothing that is left has been taken away, until nothing changes."""
    left = set(arrows)
    while free := {name for name in left if not arrows[name] & left}:
        left -= free
    return left


@pytest.mark.parametrize("package", ["asm", "cli", "codegen", "dsl", "ir", "loader", "runtime", "verifier"])
def test_modules_of_a_package_do_not_import_in_a_circle(package: str):
    assert circle_of(neighbours(package)) == set()


def test_that_check_finds_a_circle():
    assert circle_of({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"e"}, "e": set()}) == {"a", "b", "c"}


def test_the_mirror_is_built_in_layers():
    page = (HOUSE.parent / "docs/architecture.md").read_text()
    floor = {folder: number for number, folder in enumerate(re.findall(r"^\| `verifier/(\w*)`", page, re.MULTILINE))}
    arrows = neighbours("verifier")
    layer = {module: module.rpartition(".")[0] for module in arrows}
    assert floor.keys() == set(layer.values())
    upwards = [(a, b) for a, names in arrows.items() for b in names if floor[layer[b]] > floor[layer[a]]]
    assert upwards == []


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_modules_are_short_and_about_something(path: Path):
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE_LINES
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
