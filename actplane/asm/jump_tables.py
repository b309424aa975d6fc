"""
Jump tables: maps that hold places of a program, for its indirect jumps.

A program takes the address of an element with `ld_map_value`, loads 8 bytes from there, and goes to the
instruction that they are the address of with `gotox`. Outside of programs an element is a struct
bpf_insn_array_value of 16 bytes. Its first 4 are a slot of the program, as it is loaded; the others
belong to the kernel. The map is frozen before the program that it is about is loaded.

Source: kernel/bpf/bpf_insn_array.c and include/uapi/linux/bpf.h of Linux 6.19.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from actplane.asm.insn import MapFd, MapValue
from actplane.asm.program import MapSpec, Program
from actplane.asm.uapi import MapType

KEY_BYTES, ADDRESS_BYTES = 4, 8
_VALUE = struct.Struct("<IIII")
VALUE_BYTES = _VALUE.size


def jump_table(name: str, slots: Iterable[int]) -> MapSpec:
    """
    Return the map of a jump table.

    Units:  slots count from the start of the program, as `FunctionHere` and `LabelHere` are resolved.

    >>> table = jump_table("cases", [7, 3])
    >>> table.max_entries, table.contents.hex(" ", 16)
    (2, '07000000000000000000000000000000 03000000000000000000000000000000')
    """
    contents = b"".join(_VALUE.pack(slot, 0, 0, 0) for slot in slots)
    count = len(contents) // VALUE_BYTES
    type_ = MapType.BPF_MAP_TYPE_INSN_ARRAY
    return MapSpec(name, type_, KEY_BYTES, VALUE_BYTES, count, contents=contents, is_frozen=True)


def slots_in(contents: bytes) -> list[int]:
    """Return the slots that the elements of a jump table hold, as far as they are whole."""
    return [slot for slot, *_ in _VALUE.iter_unpack(contents[: len(contents) // VALUE_BYTES * VALUE_BYTES])]


def jump_slots(program: Program, maps: Iterable[MapSpec]) -> set[int]:
    """Return the slots in all jump tables that a program names: where its indirect jumps may lead."""
    named = {insn.symbol.name for insn in program.insns if isinstance(insn.symbol, MapFd | MapValue)}
    return {
        slot
        for spec in maps
        if spec.type is MapType.BPF_MAP_TYPE_INSN_ARRAY and spec.name in named
        for slot in slots_in((spec.contents or b"").ljust(VALUE_BYTES * spec.max_entries, b"\0"))
    }
