"""
Kernel pointers in map values: loaded as what they are, stored only if nothing is owned, exchanged
with bpf_kptr_xchg where something is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from actplane.verifier.domains.btf_walk import holds_struct, size_of
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.maps import SpecialField
from actplane.verifier.domains.types import BtfKind, TypeProvider
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.state import State, replace_pointers
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, Value, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.rules import objects, refs
from actplane.verifier.rules.btf_access import struct_name
from actplane.verifier.tables.refusals import refuse

# Kernel structs whose memory is freed only after an RCU grace period.
_RCU_PROTECTED: Final = frozenset(
    {"cgroup", "bpf_cpumask", "task_struct", "bpf_crypto_ctx", "prog_test_ref_kfunc", "prog_test_member"}
)


def _target(v: Verification, own: TypeProvider, field: SpecialField) -> tuple[TypeProvider, int, bool]:
    """Return the struct that a kptr points at, and whether it is one of the program's own."""
    local = own.type_at(field.type_id)
    kernel = v.subject.types
    type_id = kernel.id_of(BtfKind.STRUCT, local.name.partition("___")[0]) if kernel is not None else None
    if kernel is None or type_id is None:
        return own, field.type_id, True
    return kernel, type_id, False


def _loaded(v: Verification, state: State, own: TypeProvider, field: SpecialField) -> Value:
    types, type_id, is_local = _target(v, own, field)
    flags = Flag.NULL
    if field.what == "uptr" and not v.profile.at_least(6, 13):
        return UNKNOWN_SCALAR
    if field.what == "uptr":
        return Pointer(Kind.MEM, flags=flags, size=size_of(types, type_id) or 0, id=v.new_id())
    is_safe = is_local or field.what == "percpu_kptr" or types.type_at(type_id).name in _RCU_PROTECTED
    if field.what == "kptr_untrusted" or not (is_safe and v.in_rcu(state)):
        flags |= Flag.UNTRUSTED
    else:
        flags |= Flag.RCU | (Flag.ALLOC if is_local else 0) | (Flag.PERCPU if field.what == "percpu_kptr" else 0)
    return Pointer(Kind.BTF_ID, flags=flags, types=types, type_id=type_id, id=v.new_id())


def access(
    v: Verification,
    state: State,
    slot: int,
    reg: int,
    base: Pointer,
    field: SpecialField,
    *,
    is_write: bool,
    value: Value | None,
    is_atomic: bool,
) -> Value:
    """Check a load or store of a kptr field."""
    if is_atomic:
        refuse("kptr-access", slot, f"r{reg}: a kptr takes no atomic operations", reg)
    assert base.map is not None
    own = base.map.types
    assert own is not None
    if not is_write:
        return _loaded(v, state, own, field)
    if field.what != "kptr_untrusted":
        refuse("kptr-access", slot, f"r{reg}: a kptr that owns a reference is set with bpf_kptr_xchg only", reg)
    if isinstance(value, Scalar) and value.range.is_const and not value.range.value:
        return UNKNOWN_SCALAR
    _check_match(v, slot, reg, value, own, field)
    return UNKNOWN_SCALAR


def _check_match(
    v: Verification,
    slot: int,
    reg: int,
    value: Value | None,
    own: TypeProvider,
    field: SpecialField,
    *,
    is_owned: bool = False,
) -> None:
    types, type_id, is_local = _target(v, own, field)
    expected = types.type_at(type_id).name
    if not isinstance(value, Pointer) or value.kind is not Kind.BTF_ID or value.types is None:
        refuse("kptr-access", slot, f"r{reg}: {name_of(value)} is stored in a kptr to struct {expected}", reg)
    bad = Flag.USER | Flag.NON_OWN | (0 if not is_owned else Flag.UNTRUSTED | Flag.RCU)
    is_percpu = bool(value.flags & Flag.PERCPU)
    if value.flags & bad or is_percpu != (field.what == "percpu_kptr") or bool(value.flags & Flag.ALLOC) != is_local:
        refuse("kptr-access", slot, f"r{reg}: {value.type_name} is stored in a kptr to struct {expected}", reg)
    if not value.var.is_const or value.var.value:
        refuse("kptr-access", slot, f"r{reg}: a pointer at an unknown offset is stored in a kptr", reg)
    if value.off and is_owned:
        refuse("kptr-access", slot, f"r{reg} must point at the start of struct {expected}", reg)
    if not holds_struct(value.types, value.type_id, value.off, types, type_id, is_strict=is_owned):
        claim = f"r{reg}: a pointer to struct {struct_name(value)} is stored in a kptr to struct {expected}"
        refuse("kptr-access", slot, claim, reg)


def check_exchange(v: Verification, state: State, call: Call, reg: int, value: Value) -> None:
    """Check the first argument of bpf_kptr_xchg: where the pointer is kept, in a map or in an object."""
    own, fields = _keeper(v, value)
    if own is None or not isinstance(value, Pointer):
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected map_value", reg)
    if not value.var.is_const:
        refuse("kptr-access", call.slot, f"r{reg}: the kptr must be at a known offset", reg)
    at = value.off + value.var.value
    field = next((item for item in fields if item.off == at and item.what in ("kptr", "percpu_kptr")), None)
    if field is None:
        refuse("kptr-access", call.slot, f"r{reg}: there is no kptr that owns a reference at {at}", reg)
    types, type_id, is_local = _target(v, own, field)
    flags = (Flag.ALLOC if is_local else 0) | (Flag.PERCPU if field.what == "percpu_kptr" else 0)
    call.kptr = (types, type_id, flags)
    call.extra["kptr_field"] = (own, field)


def _keeper(v: Verification, value: Value) -> tuple[TypeProvider | None, Sequence[SpecialField]]:
    """Return the types and special fields of what a kptr may lie in, None if it may not lie there."""
    if not isinstance(value, Pointer) or value.flags & Flag.NULL:
        return None, ()
    if value.kind is Kind.MAP_VALUE and value.map is not None:
        return value.map.types, value.map.fields
    is_object = value.kind is Kind.BTF_ID and value.flags & ~(Flag.NON_OWN | Flag.RCU) == Flag.ALLOC
    if is_object and v.profile.at_least(6, 12):
        return value.types, objects.fields_of(v, value)
    return None, ()


def check_new_object(v: Verification, state: State, call: Call, reg: int, value: Value) -> None:
    """Check the second argument of bpf_kptr_xchg: what the map owns from now on."""
    if not isinstance(value, Pointer):
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected a pointer", reg)
    if value.flags & Flag.NULL:
        refuse("argument-null", call.slot, f"r{reg} of {call.name} may be null", reg)
    own, field = call.extra["kptr_field"]
    _check_match(v, call.slot, reg, value, own, field, is_owned=True)
    if not value.ref:
        refuse("reference-release", call.slot, f"r{reg} holds no reference that the map could take over", reg)
    call.extra["kptr_given"] = value.ref


def finish_exchange(v: Verification, state: State, call: Call) -> None:
    """The map owns the new object; under RCU its per-CPU memory may still be used."""
    given = call.extra.get("kptr_given")
    if given is None:
        return
    per_cpu = Flag.ALLOC | Flag.PERCPU
    if v.in_rcu(state):
        replace_pointers(
            state,
            lambda pointer: pointer.ref == given and pointer.flags & per_cpu == per_cpu,
            lambda pointer: pointer.but(ref=0, flags=pointer.flags & ~Flag.ALLOC | Flag.RCU),
        )
    if not refs.release(v, state, given):
        refuse("reference-release", call.slot, "r2: the reference is not held any more", 2)
