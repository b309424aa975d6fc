"""
The instruction set as one table: the only place where an opcode is written.

A `Form` is one way to fill the five fields of an instruction: its code, and for each other field a
`Rule` that says which values are valid. What the rules leave out is invalid: unused fields are
reserved and zero (RFC 9669, section 3.1). Everything else in this package (encoding, decoding, the
text assembler, the disassembler, the property tests) reads the table.

Sources: RFC 9669 by section; include/uapi/linux/bpf.h of Linux 6.18 and 7.2 for what came after it,
with the reserved fields that kernel/bpf/verifier.c enforces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from actplane.asm.operands import Size


class Kind(Enum):
    """What an instruction does, as far as its operands go."""

    ALU = "alu"
    NEG = "neg"
    MOVSX = "movsx"
    ADDR_SPACE_CAST = "addr_space_cast"
    END = "end"
    JA = "ja"
    GOTOL = "gotol"
    GOTOX = "gotox"
    MAY_GOTO = "may_goto"
    JUMP = "jump"
    CALL_HELPER = "call_helper"
    CALL_SUBPROGRAM = "call_subprogram"
    CALL_KFUNC = "call_kfunc"
    CALLX = "callx"
    EXIT = "exit"
    LD_IMM64 = "ld_imm64"
    LD_ABS = "ld_abs"
    LD_IND = "ld_ind"
    LDX = "ldx"
    LDXSX = "ldxsx"
    ST = "st"
    STX = "stx"
    ATOMIC = "atomic"
    LOAD_ACQUIRE = "load_acquire"
    STORE_RELEASE = "store_release"


@dataclass(frozen=True, slots=True)
class Rule:
    """
    The valid values of one field: `low` to `high`, or the listed `values` only.

    >>> 11 in REGISTER, -1 in SIGNED_16, 1.0 in SIGNED_16
    (False, True, False)
    """

    low: int
    high: int
    meaning: str
    values: tuple[int, ...] = ()

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int):
            return False
        return value in self.values if self.values else self.low <= value <= self.high

    @property
    def is_fixed(self) -> bool:
        """Whether the field tells forms apart instead of carrying an operand."""
        return self.low == self.high or bool(self.values)

    @property
    def expected(self) -> str:
        """The valid values in words, for error messages."""
        if self.values:
            return " or ".join(map(str, self.values))
        if self.low == self.high:
            return str(self.low)
        return f"{self.meaning} in [{self.low}, {self.high}]"


def _exactly(*values: int) -> Rule:
    return Rule(min(values), max(values), "fixed", values if len(values) > 1 else ())


ZERO = Rule(0, 0, "reserved")
REGISTER = Rule(0, 10, "register")
SIGNED_16 = Rule(-(1 << 15), (1 << 15) - 1, "signed 16 bits")
SIGNED_32 = Rule(-(1 << 31), (1 << 31) - 1, "signed 32 bits")
UNSIGNED_15 = Rule(0, (1 << 15) - 1, "index of a BTF descriptor")
ANY_64 = Rule(0, (1 << 64) - 1, "64 bits")
LOW_32 = Rule(0, (1 << 32) - 1, "32 bits, upper half reserved")


@dataclass(frozen=True, slots=True)
class Form:
    """
    One valid way to fill the fields of an instruction.

    `width` is the number of bits the operation computes in, `size` the memory access,
    `bits` what movsx and the byte swaps take of their operand; `operation` the name of
    what is computed ("add", "jeq", "fetch_add") and `operator` its sign in text ("+=", "==").
    """

    name: str
    kind: Kind
    code: int
    dst: Rule = ZERO
    src: Rule = ZERO
    off: Rule = ZERO
    imm: Rule = ZERO
    operation: str = ""
    operator: str = ""
    width: int = 64
    size: Size | None = None
    bits: int = 0
    source: str = ""

    @property
    def has_register_source(self) -> bool:
        """Whether the second operand is a register, not `imm`."""
        return self.src is REGISTER

    @property
    def is_fetch(self) -> bool:
        """Whether an atomic returns the old value (in src, or in r0 for cmpxchg)."""
        return self.kind is Kind.ATOMIC and (self.operation.startswith("fetch_") or "xchg" in self.operation)


# The low three bits of the code: the class (RFC 9669, section 3.3).
LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)

# Bit 3 of ALU and JMP codes: where the second operand is (RFC 9669, section 4).
K, X = 0x00, 0x08

# Sizes and modes of LD, LDX, ST and STX (RFC 9669, section 5).
SIZE_BITS = {Size.W: 0x00, Size.H: 0x08, Size.B: 0x10, Size.DW: 0x18}
IMM, ABS, IND, MEM, MEMSX, ATOMIC = 0x00, 0x20, 0x40, 0x60, 0x80, 0xC0

# What cuts a code into its parts (RFC 9669, section 3): K or X is `code & X`.
CLASS_MASK, OPERATION_MASK, SIZE_MASK, MODE_MASK = 0x07, 0xF0, 0x18, 0xE0

# The operations of ALU and ALU64 (RFC 9669, section 4.1).
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70
NEG, MOD, XOR, MOV, ARSH, END = 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0

# The operations of JMP and JMP32 (RFC 9669, section 4.3).
OP_JA, JEQ, JGT, JGE, JSET, JNE, JSGT, JSGE = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70
OP_CALL, OP_EXIT, JLT, JLE, JSLT, JSLE, OP_JCOND = 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0

# What an atomic does, in imm (RFC 9669, section 5.3): an ALU operation or one of these, with FETCH or not.
FETCH, XCHG, CMPXCHG = 0x01, 0xE1, 0xF1
LOAD_ACQUIRE, STORE_RELEASE = 0x100, 0x110

# name, code, sign. div and mod are signed with off = 1.
_ALU_OPERATIONS = (
    ("add", ADD, "+="),
    ("sub", SUB, "-="),
    ("mul", MUL, "*="),
    ("div", DIV, "/="),
    ("or", OR, "|="),
    ("and", AND, "&="),
    ("lsh", LSH, "<<="),
    ("rsh", RSH, ">>="),
    ("mod", MOD, "%="),
    ("xor", XOR, "^="),
    ("mov", MOV, "="),
    ("arsh", ARSH, "s>>="),
)
_SIGNED_OPERATIONS = (("sdiv", DIV, "s/="), ("smod", MOD, "s%="))

_JUMP_OPERATIONS = (
    ("jeq", JEQ, "=="),
    ("jgt", JGT, ">"),
    ("jge", JGE, ">="),
    ("jset", JSET, "&"),
    ("jne", JNE, "!="),
    ("jsgt", JSGT, "s>"),
    ("jsge", JSGE, "s>="),
    ("jlt", JLT, "<"),
    ("jle", JLE, "<="),
    ("jslt", JSLT, "s<"),
    ("jsle", JSLE, "s<="),
)

_ATOMIC_OPERATIONS = (
    ("add", ADD, "+="),
    ("or", OR, "|="),
    ("and", AND, "&="),
    ("xor", XOR, "^="),
    ("fetch_add", ADD | FETCH, ""),
    ("fetch_or", OR | FETCH, ""),
    ("fetch_and", AND | FETCH, ""),
    ("fetch_xor", XOR | FETCH, ""),
    ("xchg", XCHG, ""),
    ("cmpxchg", CMPXCHG, ""),
)

# The src field of ld_imm64 (RFC 9669, section 5.4; names of the uapi header) and of call.
PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_BTF_ID, PSEUDO_FUNC, PSEUDO_MAP_IDX, PSEUDO_MAP_IDX_VALUE = range(1, 7)
PSEUDO_CALL, PSEUDO_KFUNC_CALL = 1, 2

_LD_IMM64_SOURCES = (
    ("ld_imm64", 0, ANY_64),
    ("ld_map_fd", PSEUDO_MAP_FD, LOW_32),
    ("ld_map_value", PSEUDO_MAP_VALUE, ANY_64),
    ("ld_btf_id", PSEUDO_BTF_ID, ANY_64),
    ("ld_func", PSEUDO_FUNC, SIGNED_32),
    ("ld_map_idx", PSEUDO_MAP_IDX, LOW_32),
    ("ld_map_idx_value", PSEUDO_MAP_IDX_VALUE, ANY_64),
)

# addr_space_cast moves between the arena (1) and the kernel (0): imm is to << 16 | from.
_CASTS = _exactly(1, 1 << 16)


def _alu() -> Iterator[Form]:
    rfc = "RFC 9669 section 4.1"
    for cls, width in ((ALU64, 64), (ALU, 32)):
        for off, operations in ((ZERO, _ALU_OPERATIONS), (_exactly(1), _SIGNED_OPERATIONS)):
            for name, op, sign in operations:
                for code, src, imm in ((cls | op | K, ZERO, SIGNED_32), (cls | op | X, REGISTER, ZERO)):
                    yield Form(f"{name}{width}", Kind.ALU, code, REGISTER, src, off, imm, name, sign, width, source=rfc)
        yield Form(f"neg{width}", Kind.NEG, cls | NEG | K, REGISTER, operation="neg", width=width, source=rfc)
        for bits in (8, 16, 32):
            if bits < width:
                off = _exactly(bits)
                name, code = f"movsx{width}", cls | MOV | X
                yield Form(name, Kind.MOVSX, code, REGISTER, REGISTER, off, width=width, bits=bits, source=rfc)
    arena = "Linux 6.9, kernel/bpf/verifier.c (BPF_ADDR_SPACE_CAST)"
    cast = Kind.ADDR_SPACE_CAST
    yield Form(cast.value, cast, ALU64 | MOV | X, REGISTER, REGISTER, _exactly(1), _CASTS, source=arena)
    for name, code in (("le", ALU | END | K), ("be", ALU | END | X), ("bswap", ALU64 | END | K)):
        for bits in (16, 32, 64):
            rule = _exactly(bits)
            yield Form(
                name, Kind.END, code, REGISTER, imm=rule, operation=name, bits=bits, source="RFC 9669 section 4.2"
            )


def _jumps() -> Iterator[Form]:
    rfc = "RFC 9669 section 4.3"
    for cls, width in ((JMP, 64), (JMP32, 32)):
        for name, op, sign in _JUMP_OPERATIONS:
            for code, src, imm in ((cls | op | K, ZERO, SIGNED_32), (cls | op | X, REGISTER, ZERO)):
                label = f"{name}{width}"
                yield Form(label, Kind.JUMP, code, REGISTER, src, SIGNED_16, imm, name, sign, width, source=rfc)
    uapi = "uapi bpf.h (BPF_JCOND, BPF_MAY_GOTO), Linux 6.9"
    yield Form("ja", Kind.JA, JMP | OP_JA | K, off=SIGNED_16, source=rfc)
    yield Form("gotol", Kind.GOTOL, JMP32 | OP_JA | K, imm=SIGNED_32, source=rfc)
    indirect = "Linux 6.19, kernel/bpf/verifier.c (check_indirect_jump); LLVM 22"
    yield Form("gotox", Kind.GOTOX, JMP | OP_JA | X, REGISTER, source=indirect)
    yield Form("may_goto", Kind.MAY_GOTO, JMP | OP_JCOND | K, off=SIGNED_16, source=uapi)
    call, local, kfunc = JMP | OP_CALL | K, _exactly(PSEUDO_CALL), _exactly(PSEUDO_KFUNC_CALL)
    by_btf = "RFC 9669 section 4.3.1; off is an index into fd_array (uapi bpf.h)"
    yield Form("call", Kind.CALL_HELPER, call, imm=SIGNED_32, source="RFC 9669 section 4.3.1")
    yield Form("call_sub", Kind.CALL_SUBPROGRAM, call, src=local, imm=SIGNED_32, source="RFC 9669 section 4.3.2")
    yield Form("call_kfunc", Kind.CALL_KFUNC, call, src=kfunc, off=UNSIGNED_15, imm=SIGNED_32, source=by_btf)
    yield Form("callx", Kind.CALLX, JMP | OP_CALL | X, REGISTER, source="LLVM BPF backend; Linux refuses it")
    yield Form("exit", Kind.EXIT, JMP | OP_EXIT | K, source=rfc)


def _memory() -> Iterator[Form]:
    wide = "RFC 9669 section 5.4; uapi bpf.h (BPF_PSEUDO_*)"
    for name, src, imm in _LD_IMM64_SOURCES:
        code = LD | IMM | SIZE_BITS[Size.DW]
        yield Form(name, Kind.LD_IMM64, code, REGISTER, _exactly(src), imm=imm, size=Size.DW, source=wide)
    for size, bits in SIZE_BITS.items():
        yield from _accesses(size, bits)
        if size in (Size.W, Size.DW):
            for name, number, sign in _ATOMIC_OPERATIONS:
                yield _ordered(Kind.ATOMIC, f"atomic_{name}", number, size, name, sign, "RFC 9669 section 5.3")
        since = "uapi bpf.h (BPF_LOAD_ACQ, BPF_STORE_REL), Linux 6.15"
        yield _ordered(Kind.LOAD_ACQUIRE, "load_acquire", LOAD_ACQUIRE, size, "load_acquire", "", since)
        yield _ordered(Kind.STORE_RELEASE, "store_release", STORE_RELEASE, size, "store_release", "", since)


def _accesses(size: Size, bits: int) -> Iterator[Form]:
    regular, signed, legacy = (f"RFC 9669 section 5.{section}" for section in (1, 2, 5))
    yield Form("ldx", Kind.LDX, LDX | MEM | bits, REGISTER, REGISTER, SIGNED_16, size=size, source=regular)
    yield Form("st", Kind.ST, ST | MEM | bits, REGISTER, ZERO, SIGNED_16, SIGNED_32, size=size, source=regular)
    yield Form("stx", Kind.STX, STX | MEM | bits, REGISTER, REGISTER, SIGNED_16, size=size, source=regular)
    if size is not Size.DW:
        yield Form("ldxsx", Kind.LDXSX, LDX | MEMSX | bits, REGISTER, REGISTER, SIGNED_16, size=size, source=signed)
        yield Form("ld_abs", Kind.LD_ABS, LD | ABS | bits, imm=SIGNED_32, size=size, source=legacy)
        yield Form("ld_ind", Kind.LD_IND, LD | IND | bits, src=REGISTER, imm=SIGNED_32, size=size, source=legacy)


def _ordered(kind: Kind, name: str, number: int, size: Size, operation: str, operator: str, source: str) -> Form:
    code, imm = STX | ATOMIC | SIZE_BITS[size], _exactly(number)
    fields = (REGISTER, REGISTER, SIGNED_16, imm)
    return Form(name, kind, code, *fields, operation, operator, size.bits, size, source=source)


FORMS: tuple[Form, ...] = (*_alu(), *_jumps(), *_memory())
"""Every valid form of every instruction."""


FIELDS = ("dst", "src", "off", "imm")


def _index() -> dict[int, tuple[Form, ...]]:
    by_code: dict[int, list[Form]] = {}
    for form in FORMS:
        by_code.setdefault(form.code, []).append(form)
    return {code: tuple(forms) for code, forms in by_code.items()}


BY_CODE: dict[int, tuple[Form, ...]] = _index()
"""The forms that share a code. Which of them an instruction is, one of its fixed fields tells."""

# Codes that are one form, or the forms of one kind.
LD_IMM64 = LD | IMM | SIZE_BITS[Size.DW]
JA, GOTOL, GOTOX, MAY_GOTO = JMP | OP_JA | K, JMP32 | OP_JA | K, JMP | OP_JA | X, JMP | OP_JCOND | K
CALL, CALLX, EXIT = JMP | OP_CALL | K, JMP | OP_CALL | X, JMP | OP_EXIT | K
W, H, B, DW = SIZE_BITS.values()


def find_form(code: int, dst: int, src: int, off: int, imm: int) -> Form | None:
    """
    Return the form that the fields fill validly, or None.

    >>> find_form(0x37, 0, 0, 1, 7).name, find_form(0x37, 0, 0, 2, 7)
    ('sdiv64', None)
    """
    for form in BY_CODE.get(code, ()):
        if off in form.off and imm in form.imm and src in form.src and dst in form.dst:
            return form
    return None


def why_invalid(code: int, dst: int, src: int, off: int, imm: int) -> str:
    """
    Say what is wrong with the fields of an invalid instruction: got and expected.

    >>> why_invalid(0x95, 0, 3, 0, 0)
    'exit (code 0x95): src: got 3, expected 0'
    >>> why_invalid(0xff, 0, 0, 0, 0)
    'unknown opcode 0xff'
    """
    forms = BY_CODE.get(code)
    if forms is None:
        return f"unknown opcode {code:#04x}{_why_unknown(code)}" if isinstance(code, int) else f"opcode: got {code!r}"
    values = {"dst": dst, "src": src, "off": off, "imm": imm}

    telling = [name for name in FIELDS if all(getattr(form, name).is_fixed for form in forms)]

    def faults(form: Form) -> list[str]:
        return [name for name in FIELDS if values[name] not in getattr(form, name)]

    def distance(form: Form) -> tuple[int, int]:
        wrong = faults(form)
        return sum(name in telling for name in wrong), len(wrong)

    # The form that was meant is the one whose telling fields fit; if none does, say all that would.
    best = min(forms, key=distance)
    name = faults(best)[0]
    rules = dict.fromkeys(getattr(form, name).expected for form in forms if faults(form) == faults(best))
    return f"{best.name} (code {code:#04x}): {name}: got {values[name]!r}, expected {' or '.join(rules)}"


def _why_unknown(code: int) -> str:
    cls, mode, size = code & CLASS_MASK, code & MODE_MASK, code & SIZE_MASK
    if cls in (LDX, ST, STX, LD) and any(other in BY_CODE for other in _same_mode(code)):
        width = next(s.bits for s, bits in SIZE_BITS.items() if bits == size)
        return f": bad size, no {width}-bit access of class {cls} in mode {mode:#04x}"
    return ""


def _same_mode(code: int) -> Iterator[int]:
    return ((code & ~SIZE_MASK) | bits for bits in SIZE_BITS.values())
