"""
The stack: spilled registers kept whole, other bytes known to be written, zero, or neither.
"""

from __future__ import annotations

from typing import Any, Final

from actplane.verifier.domains.kinds import Kind
from actplane.verifier.domains.scalar import UNKNOWN
from actplane.verifier.paths.checkpoint import mark_read
from actplane.verifier.paths.state import (
    ALL_SPILL,
    DYNPTR,
    INVALID,
    IRQ,
    ITER,
    MISC,
    NOUGHT,
    SPILL,
    Frame,
    Slot,
    State,
    stack_step,
)
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, Value, known
from actplane.verifier.paths.verification import Verification
from actplane.verifier.rules.dynptrs import destroy
from actplane.verifier.tables.refusals import in_bytes, refuse

STACK_BYTES: Final = 512
_MAX_VAR_OFF: Final = 1 << 29
_OBJECTS: Final = frozenset({DYNPTR, ITER, IRQ})


def check_bounds(slot: int, reg: int, pointer: Pointer, off: int, size: int) -> None:
    """Refuse an access of `size` bytes, `off` bytes from the pointer with its fixed offset, outside of the frame."""
    var = pointer.var
    if not var.is_const and (var.smax >= _MAX_VAR_OFF or var.smin <= -_MAX_VAR_OFF):
        refuse("stack-variable-offset", slot, f"r{reg}: the offset on the stack is unbounded", reg)
    low, high = var.smin + off, var.smax + off + size
    if low < -STACK_BYTES or high > 0 or (low >= 0 and size >= 0):
        where = f"bytes {low} to {high} from the frame pointer"
        refuse("stack-out-of-bounds", slot, f"r{reg}: {where}, the stack is -512 to 0", reg)


def frame_of(state: State, pointer: Pointer) -> Frame:
    return state.frames[pointer.frame]


def _index(off: int) -> int:
    return (-off - 1) >> 3


def _may_read_unwritten(v: Verification, frame: Frame, index: int) -> bool:
    """Whether a slot that was never written may be read: older kernels ask that a lower one was written."""
    return v.grows_stack_on_reads or (v.allows_uninitialized_stack and index < max(frame.stack, default=-1))


def read_fixed(v: Verification, state: State, slot: int, pointer: Pointer, off: int, size: int) -> Value:
    """Return what a load of `size` bytes at a known offset from the frame pointer yields."""
    frame = state.frames[pointer.frame]
    index = (-off - 1) >> 3
    kept = frame.stack.get(index)
    if not state.written[pointer.frame] >> index & 1:
        mark_read(state, state.written, pointer.frame, index)
    assert state.trace is not None
    if kept is None:
        if not _may_read_unwritten(v, frame, index):
            refuse("stack-uninitialized", slot, f"bytes {off} to {off + size} of the stack were never written")
        v.note_stack(frame, -off)
        return UNKNOWN_SCALAR
    kinds = kept.kinds
    first = off + 8 * (index + 1)
    if kinds[0] == SPILL:
        spilled = kinds.count(SPILL)
        value: Value = kept.value
        if isinstance(value, Pointer):
            if size != 8 or spilled != 8:
                refuse("stack-pointer-corruption", slot, f"{in_bytes(size)} of a spilled pointer, loaded alone")
            v.note_history(state, slot)
            return value
        if first == 0 and (size == spilled or (size < spilled and v.follows_spills)):
            v.note_history(state, slot)
            state.trace = (slot, stack_step(pointer.frame, index), state.trace[2])
            if size == 8:
                return value
            if size == 4 and spilled == 4 and v.follows_spills and not value.range.is_const and not value.id:
                value = Scalar(value.range, v.new_id())
                frame.put(index, Slot(kinds, value))
            return Scalar(value.range) if value.range.umax >> (8 * size) else value
        piece = kinds[first : first + size]
        is_zero = value.range.is_const and value.range.value == 0
        if is_zero and v.follows_spills and all(kind in (SPILL, NOUGHT) for kind in piece):
            v.note_history(state, slot)
            v.mark_precise_stack(state, frame.index, index)
            return known(0)
        return UNKNOWN_SCALAR
    piece = kinds[first : first + size]
    if all(k == NOUGHT for k in piece):
        return known(0)
    for k in piece:
        if k in (MISC, NOUGHT, SPILL) or (k == INVALID and v.allows_uninitialized_stack):
            continue
        claim = f"bytes {off} to {off + size} of the stack were not all written"
        refuse("stack-uninitialized", slot, claim)
    return UNKNOWN_SCALAR


