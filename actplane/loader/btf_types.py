"""
The types that BTF describes, as values: what the reader yields and the writer takes.

Source: Documentation/bpf/btf.rst and include/uapi/linux/btf.h of Linux 6.18.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

BTF_MAGIC = 0xEB9F
BTF_HEADER_BYTES = 24


class Kind(IntEnum):
    """Kinds of types, by their own names."""

    BTF_KIND_UNKN = 0
    BTF_KIND_INT = 1
    BTF_KIND_PTR = 2
    BTF_KIND_ARRAY = 3
    BTF_KIND_STRUCT = 4
    BTF_KIND_UNION = 5
    BTF_KIND_ENUM = 6
    BTF_KIND_FWD = 7
    BTF_KIND_TYPEDEF = 8
    BTF_KIND_VOLATILE = 9
    BTF_KIND_CONST = 10
    BTF_KIND_RESTRICT = 11
    BTF_KIND_FUNC = 12
    BTF_KIND_FUNC_PROTO = 13
    BTF_KIND_VAR = 14
    BTF_KIND_DATASEC = 15
    BTF_KIND_FLOAT = 16
    BTF_KIND_DECL_TAG = 17
    BTF_KIND_TYPE_TAG = 18
    BTF_KIND_ENUM64 = 19


SIZED_KINDS = frozenset(
    {
        Kind.BTF_KIND_INT,
        Kind.BTF_KIND_STRUCT,
        Kind.BTF_KIND_UNION,
        Kind.BTF_KIND_ENUM,
        Kind.BTF_KIND_ENUM64,
        Kind.BTF_KIND_FLOAT,
        Kind.BTF_KIND_DATASEC,
    }
)
"""Kinds whose third word is a size in bytes; of the others it is a type."""

MODIFIERS = frozenset(
    {
        Kind.BTF_KIND_TYPEDEF,
        Kind.BTF_KIND_VOLATILE,
        Kind.BTF_KIND_CONST,
        Kind.BTF_KIND_RESTRICT,
        Kind.BTF_KIND_TYPE_TAG,
    }
)
"""Kinds that only wrap another type of the same layout."""

BASE_WORDS = [3] * 32
"""Words (of 4 bytes) that a type of a kind takes, without its members."""
BASE_WORDS[Kind.BTF_KIND_INT] = 4
BASE_WORDS[Kind.BTF_KIND_ARRAY] = 6
BASE_WORDS[Kind.BTF_KIND_VAR] = 4
BASE_WORDS[Kind.BTF_KIND_DECL_TAG] = 4

MEMBER_WORDS = [0] * 32
"""Words that each member, parameter or enumerator adds."""
MEMBER_WORDS[Kind.BTF_KIND_STRUCT] = 3
MEMBER_WORDS[Kind.BTF_KIND_UNION] = 3
MEMBER_WORDS[Kind.BTF_KIND_ENUM] = 2
MEMBER_WORDS[Kind.BTF_KIND_FUNC_PROTO] = 2
MEMBER_WORDS[Kind.BTF_KIND_DATASEC] = 3
MEMBER_WORDS[Kind.BTF_KIND_ENUM64] = 3

BTF_INT_SIGNED = 1
BTF_INT_CHAR = 2
BTF_INT_BOOL = 4


class Linkage(IntEnum):
    """Linkage of a function (in the place of the number of members)."""

    BTF_FUNC_STATIC = 0
    BTF_FUNC_GLOBAL = 1
    BTF_FUNC_EXTERN = 2


@dataclass(frozen=True, slots=True)
class Member:
    """
    A field of a struct or union, a parameter of a function, or a variable of a data section.

    Units:  offset_bits is 0 for a parameter; bitfield_bits is 0 for a field that is no bit field;
            size_bytes is that of a variable in a section, else 0.
    A last parameter of no name and type 0 stands for `...`.
    """

    name: str
    type_id: int
    offset_bits: int = 0
    bitfield_bits: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Enumerator:
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class BtfType:
    """
    One type. What a kind does not have is empty.

    Shape:  `target` is the type that a pointer, modifier, tag, function or variable refers to, the
            element of an array, the return type of a prototype; 0 is void. `count` and `index` are
            an array's elements and index type. `linkage` is that of a function or variable, and a
            declaration tag's component (-1: the type itself). `encoding` is an integer's word of
            encoding, bit offset and bits. `is_flagged` is the kind flag: offsets carry bit-field
            sizes for a struct, signed for an enum, union for a forward.
    Units:  size is bytes.
    """

    kind: Kind
    name: str = ""
    size: int = 0
    target: int = 0
    count: int = 0
    index: int = 0
    linkage: int = 0
    encoding: int = 0
    is_flagged: bool = False
    members: tuple[Member, ...] = ()
    enumerators: tuple[Enumerator, ...] = ()

    @property
    def is_signed(self) -> bool:
        """Whether an integer or enum is signed."""
        if self.kind is Kind.BTF_KIND_INT:
            return bool(self.encoding >> 24 & BTF_INT_SIGNED)
        return self.kind in (Kind.BTF_KIND_ENUM, Kind.BTF_KIND_ENUM64) and self.is_flagged


VOID = BtfType(Kind.BTF_KIND_UNKN)
"""The type that id 0 stands for."""
