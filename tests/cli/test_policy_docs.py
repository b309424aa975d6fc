"""What docs/policies.md shows is what the compiler accepts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from actplane.cli import main
from actplane.dsl import endpoints

PAGE = (Path(__file__).resolve().parents[2] / "docs/policies.md").read_text()
BLOCKS = re.findall(r"^```(yaml|policy)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_every_block_compiles(block: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, text = BLOCKS[block]
    if kind == "policy":
        text = "policy: |\n" + re.sub("^", "  ", text, flags=re.MULTILINE)
    path = tmp_path / "actplane.yaml"
    path.write_text(text)
    status = main(["check", "--tier", "lsm", "--policy", str(path)])
    said = capsys.readouterr()
    assert status == 0, said.err


def test_every_endpoint_it_names_is_one() -> None:
    (line,) = re.findall(r"^Endpoints are (.*?)A port alone is `(.*?)`\.$", PAGE, re.MULTILINE | re.DOTALL)
    named = [*re.findall(r"`([^`]+)`", line[0]), line[1]]
    hosts = [each for each in named if not each.startswith(":")]
    assert len(hosts) == 8
    for host in hosts:
        for end in ("", *(each for each in named if each.startswith(":"))):
            if end and (host.startswith("unix:") or host == line[1]):
                continue
            assert endpoints.endpoint_regex(host + end, "/", lambda name: ["192.0.2.1"], lambda message, hint: None)
