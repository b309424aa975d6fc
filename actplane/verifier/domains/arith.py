"""
Arithmetic on ranges: what an ALU instruction leaves, given what is known of its operands.

Each operation computes the tnum and the four intervals apart; `make` lets them refine each other.
Results are remembered, since a program does the same thing on many paths.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import isqrt
from typing import Final

from actplane.asm.isa import ADD, AND, ARSH, LSH, MUL, OR, RSH, SUB, XOR
from actplane.verifier.domains import tnum
from actplane.verifier.domains.scalar import (
    FULL_BOUNDS,
    S32_MAX,
    S32_MIN,
    S64_MAX,
    S64_MIN,
    UNKNOWN,
    Range,
    constant,
    deductions,
    from_bits,
    make,
    signed32,
    signed64,
    table,
    zero_extend32,
)
from actplane.verifier.domains.tnum import U32, U64

_FULL_U64: Final = (0, U64)
_FULL_S64: Final = (S64_MIN, S64_MAX)
_FULL_U32: Final = (0, U32)
_FULL_S32: Final = (S32_MIN, S32_MAX)

Interval = tuple[int, int]

_results: dict[tuple[int, bool, Range, Range], Range] = table()


def apply(op: int, is_wide: bool, a: Range, b: Range) -> Range:
    """Return the range of `a op b`, as a 64-bit operation or a zero-extended 32-bit one."""
    if a.is_const and b.is_const:
        exactly = _EXACTLY.get(op)
        if exactly is not None:
            number = exactly(a.value, b.value)
            return constant(number if is_wide else number & U32)
    key = (op, is_wide, a, b)
    found = _results.get(key)
    if found is None:
        found = _results[key] = _apply(op, is_wide, a, b)
    return found


_EXACTLY: Final[dict[int, Callable[[int, int], int]]] = {
    ADD: operator.add,
    SUB: operator.sub,
    MUL: operator.mul,
    OR: operator.or_,
    AND: operator.and_,
    XOR: operator.xor,
}
"""What an operation makes of two known numbers, before it is cut to its width."""


def _apply(op: int, is_wide: bool, a: Range, b: Range) -> Range:
    if op in (LSH, RSH, ARSH):
        # Only a known shift below the width has a known result.
        shift = b.value if is_wide else b.value & U32
        known = b.is_const if is_wide else b.is_subreg_const
        if not known or shift >= (64 if is_wide else 32):
            return UNKNOWN if is_wide else zero_extend32(UNKNOWN)
        result = _SHIFTS[op, is_wide](a, shift)
    elif op in _OPERATIONS:
        result = _OPERATIONS[op](a, b)
    else:
        result = UNKNOWN
    return result if is_wide else zero_extend32(result)


def is_computable(op: int, is_wide: bool, b: Range) -> bool:
    """Whether the range of `a op b` can be computed at all: not for divisions and unknown shifts."""
    if op in (LSH, RSH, ARSH):
        known = b.is_const if is_wide else b.is_subreg_const
        return known and (b.value if is_wide else b.value & U32) < (64 if is_wide else 32)
    return op in _OPERATIONS


def _signed_if_ordered(low: int, high: int) -> Interval:
    return (signed64(low), signed64(high)) if signed64(low) <= signed64(high) else _FULL_S64


def _signed32_if_ordered(low: int, high: int) -> Interval:
    return (signed32(low), signed32(high)) if signed32(low) <= signed32(high) else _FULL_S32


def _unsigned_sum(low: int, high: int, limit: int) -> Interval:
    """Keep an interval whose ends both left [0, limit] on the same side, give up if only one did."""
    if not deductions().sums:
        return (low, high) if low >= 0 and high <= limit else (0, limit)
    if (low > limit) == (high > limit) and (low < 0) == (high < 0):
        return low & limit, high & limit
    return 0, limit


def _signed_sum(low: int, high: int, bottom: int, top: int) -> Interval:
    return (low, high) if bottom <= low and high <= top else (bottom, top)


def add(a: Range, b: Range) -> Range:
    return make(
        (
            *tnum.add((a.value, a.mask), (b.value, b.mask)),
            *_unsigned_sum(a.umin + b.umin, a.umax + b.umax, U64),
            *_signed_sum(a.smin + b.smin, a.smax + b.smax, S64_MIN, S64_MAX),
            *_unsigned_sum(a.u32min + b.u32min, a.u32max + b.u32max, U32),
            *_signed_sum(a.s32min + b.s32min, a.s32max + b.s32max, S32_MIN, S32_MAX),
        )
    )


def sub(a: Range, b: Range) -> Range:
    return make(
        (
            *tnum.sub((a.value, a.mask), (b.value, b.mask)),
            *_unsigned_sum(a.umin - b.umax, a.umax - b.umin, U64),
            *_signed_sum(a.smin - b.smax, a.smax - b.smin, S64_MIN, S64_MAX),
            *_unsigned_sum(a.u32min - b.u32max, a.u32max - b.u32min, U32),
            *_signed_sum(a.s32min - b.s32max, a.s32max - b.s32min, S32_MIN, S32_MAX),
        )
    )


def _products(a: Interval, b: Interval) -> Interval:
    corners = (a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1])
    return min(corners), max(corners)


def _product(value: Interval, other: Interval, limit: int) -> tuple[int, int, int, int]:
    """Return the unsigned and signed bounds of a product of small positive numbers, given the signed ones."""
    unsigned = 0, limit
    if value[0] >= 0 and other[0] >= 0 and max(value[1], other[1]) <= isqrt(limit):
        unsigned = value[0] * other[0], value[1] * other[1]
    top = limit >> 1
    return (*unsigned, *_signed_sum(*unsigned, -top - 1, top))


def _small_product(a: Range, b: Range) -> Range:
    return make(
        (
            *_product_bits(a, b),
            *_product((a.smin, a.smax), (b.smin, b.smax), U64),
            *_product((a.s32min, a.s32max), (b.s32min, b.s32max), U32),
        )
    )


def _product_bits(a: Range, b: Range) -> tnum.Tnum:
    multiply = tnum.mul if deductions().product_bits else tnum.mul_by_rows
    return multiply((a.value, a.mask), (b.value, b.mask))


def mul(a: Range, b: Range) -> Range:
    if not deductions().products:
        return _small_product(a, b)
    low, high = a.umin * b.umin, a.umax * b.umax
    low32, high32 = a.u32min * b.u32min, a.u32max * b.u32max
    return make(
        (
            *_product_bits(a, b),
            *((low, high) if high <= U64 else _FULL_U64),
            *_signed_sum(*_products((a.smin, a.smax), (b.smin, b.smax)), S64_MIN, S64_MAX),
            *((low32, high32) if high32 <= U32 else _FULL_U32),
            *_signed_sum(*_products((a.s32min, a.s32max), (b.s32min, b.s32max)), S32_MIN, S32_MAX),
        )
    )


def and_(a: Range, b: Range) -> Range:
    value, mask = tnum.and_((a.value, a.mask), (b.value, b.mask))
    low, high = value, min(a.umax, b.umax)
    low32, high32 = value & U32, min(a.u32max, b.u32max)
    return make((value, mask, low, high, *_signed_if_ordered(low, high), low32, high32, *_FULL_S32))


def or_(a: Range, b: Range) -> Range:
    value, mask = tnum.or_((a.value, a.mask), (b.value, b.mask))
    low, high = max(a.umin, b.umin), value | mask
    low32, high32 = max(a.u32min, b.u32min), (value | mask) & U32
    signed32_ends = _signed32_if_ordered(low32, high32)
    return make((value, mask, low, high, *_signed_if_ordered(low, high), low32, high32, *signed32_ends))


def xor(a: Range, b: Range) -> Range:
    value, mask = tnum.xor((a.value, a.mask), (b.value, b.mask))
    return make((value, mask, *FULL_BOUNDS[2:]))


def _lsh64(a: Range, shift: int) -> Range:
    value, mask = tnum.lshift((a.value, a.mask), shift)
    unsigned = (a.umin << shift, a.umax << shift) if a.umax << shift <= U64 else _FULL_U64
    # The idiom of sign extension: shift left by 32, then arithmetically right by 32. Of no other shift do
    # kernels know what a number that may be negative becomes.
    signed = (a.s32min << 32, a.s32max << 32) if shift == 32 else _FULL_S64
    return make((value, mask, *unsigned, *signed, *FULL_BOUNDS[6:]))


def _lsh32(a: Range, shift: int) -> Range:
    value, mask = tnum.lshift(tnum.subreg((a.value, a.mask)), shift)
    unsigned = (a.u32min << shift, a.u32max << shift) if a.u32max << shift <= U32 else _FULL_U32
    return make((value & U32, mask & U32, *FULL_BOUNDS[2:6], *unsigned, *_FULL_S32))


def _rsh64(a: Range, shift: int) -> Range:
    value, mask = tnum.rshift((a.value, a.mask), shift)
    return make((value, mask, a.umin >> shift, a.umax >> shift, *FULL_BOUNDS[4:]))


def _rsh32(a: Range, shift: int) -> Range:
    value, mask = tnum.rshift(tnum.subreg((a.value, a.mask)), shift)
    return make((value, mask, *FULL_BOUNDS[2:6], a.u32min >> shift, a.u32max >> shift, *_FULL_S32))


def _arsh64(a: Range, shift: int) -> Range:
    value, mask = tnum.arshift((a.value, a.mask), shift, 64)
    return make((value, mask, *_FULL_U64, a.smin >> shift, a.smax >> shift, *FULL_BOUNDS[6:]))


def _arsh32(a: Range, shift: int) -> Range:
    value, mask = tnum.arshift(tnum.subreg((a.value, a.mask)), shift, 32)
    return make((value, mask, *FULL_BOUNDS[2:6], *_FULL_U32, a.s32min >> shift, a.s32max >> shift))


_OPERATIONS: Final[dict[int, Callable[[Range, Range], Range]]] = {
    ADD: add,
    SUB: sub,
    MUL: mul,
    OR: or_,
    AND: and_,
    XOR: xor,
}

_SHIFTS: Final[dict[tuple[int, bool], Callable[[Range, int], Range]]] = {
    (LSH, True): _lsh64,
    (LSH, False): _lsh32,
    (RSH, True): _rsh64,
    (RSH, False): _rsh32,
    (ARSH, True): _arsh64,
    (ARSH, False): _arsh32,
}


def negate(a: Range, is_wide: bool) -> Range:
    return apply(SUB, is_wide, constant(0), a)


def swap_bytes(a: Range, bits: int, is_swap: bool) -> Range:
    """Return the range after a byte swap, or after a cut to `bits` bits where nothing is swapped."""

    def swapped(number: int) -> int:
        low = number & ((1 << bits) - 1)
        return int.from_bytes(low.to_bytes(bits // 8, "little"), "big") if is_swap else low

    return from_bits(swapped(a.value), swapped(a.mask))
