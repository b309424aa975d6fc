"""What check, compile, doctor, domains and init print, and their statuses. None of it needs privileges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actplane.asm import decode
from actplane.cli import main
from actplane.cli.exits import Exit
from actplane.cli.init_command import STARTER

POLICY = """\
version: 1
policy: |
  source SECRET = file "**/.env"
  rule no-push:
    kill exec "git" "push" if AGENT
    because "pushing is the reviewer's job" instead "open a draft"
  rule no-leak:
    block connect endpoint "*" if AGENT and SECRET
    because "secrets stay here"
"""

CATALOGUE = """\
version: 1
rules:
  a: {policy: 'rule a: kill exec "x" if AGENT'}
  b: {policy: 'rule b: kill exec "y" if AGENT'}
domains:
  base: {bind: [{rule: a, mode: locked}, {rule: b, mode: default}]}
  child: {parent: base, disable: [b]}
default_domain: base
"""


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a file for each pattern, so that nobody warns of patterns that match nothing."""
    monkeypatch.chdir(tmp_path)
    for name in (".env", "secrets/key", ".git/hooks/pre-commit", ".github/ci.yml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(text: str, name: str = "actplane.yaml") -> None:
    Path(name).write_text(text)


def test_check_says_each_rule_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    write(POLICY)
    assert main(["check", "--tier", "lsm"]) == Exit.OK
    said = capsys.readouterr().out
    assert "2 rules, 2 clauses; no errors" in said
    assert "tier lsm: as asked for" in said
    assert 'When a process labelled AGENT executes "git" with the argument "push", the process is killed.' in said
    assert "because: pushing is the reviewer's job" in said
    assert "instead: open a draft" in said
    assert "!" not in said


def test_check_names_what_a_tier_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    write(POLICY)
    assert main(["check", "--tier", "trace"]) == Exit.OK
    said = capsys.readouterr().out
    assert "! on tier trace: label SECRET cannot be followed" in said
    assert "actplane.yaml:8:5: warning: " in said
    assert "1 warning" in said


def test_check_reports_every_error_at_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    write('version: 1\npolicy: |\n  rule a: blok exec "x"\n  rule b: kill exce "y"\n')
    assert main(["check"]) == Exit.FAILED
    said = capsys.readouterr().err
    assert "actplane.yaml:3:11: " in said
    assert "actplane.yaml:4:16: " in said
    assert said.endswith("actplane: 2 errors\n")


def test_check_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    write(POLICY)
    assert main(["check", "--json", "--tier", "trace"]) == Exit.OK
    value = json.loads(capsys.readouterr().out)
    assert value["ok"] is True
    assert value["tier"] == "trace"
    assert [rule["name"] for rule in value["rules"]] == ["no-push", "no-leak"]
    assert [(s["rule"], bool(s["weakness"])) for s in value["sentences"]] == [
        ("", False),
        ("no-push", False),
        ("no-leak", True),
    ]
    (warning,) = value["diagnostics"]
    assert (warning["severity"], warning["line"], warning["column"]) == ("warning", 8, 5)
    assert warning["text"].startswith("block connect")


def test_check_of_a_wrong_policy_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", "--rule", "rule"]) == Exit.FAILED
    value = json.loads(capsys.readouterr().out)
    assert value["ok"] is False
    assert value["diagnostics"][0]["file"] == "--rule"


def test_check_warns_of_a_policy_that_run_cannot_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--tier", "lsm", "--rule", 'rule r: kill exec "x"']) == Exit.OK
    assert "neither COMMAND nor AGENT" in capsys.readouterr().out


def test_no_policy_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile"]) == Exit.POLICY
    said = capsys.readouterr().err
    assert "no policy" in said
    assert "actplane init" in said


def test_compile_shows_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    write(POLICY)
    assert main(["compile", "--emit", "all"]) == Exit.OK
    said = capsys.readouterr().out
    at = [said.index(f"== {stage}\n") for stage in ("tokens", "ast", "ir", "asm", "bytes")]
    assert at == sorted(at)
    assert "; program bprm_check_security: BPF_PROG_TYPE_LSM on bprm_check_security" in said
    assert "; offset of task_struct.group_leader" in said


def test_the_stages_of_a_program_agree(capsys: pytest.CaptureFixture[str]) -> None:
    write(POLICY)
    assert main(["compile", "--emit", "all", "--json", "--tier", "trace"]) == Exit.OK
    stages = json.loads(capsys.readouterr().out)
    assert set(stages) == {"tokens", "ast", "ir", "asm", "bytes"}
    names = [program["name"] for program in stages["asm"]]
    assert names == [program["name"] for program in stages["bytes"]] == list(stages["ir"]["programs"])
    for listing, binary in zip(stages["asm"], stages["bytes"], strict=True):
        code = bytes.fromhex(binary["content"])
        assert len(code) == 8 * binary["slots"]
        assert len(decode(code)) == len(listing["content"])
        assert all(0 <= entry["slot"] < binary["slots"] for entry in binary["symbols"])


def test_compile_of_one_program_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    write(POLICY)
    assert main(["compile", "--program", "sched_process_exec", "-o", "out.txt"]) == Exit.OK
    assert capsys.readouterr().out == ""
    assert Path("out.txt").read_text().count("; program ") == 1
    assert main(["compile", "--program", "nope"]) == Exit.FAILURE
    assert "expected one of task_alloc, " in capsys.readouterr().err
    assert main(["compile", "-o", "no/such/folder"]) == Exit.FAILURE
    assert "cannot be written: No such file" in capsys.readouterr().err


def test_domains(capsys: pytest.CaptureFixture[str]) -> None:
    write(CATALOGUE)
    assert main(["domains"]) == Exit.OK
    said = capsys.readouterr().out.splitlines()
    assert "* base" in said
    assert "  child" in said
    assert "    parent: base" in said
    assert "    disables: b" in said
    assert main(["domains", "--domain", "child", "--json"]) == Exit.OK
    value = json.loads(capsys.readouterr().out)
    assert value["selected"] == "child"
    assert [domain["selected"] for domain in value["domains"]] == [False, True]
    assert value["domains"][1] == {
        "name": "child",
        "selected": True,
        "parent": "base",
        "disabled": ["b"],
        "locked": ["a"],
        "default": [],
    }


def test_domains_without_a_default_and_without_domains(capsys: pytest.CaptureFixture[str]) -> None:
    write(CATALOGUE.replace("default_domain: base\n", ""))
    assert main(["domains"]) == Exit.OK
    assert "None of them is the default" in capsys.readouterr().out
    write(POLICY)
    assert main(["domains"]) == Exit.OK
    assert "single policy" in capsys.readouterr().out
    assert main(["domains", "--domain", "x"]) == Exit.POLICY
    assert main(["domains", "--rule", "x"]) == Exit.POLICY


def test_init_writes_a_policy_that_compiles_in_every_domain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == Exit.OK
    assert Path("actplane.yaml").read_text() == STARTER
    for domain in ("session", "strict"):
        assert main(["check", "--json", "--tier", "lsm", "--domain", domain]) == Exit.OK
        value = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert value["ok"] is True
        assert value["diagnostics"] == []
        assert all(rule["because"] and rule["instead"] for rule in value["rules"])


def test_the_default_domain_of_the_starter_is_for_every_tier(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == Exit.OK
    capsys.readouterr()
    for tier in ("lsm", "fmod_ret", "trace"):
        assert main(["check", "--json", "--tier", tier]) == Exit.OK
        assert json.loads(capsys.readouterr().out)["diagnostics"] == []


def test_init_keeps_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    write("mine")
    assert main(["init"]) == Exit.OK
    assert Path("actplane.yaml").read_text() == "mine"
    assert "kept" in capsys.readouterr().err
    assert main(["init", "--force"]) == Exit.OK
    assert Path("actplane.yaml").read_text() == STARTER


def test_init_does_not_write_through_a_link() -> None:
    Path("actplane.yaml").symlink_to("elsewhere")
    assert main(["init"]) == Exit.OK
    assert not Path("elsewhere").exists()
