"""
The sections, symbols and relocations of an eBPF object file, as values. What they mean is read elsewhere.

Source: the ELF specification; Documentation/bpf/standardization/abi.rst and llvm_reloc.rst of Linux 6.18.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from actplane.errors import ActplaneError

ELF_MAGIC = b"\x7fELF"

SHF_ALLOC = 2
SHF_EXECINSTR = 4

EM_BPF = 247

MOST_BYTES = (1 << 32) - 1
"""No place in a section is further from its start: BTF and instructions have 32 bits for it."""


class ElfError(ActplaneError):
    """A file is not an eBPF object, or has something in it that makes no sense."""


class SymbolKind(Enum):
    """What a symbol stands for (STT_*); NOTYPE is also that of names from elsewhere."""

    NOTYPE = "STT_NOTYPE"
    OBJECT = "STT_OBJECT"
    FUNC = "STT_FUNC"
    SECTION = "STT_SECTION"
    FILE = "STT_FILE"
    OTHER = ""


@dataclass(frozen=True, slots=True)
class Symbol:
    """
    A name and its place.

    Shape:  `section` is the index of the section that it lies in, None if it comes from elsewhere.
    Units:  value and size are bytes, value from the start of the section.
    """

    name: str
    section: int | None
    value: int
    size: int
    kind: SymbolKind
    is_local: bool = False
    is_weak: bool = False
    is_hidden: bool = False


@dataclass(frozen=True, slots=True)
class ElfSection:
    """A section with its bytes; `size` counts also where there are none (.bss). `relocations`: offset, symbol."""

    index: int
    name: str
    flags: int
    size: int
    data: bytes
    relocations: Sequence[tuple[int, Symbol]] = ()

    @property
    def is_code(self) -> bool:
        return bool(self.flags & SHF_EXECINSTR) and self.size > 0


@dataclass(frozen=True, slots=True)
class ElfFile:
    """All sections by index, and all symbols, of one object. `name` is what messages call it."""

    name: str
    sections: Mapping[int, ElfSection] = field(default_factory=dict[int, ElfSection])
    symbols: Sequence[Symbol] = ()

    def section(self, name: str) -> ElfSection | None:
        """Return the first section of a name, None if there is none."""
        return next((section for section in self.sections.values() if section.name == name), None)

    def symbols_in(self, section: int) -> list[Symbol]:
        """Return the named symbols that lie in a section, in the order of their places."""
        found = [symbol for symbol in self.symbols if symbol.section == section and symbol.name]
        return sorted(found, key=lambda symbol: symbol.value)


def is_elf(data: bytes) -> bool:
    """Whether bytes are those of an ELF file."""
    return data.startswith(ELF_MAGIC)


def read_elf_file(data: bytes, name: str) -> ElfFile:
    """
    Return the sections and symbols of an eBPF object.

    Raises: ElfError if it is not an object for eBPF of little endian, or is cut off, or if pyelftools
            is not installed.
    """
    elf = _open(data, name)
    if not elf.little_endian:
        raise ElfError(
            f"{name}: got an object for big-endian machines, expected little endian\n"
            "    hint: compile it with -target bpfel"
        )
    if elf.elfclass != 64 or elf["e_machine"] not in ("EM_BPF", "EM_NONE", EM_BPF) or elf["e_type"] != "ET_REL":
        raise ElfError(
            f"{name}: got ELF {elf.elfclass}-bit {elf['e_machine']} {elf['e_type']}, expected 64-bit EM_BPF ET_REL\n"
            "    hint: objects for eBPF are made by clang -target bpf -c"
        )
    try:
        symbols = _symbols(elf)
        return ElfFile(name, _sections(elf, symbols, name), symbols)
    except ElfError:
        raise
    except Exception as error:
        # For what is cut off or out of range, pyelftools raises errors of its own, of construct's and of Python's.
        raise ElfError(f"{name}: the ELF file is damaged: {error}") from error


def section_bytes(data: bytes, name: str, section: str) -> bytes | None:
    """Return the bytes of a section of any ELF file (a vmlinux, say), None if it has none. Raises ElfError."""
    found = _open(data, name).get_section_by_name(section)
    return None if found is None else bytes(found.data())


def _open(data: bytes, name: str) -> Any:
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
    except ImportError as error:
        raise ElfError(
            f"{name}: reading ELF objects needs pyelftools, which is not installed\n"
            "    hint: pip install 'actplane[elf]'"
        ) from error
    try:
        return ELFFile(io.BytesIO(data))
    except ELFError as error:
        raise ElfError(f"{name}: not an ELF file: {error}") from error


def _symbols(elf: Any) -> list[Symbol]:
    table = elf.get_section_by_name(".symtab")
    if table is None:
        return []
    kinds = {kind.value: kind for kind in SymbolKind}
    found = []
    for symbol in table.iter_symbols():
        index = symbol["st_shndx"]
        if symbol["st_value"] > MOST_BYTES:
            raise ElfError(f"symbol {symbol.name}: got a place of {symbol['st_value']}, expected less than 4 GiB")
        found.append(
            Symbol(
                symbol.name,
                index if isinstance(index, int) else None,
                symbol["st_value"],
                symbol["st_size"],
                kinds.get(symbol["st_info"]["type"], SymbolKind.OTHER),
                symbol["st_info"]["bind"] == "STB_LOCAL",
                symbol["st_info"]["bind"] == "STB_WEAK",
                symbol["st_other"]["visibility"] in ("STV_HIDDEN", "STV_INTERNAL"),
            )
        )
    return found


def _sections(elf: Any, symbols: Sequence[Symbol], name: str) -> dict[int, ElfSection]:
    tables: dict[int, list[tuple[int, Symbol]]] = {}
    for section in elf.iter_sections():
        if section["sh_type"] in ("SHT_REL", "SHT_RELA"):
            rows = tables.setdefault(section["sh_info"], [])
            for relocation in section.iter_relocations():
                number = relocation["r_info_sym"]
                if number >= len(symbols):
                    raise ElfError(f"{name}: section {section.name}: got symbol {number} of {len(symbols)}")
                rows.append((relocation["r_offset"], symbols[number]))
    found: dict[int, ElfSection] = {}
    for index, section in enumerate(elf.iter_sections()):
        is_empty = section["sh_type"] in ("SHT_NOBITS", "SHT_NULL")
        data = b"" if is_empty else bytes(section.data())
        if not is_empty and len(data) != section["sh_size"]:
            raise ElfError(f"{name}: section {section.name} is cut off: got {len(data)} bytes")
        if section["sh_size"] > MOST_BYTES:
            raise ElfError(f"{name}: section {section.name}: got {section['sh_size']} bytes, expected less than 4 GiB")
        rows = sorted(tables.get(index, ()), key=lambda row: row[0])
        found[index] = ElfSection(index, section.name, section["sh_flags"], section["sh_size"], data, rows)
    return found
