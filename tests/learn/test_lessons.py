"""
The lessons in docs/learn are run as they are printed.

In a lesson, a fence marked `pycon` is an interactive session (one name space for the whole lesson),
`asm NAME` is a file, and `console` holds commands after `$ ` with what they print; `...` on a line of
its own stands for any lines. A lesson that needs more than Python says so in its first line:
`<!-- needs: bpf -->` (programs may be loaded) or `<!-- needs: lsm -->` (and LSM programs are obeyed).
"""

from __future__ import annotations

import doctest
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "learn"
LESSONS = sorted(FOLDER.glob("[0-9]*.md"))
PAGES = [*LESSONS, FOLDER / "machine.md"]
FLAGS = doctest.ELLIPSIS
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_NEEDS = re.compile(r"\A<!-- needs: (?P<what>bpf|lsm) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block of a lesson: what it is, its text, the line it starts on."""

    kind: str
    name: str
    body: str
    line: int


def blocks_of(text: str) -> Iterator[Block]:
    for fence in _FENCE.finditer(text):
        kind, _, name = fence["info"].strip().partition(" ")
        yield Block(kind, name, fence["body"], text.count("\n", 0, fence.start("body")) + 1)


def missing(what: str) -> str:
    """Say what this machine lacks of what a lesson needs, nothing if it can run here."""
    from actplane import asm
    from actplane.errors import KernelError
    from actplane.loader.features import Features
    from actplane.loader.programs import load

    try:
        load(asm.assemble("r0 = 0\nexit", prog_type=asm.ProgType.BPF_PROG_TYPE_XDP), {}).close()
    except KernelError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            return "loading programs is not permitted here"
        raise
    if what == "lsm":
        finding = Features().lsm_hook_fires()
        if not finding:
            return f"LSM programs are not obeyed here: {finding.reason}"
    return ""


def run_session(block: Block, names: dict[str, object], lesson: str) -> None:
    # Named by its place: doctest keeps the source of functions by the name of their test.
    test = doctest.DocTestParser().get_doctest(block.body, {}, f"{lesson}:{block.line}", lesson, block.line - 1)
    # The parser gives every test a copy of its names; those of a lesson go on from block to block.
    test.globs = names
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    report: list[str] = []
    runner.run(test, out=report.append, clear_globs=False)
    assert runner.failures == 0, "".join(report)


def run_console(block: Block, folder: Path, lesson: str) -> None:
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    for command, expected in commands_of(block.body):
        done = subprocess.run(
            ["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
        )
        assert matches(done.stdout + done.stderr, expected), (
            f"{lesson}:{block.line}: $ {command}\nexpected:\n{expected}\ngot:\n{done.stdout}{done.stderr}"
        )


def commands_of(body: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def matches(got: str, expected: str) -> bool:
    pattern = "".join("(?:.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in expected.splitlines())
    return re.fullmatch(pattern.rstrip("\n") + "\n*", got) is not None


def install_command(folder: Path) -> None:
    """Put an `actplane` that is this tree's into the folder's bin."""
    script = folder / "bin" / "actplane"
    script.parent.mkdir()
    here = f"import sys; sys.path.insert(0, {str(FOLDER.parents[1])!r})"
    code = f"{here}; import actplane.cli; sys.exit(actplane.cli.main())"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    script.chmod(0o755)


@pytest.mark.parametrize("lesson", PAGES, ids=lambda path: path.stem)
def test_lesson(lesson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = lesson.read_text()
    needs = _NEEDS.match(text)
    reason = missing(needs["what"]) if needs else ""
    if reason:
        pytest.skip(reason)
    install_command(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for block in blocks_of(text):
        if block.kind == "pycon":
            run_session(block, names, lesson.name)
        elif block.kind == "console":
            run_console(block, tmp_path, lesson.name)
        elif block.kind == "asm" and block.name:
            (tmp_path / block.name).write_text(block.body)
        else:
            assert block.kind in ("text", "asm"), f"{lesson.name}:{block.line}: nothing runs ```{block.kind}"
            continue
        ran += 1
    assert ran, f"{lesson.name} shows nothing that runs"


def test_there_are_ten_lessons_and_the_index_names_each() -> None:
    assert len(LESSONS) == 10
    index = (FOLDER / "README.md").read_text()
    for page in PAGES:
        assert f"({page.name})" in index
    assert [bool(_NEEDS.match(lesson.read_text())) for lesson in LESSONS] == [False] * 7 + [True] * 3


@pytest.mark.parametrize(
    ("got", "expected", "is_match"),
    [("a\nb\nc\n", "a\n...\nc\n", True), ("a\nc\n", "a\n...\nc\n", True), ("a\nd\n", "a\n...\nc\n", False)],
)
def test_dots_stand_for_lines(got: str, expected: str, is_match: bool) -> None:
    assert matches(got, expected) is is_match
