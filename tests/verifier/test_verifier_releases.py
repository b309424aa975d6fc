"""Stable releases: what went into some of them only is expected of those, and of no release before."""

from __future__ import annotations

import pytest

from actplane.asm.assembler import assemble_object
from actplane.verifier import profile_of, verify

SWAPPED = """
.prog main socket_filter
call bpf_get_prandom_u32
r0 &= 0x3f00
r0 = bswap16 r0
if r0 > 0x3f goto bad
r0 = 0
exit
bad:
r0 = *(u64 *)(r9 +0)
exit
"""

TAKEN_FROM_A_COPY = """
.prog main socket_filter
call bpf_get_prandom_u32
r0 &= 0xff
r1 = r0
r1 -= 4
if r1 s< 0 goto out
if r0 < 4 goto bad
out:
r0 = 0
exit
bad:
r0 = *(u64 *)(r9 +0)
exit
"""

SIGN_AS_A_MASK = """
.prog main socket_filter
call bpf_get_prandom_u32
r0 <<= 32
r0 s>>= 63
r0 &= -13
if r0 == 0 goto out
if r0 == -13 goto out
r0 = *(u64 *)(r9 +0)
exit
out:
r0 = 0
exit
"""


@pytest.mark.parametrize(
    ("text", "without", "having"),
    [
        (SWAPPED, ["6.12.107", "6.18.16", "6.19.6"], ["6.18.17", "6.18", "6.19.7", "7.0"]),
        (TAKEN_FROM_A_COPY, ["6.12.107", "6.18.32", "6.19.7"], ["6.18.33", "6.18", "7.0.0-rc1"]),
        (SIGN_AS_A_MASK, ["6.12.0", "6.18.15", "6.19.5"], ["6.12", "6.18.16", "6.18", "6.19.6", "7.2"]),
    ],
    ids=["swapped bytes", "linked numbers", "spread signs"],
)
def test_a_change_is_expected_of_the_stable_releases_that_have_it(
    text: str, without: list[str], having: list[str]
) -> None:
    (program,) = assemble_object(text, name="release").programs
    for release in without:
        assert not verify(program, {}, profile=profile_of(release)).is_accepted, release
    for release in having:
        verify(program, {}, profile=profile_of(release)).require()


REACHED_THROUGH_ANOTHER = """
.prog main socket_filter
call bpf_get_prandom_u32
r0 &= 0xff
r1 = r0
r1 += 4
if r1 < 10 goto out
r2 = r0
if r1 < 14 goto out
if r0 >= 10 goto out
r0 = *(u64 *)(r9 +0)
out:
r0 = 0
exit
"""

PART_OF_A_SPILL = """
.prog main socket_filter
w1 = 20
*(u32 *)(r10 -8) = r1
r1 = *(u16 *)(r10 -8)
if r1 == 20 goto out
r0 = *(u64 *)(r9 +0)
out:
r0 = 0
exit
"""

LINKED_WITH_A_NARROW_SPILL = """
.prog main socket_filter
call bpf_get_prandom_u32
r0 &= 0xffff
r1 = r0
*(u32 *)(r10 -8) = r0
if r0 < 1 goto out
r1 = *(u32 *)(r10 -8)
if r1 >= 1 goto out
r0 = *(u64 *)(r9 +0)
out:
r0 = 0
exit
"""

LOOP_FROM_ITS_MIDDLE = """
.prog main socket_filter
r0 = 0
goto test
again:
r0 += 1
test:
if r0 < 4 goto again
exit
"""

LOOP_OVER_THE_STACK = """
.prog main xdp
call bpf_get_prandom_u32
r0 &= 0xff
*(u64 *)(r10 -8) = r0
r0 = 0
again:
r0 = *(u64 *)(r10 -8)
if r0 > 10 goto out
r0 += 1
*(u64 *)(r10 -8) = r0
r0 = 0
goto again
out:
r0 = 0
exit
"""

PRODUCT_OF_BITS = """
.prog main socket_filter
call bpf_get_prandom_u32
r0 &= 2
r0 |= 1
r0 *= 3
r0 &= 4
if r0 == 0 goto out
r0 = *(u64 *)(r9 +0)
out:
r0 = 0
exit
"""


@pytest.mark.parametrize(
    ("text", "since"),
    [
        (REACHED_THROUGH_ANOTHER, ["6.12", "6.18.15"]),
        (PART_OF_A_SPILL, ["6.8", "6.9"]),
        (LINKED_WITH_A_NARROW_SPILL, ["6.8", "6.9"]),
        (LOOP_FROM_ITS_MIDDLE, ["6.6", "6.7"]),
        (LOOP_OVER_THE_STACK, ["6.8", "6.9"]),
        (PRODUCT_OF_BITS, ["6.17", "6.18.15"]),
    ],
    ids=["linked numbers", "part of a spill", "narrow spills", "loops", "endless loops", "products"],
)
def test_what_older_kernels_lose_track_of_is_refused_for_them(text: str, since: list[str]) -> None:
    (program,) = assemble_object(text, name="release").programs
    before, first = since
    assert not verify(program, {}, profile=profile_of(before)).is_accepted
    verify(program, {}, profile=profile_of(first)).require()


SHIFTED_TOO_FAR = """
.map m array key=4 value=8 max_entries=1
.prog main socket_filter
r8 = -1
w8 s>>= w8
*(u32 *)(r10 -4) = 0
r2 = r10
r2 += -4
r1 = map[m]
call bpf_map_lookup_elem
if r0 == 0 goto out
r0 += r8
out:
r0 = 0
exit
"""


def test_what_cannot_be_computed_is_unknown_since_6_9_and_was_a_number_of_32_bits() -> None:
    found = assemble_object(SHIFTED_TOO_FAR, name="release")
    verify(found.programs[0], found.maps, profile=profile_of("6.8")).require()
    for release in ("6.9", "6.12", "6.18", "7.2"):
        refusal = verify(found.programs[0], found.maps, profile=profile_of(release)).refusal
        assert refusal is not None, release
        assert refusal.id == "pointer-out-of-range", release
