"""
Write the tables of generated programs in docs/verifier/agreement.md from the tallies of runs.

    python -m tests.verifier.publish --tally FILE [--tally FILE ...]

The numbers are kept beside the page, in agreement.json; `python -m tests.verifier.publish` alone writes
the page from them again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.kernel.tally import BOTH_ACCEPT, BOTH_REFUSE, KERNEL_ONLY, MIRROR_ONLY, Tally

FOLDER = Path(__file__).parents[2] / "docs" / "verifier"
PAGE = FOLDER / "agreement.md"
NUMBERS = FOLDER / "agreement.json"
BEGIN = "<!-- tests.verifier.publish writes what follows -->\n"
END = "<!-- and ends here -->\n"

_HEAD = (
    "| category | programs | both accept | both refuse | kernel only | mirror only | equal |\n"
    "|---|---|---|---|---|---|---|"
)


def summary(tally: Tally) -> dict[str, Any]:
    """Return what is published of a run."""
    outcomes = (BOTH_ACCEPT, BOTH_REFUSE, KERNEL_ONLY, MIRROR_ONLY)
    counts = {category: [row[name] for name in outcomes] for category, row in tally.counts.items()}
    return {
        "kernel": tally.kernel,
        "seed": tally.seed,
        "counts": {category: row for category, row in counts.items() if sum(row)},
        "reasons": tally.reasons,
        "mirror_us": _spread(tally.mirror_us),
        "kernel_us": _spread(tally.kernel_us),
    }


def _spread(times: Sequence[int]) -> list[int]:
    """Return median, 90th percentile and the most."""
    ordered = sorted(times) or [0]
    return [ordered[len(ordered) // 2], ordered[len(ordered) * 9 // 10], ordered[-1]]


def tables(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table for each run."""
    for run in runs:
        counts: Mapping[str, list[int]] = run["counts"]
        total = [sum(row[index] for row in counts.values()) for index in range(4)]
        yield f"### Linux {run['kernel']}: {sum(total):,} programs (seed {run['seed']})\n"
        yield _HEAD
        for category, row in [*counts.items(), ("all", total)]:
            share = 100 * (row[0] + row[1]) / sum(row)
            numbers = " | ".join(f"{number:,}" for number in row)
            yield f"| {category} | {sum(row):,} | {numbers} | {share:.2f} % |"
        reasons = run["reasons"]
        refused = sum(reasons.values())
        mirror, kernel = ([number / 1000 for number in run[key]] for key in ("mirror_us", "kernel_us"))
        yield (
            f"\nOf {refused:,} programs that both refuse, {reasons.get('same', 0):,} for the same id, "
            f"{reasons.get('unmapped', 0):,} without a message that has one. Milliseconds (median, 90 %, most): "
            f"mirror {mirror[0]:.2f}, {mirror[1]:.2f}, {mirror[2]:,.0f}; "
            f"kernel {kernel[0]:.2f}, {kernel[1]:.2f}, {kernel[2]:,.0f}.\n"
        )


def page_of(text: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with the tables of these runs between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + "\n".join(tables(runs)) + "\n" + END + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tally", type=Path, action="append", default=[], help="the results of a run, in order")
    arguments = parser.parse_args()
    if arguments.tally:
        runs = [summary(Tally.read(path)) for path in arguments.tally]
        NUMBERS.write_text(json.dumps(runs, indent=1) + "\n")
    PAGE.write_text(page_of(PAGE.read_text(), json.loads(NUMBERS.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
