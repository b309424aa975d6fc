"""
Write functions of the bytecode IR as one would write the code.

>>> f = FunctionBuilder("clamp", ["x"])
>>> x = f.parameters[0]
>>> with f.when(x, ">", 9):
...     f.ret(9)
>>> f.ret(x)
>>> from actplane.ir.listing import print_function
>>> print(print_function(f.finish()))
function clamp(%x.0)
  entry:
    if %x.0 > 9 goto then.1 else next.2
  then.1:
    return 9
  next.2:
    return %x.0
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from actplane.errors import InternalError
from actplane.ir import bytecode as bc
from actplane.source import Span


class FunctionBuilder:
    """
    One function under construction. Operations go to the current block.

    `span` is the place in the policy that what is emitted now came from; set it with `at`.
    """

    def __init__(self, name: str, parameters: Sequence[str] = ()) -> None:
        self.name = name
        self._values = 0
        self._labels = 0
        self._blocks: list[bc.Block] = []
        self._frame: list[bc.FrameSlot] = []
        self._current: str | None = "entry"
        self._operations: list[bc.Operation] = []
        self._span: Span | None = None
        self._deferred: list[bc.Block] = []
        self.parameters = tuple(self.value(name) for name in parameters)

    # Places

    @contextmanager
    def at(self, span: Span | None) -> Iterator[None]:
        """Mark what is emitted inside as coming from a place in the policy."""
        before, self._span = self._span, span
        yield
        self._span = before

    def value(self, name: str = "t") -> bc.Value:
        """Return a new virtual register."""
        self._values += 1
        return bc.Value(self._values - 1, name)

    def slot(self, name: str, size_bytes: int) -> bc.FrameSlot:
        """Return new bytes of the function's frame."""
        made = bc.FrameSlot(name, size_bytes)
        self._frame.append(made)
        return made

    # Blocks

    def new_block(self, name: str) -> str:
        """Return a new label; `start` begins its block."""
        self._labels += 1
        return f"{name}.{self._labels}"

    def start(self, label: str) -> None:
        """Begin a block; the one before falls through to it if it has not ended."""
        if self._current is not None:
            self.jump(label)
        self._current = label

    def _end(self, terminator: bc.Terminator) -> None:
        if self._current is None:
            return  # Unreachable: the block has been left already.
        self._blocks.append(bc.Block(self._current, tuple(self._operations), terminator))
        self._operations = []
        self._current = None

    def jump(self, label: str) -> None:
        self._end(bc.Jump(label))

    def ret(self, value: bc.Operand) -> None:
        """Leave the function."""
        self._end(bc.Return(value))

    def branch(
        self, a: bc.Value, relation: bc.Relation, b: bc.Operand, then: str, otherwise: str, width: bc.Width = 64
    ) -> None:
        self._end(bc.Branch(relation, a, b, then, otherwise, width, self._span))

    @contextmanager
    def when(self, a: bc.Value, relation: bc.Relation, b: bc.Operand, width: bc.Width = 64) -> Iterator[None]:
        """Emit the body so that it runs only if a RELATION b holds."""
        then, after = self.new_block("then"), self.new_block("next")
        self.branch(a, relation, b, then, after, width)
        self.start(then)
        yield
        self.start(after)

    @contextmanager
    def choice(self, a: bc.Value, relation: bc.Relation, b: bc.Operand, width: bc.Width = 64) -> Iterator[Otherwise]:
        """Like `when`, with an alternative: call `otherwise()` of what it yields before the other body."""
        then, other, after = self.new_block("then"), self.new_block("else"), self.new_block("next")
        self.branch(a, relation, b, then, other, width)
        self.start(then)
        alternative = Otherwise(self, other, after)
        yield alternative
        if not alternative.is_taken:
            raise InternalError("choice without otherwise()", function=self.name)
        self.start(after)

    # Operations

    def emit(self, operation: bc.Operation) -> None:
        if self._current is not None:
            self._operations.append(operation)

    def let(self, a: bc.Operand, name: str = "t", width: bc.Width = 64) -> bc.Value:
        """Return a new register with the value of another, or a constant."""
        dst = self.value(name)
        self.emit(bc.Move(dst, a, width, self._span))
        return dst

    def assign(self, dst: bc.Value, a: bc.Operand, width: bc.Width = 64) -> None:
        self.emit(bc.Move(dst, a, width, self._span))

    def op(
        self, a: bc.Value, operator: bc.BinaryOperator, b: bc.Operand, name: str = "t", width: bc.Width = 64
    ) -> bc.Value:
        """Return a new register with a OPERATOR b."""
        dst = self.value(name)
        self.emit(bc.Binary(dst, operator, a, b, width, self._span))
        return dst

    def update(self, dst: bc.Value, operator: bc.BinaryOperator, b: bc.Operand, width: bc.Width = 64) -> None:
        """dst = dst OPERATOR b."""
        self.emit(bc.Binary(dst, operator, dst, b, width, self._span))

    def to_big_endian(self, a: bc.Value, bits: Literal[16, 32, 64], name: str = "t") -> bc.Value:
        dst = self.value(name)
        self.emit(bc.ToBigEndian(dst, a, bits, self._span))
        return dst

    def load(
        self,
        base: bc.Value,
        offset_bytes: int = 0,
        size: bc.AccessSize = 8,
        name: str = "t",
        field: bc.KernelField | None = None,
    ) -> bc.Value:
        dst = self.value(name)
        self.emit(bc.Load(dst, base, offset_bytes, size, field, self._span))
        return dst

    def store(self, base: bc.Value, offset_bytes: int, value: bc.Operand, size: bc.AccessSize = 8) -> None:
        self.emit(bc.Store(base, offset_bytes, value, size, self._span))

    def atomic(
        self,
        operator: bc.AtomicOperator,
        base: bc.Value,
        offset_bytes: int,
        value: bc.Value,
        size: Literal[4, 8] = 8,
    ) -> None:
        self.emit(bc.Atomic(None, operator, base, offset_bytes, value, size, self._span))

    def atomic_fetch(
        self,
        operator: bc.AtomicOperator,
        base: bc.Value,
        offset_bytes: int,
        value: bc.Value,
        size: Literal[4, 8] = 8,
        name: str = "old",
    ) -> bc.Value:
        dst = self.value(name)
        self.emit(bc.Atomic(dst, operator, base, offset_bytes, value, size, self._span))
        return dst

    def at_most(self, a: bc.Value, limit: int) -> None:
        """
        a = min(a, limit), without sign.

        The rare case stands at the end of the function: a verifier follows what falls through first,
        and then finds that the constant is one of the numbers it has seen to be safe.
        """
        above, go_on = self.new_block("above"), self.new_block("bounded")
        self.branch(a, ">", limit, above, go_on)
        self._deferred.append(bc.Block(above, (bc.Move(a, limit, 64, self._span),), bc.Jump(go_on)))
        self.start(go_on)

    def field_address(self, a: bc.Value, field: bc.KernelField, name: str = "field") -> bc.Value:
        dst = self.value(name)
        self.emit(bc.AddFieldOffset(dst, a, field, self._span))
        return dst

    def enum_constant(self, enum: str, name: str) -> bc.Value:
        dst = self.value(name.lower())
        self.emit(bc.EnumConstant(dst, enum, name, self._span))
        return dst

    def map_address(self, name: str) -> bc.Value:
        dst = self.value(name)
        self.emit(bc.MapAddress(dst, name, self._span))
        return dst

    def map_value(self, name: str, offset_bytes: int = 0) -> bc.Value:
        dst = self.value(name)
        self.emit(bc.MapValueAddress(dst, name, offset_bytes, self._span))
        return dst

    def frame_address(self, slot: bc.FrameSlot) -> bc.Value:
        dst = self.value(slot.name)
        self.emit(bc.FrameAddress(dst, slot, self._span))
        return dst

    def function(self, name: str) -> bc.Value:
        dst = self.value(name)
        self.emit(bc.FunctionReference(dst, name, self._span))
        return dst

    def helper(self, name: str, *arguments: bc.Operand, result: str | None = None) -> bc.Value:
        """Call a helper of the kernel and return its result."""
        dst = self.value(result or name.removeprefix("bpf_"))
        self.emit(bc.CallHelper(dst, name, arguments, self._span))
        return dst

    def call(self, function: str, *arguments: bc.Operand, result: str | None = None) -> bc.Value:
        """Call another function of this program and return its result."""
        dst = self.value(result or function)
        self.emit(bc.CallFunction(dst, function, arguments, self._span))
        return dst

    def finish(self) -> bc.Function:
        """
        Return the function.

        Raises: InternalError if the last block does not end.
        """
        if self._current is not None:
            raise InternalError("function does not return", function=self.name, block=self._current)
        return bc.Function(self.name, self.parameters, (*self._blocks, *self._deferred), tuple(self._frame))


class Otherwise:
    """The other half of a `choice`."""

    def __init__(self, builder: FunctionBuilder, label: str, after: str) -> None:
        self._builder = builder
        self._label = label
        self._after = after
        self.is_taken = False

    def __call__(self) -> None:
        """Emit what follows so that it runs if the comparison does not hold."""
        self.is_taken = True
        self._builder.jump(self._after)
        self._builder.start(self._label)
