"""
Instructions to text, in four dialects.

`kernel`    the kernel's syntax, exact: `assemble` reads back the same bytes. Numbers are decimal,
            64-bit immediates carry ` ll`, and where they come from is spelled out (`map[fd:3]`).
`verifier`  what a verifier log of Linux 6.12 and newer and `bpftool prog dump xlated` print, with
            the code of each line in front. What that syntax leaves out (the source of a 64-bit
            immediate) is lost.
`llvm`      what LLVM's disassembler prints.
`ubpf`      the syntax of uBPF and of the BPF conformance suite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from actplane.asm import isa, ubpf
from actplane.asm.insn import (
    EnumValue,
    Field,
    FunctionAddress,
    Insn,
    Kfunc,
    Label,
    MapFd,
    MapValue,
    Subprogram,
    TypeSize,
    form_of,
)
from actplane.asm.isa import Form, Kind
from actplane.asm.operands import Size
from actplane.asm.uapi import HelperId

Formatter = Callable[[Insn, Form], str]


def format_insn(insn: Insn, dialect: str = "kernel") -> str:
    """
    Return the text of one instruction.

    Raises: EncodeError if its fields are no valid instruction; ValueError for an unknown dialect.

    >>> format_insn(Insn(0x79, 1, 10, -8))
    'r1 = *(u64 *)(r10 -8)'
    >>> format_insn(Insn(0x15, 1, off=4, imm=16), "verifier")
    '(15) if r1 == 0x10 goto pc+4'
    """
    return _formatter(dialect)(insn)


def disassemble_insns(insns: Iterable[Insn], dialect: str = "kernel") -> list[str]:
    """Return the text of each instruction; raises as `format_insn` does."""
    formatter = _formatter(dialect)
    return [formatter(insn) for insn in insns]


def _formatter(dialect: str) -> Callable[[Insn], str]:
    try:
        return _DIALECTS[dialect]
    except KeyError:
        raise ValueError(f"unknown dialect {dialect!r}: expected one of {', '.join(_DIALECTS)}") from None


# What all dialects of the C-like syntax share.


def _name(form: Form, register: int) -> str:
    return f"w{register}" if form.width == 32 else f"r{register}"


def _alu(insn: Insn, form: Form) -> str:
    operand = _name(form, insn.src) if form.has_register_source else _number(insn)
    return f"{_name(form, insn.dst)} {form.operator} {operand}"


def _neg(insn: Insn, form: Form) -> str:
    name = _name(form, insn.dst)
    return f"{name} = -{name}"


def _movsx(insn: Insn, form: Form) -> str:
    return f"{_name(form, insn.dst)} = (s{form.bits}){_name(form, insn.src)}"


def _cast(insn: Insn, form: Form) -> str:
    return f"r{insn.dst} = addr_space_cast(r{insn.src}, {insn.imm >> 16}, {insn.imm & 0xFFFF})"


def _end(insn: Insn, form: Form) -> str:
    return f"r{insn.dst} = {form.operation}{form.bits} r{insn.dst}"


def _exit(insn: Insn, form: Form) -> str:
    return "exit"


def _callx(insn: Insn, form: Form) -> str:
    return f"callx r{insn.dst}"


def _number(insn: Insn) -> str:
    """The immediate, with what the kernel's BTF adds to it."""
    if insn.symbol is None or isinstance(insn.symbol, Label):
        return str(insn.imm)
    symbol = _symbolic_number(insn)
    return f"{insn.imm} + {symbol}" if insn.imm else symbol


def _symbolic_number(insn: Insn) -> str:
    match insn.symbol:
        case Field(struct, path, alternatives):
            return "field(" + " | ".join(f"{s}.{p}" for s, p in ((struct, path), *alternatives)) + ")"
        case EnumValue(enum, name):
            return f"enum({enum}.{name})"
        case TypeSize(struct):
            return f"sizeof({struct})"
        case other:
            return f"<{other!r}>"


