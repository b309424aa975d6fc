"""
Open-coded iterators: an object on the stack that is made, asked for elements until it has none, and
destroyed. Each round of the loop forgets the numbers that nothing depends on, so that it comes to rest.
"""

from __future__ import annotations

from typing import Any

from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.types import BtfKind
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.checkpoint import is_at, mark_read
from actplane.verifier.paths.state import ALL_ITER, ITER, IterSlot, Ref, Slot, State
from actplane.verifier.paths.values import Pointer, Value, known, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.paths.widening import widen_imprecise
from actplane.verifier.rules.refs import release
from actplane.verifier.tables.kfunc_table import KernelFunction
from actplane.verifier.tables.refusals import refuse


def is_iterator(function: KernelFunction) -> bool:
    return bool(function.flags & {"new", "next", "destroy"})


def _kind(function: KernelFunction) -> str:
    """`num` of bpf_iter_num_next."""
    return function.name.removeprefix("bpf_iter_").rpartition("_")[0]


def _place(v: Verification, state: State, call: Call, kind: str) -> tuple[Pointer, list[int]]:
    """Return the pointer to the iterator and its stack slots, the one with the lowest address first."""
    value = state.frames[-1].regs[1]
    if not isinstance(value, Pointer) or value.kind is not Kind.STACK:
        refuse("iterator", call.slot, f"r1 of {call.name} is {name_of(value)}, expected an iterator on the stack", 1)
    types = v.subject.types
    type_id = types.id_of(BtfKind.STRUCT, f"bpf_iter_{kind}") if types is not None else None
    size = types.type_at(type_id).size if types is not None and type_id is not None else 8
    off = value.off + value.var.smin
    if not value.var.is_const or off % 8 or off + size > 0 or off < -512:
        refuse("iterator", call.slot, f"r1 of {call.name}: an iterator must be whole, on aligned stack", 1)
    first = (-off - 1) >> 3
    return value, [first - i for i in range(size // 8)]


def _held(v: Verification, state: State, call: Call, kind: str) -> tuple[Pointer, list[int], IterSlot]:
    value, slots = _place(v, state, call, kind)
    frame = state.frames[value.frame]
    kept = frame.stack.get(slots[0])
    for index in slots:
        mark_read(state, state.written, frame.index, index)
    whole = all(index in frame.stack and frame.stack[index].kinds[0] == ITER for index in slots)
    if kept is None or not whole or not kept.value.is_first or kept.value.kind != kind:
        refuse("iterator", call.slot, f"r1 of {call.name}: there is no initialised iterator of this kind", 1)
    held: IterSlot = kept.value
    if held.flags & Flag.UNTRUSTED:
        refuse("iterator", call.slot, f"r1 of {call.name}: the iterator is used outside of its RCU section", 1)
    return value, slots, held


def trust(v: Verification, state: State, call: Call, function: KernelFunction) -> int:
    """Return the flag that says how far the elements of an iterator can be trusted."""
    _, _, held = _held(v, state, call, _kind(function))
    return Flag.RCU if held.flags & Flag.RCU else Flag.TRUSTED


def apply(v: Verification, state: State, call: Call, function: KernelFunction) -> None:
    """Make or destroy an iterator."""
    kind = _kind(function)
    if "destroy" in function.flags:
        value, slots, held = _held(v, state, call, kind)
        release(v, state, held.ref)
        for index in slots:
            state.frames[value.frame].remove(index)
        return
    value, slots = _place(v, state, call, kind)
    frame = state.frames[value.frame]
    for index in slots:
        kept = frame.stack.get(index)
        if kept is not None and kept.kinds[0] == ITER:
            refuse("iterator", call.slot, f"r1 of {call.name}: there is an iterator already", 1)
    v.note_stack(frame, 8 * (slots[0] + 1))
    ref = v.new_id()
    state.refs = (*state.refs, Ref("ref", ref, call.slot))
    flags = Flag.NONE
    if "section" in function.flags:
        flags = Flag.RCU if v.in_rcu(state) else Flag.UNTRUSTED
    for position, index in enumerate(slots):
        one = IterSlot(kind, position == 0, False, 0, ref if position == 0 else 0, flags)
        frame.put(index, Slot(ALL_ITER, one))
        state.written[frame.index] |= 1 << index


def advance(v: Verification, state: State, call: Call, function: KernelFunction, element: Value | None) -> int:
    """Ask for the next element: walk on with one (kept for later), and at once with none."""
    value, slots, held = _held(v, state, call, _kind(function))
    slot = call.slot
    if isinstance(element, Pointer) and element.kind is Kind.MEM:
        # It lies in the iterator, and is gone with it.
        element = element.but(owner=held.ref)
    if not held.is_drained:
        other = v.push(state, slot + 1, f"{call.name} gave an element", slot)
        frame = other.frames[value.frame]
        frame.put(slots[0], Slot(ALL_ITER, held._replace(depth=held.depth + 1)))
        previous = _previous_round(state, slot)
        if previous is not None:
            widen_imprecise(previous, other)
        regs = other.frames[-1].regs
        regs[0:6] = [None] * 6
        regs[0] = element.but(flags=element.flags & ~Flag.NULL, id=0) if isinstance(element, Pointer) else element
    frame = state.frames[value.frame]
    frame.put(slots[0], Slot(ALL_ITER, held._replace(is_drained=True)))
    regs = state.frames[-1].regs
    regs[0:6] = [None] * 6
    regs[0] = known(0)
    return slot + 1


def _previous_round(state: State, slot: int) -> Any:
    """Return the checkpoint at this call that the last round passed, not the one of this round."""
    checkpoint = state.parent
    if checkpoint is not None and checkpoint.slot == slot:
        checkpoint = checkpoint.parent
    while checkpoint is not None:
        if is_at(checkpoint, slot, state):
            return checkpoint
        checkpoint = checkpoint.parent
    return None
