"""
Ranges of divisions and remainders by a constant, as kernels since 7.0 keep them; older ones know
nothing of a quotient.

BPF has no division by zero: x / 0 is 0 and x % 0 is x; and the smallest number by -1 is itself.
"""

from __future__ import annotations

from actplane.asm.isa import DIV
from actplane.verifier.domains.scalar import (
    FULL_BOUNDS,
    S32_MIN,
    S64_MIN,
    UNKNOWN,
    Range,
    constant,
    make,
    signed32,
    signed64,
    zero_extend32,
)
from actplane.verifier.domains.tnum import U32


def divide(op: int, is_wide: bool, is_signed: bool, a: Range, b: Range) -> Range:
    """
    Return the range of `a / b` (op DIV) or `a % b` (op MOD), 64-bit or zero-extended 32-bit.

    >>> divide(DIV, True, False, make((0, 127, 20, 100, *FULL_BOUNDS[4:])), constant(10)).umax
    10
    """
    is_known = b.is_const if is_wide else b.is_subreg_const
    result = _by_constant(op, is_wide, is_signed, a, b.value if is_wide else b.value & U32) if is_known else UNKNOWN
    return result if is_wide else zero_extend32(result)


def _by_constant(op: int, is_wide: bool, is_signed: bool, a: Range, divisor: int) -> Range:
    if divisor == 0:
        return constant(0) if op == DIV else a
    if is_signed:
        low, high = (a.smin, a.smax) if is_wide else (a.s32min, a.s32max)
        divisor = signed64(divisor) if is_wide else signed32(divisor)
        found = _signed_quotient(low, high, divisor, is_wide) if op == DIV else _signed_rest(low, high, abs(divisor))
        first = 4 if is_wide else 8
    else:
        low, high = (a.umin, a.umax) if is_wide else (a.u32min, a.u32max)
        found = (low // divisor, high // divisor) if op == DIV else _unsigned_rest(low, high, divisor)
        first = 2 if is_wide else 6
    if found is None:
        return UNKNOWN
    if op != DIV and found == (low, high):
        return a
    bounds = list(FULL_BOUNDS)
    bounds[first : first + 2] = found
    return make(tuple(bounds))  # type: ignore[arg-type]


def _signed_quotient(low: int, high: int, divisor: int, is_wide: bool) -> tuple[int, int] | None:
    smallest = S64_MIN if is_wide else S32_MIN
    if low == smallest and divisor == -1:
        # The smallest number stays what it is; together with others that is no interval.
        return (smallest, smallest) if high == smallest else None
    ends = sorted(_towards_zero(number, divisor) for number in (low, high))
    return ends[0], ends[1]


def _towards_zero(number: int, divisor: int) -> int:
    quotient = abs(number) // abs(divisor)
    return quotient if (number < 0) == (divisor < 0) else -quotient


def _unsigned_rest(low: int, high: int, divisor: int) -> tuple[int, int]:
    return (low, high) if high < divisor else (0, min(high, divisor - 1))


def _signed_rest(low: int, high: int, size: int) -> tuple[int, int]:
    most = size - 1
    if -most <= low and high <= most:
        return low, high
    return (0 if low >= 0 else max(low, -most)), (0 if high <= 0 else min(high, most))
