"""
Where each value of a function lives: in a register, on the stack, or nowhere because it is cheaper
to compute it again.

Values compete as the nodes of a graph that is coloured with registers (Briggs's optimistic
colouring): two values that are needed at the same time get different ones. What is needed across a
call has only r6 to r9, the rest also r2 to r5. r0 and r1 are kept free: they carry results and
first arguments, and values on the stack pass through them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actplane.asm import R2, R3, R4, R5, R6, R7, R8, R9, Reg
from actplane.codegen.flow import Call, Flow, bits, loop_depths, reads, written
from actplane.errors import ActplaneError
from actplane.ir import bytecode as bc
from actplane.ir.bytecode import Value

MAX_FRAME_BYTES = 512
"""MAX_BPF_STACK, for all frames of a chain of calls together."""

KEPT_REGISTERS = (R6, R7, R8, R9)
FREE_REGISTERS = (R2, R3, R4, R5, *KEPT_REGISTERS)
ARGUMENT_REGISTERS = (Reg.R1, R2, R3, R4, R5)

NON_COMMUTATIVE = frozenset({"-", "/", "%", "<<", ">>", "s>>"})

_LOOP_FACTOR = 8
_COMPARED_FACTOR = 4
"""
A comparison teaches the verifier about the register it compares, and older kernels do not carry that
over to the stack slot the register was loaded from. So values that are compared are the last to go there.
"""


class FrameTooLarge(ActplaneError):
    """A function needs more stack than the kernel gives."""

    def __init__(self, function: str, slot_bytes: int, spill_bytes: int) -> None:
        super().__init__(
            f"function {function}: stack frame: got {slot_bytes} bytes of slots and {spill_bytes} of spilled values, "
            f"expected at most {MAX_FRAME_BYTES} together"
        )


@dataclass(frozen=True, slots=True)
class StackPlace:
    """Eight bytes at r10 + offset_bytes."""

    offset_bytes: int


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Nowhere: the operation that defines the value is repeated where it is read."""

    operation: bc.Operation


Place = Reg | StackPlace | Recomputed


@dataclass(frozen=True, slots=True)
class Allocation:
    """
    The places of the values of one function.

    Units:  `frame_bytes` is what the function needs of the stack; `frame_offsets` are from r10, by
            the identity of the slot (two slots may look alike).
    """

    places: Mapping[Value, Place]
    frame_offsets: Mapping[int, int]
    frame_bytes: int
    compared: frozenset[Value]
    """Values that some branch compares."""


