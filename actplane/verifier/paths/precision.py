"""
Precision: which numbers a path's safety depended on.

A state may be pruned against an older one if the numbers differ only where that does not matter. So
when an instruction needs a number's range, the registers and stack slots that the number came from
are marked in every checkpoint on the way back. Backtracking reads the trace of the path, one step
at a time, as the kernel's verifier does.
"""

from __future__ import annotations

from typing import Any, Final

from actplane.asm.insn import Insn
from actplane.asm.isa import (
    ALU,
    ALU64,
    ATOMIC,
    CALL,
    CLASS_MASK,
    CMPXCHG,
    END,
    EXIT,
    FETCH,
    GOTOL,
    JA,
    JMP,
    JMP32,
    LD,
    LD_IMM64,
    LDX,
    LOAD_ACQUIRE,
    MODE_MASK,
    MOV,
    NEG,
    OPERATION_MASK,
    PSEUDO_CALL,
    ST,
    STORE_RELEASE,
    STX,
    X,
)
from actplane.verifier.domains.bits import bits_of
from actplane.verifier.paths.checkpoint import Checkpoint
from actplane.verifier.paths.flow import ARGUMENTS, CALLER_SAVED, HELPER_CALL, Code, is_conditional
from actplane.verifier.paths.state import Followed, StackStep, State, Trace
from actplane.verifier.paths.values import Scalar


class GaveUp(Exception):
    """Backtracking met something that it cannot follow: every number becomes precise."""


GLOBAL_CALL: Final = "global"


class Backtrack:
    """Registers and stack slots wanted, as bits, for each frame up to the current one."""

    __slots__ = ("frame", "regs", "slots")

    def __init__(self, depth: int) -> None:
        self.frame = depth
        self.regs = [0] * (depth + 1)
        self.slots = [0] * (depth + 1)

    def enter(self) -> None:
        """Going back over a return: we are now inside of the function that was called."""
        self.frame += 1
        if self.frame == len(self.regs):
            self.regs.append(0)
            self.slots.append(0)
        else:
            self.regs[self.frame] = self.slots[self.frame] = 0

    def leave(self) -> None:
        """Going back over a call: we are now in the caller."""
        if self.frame == 0:
            raise GaveUp
        self.regs[self.frame] = self.slots[self.frame] = 0
        self.frame -= 1


def mark(code: Code, state: State, *regs: int) -> None:
    """Mark the numbers that some registers of the current frame hold before the current instruction."""
    frame = state.frames[-1]
    wanted = 0
    for reg in regs:
        if frame.regs[reg].__class__ is Scalar:
            wanted |= 1 << reg
    if not wanted:
        return
    back = Backtrack(len(state.frames) - 1)
    back.regs[-1] = wanted
    _walk_back(code, back, state)


def mark_stack(code: Code, state: State, frame: int, index: int) -> None:
    """Mark the number spilled in one stack slot."""
    back = Backtrack(len(state.frames) - 1)
    back.slots[frame] = 1 << index
    _walk_back(code, back, state)


def propagate(code: Code, old: Checkpoint, state: State) -> bool:
    """Mark in the path of `state` what was precise in a checkpoint that it was found equal to."""
    if not any(old.precise_regs) and not any(old.precise_slots):
        return False
    back = Backtrack(len(state.frames) - 1)
    for index, frame in enumerate(state.frames):
        regs, slots = old.precise_regs[index], old.precise_slots[index]
        for reg in bits_of(regs):
            if frame.regs[reg].__class__ is Scalar:
                back.regs[index] |= 1 << reg
        for i in bits_of(slots):
            slot = frame.stack.get(i)
            if slot is not None and slot.value.__class__ is Scalar:
                back.slots[index] |= 1 << i
    if not any(back.regs) and not any(back.slots):
        return False
    return _walk(code, back, state.trace, state.parent, state.slot, state.followed)


def _walk_back(code: Code, back: Backtrack, state: State) -> None:
    """Follow wanted numbers from before the instruction that is being carried out."""
    assert state.trace is not None
    slot, _, older = state.trace
    _walk(code, back, older, state.parent, slot, state.followed)


_ALWAYS: Final = 1 << 11
"""A bit beside those of registers: steps that must be looked at whatever is wanted."""


