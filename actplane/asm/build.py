"""
Constructors: one function for each kind of instruction, each returning a checked `Insn`.

A second operand may be a `Reg` or a number; a jump target is a slot offset or the name of a label.
Every constructor raises EncodeError, naming the field, if an operand does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from actplane.asm.insn import FunctionAddress, Insn, Kfunc, Label, MapFd, MapValue, Subprogram, Symbol
from actplane.asm.isa import FORMS, Form, Kind
from actplane.asm.operands import Reg, Size
from actplane.errors import EncodeError

if TYPE_CHECKING:
    from actplane.asm.uapi import HelperId

Operand = Reg | int
Target = int | str

_Key = TypeVar("_Key")
_Name = TypeVar("_Name", MapFd, FunctionAddress, Subprogram, Kfunc)

_ALU = {(form.name, form.has_register_source): form for form in FORMS if form.kind is Kind.ALU}
_JUMP = {(form.operation, form.width, form.has_register_source): form for form in FORMS if form.kind is Kind.JUMP}
_MOVSX = {(form.width, form.bits): form for form in FORMS if form.kind is Kind.MOVSX}
_END = {(form.name, form.bits): form for form in FORMS if form.kind is Kind.END}
_ATOMIC = {(form.operation, form.size): form for form in FORMS if form.kind is Kind.ATOMIC}
_BY_SIZE: dict[tuple[Kind, Size], Form] = {
    (form.kind, form.size): form for form in FORMS if form.size is not None and form.kind is not Kind.LD_IMM64
}
_BY_NAME = {form.name: form for form in FORMS}


def checked(form: Form, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0, symbol: Symbol | None = None) -> Insn:
    """
    Return an instruction of a form; fields that the form fixes to one value are filled in.

    Raises: EncodeError if a field is out of its range.
    """
    if src == 0:
        src = form.src.low if form.src.is_fixed else 0
    if off == 0 and form.off.is_fixed:
        off = form.off.low
    if imm == 0 and form.imm.is_fixed:
        imm = form.imm.low
    for name, value in (("dst", dst), ("src", src), ("off", off), ("imm", imm)):
        rule = getattr(form, name)
        if value not in rule:
            raise EncodeError(f"{form.name} (code {form.code:#04x}): {name}: got {value!r}, expected {rule.expected}")
    return Insn(form.code, int(dst), int(src), int(off), int(imm), symbol)


def alu(operation: str, dst: Reg, operand: Operand, width: int = 64) -> Insn:
    """
    Compute: dst operation= operand, in 64 or 32 bits.

    Source: RFC 9669, section 4.1.

    >>> alu("add", Reg.R1, -8).encode().hex()
    '07010000f8ffffff'
    """
    is_register = isinstance(operand, Reg)
    form = _ALU.get((f"{operation}{width}", is_register))
    if form is None:
        names = ", ".join(sorted({form.operation for form in _ALU.values()}))
        raise EncodeError(f"unknown operation {operation!r} in {width} bits: expected one of {names} in 32 or 64 bits")
    return checked(form, dst, src=operand) if is_register else checked(form, dst, imm=operand)


def _alu_constructor(name: str) -> Callable[[Reg, Operand], Insn]:
    operation, width = name[:-2], int(name[-2:])

    def constructor(dst: Reg, operand: Operand) -> Insn:
        return alu(operation, dst, operand, width)

    constructor.__name__ = constructor.__qualname__ = name
    constructor.__doc__ = f"Compute dst {_ALU[name, True].operator} operand in {width} bits; see `alu`."
    return constructor


add64, add32 = _alu_constructor("add64"), _alu_constructor("add32")
sub64, sub32 = _alu_constructor("sub64"), _alu_constructor("sub32")
mul64, mul32 = _alu_constructor("mul64"), _alu_constructor("mul32")
div64, div32 = _alu_constructor("div64"), _alu_constructor("div32")
sdiv64, sdiv32 = _alu_constructor("sdiv64"), _alu_constructor("sdiv32")
mod64, mod32 = _alu_constructor("mod64"), _alu_constructor("mod32")
smod64, smod32 = _alu_constructor("smod64"), _alu_constructor("smod32")
or64, or32 = _alu_constructor("or64"), _alu_constructor("or32")
and64, and32 = _alu_constructor("and64"), _alu_constructor("and32")
xor64, xor32 = _alu_constructor("xor64"), _alu_constructor("xor32")
lsh64, lsh32 = _alu_constructor("lsh64"), _alu_constructor("lsh32")
rsh64, rsh32 = _alu_constructor("rsh64"), _alu_constructor("rsh32")
arsh64, arsh32 = _alu_constructor("arsh64"), _alu_constructor("arsh32")
mov64, mov32 = _alu_constructor("mov64"), _alu_constructor("mov32")


def neg64(dst: Reg) -> Insn:
    """Negate: dst = -dst in 64 bits."""
    return checked(_BY_NAME["neg64"], dst)


def neg32(dst: Reg) -> Insn:
    """Negate: dst = (u32)-dst."""
    return checked(_BY_NAME["neg32"], dst)


def movsx64(dst: Reg, src: Reg, bits: int) -> Insn:
    """Extend the sign of the low 8, 16 or 32 bits of src to 64."""
    return checked(_choose(_MOVSX, (64, bits), "movsx64", bits, "8, 16 or 32 bits"), dst, src)


def movsx32(dst: Reg, src: Reg, bits: int) -> Insn:
    """Extend the sign of the low 8 or 16 bits of src to 32, and clear the upper half."""
    return checked(_choose(_MOVSX, (32, bits), "movsx32", bits, "8 or 16 bits"), dst, src)


def addr_space_cast(dst: Reg, src: Reg, to: int, from_: int) -> Insn:
    """Turn a pointer of one address space into one of another: 1 is the arena, 0 the kernel."""
    return checked(_BY_NAME["addr_space_cast"], dst, src, imm=to << 16 | from_)


def le(dst: Reg, bits: int) -> Insn:
    """Turn the low 16, 32 or 64 bits of dst from the machine's byte order to little-endian."""
    return checked(_choose(_END, ("le", bits), "le", bits, "16, 32 or 64 bits"), dst)


