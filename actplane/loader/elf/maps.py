"""
The maps of an eBPF object: those that its BTF defines, those of the older `maps` section, and one array
for each section of global variables.

Source: tools/lib/bpf/libbpf.c of Linux 6.18: parse_btf_map_def(), bpf_object__init_global_data_maps().
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import Final

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.loader.btf import Btf
from actplane.loader.btf_types import BtfType, Kind
from actplane.loader.elf.file import SHF_ALLOC, ElfError, ElfFile, ElfSection

BPF_F_RDONLY_PROG: Final = 1 << 7

MAPS_SECTION: Final = ".maps"
_OLD_SECTION: Final = "maps"
"""Also with something before or behind a slash: "maps/events", "lirc_mode2/maps"."""

_OLD_FIELDS: Final = 5
"""Words of struct bpf_map_def: type, key_size, value_size, max_entries, map_flags."""

_OUTER: Final = (MapType.BPF_MAP_TYPE_ARRAY_OF_MAPS, MapType.BPF_MAP_TYPE_HASH_OF_MAPS)
_PAGE_BYTES: Final = 4096


@dataclass(slots=True)
class ObjectMaps:
    """
    The maps of one object.

    Shape:  `at` finds the name of a map by the index of its section and its offset there, `of_section`
            that of a section of variables. `values` are the types of the values by the map's name,
            `inner` what the maps in a map of maps are like.
    """

    specs: dict[str, MapSpec] = field(default_factory=dict)
    at: dict[tuple[int, int], str] = field(default_factory=dict)
    of_section: dict[int, str] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    inner: dict[str, MapSpec] = field(default_factory=dict)


def find_maps(elf: ElfFile, btf: Btf | None) -> ObjectMaps:
    """Return all maps of an object. Raises ElfError if a definition makes no sense."""
    found = ObjectMaps()
    for section in elf.sections.values():
        if section.name == MAPS_SECTION:
            if btf is None:
                raise ElfError(f"{elf.name}: section .maps: got no BTF, expected it to define the maps")
            _add_defined(found, elf, btf, section)
        elif _OLD_SECTION in section.name.split("/") and section.data and not section.is_code:
            _add_old(found, elf, section)
        elif section.size and section.flags & SHF_ALLOC and not section.is_code and _is_data(section.name):
            _add_data(found, btf, section)
    arena = next((spec.name for spec in found.specs.values() if spec.type is MapType.BPF_MAP_TYPE_ARENA), None)
    if arena is not None:
        found.of_section.update((each.index, arena) for each in elf.sections.values() if _is_arena(each.name))
    return found


def _is_arena(name: str) -> bool:
    return name == ".arena" or name.startswith(".arena.")


def _is_data(name: str) -> bool:
    return any(name == kind or name.startswith(kind + ".") for kind in (".data", ".rodata", ".bss"))


def _add_data(found: ObjectMaps, btf: Btf | None, section: ElfSection) -> None:
    is_readonly = section.name.startswith(".rodata")
    spec = MapSpec(
        section.name,
        MapType.BPF_MAP_TYPE_ARRAY,
        4,
        section.size,
        1,
        BPF_F_RDONLY_PROG if is_readonly else 0,
        section.data or None,
        is_readonly,
    )
    found.specs[spec.name] = spec
    found.of_section[section.index] = spec.name
    type_id = btf.id_of(Kind.BTF_KIND_DATASEC, section.name) if btf is not None else None
    if type_id is not None:
        found.values[spec.name] = type_id


def _add_old(found: ObjectMaps, elf: ElfFile, section: ElfSection) -> None:
    symbols = elf.symbols_in(section.index)
    size = section.size // len(symbols) if symbols else 0
    if size < 4 * _OLD_FIELDS:
        got = f"{section.size} bytes for {len(symbols)} maps"
        raise ElfError(f"{elf.name}: section {section.name}: got {got}, expected 20 or more for each")
    for symbol in symbols:
        if symbol.value + 4 * _OLD_FIELDS > len(section.data):
            raise ElfError(f"{elf.name}: map {symbol.name}: it is outside of the section {section.name}")
        numbers = struct.unpack_from(f"<{_OLD_FIELDS}I", section.data, symbol.value)
        kind = _map_type(numbers[0], f"{elf.name}: map {symbol.name}")
        found.specs[symbol.name] = _usual(MapSpec(symbol.name, kind, *numbers[1:]))
        found.at[section.index, symbol.value] = symbol.name


def _add_defined(found: ObjectMaps, elf: ElfFile, btf: Btf, section: ElfSection) -> None:
    group = btf.id_of(Kind.BTF_KIND_DATASEC, MAPS_SECTION)
    variables = {btf.type_at(each.type_id).name: each.type_id for each in btf.type_at(group).members} if group else {}
    for symbol in elf.symbols_in(section.index):
        variable = variables.get(symbol.name)
        if variable is None:
            raise ElfError(f"{elf.name}: map {symbol.name}: the section .maps of the BTF has no such variable")
        place = f"{elf.name}: map {symbol.name}"
        definition = btf.type_at(btf.bare(btf.type_at(variable).target))
        parsed = _Definition(btf, place).read(definition)
        found.specs[symbol.name] = parsed.spec(symbol.name)
        found.at[section.index, symbol.value] = symbol.name
        if parsed.value_type:
            found.values[symbol.name] = parsed.value_type
        if parsed.inner is not None:
            name = f"{symbol.name}.inner"
            found.inner[symbol.name] = parsed.inner.spec(name)
            found.values[name] = parsed.inner.value_type


class _Definition:
    """A struct whose members say what a map is like: __uint(type, ...), __type(value, ...), and so on."""

    def __init__(self, btf: Btf, place: str, *, is_inner: bool = False) -> None:
        self._btf = btf
        self._place = place
        self._is_inner = is_inner
        self.numbers: dict[str, int] = {}
        self.value_type = 0
        self.inner: _Definition | None = None

    def read(self, definition: BtfType) -> _Definition:
        if definition.kind is not Kind.BTF_KIND_STRUCT:
            raise ElfError(f"{self._place}: got a {definition.kind.name}, expected a struct that defines the map")
        for member in definition.members:
            match member.name:
                case "type" | "max_entries" | "map_flags" | "map_extra" | "numa_node" | "pinning":
                    self._set(member.name, self._number(member.type_id, member.name))
                case "key_size" | "value_size":
                    self._set(member.name, self._number(member.type_id, member.name))
                case "key" | "value":
                    self._sized(member.name, member.type_id)
                case "values":
                    self._values(member.type_id)
                case name:
                    raise ElfError(f"{self._place}: unknown attribute {name!r}")
        if "type" not in self.numbers:
            raise ElfError(f"{self._place}: the type of the map is missing")
        return self

    def _set(self, name: str, number: int) -> None:
        known = self.numbers.setdefault(name, number)
        if known != number:
            raise ElfError(f"{self._place}: {name}: got {number} and {known}, expected one number")

    def _number(self, type_id: int, name: str) -> int:
        """Return what __uint or __ulong says: the elements of an array, or an enumerator of an enum."""
        found = self._btf.type_at(self._btf.bare(type_id))
        if found.kind is Kind.BTF_KIND_PTR:
            array = self._btf.type_at(self._btf.bare(found.target))
            if array.kind is Kind.BTF_KIND_ARRAY:
                return array.count
        elif found.kind in (Kind.BTF_KIND_ENUM, Kind.BTF_KIND_ENUM64) and len(found.enumerators) == 1:
            return found.enumerators[0].value
        raise ElfError(f"{self._place}: {name}: got a {found.kind.name}, expected __uint() or __ulong()")

    def _sized(self, name: str, type_id: int) -> None:
        found = self._btf.type_at(self._btf.bare(type_id))
        if found.kind is not Kind.BTF_KIND_PTR:
            raise ElfError(f"{self._place}: {name}: got a {found.kind.name}, expected __type()")
        self._set(f"{name}_size", self._btf.size_of(found.target))
        if name == "value":
            self.value_type = found.target

    def _values(self, type_id: int) -> None:
        array = self._btf.type_at(self._btf.bare(type_id))
        pointer = self._btf.type_at(self._btf.bare(array.target)) if array.kind is Kind.BTF_KIND_ARRAY else array
        if pointer.kind is not Kind.BTF_KIND_PTR:
            raise ElfError(f"{self._place}: values: expected __array()")
        self._set("value_size", 4)
        element = self._btf.type_at(self._btf.bare(pointer.target))
        # The values of a table of programs are functions, and say nothing more of the map.
        if element.kind is Kind.BTF_KIND_FUNC_PROTO:
            return
        if self._is_inner:
            raise ElfError(f"{self._place}: values: maps of maps can be nested once only")
        self.inner = _Definition(self._btf, self._place, is_inner=True).read(element)

    def spec(self, name: str) -> MapSpec:
        kind = _map_type(self.numbers["type"], self._place)
        if kind in _OUTER:
            self.numbers.setdefault("key_size", 4)
            self.numbers.setdefault("value_size", 4)
        key, value, entries, flags = (
            self.numbers.get(each, 0) for each in ("key_size", "value_size", "max_entries", "map_flags")
        )
        return _usual(MapSpec(name, kind, key, value, entries, flags))


def _usual(spec: MapSpec) -> MapSpec:
    """Fill in what libbpf does: ring buffers are a power of two of pages, tables of descriptors have 4 bytes."""
    if spec.type in (MapType.BPF_MAP_TYPE_RINGBUF, MapType.BPF_MAP_TYPE_USER_RINGBUF):
        pages = -(-spec.max_entries // _PAGE_BYTES)
        return replace(spec, max_entries=_PAGE_BYTES << max(pages - 1, 0).bit_length()) if pages else spec
    if spec.type is MapType.BPF_MAP_TYPE_PERF_EVENT_ARRAY:
        return replace(spec, key_size=spec.key_size or 4, value_size=spec.value_size or 4)
    return spec


def _map_type(number: int, place: str) -> MapType:
    try:
        return MapType(number)
    except ValueError as error:
        raise ElfError(f"{place}: there is no type of map {number}") from error


def add_array(found: ObjectMaps, name: str, contents: bytes, type_id: int | None) -> None:
    """Add the array that holds the answers to what a program asks of the kernel's configuration."""
    flags = BPF_F_RDONLY_PROG
    found.specs[name] = MapSpec(name, MapType.BPF_MAP_TYPE_ARRAY, 4, len(contents), 1, flags, contents, True)
    if type_id is not None:
        found.values[name] = type_id
