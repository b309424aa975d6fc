"""
Checkpoints and pruning: a path that reaches a known state again need not be walked twice.

A checkpoint is a state kept at a place where paths meet. It collects, from every path that went on
from it, which stack slots were read and which numbers mattered. Another state is covered by it if
whatever mattered there is at most as wild here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from actplane.verifier.domains.bits import bits_of
from actplane.verifier.domains.kinds import Kind
from actplane.verifier.domains.scalar import Range
from actplane.verifier.paths.checkpoint import Checkpoint, Place, place
from actplane.verifier.paths.state import (
    ALL_MISC,
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
)
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, Value, needs_no_ids

_OBJECTS: Final = frozenset({DYNPTR, ITER, IRQ})

_UNKNOWN_BYTES: Final = bytes([INVALID, MISC])
_WRITTEN_BYTES: Final = bytes([MISC])

NOT_EXACT: Final = 0
RANGE_WITHIN: Final = 1
EXACT: Final = 2

ALL_FRAMES: Final = 1 << 10
"""More than any kernel has."""


class IdMap:
    """Which ids of the old state stand for which of the new one. One to one."""

    __slots__ = ("_new", "_old", "_temporary")

    def __init__(self) -> None:
        self._old: dict[int, int] = {}
        self._new: dict[int, int] = {}
        self._temporary = -1

    def match(self, old: int, new: int) -> bool:
        if not old or not new:
            return old == new
        known = self._old.get(old)
        if known is not None:
            return known == new
        if new in self._new:
            return False
        self._old[old] = new
        self._new[new] = old
        return True

    def match_scalar(self, old: int, new: int) -> bool:
        """Like `match`, but an old number that was linked with nothing needs nothing."""
        if not old:
            return True
        if not new:
            new = self._temporary
            self._temporary -= 1
        return self.match(old, new)


def states_equal(old: Checkpoint, new: State, exact: int, exact_frames: int = ALL_FRAMES) -> bool:
    """
    Whether every continuation that was safe from the checkpoint is safe from a state. Frames from
    `exact_frames` on are compared with NOT_EXACT.
    """
    kept = old.state
    if len(kept.frames) != len(new.frames):
        return False
    if old.suspect is not None and _still_differs(old, new, exact, exact_frames):
        return False
    if kept.in_sleepable != new.in_sleepable or (kept.speculative and not new.speculative):
        return False
    ids = IdMap()
    if not _same_refs(kept, new, ids):
        return False
    for index, frame in enumerate(kept.frames):
        other = new.frames[index]
        if frame.call_slot != other.call_slot or frame.subprogram != other.subprogram:
            return False
        if not _frames_equal(old, index, frame, other, ids, exact if index < exact_frames else NOT_EXACT):
            return False
    return True


def number_at(state: State, place: Place) -> Range | None:
    """Return the range of the whole number that a state holds at a place, None if it holds none there."""
    index, is_slot, which = place
    if index >= len(state.frames):
        return None
    frame = state.frames[index]
    if is_slot:
        slot = frame.stack.get(which)
        value = slot.value if slot is not None and slot.kinds == ALL_SPILL else None
    else:
        value = frame.regs[which]
    return value.range if value.__class__ is Scalar else None


def _still_differs(old: Checkpoint, new: State, exact: int, exact_frames: int) -> bool:
    """Whether the states differ where the last comparison failed: mostly they do, and the rest need no look."""
    assert old.suspect is not None
    index, is_slot, which = old.suspect
    if index >= exact_frames:
        exact = NOT_EXACT
    frame, other = old.state.frames[index], new.frames[index]
    if is_slot:
        slot, twin = frame.stack.get(which), other.stack.get(which)
        if slot is None or slot is twin or (exact == NOT_EXACT and not old.read[index] >> which & 1):
            return False
        is_precise = bool(old.precise_slots[index] >> which & 1)
        if twin is None or not slot.kinds == twin.kinds == ALL_SPILL:
            return not _slot_covers(slot, twin, IdMap(), is_precise, exact, old.reads_unwritten)
        one, two = slot.value, twin.value
    else:
        if exact != EXACT and not old.live[index] >> which & 1:
            return False
        one, two = frame.regs[which], other.regs[which]
        is_precise = bool(old.precise_regs[index] >> which & 1)
    if one is two or value_covers(one, two, IdMap(), is_precise, exact):
        return False
    _note_suspect(old, index, is_slot, which, one)
    return True


def _note_suspect(old: Checkpoint, index: int, is_slot: bool, which: int, value: Value | None) -> None:
    """Note where a state differed, and whether what differed is a number that no comparison passes over."""
    matters = old.read[index] & old.precise_slots[index] if is_slot else old.live[index] & old.precise_regs[index]
    is_number = value.__class__ is Scalar and matters >> which & 1
    old.suspect = place(index, is_slot, which)
    old.watched = (old.suspect, value.range) if is_number else None  # type: ignore[union-attr]


def _same_refs(old: State, new: State, ids: IdMap) -> bool:
    if len(old.refs) != len(new.refs) or old.locks != new.locks:
        return False
    if old.rcu_depth != new.rcu_depth or old.preempt_off != new.preempt_off:
        return False
    if not ids.match(old.irq_id, new.irq_id):
        return False
    for one, two in zip(old.refs, new.refs, strict=True):
        if one.what != two.what or not _same_lock(one.lock, two.lock, ids) or not ids.match(one.id, two.id):
            return False
    return True


def _same_lock(one: Any, two: Any, ids: IdMap) -> bool:
    if one is None or two is None:
        return one is two
    return one[0] is two[0] and ids.match(one[1], two[1])


_ALL_REGS: Final = (1 << 10) - 1


def _frames_equal(old: Checkpoint, index: int, frame: Frame, other: Frame, ids: IdMap, exact: int) -> bool:
    if frame.callback_depth > other.callback_depth:
        return False
    precise = old.precise_regs[index]
    regs, others = frame.regs, other.regs
    for reg in bits_of(_ALL_REGS if exact == EXACT else old.live[index]):
        one, two = regs[reg], others[reg]
        is_precise = bool(precise >> reg & 1)
        if one.__class__ is Scalar and exact == NOT_EXACT and not is_precise:
            if two.__class__ is Scalar:
                continue
        elif one is two and needs_no_ids(one):
            continue
        if not value_covers(one, two, ids, is_precise, exact):
            _note_suspect(old, index, False, reg, one)
            return False
    return _stacks_equal(old, index, frame, other, ids, exact)


def _stacks_equal(old: Checkpoint, index: int, frame: Frame, other: Frame, ids: IdMap, exact: int) -> bool:
    stack, others = frame.stack, other.stack
    if exact == EXACT and stack.keys() != others.keys():
        return False
    precise = old.precise_slots[index]
    for i in stack if exact != NOT_EXACT else bits_of(old.read[index]):
        slot = stack.get(i)
        if slot is None:
            continue
        twin = others.get(i)
        if twin is slot and slot.needs_no_ids:
            continue
        is_precise = bool(precise >> i & 1)
        if exact == NOT_EXACT and not is_precise and twin is not None and _hold_numbers(slot, twin):
            continue
        if not _slot_covers(slot, twin, ids, is_precise, exact, old.reads_unwritten):
            _note_suspect(old, index, True, i, slot.value if slot.kinds == ALL_SPILL else None)
            return False
    return True


def _hold_numbers(one: Slot, two: Slot) -> bool:
    """Whether a number is spilled in both slots in the same way."""
    return one.value.__class__ is two.value.__class__ is Scalar and one.kinds == two.kinds


def _slot_covers(old: Slot, new: Slot | None, ids: IdMap, is_precise: bool, exact: int, reads_unwritten: bool) -> bool:
    kinds = old.kinds
    if new is None:
        # Nothing written there now. What was unknown bytes may be read as uninitialised ones.
        needless = (INVALID, MISC) if reads_unwritten else (INVALID,)
        return exact != EXACT and all(kind in needless for kind in kinds)
    if exact != EXACT:
        one, two = as_scalar(old, reads_unwritten), as_scalar(new, reads_unwritten)
        if one is not None and two is not None and not (kinds == ALL_MISC and new.kinds == ALL_MISC):
            return value_covers(one, two, ids, is_precise, exact)
    if kinds != new.kinds:
        is_number = isinstance(new.value, Scalar)
        are_zero = _is_zero(old.value), _is_zero(new.value)
        if not _bytes_cover(kinds, new.kinds, is_number, *are_zero, exact == EXACT, reads_unwritten):
            return False
    if SPILL in kinds and SPILL in new.kinds:
        return value_covers(old.value, new.value, ids, is_precise, exact)
    if DYNPTR in kinds:
        one, two = old.value, new.value
        same = one.kind == two.kind and one.is_first == two.is_first and one.is_readonly == two.is_readonly
        return bool(same and ids.match(one.ref, two.ref))
    if ITER in kinds:
        one, two = old.value, new.value
        same = one.kind == two.kind and one.is_drained == two.is_drained and one.is_first == two.is_first
        return bool(same and ids.match(one.ref, two.ref))
    if IRQ in kinds:
        return old.value.is_native == new.value.is_native and ids.match(old.value.ref, new.value.ref)
    return True


@lru_cache(maxsize=1 << 12)
def _bytes_cover(
    old: bytes, new: bytes, is_number: bool, is_old_zero: bool, is_new_zero: bool, is_exact: bool, reads_unwritten: bool
) -> bool:
    """
    Whether each byte of a slot stands for one of the new state, as far as its kind says. `is_number` if
    what is spilled in the new one is a number.
    """
    for mine, theirs in zip(old, new, strict=True):
        if mine == INVALID:
            if is_exact and theirs != INVALID:
                return False
            continue
        if mine == MISC and not is_exact and (theirs in (NOUGHT, MISC) or (theirs == INVALID and reads_unwritten)):
            continue
        if mine == MISC and not is_exact and theirs == SPILL and is_number:
            continue
        if mine != theirs:
            if mine == NOUGHT and theirs == SPILL and is_new_zero:
                continue
            if mine == SPILL and theirs == NOUGHT and is_old_zero:
                continue
            return False
    return True


def as_scalar(slot: Slot, reads_unwritten: bool = True) -> Scalar | None:
    """Return the number that all 8 bytes of a slot hold, if it is one."""
    kinds = slot.kinds
    if kinds == ALL_SPILL:
        return slot.value if slot.value.__class__ is Scalar else None
    return None if kinds.strip(_UNKNOWN_BYTES if reads_unwritten else _WRITTEN_BYTES) else UNKNOWN_SCALAR


def _is_zero(value: Any) -> bool:
    return isinstance(value, Scalar) and value.range.is_const and value.range.value == 0


def value_covers(old: Value | None, new: Value | None, ids: IdMap, is_precise: bool, exact: int) -> bool:
    """Whether a value of the old state stands for one of the new state."""
    if exact == EXACT:
        return _exactly(old, new, ids)
    if old is None:
        return True
    if isinstance(old, Scalar):
        if not isinstance(new, Scalar):
            return False
        if not is_precise and exact == NOT_EXACT:
            return True
        if (old.delta is None) != (new.delta is None) or old.delta != new.delta or old.is_delta32 != new.is_delta32:
            return False
        return old.range.holds(new.range) and ids.match_scalar(old.id, new.id)
    if not isinstance(new, Pointer) or old.kind is not new.kind or old.flags != new.flags:
        return False
    kind = old.kind
    if kind in (Kind.MAP_KEY, Kind.MAP_VALUE, Kind.MEM, Kind.BUF, Kind.TP_BUFFER, Kind.INSN):
        return (
            _same_fixed(old, new)
            and old.var.holds(new.var)
            and ids.match(old.id, new.id)
            and ids.match(old.ref, new.ref)
            and ids.match(old.owner, new.owner)
        )
    if kind in (Kind.PACKET, Kind.PACKET_META):
        # The old path needed `old.span` bytes; a longer proof now is as good.
        return (
            (old.span <= new.span if old.span >= 0 and new.span >= 0 else old.span == new.span)
            and old.off == new.off
            and (not old.id or ids.match(old.id, new.id))
            and old.var.holds(new.var)
        )
    return _exactly(old, new, ids)


def _same_fixed(old: Pointer, new: Pointer) -> bool:
    return (
        old.off == new.off
        and old.map is new.map
        and old.size == new.size
        and old.map_uid == new.map_uid
        and old.detail == new.detail
        and old.frame == new.frame
        and old.type_id == new.type_id
        and old.types is new.types
    )


def _exactly(old: Value | None, new: Value | None, ids: IdMap) -> bool:
    if old is new and not isinstance(old, Pointer):
        return True
    if isinstance(old, Scalar):
        return (
            isinstance(new, Scalar)
            and old.range is new.range
            and old.delta == new.delta
            and (old.id == new.id == 0 or ids.match(old.id, new.id))
        )
    if isinstance(old, Pointer) and isinstance(new, Pointer):
        return (
            old.kind is new.kind
            and old.flags == new.flags
            and _same_fixed(old, new)
            and old.span == new.span
            and old.var is new.var
            and ids.match(old.id, new.id)
            and ids.match(old.ref, new.ref)
            and ids.match(old.owner, new.owner)
        )
    return False
