"""
Instructions in words: what each one does, and what each field of its 8 bytes says.

    0: b7 00 00 00 07 00 00 00    r0 = 7
       Put 7 into r0.
       code b7 = BPF_ALU64 | BPF_MOV | BPF_K, dst 0 = r0, src 0, off 0, imm 7
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from actplane.asm import isa
from actplane.asm.cfg import FlowError, build_graph
from actplane.asm.disasm import format_insn
from actplane.asm.encoding import encode_one
from actplane.asm.insn import Insn, Kfunc, MapFd, MapValue, form_of
from actplane.asm.isa import (
    ALU,
    ALU64,
    CLASS_MASK,
    JMP,
    JMP32,
    MODE_MASK,
    PSEUDO_BTF_ID,
    PSEUDO_FUNC,
    SIZE_MASK,
    Form,
    Kind,
    X,
)
from actplane.asm.program import Program
from actplane.asm.uapi import HelperId

LAYOUT = """\
byte    0          1            2   3        4   5   6   7
     +----------+-----+-----+------------+--------------------+
     |   code   | src | dst |    off     |        imm         |
     +----------+-----+-----+------------+--------------------+
      8 bits     4     4     16, signed   32, signed, all little-endian
"""
"""The fields of an instruction, drawn; src is the upper half of its byte."""

_CLASSES = ("LD", "LDX", "ST", "STX", "ALU", "JMP", "JMP32", "ALU64")
_MODES = {isa.IMM: "IMM", isa.ABS: "ABS", isa.IND: "IND", isa.MEM: "MEM", isa.MEMSX: "MEMSX", isa.ATOMIC: "ATOMIC"}
_SIZES = {bits: size.name for size, bits in isa.SIZE_BITS.items()}
_CODE_NAMES = {
    Kind.JA: "JA",
    Kind.GOTOL: "JA",
    Kind.GOTOX: "JA",
    Kind.MAY_GOTO: "JCOND",
    Kind.CALL_HELPER: "CALL",
    Kind.CALL_SUBPROGRAM: "CALL",
    Kind.CALL_KFUNC: "CALL",
    Kind.CALLX: "CALL",
    Kind.EXIT: "EXIT",
    Kind.END: "END",
    Kind.NEG: "NEG",
    Kind.MOVSX: "MOV",
    Kind.ADDR_SPACE_CAST: "MOV",
}

_ALU_WORDS = {
    "add": "Add {operand} to {dst}",
    "sub": "Subtract {operand} from {dst}",
    "mul": "Multiply {dst} by {operand}",
    "div": "Divide {dst} by {operand}, unsigned; by zero the result is 0",
    "sdiv": "Divide {dst} by {operand}, signed, towards zero; by zero the result is 0",
    "mod": "Put the unsigned remainder of {dst} divided by {operand} into {dst}; by zero {dst} stays",
    "smod": "Put the signed remainder of {dst} divided by {operand} into {dst}; by zero {dst} stays",
    "or": "Set in {dst} every bit that {operand} has",
    "and": "Keep in {dst} only the bits that {operand} has too",
    "xor": "Flip in {dst} every bit that {operand} has",
    "lsh": "Shift {dst} left by {operand} bits",
    "rsh": "Shift {dst} right by {operand} bits, zeros coming in",
    "arsh": "Shift {dst} right by {operand} bits, the sign coming in",
}
_CONDITIONS = {
    "jeq": "{dst} equals {operand}",
    "jne": "{dst} differs from {operand}",
    "jgt": "{dst} is greater than {operand}",
    "jge": "{dst} is at least {operand}",
    "jlt": "{dst} is less than {operand}",
    "jle": "{dst} is at most {operand}",
    "jsgt": "{dst} is greater than {operand}, signed",
    "jsge": "{dst} is at least {operand}, signed",
    "jslt": "{dst} is less than {operand}, signed",
    "jsle": "{dst} is at most {operand}, signed",
    "jset": "{dst} has a bit that {operand} has too",
}
_ATOMIC_WORDS = {
    "add": "add {src} to it",
    "or": "set in it every bit of {src}",
    "and": "keep in it only the bits of {src}",
    "xor": "flip in it every bit of {src}",
}


@dataclass(frozen=True, slots=True)
class FieldValue:
    """One field of an instruction: its name, its value as a number, what it means here ("" if nothing)."""

    name: str
    value: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    One instruction, explained.

    Units:  `index` counts instructions, `slot` 8-byte slots.
    """

    index: int
    slot: int
    data: bytes
    text: str
    words: str
    fields: tuple[FieldValue, ...]

    def render(self) -> str:
        """Return the lines of the module's example."""
        first, second = self.data[:8].hex(" "), self.data[8:].hex(" ")
        fields = ", ".join(
            f"{field.name} {field.value:02x} = {field.meaning}"
            if field.name == "code"
            else f"{field.name} {field.value}" + (f" = {field.meaning}" if field.meaning else "")
            for field in self.fields
        )
        lines = [f"{self.index:>4}: {first}    {self.text}"]
        if second:
            lines.append(f"      {second}")
        return "\n".join([*lines, f"      {self.words}", f"      {fields}"])


