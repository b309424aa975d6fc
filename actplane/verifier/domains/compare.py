"""
Comparisons of ranges: which way a jump must go, and what each way teaches about both operands.
"""

from __future__ import annotations

from typing import Final

from actplane.asm.isa import JEQ, JGE, JGT, JLE, JLT, JNE, JSET, JSGE, JSGT, JSLE, JSLT
from actplane.verifier.domains import tnum
from actplane.verifier.domains.scalar import Bounds, Range, from_bits, make, signed32, signed64, table
from actplane.verifier.domains.tnum import U32, U64

JNOT_SET: Final = 0x100 | JSET
"""Not an instruction: what holds where JSET was not taken."""

NEGATED: Final = {
    JEQ: JNE,
    JNE: JEQ,
    JGT: JLE,
    JLE: JGT,
    JGE: JLT,
    JLT: JGE,
    JSGT: JSLE,
    JSLE: JSGT,
    JSGE: JSLT,
    JSLT: JSGE,
    JSET: JNOT_SET,
    JNOT_SET: JSET,
}

SWAPPED: Final = {
    JEQ: JEQ,
    JNE: JNE,
    JSET: JSET,
    JNOT_SET: JNOT_SET,
    JGT: JLT,
    JLT: JGT,
    JGE: JLE,
    JLE: JGE,
    JSGT: JSLT,
    JSLT: JSGT,
    JSGE: JSLE,
    JSLE: JSGE,
}

_decided: dict[tuple[int, bool, Range, Range], bool | None] = table()
_learned: dict[tuple[int, bool, Range, Range], tuple[Range, Range]] = table()


def decide(op: int, is_wide: bool, a: Range, b: Range) -> bool | None:
    """Return whether `a op b` always holds, never holds, or (None) may do either."""
    key = (op, is_wide, a, b)
    try:
        return _decided[key]
    except KeyError:
        answer = _decided[key] = _decide(op, is_wide, a, b)
        return answer


def _decide(op: int, is_wide: bool, a: Range, b: Range) -> bool | None:
    if is_wide:
        a_bits, b_bits = a.tnum, b.tnum
        au, bu = (a.umin, a.umax), (b.umin, b.umax)
        as_, bs = (a.smin, a.smax), (b.smin, b.smax)
    else:
        a_bits, b_bits = tnum.subreg(a.tnum), tnum.subreg(b.tnum)
        au, bu = (a.u32min, a.u32max), (b.u32min, b.u32max)
        as_, bs = (a.s32min, a.s32max), (b.s32min, b.s32max)
    if op in (JSET, JNOT_SET):
        answer = _decide_set(a_bits, b_bits)
        return answer if op == JSET or answer is None else not answer
    if op in (JEQ, JNE):
        equal = _decide_equal(a_bits, b_bits, au, bu, as_, bs)
        if equal is None and is_wide and _are_apart32(a, b):
            equal = False
        return equal if op == JEQ or equal is None else not equal
    if op in (JGT, JLE, JGE, JLT):
        greater = _decide_order(au, bu, op in (JGT, JLE))
    else:
        greater = _decide_order(as_, bs, op in (JSGT, JSLE))
    if greater is None:
        return None
    return greater if op in (JGT, JGE, JSGT, JSGE) else not greater


def _decide_set(a: tnum.Tnum, b: tnum.Tnum) -> bool | None:
    if a[1] == 0:
        a, b = b, a
    if b[1] == 0:
        if a[0] & b[0]:
            return True
        if not (a[0] | a[1]) & b[0]:
            return False
    return None


def _decide_equal(
    a: tnum.Tnum,
    b: tnum.Tnum,
    au: tuple[int, int],
    bu: tuple[int, int],
    as_: tuple[int, int],
    bs: tuple[int, int],
) -> bool | None:
    if a[1] == 0 and b[1] == 0:
        return a[0] == b[0]
    # A bit known in both and different, or intervals apart, rule equality out.
    if (a[0] ^ b[0]) & ~a[1] & ~b[1]:
        return False
    if au[1] < bu[0] or bu[1] < au[0] or as_[1] < bs[0] or bs[1] < as_[0]:
        return False
    return None


def _are_apart32(a: Range, b: Range) -> bool:
    """Whether the low halves of two numbers cannot be equal."""
    return a.u32max < b.u32min or b.u32max < a.u32min or a.s32max < b.s32min or b.s32max < a.s32min


