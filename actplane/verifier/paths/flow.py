"""
The shape of a program before any state is known: slots, subprograms, jumps and the blocks between
them, what is reachable, and where states are worth keeping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from enum import Enum, auto
from itertools import compress, pairwise
from operator import attrgetter
from typing import Final, NamedTuple

from actplane.asm.insn import Insn
from actplane.asm.isa import (
    CALL,
    CLASS_MASK,
    EXIT,
    GOTOL,
    GOTOX,
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
from actplane.verifier.tables.refusals import refuse

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

_JUMPS: Final = frozenset(code for code in range(256) if code & CLASS_MASK in (JMP, JMP32))
_INDIRECT: Final = frozenset({GOTOX})
_MAY_END: Final = frozenset({EXIT, JA, GOTOL, GOTOX})
"""Opcodes of instructions that a function may end with."""
_NO_DISTANCE: Final = frozenset({EXIT, CALL, GOTOX})
"""Opcodes of jumps that go nowhere by the distance in them."""
NAMES_FUNCTION: Final = frozenset({CALL, LD_IMM64})
"""Opcodes of instructions that may call a function, or take the address of one of the program."""


class Layout:
    """
    A program by slots, as the kernel counts: `at[slot]` is the instruction, None on the second slot of
    an ld_imm64, `opcodes[slot]` its opcode, 0 on such a second slot, as in the kernel. `addresses` are the
    slots of those ld_imm64 that load more than a number.
    """

    def __init__(self, insns: Sequence[Insn]) -> None:
        self.at: list[Insn | None] = []
        self.addresses: list[int] = []
        for insn in insns:
            self.at.append(insn)
            if insn.code == LD_IMM64:
                if insn.src or insn.symbol is not None:
                    self.addresses.append(len(self.at) - 1)
                self.at.append(None)
        self.size = len(self.at)
        try:
            opcodes = bytes(map(attrgetter("code"), insns))
        except ValueError:
            slot, insn = next((i, insn) for i, insn in enumerate(self.at) if insn and not 0 <= insn.code < 256)
            refuse("bad-instruction", slot, f"there is no opcode {insn.code:#x}")
        self.opcodes = opcodes.replace(bytes([LD_IMM64]), bytes([LD_IMM64, 0]))
        self._present = frozenset(opcodes)

    def insns_of(self, opcodes: Set[int]) -> Iterator[tuple[int, Insn]]:
        """Yield the instructions that have one of some opcodes, each behind its slot, from the first on."""
        present = opcodes & self._present
        if not present:
            return
        table = bytearray(256)
        for code in present:
            table[code] = 1
        for slot in compress(range(self.size), self.opcodes.translate(table)):
            insn = self.at[slot]
            assert insn is not None
            yield slot, insn


class Block(NamedTuple):
    """
    Instructions of which control reaches all or none: the slots of the first and of the last, and
    those where control goes on within the function.
    """

    first: int
    last: int
    following: tuple[int, ...]


class Loops(Enum):
    """Which ways from an instruction back to itself a program may have."""

    NONE = auto()
    BY_JUMPS = auto()
    """Those of which the last step is a jump."""
    ALLOWED = auto()


class Code:
    """
    A program by slots, and how control goes through it.

    `jumps` are all jumps, calls and exits, ascending, and `following[slot]` the slots that control goes
    to from one of them within its function; `called` the function that an instruction calls or takes
    the address of, by slot. `starts` are the first slots of the functions, ascending, the entry first;
    `function_of[slot]` indexes them. `blocks` are the blocks by their first slots, ascending. `prune` and
    `checkpoint` hold the slots where a state may be, and must be, kept, `jump_points` those that control
    comes to from elsewhere than the slot before. `roots` are the first slots of functions that the
    kernel calls, beside the entry, and `tables` what the jump tables of the program hold.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        loops: Loops = Loops.ALLOWED,
        roots: Sequence[int] = (),
        tables: Sequence[Sequence[int]] = (),
    ) -> None:
        self.layout = layout
        self.at = layout.at
        self.size = layout.size
        self.following = {slot: _targets(slot, insn) for slot, insn in layout.insns_of(_JUMPS)}
        self.jumps = list(self.following)
        self.called: dict[int, int] = {}
        for slot in sorted([*layout.addresses, *self.jumps]):
            target = called_function(slot, self._insn(slot))
            if target is not None:
                self.called[slot] = target
        self.roots = roots
        self.starts = self._find_functions()
        self._starts = frozenset(self.starts)
        self.function_of = self._assign_functions()
        self._astray: dict[int, str] = {}
        """Indirect jumps that no table serves, by slot, and why."""
        for slot, _ in layout.insns_of(_INDIRECT):
            self.following[slot] = self._indirect_targets(slot, tables)
        self._check_jumps()
        self.prune: set[int] = set()
        self.checkpoint: set[int] = set()
        self.callback_calls: set[int] = set()
        self.may_gotos: set[int] = set()
        self.jump_points: set[int] = set()
        self.iter_next: set[int] = set()
        self._mark()
        self.blocks = self._find_blocks()
        self._check_reachable()
        if loops is not Loops.ALLOWED:
            self._refuse_loops(only_falling=loops is Loops.BY_JUMPS)
        self.concerns = [-1] * self.size
        """Which wanted registers a step back over a slot concerns: see `precision`. -1: not known yet."""
        self.changes: list[tuple[int, int] | None] = [None] * self.size
        """What such a step makes of them, where that is as simple: which it keeps, and which it adds."""

    def is_function(self, slot: int) -> bool:
        return slot in self._starts

    def _insn(self, slot: int) -> Insn:
        """Return the instruction at a slot that is known to be the first of one."""
        insn = self.at[slot]
        assert insn is not None
        return insn

    def _find_functions(self) -> list[int]:
        starts = {0, *self.roots}
        for slot, target in self.called.items():
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

    def _indirect_targets(self, slot: int, tables: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """
        Return where an indirect jump may go: all places of the tables whose first place in the program is
        in its function. Every other place of these has to be there, too.
        """
        function = self.function_of[slot]
        found: set[int] = set()
        for places in tables:
            if self.function_of[min(places)] == function:
                found.update(places)
        if not found:
            self._astray[slot] = f"no jump table leads into the function at slot {self.starts[function]}"
        outside = next((place for place in sorted(found) if self.function_of[place] != function), None)
        if outside is not None:
            self._astray[slot] = f"a jump table of this function leads to slot {outside}, outside of it"
        return () if slot in self._astray else tuple(sorted(found))

    def _check_jumps(self) -> None:
        ends = [*self.starts[1:], self.size]
        last = {end - 1 if self.at[end - 1] is not None else end - 2 for end in ends}
        for slot in sorted(last.union(self.jumps)):
            insn = self._insn(slot)
            if slot in last and insn.code not in _MAY_END:
                refuse("falls-off-end", slot, "the last instruction of a function must be an exit or a jump")
            if insn.code & CLASS_MASK not in (JMP, JMP32) or insn.code in _NO_DISTANCE:
                continue
            target = slot + 1 + (insn.imm if insn.code == GOTOL else insn.off)
            if not 0 <= target < self.size or self.function_of[target] != self.function_of[slot]:
                refuse("bad-jump", slot, f"the jump from slot {slot} goes to slot {target}, outside of its function")

    def _mark(self) -> None:
        for slot in self.jumps:
            insn = self._insn(slot)
            code = insn.code
            if code in (JA, GOTOL):
                self._mark_jump(self.following[slot][0])
            elif code == CALL:
                self._mark_jump(slot + 1)
                self._mark_call(slot, insn)
            elif code == GOTOX:
                self.prune.add(slot)
                self.jump_points.update(self.following[slot])
            elif code != EXIT:
                self.prune.add(slot)
                self._mark_jump(slot + 1 + insn.off)
                if code == MAY_GOTO:
                    self.checkpoint.add(slot)
                    self.may_gotos.add(slot)
        for slot, target in self.called.items():
            self.prune.add(slot)
            self._mark_jump(self._after(slot))
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

    def _after(self, slot: int) -> int:
        """Return the slot behind an instruction."""
        return slot + self._insn(slot).slots

    def _find_blocks(self) -> dict[int, Block]:
        """Cut the functions before every slot that is jumped to, and behind what goes elsewhere."""
        cuts = {0, self.size, *self.starts, *(self._after(slot) for slot in self.called)}
        for slot, targets in self.following.items():
            cuts.update(target for target in targets if self.at[target] is not None)
            cuts.add(slot + 1)
        firsts = sorted(cuts)
        blocks: dict[int, Block] = {}
        for first, end in pairwise(firsts):
            last = end - 1 if self.at[end - 1] is not None else end - 2
            blocks[first] = Block(first, last, self.following.get(last, (end,)))
        return blocks

    def _check_reachable(self) -> None:
        seen = {0, *self.roots}
        work = [0, *self.roots]
        while work:
            block = self.blocks[work.pop()]
            if block.last in self._astray:
                refuse("jump-table", block.last, self._astray[block.last])
            targets = block.following
            if block.last in self.called:
                targets = (*targets, self.called[block.last])
            for target in targets:
                if self.at[target] is None:
                    refuse("bad-jump", target, f"the jump from slot {block.last} goes into the middle of an ld_imm64")
                if target not in seen:
                    seen.add(target)
                    work.append(target)
        for first in self.blocks:
            if first not in seen:
                refuse("unreachable", first, f"no path reaches the instruction at slot {first}")

    def _refuse_loops(self, *, only_falling: bool) -> None:
        """
        Refuse a way from a block back to itself, by a walk that goes as deep as it can first; or only one
        that comes back without a jump, into the middle of a loop.
        """
        ways: list[tuple[Block, list[int]]] = [(self.blocks[0], list(reversed(self.blocks[0].following)))]
        open_blocks, done = {0}, set[int]()
        while ways:
            block, targets = ways[-1]
            if not targets:
                ways.pop()
                open_blocks.discard(block.first)
                done.add(block.first)
                continue
            target = targets.pop()
            if target in open_blocks:
                if self._insn(block.last).code not in _JUMPS - NAMES_FUNCTION:
                    claim = f"behind slot {block.last} a loop goes on that was entered at slot {target}"
                    refuse("loop-not-allowed", block.last, claim)
                if not only_falling:
                    claim = f"the jump from slot {block.last} back to slot {target} makes a loop"
                    refuse("loop-not-allowed", block.last, claim)
            elif target not in done:
                open_blocks.add(target)
                ways.append((self.blocks[target], list(reversed(self.blocks[target].following))))


def _targets(slot: int, insn: Insn) -> tuple[int, ...]:
    """Return where a jump, a call or an exit goes within the same function, as far as the instruction says."""
    code = insn.code
    if code in (EXIT, GOTOX):
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
