"""
What a function of the bytecode IR does to its values: which operation reads and writes what, which
blocks follow which, what is still needed where.

Sets of values are masks: bit i is the i-th value of `Flow.values`. Functions have thousands of
values, and a union of two masks is one operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from actplane.errors import InternalError
from actplane.ir import bytecode as bc
from actplane.ir.bytecode import Value

Call = bc.CallHelper | bc.CallFunction

_OPERANDS: dict[type[bc.Operation | bc.Terminator], tuple[str, ...]] = {
    bc.Move: ("a",),
    bc.Binary: ("a", "b"),
    bc.ToBigEndian: ("a",),
    bc.Load: ("base",),
    bc.Store: ("base", "value"),
    bc.Atomic: ("base", "value"),
    bc.AddFieldOffset: ("a",),
    bc.EnumConstant: (),
    bc.MapAddress: (),
    bc.MapValueAddress: (),
    bc.FrameAddress: (),
    bc.FunctionReference: (),
    bc.CallHelper: (),
    bc.CallFunction: (),
    bc.Jump: (),
    bc.Branch: ("a", "b"),
    bc.Return: ("value",),
}


def reads(operation: bc.Operation | bc.Terminator) -> tuple[Value, ...]:
    """Return the values an operation reads, in the order of its operands."""
    operands = tuple(getattr(operation, name) for name in _OPERANDS[type(operation)])
    if isinstance(operation, bc.CallHelper | bc.CallFunction):
        operands = operation.arguments
    return tuple(operand for operand in operands if isinstance(operand, Value))


def written(operation: bc.Operation) -> Value | None:
    """Return the value an operation writes."""
    return None if isinstance(operation, bc.Store) else operation.dst


def has_effect(operation: bc.Operation) -> bool:
    """Whether an operation does more than write its value."""
    return isinstance(operation, bc.Store | bc.Atomic | bc.CallHelper | bc.CallFunction)


def successors(terminator: bc.Terminator) -> tuple[str, ...]:
    """Return the names of the blocks that can follow."""
    match terminator:
        case bc.Jump(block):
            return (block,)
        case bc.Branch():
            return (terminator.then, terminator.otherwise)
        case bc.Return():
            return ()


def thread_jumps(function: bc.Function) -> bc.Function:
    """
    Return the function with jumps to mere jumps going where those go, and without unreachable blocks.

    Raises: InternalError if a block is named twice or not defined.
    """
    blocks = {block.name: block for block in function.blocks}
    if len(blocks) != len(function.blocks):
        raise InternalError("a block name is used twice", function=function.name)

    def destination(name: str) -> str:
        seen = {name}
        while True:
            block = blocks.get(name)
            if block is None:
                raise InternalError("jump to a block that does not exist", function=function.name, block=name)
            if block.operations or not isinstance(block.terminator, bc.Jump) or block.terminator.block in seen:
                return name
            name = block.terminator.block
            seen.add(name)

    def threaded(terminator: bc.Terminator) -> bc.Terminator:
        if isinstance(terminator, bc.Jump):
            return bc.Jump(destination(terminator.block))
        if isinstance(terminator, bc.Branch):
            then, otherwise = destination(terminator.then), destination(terminator.otherwise)
            return bc.Jump(then) if then == otherwise else replace(terminator, then=then, otherwise=otherwise)
        return terminator

    blocks = {name: replace(block, terminator=threaded(block.terminator)) for name, block in blocks.items()}
    reached = {function.blocks[0].name}
    todo = list(reached)
    while todo:
        for name in successors(blocks[todo.pop()].terminator):
            if name not in reached:
                reached.add(name)
                todo.append(name)
    return replace(function, blocks=tuple(block for name, block in blocks.items() if name in reached))


@dataclass(frozen=True, slots=True)
class Step:
    """One operation that is worth executing, and the values needed after it."""

    operation: bc.Operation
    live_after: int


@dataclass(frozen=True, slots=True)
class _Fact:
    """What an operation does to values, as masks."""

    written: int
    read: int
    has_effect: bool


class Flow:
    """
    Liveness of a function. Operations without effect whose value nobody needs are left out.

    Raises: InternalError if a value may be read before it is written.
    """

    def __init__(self, function: bc.Function) -> None:
        self.function = function
        self.values: list[Value] = []
        self.index: dict[Value, int] = {}
        for value in function.parameters:
            self._number(value)
        self._facts = {block.name: [self._fact(each) for each in block.operations] for block in function.blocks}
        self._ends = {block.name: self._read_mask(block.terminator) for block in function.blocks}
        self.live_in: dict[str, int] = dict.fromkeys(self._facts, 0)
        is_stable = False
        while not is_stable:
            is_stable = True
            for block in reversed(function.blocks):
                live = self.live_out(block)
                for fact in reversed(self._facts[block.name]):
                    if fact.has_effect or fact.written & live:
                        live = live & ~fact.written | fact.read
                if live != self.live_in[block.name]:
                    self.live_in[block.name] = live
                    is_stable = False
        undefined = self.live_in[function.blocks[0].name] & ~self.mask(function.parameters)
        if undefined:
            names = ", ".join(map(repr, self.members(undefined)))
            raise InternalError("values may be read before they are written", function=function.name, values=names)

    def mask(self, values: Iterable[Value]) -> int:
        """Return values as a mask."""
        mask = 0
        for value in values:
            mask |= 1 << self.index[value]
        return mask

    def members(self, mask: int) -> list[Value]:
        """Return the values of a mask."""
        return [self.values[bit] for bit in bits(mask)]

    def live_out(self, block: bc.Block) -> int:
        """Return what is needed at the end of a block, its terminator's operands included."""
        live = self._ends[block.name]
        for name in successors(block.terminator):
            live |= self.live_in[name]
        return live

    def steps(self, block: bc.Block) -> list[Step]:
        """Return the operations of a block that are worth executing, in order."""
        live = self.live_out(block)
        steps: list[Step] = []
        for operation, fact in zip(reversed(block.operations), reversed(self._facts[block.name]), strict=True):
            if fact.has_effect or fact.written & live:
                steps.append(Step(operation, live))
                live = live & ~fact.written | fact.read
        steps.reverse()
        return steps

    def _number(self, value: Value) -> int:
        index = self.index.setdefault(value, len(self.values))
        if index == len(self.values):
            self.values.append(value)
        return index

    def _read_mask(self, operation: bc.Operation | bc.Terminator) -> int:
        mask = 0
        for value in reads(operation):
            mask |= 1 << self._number(value)
        return mask

    def _fact(self, operation: bc.Operation) -> _Fact:
        dst = written(operation)
        return _Fact(0 if dst is None else 1 << self._number(dst), self._read_mask(operation), has_effect(operation))


def loop_depths(function: bc.Function) -> dict[str, int]:
    """Return for each block how many loops it is in, at most 4."""
    following = {block.name: successors(block.terminator) for block in function.blocks}
    preceding: dict[str, list[str]] = {name: [] for name in following}
    for name, others in following.items():
        for other in others:
            preceding[other].append(name)
    bodies: dict[str, set[str]] = {}
    for tail, head in _back_edges(function.blocks[0].name, following):
        body = bodies.setdefault(head, {head})
        todo = [tail]
        while todo:
            name = todo.pop()
            if name not in body:
                body.add(name)
                todo.extend(preceding[name])
    return {name: min(sum(name in body for body in bodies.values()), 4) for name in following}


def bits(mask: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _back_edges(entry: str, following: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Return the edges of a depth-first search that lead to a block it is still in."""
    found: list[tuple[str, str]] = []
    seen, open_blocks = {entry}, {entry}
    path = [(entry, iter(following[entry]))]
    while path:
        name, rest = path[-1]
        for other in rest:
            if other in open_blocks:
                found.append((name, other))
            elif other not in seen:
                seen.add(other)
                open_blocks.add(other)
                path.append((other, iter(following[other])))
                break
        else:
            open_blocks.discard(name)
            path.pop()
    return found