def _decide_order(a: tuple[int, int], b: tuple[int, int], is_strict: bool) -> bool | None:
    """Whether a > b (strict) or a >= b."""
    if is_strict:
        return True if a[0] > b[1] else False if a[1] <= b[0] else None
    return True if a[0] >= b[1] else False if a[1] < b[0] else None


def learn(op: int, is_wide: bool, a: Range, b: Range) -> tuple[Range, Range]:
    """Return both operands' ranges where `a op b` holds."""
    key = (op, is_wide, a, b)
    found = _learned.get(key)
    if found is None:
        found = _learned[key] = _learn(op, is_wide, a, b)
    return found


def _learn(op: int, is_wide: bool, a: Range, b: Range) -> tuple[Range, Range]:
    if op in (JGT, JGE, JSGT, JSGE):
        second, first = _learn(SWAPPED[op], is_wide, b, a)
        return first, second
    if op == JEQ:
        return _learn_equal(is_wide, a, b)
    if op == JNE:
        return _without(is_wide, a, b), _without(is_wide, b, a)
    if op in (JSET, JNOT_SET):
        return _learn_set(op, is_wide, a, b)
    return _learn_less(op, is_wide, a, b)


def _learn_equal(is_wide: bool, a: Range, b: Range) -> tuple[Range, Range]:
    low32 = (
        max(a.u32min, b.u32min),
        min(a.u32max, b.u32max),
        max(a.s32min, b.s32min),
        min(a.s32max, b.s32max),
    )
    if is_wide:
        both: Bounds = (
            *tnum.intersect(a.tnum, b.tnum),
            max(a.umin, b.umin),
            min(a.umax, b.umax),
            max(a.smin, b.smin),
            min(a.smax, b.smax),
            *low32,
        )
        return make(both), make(both)
    bits = tnum.intersect(tnum.subreg(a.tnum), tnum.subreg(b.tnum))

    def narrowed(r: Range) -> Range:
        return make((*tnum.with_subreg(r.tnum, bits), r.umin, r.umax, r.smin, r.smax, *low32))

    return narrowed(a), narrowed(b)


def _without(is_wide: bool, a: Range, b: Range) -> Range:
    """Return the range of `a` when it is not the constant `b`: an end equal to it moves by one."""
    bounds = list(a.bounds)
    if is_wide:
        if not b.is_const:
            return a
        unsigned, signed, first = b.value, signed64(b.value), 2
    else:
        if not b.is_subreg_const:
            return a
        unsigned, signed, first = b.value & U32, signed32(b.value), 6
    for low, number in ((first, unsigned), (first + 2, signed)):
        if bounds[low] == number:
            bounds[low] += 1
        if bounds[low + 1] == number:
            bounds[low + 1] -= 1
    return make(tuple(bounds))  # type: ignore[arg-type]


def _learn_set(op: int, is_wide: bool, a: Range, b: Range) -> tuple[Range, Range]:
    if not (b.is_const if is_wide else b.is_subreg_const):
        if not (a.is_const if is_wide else a.is_subreg_const):
            return a, b
        second, first = _learn_set(op, is_wide, b, a)
        return first, second
    bits = b.value if is_wide else b.value & U32
    if op == JSET:
        # Some bit of the mask is set; which one is known only if it is a single bit.
        if bits & (bits - 1) or not bits:
            return a, b
        value, mask = tnum.or_(a.tnum, (bits, 0))
    else:
        value, mask = tnum.and_(a.tnum, (~bits & U64, 0))
        # Kernels forget the bounds, as they might contradict the bits where no path leads.
        return from_bits(value, mask), b
    return make((value, mask, *a.bounds[2:])), b


def _learn_less(op: int, is_wide: bool, a: Range, b: Range) -> tuple[Range, Range]:
    first = (2 if is_wide else 6) + (2 if op in (JSLT, JSLE) else 0)
    gap = 1 if op in (JLT, JSLT) else 0
    low, high = list(a.bounds), list(b.bounds)
    low[first + 1] = min(low[first + 1], high[first + 1] - gap)
    high[first] = max(high[first], a.bounds[first] + gap)
    return make(tuple(low)), make(tuple(high))  # type: ignore[arg-type]
