"""
Maps keyed by bytes: arrays, hashes, LRU hashes, per-CPU variants, LPM tries, maps of maps.

A map has two faces. Programs get addresses from `lookup` and errno numbers from `update` and
`delete`, exactly as the kernel's helpers give them. The person around the machine uses it as a
mapping of bytes to bytes: `map[key]`, `map[key] = value`, `del map[key]`, `for key in map`.

Source: kernel/bpf/arraymap.c, hashtab.c, lpm_trie.c and map_in_map.c of Linux 6.18 for the results
and for the order in which arguments are judged.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from actplane.asm.encoding import SLOT_BYTES
from actplane.asm.jump_tables import ADDRESS_BYTES, KEY_BYTES, VALUE_BYTES, slots_in
from actplane.asm.machine.faults import Fault, LoadError
from actplane.asm.machine.memory import Memory, Region
from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType

if TYPE_CHECKING:
    from actplane.asm.machine.machine import LoadedProgram

# Flags of bpf_map_update_elem and of map creation (uapi bpf.h).
BPF_ANY, BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK = 0, 1, 2, 4
BPF_F_RDONLY_PROG = 1 << 7


class Map:
    """
    What every map has: its specification, a handle that programs pass to helpers, and the bytes face.

    The base class refuses every operation with the errno the kernel gives for a map that lacks it.
    """

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        self.spec = spec
        self.memory = memory
        self.cpus = cpus
        self.cpu = 0
        """The CPU that runs now; the machine keeps it up to date."""
        # A program may pass the handle around but never looks into it: a region of no bytes.
        self.handle = memory.add(f"map {spec.name}", 0)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def address(self) -> int:
        """What `ld_map_fd` loads."""
        return self.handle.address

    def lookup(self, key: bytes) -> int:
        """Return the address of the value, 0 if there is none."""
        raise Fault(f"map {self.name}: {self.spec.type.name} has no lookup")

    def update(self, key: bytes, value: bytes, flags: int) -> int:
        """Return 0, or a negative errno."""
        return -errno.EOPNOTSUPP

    def delete(self, key: bytes) -> int:
        """Return 0, or a negative errno."""
        return -errno.EOPNOTSUPP

    def keys(self) -> list[bytes]:
        """Return all keys, in the order in which the map is walked."""
        return []

    def element(self, key: bytes) -> Region | None:
        """Return the region of a value without counting as a use of it."""
        raise KeyError(f"map {self.name}: {self.spec.type.name} has no elements by key")

    def direct_value(self) -> int:
        """Return the address that `ld_map_value` with offset 0 loads. Raises: Fault for maps without it."""
        raise Fault(f"map {self.name}: ld_map_value needs an array of one element, this is {self.spec.type.name}")

    # The bytes face.

    def __getitem__(self, key: bytes | int) -> bytes:
        region = self.element(self._key(key))
        if region is None:
            raise KeyError(key)
        return bytes(region.buffer)

    def __setitem__(self, key: bytes | int, value: bytes) -> None:
        if len(value) != self.spec.value_size:
            raise ValueError(f"map {self.name}: value: got {len(value)} bytes, expected {self.spec.value_size}")
        result = self.update(self._key(key), value, BPF_ANY)
        if result:
            raise ValueError(f"map {self.name}: update failed: {errno.errorcode.get(-result, result)}")

    def __delitem__(self, key: bytes | int) -> None:
        if self.delete(self._key(key)):
            raise KeyError(key)

    def __contains__(self, key: bytes | int) -> bool:
        return self.element(self._key(key)) is not None

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def items(self) -> list[tuple[bytes, bytes]]:
        """Return all (key, value) pairs."""
        return [(key, self[key]) for key in self.keys()]

    def _key(self, key: bytes | int) -> bytes:
        if isinstance(key, int):
            return key.to_bytes(self.spec.key_size, "little")
        if len(key) != self.spec.key_size:
            raise ValueError(f"map {self.name}: key: got {len(key)} bytes, expected {self.spec.key_size}")
        return key

    def __repr__(self) -> str:
        return f"<{self.spec.type.name} {self.name}: {len(self)} of {self.spec.max_entries}>"


def _refuse(flags: int, exists: bool) -> int:
    """Return the errno for flags that contradict whether the element exists, or 0."""
    if flags & ~BPF_F_LOCK > BPF_EXIST:
        return -errno.EINVAL
    if exists and flags & BPF_NOEXIST:
        return -errno.EEXIST
    if not exists and flags & BPF_EXIST:
        return -errno.ENOENT
    return 0


class ArrayMap(Map):
    """BPF_MAP_TYPE_ARRAY: every element exists from the start; each is a region of its own, so
    running from one into the next is a fault here, as it is an error for the verifier."""

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self.data = bytearray(spec.value_size * spec.max_entries)
        if spec.contents is not None:
            self.data[: len(spec.contents)] = spec.contents
        self._elements: dict[int, Region] = {}

    def element(self, key: bytes) -> Region | None:
        index = int.from_bytes(key, "little")
        region = self._elements.get(index)
        if region is None and index < self.spec.max_entries:
            size = self.spec.value_size
            view = memoryview(self.data)[index * size : (index + 1) * size]
            writable = not self.spec.flags & BPF_F_RDONLY_PROG
            region = self.memory.add(f"{self.name}[{index}]", view, is_writable=writable)
            self._elements[index] = region
        return region

    def lookup(self, key: bytes) -> int:
        region = self.element(key)
        return region.address if region else 0

    def update(self, key: bytes, value: bytes, flags: int) -> int:
        index = int.from_bytes(key, "little")
        if flags & ~BPF_F_LOCK > BPF_EXIST:
            return -errno.EINVAL
        if index >= self.spec.max_entries:
            return -errno.E2BIG
        if flags & BPF_NOEXIST:
            return -errno.EEXIST
        size = self.spec.value_size
        self.data[index * size : (index + 1) * size] = value
        return 0

    def delete(self, key: bytes) -> int:
        return -errno.EINVAL

    def keys(self) -> list[bytes]:
        return [index.to_bytes(4, "little") for index in range(self.spec.max_entries)]

    def direct_value(self) -> int:
        if self.spec.max_entries != 1:
            return super().direct_value()
        return self.lookup(b"\0\0\0\0")


class JumpTableMap(ArrayMap):
    """
    BPF_MAP_TYPE_INSN_ARRAY: places in a program, which programs read as addresses and outsiders as slots.

    Source: kernel/bpf/bpf_insn_array.c of Linux 6.19.
    """

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        if (spec.key_size, spec.value_size, spec.flags) != (KEY_BYTES, VALUE_BYTES, 0) or not spec.max_entries:
            raise LoadError(
                f"map {spec.name}: a jump table has keys of {KEY_BYTES} bytes, values of {VALUE_BYTES}, no flags"
            )
        super().__init__(spec, memory, cpus)
        self.addresses: Region | None = None
        """What programs see: 8 bytes an element, there once the program that it is about is loaded."""

    @property
    def slots(self) -> list[int]:
        return slots_in(bytes(self.data))

    def bind(self, code_address: int) -> None:
        """Make addresses of the slots, in a program whose slot 0 has an address. A table is of one program."""
        addresses = b"".join(
            (code_address + SLOT_BYTES * slot).to_bytes(ADDRESS_BYTES, "little") for slot in self.slots
        )
        self.addresses = self.memory.add(self.name, addresses, is_writable=False)

    def lookup(self, key: bytes) -> int:
        return Map.lookup(self, key)

    def update(self, key: bytes, value: bytes, flags: int) -> int:
        # A table is frozen before its program is loaded.
        if self.addresses is not None:
            return -errno.EPERM
        return -errno.EINVAL if any(value[4:12]) else super().update(key, value, flags)

    def direct_value(self) -> int:
        assert self.addresses is not None
        return self.addresses.address


class HashMap(Map):
    """BPF_MAP_TYPE_HASH. Walked in the order of insertion; the kernel's order is that of its buckets."""

    full_errno = errno.E2BIG

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self._elements: dict[bytes, Region] = {}

    def element(self, key: bytes) -> Region | None:
        return self._elements.get(key)

    def lookup(self, key: bytes) -> int:
        region = self._elements.get(key)
        return region.address if region else 0

    def update(self, key: bytes, value: bytes, flags: int) -> int:
        region = self._elements.get(key)
        refusal = _refuse(flags, region is not None)
        if refusal:
            return refusal
        if region is None:
            if len(self._elements) >= self.spec.max_entries and not self._make_room():
                return -self.full_errno
            writable = not self.spec.flags & BPF_F_RDONLY_PROG
            self._elements[key] = self.memory.add(f"{self.name}[{key.hex()}]", value, is_writable=writable)
        else:
            memoryview(region.buffer)[:] = value
        return 0

    def _make_room(self) -> bool:
        return False

    def delete(self, key: bytes) -> int:
        region = self._elements.pop(key, None)
        if region is None:
            return -errno.ENOENT
        # Pointers into a deleted element stay good until the program ends (RCU).
        self.memory.retire(region)
        return 0

    def keys(self) -> list[bytes]:
        return list(self._elements)


