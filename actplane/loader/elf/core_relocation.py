"""
CO-RE relocations: numbers in instructions that depend on the types of the kernel a program is meant for,
found in that kernel's BTF and written into the instructions, by libbpf's rules.

Source: bpf_core_calc_relo_insn() and bpf_core_patch_insn() in tools/lib/bpf/relo_core.c of Linux 6.18.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from actplane.asm.isa import LD_IMM64
from actplane.loader.btf import Btf
from actplane.loader.btf_types import BTF_INT_SIGNED, BtfType, Kind
from actplane.loader.elf.btf_ext import CoreRecord
from actplane.loader.elf.core_access import ENUMS, Access, CoreError, CoreKind, Step, essential, parse_access, size_of
from actplane.loader.elf.core_match import match_access

POISON_HELPER: Final = 0xBAD2310
"""The helper, which does not exist, that libbpf has a program call where a relocation failed."""

SLOT_BYTES: Final = 8

_BPF_LD, _BPF_LDX, _BPF_ST, _BPF_STX, _BPF_ALU, _BPF_ALU64 = 0, 1, 2, 3, 4, 7
_BPF_X: Final = 0x08
_CALL: Final = 0x85
_SIZE_BITS: Final = {8: 0x18, 4: 0x00, 2: 0x08, 1: 0x10}
_SIZE_MASK: Final = 0x18
_WIDEST_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Value:
    """
    The answer for one BTF.

    Shape:  `field_type` is the type of a field that a load of the same width reads, None if there is
            none; `is_exact` is False where several answers are right (bit fields, ids).
    Units:  `size` is that of the field in bytes, 0 if not known.
    """

    number: int
    size: int = 0
    field_type: BtfType | None = None
    is_exact: bool = True


@dataclass(frozen=True, slots=True)
class Resolution:
    """
    A relocation that was looked up: the value as compiled, and the one of the target.

    Shape:  `target` is None if the target has nothing of the kind, so the instruction must not run;
            `text` names the relocation in messages.
    """

    text: str
    local: Value
    target: Value | None


class CoreRelocator:
    """Looks relocations of one object up in the types of one kernel, each once."""

    def __init__(self, local: Btf, target: Btf) -> None:
        self._local = local
        self._target = target
        self._known: dict[tuple[int, str, int], Resolution] = {}
        self._candidates: dict[int, tuple[int, ...]] = {}

    def resolve(self, record: CoreRecord) -> Resolution:
        """Look one relocation up. Raises CoreError if it makes no sense, or the target is ambiguous."""
        key = (record.type_id, record.access, record.kind)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._resolve(record)
        return known

    def _resolve(self, record: CoreRecord) -> Resolution:
        try:
            kind = CoreKind(record.kind)
        except ValueError as error:
            raise CoreError(f"CO-RE relocation of unknown kind {record.kind}") from error
        access = parse_access(self._local, kind, record.type_id, record.access)
        text = f"{kind.words} of {access}"
        if kind is CoreKind.BPF_CORE_TYPE_ID_LOCAL:
            answer = Value(record.type_id, is_exact=False)
            return Resolution(text, answer, answer)
        if not self._local.type_at(record.type_id).name:
            raise CoreError(f"CO-RE relocation, {text}: an anonymous type cannot be looked up")
        candidates = self._candidates_of(record.type_id)
        found = [match for each in candidates if (match := match_access(access, self._target, each))]
        answers = [_value(match) for match in found]
        if len({(match.offset_bits, answer.number) for match, answer in zip(found, answers, strict=True)}) > 1:
            raise CoreError(f"CO-RE relocation, {text}: the target has several types of the name that differ")
        return Resolution(text, _value(access), answers[0] if answers else _missing(kind))

    def _candidates_of(self, type_id: int) -> tuple[int, ...]:
        """Return the types of the target that have the name, whatever flavour, and kind of one of ours."""
        known = self._candidates.get(type_id)
        if known is None:
            ours = self._local.type_at(type_id)
            kinds = ENUMS if ours.kind in ENUMS else (ours.kind,)
            names = self._flavours(essential(ours.name))
            known = self._candidates[type_id] = tuple(
                sorted(each for name in names for kind in kinds for each in self._target.ids_of(kind, name))
            )
        return known

    def _flavours(self, name: str) -> Iterator[str]:
        yield name
        for other in self._target.names_starting(name + "___"):
            if essential(other) == name:
                yield other


def _missing(kind: CoreKind) -> Value | None:
    """The answer where the target has nothing of the kind: no for a question, 0 for a type, else none."""
    is_question = kind in (CoreKind.BPF_CORE_FIELD_EXISTS, CoreKind.BPF_CORE_ENUMVAL_EXISTS)
    return Value(0) if is_question or kind.is_about_type else None


def _value(access: Access) -> Value:
    """Return what a relocation asks for of an access that exists."""
    kind, btf = access.kind, access.btf
    match kind:
        case CoreKind.BPF_CORE_FIELD_EXISTS | CoreKind.BPF_CORE_ENUMVAL_EXISTS:
            return Value(1)
        case CoreKind.BPF_CORE_TYPE_EXISTS | CoreKind.BPF_CORE_TYPE_MATCHES:
            return Value(1)
        case CoreKind.BPF_CORE_TYPE_SIZE:
            return Value(size_of(btf, access.root))
        case CoreKind.BPF_CORE_TYPE_ID_LOCAL | CoreKind.BPF_CORE_TYPE_ID_TARGET:
            return Value(access.root, is_exact=False)
        case CoreKind.BPF_CORE_ENUMVAL_VALUE:
            enum = btf.type_at(btf.bare(access.root))
            return Value(enum.enumerators[access.steps[0].index].value)
        case _:
            step = access.steps[-1]
            return _field_value(access, step) if step.name else _element_value(access, step)


def _element_value(access: Access, step: Step) -> Value:
    size = size_of(access.btf, step.type_id)
    if access.kind is CoreKind.BPF_CORE_FIELD_BYTE_OFFSET:
        found = access.btf.type_at(access.btf.bare(step.type_id))
        return Value(access.offset_bits // 8, size, found)
    if access.kind is CoreKind.BPF_CORE_FIELD_BYTE_SIZE:
        return Value(size)
    raise CoreError(f"CO-RE relocation, {access.kind.words} of {access}: an element of an array has no such thing")


def _field_value(access: Access, step: Step) -> Value:
    btf = access.btf
    member = btf.type_at(step.type_id).members[step.index]
    found = btf.type_at(btf.bare(member.type_id))
    if member.bitfield_bits:
        at, size = _load_of_bits(access, found.size, member.bitfield_bits)
        bits = member.bitfield_bits
    else:
        at, size = access.offset_bits // 8, size_of(btf, member.type_id)
        bits = size * 8
    is_exact = not member.bitfield_bits
    match access.kind:
        case CoreKind.BPF_CORE_FIELD_BYTE_OFFSET:
            return Value(at, size, found) if is_exact else Value(at, is_exact=False)
        case CoreKind.BPF_CORE_FIELD_BYTE_SIZE:
            return Value(size, is_exact=is_exact)
        case CoreKind.BPF_CORE_FIELD_SIGNED:
            return Value(int(_is_signed(found)))
        case CoreKind.BPF_CORE_FIELD_LSHIFT_U64:
            return Value(64 - (access.offset_bits + bits - at * 8), is_exact=is_exact)
        case _:
            return Value(64 - bits)


def _load_of_bits(access: Access, size: int, bits: int) -> tuple[int, int]:
    """Return the offset and size of the smallest aligned load that has all of a bit field in it."""
    if not size:
        raise CoreError(f"CO-RE relocation, {access.kind.words} of {access}: a bit field of a type without a size")
    at = access.offset_bits // 8 // size * size
    while access.offset_bits + bits - at * 8 > size * 8:
        if size >= _WIDEST_BYTES:
            raise CoreError(
                f"CO-RE relocation, {access.kind.words} of {access}: no load of 8 bytes holds the bit field"
            )
        size *= 2
        at = access.offset_bits // 8 // size * size
    return at, size


def _is_signed(found: BtfType) -> bool:
    if found.kind in ENUMS:
        return found.is_flagged
    return found.kind is Kind.BTF_KIND_INT and bool(found.encoding >> 24 & BTF_INT_SIGNED)


def apply(code: bytearray, slot: int, found: Resolution) -> str | None:
    """
    Write what was found into the instruction at a slot, in place.

    Shape:  None if that went well. Otherwise the instruction is now a call of a helper that does not
            exist, which a verifier refuses where it is reached, and the answer says why.
    Raises: CoreError if the instruction is not one that the compiler writes for such a relocation.
    """
    opcode, registers, off, imm = struct.unpack_from("<BBhi", code, slot * SLOT_BYTES)
    kind = opcode & 7
    if found.target is None:
        poison(code, slot)
        return f"the {found.text} is not there"
    local, target = found.local, found.target
    if kind in (_BPF_ALU, _BPF_ALU64) and not opcode & _BPF_X:
        _check(found, imm & 0xFFFFFFFF, local.number & 0xFFFFFFFF)
        struct.pack_into("<I", code, slot * SLOT_BYTES + 4, target.number & 0xFFFFFFFF)
    elif kind in (_BPF_LDX, _BPF_ST, _BPF_STX):
        _check(found, off, local.number)
        if not target.number <= 0x7FFF:
            raise CoreError(f"CO-RE relocation, {found.text}: got {target.number}, expected 32767 or less")
        if not _may_resize(local, target):
            poison(code, slot)
            return f"the {found.text} has another size: {target.size} bytes, and {local.size} when it was compiled"
        if local.size != target.size:
            opcode = _resized(opcode, found)
        struct.pack_into("<BBh", code, slot * SLOT_BYTES, opcode, registers, target.number)
    elif opcode == LD_IMM64 and registers >> 4 == 0:
        (high,) = struct.unpack_from("<I", code, slot * SLOT_BYTES + 12)
        _check(found, high << 32 | imm & 0xFFFFFFFF, local.number & (1 << 64) - 1)
        number = target.number & (1 << 64) - 1
        struct.pack_into("<I", code, slot * SLOT_BYTES + 4, number & 0xFFFFFFFF)
        struct.pack_into("<I", code, slot * SLOT_BYTES + 12, number >> 32)
    else:
        raise CoreError(f"CO-RE relocation, {found.text}: the instruction (code {opcode:#04x}) has no place for it")
    return None


def poison(code: bytearray, slot: int, helper: int = POISON_HELPER) -> None:
    """Put a call of a helper that does not exist in the place of an instruction."""
    is_wide = code[slot * SLOT_BYTES] == LD_IMM64
    for each in (slot, slot + 1) if is_wide else (slot,):
        struct.pack_into("<BBhi", code, each * SLOT_BYTES, _CALL, 0, 0, helper)


def _check(found: Resolution, got: int, expected: int) -> None:
    if found.local.is_exact and got != expected:
        raise CoreError(f"CO-RE relocation, {found.text}: the instruction has {got}, expected {expected}")


def _may_resize(local: Value, target: Value) -> bool:
    """Whether a load may become one of another size: pointers, and numbers without a sign."""
    if local.size == target.size:
        return True
    if local.field_type is None or target.field_type is None:
        return False
    both = (local.field_type, target.field_type)
    are_pointers = all(each.kind is Kind.BTF_KIND_PTR for each in both)
    # libbpf compares the whole encoding with that of a plain signed number.
    are_numbers = all(each.kind is Kind.BTF_KIND_INT and each.encoding >> 24 != BTF_INT_SIGNED for each in both)
    return are_pointers or are_numbers


def _resized(opcode: int, found: Resolution) -> int:
    assert found.target is not None
    local, target = found.local.size, found.target.size
    if _SIZE_BITS.get(local) != opcode & _SIZE_MASK or target not in _SIZE_BITS:
        raise CoreError(f"CO-RE relocation, {found.text}: a load cannot change from {local} bytes to {target}")
    return opcode & ~_SIZE_MASK | _SIZE_BITS[target]
