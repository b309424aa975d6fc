"""
Maps without keys: ring buffers, perf event arrays, queues, stacks and Bloom filters.

Source: kernel/bpf/ringbuf.c, queue_stack_maps.c and bloom_filter.c of Linux 6.18.
"""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass

from actplane.asm.machine.faults import Fault
from actplane.asm.machine.maps import BPF_ANY, BPF_EXIST, Map
from actplane.asm.machine.memory import Memory, Region
from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType

RECORD_HEADER_BYTES = 8
RECORD_ALIGNMENT = 8


@dataclass(slots=True)
class _Record:
    region: Region
    is_busy: bool = True
    is_discarded: bool = False

    @property
    def room(self) -> int:
        return _room(self.region.size)


def _room(size: int) -> int:
    """Return the bytes that a record of so many takes in the ring."""
    return -(-(size + RECORD_HEADER_BYTES) // RECORD_ALIGNMENT) * RECORD_ALIGNMENT


class RingBufferMap(Map):
    """BPF_MAP_TYPE_RINGBUF: records in the order of their reservation; `max_entries` is its size in bytes."""

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self._records: deque[_Record] = deque()
        self._by_address: dict[int, _Record] = {}
        self.used_bytes = 0
        self.dropped = 0
        """How many reservations failed because the ring was full."""

    def reserve(self, size: int, flags: int) -> int:
        """Return the address of a new record, or 0 if there is no room for it."""
        if flags:
            return 0
        if self.used_bytes + _room(size) > self.spec.max_entries - 1:
            self.dropped += 1
            return 0
        record = _Record(self.memory.add(f"record of {self.name}", size))
        self.used_bytes += record.room
        self._records.append(record)
        self._by_address[record.region.address] = record
        return record.region.address

    def commit(self, address: int, *, is_discarded: bool = False) -> None:
        """Finish a record. Raises: Fault if the address is not that of a reserved one."""
        record = self._by_address.pop(address, None)
        if record is None:
            raise Fault(f"no reserved record of {self.name} at {self.memory.name_of(address)}")
        record.is_busy = False
        record.is_discarded = is_discarded
        self.memory.remove(record.region)

    def output(self, data: bytes) -> int:
        """Append a finished record. Returns 0, or -EAGAIN if there is no room for it."""
        address = self.reserve(len(data), 0)
        if not address:
            return -errno.EAGAIN
        self.memory.write(address, data)
        self.commit(address)
        return 0

    def is_reserved(self, address: int) -> bool:
        """Say whether an address is that of a record of this ring which is not yet finished."""
        return address in self._by_address

    def consume(self) -> list[bytes]:
        """Return and remove the finished records, up to the first that is still being written."""
        records = []
        while self._records and not self._records[0].is_busy:
            record = self._records.popleft()
            self.used_bytes -= record.room
            if not record.is_discarded:
                records.append(bytes(record.region.buffer))
        return records

    def __len__(self) -> int:
        return len(self._records)


class PerfEventArrayMap(Map):
    """BPF_MAP_TYPE_PERF_EVENT_ARRAY: records by CPU, with room for any number of them."""

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self.records: list[tuple[int, bytes]] = []
        """(CPU, data) of every record, oldest first."""

    def __len__(self) -> int:
        return len(self.records)


class QueueMap(Map):
    """BPF_MAP_TYPE_QUEUE (first in, first out) and BPF_MAP_TYPE_STACK (last in, first out)."""

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self.values: deque[bytes] = deque()
        self._end = 0 if spec.type is MapType.BPF_MAP_TYPE_QUEUE else -1

    def push(self, value: bytes, flags: int) -> int:
        """Append a value; with BPF_EXIST a full map loses its oldest. Returns 0, -E2BIG or -EINVAL."""
        if flags not in (BPF_ANY, BPF_EXIST):
            return -errno.EINVAL
        if len(self.values) >= self.spec.max_entries:
            if not flags:
                return -errno.E2BIG
            self.values.popleft()
        self.values.append(value)
        return 0

    def peek(self) -> bytes | None:
        """Return the value that pops next, None if the map is empty."""
        return self.values[self._end] if self.values else None

    def pop(self) -> bytes | None:
        """Remove and return the value that pops next, None if the map is empty."""
        value = self.peek()
        if value is not None:
            del self.values[self._end]
        return value

    def __len__(self) -> int:
        return len(self.values)


class BloomFilterMap(Map):
    """BPF_MAP_TYPE_BLOOM_FILTER, without false positives (the kernel's has some)."""

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self.values: set[bytes] = set()

    def push(self, value: bytes, flags: int) -> int:
        """Add a value. Returns 0 or -EINVAL."""
        if flags != BPF_ANY:
            return -errno.EINVAL
        self.values.add(value)
        return 0

    def __len__(self) -> int:
        return len(self.values)


STREAM_MAPS: dict[MapType, type[Map]] = {
    MapType.BPF_MAP_TYPE_RINGBUF: RingBufferMap,
    MapType.BPF_MAP_TYPE_PERF_EVENT_ARRAY: PerfEventArrayMap,
    MapType.BPF_MAP_TYPE_QUEUE: QueueMap,
    MapType.BPF_MAP_TYPE_STACK: QueueMap,
    MapType.BPF_MAP_TYPE_BLOOM_FILTER: BloomFilterMap,
}
