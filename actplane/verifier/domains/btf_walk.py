"""
Walking types: what lies at an offset of a struct, what a pointer points at, whether two types are
one and the same for a helper.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from actplane.verifier.domains.kinds import Flag
from actplane.verifier.domains.types import BtfKind, Type, TypeProvider

_MODIFIERS: Final = frozenset(
    {BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG, BtfKind.DECL_TAG}
)
_NUMBERS: Final = frozenset({BtfKind.INT, BtfKind.ENUM, BtfKind.ENUM64})


def strip(types: TypeProvider, type_id: int) -> int:
    """Return the id of a type without its typedefs and modifiers."""
    while True:
        found = types.type_at(type_id) if type_id else None
        if found is None or found.kind not in _MODIFIERS:
            return type_id
        type_id = found.target


def bare(types: TypeProvider, type_id: int) -> Type | None:
    """Return a type without its typedefs and modifiers; None is void."""
    type_id = strip(types, type_id)
    return types.type_at(type_id) if type_id else None


def is_struct(found: Type | None) -> bool:
    return found is not None and found.kind in (BtfKind.STRUCT, BtfKind.UNION)


def is_number(found: Type | None) -> bool:
    return found is not None and found.kind in _NUMBERS


def pointee(types: TypeProvider, type_id: int) -> int | None:
    """Return the bare id of what a pointer type points at (0 is void), None if it is no pointer."""
    found = bare(types, type_id)
    return strip(types, found.target) if found is not None and found.kind == BtfKind.PTR else None


def size_of(types: TypeProvider, type_id: int) -> int | None:
    """Return the size in bytes of a type, or None where it has none (void, functions, forwards)."""
    found = bare(types, type_id)
    if found is None:
        return None
    if found.kind == BtfKind.PTR:
        return 8
    if found.kind == BtfKind.ARRAY:
        element = size_of(types, found.target)
        return None if element is None else element * found.count
    if found.kind in (BtfKind.FUNC, BtfKind.FUNC_PROTO, BtfKind.FWD):
        return None
    return found.size


def type_tags(types: TypeProvider, type_id: int) -> frozenset[str]:
    """Return the type tags (`rcu`, `user`, `percpu`, `kptr` ...) on what a pointer type points at."""
    found = bare(types, type_id)
    if found is None or found.kind != BtfKind.PTR:
        return frozenset()
    tags = set()
    type_id = found.target
    while type_id:
        inner = types.type_at(type_id)
        if inner.kind not in _MODIFIERS:
            break
        if inner.kind == BtfKind.TYPE_TAG:
            tags.add(inner.name)
        type_id = inner.target
    return frozenset(tags)


_TAG_FLAGS: Final = {"user": Flag.USER, "percpu": Flag.PERCPU, "rcu": Flag.RCU}


class Found(NamedTuple):
    """
    What lies at an offset: a pointer to a struct with flags, or (`type_id` 0) a number, or with the flag
    RDONLY a pointer to something that is no struct.
    """

    type_id: int
    flags: int
    member: str
    problem: str = ""


def member_at(types: TypeProvider, type_id: int, off: int, size: int, *, is_lax: bool = False) -> Found:
    """
    Return what a load of `size` bytes at byte `off` of a struct yields.

    Unions make the pointers in them untrusted; `is_lax` allows to read a number there beyond its
    member's end. A problem is returned in words, not raised, since the caller knows the instruction.
    Source: btf_struct_walk() in kernel/bpf/btf.c of Linux 6.18.
    """
    flags = 0
    container = bare(types, type_id)
    while True:
        if container is None or not is_struct(container):
            name = container.name if container is not None else "void"
            return Found(0, 0, "", f"'{name}' is not a struct")
        if container.kind == BtfKind.UNION and len(container.members) != 1:
            flags |= Flag.UNTRUSTED
        if off + size > container.size:
            tail = _flexible_tail(types, container, off)
            if tail is None:
                return Found(0, 0, "", f"access beyond struct {container.name} at off {off} size {size}")
            off, container = tail
            if container.kind == BtfKind.INT:
                return Found(0, 0, "")
            continue
        step = _step(types, container, off, size, flags, is_lax)
        if isinstance(step, Found):
            return step
        container, off = step


def _flexible_tail(types: TypeProvider, container: Type, off: int) -> tuple[int, Type] | None:
    """Return the offset in the element, and the element, of an access to a trailing array of no length."""
    if not container.members:
        return None
    last = container.members[-1]
    array = bare(types, last.type_id)
    start = last.offset_bits // 8
    if array is None or array.kind != BtfKind.ARRAY or array.count or off < start:
        return None
    element = bare(types, array.target)
    if element is None or not (element.kind == BtfKind.INT or is_struct(element)) or not element.size:
        return None
    return (off - start) % element.size, element


def _step(
    types: TypeProvider, container: Type, off: int, size: int, flags: int, is_lax: bool
) -> Found | tuple[Type, int]:
    """Return what lies at an offset of a struct, or the struct in it that does, and the offset in that."""
    for member in container.members:
        start = member.offset_bits // 8
        if off + size <= start:
            break
        if member.bitfield_bits:
            end = (member.offset_bits + member.bitfield_bits + 7) // 8
            # A part of a bit field is no part of the struct.
            if off <= start and end <= off + size:
                return Found(0, 0, member.name)
            continue
        if off < start:
            break
        member_size = size_of(types, member.type_id)
        if member_size is None:
            return Found(0, 0, member.name, f"field {member.name} doesn't have size")
        end = start + member_size
        if off >= end:
            continue
        type_id, inner = member.type_id, bare(types, member.type_id)
        while inner is not None and inner.kind == BtfKind.ARRAY:
            type_id = inner.target
            inner = bare(types, type_id)
        if inner is None:
            return Found(0, 0, member.name, f"field {member.name} doesn't have size")
        # Arrays, of however many dimensions, are their elements in a row.
        element_size = size_of(types, type_id) or member_size
        at = (off - start) % element_size
        if is_struct(inner):
            return inner, at
        if inner.kind == BtfKind.PTR:
            return _pointer_member(types, member.name, type_id, container, at, off, size, flags)
        if off + size > end and not (is_lax and flags & Flag.UNTRUSTED):
            words = f"access beyond the end of member {member.name} (mend:{end}) in struct {container.name}"
            return Found(0, 0, member.name, f"{words} with off {off} size {size}")
        return Found(0, 0, member.name)
    return Found(0, 0, "", f"struct {container.name} doesn't have field at offset {off}")


def _pointer_member(
    types: TypeProvider, name: str, type_id: int, container: Type, at: int, off: int, size: int, flags: int
) -> Found:
    if at or size != 8:
        words = f"cannot access ptr member {name} with moff {off - at} in struct {container.name}"
        return Found(0, 0, name, f"{words} with off {off} size {size}")
    target = pointee(types, type_id)
    if target and is_struct(types.type_at(target)):
        for tag in type_tags(types, type_id):
            flags |= _TAG_FLAGS.get(tag, 0)
        return Found(target, flags, name)
    return Found(0, Flag.RDONLY, name)


def same_struct(types: TypeProvider, type_id: int, other: TypeProvider, other_id: int) -> bool:
    """Whether two ids name one type: the same id of the same BTF, or equal kind, name and size."""
    if types is other:
        return type_id == other_id
    if not type_id or not other_id:
        return type_id == other_id
    one, two = types.type_at(type_id), other.type_at(other_id)
    return one.kind == two.kind and one.name == two.name and one.size == two.size


def holds_struct(
    types: TypeProvider, type_id: int, off: int, other: TypeProvider, wanted: int, *, is_strict: bool = False
) -> bool:
    """Whether a struct of type `wanted` starts at byte `off` of a struct, at any depth of nesting."""
    type_id = strip(types, type_id)
    if off == 0 and same_struct(types, type_id, other, wanted):
        return True
    if is_strict:
        return False
    while True:
        container = types.type_at(type_id) if type_id else None
        if not is_struct(container):
            return False
        assert container is not None
        for member in container.members:
            start = member.offset_bits // 8
            inner_id = strip(types, member.type_id)
            member_size = size_of(types, inner_id)
            if member.bitfield_bits or not member_size or not start <= off < start + member_size:
                continue
            inner = types.type_at(inner_id)
            off -= start
            while inner.kind == BtfKind.ARRAY:
                inner_id = strip(types, inner.target)
                element_size = size_of(types, inner_id)
                if not element_size:
                    return False
                off %= element_size
                inner = types.type_at(inner_id)
            type_id = inner_id
            break
        else:
            return False
        if off == 0 and same_struct(types, type_id, other, wanted):
            return True
