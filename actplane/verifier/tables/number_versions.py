"""
What kernels know of numbers, release by release: `arith`, `scalar` and `compare` say what can be
known, this module how much of that a kernel uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from actplane.asm.isa import JEQ, JGE, JLE, JNE, JSET, JSGE, JSLE
from actplane.verifier.domains import compare
from actplane.verifier.domains.compare import NEGATED
from actplane.verifier.domains.scalar import Deductions, Range, make
from actplane.verifier.tables.profiles import COMPARES_SIGNS, FINDS_SINGLES, KernelProfile

Decide = Callable[[int, bool, Range, Range], "bool | None"]
"""Takes an operation, whether it is 64-bit, and both operands: whether it holds, None if that depends."""

Learn = Callable[[int, bool, Range, Range], tuple[Range, Range]]
"""Takes the same for a comparison that holds: both operands' ranges after it."""

_TRUE_OF_ITSELF: Final = frozenset({JEQ, JGE, JLE, JSGE, JSLE})


def deductions_of(profile: KernelProfile) -> Deductions:
    """
    Return what a kernel deduces of the numbers that an operation leaves.

    Source: the kernel's history: products of any factors since 6.14, sums that all overflow since 6.17,
    the bits of products since 6.18.
    """
    return Deductions(
        products=profile.at_least(6, 14),
        sums=profile.at_least(6, 17),
        signs=profile.has(COMPARES_SIGNS),
        product_bits=profile.at_least(6, 18),
        singles=profile.has(FINDS_SINGLES),
    )


def rules_for(profile: KernelProfile, *, is_same_register: bool) -> tuple[Decide, Learn]:
    """
    Return how a kernel compares two numbers, or a register with itself.

    Source: the kernel's history: two numbers that are both unknown teach something since 6.8, a
    constant on the left decides since 6.4, and so do ranges for == and !=; a comparison of a register
    with itself is decided since 6.19.
    """
    if is_same_register:
        if profile.at_least(6, 19):
            return _decide_itself, compare.learn
        return compare.decide, _learn_from_itself if profile.at_least(6, 8) else _learn_nothing
    if profile.at_least(6, 8):
        return compare.decide, compare.learn
    return (_decide_constant if profile.at_least(6, 4) else _decide_right_constant), _learn_from_constant


def _is_known(r: Range, is_wide: bool) -> bool:
    return r.is_const if is_wide else r.is_subreg_const


def _decide_constant(op: int, is_wide: bool, a: Range, b: Range) -> bool | None:
    return compare.decide(op, is_wide, a, b) if _is_known(a, is_wide) or _is_known(b, is_wide) else None


def _decide_right_constant(op: int, is_wide: bool, a: Range, b: Range) -> bool | None:
    if not _is_known(b, is_wide) or (op in (JEQ, JNE) and not _is_known(a, is_wide)):
        return None
    return compare.decide(op, is_wide, a, b)


def _learn_from_constant(op: int, is_wide: bool, a: Range, b: Range) -> tuple[Range, Range]:
    if op == JEQ and is_wide:
        return compare.learn(op, is_wide, a, b)
    if op == JNE:
        return a, b
    if _is_known(b, is_wide):
        return compare.learn(op, is_wide, a, b)[0], b
    if _is_known(a, is_wide):
        return a, compare.learn(op, is_wide, a, b)[1]
    return a, b


def _learn_nothing(op: int, is_wide: bool, a: Range, b: Range) -> tuple[Range, Range]:
    return a, b


def _learn_from_itself(op: int, is_wide: bool, a: Range, b: Range) -> tuple[Range, Range]:
    # These kernels narrow the register as if its two uses were two registers: r < r leaves a range that
    # no number is in, and the path goes on with it.
    left, right = compare.learn(op, is_wide, a, b)
    low, high = left.bounds, right.bounds
    both = make(
        (
            *low[:2],
            max(low[2], high[2]),
            min(low[3], high[3]),
            max(low[4], high[4]),
            min(low[5], high[5]),
            max(low[6], high[6]),
            min(low[7], high[7]),
            max(low[8], high[8]),
            min(low[9], high[9]),
        )
    )
    return both, both


def _decide_itself(op: int, is_wide: bool, a: Range, b: Range) -> bool | None:
    if op not in (JSET, NEGATED[JSET]):
        return op in _TRUE_OF_ITSELF
    low, high = (a.smin, a.smax) if is_wide else (a.s32min, a.s32max)
    answer = None if low <= 0 <= high and low != high else (low, high) != (0, 0)
    return answer if op == JSET or answer is None else not answer
