"""
The shape of a program before any state is known: slots, subprograms, jumps, what is reachable,
where states are worth keeping, and which registers are still needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from actplane.asm.insn import Insn
from actplane.asm.isa import (
    CALL,
    CLASS_MASK,
    EXIT,
    GOTOL,
    JA,
    JMP,
    JMP32,
    LD_IMM64,
    MAY_GOTO,
    OP_CALL,
    OP_EXIT,
    OP_JA,
    OPERATION_MASK,
    PSEUDO_CALL,
    PSEUDO_FUNC,
)
from actplane.asm.uapi import HelperId
from actplane.verifier.refusals import refuse

HELPER_CALL: Final = 0
"""The src field of a call of a helper."""

# Helpers that run a function of the program before they return, and those that keep it for later.
SYNC_CALLBACK_HELPERS: Final = frozenset(
    {
        HelperId.bpf_for_each_map_elem,
        HelperId.bpf_find_vma,
        HelperId.bpf_loop,
        HelperId.bpf_user_ringbuf_drain,
    }
)

# Registers as bits: r0 to r5, which a call clobbers, and r1 to r5, which it passes.
CALLER_SAVED: Final = 0b11_1111
ARGUMENTS: Final = 0b11_1110


class Code:
    """
    A program by slots, as the kernel counts.

    `at[slot]` is the instruction, None on the second slot of an ld_imm64; `following[slot]` the slots
    that control goes to from there within its function. `starts` are the first slots of the functions,
    ascending, the entry first; `function_of[slot]` indexes them. `prune` and `checkpoint` hold the slots
    where a state may be, and must be, kept, `jump_points` those that control comes to from elsewhere
    than the slot before. `jumps`
    are all jumps, calls and exits. `roots` are the first slots of functions that the kernel calls, beside the entry.
    """

    def __init__(self, insns: Sequence[Insn], *, allows_loops: bool = True, roots: Sequence[int] = ()) -> None:
        self.at: list[Insn | None] = []
        self.following: list[tuple[int, ...]] = []
        self.jumps: list[int] = []
        self._called: dict[int, int] = {}
        self._read(insns)
        self.size = len(self.at)
        self.roots = roots
        self.starts = self._find_functions()
        self._starts = frozenset(self.starts)
        self.function_of = self._assign_functions()
        self._check_jumps()
        self.prune: set[int] = set()
        self.checkpoint: set[int] = set()
        self.callback_calls: set[int] = set()
        self.may_gotos: set[int] = set()
        self.jump_points: set[int] = set()
        self.iter_next: set[int] = set()
        self._mark()
        self._check_reachable()
        if not allows_loops:
            self._refuse_loops()
        self.concerns = [-1] * self.size
        """Which wanted registers a step back over a slot concerns: see `precision`. -1: not known yet."""

    def is_function(self, slot: int) -> bool:
        return slot in self._starts

    def _read(self, insns: Sequence[Insn]) -> None:
        """Lay the instructions out by slots, and note where each goes."""
        for insn in insns:
            code, slot = insn.code, len(self.at)
            self.at.append(insn)
            if code & CLASS_MASK in (JMP, JMP32):
                self.jumps.append(slot)
                self.following.append(_targets(slot, insn))
            else:
                self.following.append((slot + insn.slots,))
            if insn.slots == 2:
                self.at.append(None)
                self.following.append(())
            if code in (CALL, LD_IMM64):
                target = called_function(slot, insn)
                if target is not None:
                    self._called[slot] = target

    def _find_functions(self) -> list[int]:
        starts = {0, *self.roots}
        for slot, target in self._called.items():
            if not 0 <= target < self.size:
                refuse("bad-call-target", slot, f"the call goes to slot {target}, the program has {self.size}")
            starts.add(target)
        return sorted(starts)

    def _assign_functions(self) -> list[int]:
        owners: list[int] = []
        for index, start in enumerate(self.starts):
            end = self.starts[index + 1] if index + 1 < len(self.starts) else self.size
            owners.extend([index] * (end - start))
        return owners

    def _check_jumps(self) -> None:
        ends = [*self.starts[1:], self.size]
        last = {end - 1 if self.at[end - 1] is not None else end - 2 for end in ends}
        for slot in sorted(last.union(self.jumps)):
            insn = self.at[slot]
            assert insn is not None
            if slot in last and insn.code not in (EXIT, JA, GOTOL):
                refuse("falls-off-end", slot, "the last instruction of a function must be an exit or a jump")
            if insn.code & CLASS_MASK not in (JMP, JMP32) or insn.code in (EXIT, CALL):
                continue
            target = slot + 1 + (insn.imm if insn.code == GOTOL else insn.off)
            if not 0 <= target < self.size or self.function_of[target] != self.function_of[slot]:
                refuse("bad-jump", slot, f"the jump from slot {slot} goes to slot {target}, outside of its function")

    def _mark(self) -> None:
        for slot in self.jumps:
            insn = self.at[slot]
            assert insn is not None
            code = insn.code
            if code in (JA, GOTOL):
                self._mark_jump(self.following[slot][0])
            elif code == CALL:
                self._mark_jump(slot + 1)
                self._mark_call(slot, insn)
            elif code != EXIT:
                self.prune.add(slot)
                self._mark_jump(slot + 1 + insn.off)
                if code == MAY_GOTO:
                    self.checkpoint.add(slot)
                    self.may_gotos.add(slot)
        for slot, target in self._called.items():
            self.prune.add(slot)
            self._mark_jump(self.following[slot][0])
            self._mark_jump(target)

    def _mark_jump(self, target: int) -> None:
        """Note that control may come to a slot from elsewhere than the slot before it."""
        self.prune.add(target)
        self.jump_points.add(target)

    def _mark_call(self, slot: int, insn: Insn) -> None:
        if insn.src == HELPER_CALL and insn.imm in SYNC_CALLBACK_HELPERS:
            self.callback_calls.add(slot)
            self.prune.add(slot)
            self.checkpoint.add(slot)

    def mark_iter_next(self, slot: int) -> None:
        """Note that the call at a slot asks an iterator for its next element."""
        self.iter_next.add(slot)
        self.prune.add(slot)
        self.checkpoint.add(slot)

    def mark_callback_call(self, slot: int) -> None:
        """Note that the kfunc called at a slot runs a callback before it returns."""
        self.callback_calls.add(slot)
        self.prune.add(slot)
        self.checkpoint.add(slot)

    def _check_reachable(self) -> None:
        at, following, called, size = self.at, self.following, self._called, self.size
        seen = bytearray(size)
        work = [0, *self.roots]
        for root in work:
            seen[root] = 1
        while work:
            slot = work.pop()
            targets = following[slot]
            if slot in called:
                targets = (*targets, called[slot])
            for target in targets:
                if target >= size:
                    refuse("falls-off-end", slot, "control runs past the last instruction")
                if at[target] is None:
                    refuse("bad-jump", target, f"the jump from slot {slot} goes into the middle of an ld_imm64")
                if not seen[target]:
                    seen[target] = 1
                    work.append(target)
        for slot, is_seen in enumerate(seen):
            if not is_seen and at[slot] is not None:
                refuse("unreachable", slot, f"no path reaches the instruction at slot {slot}")

    def _refuse_loops(self) -> None:
        """Refuse a way from a slot back to itself, by a walk that goes as deep as it can first."""
        ways: list[tuple[int, list[int]]] = [(0, list(self.following[0]))]
        open_slots, done = {0}, set[int]()
        while ways:
            slot, targets = ways[-1]
            if not targets:
                ways.pop()
                open_slots.discard(slot)
                done.add(slot)
                continue
            target = targets.pop()
            if target in open_slots:
                refuse("loop-not-allowed", slot, f"the jump from slot {slot} back to slot {target} makes a loop")
            if target not in done and target < self.size and self.at[target] is not None:
                open_slots.add(target)
                ways.append((target, list(self.following[target])))


def _targets(slot: int, insn: Insn) -> tuple[int, ...]:
    """Return where a jump, a call or an exit goes within the same function."""
    code = insn.code
    if code == EXIT:
        return ()
    if code == JA:
        return (slot + 1 + insn.off,)
    if code == GOTOL:
        return (slot + 1 + insn.imm,)
    if is_conditional(insn):
        return (slot + 1, slot + 1 + insn.off)
    return (slot + 1,)


def is_conditional(insn: Insn) -> bool:
    """Whether the instruction is a jump that may also fall through."""
    if insn.code & CLASS_MASK not in (JMP, JMP32):
        return False
    return insn.code & OPERATION_MASK not in (OP_JA, OP_CALL, OP_EXIT)


def called_function(slot: int, insn: Insn) -> int | None:
    """Return the slot of the function that an instruction calls or takes the address of."""
    if insn.code == CALL and insn.src == PSEUDO_CALL:
        return slot + 1 + insn.imm
    if insn.code == LD_IMM64 and insn.src == PSEUDO_FUNC:
        low = insn.imm & 0xFFFFFFFF
        return slot + 1 + (low - (1 << 32) if low >> 31 else low)
    return None
