"""Objects that a program allocates, lists and trees of them, and the locks: against types made here."""

from __future__ import annotations

from functools import cache

import pytest

from actplane.asm.assembler import assemble_object
from actplane.loader.btf import Btf
from actplane.loader.btf_types import BtfType, Kind, Linkage, Member
from actplane.loader.btf_write import BtfWriter
from actplane.verifier import OwnTypes, Report, TypeRef, verify

U64 = "u64"
VOID_POINTER = "void *"

PROTOTYPES: dict[str, tuple[str, dict[str, str]]] = {
    "bpf_obj_new_impl": (VOID_POINTER, {"local_type_id__k": U64, "meta__ign": VOID_POINTER}),
    "bpf_obj_drop_impl": ("", {"p__alloc": VOID_POINTER, "meta__ign": VOID_POINTER}),
    "bpf_refcount_acquire_impl": (VOID_POINTER, {"p__refcounted_kptr": VOID_POINTER, "meta__ign": VOID_POINTER}),
    "bpf_list_push_front_impl": (
        U64,
        {"head": "bpf_list_head", "node": "bpf_list_node", "meta__ign": VOID_POINTER, "off": U64},
    ),
    "bpf_list_pop_front": ("bpf_list_node", {"head": "bpf_list_head"}),
    "bpf_rbtree_add_impl": (
        U64,
        {"root": "bpf_rb_root", "node": "bpf_rb_node", "less": "callback", "meta__ign": VOID_POINTER, "off": U64},
    ),
    "bpf_rbtree_first": ("bpf_rb_node", {"root": "bpf_rb_root"}),
    "bpf_rbtree_remove": ("bpf_rb_node", {"root": "bpf_rb_root", "node": "bpf_rb_node"}),
    "bpf_local_irq_save": ("", {"flags__irq_flag": "u64 *"}),
    "bpf_local_irq_restore": ("", {"flags__irq_flag": "u64 *"}),
    "bpf_res_spin_lock": (U64, {"lock": "bpf_res_spin_lock"}),
    "bpf_res_spin_unlock": ("", {"lock": "bpf_res_spin_lock"}),
}


@cache
def kernel_types() -> Btf:
    """Return the functions of `PROTOTYPES` as a kernel's BTF."""
    writer = BtfWriter()
    u64 = writer.integer("unsigned long", 8)
    known = {U64: u64, "": 0, VOID_POINTER: writer.add(BtfType(Kind.BTF_KIND_PTR))}
    known["u64 *"] = writer.add(BtfType(Kind.BTF_KIND_PTR, target=u64))
    known["callback"] = writer.add(BtfType(Kind.BTF_KIND_PTR, target=writer.func_proto(u64)))
    for name in ("bpf_list_head", "bpf_list_node", "bpf_rb_root", "bpf_rb_node", "bpf_res_spin_lock"):
        struct = writer.add(BtfType(Kind.BTF_KIND_STRUCT, name, 8, members=(Member("opaque", u64),)))
        known[name] = writer.add(BtfType(Kind.BTF_KIND_PTR, target=struct))
    for name, (returned, params) in PROTOTYPES.items():
        members = tuple(Member(param, known[kind]) for param, kind in params.items())
        writer.func(name, writer.func_proto(known[returned], members), Linkage.BTF_FUNC_GLOBAL)
    return Btf(writer.encode())


