"""
Functions of an object to whole programs: the functions that one calls are put behind it, and what its
instructions leave open is filled in, as libbpf does before it loads a program.

Source: tools/lib/bpf/libbpf.c of Linux 6.18: bpf_object__relocate().
"""

from __future__ import annotations

import posixpath
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from actplane.asm.encoding import decode
from actplane.asm.insn import Insn, Kfunc, MapFd, MapValue, Symbol, Unresolved
from actplane.asm.isa import (
    LD_IMM64,
    PSEUDO_BTF_ID,
    PSEUDO_CALL,
    PSEUDO_FUNC,
    PSEUDO_KFUNC_CALL,
    PSEUDO_MAP_FD,
    PSEUDO_MAP_VALUE,
)
from actplane.asm.program import Program
from actplane.asm.uapi import ProgType
from actplane.errors import DecodeError
from actplane.loader.btf import Btf
from actplane.loader.elf.core_access import CoreError, essential
from actplane.loader.elf.core_relocation import SLOT_BYTES, CoreRelocator, apply, poison
from actplane.loader.elf.externs import KCONFIG, Extern, Externs, Target, find_variable
from actplane.loader.elf.file import ElfError, ElfFile, SymbolKind
from actplane.loader.elf.file import Symbol as ElfSymbol
from actplane.loader.elf.functions import Function, Functions
from actplane.loader.elf.maps import ObjectMaps
from actplane.loader.elf.sections import SectionHook, hook_of
from actplane.source import Source, Span

POISON_KFUNC_BASE = 2_002_000_000
"""libbpf has a program call a helper of such a number in the place of a weak function that is not there."""

_JUMP_TABLES = ".jumptables"
_EXCEPTION_TAG = "exception_callback:"

_DEEPEST = 256
"""No kernel allows more than 8 functions to call each other; a damaged object may have any number."""

_CALL = 0x85


@dataclass(frozen=True, slots=True)
class LinkedProgram:
    """A program, and the BTF_KIND_FUNC of each of its functions by the slot that it starts at."""

    program: Program
    function_types: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class LinkInput:
    """Everything that programs of one object are made from. Without a target, types of a kernel stay open."""

    elf: ElfFile
    functions: Functions
    maps: ObjectMaps
    externs: Externs
    license: str
    btf: Btf | None
    target: Target | None


