"""
What a compiler leaves open in the BTF of an object: the sizes of its sections of variables, and where in
them each variable lies. Both are in the symbols.

Source: tools/lib/bpf/libbpf.c of Linux 6.18: btf_fixup_datasec().
"""

from __future__ import annotations

import struct

from actplane.loader.btf import Btf
from actplane.loader.btf_types import Kind
from actplane.loader.elf_file import ElfFile

_TYPE_BYTES = 12
_VARIABLE_BYTES = 12


def with_places(blob: bytes, elf: ElfFile) -> bytes:
    """Return the BTF of an object with every BTF_KIND_DATASEC complete. Raises DecodeError if it is damaged."""
    btf = Btf(blob)
    filled = bytearray(blob)
    sizes = {section.name: section.size for section in elf.sections.values()}
    places = {symbol.name: symbol.value for symbol in elf.symbols if symbol.section is not None and symbol.name}
    for type_id in range(1, len(btf)):
        group = btf.type_at(type_id)
        if group.kind is not Kind.BTF_KIND_DATASEC or group.name not in sizes:
            continue
        at = btf.position_of(type_id)
        struct.pack_into("<I", filled, at + 8, sizes[group.name])
        for index, member in enumerate(group.members):
            place = places.get(member.name)
            if place is not None:
                struct.pack_into("<I", filled, at + _TYPE_BYTES + index * _VARIABLE_BYTES + 4, place)
    return bytes(filled)