@cache
def program_types() -> tuple[Btf, int, int]:
    """
    Return the program's own types, and the ids of two of them:

        struct node  { u64 key; bpf_list_node list; bpf_rb_node tree; bpf_refcount count; }   at 0, 8, 24, 48
        struct value { bpf_spin_lock lock; bpf_list_head head; bpf_rb_root root; bpf_res_spin_lock other; }
                       at 0, 8, 24, 40; the list and the tree hold nodes
    """
    writer = BtfWriter()
    u32, u64 = writer.integer("unsigned int", 4), writer.integer("unsigned long", 8)

    def struct(name: str, size: int, *members: Member) -> int:
        return writer.add(BtfType(Kind.BTF_KIND_STRUCT, name, size, members=members))

    def opaque(name: str, size: int) -> int:
        return struct(name, size, Member("opaque", u32 if size == 4 else u64))

    node = struct(
        "node",
        56,
        Member("key", u64),
        Member("list", opaque("bpf_list_node", 16), 64),
        Member("tree", opaque("bpf_rb_node", 24), 192),
        Member("count", opaque("bpf_refcount", 4), 384),
    )
    value = struct(
        "value",
        48,
        Member("lock", opaque("bpf_spin_lock", 4)),
        Member("head", opaque("bpf_list_head", 16), 64),
        Member("root", opaque("bpf_rb_root", 16), 192),
        Member("other", opaque("bpf_res_spin_lock", 8), 320),
    )
    for index, tag in ((1, "contains:node:list"), (2, "contains:node:tree")):
        writer.add(BtfType(Kind.BTF_KIND_DECL_TAG, tag, target=value, linkage=index))
    return Btf(writer.encode()), node, value


def judge(text: str) -> Report:
    """Judge a traffic control program with one map `values` of struct value; NODE is the id of struct node."""
    own, node, value = program_types()
    source = f".map values array key=4 value=48 max_entries=1\n.prog main sched_cls\n{text.replace('NODE', str(node))}"
    found = assemble_object(source, name="test")
    types = OwnTypes(own, {}, {"values": TypeRef(own, value)})
    return verify(found.programs[0], {spec.name: spec for spec in found.maps}, kernel_types(), own=types)


NEW = """
    r1 = NODE
    r2 = 0
    call bpf_obj_new_impl#kfunc
    if r0 == 0 goto end
    r6 = r0
"""
DROP = """
    r1 = r6
    r2 = 0
    call bpf_obj_drop_impl#kfunc
"""
LOCK = """
    r1 = map[values][0]+0
    call bpf_spin_lock
"""
UNLOCK = """
    r1 = map[values][0]+0
    call bpf_spin_unlock
"""
PUSH = """
    r1 = map[values][0]+8
    r2 = r6
    r2 += 8
    r3 = 0
    r4 = 8
    call bpf_list_push_front_impl#kfunc
"""
ADD = """
    r1 = map[values][0]+24
    r2 = r6
    r2 += 24
    r3 = subprog[less]
    r4 = 0
    r5 = 24
    call bpf_rbtree_add_impl#kfunc
"""
END = """
end:
    r0 = 0
    exit
"""
LESS = """
less:
    r0 = *(u64 *)(r1 -24)
    r1 = *(u64 *)(r2 -24)
    if r0 < r1 goto smaller
    r0 = 0
    exit
smaller:
    r0 = 1
    exit
"""
POP = """
    r1 = map[values][0]+8
    call bpf_list_pop_front#kfunc
    r6 = r0
"""
FIRST = """
    r1 = map[values][0]+24
    call bpf_rbtree_first#kfunc
    if r0 == 0 goto empty
"""
REMOVE = """
    r1 = map[values][0]+24
    r2 = r0
    call bpf_rbtree_remove#kfunc
    if r0 == 0 goto empty
    r6 = r0
    r6 += -24
"""
SHARE = """
    r1 = r6
    r2 = 0
    call bpf_refcount_acquire_impl#kfunc
"""
KEEP_SHARED = "r7 = r0\n"
DROP_SHARED = DROP.replace("r6", "r7")
TAKE_OTHER = """
    r1 = map[values][0]+40
    call bpf_res_spin_lock#kfunc
    if r0 != 0 goto end
"""
GIVE_OTHER = """
    r1 = map[values][0]+40
    call bpf_res_spin_unlock#kfunc
"""
EMPTY = "empty:" + UNLOCK


