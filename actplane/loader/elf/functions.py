"""
The functions of an eBPF object: where each lies, its instructions, and what is said of them.

Source: tools/lib/bpf/libbpf.c of Linux 6.18: bpf_object__add_programs().
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actplane.asm.isa import LD_IMM64
from actplane.loader.elf.btf_ext import BtfExt, CoreRecord, LineInfo
from actplane.loader.elf.file import ElfError, ElfFile, ElfSection, Symbol, SymbolKind

SLOT_BYTES = 8
TEXT = ".text"


@dataclass(frozen=True, slots=True)
class Function:
    """
    One function of an object.

    Shape:  `relocations`, `core` and `lines` count slots from the start of the function; `type_id` is
            its BTF_KIND_FUNC, None if it has none; `operation` is STRUCT.MEMBER for a struct_ops
            program.
    Units:  start_slot counts from the start of the section.
    """

    name: str
    section: ElfSection
    start_slot: int
    code: bytes
    type_id: int | None = None
    operation: str | None = None
    relocations: Mapping[int, Symbol] = field(default_factory=dict[int, Symbol])
    core: Sequence[tuple[int, CoreRecord]] = ()
    lines: Sequence[tuple[int, LineInfo]] = ()

    @property
    def slots(self) -> int:
        return len(self.code) // SLOT_BYTES

    @property
    def is_subprogram(self) -> bool:
        """Whether it is there to be called by programs, and is none itself."""
        return self.section.name == TEXT


class Functions:
    """All functions of an object, by their place."""

    def __init__(self, found: Sequence[Function]) -> None:
        self._by_section: dict[int, list[Function]] = {}
        for function in sorted(found, key=lambda each: (each.section.index, each.start_slot)):
            self._by_section.setdefault(function.section.index, []).append(function)

    @property
    def programs(self) -> list[Function]:
        """Return the functions that programs start with, in the order of their places."""
        return [each for functions in self._by_section.values() for each in functions if not each.is_subprogram]

    def subprogram(self, name: str) -> Function | None:
        """Return the function of a name that is there to be called, None if there is none."""
        every = (each for functions in self._by_section.values() for each in functions)
        return next((each for each in every if each.is_subprogram and each.name == name), None)

    def at(self, section: int, slot: int) -> Function | None:
        """Return the function that a slot of a section belongs to, None if it belongs to none."""
        functions = self._by_section.get(section, [])
        index = bisect.bisect_right(functions, slot, key=lambda each: each.start_slot) - 1
        if index < 0 or slot >= functions[index].start_slot + functions[index].slots:
            return None
        return functions[index]


def find_functions(elf: ElfFile, ext: BtfExt, operations: Mapping[tuple[int, int], str]) -> Functions:
    """
    Return the functions of an object; `operations` tells what struct_ops programs implement, by their places.

    Raises: ElfError if a function is outside of its section, or static where programs are.
    """
    found: list[Function] = []
    for section in elf.sections.values():
        if section.is_code:
            symbols = [each for each in elf.symbols_in(section.index) if each.kind is SymbolKind.FUNC]
            found.extend(_function(elf, section, symbol, ext, operations) for symbol in symbols)
    return Functions(found)


def _function(
    elf: ElfFile, section: ElfSection, symbol: Symbol, ext: BtfExt, operations: Mapping[tuple[int, int], str]
) -> Function:
    start, end = symbol.value, symbol.value + symbol.size
    if start % SLOT_BYTES or symbol.size % SLOT_BYTES or not start < end <= len(section.data):
        raise ElfError(
            f"{elf.name}: function {symbol.name}: got bytes {start} to {end} of section {section.name}, "
            f"expected whole slots of its {len(section.data)} bytes"
        )
    if symbol.is_local and section.name != TEXT:
        raise ElfError(
            f"{elf.name}: function {symbol.name}: it is static, and section {section.name} holds programs\n"
            "    hint: a program must be visible; a static function that is called belongs to no SEC()"
        )
    if section.data[end - SLOT_BYTES] == LD_IMM64:
        raise ElfError(f"{elf.name}: function {symbol.name}: it ends in the middle of an ld_imm64")
    relocations = {(at - start) // SLOT_BYTES: each for at, each in section.relocations if start <= at < end}
    core = [
        ((each.offset_bytes - start) // SLOT_BYTES, each)
        for each in ext.relocations.get(section.name, ())
        if start <= each.offset_bytes < end
    ]
    lines = [
        ((each.offset_bytes - start) // SLOT_BYTES, each)
        for each in ext.lines.get(section.name, ())
        if start <= each.offset_bytes < end
    ]
    return Function(
        symbol.name,
        section,
        start // SLOT_BYTES,
        section.data[start:end],
        ext.functions.get(section.name, {}).get(start),
        operations.get((section.index, start)),
        relocations,
        core,
        sorted(lines, key=lambda line: line[0]),
    )