def _goto(insn: Insn, slots: int) -> str:
    return insn.symbol.name if isinstance(insn.symbol, Label) else f"{slots:+d}"


# The kernel's syntax, made exact.


def _at(insn: Insn, register: int) -> str:
    """A memory operand as the kernel writes it: `(r10 -8)`."""
    if isinstance(insn.symbol, Field):
        return f"(r{register} {insn.off:+d} + {_symbolic_number(insn)})"
    return f"(r{register} {insn.off:+d})"


def _type(form: Form, sign: str = "u") -> str:
    assert form.size is not None
    return f"{sign}{form.size.bits}"


def _jump(insn: Insn, form: Form) -> str:
    operand = _name(form, insn.src) if form.has_register_source else _number(insn)
    return f"if {_name(form, insn.dst)} {form.operator} {operand} goto {_goto(insn, insn.off)}"


def _ja(insn: Insn, form: Form) -> str:
    return f"goto {_goto(insn, insn.off)}"


def _gotol(insn: Insn, form: Form) -> str:
    return f"gotol {_goto(insn, insn.imm)}"


def _gotox(insn: Insn, form: Form) -> str:
    return f"gotox r{insn.dst}"


def _may_goto(insn: Insn, form: Form) -> str:
    return f"may_goto {_goto(insn, insn.off)}"


def _call(insn: Insn, form: Form) -> str:
    return f"call {_helper_name(insn.imm)}#{insn.imm}"


def _helper_name(number: int) -> str:
    name = _HELPERS.get(number)
    return "unknown" if name is None else name


_HELPERS = {int(helper): helper.name for helper in HelperId}


def _call_sub(insn: Insn, form: Form) -> str:
    return f"call {insn.symbol.name}" if isinstance(insn.symbol, Subprogram) else f"call pc{insn.imm:+d}"


def _call_kfunc(insn: Insn, form: Form) -> str:
    name = f"{insn.symbol.name}#kfunc" if isinstance(insn.symbol, Kfunc) else f"kernel-function#{insn.imm}"
    return f"call {name}" + (f" fd_array[{insn.off}]" if insn.off else "")


def _ld_imm64(insn: Insn, form: Form) -> str:
    return f"r{insn.dst} = {_wide_source(insn)}"


def _wide_source(insn: Insn) -> str:
    low, high = insn.imm & 0xFFFFFFFF, insn.imm >> 32
    match insn.symbol, insn.src:
        case MapFd(name), _:
            return f"map[{name}]"
        case MapValue(name, offset_bytes), _:
            return f"map[{name}][0]{offset_bytes:+d}"
        case FunctionAddress(name), _:
            return f"subprog[{name}]"
        case _, isa.PSEUDO_MAP_FD:
            return f"map[fd:{low}]"
        case _, isa.PSEUDO_MAP_VALUE:
            return f"map[fd:{low}][0]{high:+d}"
        case _, isa.PSEUDO_BTF_ID:
            return f"btf[id:{low}]" + (f"[fd:{high}]" if high else "")
        case _, isa.PSEUDO_FUNC:
            return f"subprog[{insn.imm:+d}]"
        case _, isa.PSEUDO_MAP_IDX:
            return f"map[idx:{low}]"
        case _, isa.PSEUDO_MAP_IDX_VALUE:
            return f"map[idx:{low}][0]{high:+d}"
        case _:
            return f"{_number(insn) if insn.symbol else hex(insn.imm)} ll"


def _ld_abs(insn: Insn, form: Form) -> str:
    return f"r0 = *({_type(form)} *)skb[{insn.imm}]"


def _ld_ind(insn: Insn, form: Form) -> str:
    return f"r0 = *({_type(form)} *)skb[r{insn.src} + {insn.imm}]"


def _ldx(insn: Insn, form: Form) -> str:
    return f"r{insn.dst} = *({_type(form)} *){_at(insn, insn.src)}"