ACCEPTED = {
    "made and dropped": NEW + DROP + END,
    "its key is plain memory": NEW + "*(u64 *)(r6 +0) = 7\n" + DROP + END,
    "pushed": NEW + LOCK + PUSH + UNLOCK + END,
    "read after the push, under the lock": NEW + LOCK + PUSH + "r7 = *(u64 *)(r6 +0)\n" + UNLOCK + END,
    "popped and dropped": LOCK + POP + UNLOCK + "if r6 == 0 goto end\nr6 += -8\n" + DROP + END,
    "added to a tree": NEW + LOCK + ADD + UNLOCK + END + LESS,
    "removed from a tree": LOCK + FIRST + REMOVE + UNLOCK + DROP + "goto end\n" + EMPTY + END,
    "shared": NEW + SHARE + KEEP_SHARED + DROP + DROP_SHARED + END,
    "one of two references pushed": NEW + SHARE + KEEP_SHARED + LOCK + PUSH + UNLOCK + DROP_SHARED + END,
    "a resilient lock under another": LOCK + "r1 = map[values][0]+40\ncall bpf_res_spin_lock#kfunc\n"
    "if r0 != 0 goto failed\n" + GIVE_OTHER + "failed:" + UNLOCK + END,
}

REFUSED = {
    "never dropped": (NEW + END, "reference-leak"),
    "may be null": (NEW.replace("if r0 == 0 goto end", "") + DROP + END, "argument-null"),
    "dropped twice": (NEW + DROP + DROP + END, "allocated-object"),
    "no struct of the program": (NEW.replace("NODE", "1") + DROP + END, "allocated-object"),
    "its node is not plain memory": (NEW + "*(u64 *)(r6 +8) = 7\n" + DROP + END, "map-value-access"),
    "pushed without the lock": (NEW + PUSH + END, "graph"),
    "read after the unlock": (NEW + LOCK + PUSH + UNLOCK + "r7 = *(u64 *)(r6 +0)\n" + END, "not-a-pointer"),
    "pushed twice": (NEW + LOCK + PUSH + PUSH + UNLOCK + END, "graph"),
    "pushed by the tree's node": (NEW + LOCK + PUSH.replace("r2 += 8", "r2 += 24") + UNLOCK + END, "graph"),
    "pushed by no node": (NEW + LOCK + PUSH.replace("r2 += 8", "r2 += 0") + UNLOCK + END, "graph"),
    "pushed to the tree": (NEW + LOCK + PUSH.replace("][0]+8", "][0]+24") + UNLOCK + END, "graph"),
    "popped and leaked": (LOCK + POP + UNLOCK + END, "reference-leak"),
    "dropped under the lock": (NEW + LOCK + DROP + UNLOCK + END, "lock"),
    "compared to something else than 0 or 1": (
        NEW + LOCK + ADD + UNLOCK + END + LESS.replace("r0 = 1", "r0 = 2"),
        "return-value",
    ),
    "unlocked while nodes are compared": (
        NEW + LOCK + ADD + UNLOCK + END + LESS.replace("r0 = 0", UNLOCK + "r0 = 0"),
        "lock",
    ),
    "the same resilient lock twice": (
        TAKE_OTHER + TAKE_OTHER.replace("goto end", "goto first") + GIVE_OTHER + "first:" + GIVE_OTHER + END,
        "lock",
    ),
    "a resilient lock never released": (TAKE_OTHER + END, "lock"),
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(text: str) -> None:
    report = judge(text)
    assert report.is_accepted, str(report)


@pytest.mark.parametrize(("text", "id_"), REFUSED.values(), ids=REFUSED)
def test_refused(text: str, id_: str) -> None:
    report = judge(text)
    assert report.refusal is not None
    assert report.refusal.id == id_, str(report)


SAVE = """
    r1 = r10
    r1 += -8
    call bpf_local_irq_save#kfunc
"""
RESTORE = SAVE.replace("save", "restore")


def test_interrupts_are_restored_once() -> None:
    assert judge(SAVE + RESTORE + END).is_accepted
    left_off, restored_twice = judge(SAVE + END).refusal, judge(SAVE + RESTORE + RESTORE + END).refusal
    assert left_off is not None
    assert left_off.id == "section"
    assert restored_twice is not None
    assert restored_twice.id == "irq-flag"
