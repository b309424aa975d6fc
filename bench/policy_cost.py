"""
What judging costs: open+close and exec, outside every session and inside one, by number of rules.

    python bench/policy_cost.py [--tier lsm] [--rules 1,32,128,1000] [--json]

It loads programs, so it needs root; run it in a guest to see the LSM tier. None of the rules matches
what is measured. Every figure is the least of many short batches, taken in turns with the same batch
outside the session, so that a busy machine disturbs both or neither.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actplane import dsl
from actplane.codegen.compile import Compiled, compile_policy
from actplane.codegen.tier import Tier
from actplane.loader.btf import Btf
from actplane.loader.features import Features
from actplane.runtime.engine import Engine
from actplane.runtime.tiers import choose
from actplane.source import Source

BATCHES = 60
OPENS = 100
EXECS = 3


def policy_text(rules: int, tier: Tier) -> str:
    """Return a policy of that many rules, each with a pattern of its own for every operation it names."""
    lines = ['source COMMAND = exec "**"']
    for number in range(rules):
        lines.append(f"rule r{number}:")
        lines.append(f'  kill exec "tool{number}" "sub{number}" if COMMAND')
        if tier is not Tier.TRACE:
            lines.append(f'  block write file "/srv/data{number}/**" if COMMAND')
            lines.append(f'  block read file "**/secret{number}.key" if COMMAND')
        lines.append(f'  because "rule {number}"')
    return "\n".join(lines)


def open_close(path: str) -> Callable[[], float]:
    """Return a batch: microseconds of one open and close of a file."""

    def batch() -> float:
        start = time.perf_counter()
        for _ in range(OPENS):
            os.close(os.open(path, os.O_RDONLY))
        return (time.perf_counter() - start) / OPENS * 1e6

    return batch


def run_true() -> float:
    """Return the microseconds of starting and awaiting one process."""
    start = time.perf_counter()
    for _ in range(EXECS):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    return (time.perf_counter() - start) / EXECS * 1e6


class Worker:
    """A child process that runs batches when told to."""

    def __init__(self, batches: dict[str, Callable[[], float]]) -> None:
        self._batches = batches
        self._order, order = os.pipe()
        answer, self._answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(order)
            self._serve()
        os.close(self._order)
        os.close(self._answer)
        self._to, self._from = order, answer

    def _serve(self) -> None:
        names = list(self._batches)
        while command := os.read(self._order, 1):
            os.write(self._answer, f"{self._batches[names[command[0]]]():24.6f}".encode())
        os._exit(0)

    def run(self, name: str) -> float:
        os.write(self._to, bytes([list(self._batches).index(name)]))
        return float(os.read(self._from, 24))

    def close(self) -> None:
        os.close(self._to)
        os.close(self._from)
        os.waitpid(self.pid, 0)


def measure(compiled: Compiled, btf: Btf, folder: str) -> dict[str, float]:
    """Return the least microseconds of each batch, with its name and where it ran."""
    short = os.path.join(folder, "f")
    deep = os.path.join(folder, "some/deeper/folder/with-a-longer-name.txt")
    os.makedirs(os.path.dirname(deep), exist_ok=True)
    for path in (short, deep):
        Path(path).touch()
    batches = {"open": open_close(short), "open deep": open_close(deep), "exec": run_true}
    best: dict[str, float] = {}

    def take(where: str, worker: Worker) -> None:
        for name in batches:
            key = f"{name}, {where}"
            best[key] = min(best.get(key, float("inf")), worker.run(name))

    bare = Worker(batches)
    for _ in range(BATCHES):
        take("bare", bare)
    with Engine.load(compiled, btf, None) as engine:
        engine.attach(os.open(folder, os.O_RDONLY))
        inside = Worker(batches)
        pidfd = os.pidfd_open(inside.pid)
        engine.mark(pidfd)
        os.close(pidfd)
        for _ in range(BATCHES):
            take("outside", bare)
            take("inside", inside)
        inside.close()
    bare.close()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="what judging costs, by number of rules")
    parser.add_argument("--tier", choices=[tier.value for tier in Tier])
    parser.add_argument("--rules", default="1,32,128,1000")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tier = choose(Features(), Tier(options.tier) if options.tier else None)
    btf = Btf.vmlinux()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for rules in map(int, options.rules.split(",")):
            compiled = compile_policy(dsl.compile_policy(Source("bench", policy_text(rules, tier))), tier)
            rows[rules] = measure(compiled, btf, folder)
            if not options.json:
                figures = "  ".join(f"{name} {value:.2f}" for name, value in rows[rules].items())
                print(f"{rules:5} rules: {figures}", flush=True)
    if options.json:
        print(json.dumps({"tier": tier.value, "microseconds": rows}))


if __name__ == "__main__":
    main()
