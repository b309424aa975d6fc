"""`actplane refusal`: pages by their ids, and what kernels' logs say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from actplane.cli import main
from actplane.cli.exits import Exit
from actplane.verifier.pages import page_of
from actplane.verifier.tables.refusals import CATALOGUE

LOG = """; return *count; @ branches.bpf.c:20
4: (79) r0 = *(u64 *)(r0 +0)
R0 invalid mem access 'map_value_or_null'
processed 5 insns (limit 1000000)
"""
DOCS = Path(__file__).parents[2] / "docs" / "verifier"


def test_a_log_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    log.write_text(LOG)
    assert main(["refusal", str(log)]) == Exit.OK
    assert capsys.readouterr().out == (
        "insn 4 (r0 = *(u64 *)(r0 +0)): R0 invalid mem access 'map_value_or_null' [null-dereference]"
        "     [return *count; @ branches.bpf.c:20]\n"
        "    hint: compare it with 0 and use it on the branch where it is not\n"
        "    more: actplane refusal null-dereference\n"
    )


def test_a_message_alone_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refusal", "R1 !read_ok"]) == Exit.OK
    assert capsys.readouterr().out.splitlines()[0] == "R1 !read_ok [uninitialized-register]"


def test_a_log_may_come_through_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LOG.encode() + b"\xff\n")))
    assert main(["refusal", "--json"]) == Exit.OK
    found = json.loads(capsys.readouterr().out)
    assert (found["id"], found["insn"], found["insns_processed"]) == ("null-dereference", 4, 5)


@pytest.mark.parametrize("command", [["refusal"], ["verify", "--type", "xdp"], ["disasm"]])
def test_a_closed_input_is_said(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(command) == Exit.FAILURE
    assert capsys.readouterr().err == "actplane: <stdin>: cannot be read: it is closed\n"


@pytest.mark.parametrize("id_", CATALOGUE)
def test_every_id_has_its_page(id_: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refusal", id_]) == Exit.OK
    assert capsys.readouterr().out == page_of(id_) == (DOCS / f"{id_}.md").read_text()


def test_a_page_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refusal", "lock", "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["page"] == page_of("lock")


@pytest.mark.parametrize(
    ("what", "text", "complaint"),
    [
        ("null-derefernce", None, "nor a message that is known\n    hint: did you mean null-dereference?"),
        ("nothing-like-it-at-all", None, "neither the id of a refusal, a file, nor a message that is known\n"),
        ("log", "all is well\n", "the log names no reason that is known"),
        ("log", "", "the log names no reason that is known"),
        (".", None, "cannot be read: Is a directory"),
    ],
)
def test_what_is_not_understood_is_said(
    what: str,
    text: str | None,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / what).write_text(text)
    assert main(["refusal", what]) == Exit.FAILURE
    assert complaint in capsys.readouterr().err
