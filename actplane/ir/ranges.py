"""Ranges of fixed-width numbers as sequences of digit ranges: how ports, networks and characters become regular."""

from __future__ import annotations

from collections.abc import Sequence

DigitRange = tuple[int, int]


def digit_ranges(low: Sequence[int], high: Sequence[int], least: int, most: int) -> list[tuple[DigitRange, ...]]:
    """
    Split the numbers from `low` to `high` into products of digit ranges.

    Shape:  `low` and `high` are digits, most significant first, equally many of them; each result
            has one (first, last) for each digit; the results are disjoint and in order.
    Units:  a digit lies between `least` and `most`, both included.

    >>> digit_ranges((1, 8), (3, 2), 0, 9)
    [((1, 1), (8, 9)), ((2, 2), (0, 9)), ((3, 3), (0, 2))]
    """
    if not low:
        return [()]
    first, last = low[0], high[0]
    if first == last:
        return [((first, first), *rest) for rest in digit_ranges(low[1:], high[1:], least, most)]
    before: list[tuple[DigitRange, ...]] = []
    after: list[tuple[DigitRange, ...]] = []
    if any(digit != least for digit in low[1:]):
        rests = digit_ranges(low[1:], [most] * (len(low) - 1), least, most)
        before = [((first, first), *rest) for rest in rests]
        first += 1
    if any(digit != most for digit in high[1:]):
        rests = digit_ranges([least] * (len(high) - 1), high[1:], least, most)
        after = [((last, last), *rest) for rest in rests]
        last -= 1
    if first <= last:
        before.append(((first, last), *([(least, most)] * (len(low) - 1))))
    return before + after
