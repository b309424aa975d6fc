"""
What the processor may do before it knows better: paths that a branch does not take, and pointers
moved by numbers that are out of their range. Only programs of unprivileged users are checked for it.

The kernel masks such a number at run time, so every way that leads to the instruction must allow the
same mask; it also walks the path as if the number were 0. What would be refused on a speculative path
is a refusal before Linux 6.17; later kernels put a barrier before that instruction, which ends the path.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from actplane.asm.insn import Insn
from actplane.asm.isa import ADD, OPERATION_MASK, SUB, X
from actplane.verifier.domains.kinds import Kind
from actplane.verifier.domains.tnum import U32
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar
from actplane.verifier.paths.verification import END, Handler, Verification
from actplane.verifier.tables.refusals import Refused, refuse

STACK_BYTES: Final = 512
MAX_VAR_OFF: Final = 1 << 29

_ID: Final = "speculation"
_FATAL: Final = frozenset({"too-complex", "too-many-instructions", "budget-exhausted"})
"""Refusals that no barrier helps against."""


class Mask(NamedTuple):
    """How a number added to a pointer, or to a number, is masked at run time."""

    is_number: bool
    is_negative: bool = False
    is_constant: bool = False
    is_in_source: bool = False
    limit: int = 0


class Plan(NamedTuple):
    """What was found out before a pointer moved, for when it has moved."""

    mask: Mask
    goes_left: bool


def _is_masked(v: Verification, slot: int, insn: Insn) -> bool:
    is_sum = insn.code & OPERATION_MASK in (ADD, SUB)
    return not v.is_privileged and is_sum and bool(insn.code & X) and slot not in v.barriers


def untaken(v: Verification, state: State, slot: int, target: int, *registers: int) -> None:
    """A branch is decided; the processor may take the other way, knowing nothing of what was compared."""
    if v.is_privileged:
        return
    other = v.push(state, target, "speculatively, the other way", slot)
    other.speculative = True
    regs = other.frames[-1].regs
    for reg in registers:
        regs[reg] = UNKNOWN_SCALAR


def add_numbers(v: Verification, slot: int, insn: Insn) -> None:
    """Numbers are added or subtracted by an instruction that may not move a pointer on another path."""
    if _is_masked(v, slot, insn):
        _note(v, slot, insn, Mask(is_number=True))


def before_move(
    v: Verification, state: State, slot: int, insn: Insn, pointer: Pointer, amount: Scalar, *, is_reversed: bool
) -> Plan | None:
    """Check that a pointer may be moved by a number, before it is; walk on as if it did not move."""
    if not _is_masked(v, slot, insn):
        return None
    offset = amount.range
    plan = None
    is_negative = offset.smin < 0
    if not state.speculative:
        if not offset.is_const and is_negative != (offset.smax < 0):
            refuse(_ID, slot, f"r{insn.dst}: the pointer is moved by a number that may be negative or not", insn.dst)
        goes_left = is_negative == (insn.code & OPERATION_MASK == ADD)
        limit = _limit(slot, insn, pointer, goes_left=goes_left)
        plan = Plan(Mask(False, is_negative, offset.is_const, not is_reversed, limit), goes_left)
        v.masks_ranges = v.masks_ranges or not offset.is_const
    if not offset.is_const:
        other = v.push(state, slot + 1, "speculatively, moved by nothing", slot)
        other.speculative = True
        other.frames[-1].regs[insn.dst] = pointer
    return plan


def after_move(v: Verification, state: State, slot: int, insn: Insn, moved: Pointer, plan: Plan | None) -> None:
    """Check where a pointer is after it was moved."""
    if v.is_privileged:
        return
    _check_place(slot, insn.dst, moved)
    if plan is None or slot in v.barriers:
        return
    limit = abs(plan.mask.limit - _limit(slot, insn, moved, goes_left=plan.goes_left)) & U32
    _note(v, slot, insn, plan.mask._replace(limit=limit))


def _limit(slot: int, insn: Insn, pointer: Pointer, *, goes_left: bool) -> int:
    """Return how far the pointer is from the end of its memory that it moves towards, in bytes."""
    if pointer.kind is Kind.STACK:
        most = STACK_BYTES + goes_left
        limit = -(pointer.var.smin + pointer.off)
    elif pointer.kind is Kind.MAP_VALUE and pointer.map is not None:
        most = pointer.map.spec.value_size
        limit = (pointer.var.smin if goes_left else pointer.var.umax) + pointer.off
    else:
        claim = f"r{insn.dst} is {pointer.type_name}, which unprivileged programs may not move by a register"
        refuse(_ID, slot, claim, insn.dst)
    limit &= U32
    if limit >= most:
        refuse(_ID, slot, f"r{insn.dst} is moved beyond the bounds of its memory", insn.dst)
    return limit


def _note(v: Verification, slot: int, insn: Insn, mask: Mask) -> None:
    before = v.masks.setdefault(slot, mask)
    if before != mask:
        claim = f"r{insn.dst} is moved in memory of another size, or by another kind of number, than on another path"
        refuse(_ID, slot, claim, insn.dst)


def _check_place(slot: int, reg: int, moved: Pointer) -> None:
    var = moved.var
    if moved.kind is Kind.STACK:
        if not var.is_const:
            refuse("stack-variable-offset", slot, f"r{reg}: a stack pointer is moved by an unknown number", reg)
        if not -STACK_BYTES <= moved.off + var.smin < 0:
            claim = f"r{reg}: a stack pointer is moved to {moved.off + var.smin}, the stack is -512 to 0"
            refuse(_ID, slot, claim, reg)
    elif moved.kind is Kind.MAP_VALUE and moved.map is not None:
        size = moved.map.spec.value_size
        low, high = moved.off + var.smin, moved.off + var.umax
        if low < 0 or var.umax >= MAX_VAR_OFF or high >= size:
            claim = f"r{reg}: a map value pointer is moved to bytes {low} to {high}, the value has {size}"
            refuse(_ID, slot, claim, reg)


def guarded(v: Verification, slot: int, handler: Handler) -> Handler:
    """Return the handler of an instruction that gets a barrier where a speculative path must not go on."""
    if v.is_privileged or not v.profile.at_least(6, 17):
        return handler

    def guard(state: State) -> int:
        if not state.speculative:
            return handler(state)
        if slot in v.barriers:
            return END
        try:
            following = handler(state)
        except Refused as refused:
            if refused.id in _FATAL:
                raise
            v.barriers.add(slot)
            v.masks.pop(slot, None)
            return END
        return END if slot in v.barriers_behind else following

    return guard
