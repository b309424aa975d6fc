"""
What a comparison of the mirror with a kernel has found so far: counts by category, and every
disagreement with what is needed to ask again. Kept in a file, so that a run can stop and go on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

BOTH_ACCEPT = "both accept"
BOTH_REFUSE = "both refuse"
KERNEL_ONLY = "kernel only"
MIRROR_ONLY = "mirror only"
NO_ANSWER = "no answer"
LEFT_OUT = "left out"
OUTCOMES = (BOTH_ACCEPT, BOTH_REFUSE, KERNEL_ONLY, MIRROR_ONLY, NO_ANSWER, LEFT_OUT)


@dataclass
class Tally:
    """
    One run: a kernel, a seed, how far each category got, and what came out.

    Units:  mirror_us and kernel_us are microseconds for one program each.
    """

    kernel: str
    seed: int
    done: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    """Of programs that both refuse: how many for the same reason, for another, for one without an id."""
    causes: dict[str, int] = field(default_factory=dict)
    unmapped: dict[str, int] = field(default_factory=dict)
    disagreements: list[dict[str, object]] = field(default_factory=list)
    mirror_us: list[int] = field(default_factory=list)
    kernel_us: list[int] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Tally:
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(path)

    def count(self, category: str, outcome: str) -> None:
        row = self.counts.setdefault(category, dict.fromkeys(OUTCOMES, 0))
        row[outcome] += 1

    @property
    def judged(self) -> int:
        return sum(row[name] for row in self.counts.values() for name in OUTCOMES[:4])

    def table(self) -> Iterable[str]:
        """Yield the lines of a table of agreement, and of what the disagreements are about."""
        yield f"Linux {self.kernel}, seed {self.seed}: {self.judged} programs"
        for category, row in self.counts.items():
            answered = sum(row[name] for name in OUTCOMES[:4])
            equal = row[BOTH_ACCEPT] + row[BOTH_REFUSE]
            share = f"{100 * equal / answered:.2f} %" if answered else "-"
            yield f"{category:24} " + "  ".join(f"{name} {row[name]:6}" for name in OUTCOMES) + f"  equal {share}"
        yield f"reasons: {self.reasons}"
        for cause, number in Counter(self.causes).most_common(40):
            yield f"{number:6}  {cause}"
        for who, times in (("mirror", self.mirror_us), ("kernel", self.kernel_us)):
            if times:
                times = sorted(times)
                middle, ninety = times[len(times) // 2], times[len(times) * 9 // 10]
                yield f"{who}: median {middle} us, p90 {ninety} us, max {times[-1] / 1000:.1f} ms"


def plain(message: str) -> str:
    """
    Return a message without its numbers, so that messages of one kind are equal.

    >>> plain("invalid access to map value, value_size=48 off=-8 size=8")
    'invalid access to map value, value_size=N off=N size=N'
    """
    return re.sub(r"-?\b(0x[0-9a-f]+|\d+)\b", "N", message)[:120]
