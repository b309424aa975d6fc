"""
The layout of an instruction, declared once with construct.

This is the readable statement of RFC 9669, section 3, for teaching and for checking: it takes
instructions apart into fields and puts them together again. `encoding` does the same a hundred
times faster with `struct`; the tests prove the two byte-identical. construct takes 100 ms to
import, so nothing that `from actplane import asm` needs imports this module.

>>> slot = Slot.parse(bytes.fromhex("79a1f8ff00000000"))
>>> int(slot.registers.src), int(slot.registers.dst), slot.off
(10, 1, -8)
>>> code = MemoryCode.parse(bytes([slot.code]))
>>> str(code.mode), str(code.size), str(code.cls)
('MEM', 'DW', 'LDX')
>>> Instruction.parse(bytes.fromhex("79a1f8ff00000000"))
Insn(r1 = *(u64 *)(r10 -8))
"""

from __future__ import annotations

from typing import Any

from construct import (
    Adapter,
    BitsInteger,
    BitStruct,
    Check,
    Const,
    Enum,
    GreedyRange,
    Int8ul,
    Int16sl,
    Int32sl,
    Nibble,
    Select,
    Struct,
    this,
)

from actplane.asm import isa
from actplane.asm.insn import Insn

_CLASS = Enum(
    BitsInteger(3),
    LD=isa.LD,
    LDX=isa.LDX,
    ST=isa.ST,
    STX=isa.STX,
    ALU=isa.ALU,
    JMP=isa.JMP,
    JMP32=isa.JMP32,
    ALU64=isa.ALU64,
)
_SIZE = Enum(BitsInteger(2), **{size.name: bits >> 3 for size, bits in isa.SIZE_BITS.items()})
_MODES = {name: getattr(isa, name) >> 5 for name in ("IMM", "ABS", "IND", "MEM", "MEMSX", "ATOMIC")}

MemoryCode = BitStruct("mode" / Enum(BitsInteger(3), **_MODES), "size" / _SIZE, "cls" / _CLASS)
"""The code of LD, LDX, ST and STX (RFC 9669, section 5)."""

OperationCode = BitStruct("operation" / Nibble, "source" / Enum(BitsInteger(1), K=0, X=1), "cls" / _CLASS)
"""The code of ALU, JMP, JMP32 and ALU64 (RFC 9669, section 4)."""

Slot = Struct(
    "code" / Int8ul,
    "registers" / BitStruct("src" / Nibble, "dst" / Nibble),
    "off" / Int16sl,
    "imm" / Int32sl,
)
"""The basic encoding (RFC 9669, section 3.1), little-endian."""

WideSlots = Struct(
    "first" / Slot,
    Check(this.first.code == isa.LD_IMM64),
    "reserved" / Const(bytes(4)),
    "next_imm" / Int32sl,
)
"""The wide encoding (RFC 9669, section 3.2): the second slot has an imm and nothing else."""


class _InsnAdapter(Adapter):  # type: ignore[misc]  # construct has no type information
    """Between the fields and `Insn`."""

    def _decode(self, obj: Any, context: Any, path: Any) -> Insn:
        slot = obj.first if "first" in obj else obj.only
        imm = int(slot.imm)
        if "first" in obj and slot.registers.src != isa.PSEUDO_FUNC:
            imm = imm & 0xFFFFFFFF | (int(obj.next_imm) & 0xFFFFFFFF) << 32
        return Insn(int(slot.code), int(slot.registers.dst), int(slot.registers.src), int(slot.off), imm)

    def _encode(self, obj: Insn, context: Any, path: Any) -> dict[str, Any]:
        registers = {"src": obj.src, "dst": obj.dst}
        if obj.code != isa.LD_IMM64:
            return {"only": {"code": obj.code, "registers": registers, "off": obj.off, "imm": obj.imm}}
        low, high = obj.imm, 0
        if obj.src != isa.PSEUDO_FUNC:
            low, high = _signed(obj.imm), _signed(obj.imm >> 32)
        first = {"code": obj.code, "registers": registers, "off": obj.off, "imm": low}
        return {"first": first, "reserved": bytes(4), "next_imm": high}


def _signed(word: int) -> int:
    return (word & 0xFFFFFFFF) - ((word & 0x80000000) << 1)


_Narrow = Struct("only" / Slot, Check(this.only.code != isa.LD_IMM64))

Instruction = _InsnAdapter(Select(WideSlots, _Narrow))
"""One instruction of one or two slots."""

Instructions = GreedyRange(Instruction)
"""As many instructions as there are bytes for."""
