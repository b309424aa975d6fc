"""Ranges are sound: whatever an operation or a comparison says, the numbers it started from agree."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from actplane.verifier.domains import arith, compare, scalar, tnum
from actplane.verifier.domains.scalar import UNKNOWN, Deductions, Range, constant, signed32, signed64

_TRUTHS = {
    compare.JEQ: lambda a, b, signed: a == b,
    compare.JNE: lambda a, b, signed: a != b,
    compare.JGT: lambda a, b, signed: a > b,
    compare.JGE: lambda a, b, signed: a >= b,
    compare.JLT: lambda a, b, signed: a < b,
    compare.JLE: lambda a, b, signed: a <= b,
    compare.JSET: lambda a, b, signed: bool(a & b),
    compare.JSGT: lambda a, b, signed: signed(a) > signed(b),
    compare.JSGE: lambda a, b, signed: signed(a) >= signed(b),
    compare.JSLT: lambda a, b, signed: signed(a) < signed(b),
    compare.JSLE: lambda a, b, signed: signed(a) <= signed(b),
}

_RESULTS = {
    arith.ADD: lambda a, b, signed: a + b,
    arith.SUB: lambda a, b, signed: a - b,
    arith.MUL: lambda a, b, signed: a * b,
    arith.OR: lambda a, b, signed: a | b,
    arith.AND: lambda a, b, signed: a & b,
    arith.XOR: lambda a, b, signed: a ^ b,
    arith.LSH: lambda a, b, signed: a << b,
    arith.RSH: lambda a, b, signed: a >> b,
    arith.ARSH: lambda a, b, signed: signed(a) >> b,
}


def some_number(rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.3:
        return rng.randrange(-20, 20) & tnum.U64
    if kind < 0.5:
        corner = rng.choice((1 << 31, 1 << 32, 1 << 63, (1 << 63) - 1, (1 << 31) - 1, tnum.U64))
        return (corner + rng.randrange(-5, 5)) & tnum.U64
    return rng.getrandbits(rng.randrange(1, 65))


def holds(r: Range, number: int) -> bool:
    number &= tnum.U64
    low = number & tnum.U32
    return (
        number & ~r.mask == r.value
        and r.umin <= number <= r.umax
        and r.smin <= signed64(number) <= r.smax
        and r.u32min <= low <= r.u32max
        and r.s32min <= signed32(low) <= r.s32max
    )


def some_range(rng: random.Random, number: int) -> Range:
    """Return a range that holds a number, learned from comparisons, each of which is checked."""
    known = UNKNOWN
    for _ in range(rng.randrange(0, 4)):
        op, is_wide, other = rng.choice(list(_TRUTHS)), rng.random() < 0.5, constant(some_number(rng))
        mask, signed = (tnum.U64, signed64) if is_wide else (tnum.U32, signed32)
        truth = _TRUTHS[op](number & mask, other.value & mask, signed)
        assert compare.decide(op, is_wide, known, other) in (None, truth)
        known, _ = compare.learn(op if truth else compare.NEGATED[op], is_wide, known, other)
        assert holds(known, number)
    return known


@pytest.fixture
def old_deductions() -> Iterator[None]:
    scalar.use(Deductions(*[False] * len(Deductions._fields)))
    yield
    scalar.use(Deductions())


@pytest.mark.usefixtures("old_deductions")
def test_operations_and_comparisons_of_old_kernels_are_sound() -> None:
    check_soundness(400, seed=8)


@pytest.mark.parametrize("seed", range(8))
def test_operations_and_comparisons_are_sound(seed: int) -> None:
    check_soundness(400, seed)


def check_soundness(count: int, seed: int) -> None:
    """Compute with ranges, and with numbers in them."""
    rng = random.Random(seed)
    for _ in range(count):
        a, b = some_number(rng), some_number(rng)
        left, right = some_range(rng, a), some_range(rng, b)
        for op, result in _RESULTS.items():
            for is_wide in (True, False):
                bits = 64 if is_wide else 32
                mask, signed = (tnum.U64, signed64) if is_wide else (tnum.U32, signed32)
                x, y = a & mask, b & mask
                if op in (arith.LSH, arith.RSH, arith.ARSH) and y >= bits:
                    continue
                assert holds(arith.apply(op, is_wide, left, right), result(x, y, signed) & mask)
        for size in (1, 2, 4):
            low = a & ((1 << 8 * size) - 1)
            assert holds(scalar.truncate(left, size), low)
            extended = low - (1 << 8 * size) if low >> (8 * size - 1) else low
            assert holds(scalar.sign_extend(left, size), extended)
        for bits in (16, 32, 64):
            swapped = int.from_bytes((a & ((1 << bits) - 1)).to_bytes(bits // 8, "little"), "big")
            assert holds(arith.swap_bytes(left, bits, True), swapped)


def test_equal_ranges_are_one_object() -> None:
    low = scalar.between(0, 7)
    assert scalar.truncate(arith.apply(arith.AND, True, UNKNOWN, constant(7)), 8) is low


def test_step_gives_the_next_number_that_a_tnum_allows() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        mask = rng.getrandbits(8)
        value = rng.getrandbits(8) & ~mask
        allowed = [number for number in range(256) if number & ~mask == value]
        low = rng.randrange(-1, 256)
        above = [number for number in allowed if number > low]
        if above and low >= 0:
            assert tnum.step(value, mask, low) == above[0]


def test_a_left_shift_forgets_how_low_a_number_may_be() -> None:
    # Kernels know no better, and refuse to move a pointer by what is left.
    number = scalar.between_signed(-1, 2)
    assert arith.apply(arith.LSH, True, number, constant(3)).smin == scalar.S64_MIN
    assert arith.apply(arith.LSH, True, number, constant(32)).smin == -1 << 32
    assert arith.apply(arith.LSH, True, scalar.between_signed(0, 2), constant(3)).smin == 0
