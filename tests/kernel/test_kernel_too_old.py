"""What a kernel without task storage (Linux 5.10, say) is told, and what doctor says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from actplane.cli.exits import Exit
from actplane.loader.features import Answer, Feature, Features
from actplane.runtime.privileges import missing_capabilities

ACTPLANE = [sys.executable, "-m", "actplane"]


@pytest.fixture(autouse=True)
def old_kernel() -> None:
    if missing_capabilities():
        pytest.skip("needs root: kernels are probed by loading")
    if Features().probe(Feature.TASK_STORAGE).answer is not Answer.NO:
        pytest.skip("needs a kernel without task storage")


def test_run_says_what_is_missing_and_runs_nothing(tmp_path: Path) -> None:
    rule = 'rule r: kill exec "git" if AGENT'
    done = subprocess.run(
        [*ACTPLANE, "run", "--rule", rule, "--", "touch", str(tmp_path / "ran")], capture_output=True, text=True
    )
    assert done.returncode == Exit.KERNEL_TOO_OLD, done.stderr
    assert "task storage (Linux 5.11 or newer)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()


def test_doctor_says_it_too() -> None:
    done = subprocess.run([*ACTPLANE, "doctor", "--json"], capture_output=True, text=True)
    assert done.returncode == Exit.FAILED, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["task storage"]["answer"] == "no"
    assert "5.11" in checks["task storage"]["hint"]
    assert checks["BTF"]["answer"] == "yes"
