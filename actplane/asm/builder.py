"""
Programs written in Python: operands with types, labels, and `with` blocks for what would be jumps.

A `Builder` collects exactly the instructions it is told to, in their order; a block adds the jumps
that its docstring names. Nothing is rewritten afterwards, so the program is its bytes.

>>> from actplane.asm import ProgType, R0, R1, R2, R10, u32, u64
>>> b = Builder("first_word", ProgType.BPF_PROG_TYPE_XDP)
>>> b.mov(R2, u32[R1 + 0])
>>> b.mov(u64[R10 - 8], R2)
>>> b.mov(R0, 1)
>>> with b.when(R2, "s>", 4):
...     b.mov(R0, 2)
>>> b.exit()
>>> b
.prog first_word xdp
    r2 = *(u32 *)(r1 +0)
    *(u64 *)(r10 -8) = r2
    r0 = 1
    if r2 s<= 4 goto L1
    r0 = 2
L1:
    exit
>>> len(bytes(b))
48
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from actplane.asm.build import (
    addr_space_cast,
    alu,
    atomic,
    call,
    call_kfunc,
    call_sub,
    exit_,
    gotox,
    ja,
    jmp,
    ld_func,
    ld_imm64,
    ld_map_fd,
    ld_map_value,
    ldx,
    ldxsx,
    movsx32,
    movsx64,
    neg32,
    neg64,
    st,
    stx,
)
from actplane.asm.disasm import format_insn
from actplane.asm.encoding import encode
from actplane.asm.insn import FunctionAddress, Insn, Kfunc, MapFd, MapValue, Subprogram
from actplane.asm.isa import FORMS, Kind
from actplane.asm.jump_tables import jump_table
from actplane.asm.labels import FunctionHere, Item, LabelHere, label_slots, resolve
from actplane.asm.operands import Memory, Reg, Size, Word
from actplane.asm.program import MapSpec, Object, Program
from actplane.asm.uapi import AttachType, HelperId, MapType, ProgType
from actplane.errors import EncodeError

Register = Reg | Word
Value = Reg | Word | int

_COMPARISONS = {form.operator: form.operation for form in FORMS if form.kind is Kind.JUMP}
_OPPOSITE = {
    "==": "!=",
    ">": "<=",
    ">=": "<",
    "s>": "s<=",
    "s>=": "s<",
}
_OPPOSITE.update({other: one for one, other in tuple(_OPPOSITE.items())})


class Builder:
    """
    One program under construction.

    Shape:  `program()` is a `Program`, `object()` the same with the maps, `bytes(builder)` the bytes of
            the instructions, with maps and kernel functions still unresolved. Subprograms follow the
            main function, in the order of their definition.
    """

    def __init__(
        self,
        name: str,
        prog_type: ProgType,
        attach_type: AttachType | None = None,
        attach_to: str | None = None,
        *,
        is_sleepable: bool = False,
        license: str = "GPL",
    ) -> None:
        self.name = name
        self.prog_type = prog_type
        self.attach_type = attach_type
        self.attach_to = attach_to
        self.is_sleepable = is_sleepable
        self.license = license
        self._main: list[Item] = []
        self._subprograms: list[list[Item]] = []
        self._items = self._main
        self._maps: list[MapSpec] = []
        self._jump_tables: list[tuple[str, str, tuple[str, ...]]] = []
        self._labels = 0

    # Instructions one by one

    def emit(self, *items: Item) -> None:
        """Append instructions and labels that were made with the constructors."""
        self._items.extend(items)

    def label(self, name: str) -> None:
        """Name the place before the next instruction."""
        self.emit(LabelHere(name))

    def goto(self, target: str | Reg) -> None:
        """Jump to a label, or to the instruction whose address was loaded from a jump table."""
        self.emit(gotox(target) if isinstance(target, Reg) else ja(target))

    def jump_if(self, left: Register, comparison: str, right: Value, target: str) -> None:
        """Jump to a label if a comparison, written as in text (`==`, `s>`, `&`), holds."""
        operation = _COMPARISONS.get(comparison)
        if operation is None:
            raise EncodeError(f"comparison: got {comparison!r}, expected one of {' '.join(_COMPARISONS)}")
        register, operand, width = _operands(left, right)
        self.emit(jmp(operation, register, operand, target, width))

    def mov(self, to: Register | Memory, value: Value | Memory | MapFd | MapValue | MapSpec | FunctionAddress) -> None:
        """
        Move: register from register, number, memory, map or function; memory from register or number.

        Raises: EncodeError if there is no single instruction for it; a number of more than 32 bits takes `mov64`.
        """
        if isinstance(to, Memory):
            self.emit(_store(to, value))
        elif isinstance(value, Memory):
            self.emit(_load(to, value))
        elif isinstance(value, (MapFd, MapSpec)):
            self.emit(ld_map_fd(_whole(to), value.name))
        elif isinstance(value, MapValue):
            self.emit(ld_map_value(_whole(to), value))
        elif isinstance(value, FunctionAddress):
            self.emit(ld_func(_whole(to), value))
        else:
            self._alu("mov", to, value)

    def mov64(self, to: Reg, number: int) -> None:
        """Load a number of 64 bits; it takes two slots."""
        self.emit(ld_imm64(to, number))

    def movsx(self, to: Register, value: Register, bits: int) -> None:
        """Extend the sign of the low bits of a register."""
        register, operand, width = _operands(to, value)
        if not isinstance(operand, Reg):
            raise EncodeError(f"movsx: got {value!r}, expected a register")
        self.emit(movsx64(register, operand, bits) if width == 64 else movsx32(register, operand, bits))

    def _alu(self, operation: str, to: Register, value: Value) -> None:
        register, operand, width = _operands(to, value)
        self.emit(alu(operation, register, operand, width))

    def _alu_or_atomic(self, operation: str, to: Register | Memory, value: Value) -> None:
        if isinstance(to, Memory):
            register = value.reg if isinstance(value, Word) else value
            if not isinstance(register, Reg):
                raise EncodeError(f"{operation} to memory: got {value!r}, expected a register")
            self.emit(atomic(operation, to.size, to.address.base, register, to.address.offset_bytes))
        else:
            self._alu(operation, to, value)

    def add(self, to: Register | Memory, value: Value) -> None:
        """Add to a register, or to memory at once with respect to other processors."""
        self._alu_or_atomic("add", to, value)

    def sub(self, to: Register, value: Value) -> None:
        self._alu("sub", to, value)

    def mul(self, to: Register, value: Value) -> None:
        self._alu("mul", to, value)

    def div(self, to: Register, value: Value) -> None:
        """Divide without signs; the result of dividing by zero is zero."""
        self._alu("div", to, value)

    def sdiv(self, to: Register, value: Value) -> None:
        self._alu("sdiv", to, value)

    def mod(self, to: Register, value: Value) -> None:
        """Take the remainder without signs; by zero the register is left as it is."""
        self._alu("mod", to, value)

    def smod(self, to: Register, value: Value) -> None:
        self._alu("smod", to, value)

    def or_(self, to: Register | Memory, value: Value) -> None:
        self._alu_or_atomic("or", to, value)

    def and_(self, to: Register | Memory, value: Value) -> None:
        self._alu_or_atomic("and", to, value)

    def xor(self, to: Register | Memory, value: Value) -> None:
        self._alu_or_atomic("xor", to, value)

    def lsh(self, to: Register, value: Value) -> None:
        self._alu("lsh", to, value)

    def rsh(self, to: Register, value: Value) -> None:
        self._alu("rsh", to, value)

    def arsh(self, to: Register, value: Value) -> None:
        self._alu("arsh", to, value)

    def neg(self, to: Register) -> None:
        self.emit(neg32(to.reg) if isinstance(to, Word) else neg64(to))

    def cast(self, to: Reg, value: Reg, to_space: int, from_space: int) -> None:
        """Move a pointer between the arena (1) and the kernel (0)."""
        self.emit(addr_space_cast(to, value, to_space, from_space))

    def call(self, function: HelperId | int | Subprogram | Kfunc | str) -> None:
        """Call a helper by its number, a subprogram of this program by its name, or a `Kfunc`."""
        if isinstance(function, Kfunc):
            self.emit(call_kfunc(function))
        elif isinstance(function, int):
            self.emit(call(function))
        else:
            self.emit(call_sub(function))

    def exit(self, value: int | None = None) -> None:
        """Return r0, set to a number first if one is given."""
        if value is not None:
            self.mov(Reg.R0, value)
        self.emit(exit_())

    # Blocks

    @contextmanager
    def when(self, left: Register, comparison: str, right: Value) -> Iterator[None]:
        """
        Do the block if a comparison holds.

        Shape:  one jump over the block if the opposite holds; for `&`, which has no opposite, two.
        """
        end = self._new_label()
        if comparison in _OPPOSITE:
            self.jump_if(left, _OPPOSITE[comparison], right, end)
        else:
            begin = self._new_label()
            self.jump_if(left, comparison, right, begin)
            self.goto(end)
            self.label(begin)
        yield
        self.label(end)

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """Do the block if the comparison of the `when` just before does not hold: one jump at the end of that."""
        end = self._items.pop() if self._items else None
        if not isinstance(end, LabelHere):
            raise EncodeError("otherwise() must follow a when() block at once")
        after = self._new_label()
        self.goto(after)
        self.emit(end)
        yield
        self.label(after)

    @contextmanager
    def loop(self, counter: Register, count: Value) -> Iterator[Loop]:
        """
        Do the block with the counter from 0 to count - 1; at least once.

        Shape:  `counter = 0` before the block, `counter += 1` and one jump back behind it.
        """
        loop = Loop(self, self._new_label(), self._new_label(), self._new_label())
        self.mov(counter, 0)
        self.label(loop.begin)
        yield loop
        self.label(loop.next)
        self.add(counter, 1)
        self.jump_if(counter, "<", count, loop.begin)
        self.label(loop.end)

    @contextmanager
    def within(self, number: Register, low: int, high: int) -> Iterator[None]:
        """
        Do the block if an unsigned number is at least `low` and at most `high`: the verifier then knows.

        Shape:  one jump over the block if low is 0, else two.
        """
        end = self._new_label()
        if low:
            self.jump_if(number, "<", low, end)
        self.jump_if(number, ">", high, end)
        yield
        self.label(end)

    @contextmanager
    def readable(self, pointer: Reg, size_bytes: int, *, end: Reg, scratch: Reg) -> Iterator[None]:
        """
        Do the block if so many bytes of a packet lie before its end.

        Shape:  `scratch = pointer`, `scratch += size_bytes` and one jump over the block.
        """
        after = self._new_label()
        self.mov(scratch, pointer)
        self.add(scratch, size_bytes)
        self.jump_if(scratch, ">", end, after)
        yield
        self.label(after)

    @contextmanager
    def function(self, name: str) -> Iterator[FunctionAddress]:
        """Define a subprogram; the value is its address, for helpers that call back."""
        around, self._items = self._items, [FunctionHere(name)]
        self._subprograms.append(self._items)
        try:
            yield FunctionAddress(name)
        finally:
            self._items = around

    def _new_label(self) -> str:
        self._labels += 1
        return f"L{self._labels}"

    # Results

    def map(
        self, name: str, type: MapType, *, key_size: int = 4, value_size: int = 8, max_entries: int = 1, flags: int = 0
    ) -> MapSpec:
        """Declare a map, to be loaded into a register with `mov`."""
        spec = MapSpec(name, type, key_size, value_size, max_entries, flags)
        self._maps.append(spec)
        return spec

    def jump_table(self, name: str, *labels: str) -> MapValue:
        """Declare a map of labels of this function; its value is the address of the first, 8 bytes each."""
        first = self._items[0] if self._items else None
        self._jump_tables.append((name, first.name if isinstance(first, FunctionHere) else "", labels))
        return MapValue(name)

    def items(self) -> list[Item]:
        """Everything so far: instructions, labels and functions."""
        return [*self._main, *(item for function in self._subprograms for item in function)]

    def program(self) -> Program:
        """Return the program. Raises EncodeError if a label or a function is not defined."""
        insns, functions = resolve(self.items())
        return Program(
            self.name,
            self.prog_type,
            tuple(insns),
            self.attach_type,
            self.attach_to,
            self.is_sleepable,
            self.license,
            functions,
        )

    def object(self) -> Object:
        """Return the program and its maps. Raises EncodeError as `program` does."""
        slots = label_slots(self.items())
        tables = []
        for name, function, labels in self._jump_tables:
            for label in labels:
                if (function, label) not in slots:
                    raise EncodeError(f"jump table {name!r}: label {label!r} is not defined")
            tables.append(jump_table(name, (slots[function, label] for label in labels)))
        return Object((*self._maps, *tables), (self.program(),))

    def __bytes__(self) -> bytes:
        return encode(resolve(self.items())[0], allow_symbols=True)

    def __repr__(self) -> str:
        lines = [f".prog {self.name} {self.prog_type.name.removeprefix('BPF_PROG_TYPE_').lower()}"]
        for item in self.items():
            if isinstance(item, Insn):
                lines.append("    " + format_insn(item))
            else:
                lines.append(f"{item.name}:" if isinstance(item, LabelHere) else f".func {item.name}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop under construction, to leave it or go on with it from inside its block."""

    builder: Builder
    begin: str
    next: str
    end: str

    def leave(self) -> None:
        """Jump behind the loop."""
        self.builder.goto(self.end)

    def go_on(self) -> None:
        """Jump to the next round."""
        self.builder.goto(self.next)


