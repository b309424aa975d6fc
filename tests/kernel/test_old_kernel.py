"""On a kernel that is too old for sessions the product says what it lacks, and runs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from actplane.loader.features import Answer, Feature, Features

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: bpf() needs privileges")

RULE = 'rule no: kill exec "git" if AGENT because "no"'


@pytest.fixture(autouse=True)
def old_kernel() -> None:
    if Features().probe(Feature.TASK_STORAGE).answer is not Answer.NO:
        pytest.skip("needs a kernel without task storage, such as 5.10")


def actplane(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "actplane", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def test_run_names_what_is_missing_and_since_when_it_exists(tmp_path: Path):
    done = actplane("run", "--rule", RULE, "--", "touch", str(tmp_path / "ran"))
    assert done.returncode != 0
    assert "task storage" in done.stderr
    assert "5.11" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def test_doctor_lists_it():
    done = actplane("doctor")
    line = next(line for line in done.stdout.splitlines() if line.startswith("task storage"))
    assert line.split()[2] == "no"
