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
from actplane.asm.isa import BY_CODE, FORMS, LD_IMM64, PSEUDO_FUNC, Form, Rule, find_form, why_invalid
from actplane.errors import DecodeError, EncodeError, InternalError

SLOT_BYTES = 8

_SLOT = struct.Struct("<BBhi")
_WIDE = struct.Struct("<BBhiBBhi")
_ZEROES = rb"\x00\x00\x00\x00"


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
            if insn.dst > 15:
                break  # it would spill into src; all other fields are checked by packing them
            if insn.code == LD_IMM64:
                low, high = _halves(insn)
                push((LD_IMM64, insn.dst | insn.src << 4, insn.off, low, 0, 0, 0, high))
            else:
                push((insn.code, insn.dst | insn.src << 4, insn.off, insn.imm))
        else:
            data = struct.pack("<" + "BBhi" * (len(fields) // 4), *fields)
            if _is_valid(data):
                return data
    except (struct.error, TypeError):
        pass  # a number that does not fit, or no number at all
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
    data = data if isinstance(data, bytes) else bytes(memoryview(data))
    if not _is_valid(data):
        raise _first_invalid(data)
    insns: list[Insn] = []
    push = insns.append
    slots = _SLOT.iter_unpack(data)
    for code, registers, off, imm in slots:
        if code == LD_IMM64:
            imm = _joined(registers >> 4, imm, next(slots)[3])
        push(Insn(code, registers & 15, registers >> 4, off, imm))
    return insns


def _check_symbol(insn: Insn, allow_symbols: bool) -> None:
    if isinstance(insn.symbol, (Label, Subprogram, FunctionAddress)):
        raise EncodeError(f"{insn.symbol!r} is not resolved: call resolve() first")
    if not allow_symbols:
        raise EncodeError(f"{insn.symbol!r} is not resolved: only the loader knows its number")


def _halves(insn: Insn) -> tuple[int, int]:
    """Split the imm of ld_imm64 into those of its two slots."""
    if insn.src == PSEUDO_FUNC:
        return insn.imm, 0
    # Only a number has a sign: everything else that the two halves name counts from 0.
    if not (-(1 << 63) if insn.src == 0 else 0) <= insn.imm < 1 << 64:
        raise struct.error("64-bit immediate out of range")
    low, high = insn.imm & 0xFFFFFFFF, insn.imm >> 32 & 0xFFFFFFFF
    return low - (low >> 31 << 32), high - (high >> 31 << 32)


def _joined(src: int, low: int, high: int) -> int:
    """Join the imms of the two slots of ld_imm64. The address of a function has one half, signed."""
    return low if src == PSEUDO_FUNC and not high else low & 0xFFFFFFFF | (high & 0xFFFFFFFF) << 32


def _first_fault(insns: Sequence[Insn]) -> EncodeError:
    """Find out which instruction cannot be encoded, and why."""
    for index, insn in enumerate(insns):
        values = (insn.code, insn.dst, insn.src, insn.off, insn.imm)
        if insn.code == LD_IMM64 and insn.src == 0 and isinstance(insn.imm, int) and -(1 << 63) <= insn.imm < 0:
            values = (*values[:4], insn.imm + (1 << 64))
        if find_form(*values) is None:
            return EncodeError(f"insn {index}: {why_invalid(*values)}")
    raise InternalError("the table of instructions and the pattern made of it disagree")


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
    return why_invalid(code, registers & 15, src, off, _joined(src, imm, high))


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
    # Alternatives are tried in order, so those that stand for the most codes come first.
    by_size = sorted(groups.items(), key=lambda group: -len(group[1]))
    alternatives = [_byte_class(codes) + rest for rest, codes in by_size]
    alternatives.extend(_wide_pattern(form) for form in BY_CODE[LD_IMM64])
    return re.compile(b"|".join(alternatives), re.DOTALL)


def _fields_pattern(form: Form) -> bytes:
    return _registers(form) + _number(form.off, "<h") + _number(form.imm, "<i")


def _wide_pattern(form: Form) -> bytes:
    high = b"...." if form.imm.high >= 1 << 32 else _ZEROES
    return _byte_class({form.code}) + _registers(form) + _number(form.off, "<h") + b"...." + _ZEROES + high


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
