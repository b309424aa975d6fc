"""Regular languages over bytes, as small immutable trees. Patterns of every kind become these."""

from __future__ import annotations

from dataclasses import dataclass

ALL_BYTES = (1 << 256) - 1
"""The mask of every byte. NUL ends a string in the kernel and is in no pattern."""
ANY_MASK = ALL_BYTES & ~1
"""Every byte that can stand in a string."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One byte out of a set; bit b of `mask` stands for byte b."""

    mask: int


@dataclass(frozen=True, slots=True)
class Concat:
    """Parts one after the other. No parts: the empty string."""

    parts: tuple[Regex, ...]


@dataclass(frozen=True, slots=True)
class Union:
    """Any of several. No options: nothing at all."""

    options: tuple[Regex, ...]


@dataclass(frozen=True, slots=True)
class Star:
    """Any number of repetitions, none included."""

    body: Regex


Regex = Chars | Concat | Union | Star

EMPTY = Concat(())
ANY = Chars(ANY_MASK)
ANYTHING = Star(ANY)

MOVED_FOLDER = b"//"
"""What follows the name of a folder that is renamed: no path of a kernel holds it."""


def literal(text: bytes) -> Regex:
    """
    Return the language of exactly one string.

    >>> literal(b"a")
    Concat(parts=(Chars(mask=158456325028528675187087900672),))
    """
    return Concat(tuple(Chars(1 << byte) for byte in text))
