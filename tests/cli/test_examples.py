"""The bundled examples compile, and need the tier their README says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from actplane.cli import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))


def weaknesses(path: Path, tier: str, capsys: pytest.CaptureFixture[str], *options: str) -> int:
    assert main(["check", "--json", "--tier", tier, "--policy", str(path), *options]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["ok"]
    assert all(rule["because"] for rule in value["rules"])
    return sum(sentence["weakness"] is not None for sentence in value["sentences"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_example_is_enforceable_as_written_on_the_best_tier(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weaknesses(path, "lsm", capsys) == 0


def test_the_table_says_which_tier_each_needs(capsys: pytest.CaptureFixture[str]) -> None:
    rows = re.findall(r"^\| \[(.*?)\].*\| (.*?) \|$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {path.name for path in FILES}
    for name, needed in rows:
        path = EXAMPLES / name
        assert (weaknesses(path, "trace", capsys) == 0) == needed.startswith("any"), name
        assert (weaknesses(path, "fmod_ret", capsys) == 0) == (needed != "lsm"), name
    assert weaknesses(EXAMPLES / "team.yaml", "trace", capsys, "--domain", "review") > 0
