"""
What a program holds and must give back: references, locks, and sections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.maps import special_fields
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.state import SPILL, Ref, State, replace_pointers
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Value, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.tables.refusals import refuse

LOCKS: Final = frozenset({"lock", "res_lock", "res_lock_irq"})
"""What a `Ref` is called that is a lock: a bpf_spin_lock, a resilient one, one with interrupts off."""


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
    forget(v, state, id_)
    return True


def invalidate(v: Verification, state: State, is_meant: Callable[[Pointer], bool]) -> None:
    """
    Make pointers unusable: from now on they are numbers, or, in programs of unprivileged users, to
    whom addresses are not shown, nothing at all.
    """
    if v.is_privileged or not v.profile.at_least(6, 0):
        replace_pointers(state, is_meant, lambda pointer: UNKNOWN_SCALAR)
        return
    for frame in state.frames:
        for reg in range(10):
            value = frame.regs[reg]
            if isinstance(value, Pointer) and is_meant(value):
                frame.regs[reg] = None
        for i, slot in list(frame.stack.items()):
            if isinstance(slot.value, Pointer) and slot.kinds[0] == SPILL and is_meant(slot.value):
                frame.remove(i)


def forget(v: Verification, state: State, id_: int) -> None:
    """Make every pointer with a reference, and the slices of it, unusable."""
    invalidate(v, state, lambda pointer: id_ in (pointer.ref, pointer.owner))


_PACKETS: Final = frozenset({Kind.PACKET, Kind.PACKET_META, Kind.PACKET_END})


def forget_packet(v: Verification, state: State) -> None:
    """A helper may have moved the packet: pointers into it are gone."""
    invalidate(v, state, lambda pointer: pointer.kind in _PACKETS or bool(pointer.flags & Flag.DYNPTR_SLICE))


def forget_non_owning(v: Verification, state: State) -> None:
    """The lock is released: references that it protected are gone."""
    invalidate(v, state, lambda pointer: bool(pointer.flags & Flag.NON_OWN))


def check_nothing_held(v: Verification, state: State, slot: int, where: str, *, is_exit: bool) -> None:
    """
    Refuse to end, or to hand over, while something is held.

    Where it is not the whole program that ends (`is_exit`), a function called may leave references to
    those who called it, since it goes back to them.
    """
    goes_back = not is_exit and len(state.frames) > 1 and v.profile.at_least(6, 1)
    for ref in state.refs:
        if ref.what == "ref" and not goes_back:
            claim = f"{where}: the reference {ref.id} acquired at slot {ref.slot} is still held"
            refuse("reference-leak", slot, claim)
    if state.locks:
        refuse("lock", slot, f"{where}: a lock is still held")
    if state.irq_id:
        refuse("section", slot, f"{where}: interrupts are still off")
    if state.rcu_depth:
        refuse("section", slot, f"{where}: an RCU section is still open")
    if state.preempt_off:
        refuse("section", slot, f"{where}: preemption is still off")


def check_may_sleep(v: Verification, state: State, slot: int, name: str) -> None:
    """Refuse a call that may sleep, where that is not allowed."""
    if not v.in_sleepable(state):
        refuse("sleeping", slot, f"{name} may sleep, and the program is not sleepable")
    if state.rcu_depth or state.preempt_off or state.irq_id:
        refuse("sleeping", slot, f"{name} may sleep inside of a section that does not allow it")


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
    return value.types, value.id


def holds_lock(state: State, value: Pointer) -> bool:
    """Whether the lock is held that lies in the same map value or object as what a pointer points at."""
    place = lock_place(value)
    return any(ref.what in LOCKS and ref.lock == place for ref in state.refs)


def check_lock(
    v: Verification, state: State, call: Call, reg: int, value: Value, *, takes: bool, what: str = "spin_lock"
) -> None:
    """
    Check and do what a call takes or releases a lock for. `what` is the field of the lock; the one
    of resilient locks may be taken while others are held.
    """
    is_value = isinstance(value, Pointer) and value.kind is Kind.MAP_VALUE
    is_object = isinstance(value, Pointer) and value.kind is Kind.BTF_ID and value.flags & ~Flag.NULL == Flag.ALLOC
    if not (is_value or is_object) or (isinstance(value, Pointer) and value.flags & Flag.NULL):
        id_ = "argument-null" if isinstance(value, Pointer) and value.flags & Flag.NULL else "argument-type"
        refuse(id_, call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected map_value, ptr_", reg)
    assert isinstance(value, Pointer)
    if not value.var.is_const:
        refuse("lock", call.slot, f"r{reg}: the lock must be at a known offset", reg)
    if state.frames[-1].callback == "bpf_rbtree_add_impl":
        refuse("lock", call.slot, f"{call.name} is called while bpf_rbtree_add compares nodes")
    at = value.off + value.var.value
    place = find_lock_field(value, what)
    if place is None:
        refuse("lock", call.slot, f"r{reg}: there is no bpf_{what} in what it points at", reg)
    if place != at:
        refuse("lock", call.slot, f"r{reg}: the bpf_{what} is at {place}, not at {at}", reg)
    kind = {"spin_lock": "lock"}.get(what, "res_lock_irq" if "irq" in call.name else "res_lock")
    if takes:
        _take_lock(v, state, call, kind, lock_place(value))
    else:
        _release_lock(v, state, call, kind, lock_place(value))


def _take_lock(v: Verification, state: State, call: Call, kind: str, lock: Any) -> None:
    held = [ref for ref in state.refs if ref.what in LOCKS]
    if kind == "lock" and any(ref.what == "lock" for ref in held):
        refuse("lock", call.slot, "a lock is held already, and two may deadlock")
    if kind != "lock" and any(ref.what != "lock" and ref.lock == lock for ref in held):
        refuse("lock", call.slot, "the same lock is held already")
    state.refs = (*state.refs, Ref(kind, v.new_id(), call.slot, lock))
    state.locks += 1


def _release_lock(v: Verification, state: State, call: Call, kind: str, lock: Any) -> None:
    held = [ref for ref in state.refs if ref.what in LOCKS]
    if not held:
        refuse("lock", call.slot, f"{call.name} without a lock being held")
    if not any(ref.what == kind and ref.lock == lock for ref in held):
        refuse("lock", call.slot, f"{call.name} of another lock than the one that is held")
    last = held[-1]
    if last.lock != lock:
        refuse("lock", call.slot, f"{call.name}: a lock taken later must be released first")
    state.refs = tuple(ref for ref in state.refs if ref is not last)
    state.locks -= 1
    forget_non_owning(v, state)


def find_lock_field(value: Pointer, what: str) -> int | None:
    """Return the offset of the lock in what a pointer points at."""
    if value.kind is Kind.MAP_VALUE:
        found = value.map.field_of(what) if value.map is not None else None
        return found.off if found is not None else None
    if value.types is None:
        return None
    return next((item.off for item in special_fields(value.types, value.type_id) if item.what == what), None)
