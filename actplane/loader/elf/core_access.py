"""
What a CO-RE relocation is about: a type, a field reached from it step by step, or an enumerator.

Source: tools/lib/bpf/relo_core.h of Linux 6.18.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum

from actplane.errors import ActplaneError
from actplane.loader.btf import Btf, TypeNotFound
from actplane.loader.btf_types import BtfType, Kind

MOST_STEPS = 64
"""Members and elements that one access may pass through."""

COMPOSITES = (Kind.BTF_KIND_STRUCT, Kind.BTF_KIND_UNION)
ENUMS = (Kind.BTF_KIND_ENUM, Kind.BTF_KIND_ENUM64)

_NUMBERS = re.compile(r"\d+(?::\d+)*")
_FLAVOUR = re.compile(r"(.*[^_])___[^_]")


class CoreError(ActplaneError):
    """A CO-RE relocation makes no sense, or cannot be carried out on the instruction it belongs to."""


class CoreKind(IntEnum):
    """What a relocation asks for: enum bpf_core_relo_kind."""

    BPF_CORE_FIELD_BYTE_OFFSET = 0
    BPF_CORE_FIELD_BYTE_SIZE = 1
    BPF_CORE_FIELD_EXISTS = 2
    BPF_CORE_FIELD_SIGNED = 3
    BPF_CORE_FIELD_LSHIFT_U64 = 4
    BPF_CORE_FIELD_RSHIFT_U64 = 5
    BPF_CORE_TYPE_ID_LOCAL = 6
    BPF_CORE_TYPE_ID_TARGET = 7
    BPF_CORE_TYPE_EXISTS = 8
    BPF_CORE_TYPE_SIZE = 9
    BPF_CORE_ENUMVAL_EXISTS = 10
    BPF_CORE_ENUMVAL_VALUE = 11
    BPF_CORE_TYPE_MATCHES = 12

    @property
    def is_about_field(self) -> bool:
        return self <= CoreKind.BPF_CORE_FIELD_RSHIFT_U64

    @property
    def is_about_enumerator(self) -> bool:
        return self in (CoreKind.BPF_CORE_ENUMVAL_EXISTS, CoreKind.BPF_CORE_ENUMVAL_VALUE)

    @property
    def is_about_type(self) -> bool:
        return not self.is_about_field and not self.is_about_enumerator

    @property
    def words(self) -> str:
        """What is asked for, for messages: "field byte offset", "type exists"."""
        return self.name.removeprefix("BPF_CORE_").lower().replace("_", " ").replace("enumval", "enumerator")


@dataclass(frozen=True, slots=True)
class Step:
    """One member, element or enumerator: its place in `type_id`. An element has no name."""

    type_id: int
    index: int
    name: str = ""


@dataclass(slots=True)
class Access:
    """
    A type and the way from it, in one BTF.

    Shape:  `indexes` are the numbers as the compiler wrote them; `steps` those with a name or an index,
            so the ones that pass through anonymous structs are left out.
    Units:  offset_bits counts from the start of the type.
    """

    btf: Btf
    kind: CoreKind
    root: int
    indexes: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    offset_bits: int = 0

    def __str__(self) -> str:
        root = self.btf.type_at(self.root)
        words = [root.kind.name.removeprefix("BTF_KIND_").lower(), root.name or "(anonymous)"]
        text = " ".join(words)
        if self.kind.is_about_enumerator:
            return f"{text}::{self.steps[0].name}" if self.steps else text
        for step in self.steps[1:]:
            text += f".{step.name}" if step.name else f"[{step.index}]"
        return text


def parse_access(btf: Btf, kind: CoreKind, type_id: int, text: str) -> Access:
    """
    Return the access that a relocation describes ("0:1:2") in the BTF it was written for.

    Raises: CoreError if the types do not have what the numbers say.
    """
    if not _NUMBERS.fullmatch(text):
        raise CoreError(f"CO-RE access {text!r}: expected numbers with colons between")
    access = Access(btf, kind, type_id, [int(number) for number in text.split(":")])
    if len(access.indexes) > MOST_STEPS:
        raise CoreError(f"CO-RE access {text!r}: got {len(access.indexes)} steps, expected {MOST_STEPS} or fewer")
    first, *rest = access.indexes
    if kind.is_about_type:
        if text != "0":
            raise CoreError(f"CO-RE access {text!r}: expected 0, as the relocation is about a type")
        return access
    if kind.is_about_enumerator:
        found = btf.type_at(btf.bare(type_id))
        if found.kind not in ENUMS or rest or first >= len(found.enumerators):
            raise CoreError(f"CO-RE access {text!r}: {access} has no such enumerator")
        access.steps.append(Step(type_id, first, found.enumerators[first].name))
        return access
    access.steps.append(Step(type_id, first))
    access.offset_bits = first * size_of(btf, type_id) * 8
    for index in rest:
        type_id = _follow(access, btf.bare(type_id), index, text)
    return access


def _follow(access: Access, type_id: int, index: int, text: str) -> int:
    """Take one more step, and return the type that it leads to."""
    btf = access.btf
    found = btf.type_at(type_id)
    if found.kind in COMPOSITES and index < len(found.members):
        member = found.members[index]
        access.offset_bits += member.offset_bits
        if member.name:
            access.steps.append(Step(type_id, index, member.name))
        return member.type_id
    if found.kind is Kind.BTF_KIND_ARRAY and (is_flexible(btf, access.steps[-1], found) or index < found.count):
        element = btf.bare(found.target)
        access.steps.append(Step(element, index))
        access.offset_bits += index * size_of(btf, element) * 8
        return element
    raise CoreError(f"CO-RE access {text!r}: {access} has no member or element {index}")


def is_flexible(btf: Btf, step: Step, array: BtfType) -> bool:
    """Whether an array without elements is the last member of its struct, and so has as many as there are."""
    return bool(step.name) and not array.count and step.index == len(btf.type_at(step.type_id).members) - 1


def size_of(btf: Btf, type_id: int) -> int:
    """Return the size of a type in bytes. Raises CoreError if it has none."""
    try:
        return btf.size_of(type_id)
    except TypeNotFound as error:
        raise CoreError(str(error)) from error


def essential(name: str) -> str:
    """
    Return a name without its flavour, which a program adds to have several versions of a type.

    >>> essential("task_struct___old"), essential("___x"), essential("a___b___c")
    ('task_struct', '___x', 'a___b')
    """
    found = _FLAVOUR.match(name)
    return found[1] if found else name