def be(dst: Reg, bits: int) -> Insn:
    """Turn the low 16, 32 or 64 bits of dst from the machine's byte order to big-endian."""
    return checked(_choose(_END, ("be", bits), "be", bits, "16, 32 or 64 bits"), dst)


def bswap(dst: Reg, bits: int) -> Insn:
    """Reverse the bytes of the low 16, 32 or 64 bits of dst."""
    return checked(_choose(_END, ("bswap", bits), "bswap", bits, "16, 32 or 64 bits"), dst)


def ldx(size: Size, dst: Reg, src: Reg, off: int = 0) -> Insn:
    """
    Load memory: dst = *(size *)(src + off), zero-extended.

    Units:  off is bytes, signed 16 bits.
    Source: RFC 9669, section 5.1.

    >>> ldx(Size.DW, Reg.R1, Reg.R10, -8).encode().hex()
    '79a1f8ff00000000'
    """
    return checked(_of_size(Kind.LDX, size), dst, src, off)


def ldxsx(size: Size, dst: Reg, src: Reg, off: int = 0) -> Insn:
    """Load memory and extend its sign: dst = *(signed size *)(src + off); size is B, H or W."""
    return checked(_of_size(Kind.LDXSX, size), dst, src, off)


def st(size: Size, dst: Reg, off: int, imm: int) -> Insn:
    """Store a number: *(size *)(dst + off) = imm."""
    return checked(_of_size(Kind.ST, size), dst, 0, off, imm)


def stx(size: Size, dst: Reg, src: Reg, off: int = 0) -> Insn:
    """Store a register: *(size *)(dst + off) = src."""
    return checked(_of_size(Kind.STX, size), dst, src, off)