def write_fixed(
    v: Verification, state: State, slot: int, pointer: Pointer, off: int, size: int, value: Value | None, source: int
) -> None:
    """Store a value (None: unknown bytes) at a known offset; `source` is its register, -1 for a constant."""
    frame = state.frames[pointer.frame]
    index = (-off - 1) >> 3
    first = off + 8 * (index + 1)
    v.note_stack(frame, -off)
    kept = frame.stack.get(index)
    if kept is not None and kept.kinds[0] in _OBJECTS:
        release_object(v, state, slot, frame, index)
        kept = frame.stack.get(index)
    assert state.trace is not None
    state.trace = (slot, stack_step(pointer.frame, index), state.trace[2])
    if not v.is_privileged and (isinstance(value, Pointer) or _hides_a_value(kept, first, size)):
        v.barriers_behind.add(slot)
    is_part = kept is not None and kept.kinds[0] == SPILL and size != 8
    if is_part and kept is not None and isinstance(kept.value, Pointer) and not v.is_privileged:
        refuse("stack-pointer-corruption", slot, "part of a spilled pointer is overwritten")
    if size == 8:
        state.written[frame.index] |= 1 << index
    if isinstance(value, Scalar) and first == 0 and _is_kept(v, value):
        if size < 8 and value.range.umax >> (8 * size):
            value = Scalar(value.range)
        elif (
            source >= 0 and v.follows_spills and not value.range.is_const and (not value.id or value.delta is not None)
        ):
            value = Scalar(value.range, v.new_id())
            state.frames[-1].regs[source] = value
        _spill(frame, index, value, size)
        v.note_history(state, slot)
        return
    # Addresses of instructions are not kept: what is loaded from there is a number.
    if isinstance(value, Pointer) and value.kind is not Kind.INSN:
        if size != 8 or first:
            refuse("stack-pointer-corruption", slot, f"{in_bytes(size)} of a pointer, spilled alone", source)
        if frame is not state.frames[-1] and value.kind.name == "STACK":
            refuse("pointer-leak", slot, "a stack pointer is spilled into the stack of a caller", source)
        _spill(frame, index, value, 8)
        v.note_history(state, slot)
        return
    kinds = bytearray(kept.kinds) if kept is not None else bytearray([INVALID]) * 8
    _scrub(kinds)
    is_zero = isinstance(value, Scalar) and value.range.is_const and value.range.value == 0
    if is_zero and source >= 0:
        v.mark_precise(state, source)
    kinds[first : first + size] = bytes([NOUGHT if is_zero else MISC]) * size
    frame.put(index, Slot(bytes(kinds)))


def _needs_id(value: Scalar) -> bool:
    """Whether a copy of a number has to be linked with it, and is not."""
    return not value.range.is_const and (not value.id or value.delta is not None)


def _is_kept(v: Verification, value: Scalar) -> bool:
    """Whether a number that is stored is kept as a number, not as bytes."""
    if v.follows_spills or not v.is_privileged:
        return v.is_privileged
    is_zero = value.range.is_const and value.range.value == 0
    return not is_zero and value.range is not UNKNOWN


def _hides_a_value(kept: Slot | None, first: int, size: int) -> bool:
    """Whether a store overwrites what a load might see from before it, if it is carried out too early."""
    return kept is None or any(kind not in (MISC, NOUGHT) for kind in kept.kinds[first : first + size])


def _spill(frame: Frame, index: int, value: Value, size: int) -> None:
    if size == 8:
        frame.put(index, Slot(ALL_SPILL, value))
        return
    kept = frame.stack.get(index)
    kinds = bytearray(kept.kinds) if kept is not None else bytearray([INVALID]) * 8
    for i in range(8):
        if i < size:
            kinds[i] = SPILL
        elif kinds[i] not in (NOUGHT, INVALID):
            kinds[i] = MISC
    frame.put(index, Slot(bytes(kinds), value))


def _scrub(kinds: bytearray) -> None:
    """What was a spilled value is from now on only bytes."""
    for i, kind in enumerate(kinds):
        if kind not in (NOUGHT, INVALID):
            kinds[i] = MISC


def read_variable(v: Verification, state: State, slot: int, reg: int, pointer: Pointer, off: int, size: int) -> Value:
    """Return what a load at an unknown offset between bounds yields: 0 if every byte is 0, else anything."""
    frame = frame_of(state, pointer)
    low, high = pointer.var.smin + off, pointer.var.smax + off + size
    check_initialized(v, state, slot, reg, frame, low, high, is_write=False)
    v.note_stack(frame, -low)
    is_zero = True
    for byte in range(low, high):
        kept = frame.stack.get(_index(byte))
        if kept is None or kept.kinds[byte & 7] != NOUGHT:
            is_zero = False
    v.mark_precise(state, reg)
    return known(0) if is_zero else UNKNOWN_SCALAR