def _walk(code: Code, back: Backtrack, trace: Any, parent: Checkpoint | None, later: int, followed: Followed) -> bool:
    """
    Follow the wanted numbers back until each is marked or has no source left. `later` is the slot that
    the path goes on with; `followed` is where walks over the same steps came by. True if some mark is new.
    """
    concerns, changes, regs, slots = code.concerns, code.changes, back.regs, back.slots
    has_changed = False
    while True:
        node = trace
        wanted = regs[back.frame] | _ALWAYS
        try:
            while node is not None:
                slot, extra, node = node
                if concerns[slot] & wanted or (
                    extra is not None and (extra.__class__ is not StackStep or slots[extra.frame] & extra.bit)
                ):
                    change = changes[slot]
                    if change is None or extra is not None:
                        _step_back(code, back, slot, extra, later)
                        wanted = regs[back.frame] | _ALWAYS
                    else:
                        wanted = wanted & change[0] | change[1]
                        regs[back.frame] = wanted ^ _ALWAYS
                    if wanted == _ALWAYS and not any(slots) and not any(regs):
                        return has_changed
                    if node is not None and _was_followed(back, node, followed):
                        return has_changed
                later = slot
        except GaveUp:
            return mark_all(parent) or has_changed
        if parent is None or not _mark_checkpoint(back, parent):
            return has_changed
        has_changed = True
        trace, followed, parent = parent.trace, parent.followed, parent.parent


def _was_followed(back: Backtrack, step: Trace, followed: Followed) -> bool:
    """Whether another walk came by behind a step and wanted at least as much; if not, note that this one does."""
    frame = back.frame
    regs, slots = back.regs[frame], back.slots[frame]
    if frame and (sum(map(bool, back.regs)) > bool(regs) or sum(map(bool, back.slots)) > bool(slots)):
        return False
    found = followed.get(id(step))
    if found is not None and found[1] == frame:
        if not regs & ~found[2] and not slots & ~found[3]:
            return True
        regs, slots = regs | found[2], slots | found[3]
    followed[id(step)] = step, frame, regs, slots
    return False


def _concern(code: Code, slot: int, insn: Insn) -> int:
    """Return the registers of which one must be wanted for a step back over a slot to change anything."""
    kind = insn.code & CLASS_MASK
    dst, src = 1 << insn.dst, 1 << insn.src
    if kind == LD:
        return dst if insn.code == LD_IMM64 else _ALWAYS
    if kind == STX and insn.code & MODE_MASK == ATOMIC and insn.imm != LOAD_ACQUIRE:
        return dst | src | 1
    if kind not in (JMP, JMP32):
        return dst
    if is_conditional(insn):
        return dst | src if insn.code & X else 0
    if insn.code in (JA, GOTOL):
        return 0
    is_plain_helper = insn.src == HELPER_CALL and slot not in code.callback_calls
    return CALLER_SAVED if insn.code == CALL and is_plain_helper else _ALWAYS


def _change(insn: Insn) -> tuple[int, int] | None:
    """
    Return what a step back over an instruction that concerns wanted registers makes of them: which it
    keeps, and which it adds. None if there is more to it.
    """
    kind = insn.code & CLASS_MASK
    dst, src = 1 << insn.dst, 1 << insn.src
    if kind in (ALU, ALU64):
        op = insn.code & OPERATION_MASK
        takes_source = insn.code & X and insn.src != 10 and op not in (END, NEG)
        return ~dst if op == MOV else -1, src if takes_source else 0
    if kind == LDX or insn.code == LD_IMM64:
        return ~dst, 0
    if kind == STX and insn.code & MODE_MASK == ATOMIC and insn.imm == LOAD_ACQUIRE:
        return ~dst, 0
    return (-1, dst | src) if is_conditional(insn) else None


def _mark_checkpoint(back: Backtrack, parent: Checkpoint) -> bool:
    """Mark what is wanted in a checkpoint; what was marked already is wanted no more. True if something was not."""
    frames = parent.state.frames
    has_changed = False
    for index in range(len(back.regs)):
        regs, slots = back.regs[index], back.slots[index]
        if index >= len(frames):
            back.regs[index] = back.slots[index] = 0
            continue
        if regs:
            back.regs[index] = regs = regs & parent.numbers[index] & ~parent.precise_regs[index]
            parent.precise_regs[index] |= regs
        if slots:
            slots &= ~parent.precise_slots[index]
            stack = frames[index].stack
            for i in bits_of(slots):
                slot = stack.get(i)
                if slot is None or slot.value.__class__ is not Scalar:
                    slots &= ~(1 << i)
            parent.precise_slots[index] |= slots
            back.slots[index] = slots
        if regs or slots:
            has_changed = True
    return has_changed


