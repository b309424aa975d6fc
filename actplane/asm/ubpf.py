"""
The syntax of uBPF and of the BPF conformance suite: what its statements build, and its printer.

Immediates are raw 32 bits there: `jeq %r1, 0xffffffff, +1` compares with -1. Instructions uBPF has
no word for are printed as the kernel prints them; the assembler reads both.
"""

from __future__ import annotations

from actplane.asm.insn import Insn, Label, Subprogram
from actplane.asm.isa import FORMS, Form, Kind
from actplane.asm.operands import Size
from actplane.asm.reading import Operands
from actplane.asm.statement import wide_number

_ALU = {(f.operation, f.width, f.has_register_source): f for f in FORMS if f.kind is Kind.ALU}
_JUMP = {(f.operation, f.width, f.has_register_source): f for f in FORMS if f.kind is Kind.JUMP}
_SIZES = {"b": Size.B, "h": Size.H, "w": Size.W, "dw": Size.DW}
_LETTERS = {size: letters for letters, size in _SIZES.items()}
_MEMORY = {(f.kind, f.size): f for f in FORMS if f.size is not None}
_ATOMIC = {(f.operation, f.width): f for f in FORMS if f.kind is Kind.ATOMIC}
_SWAP = {f"{f.operation}{f.bits}": f for f in FORMS if f.kind is Kind.END}
_MOVSX = {f"movsx{f.bits}{f.width}": f for f in FORMS if f.kind is Kind.MOVSX}
_NEG = {f.width: f for f in FORMS if f.kind is Kind.NEG}


def _name_and_width(text: str) -> tuple[str, int]:
    name = text.rstrip("0123456789")
    return name, int(text[len(name) :] or 64)


def _two_operands(forms: dict[tuple[str, int, bool], Form], o: Operands, is_register: bool) -> Form:
    name, width = _name_and_width(o.text("op"))
    return forms[name, width, is_register]


def _raw_32(o: Operands) -> int:
    value = o.number("imm", -(1 << 31), (1 << 32) - 1)
    return value - (1 << 32) if value >> 31 == 1 else value


def _alu(form: Form, o: Operands, src: int, imm: int = 0) -> Insn:
    return Insn(form.code, o.register("dst"), src, form.off.low, imm)


def alu_register(o: Operands) -> Insn:
    return _alu(_two_operands(_ALU, o, True), o, o.register("src"))


def alu_number(o: Operands) -> Insn:
    return _alu(_two_operands(_ALU, o, False), o, 0, _raw_32(o))


def negate(o: Operands) -> Insn:
    return _alu(_NEG[32 if o.text("op") == "neg32" else 64], o, 0)


def swap(o: Operands) -> Insn:
    name = o.text("op")
    form = _SWAP["b" + name if name.startswith("swap") else name]
    return _alu(form, o, 0, form.bits)


def sign_extend(o: Operands) -> Insn:
    form = _MOVSX.get(o.text("op"))
    if form is None:
        raise o.error("op", f"no such move: got {o.text('op')}, expected one of {', '.join(_MOVSX)}")
    return _alu(form, o, o.register("src"))


def load(o: Operands) -> Insn:
    name = o.text("op").removeprefix("ldx")
    kind = Kind.LDXSX if name.startswith("s") else Kind.LDX
    form = _MEMORY[kind, _SIZES[name.removeprefix("s")]]
    return Insn(form.code, o.register("dst"), o.register("src"), o.offset())


def store(o: Operands) -> Insn:
    form = _MEMORY[Kind.STX, _SIZES[o.text("op").removeprefix("stx")]]
    return Insn(form.code, o.register("base"), o.register("src"), o.offset())


def store_number(o: Operands) -> Insn:
    form = _MEMORY[Kind.ST, _SIZES[o.text("op").removeprefix("st")]]
    return Insn(form.code, o.register("base"), 0, o.offset(), _raw_32(o))


def atomic(o: Operands) -> Insn:
    name, width = _name_and_width(o.text("op"))
    form = _ATOMIC["_".join(name.replace("_", " ").split()), width]
    return Insn(form.code, o.register("base"), o.register("src"), o.offset(), form.imm.low)


def jump_register(o: Operands) -> Insn:
    slots, label = o.target()
    form = _two_operands(_JUMP, o, True)
    return Insn(form.code, o.register("dst"), o.register("src"), slots, 0, Label(label) if label else None)


def jump_number(o: Operands) -> Insn:
    slots, label = o.target()
    form = _two_operands(_JUMP, o, False)
    return Insn(form.code, o.register("dst"), 0, slots, _raw_32(o), Label(label) if label else None)


def wide(o: Operands) -> Insn:
    return wide_number(o)


def text_of(insn: Insn, form: Form) -> str | None:
    """Return the text of an instruction, or None if uBPF has no word for it."""
    dst, src = f"%r{insn.dst}", f"%r{insn.src}"
    suffix = "32" if form.width == 32 else ""
    operand = src if form.has_register_source else str(insn.imm)
    at_dst, at_src = f"[{dst}{insn.off:+d}]", f"[{src}{insn.off:+d}]"
    letters = _LETTERS[form.size] if form.size else ""
    label = insn.symbol.name if isinstance(insn.symbol, (Label, Subprogram)) else ""
    if insn.symbol is not None and not label:
        return None
    match form.kind:
        case Kind.ALU:
            return f"{form.operation}{suffix} {dst}, {operand}"
        case Kind.NEG:
            return f"neg{suffix} {dst}"
        case Kind.MOVSX:
            return f"movsx{form.bits}{form.width} {dst}, {src}"
        case Kind.END:
            return f"{form.operation}{form.bits} {dst}"
        case Kind.JUMP:
            return f"{form.operation}{suffix} {dst}, {operand}, {label or format(insn.off, '+d')}"
        case Kind.JA:
            return f"ja {label or format(insn.off, '+d')}"
        case Kind.GOTOL:
            return f"ja32 {label or format(insn.imm, '+d')}"
        case Kind.CALL_HELPER if insn.imm >= 0:
            return f"call {insn.imm}"
        case Kind.CALL_SUBPROGRAM:
            return f"call local {label or format(insn.imm, '+d')}"
        case Kind.EXIT:
            return "exit"
        case Kind.LD_IMM64 if insn.src == 0:
            return f"lddw {dst}, {insn.imm:#x}"
        case Kind.LDX:
            return f"ldx{letters} {dst}, {at_src}"
        case Kind.LDXSX:
            return f"ldxs{letters} {dst}, {at_src}"
        case Kind.ST:
            return f"st{letters} {at_dst}, {insn.imm}"
        case Kind.STX:
            return f"stx{letters} {at_dst}, {src}"
        case Kind.ATOMIC:
            return f"lock {form.operation.replace('_', ' ')}{suffix} {at_dst}, {src}"
        case _:
            return None
