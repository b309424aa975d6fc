"""What happens when events come faster than they are read: enforcement goes on, and what was not said is counted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.enforcing import REPOSITORY, command, require_tier, write_policy

pytestmark = pytest.mark.fmod_ret

POLICY = """
rule flood: notify connect endpoint "127.0.0.1:9" if AGENT
rule stop: block connect endpoint "127.0.0.2:9" if AGENT
"""
CONNECTIONS = 1500
"""Each record holds a kilobyte of arguments; the ring buffer has a megabyte."""


def test_events_that_find_no_room_are_enforced_and_counted(tmp_path: Path) -> None:
    require_tier()
    events = tmp_path / "events.jsonl"
    padding = "x" * 2000
    session = subprocess.Popen(
        [
            *command(write_policy(tmp_path, POLICY), "--events", events, "--", sys.executable, "-S", "-m"),
            *("tests.kernel.trials.flood", padding, str(CONNECTIONS)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert session.stdout is not None
    assert session.stdin is not None
    try:
        assert session.stdout.readline() == "ready\n"
        session.send_signal(signal.SIGSTOP)
        session.stdin.write("go\n")
        session.stdin.flush()
        said = session.stdout.readline()
    finally:
        session.send_signal(signal.SIGCONT)
        _, stderr = session.communicate(timeout=120)
    assert said == "denied\n"
    assert session.returncode == 0, stderr
    dropped = re.search(r"^actplane: (\d+) events were enforced and not reported", stderr, re.M)
    assert dropped is not None, stderr
    reported = [json.loads(line) for line in events.read_text().splitlines()]
    assert len(reported) + int(dropped[1]) == CONNECTIONS + 1
    assert 500 < len(reported) < CONNECTIONS
    assert all(event["argv_is_cut"] for event in reported)
