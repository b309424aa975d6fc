"""
The bytecode IR: what the kernel is to do, before registers and the 8 bytes of an instruction.

A function is a list of basic blocks over virtual registers (`Value`), which may be assigned more
than once. Offsets of kernel fields are names (`KernelField`), maps and functions are names too.
`actplane.codegen.select` turns functions into instructions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actplane.source import Span


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A virtual register of 64 bits. Two values are the same only if they are one object."""

    number: int
    name: str

    def __repr__(self) -> str:
        return f"%{self.name}.{self.number}"


Operand = Value | int

BinaryOperator = Literal["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>", "s>>"]
Relation = Literal["==", "!=", "<", "<=", ">", ">=", "s<", "s<=", "s>", "s>=", "&"]
"""`&` is true if the operands share a bit."""
AtomicOperator = Literal["+", "&", "|", "^"]
Width = Literal[32, 64]
AccessSize = Literal[1, 2, 4, 8]


@dataclass(frozen=True, slots=True)
class KernelField:
    """
    The offset of a field in the running kernel: `path` is dotted, through embedded structs.

    `alternatives` are (struct, path) pairs tried in order where a kernel lacks the first.
    """

    struct: str
    path: str
    alternatives: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class FrameSlot:
    """Bytes of the function's own stack frame, aligned to 8."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Move:
    """dst = a (32: the low half, zero-extended). A constant may have 64 bits."""

    dst: Value
    a: Operand
    width: Width = 64
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Binary:
    """dst = a OPERATOR b."""

    dst: Value
    operator: BinaryOperator
    a: Value
    b: Operand
    width: Width = 64
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class ToBigEndian:
    """dst = the low `bits` of a in network order, zero-extended."""

    dst: Value
    a: Value
    bits: Literal[16, 32, 64]
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """dst = zero-extended memory at base + offset (+ the offset of `field`)."""

    dst: Value
    base: Value
    offset_bytes: int
    size: AccessSize
    field: KernelField | None = None
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """Memory at base + offset = the low bytes of `value`."""

    base: Value
    offset_bytes: int
    value: Operand
    size: AccessSize
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Atomic:
    """Memory at base + offset OPERATOR= value, at once; `dst` gets the old value if it is not None."""

    dst: Value | None
    operator: AtomicOperator
    base: Value
    offset_bytes: int
    value: Value
    size: Literal[4, 8]
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class AddFieldOffset:
    """dst = a + the offset of a kernel field."""

    dst: Value
    a: Value
    field: KernelField
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class EnumConstant:
    """dst = the value of an enumerator in the running kernel."""

    dst: Value
    enum: str
    name: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class MapAddress:
    """dst = the address of a map, as helpers take it."""

    dst: Value
    map: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class MapValueAddress:
    """dst = the address of a byte in the only value of an array map."""

    dst: Value
    map: str
    offset_bytes: int = 0
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class FrameAddress:
    """dst = the address of a slot of this function's frame."""

    dst: Value
    slot: FrameSlot
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class FunctionReference:
    """dst = the address of a function of this program, for a callback."""

    dst: Value
    function: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class CallHelper:
    """dst = a helper of the kernel, by its name in the user interface (`bpf_loop`)."""

    dst: Value | None
    helper: str
    arguments: tuple[Operand, ...]
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class CallFunction:
    """dst = another function of this program."""

    dst: Value | None
    function: str
    arguments: tuple[Operand, ...]
    span: Span | None = None


Operation = (
    Move
    | Binary
    | ToBigEndian
    | Load
    | Store
    | Atomic
    | AddFieldOffset
    | EnumConstant
    | MapAddress
    | MapValueAddress
    | FrameAddress
    | FunctionReference
    | CallHelper
    | CallFunction
)


@dataclass(frozen=True, slots=True)
class Jump:
    """Go to another block."""

    block: str


@dataclass(frozen=True, slots=True)
class Branch:
    """Go to `then` if a RELATION b holds, else to `otherwise`."""

    relation: Relation
    a: Value
    b: Operand
    then: str
    otherwise: str
    width: Width = 64
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Return:
    """Leave the function."""

    value: Operand


Terminator = Jump | Branch | Return


@dataclass(frozen=True, slots=True)
class Block:
    """Operations that run one after the other, and where to go then."""

    name: str
    operations: tuple[Operation, ...]
    terminator: Terminator


@dataclass(frozen=True, slots=True)
class Function:
    """`blocks[0]` is the entry. At most five parameters."""

    name: str
    parameters: tuple[Value, ...]
    blocks: tuple[Block, ...]
    frame: tuple[FrameSlot, ...] = ()
