"""
The shape of a program before any state is known: slots, subprograms, jumps, what is reachable,
where states are worth keeping, and which registers are still needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

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
    IND,
    JA,
    JMP,
    JMP32,
    LD,
    LD_IMM64,
    LDX,
    LOAD_ACQUIRE,
    MAY_GOTO,
    MODE_MASK,
    MOV,
    NEG,
    OP_CALL,
    OP_EXIT,
    OP_JA,
    OPERATION_MASK,
    PSEUDO_CALL,
    PSEUDO_FUNC,
    ST,
    STORE_RELEASE,
    STX,
    X,
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

    `at[slot]` is the instruction, None on the second slot of an ld_imm64. `starts` are the first
    slots of the functions, ascending, the entry first; `function_of[slot]` indexes them. `prune` and
    `checkpoint` hold the slots where a state may be, and must be, kept, `jump_points` those that other
    slots jump to; `live[slot]` is the set of
    registers (as bits) whose value is still needed before the slot. `roots` are the first slots of
    functions that the kernel calls, beside the entry.
    """

    def __init__(self, insns: Sequence[Insn], *, allows_loops: bool = True, roots: Sequence[int] = ()) -> None:
        self.at: list[Insn | None] = []
        for insn in insns:
            self.at.append(insn)
            if insn.code == LD_IMM64:
                self.at.append(None)
        self.size = len(self.at)
        self.roots = roots
        self.starts = self._find_functions()
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
        self.live = self._find_live()
        self.concerns = [-1] * self.size
        """Which wanted registers a step back over a slot concerns: see `precision`. -1: not known yet."""

    def is_function(self, slot: int) -> bool:
        return slot in self.starts

    def successors(self, slot: int) -> tuple[int, ...]:
        """Return where control goes next within the same function."""
        insn = self.at[slot]
        assert insn is not None
        code = insn.code
        if code == EXIT:
            return ()
        if code == JA:
            return (slot + 1 + insn.off,)
        if code == GOTOL:
            return (slot + 1 + insn.imm,)
        if is_conditional(insn):
            return (slot + 1, slot + 1 + insn.off)
        return (slot + insn.slots,)

    def _find_functions(self) -> list[int]:
        starts = {0, *self.roots}
        for slot, insn in enumerate(self.at):
            if insn is None:
                continue
            target = called_function(slot, insn)
            if target is not None:
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
        for slot, insn in enumerate(self.at):
            if insn is None:
                continue
            is_last = slot + insn.slots >= self.size or self.function_of[slot] != self.function_of[slot + insn.slots]
            if is_last and insn.code not in (EXIT, JA, GOTOL):
                refuse("falls-off-end", slot, "the last instruction of a function must be an exit or a jump")
            if insn.code & CLASS_MASK not in (JMP, JMP32) or insn.code in (EXIT, CALL):
                continue
            target = slot + 1 + (insn.imm if insn.code == GOTOL else insn.off)
            if not 0 <= target < self.size or self.function_of[target] != self.function_of[slot]:
                refuse("bad-jump", slot, f"the jump from slot {slot} goes to slot {target}, outside of its function")

    def _mark(self) -> None:
        for slot, insn in enumerate(self.at):
            if insn is None:
                continue
            code = insn.code
            if code in (JA, GOTOL):
                self._mark_jump(self.successors(slot)[0])
            elif is_conditional(insn):
                self.prune.add(slot)
                self._mark_jump(slot + 1 + insn.off)
                if code == MAY_GOTO:
                    self.checkpoint.add(slot)
                    self.may_gotos.add(slot)
            elif code == CALL:
                self._mark_jump(slot + 1)
                self._mark_call(slot, insn)
            target = called_function(slot, insn)
            if target is not None:
                self.prune.add(slot)
                self._mark_jump(slot + insn.slots)
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
        seen = bytearray(self.size)
        work = [0, *self.roots]
        for root in work:
            seen[root] = 1
        while work:
            slot = work.pop()
            insn = self.at[slot]
            assert insn is not None
            targets: Iterable[int] = self.successors(slot)
            called = called_function(slot, insn)
            if called is not None:
                targets = (*targets, called)
            for target in targets:
                if target >= self.size:
                    refuse("falls-off-end", slot, "control runs past the last instruction")
                if self.at[target] is None:
                    refuse("bad-jump", target, f"the jump from slot {slot} goes into the middle of an ld_imm64")
                if not seen[target]:
                    seen[target] = 1
                    work.append(target)
        for slot, insn in enumerate(self.at):
            if insn is not None and not seen[slot]:
                refuse("unreachable", slot, f"no path reaches the instruction at slot {slot}")

    def _refuse_loops(self) -> None:
        """Refuse a way from a slot back to itself, by a walk that goes as deep as it can first."""
        ways: list[tuple[int, list[int]]] = [(0, list(self.successors(0)))]
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
                ways.append((target, list(self.successors(target))))

    def _find_live(self) -> list[int]:
        """
        Return the registers needed before each slot: the classic backward data flow, to a fixpoint.
        """
        effects = [_use_and_def(insn) if insn is not None else (0, 0) for insn in self.at]
        next_slots = [self.successors(s) if self.at[s] is not None else () for s in range(self.size)]
        live = [0] * self.size
        is_changed = True
        while is_changed:
            is_changed = False
            for slot in range(self.size - 1, -1, -1):
                if self.at[slot] is None:
                    continue
                out = 0
                for target in next_slots[slot]:
                    out |= live[target]
                use, define = effects[slot]
                before = (out & ~define) | use
                if before != live[slot]:
                    live[slot] = before
                    is_changed = True
        return live


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


def _use_and_def(insn: Insn) -> tuple[int, int]:
    """Return the registers that an instruction reads and those that it replaces, as bits."""
    code, dst, src = insn.code, 1 << insn.dst, 1 << insn.src
    kind = code & CLASS_MASK
    if kind == LD:
        if code == LD_IMM64:
            return 0, dst
        # LD_ABS and LD_IND read the context in r6 and clobber what a call does.
        return (1 << 6) | (src if code & MODE_MASK == IND else 0), CALLER_SAVED
    if kind == LDX:
        return src, dst
    if kind == ST:
        return dst, 0
    if kind == STX:
        if code & MODE_MASK != ATOMIC:
            return dst | src, 0
        return _atomic_use_and_def(insn, dst, src)
    if kind in (ALU, ALU64):
        return _alu_use_and_def(code, dst, src)
    if code == CALL:
        return ARGUMENTS, CALLER_SAVED
    if code == EXIT:
        return 1, 0
    if code in (JA, GOTOL, MAY_GOTO):
        return 0, 0
    return dst | (src if code & X else 0), 0


def _atomic_use_and_def(insn: Insn, dst: int, src: int) -> tuple[int, int]:
    if insn.imm == CMPXCHG:  # cmpxchg compares with r0 and leaves the old value there
        return dst | src | 1, 1
    if insn.imm == LOAD_ACQUIRE:
        return src, dst
    if insn.imm == STORE_RELEASE:
        return dst | src, 0
    return dst | src, src if insn.imm & FETCH else 0


def _alu_use_and_def(code: int, dst: int, src: int) -> tuple[int, int]:
    op = code & OPERATION_MASK
    if op == MOV:
        return (src if code & X else 0), dst
    if op in (END, NEG):
        return dst, dst
    return dst | (src if code & X else 0), dst