def _operands(left: Register, right: Value) -> tuple[Reg, Reg | int, int]:
    """Return both operands and their width; a register and its half do not mix."""
    width = 32 if isinstance(left, Word) else 64
    if isinstance(right, (Reg, Word)) and isinstance(right, Word) is not isinstance(left, Word):
        raise EncodeError(f"operands of different width: got {left!r} and {right!r}, expected both r or both w")
    return (
        left.reg if isinstance(left, Word) else left,
        right.reg if isinstance(right, Word) else right,
        width,
    )


def _whole(register: Register) -> Reg:
    if isinstance(register, Word):
        raise EncodeError(f"a 64-bit value in half a register: got {register!r}, expected {register.reg!r}")
    return register


def _load(to: Register, memory: Memory) -> Insn:
    register = to.reg if isinstance(to, Word) and memory.size is not Size.DW else to
    if isinstance(register, Word):
        raise EncodeError(f"{memory!r} in half a register: got {to!r}, expected {register.reg!r}")
    load = ldxsx if memory.is_signed else ldx
    return load(memory.size, register, memory.address.base, memory.address.offset_bytes)


def _store(memory: Memory, value: object) -> Insn:
    base, offset_bytes = memory.address.base, memory.address.offset_bytes
    if isinstance(value, Word) and memory.size is not Size.DW:
        value = value.reg
    if isinstance(value, Reg):
        return stx(memory.size, base, value, offset_bytes)
    if isinstance(value, int):
        return st(memory.size, base, offset_bytes, value)
    raise EncodeError(f"store to {memory!r}: got {value!r}, expected a register or a number")
