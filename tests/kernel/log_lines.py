"""
The mirror's log beside the kernel's, line by line.

Numbers that only tell things apart (ids, addresses, BTF ids) and marks of precision are not compared; nor
are the kernel's remarks about its own walk, which the mirror does not make.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

_INSN = re.compile(r"^\d+: \([0-9a-f]{2}\)")
_STATE = re.compile(r"^(\d+):((?: frame\d+:)? (?:R|fp|refs).*)$")
_FROM = re.compile(r"^from \d+ to \d+.*?: ")
_TELLS_APART = (
    (re.compile(r"id=\d+([+-]\d+)?"), "id="),
    (re.compile(r"refs=[\d,]+"), "refs="),
    (re.compile(r"=P(?=[\d(s-])"), "="),
    (re.compile(r"map=[^,)]*,"), ""),
    (re.compile(r"^(\d+: \(18\) r\d+ = ).*?(?=$|\s*;)"), r"\1"),
    (re.compile(r"#\d+$|#\d+(?=\s*;)|#kfunc"), "#"),
    (re.compile(r"\s+;"), " ;"),
)


def lines(log: Iterable[str]) -> Iterator[str]:
    """Yield the lines to compare: each instruction with what is known after it, and states that are taken up."""
    pending = ""
    is_fresh = True
    for line in log:
        if _INSN.match(line):
            if pending:
                yield _plain(pending)
            pending, is_fresh = line.rstrip(), False
        elif (state := _STATE.match(line)) is not None:
            # After remarks the kernel writes the state on a line of its own.
            if not is_fresh and ";" not in pending:
                pending += f" ;{state[2]}"
        elif _FROM.match(line) and not line.endswith(": safe"):
            if pending:
                yield _plain(pending)
            yield _plain(line)
            pending, is_fresh = "", True
    if pending:
        yield _plain(pending)


def _plain(line: str) -> str:
    for pattern, text in _TELLS_APART:
        line = pattern.sub(text, line)
    return line.rstrip(" ;")


def agreement(kernel: Iterable[str], mirror: Iterable[str]) -> tuple[int, int]:
    """Return how many lines are equal, in the same order, and how many there are in the longer log."""
    ours, theirs = list(lines(mirror)), list(lines(kernel))
    equal = sum(block.size for block in SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks())
    return equal, max(len(ours), len(theirs))