def atomic(operation: str, size: Size, dst: Reg, src: Reg, off: int = 0, *, fetch: bool = False) -> Insn:
    """
    Change memory at once: *(size *)(dst + off) operation= src.

    `operation` is add, or, and, xor, xchg or cmpxchg. With `fetch` src gets the old value; xchg does
    so always, and cmpxchg compares with r0 and leaves the old value there.

    Source: RFC 9669, section 5.3. Size is W or DW.
    """
    name = operation
    if fetch and "xchg" not in operation and not operation.startswith("fetch_"):
        name = f"fetch_{operation}"
    expected = "add, or, and, xor, xchg or cmpxchg of Size.W or Size.DW"
    return checked(_choose(_ATOMIC, (name, size), "atomic", f"{operation} {size}", expected), dst, src, off)


def load_acquire(size: Size, dst: Reg, src: Reg, off: int = 0) -> Insn:
    """Load with acquire order: dst = *(size *)(src + off)."""
    return checked(_of_size(Kind.LOAD_ACQUIRE, size), dst, src, off)


def store_release(size: Size, dst: Reg, src: Reg, off: int = 0) -> Insn:
    """Store with release order: *(size *)(dst + off) = src."""
    return checked(_of_size(Kind.STORE_RELEASE, size), dst, src, off)


def ld_abs(size: Size, offset_bytes: int) -> Insn:
    """Load packet data, legacy: r0 = *(size *)skb[offset_bytes], in host order."""
    return checked(_of_size(Kind.LD_ABS, size), imm=offset_bytes)


def ld_ind(size: Size, src: Reg, offset_bytes: int = 0) -> Insn:
    """Load packet data, legacy: r0 = *(size *)skb[src + offset_bytes], in host order."""
    return checked(_of_size(Kind.LD_IND, size), src=src, imm=offset_bytes)


def ld_imm64(dst: Reg, value: int) -> Insn:
    """
    Load a 64-bit number; a negative one in two's complement.

    Shape:  one instruction of two slots.
    Source: RFC 9669, section 5.4.

    >>> ld_imm64(Reg.R1, -1).imm == (1 << 64) - 1
    True
    """
    if isinstance(value, int) and -(1 << 63) <= value < 0:
        value += 1 << 64
    return checked(_BY_NAME["ld_imm64"], dst, imm=value)


def ld_map_fd(dst: Reg, map_: MapFd | str | int) -> Insn:
    """Load the address of a map: by name, for the loader to fill in, or by file descriptor."""
    form = _BY_NAME["ld_map_fd"]
    if isinstance(map_, int):
        return checked(form, dst, imm=map_)
    return checked(form, dst, symbol=_named(MapFd, map_))


def ld_map_value(dst: Reg, value: MapValue | tuple[int, int]) -> Insn:
    """Load the address of a byte in the first value of an array: by name, or by (fd, offset_bytes)."""
    form = _BY_NAME["ld_map_value"]
    if isinstance(value, MapValue):
        return checked(form, dst, imm=value.offset_bytes << 32, symbol=value)
    match value:
        case (int(fd), int(offset_bytes)):
            return checked(form, dst, imm=offset_bytes << 32 | fd)
        case _:
            raise EncodeError(f"ld_map_value: got {value!r}, expected a MapValue or (fd, offset_bytes)")


def ld_btf_id(dst: Reg, btf_id: int, module_fd: int = 0) -> Insn:
    """Load the address of a kernel variable by its id in BTF."""
    return checked(_BY_NAME["ld_btf_id"], dst, imm=module_fd << 32 | btf_id)


def ld_func(dst: Reg, function: FunctionAddress | str | int) -> Insn:
    """Load the address of a subprogram for a callback: by name, or by slots from the next slot on."""
    form = _BY_NAME["ld_func"]
    if isinstance(function, int):
        return checked(form, dst, imm=function)
    return checked(form, dst, symbol=_named(FunctionAddress, function))


def ld_map_idx(dst: Reg, index: int) -> Insn:
    """Load the address of a map by its index in the fd_array of BPF_PROG_LOAD."""
    return checked(_BY_NAME["ld_map_idx"], dst, imm=index)


