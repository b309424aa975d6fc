"""
What a compiler says of instructions in the section `.BTF.ext`: the functions they begin, the lines they
came from, and the relocations that the types of a kernel decide.

Source: Documentation/bpf/btf.rst, sections 4.2 and 4.3, and llvm_reloc.rst, of Linux 6.18.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from actplane.errors import DecodeError
from actplane.loader.btf import Btf
from actplane.loader.btf_types import BTF_MAGIC

_HEADER_BYTES = 24
_HEADER_WITH_CORE_BYTES = 32
_COLUMN_BITS = 10


@dataclass(frozen=True, slots=True)
class LineInfo:
    """
    The line that instructions from a place on came from.

    Units:  offset_bytes counts from the start of the section; line and column from 1, 0 is not known.
    """

    offset_bytes: int
    file: str
    text: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class CoreRecord:
    """
    One CO-RE relocation as the compiler wrote it.

    Shape:  `access` is numbers with colons between ("0:1:2"): the index of the root in an array, then
            of members and elements; `kind` is a number of enum bpf_core_relo_kind.
    Units:  offset_bytes counts from the start of the section.
    """

    offset_bytes: int
    type_id: int
    access: str
    kind: int


@dataclass(frozen=True, slots=True)
class BtfExt:
    """All records by the name of their section. `functions` maps a byte offset to a BTF_KIND_FUNC."""

    functions: Mapping[str, Mapping[int, int]] = field(default_factory=dict[str, dict[int, int]])
    lines: Mapping[str, tuple[LineInfo, ...]] = field(default_factory=dict[str, tuple[LineInfo, ...]])
    relocations: Mapping[str, tuple[CoreRecord, ...]] = field(default_factory=dict[str, tuple[CoreRecord, ...]])


def read_btf_ext(data: bytes, btf: Btf) -> BtfExt:
    """
    Return what a section `.BTF.ext` says; `btf` holds its strings.

    Raises: DecodeError if it is not of this byte order, or cut off.
    """
    try:
        magic, version, _, header_bytes, *places = struct.unpack_from("<HBBIIIII", data)
        if magic != BTF_MAGIC or version != 1:
            raise DecodeError(f".BTF.ext: got magic {magic:#x} version {version}, expected {BTF_MAGIC:#x} version 1")
        has_core = header_bytes >= _HEADER_WITH_CORE_BYTES
        places.extend(struct.unpack_from("<II", data, _HEADER_BYTES) if has_core else (0, 0))
        pairs = zip(places[0::2], places[1::2], strict=True)
        tables = [data[header_bytes + at : header_bytes + at + size] for at, size in pairs]
        functions = {name: _pairs(rows) for name, rows in _records(tables[0], "<II", btf)}
        lines = {name: tuple(_line(btf, *row) for row in rows) for name, rows in _records(tables[1], "<IIII", btf)}
        relocations = {
            name: tuple(CoreRecord(at, type_id, btf.string_at(access), kind) for at, type_id, access, kind in rows)
            for name, rows in _records(tables[2], "<IIII", btf)
        }
    except struct.error as error:
        raise DecodeError(f".BTF.ext is cut off: {error}") from error
    named = {type_id for rows in functions.values() for type_id in rows.values()}
    named.update(record.type_id for records in relocations.values() for record in records)
    if max(named, default=0) >= len(btf):
        raise DecodeError(f".BTF.ext: got type {max(named)}, expected less than {len(btf)}")
    return BtfExt(functions, lines, relocations)


def _records(table: bytes, layout: str, btf: Btf) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """Iterate over the sections of a table: name, and the first fields of each record."""
    if not table:
        return
    (record_bytes,) = struct.unpack_from("<I", table)
    if record_bytes < struct.calcsize(layout):
        raise DecodeError(f".BTF.ext: got records of {record_bytes} bytes, expected {struct.calcsize(layout)} or more")
    at = 4
    while at < len(table):
        name, count = struct.unpack_from("<II", table, at)
        at += 8
        yield btf.string_at(name), [struct.unpack_from(layout, table, at + i * record_bytes) for i in range(count)]
        at += count * record_bytes


def _pairs(rows: list[tuple[int, ...]]) -> dict[int, int]:
    return {row[0]: row[1] for row in rows}


def _line(btf: Btf, at: int, file: int, text: int, place: int) -> LineInfo:
    column = place & (1 << _COLUMN_BITS) - 1
    return LineInfo(at, btf.string_at(file), btf.string_at(text), place >> _COLUMN_BITS, column)
