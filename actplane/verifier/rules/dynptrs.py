"""
Dynptrs: handles of memory whose size is known at run time only, kept in 16 bytes of stack.
"""

from __future__ import annotations

from actplane.verifier.domains.kinds import Kind
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.checkpoint import mark_read
from actplane.verifier.paths.state import ALL_DYNPTR, DYNPTR, DynptrSlot, Frame, Ref, Slot, State
from actplane.verifier.paths.values import Pointer, Value, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.rules.refs import forget, invalidate
from actplane.verifier.tables.helper_table import Arg
from actplane.verifier.tables.refusals import refuse


def slots_of(call: Call, reg: int, value: Value) -> tuple[Pointer, int]:
    """Return the pointer and the index of the lower of the two stack slots that it points at."""
    if not isinstance(value, Pointer) or value.kind is not Kind.STACK:
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected fp", reg)
    if not value.var.is_const:
        refuse("dynptr", call.slot, f"r{reg}: a dynptr must be at a known place on the stack", reg)
    off = value.off + value.var.smin
    if off % 8 or off > -16 or off < -512:
        refuse("dynptr", call.slot, f"r{reg}: no dynptr fits on the stack at {off}", reg)
    return value, (-off - 1) >> 3


def find(v: Verification, state: State, value: Pointer, index: int) -> DynptrSlot | None:
    """Return the dynptr that starts at a slot, if there is a whole one."""
    frame = state.frames[value.frame]
    low, high = frame.stack.get(index), frame.stack.get(index - 1)
    for slot in (index, index - 1):
        mark_read(state, state.written, frame.index, slot)
    if low is None or high is None or low.kinds != ALL_DYNPTR or high.kinds != ALL_DYNPTR:
        return None
    found: DynptrSlot = low.value
    return found if found.is_first and not high.value.is_first else None


def create(
    v: Verification,
    state: State,
    slot: int,
    value: Pointer,
    index: int,
    kind: str,
    *,
    ref: int = 0,
    is_readonly: bool = False,
) -> DynptrSlot:
    """Put a new dynptr on the stack."""
    frame = state.frames[value.frame]
    v.note_stack(frame, 8 * (index + 1))
    for at in (index, index - 1):
        kept = frame.stack.get(at)
        if kept is not None and kept.kinds[0] == DYNPTR:
            destroy(v, state, slot, frame, at)
    id_ = v.new_id()
    first = DynptrSlot(kind, True, id_, ref, is_readonly)
    frame.put(index, Slot(ALL_DYNPTR, first))
    frame.put(index - 1, Slot(ALL_DYNPTR, first._replace(is_first=False)))
    state.written[frame.index] |= 3 << (index - 1)
    return first


def destroy(v: Verification, state: State, slot: int, frame: Frame, index: int) -> None:
    """Part of a dynptr is overwritten: it is gone, which is allowed if it holds no reference."""
    kept = frame.stack[index]
    held: DynptrSlot = kept.value
    if held.ref and not (v.profile.at_least(7, 1) and _has_clone(state, held)):
        refuse("dynptr", slot, "a dynptr that holds a reference is overwritten")
    other = index - 1 if held.is_first else index + 1
    for at in (index, other):
        frame.remove(at)
    _forget_slices(v, state, held.id)


def _has_clone(state: State, held: DynptrSlot) -> bool:
    for one in state.frames:
        for _i, slot in one.stack.items():
            if slot.kinds[0] != DYNPTR or slot.value.ref != held.ref or slot.value.id == held.id:
                continue
            if slot.value.is_first:
                return True
    return False


def _forget_slices(v: Verification, state: State, id_: int) -> None:
    invalidate(v, state, lambda pointer: bool(pointer.detail == ("slice", id_)))


def end(v: Verification, state: State, ref: int) -> None:
    """Give back the reference of a dynptr: it, its clones and its slices are gone."""
    state.refs = tuple(one for one in state.refs if one.id != ref)
    for frame in state.frames:
        for i, slot in list(frame.stack.items()):
            if slot.kinds[0] == DYNPTR and slot.value.ref == ref:
                frame.remove(i)
                _forget_slices(v, state, slot.value.id)
    forget(v, state, ref)


def check_argument(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    """Check a dynptr argument: to be made, to be used, or to be given back."""
    if isinstance(value, Pointer) and value.kind is Kind.DYNPTR:
        if arg.kind != "dynptr":
            claim = f"r{reg}: {call.name} cannot make or release a dynptr that belongs to the kernel"
            refuse("dynptr", call.slot, claim, reg)
        if value.off or not value.var.is_const or value.var.value:
            refuse("dynptr", call.slot, f"r{reg} must point at the start of the dynptr", reg)
        call.dynptr = DynptrSlot("local", True, value.id, 0)
        return
    pointer, index = slots_of(call, reg, value)
    if arg.kind == "dynptr_new":
        frame = state.frames[pointer.frame]
        for at in (index, index - 1):
            kept = frame.stack.get(at)
            # What holds no reference may be made anew since Linux 6.3.
            is_kept = kept is not None and kept.kinds[0] == DYNPTR
            if is_kept and not v.profile.at_least(6, 3):
                refuse("dynptr", call.slot, f"r{reg}: the dynptr there would be overwritten", reg)
        call.extra["new_dynptr"] = (pointer, index, arg.detail)
        return
    found = find(v, state, pointer, index)
    if found is None:
        refuse("dynptr", call.slot, f"r{reg}: there is no initialised dynptr", reg)
    if arg.detail and found.kind != arg.detail:
        refuse("dynptr", call.slot, f"r{reg} is a dynptr of {found.kind}, expected one of {arg.detail}", reg)
    if arg.kind == "dynptr_end":
        if not found.ref:
            refuse("dynptr", call.slot, f"r{reg} is a dynptr that holds no reference", reg)
        call.extra["end_dynptr"] = found.ref
    call.dynptr = found


def make(v: Verification, state: State, call: Call) -> None:
    """Create the dynptr that a helper was asked for."""
    pointer, index, kind = call.extra["new_dynptr"]
    ref = 0
    if kind == "ringbuf":
        ref = v.new_id()
        state.refs = (*state.refs, Ref("ref", ref, call.slot))
    create(v, state, call.slot, pointer, index, kind, ref=ref)