def ld_map_idx_value(dst: Reg, index: int, offset_bytes: int = 0) -> Insn:
    """Load the address of a byte in the first value of the array at an index of fd_array."""
    return checked(_BY_NAME["ld_map_idx_value"], dst, imm=offset_bytes << 32 | index)


def jmp(operation: str, dst: Reg, operand: Operand, target: Target, width: int = 64) -> Insn:
    """
    Jump if a comparison holds: if dst operation operand goto target.

    `operation` is jeq, jne, jgt, jge, jlt, jle, jsgt, jsge, jslt, jsle or jset.

    Source: RFC 9669, section 4.3.
    """
    is_register = isinstance(operand, Reg)
    expected = "jeq, jne, jgt, jge, jlt, jle, jsgt, jsge, jslt, jsle or jset in 32 or 64 bits"
    form = _choose(_JUMP, (operation, width, is_register), "jmp", f"{operation} {width}", expected)
    off, symbol = _target(target)
    return checked(form, dst, operand if is_register else 0, off, 0 if is_register else operand, symbol)


def ja(target: Target) -> Insn:
    """Jump always, at most 32,767 slots."""
    off, symbol = _target(target)
    return checked(_BY_NAME["ja"], off=off, symbol=symbol)


def gotol(target: Target) -> Insn:
    """Jump always, with a 32-bit offset."""
    imm, symbol = _target(target)
    return checked(_BY_NAME["gotol"], imm=imm, symbol=symbol)


def gotox(dst: Reg) -> Insn:
    """
    Jump to the instruction whose address is in dst: one that was loaded from an array of instructions.

    Source: Linux 6.19, kernel/bpf/verifier.c (check_indirect_jump); see `jump_tables`.
    """
    return checked(_BY_NAME["gotox"], dst)


def may_goto(target: Target) -> Insn:
    """Jump when the kernel's budget for loops is spent."""
    off, symbol = _target(target)
    return checked(_BY_NAME["may_goto"], off=off, symbol=symbol)


def call(function: HelperId | int) -> Insn:
    """Call a helper function by its number."""
    return checked(_BY_NAME["call"], imm=function)


def call_sub(function: Subprogram | str | int) -> Insn:
    """Call a subprogram: by name, or by slots from the next instruction on."""
    form = _BY_NAME["call_sub"]
    if isinstance(function, int):
        return checked(form, imm=function)
    return checked(form, symbol=_named(Subprogram, function))


def call_kfunc(function: Kfunc | str | int, fd_index: int = 0) -> Insn:
    """Call a kernel function: by name, or by its id in the BTF at an index of fd_array (0: vmlinux)."""
    form = _BY_NAME["call_kfunc"]
    if isinstance(function, int):
        return checked(form, off=fd_index, imm=function)
    return checked(form, off=fd_index, symbol=_named(Kfunc, function))


def callx(dst: Reg) -> Insn:
    """Call the function at an address. LLVM emits it; Linux refuses it."""
    return checked(_BY_NAME["callx"], dst)


def exit_() -> Insn:
    """Return r0 to the caller."""
    return checked(_BY_NAME["exit"])


def _target(target: Target) -> tuple[int, Label | None]:
    return (0, Label(target)) if isinstance(target, str) else (target, None)


def _named(kind: type[_Name], what: _Name | str) -> _Name:
    if isinstance(what, str):
        return kind(what)
    if isinstance(what, kind):
        return what
    raise EncodeError(f"got {what!r}, expected a number, a name or {kind.__name__}(name)")


def _of_size(kind: Kind, size: Size) -> Form:
    form = _BY_SIZE.get((kind, size))
    if form is None:
        sizes = " or ".join(str(known) for of, known in _BY_SIZE if of is kind)
        raise EncodeError(f"{kind.value}: got {size}, expected {sizes}")
    return form


def _choose(forms: Mapping[_Key, Form], key: _Key, what: str, got: object, expected: str) -> Form:
    form = forms.get(key)
    if form is None:
        raise EncodeError(f"{what}: got {got}, expected {expected}")
    return form
