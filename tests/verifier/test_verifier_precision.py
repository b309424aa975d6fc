"""Following numbers back: over functions that return in unusual ways, and to where they came from."""

from __future__ import annotations

import pytest

from actplane.asm.assembler import assemble_object
from actplane.verifier import verify
from actplane.verifier.tables.profiles import profile_of

ACROSS_A_LOAD_THAT_RETURNS = """
.prog main sched_cls
r6 = r1
r7 = 3
r1 = r6
call load
r1 = r10
r1 += -16
r7 &= 7
r1 += r7
r0 = 0
exit
load:
r6 = r1
r2 = 5
*(u64 *)(r10 -8) = r2
r0 = *(u8 *)skb[0]
r3 = *(u64 *)(r10 -8)
exit
"""


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18", "7.2"])
def test_a_number_is_followed_over_a_packet_load_that_ends_the_function(kernel: str) -> None:
    (program,) = assemble_object(ACROSS_A_LOAD_THAT_RETURNS, name="loads").programs
    verify(program, {}, profile=profile_of(kernel)).require()


COUNTED_BEFORE_MANY_CHECKPOINTS = """
.prog main socket_filter
call bpf_get_prandom_u32
r6 = 1
if r0 == 0 goto join
r6 = 0
join:
{branches}
if r6 == 1 goto good
r0 = r9
exit
good:
r0 = 0
exit
"""


def test_a_number_that_decides_keeps_paths_apart_however_far_back_it_was_set() -> None:
    branches = "\n".join(f"call bpf_get_prandom_u32\nif r0 == {n} goto at{n}\nr7 = {n}\nat{n}:" for n in range(40))
    (program,) = assemble_object(COUNTED_BEFORE_MANY_CHECKPOINTS.format(branches=branches), name="apart").programs
    refusal = verify(program, {}).refusal
    assert refusal is not None
    assert refusal.id == "uninitialized-register"