def explain(program: Program) -> list[Explanation]:
    """
    Explain every instruction of a program.

    Raises: EncodeError for an invalid instruction.
    """
    return list(_explain(program))


def _explain(program: Program) -> Iterator[Explanation]:
    try:
        targets = build_graph(program).targets
    except FlowError:
        # A jump to nowhere is explained by its distance.
        targets = {}
    slot = 0
    for index, insn in enumerate(program.insns):
        form = form_of(insn)
        target = targets.get(index)
        yield Explanation(
            index,
            slot,
            encode_one(insn, allow_symbols=True),
            format_insn(insn),
            words(insn, form, index=index, target=target, function=program.functions.get(target or 0, "")),
            fields(insn, form),
        )
        slot += insn.slots


def words(insn: Insn, form: Form, *, index: int = 0, target: int | None = None, function: str = "") -> str:
    """
    Return one sentence that says what an instruction does.

    `index` is its own place and `target` that of the instruction it leads to, if any.

    >>> add = Insn(0x07, 1, imm=5)
    >>> words(add, form_of(add))
    'Add 5 to r1.'
    """
    dst, src = f"r{insn.dst}", f"r{insn.src}"
    goal = f"instruction {target}" if target is not None else "its target"
    match form.kind:
        case Kind.ALU:
            return _alu_words(insn, form)
        case Kind.NEG:
            return f"Negate {dst}{_narrow(form, dst)}."
        case Kind.MOVSX:
            return f"Copy the low {form.bits} bits of {src} into {dst}, sign-extended{_narrow(form, dst)}."
        case Kind.END:
            if form.operation == "bswap":
                return f"Reverse the bytes of the low {form.bits} bits of {dst}; the bits above become zero."
            order = {"le": "little", "be": "big"}[form.operation]
            return (
                f"Convert the low {form.bits} bits of {dst} between this machine's byte order and {order}-endian; "
                "the bits above become zero."
            )
        case Kind.ADDR_SPACE_CAST:
            goal = "the kernel's" if insn.imm == 1 else "user space's"
            return f"Copy the arena pointer in {src} into {dst} as {goal} address."
        case Kind.JUMP:
            operand = src if form.has_register_source else str(insn.imm)
            condition = _CONDITIONS[form.operation].format(dst=_half(dst, form), operand=_half(operand, form))
            return f"If {condition}, go on at {goal}, else at {index + 1}."
        case Kind.JA | Kind.GOTOL:
            return f"Go on at {goal}."
        case Kind.GOTOX:
            return f"Go on at the instruction whose address is in {dst}, one of an array of instructions."
        case Kind.MAY_GOTO:
            return f"If this frame's budget of iterations is used up, go on at {goal}, else at {index + 1}."
        case Kind.EXIT:
            return "Return r0 to the caller; in the entry, end the program with r0 as its result."
        case Kind.CALL_HELPER | Kind.CALL_KFUNC:
            return f"Call {_callee(insn, form)}: its arguments are in r1 to r5, its result comes in r0."
        case Kind.CALL_SUBPROGRAM:
            name = f"{function} at {goal}" if function else f"the function at {goal}"
            return f"Call {name}: r6 to r9 and the stack are kept, its result comes in r0."
        case Kind.CALLX:
            return f"Call the function whose address is in {dst}."
        case Kind.LD_IMM64:
            return _wide_words(insn, goal)
        case Kind.LD_ABS | Kind.LD_IND:
            assert form.size is not None
            extra = f" plus {src}" if form.kind is Kind.LD_IND else ""
            return (
                f"Load {form.size.bits} bits of the packet at offset {insn.imm}{extra} into r0, from big-endian; "
                "outside the packet the program ends with 0."
            )
        case _:
            return _memory_words(insn, form)


