"""Which words of a command line are ours, and which are the command's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from actplane import __version__
from actplane.cli import COMMANDS, main, parse
from actplane.cli.exits import MEANINGS, Exit
from actplane.cli.run_command import split_command

RULE = 'rule r: kill exec "id" if AGENT'


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["run", "git", "push"], ["git", "push"]),
        (["run", "--", "git", "push"], ["git", "push"]),
        (["run", "git", "--", "push"], ["git", "--", "push"]),
        (["run", "--rule", "x", "git", "--rule", "y"], ["git", "--rule", "y"]),
        (["run", "--rule=x", "git", "-h"], ["git", "-h"]),
        (["--rule", "run", "run", "-q", "run"], ["run"]),
        (["run", "--", "--", "x"], ["--", "x"]),
        (["run", "--", "-q"], ["-q"]),
        (["run", "--tier", "trace", "--events", "e", "--linger", "3", "a b", ""], ["a b", ""]),
    ],
)
def test_the_command_begins_at_its_first_word(words: list[str], command: list[str]) -> None:
    assert parse(words).argv == command


def test_every_option_of_run_that_takes_a_value_is_known_to_the_splitter() -> None:
    """A new option that is forgotten there would take the command's first word for its value."""
    options = parse(["run", "true"])
    given = {"policy": "p", "rule": "r", "domain": "d", "tier": "lsm", "events": "e", "linger": "1"}
    flags = {"allow_degraded", "run_as_root", "no_mirror", "quiet"}
    ours = {name for name in vars(options) if not name.startswith("before_")} - {"handler", "command", "argv"}
    assert ours == set(given) | flags
    for name, value in given.items():
        assert split_command([f"--{name}", value, "x"]) == ([f"--{name}", value], ["x"])


@pytest.mark.parametrize("option", ["policy", "rule", "domain"])
def test_the_policy_options_stand_on_either_side(option: str) -> None:
    for words in ([f"--{option}", "v", "check"], ["check", f"--{option}", "v"], [f"--{option}=v", "run", "x"]):
        options = parse(words)
        assert getattr(options, option) == "v"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["check", "--rule", "a", "--policy", "b"], "--rule and --policy"),
        (["--rule", "a", "check", "--policy", "b"], "--rule and --policy"),
        (["--rule", "a", "run", "--domain", "b", "x"], "--domain names a domain"),
        (["--rule", "a", "check", "--rule", "b"], "before the command and after it"),
        (["run"], "no command"),
        (["run", "-q", "--"], "no command"),
        (["run", "--linger", "-1", "x"], "number of seconds"),
        (["run", "--linger", "nan", "x"], "number of seconds"),
        (["run", "--tier", "best", "x"], "invalid choice"),
        (["run", "--no-such", "--", "x"], "--no-such"),
        (["walk", "x"], "walk"),
        ([], "COMMAND"),
        (["check", "surplus"], "surplus"),
        (["check", "--js"], "--js"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(words)
    assert raised.value.code == Exit.USAGE
    assert complaint in capsys.readouterr().err


def test_help_names_every_command_and_every_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command}" in said
    for status in MEANINGS:
        assert f"  {status.value:>3}  " in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse([command, "-h"])
    assert raised.value.code == 0
    assert f"actplane {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--version"])
    assert capsys.readouterr().out == f"actplane {__version__}\n"


def test_statuses_are_distinct_and_below_those_of_signals() -> None:
    assert set(MEANINGS) == set(Exit)
    assert all(0 <= status < 128 for status in Exit)
    assert len({status.value for status in Exit}) == len(Exit)


def test_a_reader_that_leaves_is_no_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("policy: |\n" + '  source A = exec "x"\n' * 5000 + f"  {RULE}\n")
    shell = f'"{sys.executable}" -m actplane compile --emit tokens --policy p.yaml | head -1'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_a_bug_of_ours_is_not_taken_for_the_commands_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("actplane.cli.parse", lambda argv: 1 // 0)
    assert main(["run", "true"]) == Exit.FAILURE
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_only_the_modules_of_the_command_are_imported() -> None:
    code = (
        "import sys; from actplane.cli import parse; parse(['run', 'true']); "
        "print([m for m in sys.modules if m.startswith('actplane.') and 'run_command' not in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = set(eval(done.stdout))
    assert names <= {"actplane.cli", "actplane.cli.exits", "actplane.cli.options", "actplane.errors", "actplane.source"}
