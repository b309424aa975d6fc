"""
Reading BTF, one type at a time.

A kernel's BTF describes some 126,000 types, of which a policy needs a few dozen. So opening it costs
one pass that notes where each type starts, a search of the string section finds a name, and only the
types that are asked for become values.

Source: Documentation/bpf/btf.rst of Linux 6.18.
"""

from __future__ import annotations

import bisect
import functools
import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from actplane.errors import ActplaneError, DecodeError, UnsupportedFeature
from actplane.loader.btf_types import (
    BASE_WORDS,
    BTF_HEADER_BYTES,
    BTF_MAGIC,
    MEMBER_WORDS,
    MODIFIERS,
    SIZED_KINDS,
    VOID,
    BtfType,
    Enumerator,
    Kind,
    Member,
)

VMLINUX_PATH = Path("/sys/kernel/btf/vmlinux")

POINTER_BYTES = 8

_COMPOSITE = (Kind.BTF_KIND_STRUCT, Kind.BTF_KIND_UNION)
_ENUMS = (Kind.BTF_KIND_ENUM, Kind.BTF_KIND_ENUM64)
_PATH_STEP = re.compile(r"(\w+)((?:\[\d+\])*)")


class TypeNotFound(ActplaneError):
    """The running kernel has no type, field or enumerator of a name."""


