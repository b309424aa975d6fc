"""
Objects that a program allocates by a struct of its own BTF: made, dropped, shared by counting, and
whether a register holds one.

The program owns what it allocates: it must drop the object, or give it to a map, a list or a tree.
"""

from __future__ import annotations

from typing import Final

from actplane.verifier.domains.btf_walk import bare, is_number, is_struct
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.maps import SpecialField, special_fields
from actplane.verifier.domains.types import BtfKind, TypeProvider
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.state import State, replace_pointers
from actplane.verifier.paths.values import Pointer, Value, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.rules import refs
from actplane.verifier.tables.refusals import refuse

MAX_PERCPU_BYTES: Final = 512
"""The largest object that bpf_percpu_obj_new hands out."""

_ID: Final = "allocated-object"

# What makes a struct of the program more than plain memory.
_OBJECT_FIELDS: Final = frozenset(
    {
        "spin_lock",
        "res_spin_lock",
        "list_head",
        "list_node",
        "rb_root",
        "rb_node",
        "refcount",
        "kptr",
        "kptr_untrusted",
        "percpu_kptr",
    }
)


def is_object(value: Value | None) -> bool:
    """Whether a register points into an object that the program allocated, owned or not."""
    return isinstance(value, Pointer) and value.kind is Kind.BTF_ID and bool(value.flags & Flag.ALLOC)


def is_owned(value: Value | None) -> bool:
    """Whether a register holds an object, not null, that the program must give away or drop."""
    return (
        isinstance(value, Pointer)
        and value.kind is Kind.BTF_ID
        and bool(value.ref)
        and value.flags & (Flag.ALLOC | Flag.NULL | Flag.NON_OWN | Flag.PERCPU | Flag.UNTRUSTED | Flag.RCU)
        == Flag.ALLOC
    )


def fields_of(v: Verification, pointer: Pointer) -> tuple[SpecialField, ...]:
    """Return the special fields of what a pointer points at: a map value, or an object."""
    if pointer.kind is Kind.MAP_VALUE:
        return pointer.map.fields if pointer.map is not None else ()
    if pointer.types is None or not pointer.type_id:
        return ()
    return object_fields(v, pointer.types, pointer.type_id)


def object_fields(v: Verification, types: TypeProvider, type_id: int) -> tuple[SpecialField, ...]:
    """Return the special fields of a struct of the program's own types."""
    known: dict[tuple[int, int], tuple[SpecialField, ...]] = v.subject.notes.setdefault("object_fields", {})
    key = id(types), type_id
    found = known.get(key)
    if found is None:
        found = known[key] = tuple(item for item in special_fields(types, type_id) if item.what in _OBJECT_FIELDS)
    return found


def field_at(v: Verification, call: Call, reg: int, pointer: Pointer, what: str) -> SpecialField:
    """Return the special field of a kind that a pointer points at. Refuses any other place."""
    if not pointer.var.is_const:
        refuse("graph", call.slot, f"r{reg}: the {what} must be at a known offset", reg)
    at = pointer.off + pointer.var.value
    for item in fields_of(v, pointer):
        if item.what == what and item.off == at:
            return item
    refuse("graph", call.slot, f"r{reg}: there is no {what} at offset {at} of {pointer.type_name}", reg)


def new(v: Verification, state: State, call: Call, *, is_percpu: bool) -> Pointer:
    """Return the object, or null, that bpf_obj_new or bpf_percpu_obj_new makes of the type in r1."""
    wanted = call.extra["constant"]
    own = v.subject.own.types if v.subject.own is not None else None
    if own is None:
        refuse(_ID, call.slot, f"{call.name} needs a program with BTF of its own", 1)
    try:
        found = own.type_at(wanted) if wanted else None
    except KeyError:
        found = None
    if found is None or found.kind != BtfKind.STRUCT:
        refuse(_ID, call.slot, f"r1 of {call.name} is {wanted}, expected the id of a struct in the program's BTF", 1)
    flags = Flag.ALLOC | Flag.NULL
    if is_percpu:
        flags |= Flag.PERCPU
        if found.size > MAX_PERCPU_BYTES:
            claim = f"struct {found.name} has {found.size} bytes, {call.name} hands out {MAX_PERCPU_BYTES} at most"
            refuse(_ID, call.slot, claim, 1)
        if not holds_numbers_only(own, wanted) or object_fields(v, own, wanted):
            refuse(_ID, call.slot, f"struct {found.name} holds more than numbers, which per-CPU objects may not", 1)
    ref = refs.acquire(v, state, call.slot)
    return Pointer(Kind.BTF_ID, flags=flags, types=own, type_id=wanted, id=ref, ref=ref)


def holds_numbers_only(types: TypeProvider, type_id: int, depth: int = 0) -> bool:
    """Whether a struct holds, at any depth that the kernel looks at, nothing but numbers."""
    found = bare(types, type_id)
    if found is None or depth > 4:
        return False
    if found.kind == BtfKind.ARRAY:
        return holds_numbers_only(types, found.target, depth)
    if is_struct(found):
        return all(holds_numbers_only(types, member.type_id, depth + 1) for member in found.members)
    return is_number(found)


def check_dropped(v: Verification, call: Call, reg: int, value: Value) -> None:
    """Check the object that bpf_obj_drop or bpf_percpu_obj_drop takes."""
    bad = Flag.NULL | Flag.NON_OWN | Flag.UNTRUSTED | Flag.RCU
    if not isinstance(value, Pointer) or not is_object(value) or value.flags & bad:
        refuse(_ID, call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected an allocated object", reg)
    if bool(value.flags & Flag.PERCPU) != ("percpu" in call.name):
        kind = "a per-CPU object" if value.flags & Flag.PERCPU else "an object that is not per CPU"
        refuse(_ID, call.slot, f"r{reg} of {call.name} is {kind}", reg)
    if not value.ref:
        refuse(_ID, call.slot, f"r{reg} of {call.name}: the object is not owned by the program", reg)


def check_shared(v: Verification, call: Call, reg: int, value: Value) -> None:
    """Check the object that bpf_refcount_acquire counts once more: owned, or lent by a list or tree."""
    if not isinstance(value, Pointer) or not is_object(value):
        refuse(_ID, call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected an allocated object", reg)
    if not any(item.what == "refcount" for item in fields_of(v, value)):
        refuse(_ID, call.slot, f"r{reg} of {call.name}: there is no bpf_refcount in the object", reg)
    call.extra["shared"] = value


def share(v: Verification, state: State, call: Call) -> Pointer:
    """Return the second reference; it can only be null where the first one was not owned."""
    value: Pointer = call.extra["shared"]
    flags = Flag.ALLOC | (Flag.NULL if value.flags & Flag.NON_OWN else 0)
    ref = refs.acquire(v, state, call.slot)
    return Pointer(Kind.BTF_ID, flags=flags, types=value.types, type_id=value.type_id, id=ref, ref=ref)


def lend(v: Verification, state: State, ref: int) -> None:
    """The program gave an object away under a lock: until the unlock its pointers may still be used."""

    def lent(pointer: Pointer) -> Pointer:
        return lend_pointer(v, pointer.but(ref=0))

    replace_pointers(state, lambda pointer: pointer.ref == ref, lent)
    refs.release(v, state, ref)


def lend_pointer(v: Verification, pointer: Pointer) -> Pointer:
    """Return a pointer as one that is valid while the lock is held; RCU protects what is counted."""
    is_counted = any(item.what == "refcount" for item in fields_of(v, pointer))
    return pointer.but(flags=pointer.flags | Flag.NON_OWN | (Flag.RCU if is_counted else 0))
