"""Sets of registers and of stack slots as the bits of a number."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1 << 14)
def bits_of(mask: int) -> tuple[int, ...]:
    """
    Return the numbers of the bits that are set, ascending.

    >>> bits_of(0b1011)
    (0, 1, 3)
    """
    return tuple(bit for bit in range(mask.bit_length()) if mask >> bit & 1)
