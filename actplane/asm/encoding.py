"""
Instructions to bytes and back, exact in both directions.

Every field is checked against the table in `isa` on the way in and on the way out:
`encode(decode(b)) == b` for every valid `b`, and an invalid one is refused with the reason. The
layout itself is declared in `layout`; this module packs with `struct`, and the tests prove both
byte-identical.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from functools import cache

from actplane.asm.insn import FunctionAddress, Insn, Label, Subprogram
from actplane.asm.isa import BY_CODE, FORMS, LD_IMM64, Form, Rule, why_invalid
from actplane.errors import DecodeError, EncodeError

SLOT_BYTES = 8

_SLOT = struct.Struct("<BBhi")
_WIDE = struct.Struct("<BBhiBBhi")
_ZEROES = b"\x00" * 4


def encode(insns: Iterable[Insn], *, allow_symbols: bool = False) -> bytes:
    """
    Return the bytes of instructions: 8 a slot, little-endian.

    Raises: EncodeError if a field is out of its range, or if a symbol is left unresolved. With
            `allow_symbols`, what only the loader knows (maps, kfuncs, kernel fields) is encoded as
            the numbers beside it; a label or a function must be resolved first in any case.
    Source: RFC 9669, section 3.

    >>> encode([Insn(0xB7, 0, imm=1), Insn(0x95)]).hex()
    'b7000000010000009500000000000000'
    """
    insns = insns if isinstance(insns, (list, tuple)) else list(insns)
    fields: list[int] = []
    push = fields.extend
    try:
        for insn in insns:
            if insn.symbol is not None:
                _check_symbol(insn, allow_symbols)
            if insn.code == LD_IMM64:
                push(_wide_fields(insn))
            else:
                push((insn.code, insn.dst | insn.src << 4, insn.off, insn.imm))
        data = struct.pack("<" + "BBhi" * (len(fields) // 4), *fields)
        if _is_valid(data):
            return data
    except struct.error:
        pass
    raise _first_fault(insns)


def encode_one(insn: Insn, *, allow_symbols: bool = False) -> bytes:
    """Return the 8 or 16 bytes of one instruction; see `encode`."""
    return encode((insn,), allow_symbols=allow_symbols)


def decode(data: bytes | bytearray | memoryview) -> list[Insn]:
    """
    Return the instructions in bytes.

    Shape:  the imm of ld_imm64 is the unsigned 64-bit number, but a signed slot offset for the
            address of a function.
    Raises: DecodeError at the first slot that is no valid instruction, with the field and the reason.

    >>> decode(bytes.fromhex("b7000000010000009500000000000000"))[0].imm
    1
    """
    data = bytes(data)
    chunks: list[bytes] = _valid_insns().findall(data)
    insns: list[Insn] = []
    push = insns.append
    unpack = _SLOT.unpack
    size = 0
    for chunk in chunks:
        if len(chunk) == SLOT_BYTES:
            size += SLOT_BYTES
            code, registers, off, imm = unpack(chunk)
            push(Insn(code, registers & 15, registers >> 4, off, imm))
        else:
            size += 2 * SLOT_BYTES
            push(_wide_insn(chunk))
    if size != len(data):
        raise _first_invalid(data)
    return insns


def _check_symbol(insn: Insn, allow_symbols: bool) -> None:
    if isinstance(insn.symbol, (Label, Subprogram, FunctionAddress)):
        raise EncodeError(f"{insn.symbol!r} is not resolved: call resolve() first")
    if not allow_symbols:
        raise EncodeError(f"{insn.symbol!r} is not resolved: only the loader knows its number")


def _wide_fields(insn: Insn) -> tuple[int, ...]:
    imm = insn.imm
    if insn.src == 4:
        # The address of a function is a signed 32-bit slot offset; the other half is reserved.
        return LD_IMM64, insn.dst | insn.src << 4, insn.off, imm, 0, 0, 0, 0
    if not -(1 << 63) <= imm < 1 << 64:
        raise EncodeError(why_invalid(insn.code, insn.dst, insn.src, insn.off, imm))
    low, high = imm & 0xFFFFFFFF, imm >> 32 & 0xFFFFFFFF
    return (
        LD_IMM64,
        insn.dst | insn.src << 4,
        insn.off,
        low - (low >> 31 << 32),
        0,
        0,
        0,
        high - (high >> 31 << 32),
    )


def _wide_insn(chunk: bytes) -> Insn:
    code, registers, off, low, _, _, _, high = _WIDE.unpack(chunk)
    if registers >> 4 == 4:
        return Insn(code, registers & 15, 4, off, low)
    return Insn(code, registers & 15, registers >> 4, off, low & 0xFFFFFFFF | (high & 0xFFFFFFFF) << 32)


def _first_fault(insns: Sequence[Insn]) -> EncodeError:
    """Find out which instruction cannot be encoded, and why."""
    for index, insn in enumerate(insns):
        values = (insn.code, insn.dst, insn.src, insn.off, insn.imm)
        if insn.code == LD_IMM64 and insn.src != 4 and -(1 << 63) <= insn.imm < 0:
            values = (*values[:4], insn.imm + (1 << 64))
        if _form(values) is None:
            return EncodeError(f"insn {index}: {why_invalid(*values)}")
    raise AssertionError("the table and its pattern disagree")


def _form(values: tuple[int, int, int, int, int]) -> Form | None:
    from actplane.asm.isa import find_form

    return find_form(*values)


def _first_invalid(data: bytes) -> DecodeError:
    """Find out which slot is no valid instruction, and why."""
    offset = 0
    while offset + SLOT_BYTES <= len(data):
        found = _valid_insns().match(data, offset)
        if found is None:
            return DecodeError(_why_undecodable(data, offset), offset)
        offset = found.end()
    return DecodeError(f"got {len(data) - offset} bytes, expected a slot of {SLOT_BYTES}", offset)


def _why_undecodable(data: bytes, offset: int) -> str:
    code, registers, off, imm = _SLOT.unpack_from(data, offset)
    if code != LD_IMM64:
        return why_invalid(code, registers & 15, registers >> 4, off, imm)
    if offset + 2 * SLOT_BYTES > len(data):
        return "ld_imm64 (code 0x18): got one slot, expected two"
    *_, next_code, next_registers, next_off, high = _WIDE.unpack_from(data, offset)
    if next_code or next_registers or next_off:
        return (
            f"ld_imm64 (code 0x18): second slot: got code {next_code:#04x}, registers {next_registers:#04x}, "
            f"off {next_off}, expected only imm to be set"
        )
    src = registers >> 4
    whole = imm if src == 4 and not high else imm & 0xFFFFFFFF | (high & 0xFFFFFFFF) << 32
    return why_invalid(code, registers & 15, src, off, whole)


def _is_valid(data: bytes) -> bool:
    return sum(map(len, _valid_insns().findall(data))) == len(data)


@cache
def _valid_insns() -> re.Pattern[bytes]:
    """
    The table as a pattern that matches exactly one valid instruction.

    One scan in C over all slots replaces a look-up per instruction. Matches are 8 or 16 bytes and
    do not overlap, so bytes are valid throughout exactly if the matches add up to their length.
    """
    groups: dict[bytes, set[int]] = {}
    for form in FORMS:
        if form.code != LD_IMM64:
            groups.setdefault(_fields_pattern(form), set()).add(form.code)
    alternatives = [_byte_class(codes) + rest for rest, codes in groups.items()]
    # The forms that most programs are made of come first.
    alternatives.sort(key=lambda pattern: -len(pattern) if pattern.startswith(b"[") else 0)
    alternatives.extend(_wide_pattern(form) for form in BY_CODE[LD_IMM64])
    return re.compile(b"|".join(alternatives), re.DOTALL)


def _fields_pattern(form: Form) -> bytes:
    return _registers(form) + _number(form.off, "<h") + _number(form.imm, "<i")


def _wide_pattern(form: Form) -> bytes:
    halves = {"ANY_64": b"." * 4}.get(form.imm.meaning, b"." * 4 if form.imm.high >= 1 << 32 else re.escape(_ZEROES))
    return _byte_class({form.code}) + _registers(form) + _number(form.off, "<h") + b"...." + re.escape(_ZEROES) + halves


def _registers(form: Form) -> bytes:
    return _byte_class(
        {
            dst | src << 4
            for dst in range(form.dst.low, form.dst.high + 1)
            for src in range(form.src.low, form.src.high + 1)
        }
    )


def _number(rule: Rule, layout: str) -> bytes:
    if rule.is_fixed:
        values = rule.values or (rule.low,)
        return b"(?:" + b"|".join(re.escape(struct.pack(layout, value)) for value in values) + b")"
    size = struct.calcsize(layout)
    if rule.low < 0:
        return b"." * size
    return b"." * (size - 1) + b"[\\x00-\\x7f]"


def _byte_class(values: set[int]) -> bytes:
    return b"[" + b"".join(b"\\x%02x" % value for value in sorted(values)) + b"]"
