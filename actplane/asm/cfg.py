"""
Control flow: where instructions lead, as basic blocks with edges, one graph for each function.

`build_graph` cuts a program into blocks. What follows from the graph (dominators, loops, dead code,
live registers) is in `cfg_flow`, its pictures are in `cfg_draw`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from actplane.asm.insn import FunctionAddress, Insn, Label, Subprogram, form_of
from actplane.asm.isa import PSEUDO_FUNC, Form, Kind
from actplane.asm.program import Program
from actplane.errors import ActplaneError

ENTRY_NAME = "main"
_LEAVES = (Kind.EXIT,)
_GOES = (Kind.JA, Kind.GOTOL, Kind.GOTOX)
_BRANCHES = (Kind.JUMP, Kind.MAY_GOTO)
_NAMES_FUNCTION = (Kind.CALL_SUBPROGRAM, Kind.LD_IMM64)


class FlowError(ActplaneError):
    """Control flow that no machine can follow: a jump to nowhere, a program that runs off its end."""

    def __init__(self, insn_index: int, message: str) -> None:
        super().__init__(f"insn {insn_index}: {message}")
        self.insn_index = insn_index


class EdgeKind(Enum):
    """How control gets from one block to the next."""

    NEXT = "next"
    """To the instruction below."""
    TAKEN = "taken"
    """A condition holds."""
    JUMP = "jump"
    """Always."""
    INDIRECT = "indirect"
    """If a register has its address."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A way out of a block: the index of the block it leads to, and how."""

    target: int
    kind: EdgeKind


@dataclass(frozen=True, slots=True)
class Block:
    """
    Instructions that run one after the other or not at all.

    Units:  `start` and `end` are indexes into the instructions (not slots), `end` exclusive.
    """

    index: int
    start: int
    end: int
    edges: tuple[Edge, ...]

    @property
    def name(self) -> str:
        return f"b{self.index}"

    @property
    def successors(self) -> tuple[int, ...]:
        return tuple(edge.target for edge in self.edges)


@dataclass(frozen=True, slots=True)
class Function:
    """The entry or a subprogram: its name, the index of its entry block, all its reachable blocks."""

    name: str
    entry: int
    blocks: tuple[int, ...]
    calls: tuple[int, ...]
    """Indexes of the first instructions of the functions it calls or takes the address of."""


@dataclass(frozen=True, slots=True)
class Graph:
    """The control flow of one program."""

    insns: tuple[Insn, ...]
    forms: tuple[Form, ...]
    blocks: tuple[Block, ...]
    functions: tuple[Function, ...]
    targets: Mapping[int, int]
    """Index of every jump, subprogram call and function address to that of the instruction it leads to."""
    open_jumps: tuple[int, ...] = ()
    """Indexes of the indirect jumps of which nothing says where they lead; they have no edges."""

    @property
    def unreached(self) -> tuple[int, ...]:
        """The indexes of blocks that no edges lead to from the start of a function."""
        live = {block for function in self.functions for block in function.blocks}
        return tuple(block.index for block in self.blocks if block.index not in live)

    @property
    def dead(self) -> tuple[int, ...]:
        """The indexes of blocks that can never run: those unreached, unless an open jump may lead there."""
        return () if self.open_jumps else self.unreached

    @property
    def dead_insns(self) -> tuple[int, ...]:
        """The indexes of instructions that can never run."""
        return tuple(index for block in self.dead for index in range(*self.span(block)))

    def span(self, block: int) -> tuple[int, int]:
        """Return the first and one past the last instruction of a block."""
        return self.blocks[block].start, self.blocks[block].end

    def block_at(self, insn_index: int) -> Block:
        """Return the block that an instruction is in."""
        return next(block for block in self.blocks if block.start <= insn_index < block.end)

    def predecessors(self) -> dict[int, list[int]]:
        """Return for each block the blocks that lead to it."""
        before: dict[int, list[int]] = {block.index: [] for block in self.blocks}
        for block in self.blocks:
            for target in dict.fromkeys(block.successors):
                before[target].append(block.index)
        return before


class _Slots:
    """From slots, in which jumps count, to instructions, in which everything else does."""

    def __init__(self, insns: Sequence[Insn]) -> None:
        self.of_insn: list[int] = []
        slot = 0
        for insn in insns:
            self.of_insn.append(slot)
            slot += insn.slots
        self.insn_at = {slot: index for index, slot in enumerate(self.of_insn)}
        self.end = slot

    def target(self, insns: Sequence[Insn], index: int, distance: int) -> int:
        """Return the instruction `distance` slots behind the one after `index`."""
        return self.start(index, self.of_insn[index] + insns[index].slots + distance)

    def start(self, index: int, slot: int) -> int:
        """Return the instruction at a slot, to which the one at `index` leads."""
        if slot not in self.insn_at:
            where = "the middle of ld_imm64" if 0 <= slot < self.end else f"slot {slot} of {self.end}"
            raise FlowError(index, f"jumps to {where}: expected the start of an instruction")
        return self.insn_at[slot]


def _target(insns: Sequence[Insn], forms: Sequence[Form], index: int, slots: _Slots) -> int | None:
    """Return the instruction that a jump, a call or a function's address leads to, None for others."""
    kind, insn = forms[index].kind, insns[index]
    if isinstance(insn.symbol, Label | Subprogram | FunctionAddress):
        raise FlowError(index, f"{insn.symbol!r} is not resolved: resolve() does it")
    if kind in _BRANCHES or kind is Kind.JA:
        return slots.target(insns, index, insn.off)
    if kind is Kind.GOTOL or kind is Kind.CALL_SUBPROGRAM:
        return slots.target(insns, index, insn.imm)
    if kind is Kind.LD_IMM64 and insn.src == PSEUDO_FUNC:
        # The kernel counts this one like a call that stands in the first of the two slots.
        return slots.target(insns, index, insn.imm - 1)
    return None


