"""
Saved interrupt states: eight bytes of stack that a call fills when it turns interrupts off, and
that must be handed back, the last one first, to the same kind of call.
"""

from __future__ import annotations

from typing import Final

from actplane.verifier.domains.kinds import Kind
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.checkpoint import mark_read
from actplane.verifier.paths.state import ALL_IRQ, IRQ, IrqSlot, Ref, Slot, State
from actplane.verifier.paths.values import Pointer, Value, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.rules import stack
from actplane.verifier.tables.refusals import refuse

_SAVES: Final = frozenset({"bpf_local_irq_save", "bpf_res_spin_lock_irqsave"})
_NATIVE: Final = frozenset({"bpf_local_irq_save", "bpf_local_irq_restore"})


def check(v: Verification, state: State, call: Call, reg: int, value: Value) -> None:
    """Check the saved state that a call makes or takes back, and do so."""
    if not isinstance(value, Pointer) or value.kind is not Kind.STACK:
        refuse("irq-flag", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected 8 bytes of stack", reg)
    off = value.off + value.var.smin
    if not value.var.is_const or off % 8 or not -512 <= off <= -8:
        refuse("irq-flag", call.slot, f"r{reg} of {call.name} must be at a known, aligned place on the stack", reg)
    index = (-off - 1) >> 3
    is_native = call.name in _NATIVE
    if call.name in _SAVES:
        _save(v, state, call, reg, value, index, is_native=is_native)
    else:
        _restore(v, state, call, reg, value, index, is_native=is_native)


def _save(v: Verification, state: State, call: Call, reg: int, value: Pointer, index: int, *, is_native: bool) -> None:
    frame = state.frames[value.frame]
    kept = frame.stack.get(index)
    if kept is not None and IRQ in kept.kinds:
        refuse("irq-flag", call.slot, f"r{reg} of {call.name}: an interrupt state is saved there already", reg)
    stack.release_object(v, state, call.slot, frame, index)
    v.note_stack(frame, 8 * (index + 1))
    id_ = v.new_id()
    state.refs = (*state.refs, Ref("irq", id_, call.slot))
    state.irq_id = id_
    frame.put(index, Slot(ALL_IRQ, IrqSlot(id_, is_native)))
    state.written[frame.index] |= 1 << index


def _restore(
    v: Verification, state: State, call: Call, reg: int, value: Pointer, index: int, *, is_native: bool
) -> None:
    frame = state.frames[value.frame]
    kept = frame.stack.get(index)
    mark_read(state, state.written, frame.index, index)
    if kept is None or kept.kinds != ALL_IRQ:
        refuse("irq-flag", call.slot, f"r{reg} of {call.name}: no interrupt state is saved there", reg)
    held: IrqSlot = kept.value
    if held.is_native != is_native:
        claim = f"r{reg} of {call.name}: the state was saved by the other kind of call"
        refuse("irq-flag", call.slot, claim, reg)
    if held.ref != state.irq_id:
        refuse("irq-flag", call.slot, f"r{reg} of {call.name}: a state saved later must be restored first", reg)
    state.refs = tuple(ref for ref in state.refs if ref.id != held.ref)
    state.irq_id = next((ref.id for ref in reversed(state.refs) if ref.what == "irq"), 0)
    frame.remove(index)
