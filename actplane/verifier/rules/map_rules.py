"""Which maps a program of a kind may refer to at all."""

from __future__ import annotations

from typing import Final

from actplane.asm.insn import MapFd, MapValue
from actplane.asm.uapi import MapType, ProgType
from actplane.verifier.domains.maps import MapFacts
from actplane.verifier.paths.verification import Verification
from actplane.verifier.tables.refusals import refuse

MAX_MAPS: Final = 64

_TRACING: Final = frozenset(
    {
        ProgType.BPF_PROG_TYPE_KPROBE,
        ProgType.BPF_PROG_TYPE_TRACEPOINT,
        ProgType.BPF_PROG_TYPE_PERF_EVENT,
        ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT,
        ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE,
    }
)

# Maps that programs which may sleep can use, and the kernel that allowed each.
_SLEEPABLE_MAPS: Final = {
    "HASH": (5, 10),
    "LRU_HASH": (5, 10),
    "ARRAY": (5, 10),
    "PERCPU_HASH": (5, 15),
    "PERCPU_ARRAY": (5, 15),
    "LRU_PERCPU_HASH": (5, 15),
    "ARRAY_OF_MAPS": (5, 15),
    "HASH_OF_MAPS": (5, 15),
    "RINGBUF": (5, 11),
    "USER_RINGBUF": (6, 1),
    "INODE_STORAGE": (5, 17),
    "SK_STORAGE": (5, 17),
    "TASK_STORAGE": (5, 17),
    "CGRP_STORAGE": (6, 2),
    "QUEUE": (6, 5),
    "STACK": (6, 5),
    "INSN_ARRAY": (6, 19),
    "PROG_ARRAY": (7, 1),
}


_CGROUP_STORAGES: Final = frozenset({MapType.BPF_MAP_TYPE_CGROUP_STORAGE, MapType.BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE})
"""Maps that a program has one value of, found by the cgroup alone."""


def check_maps(v: Verification) -> None:
    """Refuse references to maps that this program may not use, or that are not there."""
    seen: set[str] = set()
    storages: set[MapType] = set()
    for slot in v.code.layout.addresses:
        insn = v.code.at[slot]
        symbol = insn.symbol if insn is not None else None
        if isinstance(symbol, MapFd | MapValue):
            facts = v.subject.maps.get(symbol.name)
            if facts is None:
                refuse("bad-map", slot, f"there is no map {symbol.name!r}")
            if facts.spec.type is MapType.BPF_MAP_TYPE_ARENA:
                claim = f"{symbol.name!r} is an arena: memory shared with user space, which the mirror does not model"
                refuse("arena-not-modelled", slot, claim)
            if isinstance(symbol, MapValue) and not facts.is_jump_table:  # see jump_tables
                _check_direct_value(slot, facts, symbol)
            if symbol.name not in seen:
                seen.add(symbol.name)
                _check_map(v, slot, facts)
                if facts.spec.type in _CGROUP_STORAGES:
                    if facts.spec.type in storages:
                        refuse("map-not-allowed", slot, f"{symbol.name!r}: one cgroup storage of each kind is allowed")
                    storages.add(facts.spec.type)
    if len(seen) > MAX_MAPS:
        refuse("bad-map", -1, f"{len(seen)} maps, a program may use {MAX_MAPS}")


def _check_direct_value(slot: int, facts: MapFacts, symbol: MapValue) -> None:
    spec = facts.spec
    if spec.type not in (MapType.BPF_MAP_TYPE_ARRAY,) or spec.max_entries != 1:
        refuse("bad-map", slot, f"the map {spec.name!r} has no single value to take the address of")
    if not 0 <= symbol.offset_bytes < spec.value_size:
        claim = f"byte {symbol.offset_bytes} is outside of the value of {spec.name!r}, which has {spec.value_size}"
        refuse("bad-map", slot, claim)


def _check_map(v: Verification, slot: int, facts: MapFacts) -> None:
    kind = v.prog_type
    name = facts.spec.name
    if (facts.field_of("list_head") is not None or facts.field_of("rb_root") is not None) and kind in _TRACING:
        refuse("map-not-allowed", slot, f"tracing programs cannot use lists and trees, {name!r} holds one")
    if facts.field_of("spin_lock") is not None or facts.field_of("res_spin_lock") is not None:
        if kind is ProgType.BPF_PROG_TYPE_SOCKET_FILTER:
            refuse("map-not-allowed", slot, f"socket filters cannot use locks, {name!r} holds one")
        if kind in _TRACING and facts.field_of("res_spin_lock") is None:
            refuse("map-not-allowed", slot, f"tracing programs cannot use locks, {name!r} holds one")
        if v.is_sleepable and not v.profile.at_least(6, 7):
            refuse("map-not-allowed", slot, f"sleepable programs cannot use locks, {name!r} holds one")
    if facts.field_of("timer") is not None and kind in _TRACING and not v.profile.at_least(7, 1):
        refuse("map-not-allowed", slot, f"tracing programs cannot use timers, {name!r} holds one")
    if facts.field_of("workqueue") is not None and kind in _TRACING:
        refuse("map-not-allowed", slot, f"tracing programs cannot use work queues, {name!r} holds one")
    if facts.spec.type is MapType.BPF_MAP_TYPE_STRUCT_OPS:
        refuse("map-not-allowed", slot, f"{name!r} is a struct_ops map, which programs cannot refer to")
    if v.is_sleepable:
        since = _SLEEPABLE_MAPS.get(facts.spec.type.name.removeprefix("BPF_MAP_TYPE_"))
        if since is None or not v.profile.at_least(*since):
            refuse("map-not-allowed", slot, f"a sleepable program cannot use {name!r}, a {facts.spec.type.name}")
