"""
What the mirror costs beside the running kernel: seconds and processed instructions of real programs.

    python -m bench.mirror_times [--every 10] [--largest 100] [--json]

Every Nth program of the corpus, and the largest ones (by instructions, and by what a kernel processed),
are judged by the mirror and loaded by the kernel in the same run. It needs root. Programs that this
kernel does not take (LSM, fentry, maps that it lacks) have no seconds of the kernel; the counts of
instructions are those of the corpus's Linux 6.18.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from tests.kernel.asker import Asker, NoAnswer
from tests.verifier import corpus, questions

COUNTED_BY = ("6.18.15+deb13-cloud-amd64", "6.18.44-fc-v657")
"""The kernels of the corpus whose counts are taken, the first that has one."""

FEW_INSNS = 50
"""Ratios of counts are taken from this many instructions on."""


@dataclass(frozen=True)
class Row:
    """One program: its size in slots, verdicts, processed instructions and seconds of processor or load time."""

    id: str
    slots: int
    truth: str
    verdict: str
    insns: int
    kernel_insns: int
    seconds: float
    kernel_seconds: float | None

    @property
    def times_the_kernels(self) -> float | None:
        """How many times the instructions of the kernel, where both walked all of the program."""
        if self.kernel_insns < FEW_INSNS or (self.verdict, self.truth) != ("accept", "accept"):
            return None
        return self.insns / self.kernel_insns


def counted(case: corpus.Case) -> int:
    """Return how many instructions Linux 6.18 processed; 0 if it could not be asked."""
    for name in COUNTED_BY:
        found = case.raw["kernel"].get(name, {})
        if found.get("verdict") == case.truth and found.get("insns_processed"):
            return int(found["insns_processed"])
    return 0


def measure(cases: Iterable[corpus.Case], types: Btf, ask_kernel: bool = True) -> Iterator[Row]:
    """Judge programs, and load them where the kernel takes them."""
    with Asker(questions.blob_of, types) as asker:
        for case in cases:
            question = questions.corpus_question(case, "corpus", 0)
            if question is None or case.lacks_contents:
                continue
            started = time.process_time()
            report = corpus.judge_prepared(case, types)
            seconds = time.process_time() - started
            kernel_seconds = None
            if ask_kernel:
                try:
                    answer = asker.ask(question.wire())
                    kernel_seconds = answer.seconds if answer.is_accepted == report.is_accepted else None
                except (NoAnswer, ActplaneError):
                    pass
            verdict = "accept" if report.is_accepted else "reject"
            insns = report.statistics.insns_processed
            size = question.program.slots
            yield Row(case.id, size, case.truth, verdict, insns, counted(case), seconds, kernel_seconds)


def spread(numbers: Sequence[float], text: Callable[[float], str]) -> str:
    """Return median, 90th percentile and maximum."""
    if not numbers:
        return "-"
    ordered = sorted(numbers)
    return " / ".join(map(text, (statistics.median(ordered), ordered[len(ordered) * 9 // 10], ordered[-1])))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


def table(name: str, rows: Sequence[Row]) -> list[str]:
    """Return lines of a table: median, 90th percentile and maximum of each column."""
    ratios = [ratio for row in rows if (ratio := row.times_the_kernels) is not None]
    both = [row for row in rows if row.kernel_seconds is not None]
    return [
        f"{name}: {len(rows)} programs (median / 90 % / most)",
        f"  the mirror, ms of processor time      {spread([row.seconds for row in rows], milliseconds)}",
        f"  those that the kernel took: {len(both)}",
        f"    the mirror, ms                      {spread([row.seconds for row in both], milliseconds)}",
        f"    the kernel, ms of BPF_PROG_LOAD     {spread([row.kernel_seconds or 0 for row in both], milliseconds)}",
        f"  instructions, times the kernel's      {spread(ratios, lambda ratio: f'{ratio:.2f}')}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--every", type=int, default=10, help="judge every Nth program (default: 10)")
    parser.add_argument("--largest", type=int, default=100, help="and this many of the largest (default: 100)")
    parser.add_argument("--json", action="store_true", help="print every program as a line of JSON")
    options = parser.parse_args(arguments)
    types = Btf.vmlinux()
    cases = list(corpus.cases())
    by_size = sorted(cases, key=lambda case: -case.raw["insn_cnt"])[: options.largest]
    by_work = sorted(cases, key=lambda case: -counted(case))[: options.largest]
    for name, chosen in (
        (f"every {options.every}th program", cases[:: options.every]),
        (f"the {options.largest} with the most instructions", by_size),
        (f"the {options.largest} of which 6.18 processed the most instructions", by_work),
    ):
        rows = list(measure(chosen, types))
        if options.json:
            for row in rows:
                print(json.dumps({"set": name, **asdict(row)}))
            continue
        print("\n".join(table(name, rows)))
        for row in sorted(rows, key=lambda row: -row.seconds):
            if row.seconds > 2 or (row.times_the_kernels or 0) > 10:
                print(f"    {row.seconds:6.2f} s  {row.insns:8} of {row.kernel_insns:8}  {row.slots:7} slots  {row.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
