"""
What `actplane run -- true` costs over `true` alone, and where it goes.

Wall time is the median of whole processes; on a shared machine the processor's time (user and system, of the
process and its children) says more, so both are printed. Bytecode caches are used, as in an installation.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actplane.runtime.privileges import missing_capabilities

ROUNDS = 5
RULE = """source COMMAND = exec "**"
rule no-push:
  kill exec "git" "push" if COMMAND
  because "pushing is the reviewer's job" instead "open a draft and stop"
"""
RUN = [sys.executable, "-m", "actplane", "run", "-q", "--rule", RULE]
TRUE = shutil.which("true") or "true"

STAGES = {
    "true": [TRUE],
    "python": [sys.executable, "-c", "pass"],
    "imports": [sys.executable, "-c", "import actplane.cli.run_command, actplane.runtime.session, actplane.verifier"],
    "run --no-mirror": [*RUN, "--no-mirror", TRUE],
    "run": [*RUN, TRUE],
}


def _cost(argv: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return the median wall and processor seconds of a command."""
    walls, processors = [], []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run(argv, check=True, env=environment)
        walls.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return statistics.median(walls), statistics.median(processors)


@pytest.mark.benchmark(min_rounds=1)
def test_cold_start(benchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if missing_capabilities():
        pytest.skip("needs root: programs are loaded")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    subprocess.run(STAGES["run"], check=True, env=environment)
    costs = {name: _cost(argv, environment) for name, argv in STAGES.items()}
    benchmark.extra_info.update({name: cost[1] for name, cost in costs.items()})
    benchmark.pedantic(lambda: subprocess.run(STAGES["run"], check=True, env=environment), rounds=ROUNDS)
    base = costs["true"]
    with capsys.disabled():
        print(f"\n{'':<16} {'wall':>9} {'processor':>10}")
        for name, (wall, processor) in costs.items():
            print(f"{name:<16} {wall * 1000:6.1f} ms {processor * 1000:7.1f} ms   {wall / base[0]:6.0f} x true")
    assert costs["run"][1] < 3, "a cold start takes more than three seconds of processor time"
