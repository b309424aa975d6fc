"""
Instructions as values. One `Insn` is one instruction of the kernel's instruction set, no more:
nothing here stands for anything that is rewritten later.

What is not known before load (a map's descriptor, the offset of a kernel field, an id in the
kernel's BTF) is a `Symbol` beside the fields; the loader returns the same instruction with the
symbol resolved.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from actplane.asm.isa import LD_IMM64, Form, find_form, why_invalid
from actplane.errors import EncodeError
from actplane.source import Span


@dataclass(frozen=True, slots=True)
class MapFd:
    """`ld_imm64`: the address of a map (BPF_PSEUDO_MAP_FD)."""

    name: str


@dataclass(frozen=True, slots=True)
class MapValue:
    """`ld_imm64`: the address of a byte in the first value of an array map (BPF_PSEUDO_MAP_VALUE)."""

    name: str
    offset_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FunctionAddress:
    """`ld_imm64`: the address of a subprogram, for callbacks (BPF_PSEUDO_FUNC)."""

    name: str


@dataclass(frozen=True, slots=True)
class Kfunc:
    """`call`: a kernel function by its name in BTF (BPF_PSEUDO_KFUNC_CALL)."""

    name: str


@dataclass(frozen=True, slots=True)
class Subprogram:
    """`call`: a subprogram of this program by name (BPF_PSEUDO_CALL)."""

    name: str


@dataclass(frozen=True, slots=True)
class Label:
    """A jump: the name of the instruction to go to."""

    name: str


@dataclass(frozen=True, slots=True)
class Field:
    """
    The byte offset of a field in a kernel struct, from the running kernel's BTF.

    `path` is dotted and may pass through embedded structs, unions and array indexes
    ("f_path.dentry", "__sk_common.skc_daddr"); `alternatives` cope with fields that moved between
    kernels. The offset is added to `off` of a load or store, and to `imm` of anything else.
    """

    struct: str
    path: str
    alternatives: tuple[tuple[str, str], ...] = ()
    """Further (struct, path) pairs, tried in order when the first does not exist."""


@dataclass(frozen=True, slots=True)
class EnumValue:
    """The value of an enumerator in the kernel's BTF; it is added to `imm`."""

    enum: str
    name: str


@dataclass(frozen=True, slots=True)
class TypeSize:
    """The size in bytes of a kernel type; it is added to `imm`."""

    struct: str


@dataclass(frozen=True, slots=True)
class Unresolved:
    """
    `call` of a helper that does not exist, in the place of an instruction that needs something which a
    kernel does not have. `problem` says what. A verifier refuses it where it is reached.
    """

    problem: str


Symbol = MapFd | MapValue | FunctionAddress | Kfunc | Subprogram | Label | Field | EnumValue | TypeSize | Unresolved


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Insn:
    """
    One instruction.

    Shape:  `code`, `dst`, `src`, `off`, `imm` are the fields of the 8-byte slot. `ld_imm64`
            is one `Insn` of two slots whose `imm` holds all 64 bits: the low half is the
            imm of the first slot, the high half that of the second.
    Units:  `off` of a jump counts slots after the next one, of a load or store bytes.
    """

    code: int
    dst: int = 0
    src: int = 0
    off: int = 0
    imm: int = 0
    symbol: Symbol | None = None
    span: Span | None = field(default=None, compare=False)
    """Where the instruction came from; two instructions are equal whatever their places."""

    def __init__(
        self,
        code: int,
        dst: int = 0,
        src: int = 0,
        off: int = 0,
        imm: int = 0,
        symbol: Symbol | None = None,
        span: Span | None = None,
    ) -> None:
        # What a frozen dataclass generates sets each field through object.__setattr__, by name;
        # the descriptors of the slots do it in 60 % of the time, and decoding is made of this.
        _set_code(self, code)
        _set_dst(self, dst)
        _set_src(self, src)
        _set_off(self, off)
        _set_imm(self, imm)
        _set_symbol(self, symbol)
        _set_span(self, span)

    @property
    def slots(self) -> int:
        """How many 8-byte slots the instruction takes: 2 for ld_imm64, else 1."""
        return 2 if self.code == LD_IMM64 else 1

    def __str__(self) -> str:
        """The instruction in the kernel's syntax; raises EncodeError if it is none."""
        from actplane.asm.disasm import format_insn

        return format_insn(self)

    def __repr__(self) -> str:
        try:
            return f"Insn({self})"
        except EncodeError:
            code = f"{self.code:#04x}" if isinstance(self.code, int) else repr(self.code)
            fields = f"code={code}, dst={self.dst}, src={self.src}, off={self.off}, imm={self.imm}"
            return f"Insn({fields}, invalid)"

    def encode(self) -> bytes:
        """Return the 8 or 16 bytes of the instruction; see `encoding.encode`."""
        from actplane.asm.encoding import encode

        return encode((self,))


_set_code, _set_dst, _set_src, _set_off, _set_imm, _set_symbol, _set_span = (
    getattr(Insn, name).__set__ for name in ("code", "dst", "src", "off", "imm", "symbol", "span")
)


def form_of(insn: Insn) -> Form:
    """
    Return what an instruction is.

    Raises: EncodeError if its fields are no valid instruction; the message names the field.

    >>> form_of(Insn(0x95)).kind
    <Kind.EXIT: 'exit'>
    """
    form = find_form(insn.code, insn.dst, insn.src, insn.off, insn.imm)
    if form is None:
        raise EncodeError(why_invalid(insn.code, insn.dst, insn.src, insn.off, insn.imm))
    return form


def place(insn: Insn, span: Span) -> Insn:
    """Say where an instruction that nobody else has seen yet came from, without making another."""
    _set_span(insn, span)
    return insn
