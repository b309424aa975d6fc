"""
Ranges of numbers: a tnum and four intervals (64 and 32 bits, unsigned and signed) that refine
each other. Equal ranges are one object, so comparing is `is`, and results of operations on them
are remembered by `arith`.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Final, NamedTuple

from actplane.verifier.domains import tnum
from actplane.verifier.domains.tnum import U32, U64

S64_MIN: Final = -(1 << 63)
S64_MAX: Final = (1 << 63) - 1
S32_MIN: Final = -(1 << 31)
S32_MAX: Final = (1 << 31) - 1

_BIT63: Final = 1 << 63
_BIT31: Final = 1 << 31

Bounds = tuple[int, int, int, int, int, int, int, int, int, int]


def signed64(number: int) -> int:
    number &= U64
    return number - (1 << 64) if number & _BIT63 else number


def signed32(number: int) -> int:
    number &= U32
    return number - (1 << 32) if number & _BIT31 else number


class Range:
    """
    What is known of a number. Immutable, interned; get one from `constant`, `make` or `between`.

    `value` and `mask` are the tnum; `umin..umax`, `smin..smax` bound the 64-bit number as unsigned
    and signed, `u32min..`, `s32min..` its low half. `is_const` holds if one number is left. `plain` is for
    `values.scalar` alone: the value of this range that is linked with no other, once there is one.
    """

    __slots__ = (
        "is_const",
        "mask",
        "plain",
        "s32max",
        "s32min",
        "smax",
        "smin",
        "u32max",
        "u32min",
        "umax",
        "umin",
        "value",
    )

    def __init__(self, bounds: Bounds) -> None:
        (
            self.value,
            self.mask,
            self.umin,
            self.umax,
            self.smin,
            self.smax,
            self.u32min,
            self.u32max,
            self.s32min,
            self.s32max,
        ) = bounds
        self.is_const = self.mask == 0
        self.plain: Any = None

    @property
    def bounds(self) -> Bounds:
        return (
            self.value,
            self.mask,
            self.umin,
            self.umax,
            self.smin,
            self.smax,
            self.u32min,
            self.u32max,
            self.s32min,
            self.s32max,
        )

    @property
    def tnum(self) -> tnum.Tnum:
        return self.value, self.mask

    @property
    def is_subreg_const(self) -> bool:
        return not self.mask & U32

    def holds(self, other: Range) -> bool:
        """Whether every number that `other` allows is allowed here."""
        if self is other or self is UNKNOWN:
            return True
        return (
            self.umin <= other.umin
            and self.umax >= other.umax
            and self.smin <= other.smin
            and self.smax >= other.smax
            and self.u32min <= other.u32min
            and self.u32max >= other.u32max
            and self.s32min <= other.s32min
            and self.s32max >= other.s32max
            and tnum.contains((self.value, self.mask), (other.value, other.mask))
        )

    def __repr__(self) -> str:
        return f"Range{self.bounds}"


_tables: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
"""Tables of ranges and of what was found out about them, each with that part of it which stays."""
_TABLE_LIMIT: Final = 120_000


def table() -> dict[Any, Any]:
    """Return a table to remember ranges in, or what was found out about them, until `forget`."""
    new: dict[Any, Any] = {}
    _tables.append((new, {}))
    return new


_interned: dict[Bounds, Range] = table()
_constants: dict[int, Range] = table()
_made: dict[Bounds, Range] = table()


def settle() -> None:
    """Let what the tables hold now stay in them for good: modules hold those ranges, and equal ones are one object."""
    for known, lasting in _tables:
        lasting.update(known)


def forget() -> None:
    """Drop what programs added to the tables if one has grown large; from all, as each holds ranges of the others."""
    if any(len(known) > _TABLE_LIMIT for known, _ in _tables):
        _drop()


def _drop() -> None:
    for range_ in chain(_interned.values(), _constants.values()):
        range_.plain = None  # which holds the range in turn
    for known, lasting in _tables:
        known.clear()
        known.update(lasting)


class Deductions(NamedTuple):
    """What kernels have learned to deduce of numbers, one after the other."""

    products: bool = True
    """The bounds of a product from those of any factors, not of small positive ones only."""
    sums: bool = True
    """The bounds of a sum of which every possible value overflows."""
    signs: bool = True
    """What unsigned bounds say of signed ones that lie on both sides of 0, and the other way round."""
    product_bits: bool = True
    """The bits of a product, keeping which rows were added together."""
    singles: bool = True
    """That only one number between the bounds has bits that are known."""


_deductions = Deductions()


def deductions() -> Deductions:
    """Return what is deduced now."""
    return _deductions


def use(wanted: Deductions) -> None:
    """Deduce as a kernel does, from now on."""
    global _deductions
    if wanted != _deductions:
        _deductions = wanted
        _drop()  # what was found out otherwise


def _intern(bounds: Bounds) -> Range:
    found = _interned.get(bounds)
    if found is None:
        found = _interned[bounds] = Range(bounds)
    return found


def constant(number: int) -> Range:
    """Return the range of one number, given signed or unsigned."""
    unsigned = number & U64
    found = _constants.get(unsigned)
    if found is None:
        # Programs are full of numbers, so this does by hand what `Range` does with bounds.
        found = _constants[unsigned] = Range.__new__(Range)
        low = unsigned & U32
        found.value = found.umin = found.umax = unsigned
        found.smin = found.smax = unsigned - (1 << 64) if unsigned & _BIT63 else unsigned
        found.u32min = found.u32max = low
        found.s32min = found.s32max = low - (1 << 32) if low & _BIT31 else low
        found.mask = 0
        found.is_const = True
        found.plain = None
    return found


FULL_BOUNDS: Final[Bounds] = (0, U64, 0, U64, S64_MIN, S64_MAX, 0, U32, S32_MIN, S32_MAX)
UNKNOWN: Final[Range] = _intern(FULL_BOUNDS)


def make(bounds: Bounds) -> Range:
    """
    Return the range with these bounds after each has refined the others.

    Bounds that contradict each other (a branch that cannot be taken, in a way that is seen only
    now) give the unbounded range, as in the kernel.
    """
    found = _made.get(bounds)
    if found is None:
        found = _made[bounds] = _refine(bounds)
    return found


def is_contradiction(bounds: Bounds) -> bool:
    return bounds[2] > bounds[3] or bounds[4] > bounds[5] or bounds[6] > bounds[7] or bounds[8] > bounds[9]


def _refine(bounds: Bounds) -> Range:
    bounds = _from_tnum(bounds)
    for _ in range(3):
        before = bounds
        bounds = _deduce64(_deduce_mixed(_deduce64(_deduce32(bounds))))
        if bounds == before:
            break
    bounds = _from_tnum(_into_tnum(bounds))
    if is_contradiction(bounds):
        return UNKNOWN
    if _deductions.singles:
        bounds = _single(bounds)
    if bounds[2] == bounds[3]:
        return constant(bounds[2])
    return _intern(bounds)


def _from_tnum(b: Bounds) -> Bounds:
    value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max = b
    top = value | mask
    low, high = value & U32, top & U32
    return (
        value,
        mask,
        max(umin, value),
        min(umax, top),
        max(smin, signed64(value | (mask & _BIT63))),
        min(smax, signed64(value | (mask & S64_MAX))),
        max(u32min, low),
        min(u32max, high),
        max(s32min, signed32(low | (mask & _BIT31))),
        min(s32max, signed32(low | (mask & S32_MAX))),
    )


def _deduce32(b: Bounds) -> Bounds:
    value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max = b
    if umin >> 32 == umax >> 32:
        u32min, u32max = max(u32min, umin & U32), min(u32max, umax & U32)
        if signed32(umin) <= signed32(umax):
            s32min, s32max = max(s32min, signed32(umin)), min(s32max, signed32(umax))
    if smin >> 32 == smax >> 32:
        u32min, u32max = max(u32min, smin & U32), min(u32max, smax & U32)
        if signed32(smin) <= signed32(smax):
            s32min, s32max = max(s32min, signed32(smin)), min(s32max, signed32(smax))
    # Neighbouring upper halves: the low half passes from negative to positive exactly once.
    if (umin >> 32) + 1 == umax >> 32 and signed32(umin) < 0 <= signed32(umax):
        s32min, s32max = max(s32min, signed32(umin)), min(s32max, signed32(umax))
    if (smin >> 32) + 1 == smax >> 32 and signed32(smin) < 0 <= signed32(smax):
        s32min, s32max = max(s32min, signed32(smin)), min(s32max, signed32(smax))
    if signed32(u32min) <= signed32(u32max):
        s32min, s32max = max(s32min, signed32(u32min)), min(s32max, signed32(u32max))
    if s32min & U32 <= s32max & U32:
        u32min, u32max = max(u32min, s32min & U32), min(u32max, s32max & U32)
    elif _deductions.signs and u32max < s32min & U32:
        s32min, u32max = signed32(u32min), min(u32max, s32max & U32)
    elif _deductions.signs and s32max & U32 < u32min:
        s32max, u32min = signed32(u32max), max(u32min, s32min & U32)
    return value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max


def _deduce64(b: Bounds) -> Bounds:
    value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max = b
    if signed64(umin) <= signed64(umax):
        smin, smax = max(smin, signed64(umin)), min(smax, signed64(umax))
    if smin & U64 <= smax & U64:
        umin, umax = max(umin, smin & U64), min(umax, smax & U64)
    elif _deductions.signs and umax < smin & U64:
        smin, umax = signed64(umin), min(umax, smax & U64)
    elif _deductions.signs and smax & U64 < umin:
        smax, umin = signed64(umax), max(umin, smin & U64)
    return value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max


def _deduce_mixed(b: Bounds) -> Bounds:
    value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max = b
    umin = max(umin, (umin & ~U32) | u32min)
    umax = min(umax, (umax & ~U32) | u32max)
    smin = max(smin, (smin & ~U32) | u32min)
    smax = min(smax, (smax & ~U32) | u32max)
    if s32min >= 0 and smin >= S32_MIN and smax <= S32_MAX:
        # Kernels take over what is known of the low half, even if they knew the whole number better.
        umin, umax, smin, smax = s32min, s32max, s32min, s32max
    return value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max


def _into_tnum(b: Bounds) -> Bounds:
    if is_contradiction(b):
        return b
    whole = tnum.intersect((b[0], b[1]), tnum.from_range(b[2], b[3]))
    low = tnum.intersect(tnum.subreg(whole), tnum.from_range(b[6], b[7]))
    value, mask = tnum.with_subreg(whole, low)
    return (value, mask, *b[2:])


def _single(b: Bounds) -> Bounds:
    """Narrow [umin, umax] to one number if the tnum allows no other in it."""
    value, mask, umin, umax = b[:4]
    if not mask or umin == umax:
        return b
    first = umin if umin & ~mask == value else tnum.step(value, mask, umin)
    if first > umax:
        return b
    following = tnum.step(value, mask, first) if first < (value | mask) else umax + 1
    return (value, mask, first, first, *b[4:]) if following > umax else b


def between(low: int, high: int) -> Range:
    """Return the range of the unsigned 64-bit numbers low to high."""
    return make((*tnum.from_range(low, high), low, high, S64_MIN, S64_MAX, 0, U32, S32_MIN, S32_MAX))


def between_signed(low: int, high: int) -> Range:
    """Return the range of the signed 64-bit numbers low to high."""
    return make((0, U64, 0, U64, low, high, 0, U32, S32_MIN, S32_MAX))


def from_bits(value: int, mask: int) -> Range:
    """Return the range of what a tnum allows."""
    return make((value, mask, *FULL_BOUNDS[2:]))


def zero_extend32(r: Range) -> Range:
    """Return the range of the low half, as a number of 64 bits with a zero upper half."""
    if r.umax <= U32:
        return r
    signed = (r.s32min, r.s32max) if r.s32min >= 0 else (0, U32)
    value, mask = r.value & U32, r.mask & U32
    return make((value, mask, r.u32min, r.u32max, *signed, r.u32min, r.u32max, r.s32min, r.s32max))


def truncate(r: Range, size: int) -> Range:
    """Return the range of the low `size` bytes, zero-extended."""
    bits = size * 8
    if bits >= 64:
        return r
    limit = (1 << bits) - 1
    if r.umax <= limit:
        return r
    value, mask = r.value & limit, r.mask & limit
    low, high = (r.umin & limit, r.umax & limit) if r.umin & ~limit == r.umax & ~limit else (0, limit)
    if size == 4:
        low, high = max(low, r.u32min), min(high, r.u32max)
    return make((value, mask, low, high, S64_MIN, S64_MAX, 0, U32, S32_MIN, S32_MAX))


def sign_extend(r: Range, size: int) -> Range:
    """
    Return the range of the low `size` bytes, sign-extended to 64 bits.

    Source: coerce_reg_to_size_sx() in kernel/bpf/verifier.c, which looks at the bounds of the whole number
    and, where it is not known, not at its bits.
    """
    bits = size * 8
    if r.is_const:
        return constant(tnum.sign_extend((r.value, 0), bits)[0])
    half = 1 << (bits - 1)
    smin, smax = -half, half - 1
    # The cut-off bits agree at both ends, so the interval survives if the sign does not flip.
    if r.smin >> bits == r.smax >> bits:
        first, last = r.smin & (2 * half - 1), r.smax & (2 * half - 1)
        if (first < half) == (last < half):
            smin, smax = (first, last) if last < half else (first - 2 * half, last - 2 * half)
    return between_signed(smin, smax)