class LruHashMap(HashMap):
    """BPF_MAP_TYPE_LRU_HASH, with exact recency. The kernel's is approximate: it evicts some element
    that has not been looked up lately, not always the oldest."""

    def lookup(self, key: bytes) -> int:
        region = self._elements.pop(key, None)
        if region is None:
            return 0
        self._elements[key] = region
        return region.address

    def _make_room(self) -> bool:
        self.delete(next(iter(self._elements)))
        return True


class PerCpuMap(Map):
    """A map of one inner map per CPU; programs see that of the CPU they run on."""

    inner_type: type[Map] = Map

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self.per_cpu = [self.inner_type(spec, memory, cpus) for _ in range(cpus)]

    def element(self, key: bytes) -> Region | None:
        return self.per_cpu[self.cpu].element(key)

    def lookup(self, key: bytes) -> int:
        return self.per_cpu[self.cpu].lookup(key)

    def lookup_on(self, key: bytes, cpu: int) -> int:
        """Return the address of another CPU's value (bpf_map_lookup_percpu_elem), 0 if there is none."""
        return self.per_cpu[cpu].lookup(key) if cpu < self.cpus else 0

    def on_cpu(self, cpu: int) -> Map:
        """Return the face of one CPU."""
        return self.per_cpu[cpu]

    def update(self, key: bytes, value: bytes, flags: int) -> int:
        is_new = self.element(key) is None
        result = self.per_cpu[self.cpu].update(key, value, flags)
        if is_new and not result:
            # An element made by a program starts with zeros on the other CPUs.
            for cpu, inner in enumerate(self.per_cpu):
                if cpu != self.cpu:
                    inner.update(key, bytes(self.spec.value_size), BPF_ANY)
        return result

    def delete(self, key: bytes) -> int:
        return [inner.delete(key) for inner in self.per_cpu][self.cpu]

    def keys(self) -> list[bytes]:
        return self.per_cpu[self.cpu].keys()


