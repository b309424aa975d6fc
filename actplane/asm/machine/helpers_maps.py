"""Helpers on maps: elements, queues, ring buffers, local storage, callbacks over elements."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

from actplane.asm.machine.faults import Fault
from actplane.asm.machine.maps import ArrayMap, HashMap, Map, PerCpuMap
from actplane.asm.machine.registry import U32, Callback, CallbackHelper, helper
from actplane.asm.machine.storage import LocalStorageMap
from actplane.asm.machine.streams import BloomFilterMap, PerfEventArrayMap, QueueMap, RingBufferMap
from actplane.asm.uapi import HelperId

if TYPE_CHECKING:
    from actplane.asm.machine.machine import Machine

MapKind = TypeVar("MapKind", bound=Map)

BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE, BPF_RB_CONS_POS, BPF_RB_PROD_POS = range(4)


def _map(machine: Machine, address: int, kind: type[MapKind]) -> MapKind:
    found = machine.map_at(address)
    if not isinstance(found, kind):
        raise Fault(f"map {found.name} is {found.spec.type.name}: this helper does not take it")
    return found


@helper(HelperId.bpf_map_lookup_elem)
def map_lookup_elem(machine: Machine, bpf_map: int, key: int) -> int:
    found = machine.map_at(bpf_map)
    return found.lookup(machine.memory.read(key, found.spec.key_size))


@helper(HelperId.bpf_map_lookup_percpu_elem)
def map_lookup_percpu_elem(machine: Machine, bpf_map: int, key: int, cpu: int) -> int:
    found = _map(machine, bpf_map, PerCpuMap)
    return found.lookup_on(machine.memory.read(key, found.spec.key_size), cpu & U32)


@helper(HelperId.bpf_map_update_elem)
def map_update_elem(machine: Machine, bpf_map: int, key: int, value: int, flags: int) -> int:
    found = machine.map_at(bpf_map)
    read = machine.memory.read
    return found.update(read(key, found.spec.key_size), read(value, found.spec.value_size), flags)


@helper(HelperId.bpf_map_delete_elem)
def map_delete_elem(machine: Machine, bpf_map: int, key: int) -> int:
    found = machine.map_at(bpf_map)
    return found.delete(machine.memory.read(key, found.spec.key_size))


@helper(HelperId.bpf_for_each_map_elem)
def for_each_map_elem(machine: Machine, bpf_map: int, function: int, context: int, flags: int) -> CallbackHelper:
    found = machine.map_at(bpf_map)
    if flags or not isinstance(found, ArrayMap | HashMap | PerCpuMap):
        return -errno.EINVAL
    visited = 0
    for key in found:
        element = found.element(key)
        if element is None:
            continue
        copy = machine.memory.add(f"key of {found.name}", key, is_writable=False)
        machine.memory.retire(copy)
        visited += 1
        if (yield Callback(function, (bpf_map, copy.address, element.address, context))):
            break
    return visited


@helper(HelperId.bpf_map_push_elem)
def map_push_elem(machine: Machine, bpf_map: int, value: int, flags: int) -> int:
    found = machine.map_at(bpf_map)
    if not isinstance(found, QueueMap | BloomFilterMap):
        return -errno.EOPNOTSUPP
    return found.push(machine.memory.read(value, found.spec.value_size), flags)


@helper(HelperId.bpf_map_pop_elem)
def map_pop_elem(machine: Machine, bpf_map: int, value: int) -> int:
    found = _map(machine, bpf_map, QueueMap)
    return _give(machine, value, found.pop(), found.spec.value_size)


@helper(HelperId.bpf_map_peek_elem)
def map_peek_elem(machine: Machine, bpf_map: int, value: int) -> int:
    found = machine.map_at(bpf_map)
    if isinstance(found, BloomFilterMap):
        return 0 if machine.memory.read(value, found.spec.value_size) in found.values else -errno.ENOENT
    queue = _map(machine, bpf_map, QueueMap)
    return _give(machine, value, queue.peek(), queue.spec.value_size)


def _give(machine: Machine, address: int, value: bytes | None, size: int) -> int:
    machine.memory.write(address, bytes(size) if value is None else value)
    return -errno.ENOENT if value is None else 0


@helper(HelperId.bpf_ringbuf_reserve)
def ringbuf_reserve(machine: Machine, bpf_map: int, size: int, flags: int) -> int:
    return _map(machine, bpf_map, RingBufferMap).reserve(size, flags)


@helper(HelperId.bpf_ringbuf_submit)
def ringbuf_submit(machine: Machine, record: int, flags: int) -> int:
    machine.ring_of(record).commit(record)
    return 0


@helper(HelperId.bpf_ringbuf_discard)
def ringbuf_discard(machine: Machine, record: int, flags: int) -> int:
    machine.ring_of(record).commit(record, is_discarded=True)
    return 0


@helper(HelperId.bpf_ringbuf_output)
def ringbuf_output(machine: Machine, bpf_map: int, data: int, size: int, flags: int) -> int:
    return _map(machine, bpf_map, RingBufferMap).output(machine.memory.read(data, size))


@helper(HelperId.bpf_ringbuf_query)
def ringbuf_query(machine: Machine, bpf_map: int, flags: int) -> int:
    ring = _map(machine, bpf_map, RingBufferMap)
    if flags == BPF_RB_AVAIL_DATA:
        return ring.used_bytes
    return ring.spec.max_entries if flags == BPF_RB_RING_SIZE else 0


@helper(HelperId.bpf_perf_event_output, HelperId.bpf_skb_output, HelperId.bpf_xdp_output)
def perf_event_output(machine: Machine, context: int, bpf_map: int, flags: int, data: int, size: int) -> int:
    found = _map(machine, bpf_map, PerfEventArrayMap)
    cpu = machine.cpu if flags & U32 == U32 else flags & U32
    if cpu >= machine.cpus:
        return -errno.E2BIG
    found.records.append((cpu, machine.memory.read(data, size)))
    return 0


@helper(
    HelperId.bpf_task_storage_get,
    HelperId.bpf_inode_storage_get,
    HelperId.bpf_sk_storage_get,
    HelperId.bpf_cgrp_storage_get,
)
def local_storage_get(machine: Machine, bpf_map: int, owner: int, value: int, flags: int) -> int:
    found = _map(machine, bpf_map, LocalStorageMap)
    initial = machine.memory.read(value, found.spec.value_size) if value else None
    return found.get(owner, initial, flags)


@helper(
    HelperId.bpf_task_storage_delete,
    HelperId.bpf_inode_storage_delete,
    HelperId.bpf_sk_storage_delete,
    HelperId.bpf_cgrp_storage_delete,
)
def local_storage_delete(machine: Machine, bpf_map: int, owner: int) -> int:
    if not owner:
        return -errno.EINVAL
    return _map(machine, bpf_map, LocalStorageMap).drop(owner)


@helper(HelperId.bpf_spin_lock, HelperId.bpf_spin_unlock)
def spin_lock(machine: Machine, lock: int) -> int:
    # One program runs at a time, so a lock is always free; its word must exist all the same.
    machine.memory.read(lock, 4)
    return 0


@helper(HelperId.bpf_kptr_xchg)
def kptr_xchg(machine: Machine, destination: int, pointer: int) -> int:
    old = machine.memory.read_int(destination, 8)
    machine.memory.write_int(destination, pointer, 8)
    return old