def _alu_words(insn: Insn, form: Form) -> str:
    dst = f"r{insn.dst}"
    operand = f"r{insn.src}" if form.has_register_source else str(insn.imm)
    if form.operation == "mov":
        if form.has_register_source:
            what = f"the low 32 bits of {operand}" if form.width == 32 else operand
            return f"Copy {what} into {dst}{_narrow(form, dst)}."
        return f"Put {operand} into {dst}{_narrow(form, dst)}."
    return _ALU_WORDS[form.operation].format(dst=dst, operand=operand) + _narrow(form, dst) + "."


def _narrow(form: Form, dst: str) -> str:
    return f", in 32 bits; the upper half of {dst} becomes zero" if form.width == 32 else ""


def _half(operand: str, form: Form) -> str:
    is_half = form.width == 32 and operand.startswith("r")
    return f"the low half of {operand}" if is_half else operand


def _callee(insn: Insn, form: Form) -> str:
    if isinstance(insn.symbol, Kfunc):
        return f"the kernel function {insn.symbol.name}"
    if form.kind is Kind.CALL_KFUNC:
        return f"the kernel function with BTF id {insn.imm}"
    return HelperId(insn.imm).name if insn.imm in HelperId.__members__.values() else f"helper {insn.imm}"


def _wide_words(insn: Insn, goal: str) -> str:
    dst, symbol = f"r{insn.dst}", insn.symbol
    if isinstance(symbol, MapFd):
        return f"Put the address of the map {symbol.name} into {dst}."
    if isinstance(symbol, MapValue):
        return f"Put the address of byte {symbol.offset_bytes} of the value of the map {symbol.name} into {dst}."
    if insn.src == PSEUDO_FUNC:
        return f"Put the address of the function at {goal} into {dst}."
    if insn.src == PSEUDO_BTF_ID:
        return f"Put the address of the kernel variable with BTF id {insn.imm & 0xFFFFFFFF} into {dst}."
    if insn.src:
        return f"Put the address of map number {insn.imm & 0xFFFFFFFF}, or of its value, into {dst}."
    return f"Put the 64-bit number {insn.imm:#x} into {dst}; it takes two slots."


