"""
Loads through pointers to kernel structs: the member that lies there, and whether a pointer found
there can be trusted.
"""

from __future__ import annotations

from typing import Final

from actplane.asm.uapi import MapType, ProgType
from actplane.verifier.domains.btf_walk import Found, member_at
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.maps import special_fields
from actplane.verifier.domains.types import BtfKind
from actplane.verifier.paths import struct_ops
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Value
from actplane.verifier.paths.verification import Verification
from actplane.verifier.tables.refusals import refuse

# Members that stay trusted when they are reached through a trusted pointer, by struct.
_TRUSTED: Final = {
    "bpf_iter_meta": {"seq"},
    "bpf_iter__task": {"meta", "task"},
    "linux_binprm": {"file"},
    "file": {"f_inode"},
}
_TRUSTED_OR_NULL: Final = {
    "socket": {"sk"},
    "vm_area_struct": {"vm_mm", "vm_file"},
    "dentry": {"d_inode"},
}
# Members that are protected by RCU although the kernel's BTF has no tag on them.
_RCU: Final = {
    "task_struct": {"cpus_ptr", "cgroups", "real_parent", "group_leader"},
    "cgroup": {"kn"},
    "css_set": {"dfl_cgrp"},
    "cgroup_subsys_state": {"cgroup"},
}
_RCU_OR_NULL: Final = {
    "mm_struct": {"exe_file"},
    "sk_buff": {"sk"},
    "request_sock": {"sk"},
}

_MAP_STRUCTS: Final = {
    MapType.BPF_MAP_TYPE_ARRAY: "bpf_array",
    MapType.BPF_MAP_TYPE_PERCPU_ARRAY: "bpf_array",
    MapType.BPF_MAP_TYPE_PROG_ARRAY: "bpf_array",
    MapType.BPF_MAP_TYPE_PERF_EVENT_ARRAY: "bpf_array",
    MapType.BPF_MAP_TYPE_CGROUP_ARRAY: "bpf_array",
    MapType.BPF_MAP_TYPE_ARRAY_OF_MAPS: "bpf_array",
    MapType.BPF_MAP_TYPE_HASH: "bpf_htab",
    MapType.BPF_MAP_TYPE_PERCPU_HASH: "bpf_htab",
    MapType.BPF_MAP_TYPE_LRU_HASH: "bpf_htab",
    MapType.BPF_MAP_TYPE_LRU_PERCPU_HASH: "bpf_htab",
    MapType.BPF_MAP_TYPE_HASH_OF_MAPS: "bpf_htab",
    MapType.BPF_MAP_TYPE_LPM_TRIE: "lpm_trie",
    MapType.BPF_MAP_TYPE_QUEUE: "bpf_queue_stack",
    MapType.BPF_MAP_TYPE_STACK: "bpf_queue_stack",
    MapType.BPF_MAP_TYPE_RINGBUF: "bpf_ringbuf_map",
    MapType.BPF_MAP_TYPE_DEVMAP: "bpf_dtab",
    MapType.BPF_MAP_TYPE_DEVMAP_HASH: "bpf_dtab",
    MapType.BPF_MAP_TYPE_CPUMAP: "bpf_cpu_map",
    MapType.BPF_MAP_TYPE_SOCKMAP: "bpf_stab",
    MapType.BPF_MAP_TYPE_SOCKHASH: "bpf_shtab",
    MapType.BPF_MAP_TYPE_STACK_TRACE: "bpf_stack_map",
    MapType.BPF_MAP_TYPE_XSKMAP: "xsk_map",
    MapType.BPF_MAP_TYPE_SK_STORAGE: "bpf_local_storage_map",
    MapType.BPF_MAP_TYPE_INODE_STORAGE: "bpf_local_storage_map",
    MapType.BPF_MAP_TYPE_TASK_STORAGE: "bpf_local_storage_map",
    MapType.BPF_MAP_TYPE_CGRP_STORAGE: "bpf_local_storage_map",
    MapType.BPF_MAP_TYPE_REUSEPORT_SOCKARRAY: "reuseport_array",
}

_TRUST_FLAGS: Final = Flag.TRUSTED | Flag.RCU | Flag.UNTRUSTED | Flag.NULL


def _is_alive(pointer: Pointer) -> bool:
    """Whether the kernel guarantees that the object is alive."""
    if pointer.ref:
        return not pointer.flags & (Flag.UNTRUSTED | Flag.RCU)
    if pointer.kind is Kind.BTF_ID:
        return bool(pointer.flags & (Flag.TRUSTED | Flag.ALLOC)) and not pointer.flags & (
            Flag.UNTRUSTED | Flag.RCU | Flag.NON_OWN
        )
    return False


def struct_name(pointer: Pointer) -> str:
    if pointer.types is None or not pointer.type_id:
        return "void"
    return pointer.types.type_at(pointer.type_id).name


