"""
What a person, or the agent, reads on standard error when a policy bites: rule, target, reason, remedy.

Short, because it is read by whoever caused it and has to go on working; and every character that came from
a judged process is made visible, so that no file name can move the cursor, colour the screen, or
pass for a line of ours.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from actplane.runtime.events import Event, rule_names

MAX_TARGET_CHARACTERS = 160
"""What is longer is cut on the screen; the events file has it whole."""


_TOLD_EACH_TIME = 3


def visible(data: bytes | str) -> str:
    r"""
    Return text in which every character shows: no control, no direction mark, no look-alike of a newline.

    A backslash is doubled, so what is shown has one meaning.

    >>> visible(b"a\x1b[2Jb\n\xff")
    'a\\x1b[2Jb\\n\\xff'
    >>> visible("abc\u202edef \\")
    'abc\\u202edef \\\\'
    """
    decoded = data.decode(errors="surrogateescape") if isinstance(data, bytes) else data
    return "".join(map(_visible_character, decoded))


def _visible_character(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        # A byte that was not UTF-8, as surrogateescape keeps it.
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def prose(words: str) -> str:
    """Return a policy author's words on one line, with nothing that does not show."""
    return " ".join(visible(part).replace("\\\\", "\\") for part in words.split())


def shortened(words: str, limit: int = MAX_TARGET_CHARACTERS) -> str:
    """
    Return text of at most `limit` characters, its middle left out.

    >>> shortened("abcdefghij", 7)
    'abc…hij'
    """
    if len(words) <= limit:
        return words
    head = limit // 2
    return words[:head] + "…" + words[len(words) - (limit - head - 1) :]


def target_of(event: Event) -> str:
    """
    Return what an event was about: for an exec the command line, else the target, in quotes.

    A command line that was cut ends in `…`.
    """
    if event.op != "exec" or not event.argv:
        shown = shortened(visible(event.target)).replace('"', '\\"')
        return f'"{shown}"'
    line = " ".join(shlex.quote(visible(argument)) for argument in event.argv)
    return f"`{shortened(line)}{' …' if event.argv_is_cut else ''}`"


class Feedback:
    """
    The lines of one session.

    The same thing happening again gets one line, and from the third time on only every power of ten: a
    wall of repetitions hides what is new. The events file has them all.
    """

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, str, str]] = Counter()

    def lines(self, events: Sequence[Event]) -> list[str]:
        """
        Return what to print about one record, if anything. `events` are all of its events, the strongest first.

        Each rule has its reason and its remedy; several clauses of a rule that matched are one.
        """
        first = events[0]
        names = rule_names(events)
        what = f"{first.action} {first.op} {target_of(first)}"
        by = f" (rule {names})" if names else ""
        key = (what, names, first.reason)
        self._seen[key] += 1
        count = self._seen[key]
        if count > 1:
            is_told = count <= _TOLD_EACH_TIME or str(count).rstrip("0") == "1"
            return [f"actplane: {what}{by}, for the {_ordinal(count)} time"] if is_told else []
        lines = [f"actplane: {what}{by}"]
        told: set[tuple[str, str]] = set()
        for event in events:
            said = (event.reason, event.instead)
            if said in told:
                continue
            told.add(said)
            if event.reason:
                lines.append(f"actplane:   because: {prose(event.reason)}")
            if event.instead:
                lines.append(f"actplane:   instead: {prose(event.instead)}")
        return lines


def _ordinal(number: int) -> str:
    """
    >>> [_ordinal(n) for n in (2, 3, 4, 11, 21, 112)]
    ['2nd', '3rd', '4th', '11th', '21st', '112th']
    """
    suffix = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