class Linker:
    """Makes the programs of one object."""

    def __init__(self, given: LinkInput) -> None:
        self._given = given
        self._relocator: CoreRelocator | None = None
        if given.btf is not None and given.target is not None:
            self._relocator = CoreRelocator(given.btf, given.target.btf)
        self._sources: dict[tuple[str, int, str], Source] = {}

    def link(self, main: Function) -> LinkedProgram:
        """Return the program that starts with a function. Raises ElfError, naming function and source line."""
        code = bytearray()
        symbols: dict[int, Symbol] = {}
        spans: dict[int, Span] = {}
        starts: dict[tuple[int, int], int] = {}
        order: list[Function] = []

        def place(function: Function, depth: int = 0) -> None:
            if depth > _DEEPEST:
                raise ElfError(f"{self._given.elf.name}: program {main.name}: calls are nested {depth} functions deep")
            base = len(code) // SLOT_BYTES
            starts[function.section.index, function.start_slot] = base
            order.append(function)
            body, named = self._body(function)
            code.extend(body)
            symbols.update((base + slot, symbol) for slot, symbol in named.items())
            spans.update((base + slot, span) for slot, span in self._spans(function).items())
            for slot, callee in self._callees(function, code, base):
                key = (callee.section.index, callee.start_slot)
                if key not in starts:
                    place(callee, depth + 1)
                struct.pack_into("<i", code, (base + slot) * SLOT_BYTES + 4, starts[key] - (base + slot) - 1)

        place(main)
        for callback in self._exception_callbacks(main):
            if (callback.section.index, callback.start_slot) not in starts:
                place(callback)
        insns, indexes = self._insns(main, bytes(code), symbols, spans)
        bases = {starts[each.section.index, each.start_slot]: each for each in order}
        hook = hook_of(main.section.name) or SectionHook(ProgType.BPF_PROG_TYPE_UNSPEC)
        program = Program(
            main.name,
            hook.prog_type,
            insns,
            hook.attach_type,
            main.operation or hook.attach_to,
            hook.is_sleepable,
            self._given.license,
            {indexes[slot]: each.name for slot, each in bases.items() if slot},
        )
        types = {slot: each.type_id for slot, each in bases.items() if each.type_id is not None}
        return LinkedProgram(program, types)

    def _exception_callbacks(self, main: Function) -> list[Function]:
        """Return the function that a tag on the program names to run when bpf_throw is called; nothing calls it."""
        if self._given.btf is None or main.type_id is None:
            return []
        tags = [text for text, component in self._given.btf.tags_of(main.type_id) if component == -1]
        names = [text.removeprefix(_EXCEPTION_TAG) for text in tags if text.startswith(_EXCEPTION_TAG)]
        found = [self._given.functions.subprogram(name) for name in names]
        if None in found:
            raise ElfError(f"{self._given.elf.name}: program {main.name}: no function {names[found.index(None)]!r}")
        return [function for function in found if function is not None]

    def _insns(
        self, main: Function, code: bytes, symbols: Mapping[int, Symbol], spans: Mapping[int, Span]
    ) -> tuple[tuple[Insn, ...], dict[int, int]]:
        """Decode, and give each instruction its symbol and line; also the index of each slot's instruction."""
        try:
            decoded = decode(code)
        except DecodeError as error:
            raise ElfError(f"{self._given.elf.name}: program {main.name}: {error}") from error
        insns: list[Insn] = []
        indexes: dict[int, int] = {}
        slot = 0
        span: Span | None = None
        for insn in decoded:
            span = spans.get(slot, span)
            indexes[slot] = len(insns)
            insns.append(replace(insn, symbol=symbols.get(slot), span=span))
            slot += insn.slots
        return tuple(insns), indexes

    def _body(self, function: Function) -> tuple[bytearray, dict[int, Symbol]]:
        """Return the instructions of a function with all but its calls of other functions filled in."""
        code = bytearray(function.code)
        named: dict[int, Symbol] = {}
        if self._relocator is not None:
            for slot, record in function.core:
                try:
                    problem = apply(code, slot, self._relocator.resolve(record))
                except CoreError as error:
                    raise ElfError(f"{self._where(function, slot)}: {error}") from error
                if problem is not None:
                    named[slot] = Unresolved(problem)
        for slot, symbol in function.relocations.items():
            if slot not in named:
                self._fill(function, code, slot, symbol, named)
        return code, named

    def _fill(
        self, function: Function, code: bytearray, slot: int, symbol: ElfSymbol, named: dict[int, Symbol]
    ) -> None:
        opcode, registers, _, imm = struct.unpack_from("<BBhi", code, slot * SLOT_BYTES)
        given = self._given
        extern = given.externs.by_name.get(symbol.name) if symbol.section is None else None
        if opcode == _CALL:
            if extern is not None:
                self._fill_kfunc(function, code, slot, extern, named)
            return
        if opcode != LD_IMM64:
            raise ElfError(
                f"{self._where(function, slot)}: a relocation of code {opcode:#04x}, expected a call or ld_imm64"
            )
        if extern is not None:
            self._fill_extern(function, code, slot, extern, named)
            return
        if symbol.section is None:
            raise ElfError(f"{self._where(function, slot)}: {symbol.name!r} is defined nowhere")
        section = given.elf.sections.get(symbol.section)
        map_name = given.maps.at.get((symbol.section, symbol.value))
        variables = given.maps.of_section.get(symbol.section)
        if map_name is not None:
            _name(code, slot, registers, PSEUDO_MAP_FD, 0)
            named[slot] = MapFd(map_name)
        elif variables is not None:
            offset = (symbol.value + imm) & 0xFFFFFFFF
            _name(code, slot, registers, PSEUDO_MAP_VALUE, offset << 32)
            named[slot] = MapValue(variables, offset)
        elif section is None or not section.is_code:
            place = section.name if section else "?"
            problem = f"{self._where(function, slot)}: {symbol.name or place!r} lies in {place}, which is no map"
            raise ElfError(problem + ("\n    hint: compile it with -fno-jump-tables" if place == _JUMP_TABLES else ""))

    def _fill_kfunc(
        self, function: Function, code: bytearray, slot: int, extern: Extern, named: dict[int, Symbol]
    ) -> None:
        registers = code[slot * SLOT_BYTES + 1] & 0x0F | PSEUDO_KFUNC_CALL << 4
        code[slot * SLOT_BYTES + 1] = registers
        struct.pack_into("<hi", code, slot * SLOT_BYTES + 2, 0, 0)
        if self._find(function, slot, extern) is None:
            poison(code, slot, POISON_KFUNC_BASE + list(self._given.externs.by_name).index(extern.name))
            named[slot] = Unresolved(f"the kernel function {extern.name} is not there")
        else:
            named[slot] = Kfunc(essential(extern.name))

    def _fill_extern(
        self, function: Function, code: bytearray, slot: int, extern: Extern, named: dict[int, Symbol]
    ) -> None:
        registers = code[slot * SLOT_BYTES + 1]
        target = self._given.target
        if extern.is_option:
            _name(code, slot, registers, PSEUDO_MAP_VALUE, extern.offset_bytes << 32)
            named[slot] = MapValue(KCONFIG, extern.offset_bytes)
        elif target is None:
            return
        elif extern.type_id:
            found = self._find(function, slot, extern)
            _name(code, slot, registers, PSEUDO_BTF_ID if found else 0, found or 0)
        else:
            address = target.address_of(extern.name)
            if address is None and not extern.is_weak:
                raise ElfError(f"{self._where(function, slot)}: the kernel has no symbol {extern.name!r}")
            _name(code, slot, registers, 0, address or 0)

    def _find(self, function: Function, slot: int, extern: Extern) -> int | None:
        """Return the id of a variable or function of the kernel; without a target, of any."""
        if self._given.target is None or self._given.btf is None:
            return 0
        try:
            return find_variable(extern, self._given.btf, self._given.target)
        except ElfError as error:
            raise ElfError(f"{self._where(function, slot)}: {error}") from error

    def _callees(self, function: Function, code: bytearray, base: int) -> list[tuple[int, Function]]:
        """Return the functions that the instructions of one refer to, by slot, in order."""
        found: list[tuple[int, Function]] = []
        slot = 0
        while slot < function.slots:
            at = (base + slot) * SLOT_BYTES
            opcode, registers, _, imm = struct.unpack_from("<BBhi", code, at)
            symbol = function.relocations.get(slot)
            is_wide = opcode == LD_IMM64
            if opcode == _CALL and registers >> 4 == PSEUDO_CALL:
                section, start = function.section.index, function.start_slot + slot + imm + 1
                if symbol is not None:
                    section, start = self._section_of(function, slot, symbol), symbol.value // SLOT_BYTES + imm + 1
                found.append((slot, self._function_at(function, slot, section, start)))
            elif is_wide and symbol is not None and self._is_function(symbol):
                section = self._section_of(function, slot, symbol)
                _name(code, base + slot, registers, PSEUDO_FUNC, 0)
                found.append((slot, self._function_at(function, slot, section, (symbol.value + imm) // SLOT_BYTES)))
            slot += 2 if is_wide else 1
        return found

    def _is_function(self, symbol: ElfSymbol) -> bool:
        if symbol.section is None or symbol.kind not in (SymbolKind.FUNC, SymbolKind.SECTION, SymbolKind.NOTYPE):
            return False
        section = self._given.elf.sections.get(symbol.section)
        return section is not None and section.is_code

    def _section_of(self, function: Function, slot: int, symbol: ElfSymbol) -> int:
        if symbol.section is None:
            raise ElfError(f"{self._where(function, slot)}: the function {symbol.name!r} is defined nowhere")
        return symbol.section

    def _function_at(self, function: Function, slot: int, section: int, start: int) -> Function:
        found = self._given.functions.at(section, start)
        if found is None or found.start_slot != start:
            raise ElfError(f"{self._where(function, slot)}: no function starts at slot {start} of section {section}")
        if not found.is_subprogram:
            raise ElfError(f"{self._where(function, slot)}: {found.name} is a program, which cannot be called")
        return found

    def _spans(self, function: Function) -> dict[int, Span]:
        spans: dict[int, Span] = {}
        for slot, line in function.lines:
            key = (line.file, line.line, line.text)
            source = self._sources.get(key)
            if source is None:
                source = Source(posixpath.normpath(line.file), line.text, max(line.line, 1))
                self._sources[key] = source
            start = min(max(line.column - 1, 0), len(line.text))
            spans[slot] = Span(source, start, max(len(line.text.rstrip()), start + 1))
        return spans

    def _where(self, function: Function, slot: int) -> str:
        """Return what messages say of a place: the line of the source, or else the object and the slot."""
        spans = [span for at, span in self._spans(function).items() if at <= slot]
        place = str(spans[-1]) if spans else self._given.elf.name
        return f"{place}: function {function.name}, slot {slot}"


def _name(code: bytearray, slot: int, registers: int, source: int, imm: int) -> None:
    """Make an ld_imm64 one of a kind, with all 64 bits of its number."""
    at = slot * SLOT_BYTES
    struct.pack_into("<BhI", code, at + 1, registers & 0x0F | source << 4, 0, imm & 0xFFFFFFFF)
    struct.pack_into("<I", code, at + 12, imm >> 32)