class PerCpuArrayMap(PerCpuMap):
    inner_type = ArrayMap


class PerCpuHashMap(PerCpuMap):
    inner_type = HashMap


class LruPerCpuHashMap(PerCpuMap):
    inner_type = LruHashMap


class LpmTrieMap(HashMap):
    """
    BPF_MAP_TYPE_LPM_TRIE: a key is a prefix length (u32) and data whose first bits count.

    Kept as one dictionary by (length, prefix); a lookup tries the lengths that occur, longest first.
    """

    full_errno = errno.ENOSPC

    def _normal(self, key: bytes, length: int | None = None) -> bytes | None:
        """Return the key cut to `length` bits (its own if None), or None if the length is too long."""
        own = int.from_bytes(key[:4], "little")
        bits = own if length is None else length
        width = 8 * (self.spec.key_size - 4)
        if own > width:
            return None
        number = int.from_bytes(key[4:], "big") >> (width - bits) << (width - bits)
        return bits.to_bytes(4, "little") + number.to_bytes(width // 8, "big")

    def element(self, key: bytes) -> Region | None:
        normal = self._normal(key)
        return self._elements.get(normal) if normal is not None else None

    def lookup(self, key: bytes) -> int:
        limit = int.from_bytes(key[:4], "little")
        lengths = {int.from_bytes(stored[:4], "little") for stored in self._elements}
        for length in sorted(lengths, reverse=True):
            normal = self._normal(key, length) if length <= limit else None
            if normal in self._elements:
                return self._elements[normal].address
        return 0

    def update(self, key: bytes, value: bytes, flags: int) -> int:
        normal = self._normal(key)
        if normal is None:
            return -errno.EINVAL
        return super().update(normal, value, flags)

    def delete(self, key: bytes) -> int:
        normal = self._normal(key)
        return -errno.EINVAL if normal is None else super().delete(normal)


class ProgArrayMap(Map):
    """BPF_MAP_TYPE_PROG_ARRAY: what bpf_tail_call jumps to. Its values are programs of the machine."""

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self.programs: dict[int, LoadedProgram] = {}

    def put(self, index: int, program: LoadedProgram) -> None:
        """Put a program of the same machine into a slot. Raises: IndexError if there is no such slot, ValueError."""
        if program.machine.memory is not self.memory:
            raise ValueError(f"map {self.name}: {program.name} is a program of another machine")
        if not 0 <= index < self.spec.max_entries:
            raise IndexError(f"map {self.name}: slot {index}: expected 0 to {self.spec.max_entries - 1}")
        self.programs[index] = program

    def delete(self, key: bytes) -> int:
        index = int.from_bytes(key, "little")
        if index >= self.spec.max_entries:
            return -errno.E2BIG
        return 0 if self.programs.pop(index, None) else -errno.ENOENT

    def keys(self) -> list[bytes]:
        return [index.to_bytes(4, "little") for index in sorted(self.programs)]


class MapOfMaps(Map):
    """BPF_MAP_TYPE_ARRAY_OF_MAPS and BPF_MAP_TYPE_HASH_OF_MAPS: the value of a key is another map."""

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self.inner: dict[bytes, Map] = {}

    def put(self, key: bytes | int, inner: Map) -> None:
        """Put a map under a key."""
        self.inner[self._key(key)] = inner

    def lookup(self, key: bytes) -> int:
        inner = self.inner.get(key)
        return inner.address if inner else 0

    def keys(self) -> list[bytes]:
        return list(self.inner)


class ArenaMap(Map):
    """BPF_MAP_TYPE_ARENA: pages shared with user space; programs cast pointers between the two views."""

    page_bytes = 4096

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self.region = memory.add(spec.name, self.page_bytes * spec.max_entries)

    def direct_value(self) -> int:
        return self.region.address


KEYED_MAPS: dict[MapType, type[Map]] = {
    MapType.BPF_MAP_TYPE_ARRAY: ArrayMap,
    MapType.BPF_MAP_TYPE_INSN_ARRAY: JumpTableMap,
    MapType.BPF_MAP_TYPE_HASH: HashMap,
    MapType.BPF_MAP_TYPE_LRU_HASH: LruHashMap,
    MapType.BPF_MAP_TYPE_PERCPU_ARRAY: PerCpuArrayMap,
    MapType.BPF_MAP_TYPE_PERCPU_HASH: PerCpuHashMap,
    MapType.BPF_MAP_TYPE_LRU_PERCPU_HASH: LruPerCpuHashMap,
    MapType.BPF_MAP_TYPE_LPM_TRIE: LpmTrieMap,
    MapType.BPF_MAP_TYPE_PROG_ARRAY: ProgArrayMap,
    MapType.BPF_MAP_TYPE_ARRAY_OF_MAPS: MapOfMaps,
    MapType.BPF_MAP_TYPE_HASH_OF_MAPS: MapOfMaps,
    MapType.BPF_MAP_TYPE_ARENA: ArenaMap,
}
