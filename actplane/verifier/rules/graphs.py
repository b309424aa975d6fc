"""
Lists and trees of objects that the program allocated: a head or root in a map value or in another
object, protected by the bpf_spin_lock beside it.

A node is a member of the object. Adding gives the object away and leaves a reference that is valid
until the unlock; popping and removing give it back. Pointers that the calls return point at the
node, not at the start of the object.
"""

from __future__ import annotations

from typing import Final

from actplane.verifier.domains.btf_walk import same_struct
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.maps import SpecialField
from actplane.verifier.domains.types import TypeProvider
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import Pointer, Value, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.rules import objects, refs
from actplane.verifier.rules.btf_access import struct_name
from actplane.verifier.tables.refusals import refuse

ADDS: Final = frozenset({"bpf_list_push_front_impl", "bpf_list_push_back_impl", "bpf_rbtree_add_impl"})
"""Take the object in their second argument."""

NAMES: Final = ADDS | {
    "bpf_list_pop_front",
    "bpf_list_pop_back",
    "bpf_list_front",
    "bpf_list_back",
    "bpf_rbtree_remove",
    "bpf_rbtree_first",
    "bpf_rbtree_root",
    "bpf_rbtree_left",
    "bpf_rbtree_right",
}
"""All functions for lists and trees."""


def check_head(v: Verification, state: State, call: Call, reg: int, value: Value, what: str) -> None:
    """Check the list head or tree root of a call: where it lies, and that its lock is held."""
    is_value = isinstance(value, Pointer) and value.kind is Kind.MAP_VALUE and not value.flags
    if not isinstance(value, Pointer) or not (is_value or (objects.is_object(value) and value.flags == Flag.ALLOC)):
        claim = f"r{reg} of {call.name} is {name_of(value)}, expected a map value or an object that holds a {what}"
        refuse("graph", call.slot, claim, reg)
    if not is_value and not value.ref:
        refuse("graph", call.slot, f"r{reg} of {call.name}: the object is not owned by the program", reg)
    field = objects.field_at(v, call, reg, value, what)
    if not refs.holds_lock(state, value):
        claim = f"{call.name}: the bpf_spin_lock beside the {what} at {field.off} is not held"
        refuse("graph", call.slot, claim, reg)
    types = value.map.types if value.kind is Kind.MAP_VALUE and value.map is not None else value.types
    assert types is not None
    call.extra["head"] = (types, field)


def check_node(v: Verification, state: State, call: Call, reg: int, value: Value, what: str) -> None:
    """Check the node of a call: an object to be added, or for a tree one that may lie in it."""
    if call.name in ADDS:
        if not objects.is_owned(value):
            claim = f"r{reg} of {call.name} is {name_of(value)}, expected an allocated object that the program owns"
            refuse("graph", call.slot, claim, reg)
    else:
        is_lent = objects.is_object(value) and isinstance(value, Pointer) and bool(value.flags & Flag.NON_OWN)
        if not is_lent and not (isinstance(value, Pointer) and value.ref):
            refuse("graph", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected a node of a tree", reg)
        if in_less(state):
            refuse("graph", call.slot, f"{call.name} is called while bpf_rbtree_add compares nodes")
    assert isinstance(value, Pointer)
    objects.field_at(v, call, reg, value, what)
    types, head = call.extra["head"]
    _check_element(call, reg, value, types, head)


def _check_element(call: Call, reg: int, value: Pointer, types: TypeProvider, head: SpecialField) -> None:
    wanted = types.type_at(head.type_id).name if head.type_id else "?"
    if value.types is None or not same_struct(value.types, value.type_id, types, head.type_id):
        claim = f"r{reg} of {call.name} is a node of struct {struct_name(value)}, the {head.what} holds struct {wanted}"
        refuse("graph", call.slot, claim, reg)
    at = node_offset(types, head)
    if value.off + value.var.value != at:
        claim = (
            f"r{reg} of {call.name} is a node at {value.off}, the {head.what} uses the one at {at} of struct {wanted}"
        )
        refuse("graph", call.slot, claim, reg)


def node_offset(types: TypeProvider, head: SpecialField) -> int:
    """Return where in its elements the node is that a list or tree uses, in bytes."""
    for member in types.type_at(head.type_id).members:
        if member.name == head.node:
            return member.offset_bits // 8
    return -1


def in_less(state: State) -> bool:
    """Whether a function runs that compares two nodes for bpf_rbtree_add."""
    return bool(state.frames[-1].callback == "bpf_rbtree_add_impl")


def node(v: Verification, state: State, call: Call, *, is_acquired: bool) -> Pointer:
    """Return the node, or null, that a call took out of a list or tree or looked at there."""
    pointer = _element(call)
    if is_acquired:
        ref = refs.acquire(v, state, call.slot)
        return pointer.but(flags=pointer.flags | Flag.NULL, id=ref, ref=ref)
    return objects.lend_pointer(v, pointer.but(flags=pointer.flags | Flag.NULL, id=v.new_id()))


def compared(v: Verification, call: Call) -> list[Value | None]:
    """Return the arguments of the function that compares nodes: two of the tree's, both lent."""
    one = objects.lend_pointer(v, _element(call))
    return [one, one, None, None, None]


def _element(call: Call) -> Pointer:
    types, head = call.extra["head"]
    return Pointer(Kind.BTF_ID, flags=Flag.ALLOC, types=types, type_id=head.type_id, off=node_offset(types, head))
