"""
When a type of a kernel is the one that a program means: libbpf's rules, from the loose one for the
existence of a type to the strict one of `bpf_core_type_matches`.

Source: bpf_core_types_are_compat(), bpf_core_types_match() and bpf_core_fields_are_compat() in
tools/lib/bpf/relo_core.c of Linux 6.18.
"""

from __future__ import annotations

from actplane.loader.btf import Btf
from actplane.loader.btf_types import BTF_INT_SIGNED, BtfType, Kind
from actplane.loader.elf.core_access import (
    COMPOSITES,
    ENUMS,
    MOST_STEPS,
    Access,
    CoreError,
    CoreKind,
    Step,
    essential,
    is_flexible,
    size_of,
)

_DEEPEST = 32


def same_kind(local: BtfType, target: BtfType) -> bool:
    """Whether two types are of one kind, for which both kinds of enum count as one."""
    return local.kind is target.kind or (local.kind in ENUMS and target.kind in ENUMS)


def are_compatible(local: Btf, local_id: int, target: Btf, target_id: int) -> bool:
    """
    Whether two types stand for the same, as loosely as for the existence and the size of a type.

    Shape:  the names of the two are not compared: whoever asks found one by the other's.
    Raises: CoreError if they are nested too deeply.
    """
    if not same_kind(local.type_at(local_id), target.type_at(target_id)):
        return False
    return _compatible(local, local_id, target, target_id, _DEEPEST)


def _compatible(local: Btf, local_id: int, target: Btf, target_id: int, depth: int) -> bool:
    while depth:
        depth -= 1
        ours, theirs = local.type_at(local.bare(local_id)), target.type_at(target.bare(target_id))
        if not same_kind(ours, theirs):
            return False
        match ours.kind:
            case Kind.BTF_KIND_INT:
                return not _bit_offset(ours) and not _bit_offset(theirs)
            case Kind.BTF_KIND_PTR | Kind.BTF_KIND_ARRAY:
                pass
            case Kind.BTF_KIND_FUNC_PROTO:
                if len(ours.members) != len(theirs.members):
                    return False
                for mine, other in zip(ours.members, theirs.members, strict=True):
                    if not _compatible(local, mine.type_id, target, other.type_id, depth):
                        return False
            case kind:
                return kind in (*COMPOSITES, *ENUMS, Kind.BTF_KIND_UNKN, Kind.BTF_KIND_FWD)
        local_id, target_id = ours.target, theirs.target
    raise CoreError("types are nested too deeply to be compared")


def _bit_offset(integer: BtfType) -> int:
    """Where an integer starts in its bytes: not 0 only for bit fields of the old encoding."""
    return integer.encoding >> 16 & 0xFF


def fields_are_compatible(local: Btf, local_id: int, target: Btf, target_id: int) -> bool:
    """Whether a field of one type can be read where the program means one of the other."""
    while True:
        ours, theirs = local.type_at(local.bare(local_id)), target.type_at(target.bare(target_id))
        if ours.kind in COMPOSITES and theirs.kind in COMPOSITES:
            return True
        if not same_kind(ours, theirs):
            return False
        match ours.kind:
            case Kind.BTF_KIND_PTR | Kind.BTF_KIND_FLOAT:
                return True
            case Kind.BTF_KIND_FWD | Kind.BTF_KIND_ENUM | Kind.BTF_KIND_ENUM64:
                return not ours.name or not theirs.name or essential(ours.name) == essential(theirs.name)
            case Kind.BTF_KIND_INT:
                return not _bit_offset(ours) and not _bit_offset(theirs)
            case Kind.BTF_KIND_ARRAY:
                local_id, target_id = ours.target, theirs.target
            case _:
                return False


def types_match(local: Btf, local_id: int, target: Btf, target_id: int) -> bool:
    """
    Whether everything that the local type has is in the target type, with the same types and names.

    Raises: CoreError if they are nested too deeply.
    """
    return _match(local, local_id, target, target_id, False, _DEEPEST)