def _ldxsx(insn: Insn, form: Form) -> str:
    return f"r{insn.dst} = *({_type(form, 's')} *){_at(insn, insn.src)}"


def _st(insn: Insn, form: Form) -> str:
    number = str(insn.imm) if isinstance(insn.symbol, Field) else _number(insn)
    return f"*({_type(form)} *){_at(insn, insn.dst)} = {number}"


def _stx(insn: Insn, form: Form) -> str:
    return f"*({_type(form)} *){_at(insn, insn.dst)} = r{insn.src}"


def _atomic(insn: Insn, form: Form) -> str:
    place = f"({_type(form)} *){_at(insn, insn.dst)}"
    if not form.is_fetch:
        return f"lock *{place} {form.operator} r{insn.src}"
    name = f"atomic{'64' if form.width == 64 else ''}_{form.operation}"
    if form.operation == "cmpxchg":
        return f"r0 = {name}({place}, r0, r{insn.src})"
    return f"r{insn.src} = {name}({place}, r{insn.src})"


def _load_acquire(insn: Insn, form: Form) -> str:
    return f"r{insn.dst} = load_acquire(({_type(form)} *){_at(insn, insn.src)})"


def _store_release(insn: Insn, form: Form) -> str:
    return f"store_release(({_type(form)} *){_at(insn, insn.dst)}, r{insn.src})"


_KERNEL: Mapping[Kind, Formatter] = {
    Kind.ALU: _alu,
    Kind.NEG: _neg,
    Kind.MOVSX: _movsx,
    Kind.ADDR_SPACE_CAST: _cast,
    Kind.END: _end,
    Kind.JA: _ja,
    Kind.GOTOL: _gotol,
    Kind.GOTOX: _gotox,
    Kind.MAY_GOTO: _may_goto,
    Kind.JUMP: _jump,
    Kind.CALL_HELPER: _call,
    Kind.CALL_SUBPROGRAM: _call_sub,
    Kind.CALL_KFUNC: _call_kfunc,
    Kind.CALLX: _callx,
    Kind.EXIT: _exit,
    Kind.LD_IMM64: _ld_imm64,
    Kind.LD_ABS: _ld_abs,
    Kind.LD_IND: _ld_ind,
    Kind.LDX: _ldx,
    Kind.LDXSX: _ldxsx,
    Kind.ST: _st,
    Kind.STX: _stx,
    Kind.ATOMIC: _atomic,
    Kind.LOAD_ACQUIRE: _load_acquire,
    Kind.STORE_RELEASE: _store_release,
}

# What the kernel itself prints differs only here.


def _jump_verifier(insn: Insn, form: Form) -> str:
    operand = _name(form, insn.src) if form.has_register_source else f"{insn.imm & 0xFFFFFFFF:#x}"
    return f"if {_name(form, insn.dst)} {form.operator} {operand} goto pc{insn.off:+d}"


_VERIFIER: Mapping[Kind, Formatter] = {
    **_KERNEL,
    Kind.JUMP: _jump_verifier,
    Kind.JA: lambda insn, form: f"goto pc{insn.off:+d}",
    Kind.GOTOL: lambda insn, form: f"gotol pc{insn.imm:+d}",
    Kind.MAY_GOTO: lambda insn, form: f"may_goto pc{insn.off:+d}",
    Kind.LD_IMM64: lambda insn, form: f"r{insn.dst} = {_unsigned(insn):#x}",
}


def _unsigned(insn: Insn) -> int:
    return insn.imm & (0xFFFFFFFF if insn.src == isa.PSEUDO_FUNC else (1 << 64) - 1)


# LLVM: spaces around the sign of an offset, and w registers for what fits in one.


def _at_llvm(insn: Insn, register: int) -> str:
    return f"r{register} {'-' if insn.off < 0 else '+'} {abs(insn.off)}"


