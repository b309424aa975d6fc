"""
What the mirror needs to know about types, as protocols: whoever reads BTF satisfies them by shape.

The mirror asks for one type at a time, by id or by name, and walks structs itself, so that one
reader serves the kernel's BTF and that of a program alike. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from actplane.asm.program import MapSpec


class BtfKind(IntEnum):
    """Kinds of BTF types, as include/uapi/linux/btf.h numbers them."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


class Member(Protocol):
    """
    A member of a struct or union, a parameter of a function prototype, a variable of a section.

    Units:  offset_bits counts from the start of the struct (of a section: 8 * its bytes), and is 0
            for a parameter; bitfield_bits is 0 unless the member is a bit field.
    """

    @property
    def name(self) -> str: ...
    @property
    def type_id(self) -> int: ...
    @property
    def offset_bits(self) -> int: ...
    @property
    def bitfield_bits(self) -> int: ...


class Type(Protocol):
    """
    One BTF type.

    `kind` is a number of `BtfKind`. `target` is the type id that a pointer, typedef, modifier, tag,
    function, variable or array element refers to, and for a function prototype its return type;
    0 is void. `size` is in bytes and 0 where the kind has none. `count` is the number of elements
    of an array. `members` are those of a struct, union or section, or the parameters of a
    prototype. `linkage` of a function or variable: 0 static, 1 global, 2 extern; of a declaration
    tag: its component index. `is_signed` is about integers.
    """

    @property
    def kind(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def target(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def linkage(self) -> int: ...
    @property
    def is_signed(self) -> bool: ...
    @property
    def members(self) -> Sequence[Member]: ...


class TypeProvider(Protocol):
    """BTF of the kernel, of a module or of a program, whichever it was read from."""

    def type_at(self, type_id: int) -> Type:
        """Return one type. Raises KeyError if there is no such id; 0 is void."""
        ...

    def id_of(self, kind: int, name: str) -> int | None:
        """Return the id of the first type of a kind with this name, or None."""
        ...

    def tags_of(self, type_id: int) -> Sequence[tuple[str, int]]:
        """Return the declaration tags on a type: (text, component index; -1 is the type itself)."""
        ...


@dataclass(frozen=True, slots=True)
class TypeRef:
    """A type by its id in one BTF."""

    types: TypeProvider
    type_id: int


@dataclass(frozen=True, slots=True)
class OwnTypes:
    """
    What a program's own BTF says about it, where it has any.

    `functions` maps the slot that a function starts at to the id of its BTF_KIND_FUNC in `types`;
    `map_values` maps the name of a map to the type of its value, `inner_maps` the name of a map of
    maps to what the maps inside are like.
    """

    types: TypeProvider | None = None
    functions: Mapping[int, int] = field(default_factory=dict[int, int])
    map_values: Mapping[str, TypeRef] = field(default_factory=dict[str, TypeRef])
    inner_maps: Mapping[str, MapSpec] = field(default_factory=dict[str, MapSpec])