def _memory_words(insn: Insn, form: Form) -> str:
    assert form.size is not None
    dst, src, size = f"r{insn.dst}", f"r{insn.src}", form.size.value
    count = f"{size} byte{'s' if size > 1 else ''}"
    is_load = form.kind in (Kind.LDX, Kind.LDXSX, Kind.LOAD_ACQUIRE)
    base = src if is_load else dst
    place = base if not insn.off else f"{base} {'+' if insn.off > 0 else '-'} {abs(insn.off)}"
    match form.kind:
        case Kind.LDX:
            rest = "" if size == 8 else f"; the other bits of {dst} become zero"
            return f"Load {count} at {place} into {dst}{rest}."
        case Kind.LDXSX:
            return f"Load {count} at {place} into {dst}, sign-extended to 64 bits."
        case Kind.ST:
            return f"Store {insn.imm} in {count} at {place}."
        case Kind.STX:
            return f"Store the low {count} of {src} at {place}." if size < 8 else f"Store {src} at {place}."
        case Kind.LOAD_ACQUIRE:
            return f"Load {count} at {place} into {dst}, before any later access to memory."
        case Kind.STORE_RELEASE:
            return f"Store {src} in {count} at {place}, after every earlier access to memory."
        case _:
            return f"In one step no other CPU can split, on the {count} at {place}: {_atomic_words(src, form)}."


def _atomic_words(src: str, form: Form) -> str:
    if form.operation == "xchg":
        return f"swap them with {src}"
    if form.operation == "cmpxchg":
        return f"if they equal r0, store {src} there; r0 gets what was there before"
    action = _ATOMIC_WORDS[form.operation.removeprefix("fetch_")].format(src=src)
    return action + (f", and put what was there before into {src}" if form.is_fetch else "")


def fields(insn: Insn, form: Form) -> tuple[FieldValue, ...]:
    """Return the five fields of an instruction with what each means."""
    raw = encode_one(replace(insn, symbol=None) if insn.symbol else insn, allow_symbols=True)
    imm = int.from_bytes(raw[4:8], "little", signed=True)
    uses_dst = form.dst.high > form.dst.low
    parts = [
        FieldValue("code", insn.code, code_words(insn.code, form)),
        FieldValue("dst", insn.dst, f"r{insn.dst}" if uses_dst else ""),
        FieldValue("src", insn.src, f"r{insn.src}" if form.has_register_source else ""),
        FieldValue("off", insn.off, _off_words(form)),
        FieldValue("imm", imm, _imm_words(insn, form)),
    ]
    if insn.slots == 2:
        high = int.from_bytes(raw[12:16], "little", signed=True)
        parts.append(FieldValue("next imm", high, "upper 32 bits"))
    return tuple(parts)


def code_words(code: int, form: Form) -> str:
    """
    Return an opcode as the kernel's headers put it together.

    >>> code_words(0x79, form_of(Insn(0x79)))
    'BPF_LDX | BPF_MEM | BPF_DW'
    """
    cls = code & CLASS_MASK
    if cls in (ALU, ALU64, JMP, JMP32):
        operation = _CODE_NAMES.get(form.kind, form.operation.upper())
        operation = {"SDIV": "DIV", "SMOD": "MOD"}.get(operation, operation)
        return f"BPF_{_CLASSES[cls]} | BPF_{operation} | BPF_{'X' if code & X else 'K'}"
    return f"BPF_{_CLASSES[cls]} | BPF_{_MODES[code & MODE_MASK]} | BPF_{_SIZES[code & SIZE_MASK]}"


def _off_words(form: Form) -> str:
    if form.kind in (Kind.JUMP, Kind.JA, Kind.MAY_GOTO):
        return "slots to skip"
    if form.operation in ("sdiv", "smod"):
        return "signed"
    if form.kind is Kind.MOVSX:
        return "bits to extend from"
    return "bytes from the base" if form.off.high > form.off.low and form.size is not None else ""


def _imm_words(insn: Insn, form: Form) -> str:
    if form.kind is Kind.CALL_HELPER:
        return _callee(insn, form)
    if form.kind in (Kind.GOTOL, Kind.CALL_SUBPROGRAM):
        return "slots to skip"
    if form.kind in (Kind.ATOMIC, Kind.LOAD_ACQUIRE, Kind.STORE_RELEASE):
        return form.operation
    if form.kind is Kind.END:
        return "bits"
    return "lower 32 bits" if insn.slots == 2 else ""