def _narrow(form: Form, register: int) -> str:
    return f"r{register}" if form.size is Size.DW else f"w{register}"


def _ld_imm64_llvm(insn: Insn, form: Form) -> str:
    if insn.src:
        return f"ld_pseudo\tr{insn.dst}, {insn.src}, {_unsigned(insn)}"
    return f"r{insn.dst} = {insn.imm - (insn.imm >> 63 << 64)} ll"


def _ld_ind_llvm(insn: Insn, form: Form) -> str:
    index = f"r{insn.src} + {insn.imm}" if insn.imm else f"r{insn.src}"
    return f"r0 = *({_type(form)} *)skb[{index}]"


def _atomic_llvm(insn: Insn, form: Form) -> str:
    place = f"({_type(form)} *)({_at_llvm(insn, insn.dst)})"
    src = _narrow(form, insn.src)
    match form.operation:
        case "xchg":
            return f"{src} = xchg{'_64' if form.width == 64 else '32_32'}({_at_llvm(insn, insn.dst)}, {src})"
        case "cmpxchg":
            r0, name = _narrow(form, 0), "cmpxchg_64" if form.width == 64 else "cmpxchg32_32"
            return f"{r0} = {name}({_at_llvm(insn, insn.dst)}, {r0}, {src})"
        case name if form.is_fetch:
            return f"{src} = atomic_{name}({place}, {src})"
        case _:
            return f"lock *{place} {form.operator} {src}"


def _stx_llvm(insn: Insn, form: Form) -> str:
    return f"*({_type(form)} *)({_at_llvm(insn, insn.dst)}) = {_narrow(form, insn.src)}"


def _load_acquire_llvm(insn: Insn, form: Form) -> str:
    return f"{_narrow(form, insn.dst)} = load_acquire(({_type(form)} *)({_at_llvm(insn, insn.src)}))"


def _store_release_llvm(insn: Insn, form: Form) -> str:
    return f"store_release(({_type(form)} *)({_at_llvm(insn, insn.dst)}), {_narrow(form, insn.src)})"


_LLVM: Mapping[Kind, Formatter] = {
    **_KERNEL,
    # `call -1` would be read as a call of a subprogram.
    Kind.CALL_HELPER: lambda insn, form: f"call {insn.imm}" if insn.imm >= 0 else _call(insn, form),
    Kind.LD_IMM64: _ld_imm64_llvm,
    Kind.LD_IND: _ld_ind_llvm,
    Kind.LDX: lambda i, form: f"{_narrow(form, i.dst)} = *({_type(form)} *)({_at_llvm(i, i.src)})",
    Kind.LDXSX: lambda i, form: f"r{i.dst} = *({_type(form, 's')} *)({_at_llvm(i, i.src)})",
    Kind.ST: lambda i, form: f"*({_type(form)} *)({_at_llvm(i, i.dst)}) = {i.imm}",
    Kind.STX: _stx_llvm,
    Kind.ATOMIC: _atomic_llvm,
    Kind.LOAD_ACQUIRE: _load_acquire_llvm,
    Kind.STORE_RELEASE: _store_release_llvm,
}


def _with(formatters: Mapping[Kind, Formatter]) -> Callable[[Insn], str]:
    def formatter(insn: Insn) -> str:
        form = form_of(insn)
        return formatters[form.kind](insn, form)

    return formatter


def _verifier(insn: Insn) -> str:
    form = form_of(insn)
    return f"({insn.code:02x}) {_VERIFIER[form.kind](insn, form)}"


def _ubpf(insn: Insn) -> str:
    form = form_of(insn)
    text = ubpf.text_of(insn, form)
    return _KERNEL[form.kind](insn, form) if text is None else text


_DIALECTS: Mapping[str, Callable[[Insn], str]] = {
    "kernel": _with(_KERNEL),
    "verifier": _verifier,
    "llvm": _with(_LLVM),
    "ubpf": _ubpf,
}