def build_graph(
    program: Program | Iterable[Insn], functions: Mapping[int, str] | None = None, *, jump_slots: Iterable[int] = ()
) -> Graph:
    """
    Cut a program into basic blocks.

    A block ends at jumps and exits and before every target of a jump; calls do not end it. Labels
    and functions must be resolved to offsets; what only the loader knows may still be symbols.
    `jump_slots` are the slots that the program's jump tables hold (see `jump_tables`): an indirect jump
    may lead to each of them that is in its function, as kernels have it when they check the flow.

    Raises: EncodeError for an invalid instruction; FlowError for a label that is not resolved, a jump
            to where no instruction starts, or a path that runs off the end.

    >>> from actplane.asm.insn import Insn
    >>> graph = build_graph([Insn(0xB7), Insn(0x15, 0, off=1), Insn(0xB7, imm=1), Insn(0x95)])
    >>> [(block.start, block.end, block.successors) for block in graph.blocks]
    [(0, 2, (2, 1)), (2, 3, (2,)), (3, 4, ())]
    """
    if isinstance(program, Program):
        insns, names = program.insns, {0: program.name} | dict(program.functions)
    else:
        insns, names = tuple(program), {0: ENTRY_NAME} | dict(functions or {})
    if not insns:
        raise FlowError(0, "no instructions: expected at least an exit")
    forms = tuple(form_of(insn) for insn in insns)
    slots = _Slots(insns)
    found = ((index, _target(insns, forms, index, slots)) for index in range(len(insns)))
    targets = {index: target for index, target in found if target is not None}
    starts = dict(names)
    for index, target in targets.items():
        if forms[index].kind in _NAMES_FUNCTION:
            starts.setdefault(target, f"f{target}")
    indirect = _indirect(forms, slots, sorted(starts), jump_slots)
    blocks = _cut(forms, targets, indirect, set(starts))
    open_jumps = tuple(index for index, leads in indirect.items() if not leads)
    return Graph(insns, forms, blocks, _functions(forms, targets, blocks, starts), targets, open_jumps)


def _indirect(
    forms: Sequence[Form], slots: _Slots, starts: Sequence[int], jump_slots: Iterable[int]
) -> dict[int, list[int]]:
    """Return for every indirect jump the instructions that it may lead to."""
    jumps = [index for index, form in enumerate(forms) if form.kind is Kind.GOTOX]
    leads = sorted({slots.start(jumps[0], slot) for slot in jump_slots}) if jumps else []
    functions = [bisect_right(starts, lead) for lead in leads]
    return {
        jump: [lead for lead, function in zip(leads, functions, strict=True) if function == bisect_right(starts, jump)]
        for jump in jumps
    }


def _cut(
    forms: Sequence[Form], targets: Mapping[int, int], indirect: Mapping[int, Sequence[int]], starts: set[int]
) -> tuple[Block, ...]:
    leaders = starts.union(*indirect.values())
    for index, form in enumerate(forms):
        if form.kind in _GOES or form.kind in _BRANCHES or form.kind in _LEAVES:
            leaders.add(index + 1)
            if index in targets:
                leaders.add(targets[index])
    ordered = sorted(leader for leader in leaders if leader < len(forms))
    block_at = {start: index for index, start in enumerate(ordered)}
    blocks = []
    for index, start in enumerate(ordered):
        end = ordered[index + 1] if index + 1 < len(ordered) else len(forms)
        kind, target = forms[end - 1].kind, targets.get(end - 1)
        edges = []
        if target is not None and kind in _BRANCHES:
            edges.append(Edge(block_at[target], EdgeKind.TAKEN))
        elif target is not None and kind in _GOES:
            edges.append(Edge(block_at[target], EdgeKind.JUMP))
        edges.extend(Edge(block_at[lead], EdgeKind.INDIRECT) for lead in indirect.get(end - 1, ()))
        if kind not in _GOES and kind not in _LEAVES:
            if end == len(forms):
                raise FlowError(end - 1, "the program runs off its end: expected exit or a jump back")
            edges.append(Edge(block_at[end], EdgeKind.NEXT))
        blocks.append(Block(index, start, end, tuple(edges)))
    return tuple(blocks)


def _functions(
    forms: Sequence[Form], targets: Mapping[int, int], blocks: Sequence[Block], starts: Mapping[int, str]
) -> tuple[Function, ...]:
    """Follow calls from the entry; a subprogram that nobody reaches is dead code, not a function."""
    block_at = {block.start: block.index for block in blocks}
    found: dict[int, Function] = {}
    waiting = [0]
    while waiting:
        start = waiting.pop()
        if start in found:
            continue
        reached = _reach(blocks, block_at[start])
        calls = dict.fromkeys(
            targets[index]
            for block in reached
            for index in range(blocks[block].start, blocks[block].end)
            if index in targets and forms[index].kind in _NAMES_FUNCTION
        )
        found[start] = Function(starts[start], block_at[start], reached, tuple(calls))
        waiting.extend(calls)
    return tuple(found[start] for start in sorted(found))


def _reach(blocks: Sequence[Block], entry: int) -> tuple[int, ...]:
    reached = {entry}
    waiting = [entry]
    while waiting:
        for target in blocks[waiting.pop()].successors:
            if target not in reached:
                reached.add(target)
                waiting.append(target)
    return tuple(sorted(reached))