def mark_all(parent: Checkpoint | None) -> bool:
    """Mark every number of a checkpoint and of those before it. True if some mark is new."""
    has_changed = False
    while parent is not None:
        for index, frame in enumerate(parent.state.frames):
            regs, slots = parent.numbers[index], 0
            for i, slot in frame.stack.items():
                if isinstance(slot.value, Scalar):
                    slots |= 1 << i
            if regs & ~parent.precise_regs[index] or slots & ~parent.precise_slots[index]:
                has_changed = True
                parent.precise_regs[index] |= regs
                parent.precise_slots[index] |= slots
        parent = parent.parent
    return has_changed


def _link(back: Backtrack, extra: Any) -> None:
    """If one of several linked numbers is wanted, all are: a comparison of one refined the others."""
    members = extra[1]
    for frame, is_slot, index in members:
        if frame < len(back.regs):
            wanted = back.slots[frame] if is_slot else back.regs[frame]
            if wanted >> index & 1:
                break
    else:
        return
    for frame, is_slot, index in members:
        if frame < len(back.regs):
            if is_slot:
                back.slots[frame] |= 1 << index
            else:
                back.regs[frame] |= 1 << index


def _step_back(code: Code, back: Backtrack, slot: int, extra: Any, later: int) -> None:
    insn = code.at[slot]
    assert insn is not None
    if code.concerns[slot] < 0:
        code.concerns[slot], code.changes[slot] = _concern(code, slot, insn), _change(insn)
    frame, change = back.frame, code.changes[slot]
    if change is not None:
        is_linked = extra is not None and extra[0] == "linked"
        if is_linked:
            _link(back, extra)
        if back.regs[frame] & code.concerns[slot]:
            back.regs[frame] = back.regs[frame] & change[0] | change[1]
            if extra.__class__ is StackStep:
                back.slots[extra.frame] |= extra.bit
        if is_linked:
            _link(back, extra)
    elif insn.code & CLASS_MASK in (ST, STX):
        _step_back_store(back, insn, extra, back.regs[frame])
    elif insn.code & CLASS_MASK in (JMP, JMP32):
        _step_back_jump(code, back, slot, insn, extra, later)
    elif back.regs[frame] & CALLER_SAVED:
        raise GaveUp
    elif later != slot + 1:
        # Beyond the end of the packet the function returned from here.
        back.enter()


def _step_back_store(back: Backtrack, insn: Insn, extra: Any, regs: int) -> None:
    is_atomic = insn.code & CLASS_MASK == STX and insn.code & MODE_MASK == ATOMIC
    if regs >> insn.dst & 1:
        raise GaveUp
    if is_atomic and insn.imm != STORE_RELEASE:
        # What a fetching atomic leaves in its register comes from memory.
        fetched = 0 if insn.imm == CMPXCHG else insn.src
        if (insn.imm & FETCH or insn.imm == CMPXCHG) and regs >> fetched & 1:
            regs &= ~(1 << fetched)
            back.regs[back.frame] = regs
    if extra.__class__ is not StackStep:
        return
    if back.slots[extra.frame] & extra.bit:
        back.slots[extra.frame] &= ~extra.bit
        if insn.code & CLASS_MASK == STX:
            back.regs[back.frame] |= 1 << insn.src


def _step_back_jump(code: Code, back: Backtrack, slot: int, insn: Insn, extra: Any, later: int) -> None:
    frame = back.frame
    if insn.code == CALL:
        if insn.src == PSEUDO_CALL and extra != (GLOBAL_CALL,):
            wanted = back.regs[frame]
            back.leave()
            back.regs[back.frame] |= wanted & ARGUMENTS
            return
        if slot in code.callback_calls and later != slot + 1 and later >= 0 and frame > 0:
            # From the first instruction of a callback back to the helper that ran it.
            back.leave()
            return
        back.regs[frame] &= ~1
        if back.regs[frame] & ARGUMENTS:
            raise GaveUp
    elif insn.code == EXIT:
        returned = False
        if later > 0:
            before = code.at[later - 1]
            is_call = before is not None and before.code == CALL
            returned = is_call and bool(back.regs[frame] & 1)
        if later >= 0 and later in code.callback_calls:
            back.regs[frame] &= ~ARGUMENTS
        if back.regs[frame] & ARGUMENTS:
            raise GaveUp
        back.regs[frame] &= ~1
        back.enter()
        if returned:
            back.regs[back.frame] |= 1