def _match(local: Btf, local_id: int, target: Btf, target_id: int, behind_pointer: bool, depth: int) -> bool:
    while depth:
        depth -= 1
        ours, theirs = local.type_at(local.bare(local_id)), target.type_at(target.bare(target_id))
        if essential(ours.name) != essential(theirs.name):
            return False
        match ours.kind:
            case Kind.BTF_KIND_UNKN:
                return theirs.kind is Kind.BTF_KIND_UNKN
            case Kind.BTF_KIND_FWD:
                return _forward_matches(ours, theirs, behind_pointer)
            case Kind.BTF_KIND_ENUM | Kind.BTF_KIND_ENUM64:
                there = {essential(item.name) for item in theirs.enumerators}
                return theirs.kind in ENUMS and all(essential(item.name) in there for item in ours.enumerators)
            case Kind.BTF_KIND_STRUCT | Kind.BTF_KIND_UNION:
                if behind_pointer:
                    is_union = ours.kind is Kind.BTF_KIND_UNION
                    is_forward = theirs.kind is Kind.BTF_KIND_FWD and theirs.is_flagged == is_union
                    return ours.kind is theirs.kind or is_forward
                return ours.kind is theirs.kind and _members_match(local, ours, target, theirs, depth)
            case Kind.BTF_KIND_INT:
                is_same_sign = (ours.encoding ^ theirs.encoding) >> 24 & BTF_INT_SIGNED == 0
                return ours.kind is theirs.kind and ours.size == theirs.size and is_same_sign
            case Kind.BTF_KIND_PTR if theirs.kind is Kind.BTF_KIND_PTR:
                behind_pointer = True
            case Kind.BTF_KIND_ARRAY if theirs.kind is Kind.BTF_KIND_ARRAY and ours.count == theirs.count:
                pass
            case Kind.BTF_KIND_FUNC_PROTO if theirs.kind is Kind.BTF_KIND_FUNC_PROTO:
                if len(ours.members) != len(theirs.members):
                    return False
                for mine, other in zip(ours.members, theirs.members, strict=True):
                    if not _match(local, mine.type_id, target, other.type_id, behind_pointer, depth):
                        return False
            case _:
                return False
        local_id, target_id = ours.target, theirs.target
    raise CoreError("types are nested too deeply to be compared")


def _forward_matches(ours: BtfType, theirs: BtfType, behind_pointer: bool) -> bool:
    if theirs.kind is Kind.BTF_KIND_FWD:
        return ours.is_flagged == theirs.is_flagged
    meant = Kind.BTF_KIND_UNION if ours.is_flagged else Kind.BTF_KIND_STRUCT
    return behind_pointer and theirs.kind is meant


def _members_match(local: Btf, ours: BtfType, target: Btf, theirs: BtfType, depth: int) -> bool:
    if len(ours.members) > len(theirs.members):
        return False
    for mine in ours.members:
        named = (other for other in theirs.members if essential(other.name) == essential(mine.name))
        if not any(_match(local, mine.type_id, target, other.type_id, False, depth) for other in named):
            return False
    return True


def match_access(local: Access, target: Btf, target_id: int) -> Access | None:
    """
    Return the same access in a candidate type of the target, None if the candidate has no such thing.

    Raises: CoreError if the types are nested too deeply or have no size.
    """
    found = Access(target, local.kind, target_id)
    if local.kind.is_about_type:
        matches = types_match if local.kind is CoreKind.BPF_CORE_TYPE_MATCHES else are_compatible
        return found if matches(local.btf, local.root, target, target_id) else None
    if local.kind.is_about_enumerator:
        return _match_enumerator(local, found)
    for position, step in enumerate(local.steps):
        target_id = target.bare(target_id)
        if step.name:
            next_id = _match_member(local.btf, step, found, target_id)
            if next_id is None:
                return None
            target_id = next_id
            continue
        # The first index is one into an array of the root type itself.
        if position > 0:
            array = target.type_at(target_id)
            if array.kind is not Kind.BTF_KIND_ARRAY:
                return None
            if step.index >= array.count and not is_flexible(target, found.steps[-1], array):
                return None
            target_id = target.bare(array.target)
        found.steps.append(Step(target_id, step.index))
        found.indexes.append(step.index)
        found.offset_bits += step.index * size_of(target, target_id) * 8
    return found


def _match_enumerator(local: Access, found: Access) -> Access | None:
    name = essential(local.steps[0].name)
    enum = found.btf.type_at(found.btf.bare(found.root))
    if enum.kind not in ENUMS:
        return None
    for index, item in enumerate(enum.enumerators):
        if essential(item.name) == name:
            found.steps.append(Step(found.root, index, item.name))
            found.indexes.append(index)
            return found
    return None


def _match_member(local: Btf, step: Step, found: Access, target_id: int) -> int | None:
    """Find a member by name, through anonymous ones too; add the way to it, and return its type."""
    container = found.btf.type_at(target_id)
    if container.kind not in COMPOSITES:
        return None
    wanted = local.type_at(step.type_id).members[step.index]
    for index, member in enumerate(container.members):
        if len(found.indexes) >= MOST_STEPS:
            raise CoreError(f"{found}: more than {MOST_STEPS} members lie on the way to {step.name!r}")
        if member.name and member.name != wanted.name:
            continue
        found.indexes.append(index)
        found.offset_bits += member.offset_bits
        if not member.name:
            inner = _match_member(local, step, found, found.btf.bare(member.type_id))
            if inner is not None:
                return inner
        elif fields_are_compatible(local, wanted.type_id, found.btf, member.type_id):
            found.steps.append(Step(target_id, index, member.name))
            return member.type_id
        found.indexes.pop()
        found.offset_bits -= member.offset_bits
    return None
