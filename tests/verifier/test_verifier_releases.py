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
        (SIGN_AS_A_MASK, ["6.12.107", "6.18.15", "6.19.5"], ["6.18.16", "6.18", "6.19.6", "7.2"]),
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