def access(
    v: Verification, state: State, slot: int, reg: int, base: Pointer, off: int, size: int, *, is_write: bool
) -> Value:
    """Check an access through a pointer to a struct. Return what a load yields."""
    name = struct_name(base)
    types = base.types
    if types is None or not base.type_id:
        refuse("struct-access", slot, f"r{reg} points at something without a type", reg)
    is_alloc = bool(base.flags & Flag.ALLOC)
    if not v.is_privileged:
        refuse("struct-access", slot, f"r{reg}: struct {name} is accessible to privileged programs only", reg)
    if not v.is_gpl and not is_alloc and v.profile.at_least(6, 2):
        refuse("gpl-required", slot, f"struct {name} is accessible to GPL-compatible programs only", reg)
    if off < 0:
        refuse("struct-access", slot, f"r{reg}: negative offset {off} in struct {name}", reg)
    if not base.var.is_const or base.var.value:
        refuse("struct-access", slot, f"r{reg}: unknown offset in struct {name}", reg)
    if base.flags & (Flag.USER | Flag.PERCPU):
        where = "user space" if base.flags & Flag.USER else "per-CPU memory"
        refuse("struct-access", slot, f"r{reg}: struct {name} is in {where}, read it with its helper", reg)
    if is_write and not is_alloc and not _may_write(v, name, base, off, size):
        refuse("read-only", slot, f"r{reg}: struct {name} can only be read", reg)
    if is_alloc:
        _check_allocated(v, state, slot, reg, base, off, size)
    found = member_at(types, base.type_id, off, size, is_lax=v.profile.at_least(6, 2))
    if found.problem:
        refuse("struct-access", slot, f"r{reg}: {found.problem}", reg)
    if not found.type_id and found.flags & Flag.RDONLY and not is_write and v.profile.at_least(6, 17) and not is_alloc:
        # What it points at is read through a probe, at any offset.
        return Pointer(Kind.MEM, flags=Flag.RDONLY | Flag.UNTRUSTED)
    if not found.type_id or is_write:
        return UNKNOWN_SCALAR
    if is_alloc:
        return UNKNOWN_SCALAR
    flags = _flags_after(v, state, base, name, found)
    id_ = v.new_id() if flags & Flag.NULL else 0
    return Pointer(Kind.BTF_ID, flags=flags, types=types, type_id=found.type_id, id=id_)


def _flags_after(v: Verification, state: State, base: Pointer, name: str, found: Found) -> int:
    flags = found.flags
    member = found.member
    if base.flags & Flag.UNTRUSTED:
        return Flag.UNTRUSTED
    if not v.profile.at_least(6, 2):
        return flags & ~Flag.UNTRUSTED & ~Flag.RCU | (flags & Flag.UNTRUSTED)
    if _is_alive(base) or base.flags & Flag.RCU:
        if member in _TRUSTED.get(name, ()):
            return flags | Flag.TRUSTED
        if member in _TRUSTED_OR_NULL.get(name, ()):
            # The inode of a name was taken to be there before 6.13.
            is_sure = name == "dentry" and not v.profile.at_least(6, 13)
            return flags | Flag.TRUSTED | (0 if is_sure else Flag.NULL)
        if v.in_rcu(state) and not base.flags & Flag.NULL:
            if member in _RCU.get(name, ()):
                return flags | Flag.RCU
            if flags & Flag.RCU or member in _RCU_OR_NULL.get(name, ()):
                return (flags | Flag.RCU | Flag.NULL) & ~Flag.UNTRUSTED
            if flags & (Flag.PERCPU | Flag.USER):
                return flags
            return flags & ~_TRUST_FLAGS
        return Flag.UNTRUSTED
    return flags & ~_TRUST_FLAGS


def _may_write(v: Verification, name: str, base: Pointer, off: int, size: int) -> bool:
    if v.prog_type is ProgType.BPF_PROG_TYPE_STRUCT_OPS:
        assert base.types is not None
        found = member_at(base.types, base.type_id, off, size)
        return not found.problem and struct_ops.may_write(v.program, name, found.member)
    if v.prog_type.name in ("BPF_PROG_TYPE_SCHED_CLS", "BPF_PROG_TYPE_XDP") and name in ("nf_conn", "nf_conn___init"):
        types = base.types
        assert types is not None
        found = member_at(types, base.type_id, off, size)
        return not found.problem and found.member == "mark"
    return False


def _check_allocated(v: Verification, state: State, slot: int, reg: int, base: Pointer, off: int, size: int) -> None:
    assert base.types is not None
    for item in special_fields(base.types, base.type_id):
        if off < item.off + item.size and item.off < off + size:
            refuse("map-value-access", slot, f"r{reg}: direct access to the {item.what} at {item.off}", reg)


def member_of_map(v: Verification, base: Pointer, off: int, size: int) -> Found:
    """Return what lies at an offset of the kernel's struct behind a map pointer."""
    types = v.subject.types
    assert types is not None
    assert base.map is not None
    name = _MAP_STRUCTS.get(base.map.spec.type, "bpf_map")
    type_id = types.id_of(BtfKind.STRUCT, name)
    if type_id is None:
        return Found(0, 0, "", f"the kernel's BTF has no struct {name}")
    return member_at(types, type_id, off, size, is_lax=v.profile.at_least(6, 2))