def write_variable(
    v: Verification, state: State, slot: int, reg: int, pointer: Pointer, off: int, size: int, value: Value | None
) -> None:
    """Store at an unknown offset between bounds: every byte that may be hit becomes unknown."""
    frame = frame_of(state, pointer)
    low, high = pointer.var.smin + off, pointer.var.smax + off + size
    is_zero = isinstance(value, Scalar) and value.range.is_const and value.range.value == 0
    v.note_stack(frame, -low)
    for index in {_index(byte) for byte in range(low, high)}:
        release_object(v, state, slot, frame, index)
    changed: dict[int, bytearray] = {}
    values: dict[int, Any] = {}
    for byte in range(low, high):
        index = _index(byte)
        kept = frame.stack.get(index)
        kinds = changed.setdefault(index, bytearray(kept.kinds) if kept is not None else bytearray([INVALID]) * 8)
        kind = kinds[byte & 7]
        if not v.is_privileged and kind not in (MISC, NOUGHT):
            refuse("stack-variable-offset", slot, f"r{reg}: a write at an unknown offset may hit a spilled value", reg)
        if is_zero and kind == SPILL and kept is not None and _is_spilled_zero(kept):
            values[index] = kept.value
            v.mark_precise_stack(state, frame.index, index)
            continue
        if is_zero and kind == NOUGHT:
            continue
        if kind == SPILL:
            _scrub(kinds)
            values.pop(index, None)
        if kind == INVALID and not v.allows_uninitialized_stack:
            refuse("stack-uninitialized", slot, f"r{reg}: a write at an unknown offset into bytes never written", reg)
        kinds[byte & 7] = MISC
    for index, kinds in changed.items():
        mark_read(state, state.written, frame.index, index)
        frame.put(index, Slot(bytes(kinds), values.get(index)))
    v.mark_precise(state, reg)
    if is_zero and value is not None:
        for i, register in enumerate(state.frames[-1].regs):
            if register is value:
                v.mark_precise(state, i)


def constant_at(v: Verification, state: State, pointer: Pointer, off: int, size: int) -> int | None:
    """Return the number in `size` bytes of the stack if it is known, and mark that it matters."""
    frame = frame_of(state, pointer)
    index = _index(off)
    first = off + 8 * (index + 1)
    kept = frame.stack.get(index)
    if kept is None:
        return None
    if all(kind == NOUGHT for kind in kept.kinds[first : first + size]):
        return 0
    is_spilled = kept.kinds.count(SPILL) == size and first == 0 and kept.kinds[0] == SPILL
    if is_spilled and isinstance(kept.value, Scalar) and kept.value.range.is_const:
        v.mark_precise_stack(state, frame.index, index)
        return kept.value.range.value & ((1 << 8 * size) - 1)
    return None


def _is_spilled_zero(kept: Slot) -> bool:
    value = kept.value
    return isinstance(value, Scalar) and value.range.is_const and value.range.value == 0


def check_initialized(
    v: Verification, state: State, slot: int, reg: int, frame: Frame, low: int, high: int, *, is_write: bool
) -> None:
    """
    Refuse unless the bytes [low, high) may be read by a helper; if it may write them too, what was
    spilled there is forgotten.
    """
    for index in sorted({_index(byte) for byte in range(low, high)}):
        mark_read(state, state.written, frame.index, index)
        kept = frame.stack.get(index)
        if kept is None:
            if not _may_read_unwritten(v, frame, index):
                refuse(
                    "stack-uninitialized", slot, f"r{reg}: bytes {low} to {high} of the stack were not all written", reg
                )
            if is_write:
                frame.put(index, Slot(bytes([MISC]) * 8))
            continue
        kinds = bytearray(kept.kinds)
        has_changed = False
        for byte in range(max(low, -8 * (index + 1)), min(high, -8 * index)):
            kind = kinds[byte & 7]
            if kind in _OBJECTS:
                refuse("stack-uninitialized", slot, f"r{reg}: bytes {low} to {high} hold a dynptr or an iterator", reg)
            if kind == SPILL and isinstance(kept.value, Pointer) and not v.is_privileged:
                refuse("pointer-leak", slot, f"r{reg}: a spilled pointer would be read", reg)
            if kind == INVALID and not v.allows_uninitialized_stack:
                refuse(
                    "stack-uninitialized", slot, f"r{reg}: bytes {low} to {high} of the stack were not all written", reg
                )
            if is_write and kind != MISC:
                if kind == SPILL:
                    _scrub(kinds)
                kinds[byte & 7] = MISC
                has_changed = True
        if has_changed:
            # A number spilled into other bytes of the slot stays.
            frame.put(index, Slot(bytes(kinds), kept.value if SPILL in kinds else None))


def write_range(v: Verification, state: State, slot: int, pointer: Pointer, low: int, high: int) -> None:
    """A helper has written the bytes [low, high): they hold something, nothing known."""
    frame = frame_of(state, pointer)
    v.note_stack(frame, -low)
    for index in sorted({_index(byte) for byte in range(low, high)}):
        release_object(v, state, slot, frame, index)
        kept = frame.stack.get(index)
        kinds = bytearray(kept.kinds) if kept is not None else bytearray([INVALID]) * 8
        _scrub(kinds)
        start, end = max(low, -8 * (index + 1)), min(high, -8 * index)
        for byte in range(start, end):
            kinds[byte & 7] = MISC
        if end - start == 8:
            state.written[frame.index] |= 1 << index
        frame.put(index, Slot(bytes(kinds)))


def release_object(v: Verification, state: State, slot: int, frame: Frame, index: int) -> None:
    """Overwriting part of a dynptr destroys it, if it holds no reference; nothing else may be overwritten."""
    kept = frame.stack.get(index)
    if kept is None or kept.kinds[0] not in _OBJECTS:
        return
    if kept.kinds[0] != DYNPTR:
        # An iterator or interrupt state that is overwritten can never be given back.
        frame.put(index, Slot(bytes([INVALID]) * 8))
        return
    destroy(v, state, slot, frame, index)
