"""What lies at an offset of a kernel struct, as the kernel walks its types."""

from __future__ import annotations

import pytest

from actplane.loader.btf import Btf
from actplane.loader.btf_types import BtfType, Kind, Member
from actplane.loader.btf_write import BtfWriter
from actplane.verifier.domains.btf_walk import member_at
from actplane.verifier.domains.kinds import Flag


def types() -> tuple[Btf, int, int]:
    """
    Return types, and the ids of two of them:

        struct node  { u32 a; void *p; struct node *next; u32 x : 3, y : 9; u8 text[3]; u64 tail[]; }
                       at 0, 8, 16, 24, 26, 32; 32 bytes
        union either { struct node *next; u16 half; }
    """
    writer = BtfWriter()
    u8, u16, u32, u64 = (writer.integer(f"u{8 * size}", size) for size in (1, 2, 4, 8))
    void = writer.add(BtfType(Kind.BTF_KIND_PTR))
    node = void + 4
    following = writer.add(BtfType(Kind.BTF_KIND_PTR, target=node))
    text = writer.add(BtfType(Kind.BTF_KIND_ARRAY, target=u8, index=u32, count=3))
    tail = writer.add(BtfType(Kind.BTF_KIND_ARRAY, target=u64, index=u32, count=0))
    members = (
        Member("a", u32),
        Member("p", void, 64),
        Member("next", following, 128),
        Member("x", u32, 192, bitfield_bits=3),
        Member("y", u32, 195, bitfield_bits=9),
        Member("text", text, 208),
        Member("tail", tail, 256),
    )
    assert writer.add(BtfType(Kind.BTF_KIND_STRUCT, "node", 32, members=members, is_flagged=True)) == node
    halves = (Member("next", following), Member("half", u16))
    either = writer.add(BtfType(Kind.BTF_KIND_UNION, "either", 8, members=halves))
    return Btf(writer.encode()), node, either


@pytest.mark.parametrize(
    ("off", "size", "problem"),
    [
        (0, 4, ""),
        (1, 2, ""),
        (2, 4, "beyond the end of member a"),
        (4, 4, "no field"),
        (5, 1, "no field"),
        (8, 8, ""),
        (8, 4, "cannot access ptr member p"),
        (24, 1, ""),
        (24, 2, ""),
        (25, 1, "no field"),
        (26, 2, ""),
        (27, 4, "beyond the end of member text"),
        (29, 1, "no field"),
        (28, 8, "beyond struct node"),
        (32, 8, ""),
        (1000, 4, ""),
    ],
)
def test_member(off: int, size: int, problem: str) -> None:
    btf, node, _ = types()
    found = member_at(btf, node, off, size)
    assert problem.replace("no field", "doesn't have field at offset") in found.problem
    assert bool(problem) == bool(found.problem)


def test_pointers_say_what_they_point_at() -> None:
    btf, node, either = types()
    assert (member_at(btf, node, 16, 8).type_id, member_at(btf, node, 16, 8).flags) == (node, 0)
    assert (member_at(btf, node, 8, 8).type_id, member_at(btf, node, 8, 8).flags) == (0, Flag.RDONLY)
    assert (member_at(btf, either, 0, 8).type_id, member_at(btf, either, 0, 8).flags) == (node, Flag.UNTRUSTED)


def test_the_first_member_of_a_union_decides() -> None:
    btf, _, either = types()
    assert member_at(btf, either, 0, 4).problem.startswith("cannot access ptr member next")
    assert member_at(btf, either, 1, 1).problem.startswith("cannot access ptr member next")
