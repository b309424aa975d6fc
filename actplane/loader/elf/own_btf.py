"""
The BTF of an object: checked, because an object may come from anywhere, and completed with what a compiler
leaves to the linker, the sizes of sections of variables and the place of each variable in them.

Source: tools/lib/bpf/libbpf.c of Linux 6.18: btf_fixup_datasec(), bpf_object__sanitize_prog().
"""

from __future__ import annotations

import struct

from actplane.errors import DecodeError
from actplane.loader.btf import Btf
from actplane.loader.btf_types import MODIFIERS, Kind
from actplane.loader.elf.file import ElfFile, SymbolKind

_TYPE_BYTES = 12
_VARIABLE_BYTES = 12

_WRAPPERS = MODIFIERS | {Kind.BTF_KIND_ARRAY, Kind.BTF_KIND_VAR, Kind.BTF_KIND_FUNC}
"""Kinds that whoever asks for a size or a layout follows to another type."""


def read_object_btf(blob: bytes, elf: ElfFile) -> Btf:
    """
    Return the BTF of an object with every BTF_KIND_DATASEC complete. Functions that are hidden from other
    objects are static in it, so that a verifier judges them with their callers.

    Raises: DecodeError if it is damaged.
    """
    btf = Btf(blob)
    _check(btf)
    filled = bytearray(blob)
    sizes = {section.name: section.size for section in elf.sections.values()}
    places = {symbol.name: symbol.value for symbol in elf.symbols if symbol.section is not None and symbol.name}
    hidden = {symbol.name for symbol in elf.symbols if symbol.kind is SymbolKind.FUNC and symbol.is_hidden}
    for type_id in range(1, len(btf)):
        group = btf.type_at(type_id)
        if group.kind is Kind.BTF_KIND_FUNC and group.name in hidden:
            struct.pack_into("<I", filled, btf.position_of(type_id) + 4, Kind.BTF_KIND_FUNC << 24)
        if group.kind is not Kind.BTF_KIND_DATASEC or group.name not in sizes:
            continue
        at = btf.position_of(type_id)
        struct.pack_into("<I", filled, at + 8, sizes[group.name])
        for index, member in enumerate(group.members):
            place = places.get(member.name)
            if place is not None:
                struct.pack_into("<I", filled, at + _TYPE_BYTES + index * _VARIABLE_BYTES + 4, place)
    return Btf(bytes(filled))


def _check(btf: Btf) -> None:
    """Refuse types that refer to ones that are not there, or, without a pointer between, to themselves."""
    last = len(btf) - 1
    sound = {0}
    for type_id in range(1, last + 1):
        try:
            found = btf.type_at(type_id)
        except KeyError as error:
            raise DecodeError(f"BTF type {type_id}: {error.args[0]}", btf.position_of(type_id)) from error
        for other in (found.target, found.index, *(member.type_id for member in found.members)):
            if other > last:
                raise DecodeError(f"BTF type {type_id}: got type {other}, expected {last} or less")
    for type_id in range(1, last + 1):
        chain: set[int] = set()
        while type_id not in sound:
            if type_id in chain:
                raise DecodeError(f"BTF type {type_id} is made of itself")
            chain.add(type_id)
            found = btf.type_at(type_id)
            type_id = found.target if found.kind in _WRAPPERS else 0
        sound |= chain
