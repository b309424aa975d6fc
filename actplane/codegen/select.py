"""
Instruction selection: functions of the bytecode IR become instructions of the kernel.

One operation is one to three instructions. Constants are immediates where the instruction set has
room for them, addresses on the frame are r10 plus a number, and values on the stack pass through
r0 and r1. The verifier must be able to follow: pointers are only ever moved and spilled whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from actplane import asm
from actplane.asm import R0, R1, R10, FunctionHere, HelperId, Insn, Item, LabelHere, Reg, Size
from actplane.codegen.branches import bridge_far_jumps
from actplane.codegen.flow import Flow, thread_jumps
from actplane.codegen.registers import (
    ARGUMENT_REGISTERS,
    NON_COMMUTATIVE,
    Allocation,
    Place,
    Recomputed,
    StackPlace,
    allocate,
)
from actplane.codegen.shape import Shaped
from actplane.errors import InternalError
from actplane.ir import bytecode as bc
from actplane.ir.bytecode import Value
from actplane.source import Span

_ALU_NAMES: dict[str, str] = {
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "div",
    "%": "mod",
    "&": "and",
    "|": "or",
    "^": "xor",
    "<<": "lsh",
    ">>": "rsh",
    "s>>": "arsh",
}
_ATOMIC_NAMES: dict[str, str] = {"+": "add", "&": "and", "|": "or", "^": "xor"}
_JUMP_NAMES: dict[str, str] = {
    "==": "jeq",
    "!=": "jne",
    "<": "jlt",
    "<=": "jle",
    ">": "jgt",
    ">=": "jge",
    "s<": "jslt",
    "s<=": "jsle",
    "s>": "jsgt",
    "s>=": "jsge",
    "&": "jset",
}
_OPPOSITES: dict[str, str] = {
    "==": "!=",
    "!=": "==",
    "<": ">=",
    ">=": "<",
    ">": "<=",
    "<=": ">",
    "s<": "s>=",
    "s>=": "s<",
    "s>": "s<=",
    "s<=": "s>",
}
"""What holds where a relation does not. `&` has no opposite among the instructions."""


def select(functions: Sequence[bc.Function]) -> tuple[tuple[Insn, ...], dict[int, str]]:
    """
    Return the instructions of a program; the first function is its entry.

    Shape:  the second result maps the index of the first instruction of every other function to its
            name, as `Program.functions` has it.
    Raises: FrameTooLarge if a function needs more than 512 bytes of stack; InternalError for IR that
            breaks its own rules; EncodeError if an operand fits no instruction.

    >>> from actplane.ir.build import FunctionBuilder
    >>> f = FunctionBuilder("double", ["context"])
    >>> f.ret(f.op(f.let(21), "*", 2))
    >>> insns, functions = select([f.finish()])
    >>> [(insn.code, insn.dst, insn.imm) for insn in insns], functions
    ([(183, 2, 21), (39, 2, 2), (191, 0, 0), (149, 0, 0)], {})
    """
    stream: list[Item] = []
    for number, function in enumerate(functions):
        if number:
            stream.append(FunctionHere(function.name))
        stream.extend(_selected(Shaped(function)))
    insns, names = asm.resolve(stream)
    return tuple(insns), names


@lru_cache(maxsize=512)
def _selected(shaped: Shaped) -> tuple[Item, ...]:
    """Return the stream of one function, selected once for all of its shape."""
    return tuple(bridge_far_jumps(_Selector(shaped.function).run()))


def _signed(value: int, width: int) -> int:
    """Return the low bits of a number as the signed number that they are."""
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def _fits(value: int) -> bool:
    """Whether an immediate holds a signed number."""
    return -(1 << 31) <= value < 1 << 31


class _Selector:
    """Selects the instructions of one function."""

    def __init__(self, function: bc.Function) -> None:
        if len(function.parameters) > len(ARGUMENT_REGISTERS):
            raise InternalError("too many parameters", function=function.name, count=len(function.parameters))
        self.function = thread_jumps(function)
        self.flow = Flow(self.function)
        self.allocation: Allocation = allocate(self.flow)
        self.items: list[Item] = []
        self.span: Span | None = None

    def run(self) -> list[Item]:
        self._enter()
        blocks = self.function.blocks
        for block, after in zip(blocks, (*blocks[1:], None), strict=True):
            self.items.append(LabelHere(block.name))
            for step in self.flow.steps(block):
                self._operation(step.operation, step.live_after)
            self._terminator(block.terminator, after.name if after else None)
        return self.items

    def emit(self, insn: Insn, symbol: asm.Symbol | None = None) -> None:
        """Append an instruction, with a symbol for the loader."""
        if symbol is not None or self.span is not None:
            insn = Insn(insn.code, insn.dst, insn.src, insn.off, insn.imm, symbol or insn.symbol, self.span)
        self.items.append(insn)

    # Places

    def place(self, value: Value) -> Place:
        return self.allocation.places[value]

    def read(self, value: Value, spare: Reg) -> Reg:
        """Return a register that holds a value: its own, or the spare one, loaded now."""
        place = self.place(value)
        if isinstance(place, Reg):
            return place
        self.put(spare, value)
        return spare

    def put(self, reg: Reg, operand: bc.Operand) -> None:
        """Bring an operand into a register."""
        if isinstance(operand, int):
            self._constant(reg, operand)
            return
        place = self.place(operand)
        if isinstance(place, Reg):
            if place is not reg:
                self.emit(asm.mov64(reg, place))
        elif isinstance(place, StackPlace):
            self.emit(asm.ldx(Size.DW, reg, R10, place.offset_bytes))
        else:
            self._compute(reg, place.operation)

    def target(self, dst: Value, spare: Reg = R0) -> Reg:
        """Return the register to compute a value in; `keep` then brings it to its place."""
        place = self.place(dst)
        return place if isinstance(place, Reg) else spare

    def keep(self, dst: Value, reg: Reg) -> None:
        """Bring a value that is in a register to its place."""
        place = self.place(dst)
        if isinstance(place, Reg):
            if place is not reg:
                self.emit(asm.mov64(place, reg))
        elif isinstance(place, StackPlace):
            if dst in self.allocation.compared and reg is R0:
                # A copy gives the number an identity in kernels that give none to what is spilled;
                # by it, a comparison of the reloaded value also bounds the one on the stack.
                self.emit(asm.mov64(R1, R0))
            self.emit(asm.stx(Size.DW, R10, reg, place.offset_bytes))

    def constant(self, operand: bc.Operand) -> int | None:
        """Return the number that an operand always is, if it is known."""
        if isinstance(operand, int):
            return operand
        place = self.place(operand)
        if isinstance(place, Recomputed) and isinstance(place.operation, bc.Move):
            move = place.operation
            assert isinstance(move.a, int)
            return move.a & 0xFFFF_FFFF if move.width == 32 else move.a
        return None

    def second(self, operand: bc.Operand, width: int, spare: Reg) -> Reg | int:
        """Return an operand as the second of an instruction: an immediate if it fits, else a register."""
        number = self.constant(operand)
        if number is not None:
            number = _signed(number, width)
            if _fits(number):
                return number
            self._constant(spare, number)
            return spare
        assert isinstance(operand, Value)
        return self.read(operand, spare)

    def memory(self, base: Value, offset_bytes: int, spare: Reg) -> tuple[Reg, int]:
        """Return the register and the offset of an access."""
        place = self.place(base)
        if isinstance(place, Recomputed) and isinstance(place.operation, bc.FrameAddress):
            return R10, self._frame_offset(place.operation.slot) + offset_bytes
        reg = self.read(base, spare)
        if -(1 << 15) <= offset_bytes < 1 << 15:
            return reg, offset_bytes
        if reg is not spare:
            self.emit(asm.mov64(spare, reg))
        self.emit(asm.add64(spare, offset_bytes))
        return spare, 0

    def _frame_offset(self, slot: bc.FrameSlot) -> int:
        offset = self.allocation.frame_offsets.get(id(slot))
        if offset is None:
            raise InternalError("slot of another function", function=self.function.name, slot=slot.name)
        return offset

    def _constant(self, reg: Reg, number: int) -> None:
        number = _signed(number, 64)
        if _fits(number):
            self.emit(asm.mov64(reg, number))
        elif 0 <= number < 1 << 32:
            self.emit(asm.mov32(reg, _signed(number, 32)))
        else:
            self.emit(asm.ld_imm64(reg, number))

    def _compute(self, reg: Reg, operation: bc.Operation) -> None:
        """Execute an operation without operands into a register."""
        match operation:
            case bc.Move(_, int(a), width):
                self._constant(reg, a & 0xFFFF_FFFF if width == 32 else a)
            case bc.EnumConstant(_, enum, name):
                self.emit(asm.mov64(reg, 0), asm.EnumValue(enum, name))
            case bc.MapAddress(_, name):
                self.emit(asm.ld_map_fd(reg, name))
            case bc.MapValueAddress(_, name, offset_bytes):
                self.emit(asm.ld_map_value(reg, asm.MapValue(name, offset_bytes)))
            case bc.FunctionReference(_, name):
                self.emit(asm.ld_func(reg, name))
            case bc.FrameAddress(_, slot):
                self.emit(asm.mov64(reg, R10))
                self.emit(asm.add64(reg, self._frame_offset(slot)))
            case _:
                raise InternalError("operation has operands", operation=operation)

    # Moves in parallel

    def _enter(self) -> None:
        """Bring the parameters from r1 to r5 to their places."""
        needed = self.flow.live_in[self.function.blocks[0].name]
        moves: list[tuple[Reg, Reg]] = []
        for value, reg in zip(self.function.parameters, ARGUMENT_REGISTERS, strict=False):
            if not needed >> self.flow.index[value] & 1:
                continue
            place = self.place(value)
            if isinstance(place, Reg):
                moves.append((place, reg))
            else:
                self.keep(value, reg)
        self._move_all(moves)

    def _arguments(self, arguments: Sequence[bc.Operand]) -> None:
        """Bring the arguments of a call to r1 to r5."""
        if len(arguments) > len(ARGUMENT_REGISTERS):
            raise InternalError("too many arguments", function=self.function.name, count=len(arguments))
        moves: list[tuple[Reg, Reg]] = []
        rest: list[tuple[Reg, bc.Operand]] = []
        for reg, argument in zip(ARGUMENT_REGISTERS, arguments, strict=False):
            place = self.place(argument) if isinstance(argument, Value) else None
            if isinstance(place, Reg):
                moves.append((reg, place))
            else:
                rest.append((reg, argument))
        # What comes from the stack or from nowhere reads no register that a move could destroy.
        self._move_all(moves)
        for reg, argument in rest:
            self.put(reg, argument)

    def _move_all(self, moves: Sequence[tuple[Reg, Reg]]) -> None:
        """Copy several registers (to, from) as if at once; r0 breaks cycles."""
        pending = {to: source for to, source in moves if to is not source}
        while pending:
            free = next((to for to in pending if to not in pending.values()), None)
            if free is None:
                # Only cycles are left. Their first register goes to r0, and is read from there.
                to = next(iter(pending))
                self.emit(asm.mov64(R0, to))
                pending = {other: R0 if source is to else source for other, source in pending.items()}
            else:
                self.emit(asm.mov64(free, pending.pop(free)))

    # Operations

    def _operation(self, operation: bc.Operation, live_after: int) -> None:
        self.span = operation.span
        dst = None if isinstance(operation, bc.Store) else operation.dst
        if dst is not None and not live_after >> self.flow.index[dst] & 1:
            dst = None
        if dst is not None and isinstance(self.place(dst), Recomputed):
            return
        match operation:
            case bc.CallHelper(_, helper, arguments):
                if helper not in HelperId.__members__:
                    raise InternalError("no such helper", function=self.function.name, helper=helper)
                self._arguments(arguments)
                self.emit(asm.call(HelperId[helper]))
                if dst is not None:
                    self.keep(dst, R0)
            case bc.CallFunction(_, name, arguments):
                self._arguments(arguments)
                self.emit(asm.call_sub(name))
                if dst is not None:
                    self.keep(dst, R0)
            case bc.Store():
                self._store(operation)
            case bc.Atomic():
                self._atomic(operation, dst)
            case _:
                assert dst is not None
                self._pure(operation, dst)

    def _pure(self, operation: bc.Operation, dst: Value) -> None:
        """Select an operation that does nothing but give a value."""
        target = self.target(dst)
        match operation:
            case bc.Move(_, Value() as a, 64) if isinstance(self.place(a), Reg):
                self.keep(dst, self.read(a, R0))
                return
            case bc.Move(_, Value() as a, 32):
                self._zero_extend(target, a)
            case bc.Move(_, Value() as a):
                self.put(target, a)
            case bc.Binary():
                self._binary(operation, dst)
                return
            case bc.ToBigEndian(_, a, bits):
                self.put(target, a)
                self.emit(asm.be(target, bits))
            case bc.Load(_, base, offset_bytes, size, field):
                reg, offset = self.memory(base, offset_bytes, R1)
                self.emit(asm.ldx(Size(size), target, reg, offset), _field(field) if field else None)
            case bc.AddFieldOffset(_, a, field):
                self.put(target, a)
                self.emit(asm.add64(target, 0), _field(field))
            case _:
                self._compute(target, operation)
        self.keep(dst, target)

    def _zero_extend(self, target: Reg, a: Value) -> None:
        """Bring the low half of a value into a register."""
        number = self.constant(a)
        if number is not None:
            self._constant(target, number & 0xFFFF_FFFF)
        else:
            self.emit(asm.mov32(target, self.read(a, target)))

    def _binary(self, operation: bc.Binary, dst: Value) -> None:
        a, operator, width = operation.a, operation.operator, operation.width
        target = self.target(dst)
        if operator == "&" and self.constant(operation.b) == 0xFFFF_FFFF:
            self._zero_extend(target, a)
            self.keep(dst, target)
            return
        b = self._second_of_binary(operation)
        if isinstance(b, Reg) and b is target and self.place(a) is not target:
            # dst = a would destroy b.
            if operator not in NON_COMMUTATIVE:
                b = self.second(a, width, R0)
                self.emit(asm.alu(_ALU_NAMES[operator], target, b, width))
                self.keep(dst, target)
                return
            target = R0
        self.put(target, a)
        self.emit(asm.alu(_ALU_NAMES[operator], target, b, width))
        self.keep(dst, target)

    def _second_of_binary(self, operation: bc.Binary) -> Reg | int:
        """Return the second operand; the kernel refuses some immediates that it takes in a register."""
        operator, width = operation.operator, operation.width
        number = self.constant(operation.b)
        is_refused = number is not None and (
            (operator in ("<<", ">>", "s>>") and not 0 <= number < width)
            or (operator in ("/", "%") and _signed(number, width) == 0)
        )
        if not is_refused:
            return self.second(operation.b, width, R1)
        if isinstance(operation.b, int):
            raise InternalError("immediate out of range", function=self.function.name, operation=operation)
        self.put(R1, operation.b)
        return R1

    def _store(self, operation: bc.Store) -> None:
        size = Size(operation.size)
        base, offset = self.memory(operation.base, operation.offset_bytes, R1)
        value = self.second(operation.value, 8 * operation.size, R0)
        if isinstance(value, Reg):
            self.emit(asm.stx(size, base, value, offset))
        else:
            self.emit(asm.st(size, base, offset, value))

    def _atomic(self, operation: bc.Atomic, dst: Value | None) -> None:
        size, name = Size(operation.size), _ATOMIC_NAMES[operation.operator]
        base, offset = self.memory(operation.base, operation.offset_bytes, R1)
        if dst is None:
            self.emit(asm.atomic(name, size, base, self.read(operation.value, R0), offset))
            return
        self.put(R0, operation.value)
        self.emit(asm.atomic(name, size, base, R0, offset, fetch=True))
        self.keep(dst, R0)

    # Ends of blocks

    def _terminator(self, terminator: bc.Terminator, following: str | None) -> None:
        self.span = terminator.span if isinstance(terminator, bc.Branch) else None
        match terminator:
            case bc.Jump(block):
                self._go(block, following)
            case bc.Branch():
                self._branch(terminator, following)
            case bc.Return(value):
                self.put(R0, value)
                self.emit(asm.exit_())

    def _go(self, block: str, following: str | None) -> None:
        if block != following:
            self.emit(asm.ja(block))

    def _branch(self, branch: bc.Branch, following: str | None) -> None:
        relation: str = branch.relation
        then, otherwise = branch.then, branch.otherwise
        if then == following and relation in _OPPOSITES:
            relation, then, otherwise = _OPPOSITES[relation], otherwise, then
        a = self.read(branch.a, R0)
        b = self.second(branch.b, branch.width, R1)
        self.emit(asm.jmp(_JUMP_NAMES[relation], a, b, then, branch.width))
        self._go(otherwise, following)


def _field(field: bc.KernelField) -> asm.Field:
    return asm.Field(field.struct, field.path, field.alternatives)
