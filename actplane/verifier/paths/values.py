"""
What a register or a stack slot can hold: a number, or a pointer of a kind. Values are immutable;
a register without a value is None.
"""

from __future__ import annotations

from typing import Any, Final

from actplane.verifier.domains.kinds import Flag, Kind, type_name
from actplane.verifier.domains.maps import MapFacts
from actplane.verifier.domains.scalar import UNKNOWN, Range, constant
from actplane.verifier.domains.types import TypeProvider

ZERO: Final[Range] = constant(0)


class Scalar:
    """
    A number. Scalars with the same `id` other than 0 hold the same number, apart from `delta`: a
    known amount added since the copy was made (None if nothing was; `is_delta32` if it was added
    to the low half).
    """

    __slots__ = ("delta", "id", "is_delta32", "range")

    def __init__(self, range_: Range, id_: int = 0, delta: int | None = None, is_delta32: bool = False) -> None:
        self.range = range_
        self.id = id_
        self.delta = delta
        self.is_delta32 = is_delta32

    def __repr__(self) -> str:
        return f"Scalar({self.range}, id={self.id}, delta={self.delta})"


UNKNOWN_SCALAR: Final[Scalar] = Scalar(UNKNOWN)


def scalar(range_: Range) -> Scalar:
    """Return the scalar of a range that is linked with no other."""
    found: Scalar | None = range_.plain
    if found is None:
        found = range_.plain = Scalar(range_)
    return found


def known(number: int) -> Scalar:
    """Return the scalar of one number."""
    return scalar(constant(number))


class Pointer:
    """
    A pointer of a kind, with a known offset and a variable one.

    Units:  `off` is bytes, known; `var` is the range of what was added to it besides; `size` the bytes
            of the memory that a MEM pointer points at; `span` the bytes of packet that comparisons
            proved to be there (negative beyond the end: see `jumps`).
    `id` tells copies of one unknown pointer from others; `ref` is the id of the reference that it
    holds, `owner` of one that it depends on (a dynptr slice). `detail` is what only this kind has:
    the dynptr or iterator state, the callback's slot.
    """

    __slots__ = (
        "detail",
        "flags",
        "frame",
        "id",
        "kind",
        "map",
        "map_uid",
        "off",
        "owner",
        "ref",
        "size",
        "span",
        "type_id",
        "types",
        "var",
    )

    def __init__(
        self,
        kind: Kind,
        *,
        flags: int = 0,
        off: int = 0,
        var: Range = ZERO,
        id: int = 0,
        ref: int = 0,
        owner: int = 0,
        map: MapFacts | None = None,
        map_uid: int = 0,
        frame: int = 0,
        size: int = 0,
        span: int = 0,
        types: TypeProvider | None = None,
        type_id: int = 0,
        detail: Any = None,
    ) -> None:
        self.kind = kind
        self.flags = flags
        self.off = off
        self.var = var
        self.id = id
        self.ref = ref
        self.owner = owner
        self.map = map
        self.map_uid = map_uid
        self.frame = frame
        self.size = size
        self.span = span
        self.types = types
        self.type_id = type_id
        self.detail = detail

    def but(self, **changes: Any) -> Pointer:
        """Return a copy with some fields changed."""
        copy = Pointer.__new__(Pointer)
        copy.kind = self.kind
        copy.flags = self.flags
        copy.off = self.off
        copy.var = self.var
        copy.id = self.id
        copy.ref = self.ref
        copy.owner = self.owner
        copy.map = self.map
        copy.map_uid = self.map_uid
        copy.frame = self.frame
        copy.size = self.size
        copy.span = self.span
        copy.types = self.types
        copy.type_id = self.type_id
        copy.detail = self.detail
        for name, value in changes.items():
            setattr(copy, name, value)
        return copy

    @property
    def is_nullable(self) -> bool:
        return bool(self.flags & Flag.NULL)

    @property
    def type_name(self) -> str:
        """The kind as the kernel's messages print it, such as `map_value_or_null`."""
        return type_name(self.kind, self.flags)

    def __repr__(self) -> str:
        return f"Pointer({self.type_name}, off={self.off}, var={self.var}, id={self.id}, ref={self.ref})"


Value = Scalar | Pointer


def needs_no_ids(value: Value | None) -> bool:
    """Whether a value stands for itself in another state, whatever ids stand for there."""
    if value.__class__ is Pointer:
        return not (value.id or value.ref or value.owner)
    return value is None or not value.id


def name_of(value: Value | None) -> str:
    """Return the kind of any value in the kernel's words."""
    if value is None:
        return "?"
    return "scalar" if isinstance(value, Scalar) else value.type_name