class Btf:
    """
    The types of one BTF blob, by id and by name. Ids count from 1; 0 is void.

    Raises: DecodeError if the blob is not BTF of this byte order, or is cut off.
    """

    def __init__(self, blob: bytes) -> None:
        if len(blob) < BTF_HEADER_BYTES:
            raise DecodeError(f"BTF header: got {len(blob)} bytes, expected {BTF_HEADER_BYTES}")
        magic, version, _, header_bytes, types_at, types_bytes, strings_at, strings_bytes = struct.unpack_from(
            "<HBBIIIII", blob
        )
        if magic != BTF_MAGIC or version != 1:
            raise DecodeError(f"BTF header: got magic {magic:#x} version {version}, expected {BTF_MAGIC:#x} version 1")
        types_at += header_bytes
        strings_at += header_bytes
        if types_bytes % 4 or max(types_at + types_bytes, strings_at + strings_bytes) > len(blob):
            raise DecodeError(f"BTF sections: got a blob of {len(blob)} bytes, expected all of both sections in it")
        self._types_at: int = types_at
        self._types = blob[types_at : types_at + types_bytes]
        self._strings = blob[strings_at : strings_at + strings_bytes]
        if self._strings[:1] != b"\0" or self._strings[-1:] != b"\0":
            raise DecodeError("BTF strings: expected the section to start and end with a zero byte", strings_at)
        self._cache: dict[int, BtfType] = {0: VOID}
        self._found: dict[tuple[int, str], int | None] = {}

    @classmethod
    @functools.cache
    def vmlinux(cls) -> Btf:
        """
        Return the types of the running kernel, read once.

        Raises: UnsupportedFeature if the kernel was built without them.
        Since:  5.4 (CONFIG_DEBUG_INFO_BTF).
        """
        try:
            return cls(VMLINUX_PATH.read_bytes())
        except FileNotFoundError as error:
            hint = f"{VMLINUX_PATH} is missing: the kernel was built without CONFIG_DEBUG_INFO_BTF"
            raise UnsupportedFeature("the kernel's own types (BTF)", "5.4", hint=hint) from error

    @functools.cached_property
    def _offsets(self) -> list[int]:
        """For each id, the index of its type's first 4-byte word."""
        words = memoryview(self._types).cast("I")
        offsets = [0]
        # There are few distinct info words (kind and number of members), so their sizes are remembered.
        sizes: dict[int, int] = {}
        at, end = 0, len(words)
        try:
            while at < end:
                offsets.append(at)
                info = words[at + 1]
                size = sizes.get(info)
                if size is None:
                    size = sizes[info] = _size_in_words(info, at * 4)
                at += size
        except IndexError:
            at = end + 1
        if at != end:
            raise DecodeError(f"BTF type {len(offsets) - 1} is cut off", offsets[-1] * 4)
        return offsets

    @functools.cached_property
    def _names(self) -> bytes:
        """The name offset of each type, 4 bytes each, to be searched."""
        words = memoryview(self._types).cast("I")
        names = [0, *(words[at] for at in self._offsets[1:])]
        return struct.pack(f"<{len(names)}I", *names)

    def __len__(self) -> int:
        """The number of ids, void included."""
        return len(self._offsets)

    def position_of(self, type_id: int) -> int:
        """Return where in the blob the description of a type starts, in bytes."""
        return self._types_at + self._offsets[type_id] * 4

    def type_at(self, type_id: int) -> BtfType:
        """Return one type. Raises KeyError if there is no such id."""
        known = self._cache.get(type_id)
        if known is None:
            if not 0 < type_id < len(self._offsets):
                raise KeyError(f"BTF has no type {type_id}")
            known = self._cache[type_id] = self._decode(self._offsets[type_id] * 4)
        return known

    def id_of(self, kind: int, name: str) -> int | None:
        """Return the id of the first type of a kind with this name, or None."""
        key = (kind, name)
        if key not in self._found:
            self._found[key] = next(self.ids_of(kind, name), None)
        return self._found[key]

    def ids_of(self, kind: int, name: str) -> Iterator[int]:
        """Iterate over the ids of all types of a kind with this name."""
        for offset in self._string_offsets(name):
            wanted = offset.to_bytes(4, "little")
            at = self._names.find(wanted, 4)
            while at >= 0:
                if at % 4 == 0 and self._kind_of(at // 4) == kind:
                    yield at // 4
                at = self._names.find(wanted, at + 1)

    def names_starting(self, start: str) -> Iterator[str]:
        """Iterate over all names in the string section that start with a text, itself not empty."""
        wanted = b"\0" + start.encode()
        at = self._strings.find(wanted)
        while at >= 0:
            yield self.string_at(at + 1)
            at = self._strings.find(wanted, at + 1)

    def find(self, kind: Kind, name: str) -> int:
        """
        Return the id of the first type of a kind with this name.

        Raises: TypeNotFound.
        """
        found = self.id_of(kind, name)
        if found is None:
            raise TypeNotFound(f"BTF has no {kind.name} {name!r}")
        return found

    def tags_of(self, type_id: int) -> Sequence[tuple[str, int]]:
        """Return the declaration tags on a type: (text, component index; -1 is the type itself)."""
        return self._tags.get(type_id, ())

    @functools.cached_property
    def _tags(self) -> dict[int, list[tuple[str, int]]]:
        words = memoryview(self._types).cast("I")
        tags: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for at in self._offsets[1:]:
            if words[at + 1] >> 24 & 0x1F == Kind.BTF_KIND_DECL_TAG:
                tag = self._decode(at * 4)
                tags[tag.target].append((tag.name, tag.linkage))
        return dict(tags)

    def bare(self, type_id: int) -> int:
        """Return a type's id with typedefs, const, volatile, restrict and type tags taken off."""
        while (found := self.type_at(type_id)).kind in MODIFIERS:
            type_id = found.target
        return type_id

    def size_of(self, type_id: int) -> int:
        """
        Return the size of a type.

        Units:  bytes.
        Raises: TypeNotFound for void, functions and forward declarations, which have none.
        """
        found = self.type_at(self.bare(type_id))
        if found.kind is Kind.BTF_KIND_PTR:
            return POINTER_BYTES
        if found.kind is Kind.BTF_KIND_ARRAY:
            return found.count * self.size_of(found.target)
        if found.kind in SIZED_KINDS:
            return found.size
        raise TypeNotFound(f"{found.kind.name} {found.name!r} has no size")

    def composite(self, name: str) -> int:
        """
        Return the id of the struct, union, or typedef of one, of a name. A leading "struct " or
        "union " is allowed.

        Raises: TypeNotFound.
        """
        bare_name = name.removeprefix("struct ").removeprefix("union ")
        for kind in (*_COMPOSITE, Kind.BTF_KIND_TYPEDEF):
            found = self.id_of(kind, bare_name)
            if found is not None:
                return self.bare(found)
        raise TypeNotFound(f"BTF has no struct or union {bare_name!r}")

    def field_offset(self, struct_name: str, path: str) -> int:
        """
        Return where a field lies in a struct.

        Shape:  path is dotted ("f_path.dentry") and may index arrays ("comm[4]"). It passes through
                embedded and anonymous structs and unions, never through a pointer.
        Units:  bytes from the start of the struct.
        Raises: TypeNotFound, also for bit fields, whose place is no number of bytes.
        """
        return self._field(struct_name, path)[0]

    def field_size(self, struct_name: str, path: str) -> int:
        """Return the size in bytes of a field, as `field_offset` finds it. Raises TypeNotFound."""
        return self.size_of(self._field(struct_name, path)[1])

    def _field(self, struct_name: str, path: str) -> tuple[int, int]:
        where = f"{struct_name}.{path}"
        type_id = self.composite(struct_name)
        offset_bits = 0
        for step in path.split("."):
            match = _PATH_STEP.fullmatch(step)
            if match is None:
                raise TypeNotFound(f"{where}: got {step!r}, expected a field name, with indexes in brackets")
            name, indexes = match.groups()
            container = self.type_at(self.bare(type_id))
            if container.kind is Kind.BTF_KIND_PTR:
                raise TypeNotFound(f"{where}: {name!r} lies behind a pointer: it needs a load of its own")
            member = self._member(container, name)
            if member is None:
                raise TypeNotFound(f"{where}: {container.name or 'the anonymous type'} has no field {name!r}")
            if member.bitfield_bits or member.offset_bits % 8:
                raise TypeNotFound(f"{where}: {name!r} is a bit field: it starts at bit {member.offset_bits}")
            offset_bits += member.offset_bits
            type_id = member.type_id
            for index in map(int, re.findall(r"\d+", indexes)):
                array = self.type_at(self.bare(type_id))
                # An array of no elements is a flexible one, and has as many as its object.
                if array.kind is not Kind.BTF_KIND_ARRAY or (array.count and index >= array.count):
                    raise TypeNotFound(f"{where}: {name!r} has no element {index}")
                type_id = array.target
                offset_bits += index * self.size_of(type_id) * 8
        return offset_bits // 8, type_id

    def _member(self, container: BtfType, name: str) -> Member | None:
        """Find a field by name, looking into anonymous structs and unions; its offset is from `container`."""
        if container.kind not in _COMPOSITE:
            return None
        for member in container.members:
            if member.name == name:
                return member
        for member in container.members:
            if not member.name:
                inner = self._member(self.type_at(self.bare(member.type_id)), name)
                if inner is not None:
                    offset_bits = member.offset_bits + inner.offset_bits
                    return Member(inner.name, inner.type_id, offset_bits, inner.bitfield_bits)
        return None

    def enum_value(self, enum_name: str, name: str) -> int:
        """
        Return the value of an enumerator. An empty enum_name stands for any enum, named or not.

        Raises: TypeNotFound.
        """
        if enum_name:
            candidates = [type_id for kind in _ENUMS for type_id in self.ids_of(kind, enum_name)]
        else:
            candidates = [type_id for type_id in self._mentioning(name) if self._kind_of(type_id) in _ENUMS]
        for type_id in candidates:
            for item in self.type_at(type_id).enumerators:
                if item.name == name:
                    return item.value
        raise TypeNotFound(f"BTF has no enumerator {name!r} in {'enum ' + enum_name if enum_name else 'any enum'}")

    def func_proto(self, name: str) -> BtfType:
        """Return the prototype of a kernel function by its name. Raises TypeNotFound."""
        return self.type_at(self.type_at(self.find(Kind.BTF_KIND_FUNC, name)).target)

    def _mentioning(self, name: str) -> Iterator[int]:
        """Iterate over the types in whose description a word is the offset of this name."""
        for offset in self._string_offsets(name):
            wanted = offset.to_bytes(4, "little")
            at = self._types.find(wanted)
            while at >= 0:
                if at % 4 == 0:
                    yield bisect.bisect_right(self._offsets, at // 4, lo=1) - 1
                at = self._types.find(wanted, at + 1)

    def _kind_of(self, type_id: int) -> int:
        # The kind is the low five bits of the highest byte of the second word.
        return self._types[self._offsets[type_id] * 4 + 7] & 0x1F

    def _name_of(self, type_id: int) -> str:
        if not 0 <= type_id < len(self._offsets):
            raise KeyError(f"BTF has no type {type_id}")
        return self.string_at(int.from_bytes(self._names[type_id * 4 : type_id * 4 + 4], "little"))

    def _string_offsets(self, name: str) -> Iterator[int]:
        """Find a name in the string section: whole strings only, as pahole and libbpf write them."""
        if not name:
            return
        wanted = b"\0" + name.encode() + b"\0"
        at = self._strings.find(wanted)
        while at >= 0:
            yield at + 1
            at = self._strings.find(wanted, at + 1)

    def string_at(self, offset: int) -> str:
        """Return the text at an offset of the string section. Raises DecodeError if it is outside."""
        if offset >= len(self._strings):
            raise DecodeError(f"BTF string: got offset {offset}, expected less than {len(self._strings)}")
        return self._strings[offset : self._strings.index(b"\0", offset)].decode(errors="replace")

    def _decode(self, at: int) -> BtfType:
        name_offset, info, word = struct.unpack_from("<III", self._types, at)
        kind = Kind(info >> 24 & 0x1F)
        is_flagged = bool(info >> 31)
        count = info & 0xFFFF
        name = self.string_at(name_offset)
        size, target = (word, 0) if kind in SIZED_KINDS else (0, word)
        tail = struct.unpack_from(f"<{BASE_WORDS[kind] - 3 + MEMBER_WORDS[kind] * count}I", self._types, at + 12)
        triples = zip(tail[0::3], tail[1::3], tail[2::3], strict=False)
        pairs = zip(tail[0::2], tail[1::2], strict=False)
        match kind:
            case Kind.BTF_KIND_INT:
                return BtfType(kind, name, size, encoding=tail[0])
            case Kind.BTF_KIND_ARRAY:
                return BtfType(kind, name, target=tail[0], index=tail[1], count=tail[2])
            case Kind.BTF_KIND_STRUCT | Kind.BTF_KIND_UNION:
                members = tuple(
                    Member(self.string_at(text), type_id, offset & 0xFFFFFF, offset >> 24)
                    if is_flagged
                    else Member(self.string_at(text), type_id, offset)
                    for text, type_id, offset in triples
                )
                return BtfType(kind, name, size, is_flagged=is_flagged, members=members)
            case Kind.BTF_KIND_ENUM:
                enumerators = tuple(
                    Enumerator(self.string_at(text), _as_number(value, 32, is_flagged)) for text, value in pairs
                )
                return BtfType(kind, name, size, is_flagged=is_flagged, enumerators=enumerators)
            case Kind.BTF_KIND_ENUM64:
                enumerators = tuple(
                    Enumerator(self.string_at(text), _as_number(high << 32 | low, 64, is_flagged))
                    for text, low, high in triples
                )
                return BtfType(kind, name, size, is_flagged=is_flagged, enumerators=enumerators)
            case Kind.BTF_KIND_FUNC_PROTO:
                params = tuple(Member(self.string_at(text), type_id) for text, type_id in pairs)
                return BtfType(kind, name, target=target, members=params)
            case Kind.BTF_KIND_DATASEC:
                variables = tuple(
                    Member(self._name_of(type_id), type_id, offset * 8, 0, size_bytes)
                    for type_id, offset, size_bytes in triples
                )
                return BtfType(kind, name, size, members=variables)
            case Kind.BTF_KIND_FUNC:
                return BtfType(kind, name, target=target, linkage=count)
            case Kind.BTF_KIND_VAR | Kind.BTF_KIND_DECL_TAG:
                linkage = _as_number(tail[0], 32, True)
                return BtfType(kind, name, target=target, linkage=linkage, is_flagged=is_flagged)
            case _:
                return BtfType(kind, name, size, target, is_flagged=is_flagged)


def _size_in_words(info: int, at: int) -> int:
    kind = info >> 24 & 0x1F
    if not Kind.BTF_KIND_INT <= kind <= Kind.BTF_KIND_ENUM64:
        raise DecodeError(f"BTF type of unknown kind {kind}", at)
    return BASE_WORDS[kind] + MEMBER_WORDS[kind] * (info & 0xFFFF)


def _as_number(value: int, bits: int, is_signed: bool) -> int:
    return value - (1 << bits) if is_signed and value >> (bits - 1) else value
