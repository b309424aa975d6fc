"""
Which member of which kernel struct each struct_ops program implements: an object says so in variables of
such structs, whose members are relocated to the programs.

Source: tools/lib/bpf/libbpf.c of Linux 6.18: bpf_object__collect_st_ops_relos().
"""

from __future__ import annotations

from collections.abc import Mapping

from actplane.loader.btf import Btf
from actplane.loader.btf_types import BtfType, Kind
from actplane.loader.elf.core_access import essential
from actplane.loader.elf.file import ElfFile, ElfSection

_SECTIONS = (".struct_ops", ".struct_ops.link")


def find_operations(elf: ElfFile, btf: Btf | None) -> Mapping[tuple[int, int], str]:
    """Return STRUCT.MEMBER by the section of the program that implements it, and its place there in bytes."""
    found: dict[tuple[int, int], str] = {}
    for section in elf.sections.values():
        name = section.name.removeprefix("?")
        if name in _SECTIONS and btf is not None:
            for offset, symbol in section.relocations:
                member = _member_at(elf, btf, section, offset)
                if symbol.section is not None and member is not None:
                    found[symbol.section, symbol.value] = member
    return found


def _member_at(elf: ElfFile, btf: Btf, section: ElfSection, offset_bytes: int) -> str | None:
    """Return the struct and member that lie at a place of a section of variables."""
    types = _variables(btf, section.name)
    for symbol in elf.symbols_in(section.index):
        struct = types.get(symbol.name)
        if struct is not None and symbol.value <= offset_bytes < symbol.value + struct.size:
            place = (offset_bytes - symbol.value) * 8
            name = next((each.name for each in struct.members if each.offset_bits == place), None)
            return f"{essential(struct.name)}.{name}" if name else None
    return None


def _variables(btf: Btf, section: str) -> dict[str, BtfType]:
    group = btf.id_of(Kind.BTF_KIND_DATASEC, section)
    if group is None:
        return {}
    variables = [btf.type_at(each.type_id) for each in btf.type_at(group).members]
    return {each.name: btf.type_at(btf.bare(each.target)) for each in variables}
