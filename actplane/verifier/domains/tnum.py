"""
Tracked numbers: what is known of each bit of a 64-bit value.

A tnum is a pair (value, mask). A bit set in mask is unknown; the other bits are those of value.
Bits of value under the mask are 0.

Source: Vishwanathan et al., "Sound, Precise, and Fast Abstract Interpretation with Tristate
Numbers", CGO 2022, for addition, subtraction and multiplication.
"""

from __future__ import annotations

Tnum = tuple[int, int]

U64 = (1 << 64) - 1
U32 = (1 << 32) - 1

UNKNOWN: Tnum = (0, U64)


def from_range(low: int, high: int) -> Tnum:
    """
    Return the smallest tnum that holds every unsigned number in [low, high].

    >>> from_range(8, 11)
    (8, 3)
    """
    width = (low ^ high).bit_length()
    if width > 63:
        return UNKNOWN
    mask = (1 << width) - 1
    return low & ~mask, mask


def add(a: Tnum, b: Tnum) -> Tnum:
    sum_of_masks = a[1] + b[1]
    sum_of_values = a[0] + b[0]
    carried = (sum_of_masks + sum_of_values) ^ sum_of_values
    mask = (carried | a[1] | b[1]) & U64
    return sum_of_values & ~mask & U64, mask


def sub(a: Tnum, b: Tnum) -> Tnum:
    difference = a[0] - b[0]
    borrowed = (difference + a[1]) ^ (difference - b[1])
    mask = (borrowed | a[1] | b[1]) & U64
    return difference & ~mask & U64, mask


def and_(a: Tnum, b: Tnum) -> Tnum:
    alpha = a[0] | a[1]
    beta = b[0] | b[1]
    value = a[0] & b[0]
    return value, alpha & beta & ~value


def or_(a: Tnum, b: Tnum) -> Tnum:
    value = a[0] | b[0]
    return value, (a[1] | b[1]) & ~value


def xor(a: Tnum, b: Tnum) -> Tnum:
    mask = a[1] | b[1]
    return (a[0] ^ b[0]) & ~mask, mask


def union(a: Tnum, b: Tnum) -> Tnum:
    """Return what is known when either holds."""
    mask = a[1] | b[1] | (a[0] ^ b[0])
    return a[0] & b[0] & ~mask, mask


def mul(a: Tnum, b: Tnum) -> Tnum:
    """Multiply as on paper; an unknown bit of `a` means that its row is added, or is not."""
    result: Tnum = (0, 0)
    value, mask = a
    while value or mask:
        if value & 1:
            result = add(result, b)
        elif mask & 1:
            result = union(result, add(result, b))
        value >>= 1
        mask >>= 1
        b = ((b[0] << 1) & U64, (b[1] << 1) & U64)
    return result


def mul_by_rows(a: Tnum, b: Tnum) -> Tnum:
    """Multiply the known bits, and add what the unknown ones may add row by row: this knows less than `mul`."""
    known = a[0] * b[0] & U64
    unknown: Tnum = (0, 0)
    value, mask = a
    while value or mask:
        if value & 1:
            unknown = add(unknown, (0, b[1]))
        elif mask & 1:
            unknown = add(unknown, (0, b[0] | b[1]))
        value >>= 1
        mask >>= 1
        b = ((b[0] << 1) & U64, (b[1] << 1) & U64)
    return add((known, 0), unknown)


def lshift(a: Tnum, shift: int) -> Tnum:
    return (a[0] << shift) & U64, (a[1] << shift) & U64


def rshift(a: Tnum, shift: int) -> Tnum:
    return a[0] >> shift, a[1] >> shift


def arshift(a: Tnum, shift: int, bits: int) -> Tnum:
    """Shift right as signed numbers of `bits` bits; an unknown sign spreads as unknown."""
    limit = (1 << bits) - 1

    def spread(number: int) -> int:
        number &= limit
        if number >> (bits - 1):
            number -= 1 << bits
        return (number >> shift) & limit

    return spread(a[0]), spread(a[1])


def intersect(a: Tnum, b: Tnum) -> Tnum:
    """Return what is known when both hold. They must not contradict each other."""
    mask = a[1] & b[1]
    return (a[0] | b[0]) & ~mask, mask


def contains(outer: Tnum, inner: Tnum) -> bool:
    """Whether every value of `inner` is one of `outer`."""
    return not (inner[1] & ~outer[1]) and outer[0] == inner[0] & ~outer[1]


def subreg(a: Tnum) -> Tnum:
    return a[0] & U32, a[1] & U32


def with_subreg(a: Tnum, low: Tnum) -> Tnum:
    """Return `a` with its low 32 bits replaced."""
    return (a[0] & ~U32) | (low[0] & U32), (a[1] & ~U32) | (low[1] & U32)


def is_aligned(a: Tnum, size: int) -> bool:
    return not (a[0] | a[1]) & (size - 1)


def sign_extend(a: Tnum, bits: int) -> Tnum:
    """Sign-extend the low `bits` bits to 64; an unknown sign bit makes all copies unknown."""
    low = (1 << bits) - 1
    value, mask = a[0] & low, a[1] & low
    high = U64 & ~low
    if mask >> (bits - 1):
        return value, mask | high
    if value >> (bits - 1):
        return value | high, mask
    return value, mask


def step(value: int, mask: int, low: int) -> int:
    """
    Return the least number that a tnum allows above `low`. There must be one.

    >>> step(0b100, 0b011, 5), step(0b100, 0b1010, 6)
    (6, 12)
    """
    low += 1
    # Walk from the top: the first bit where `low` asks for what the tnum cannot give decides.
    result = 0
    for bit in range(63, -1, -1):
        one = 1 << bit
        if mask & one:
            result |= low & one
        elif value & one:
            result |= one
            if not low & one:
                return result | (value & (one - 1))
        elif low & one:
            # A known 0 where a 1 is asked for: raise the lowest free 0 above it.
            free = mask & ~result & ~(one | (one - 1))
            raised = free & -free
            return (result & ~(raised - 1)) | raised | (value & (raised - 1))
    return result
