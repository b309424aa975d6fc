"""
What a program holds and must give back: references, locks, and sections.
"""

from __future__ import annotations

from typing import Any

from actplane.verifier.call_facts import Call
from actplane.verifier.kinds import Flag, Kind
from actplane.verifier.maps import special_fields
from actplane.verifier.refusals import refuse
from actplane.verifier.state import SPILL, Ref, State
from actplane.verifier.values import Pointer, Value, name_of
from actplane.verifier.verification import Verification


def acquire(v: Verification, state: State, slot: int, what: str = "ref") -> int:
    """Note a new reference. Returns its id."""
    id_ = v.new_id()
    state.refs = (*state.refs, Ref(what, id_, slot))
    return id_


def release(v: Verification, state: State, id_: int) -> bool:
    """Give a reference back: every pointer that holds it or depends on it is gone. False if it is not held."""
    if not any(ref.id == id_ and ref.what == "ref" for ref in state.refs):
        return False
    state.refs = tuple(ref for ref in state.refs if not (ref.id == id_ and ref.what == "ref"))
    forget(state, id_)
    return True


def forget(state: State, id_: int) -> None:
    """Make every pointer with a reference, and the slices of it, unusable."""
    for frame in state.frames:
        for reg in range(10):
            value = frame.regs[reg]
            if value.__class__ is Pointer and (value.ref == id_ or value.owner == id_):
                frame.regs[reg] = None
        for i, slot in list(frame.stack.items()):
            value = slot.value
            if value.__class__ is Pointer and slot.kinds[0] == SPILL and (value.ref == id_ or value.owner == id_):
                frame.remove(i)


def forget_packet(state: State) -> None:
    """A helper may have moved the packet: pointers into it are gone."""

    def is_packet(pointer: Pointer) -> bool:
        return pointer.kind in (Kind.PACKET, Kind.PACKET_META, Kind.PACKET_END) or bool(
            pointer.flags & Flag.DYNPTR_SLICE
        )

    for frame in state.frames:
        for reg in range(10):
            value = frame.regs[reg]
            if value.__class__ is Pointer and is_packet(value):
                frame.regs[reg] = None
        for i, slot in list(frame.stack.items()):
            if slot.value.__class__ is Pointer and slot.kinds[0] == SPILL and is_packet(slot.value):
                frame.remove(i)


def forget_non_owning(state: State) -> None:
    """The lock is released: references that it protected are gone."""
    for frame in state.frames:
        for reg in range(10):
            value = frame.regs[reg]
            if value.__class__ is Pointer and value.flags & Flag.NON_OWN:
                frame.regs[reg] = None
        for i, slot in list(frame.stack.items()):
            if slot.value.__class__ is Pointer and slot.value.flags & Flag.NON_OWN:
                frame.remove(i)


def check_nothing_held(
    v: Verification, state: State, slot: int, where: str, *, is_exit: bool, may_hold_lock: bool = False
) -> None:
    """Refuse to end, or to hand over, while something is held."""
    for ref in state.refs:
        if ref.what == "ref":
            claim = f"{where}: the reference {ref.id} acquired at slot {ref.slot} is still held"
            refuse("reference-leak", slot, claim)
    if may_hold_lock:
        return
    if state.locks:
        refuse("lock", slot, f"{where}: a lock is still held")
    if state.irq_id:
        refuse("section", slot, f"{where}: interrupts are still off")
    if state.rcu_depth:
        refuse("section", slot, f"{where}: an RCU section is still open")
    if state.preempt_off:
        refuse("section", slot, f"{where}: preemption is still off")


def check_field(v: Verification, call: Call, reg: int, pointer: Pointer, what: str) -> None:
    """Refuse unless a pointer into a map value points at its special field of a kind."""
    facts = pointer.map
    if not pointer.var.is_const:
        refuse("argument-type", call.slot, f"r{reg}: the {what} must be at a known offset", reg)
    found = facts.field_of(what) if facts is not None else None
    if found is None or facts is None:
        refuse("argument-type", call.slot, f"r{reg}: the map has no {what} in its value", reg)
    at = pointer.off + pointer.var.value
    if not any(item.off == at for item in facts.fields if item.what == what):
        refuse("argument-type", call.slot, f"r{reg}: the {what} is at {found.off}, not at {at}", reg)


def lock_place(value: Pointer) -> Any:
    """What tells one locked object from another: the map and the value's id, or the object's."""
    if value.kind is Kind.MAP_VALUE:
        return value.map, value.id
    return value.type_id, value.id or value.ref


def check_lock(v: Verification, state: State, call: Call, reg: int, value: Value, *, takes: bool) -> None:
    """Check and do what bpf_spin_lock and bpf_spin_unlock do."""
    is_value = isinstance(value, Pointer) and value.kind is Kind.MAP_VALUE
    is_object = isinstance(value, Pointer) and value.kind is Kind.BTF_ID and bool(value.flags & Flag.ALLOC)
    if not (is_value or is_object) or (isinstance(value, Pointer) and value.flags & Flag.NULL):
        id_ = "argument-null" if isinstance(value, Pointer) and value.flags & Flag.NULL else "argument-type"
        refuse(id_, call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected map_value, ptr_", reg)
    assert isinstance(value, Pointer)
    if not value.var.is_const:
        refuse("lock", call.slot, f"r{reg}: the lock must be at a known offset", reg)
    at = value.off + value.var.value
    place = find_lock_field(value, "spin_lock")
    if place is None:
        refuse("lock", call.slot, f"r{reg}: there is no bpf_spin_lock in what it points at", reg)
    if place != at:
        refuse("lock", call.slot, f"r{reg}: the bpf_spin_lock is at {place}, not at {at}", reg)
    lock = lock_place(value)
    if takes:
        if state.locks:
            refuse("lock", call.slot, "a lock is held already, and two may deadlock")
        state.refs = (*state.refs, Ref("lock", v.new_id(), call.slot, lock))
        state.locks += 1
        return
    if not state.locks:
        refuse("lock", call.slot, "bpf_spin_unlock without a lock being held")
    held = state.refs[-1] if state.refs[-1].what == "lock" else next(r for r in state.refs if r.what == "lock")
    if held.lock != lock:
        refuse("lock", call.slot, "bpf_spin_unlock of another lock than the one that is held")
    state.refs = tuple(ref for ref in state.refs if ref is not held)
    state.locks -= 1
    forget_non_owning(state)


def find_lock_field(value: Pointer, what: str) -> int | None:
    """Return the offset of the lock in what a pointer points at."""
    if value.kind is Kind.MAP_VALUE:
        found = value.map.field_of(what) if value.map is not None else None
        return found.off if found is not None else None
    if value.types is None:
        return None
    return next((item.off for item in special_fields(value.types, value.type_id) if item.what == what), None)