def allocate(flow: Flow) -> Allocation:
    """
    Give every value of a function its place.

    Raises: FrameTooLarge if slots and spilled values do not fit the stack.
    """
    function = flow.function
    definitions = _single_definitions(flow)
    places: dict[Value, Place] = {
        value: Recomputed(operation) for value, operation in definitions.items() if _is_cheap(operation)
    }
    graph = _Graph(flow, places)
    registers = graph.colour()
    places.update(registers)

    frame_offsets: dict[int, int] = {}
    offset = 0
    for slot in function.frame:
        offset -= -(-slot.size_bytes // 8) * 8
        frame_offsets[id(slot)] = offset
    slot_bytes = -offset
    taken: dict[int, int] = {}
    for value in graph.order:
        if value in places:
            continue
        definition = definitions.get(value)
        if definition is not None and isinstance(definition, bc.MapValueAddress | bc.Move):
            places[value] = Recomputed(definition)
            continue
        place = -slot_bytes - 8
        while taken.get(place, 0) & graph.neighbours[flow.index[value]]:
            place -= 8
        taken[place] = taken.get(place, 0) | 1 << flow.index[value]
        places[value] = StackPlace(place)
    frame_bytes = slot_bytes + 8 * len(taken)
    if frame_bytes > MAX_FRAME_BYTES:
        raise FrameTooLarge(function.name, slot_bytes, 8 * len(taken))
    return Allocation(places, frame_offsets, frame_bytes, frozenset(graph.compared))


def _single_definitions(flow: Flow) -> dict[Value, bc.Operation]:
    """Return the values that one operation alone defines, from nothing but constants."""
    definitions: dict[Value, bc.Operation] = {}
    repeated: set[Value] = set(flow.function.parameters)
    for block in flow.function.blocks:
        for operation in block.operations:
            dst = written(operation)
            if dst is None:
                continue
            if dst in definitions or dst in repeated:
                repeated.add(dst)
            else:
                definitions[dst] = operation
    return {
        value: operation
        for value, operation in definitions.items()
        if value not in repeated and not reads(operation) and not isinstance(operation, Call)
    }


def _is_cheap(operation: bc.Operation) -> bool:
    """Whether computing a value again always beats keeping it: constants, addresses for calls."""
    match operation:
        case bc.Move(_, int(a)):
            return -(1 << 31) <= a < 1 << 32
        case bc.FrameAddress() | bc.MapAddress() | bc.FunctionReference() | bc.EnumConstant():
            return True
        case _:
            return False


class _Graph:
    """Which values are needed at the same time, what each would cost on the stack, who likes whom."""

    def __init__(self, flow: Flow, placed: Mapping[Value, Place]) -> None:
        self.flow = flow
        count = len(flow.values)
        self.excluded = flow.mask(placed)
        self.neighbours = [0] * count
        self.cost = [0.0] * count
        self.crossing = 0
        self.nodes = 0
        self.compared: set[Value] = set()
        self.friends: list[list[int]] = [[] for _ in range(count)]
        self.wishes: list[list[Reg]] = [[] for _ in range(count)]
        self._build()
        self.order = flow.members(self.nodes)

    def _build(self) -> None:
        flow = self.flow
        depths = loop_depths(flow.function)
        entry = flow.live_in[flow.function.blocks[0].name] & ~self.excluded
        self._meet(entry, entry)
        self.nodes |= entry
        for parameter, reg in zip(flow.function.parameters, ARGUMENT_REGISTERS, strict=False):
            self.wishes[flow.index[parameter]].append(reg)
        for block in flow.function.blocks:
            weight = float(_LOOP_FACTOR ** depths[block.name])
            for step in flow.steps(block):
                self._add(step.operation, step.live_after & ~self.excluded, weight)
            for value in reads(block.terminator):
                factor = 1
                if isinstance(block.terminator, bc.Branch):
                    self.compared.add(value)
                    factor = _COMPARED_FACTOR
                self.cost[flow.index[value]] += weight * factor
                self._note(value)

    def _note(self, value: Value) -> None:
        self.nodes |= (1 << self.flow.index[value]) & ~self.excluded

    def _meet(self, some: int, others: int) -> None:
        for index in bits(some):
            self.neighbours[index] |= others & ~(1 << index)
        for index in bits(others):
            self.neighbours[index] |= some & ~(1 << index)

    def _add(self, operation: bc.Operation, live: int, weight: float) -> None:
        index = self.flow.index
        for value in reads(operation):
            self.cost[index[value]] += weight
            self._note(value)
        dst = written(operation)
        dst_bit = 0
        if dst is not None:
            dst_bit = (1 << index[dst]) & live
            self.cost[index[dst]] += weight
        if isinstance(operation, Call):
            self.crossing |= live & ~dst_bit
            for argument, reg in zip(operation.arguments, ARGUMENT_REGISTERS, strict=False):
                if isinstance(argument, Value):
                    self.wishes[index[argument]].append(reg)
        if not dst_bit or dst is None:
            return
        self.nodes |= dst_bit
        others = live & ~dst_bit
        match operation:
            case bc.Move(_, Value() as a, width):
                if width == 64:
                    # A copy does not conflict with what it copies: they may well be one register.
                    others &= ~(1 << index[a])
                self._befriend(dst, a)
            case bc.Binary(_, operator, a, b):
                self._befriend(dst, a)
                if isinstance(b, Value) and b is not a and b is not dst and operator in NON_COMMUTATIVE:
                    # dst = a comes first, and must not destroy b.
                    others |= (1 << index[b]) & ~self.excluded
            case bc.ToBigEndian(_, a) | bc.AddFieldOffset(_, a):
                self._befriend(dst, a)
            case _:
                pass
        self._meet(dst_bit, others)

    def _befriend(self, one: Value, other: Value) -> None:
        i, j = self.flow.index[one], self.flow.index[other]
        self.friends[i].append(j)
        self.friends[j].append(i)

    def colour(self) -> dict[Value, Reg]:
        """
        Return the registers of the values that get one.

        A node with fewer neighbours than registers can always be coloured after them, so it is set
        aside; when none is left, the node that costs least for the room it takes is set aside too,
        and may find a register free when its turn comes.
        """
        remaining = self.nodes
        degree = {index: (self.neighbours[index] & remaining).bit_count() for index in bits(remaining)}
        limit = {i: len(KEPT_REGISTERS if self.crossing >> i & 1 else FREE_REGISTERS) for i in degree}
        easy = [index for index in degree if degree[index] < limit[index]]
        stack: list[int] = []
        while remaining:
            if easy:
                index = easy.pop()
                if not remaining >> index & 1:
                    continue
            else:
                index = min(bits(remaining), key=lambda i: self.cost[i] / (degree[i] + 1))
            stack.append(index)
            remaining &= ~(1 << index)
            for other in bits(self.neighbours[index] & remaining):
                degree[other] -= 1
                if degree[other] == limit[other] - 1:
                    easy.append(other)
        chosen: dict[int, Reg] = {}
        for index in reversed(stack):
            taken = {chosen[other] for other in bits(self.neighbours[index]) if other in chosen}
            reg = self._choose(index, taken, chosen)
            if reg is not None:
                chosen[index] = reg
        return {self.flow.values[index]: reg for index, reg in chosen.items()}

    def _choose(self, index: int, taken: set[Reg], chosen: Mapping[int, Reg]) -> Reg | None:
        """Return a free register, one that saves a move if there is such."""
        allowed = KEPT_REGISTERS if self.crossing >> index & 1 else FREE_REGISTERS
        available = [reg for reg in allowed if reg not in taken]
        liked = [chosen[friend] for friend in self.friends[index] if friend in chosen]
        for friend in self.friends[index]:
            liked.extend(self.wishes[friend])
        for reg in (*self.wishes[index], *liked):
            if reg in available:
                return reg
        return available[0] if available else None
