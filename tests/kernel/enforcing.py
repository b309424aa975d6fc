"""
Trying things under a policy, through `actplane run`, on whatever tier this kernel offers.

A module of tests runs one session: a driver in `tests/kernel/trials` tries everything, its results and the
session's events are what the tests look at.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from actplane.codegen.tier import Tier
from actplane.errors import ActplaneError
from actplane.loader.features import Features
from actplane.runtime import tiers
from actplane.runtime.privileges import missing_capabilities

REPOSITORY = Path(__file__).resolve().parents[2]
ALLOWED = 0
DENIED = errno.EPERM
KILLED = -signal.SIGKILL
SESSION_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a session's trials came to: 0, an errno, or minus a signal; and what was reported."""

    tier: Tier
    results: Mapping[str, int]
    events: Sequence[Mapping[str, object]]
    stderr: str

    @property
    def blocked_exec(self) -> int:
        """How an exec ends that is blocked: seen only when it has committed, it is killed."""
        return KILLED if self.tier is Tier.TRACE else DENIED

    def of_rule(self, rule: str) -> list[Mapping[str, object]]:
        return [event for event in self.events if event["rule"] == rule]


@cache
def tier_or_reason() -> Tier | str:
    if missing_capabilities():
        return "needs root: programs are loaded"
    try:
        return tiers.choose(Features())
    except ActplaneError as error:
        return f"needs a tier: {str(error).splitlines()[0]}"


def require_tier(*wanted: Tier) -> Tier:
    """Return the best tier of this kernel. Skips if there is none, or none of the wanted."""
    tier = tier_or_reason()
    if isinstance(tier, str):
        pytest.skip(tier)
    if wanted and tier not in wanted:
        pytest.skip(f"needs tier {' or '.join(each.value for each in wanted)}: this kernel offers {tier.value}")
    return tier


def command(policy: Path, *words: str | Path) -> list[str]:
    """Return the `actplane run` that the tests use: weaker forms allowed, as the tiers differ in them."""
    options = ["-q", "--allow-degraded", "--linger", "10", "--policy", str(policy)]
    if "ACTPLANE_GUEST" in os.environ:
        # The mirror judges alike everywhere; in an emulated machine it takes its time.
        options.append("--no-mirror")
    return [sys.executable, "-m", "actplane", "run", *options, *map(str, words)]


def write_policy(folder: Path, text: str) -> Path:
    path = folder / "actplane.yaml"
    path.write_text("version: 1\npolicy: |\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    return path


def enforce(
    folder: Path, policy: str, driver: str, *arguments: str | Path, outside: Mapping[str, str] | None = None
) -> Outcome:
    """
    Run a driver of `tests.kernel.trials` in a session under a policy; its first argument is `folder`/work.

    The policy file and the events are beside that folder. `outside` are variables for the driver.
    """
    tier = require_tier()
    work = folder / "work"
    work.mkdir(exist_ok=True)
    events = folder / "events.jsonl"
    done = subprocess.run(
        [
            *command(write_policy(folder, policy), "--events", events, "--"),
            *(sys.executable, "-S", "-m", f"tests.kernel.trials.{driver}", str(work), *map(str, arguments)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", **(outside or {})},
        timeout=SESSION_SECONDS,
    )
    stderr = done.stderr.decode(errors="replace")
    assert done.returncode == 0, stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return Outcome(tier, results, [json.loads(line) for line in events.read_text().splitlines()], stderr)


def binary(path: Path, model: str = "true") -> Path:
    """Put a copy of a program of this system at a path."""
    found = shutil.which(model)
    assert found is not None, model
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(os.path.realpath(found), path)
    return path


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())
