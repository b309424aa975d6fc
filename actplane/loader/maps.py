"""
Maps: made from a `MapSpec`, read and written by key, closed with their `with` block.

Keys and values are bytes; what they mean is said where the map is declared.
"""

from __future__ import annotations

import ctypes
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.errors import KernelError, UnsupportedFeature
from actplane.loader.attributes import (
    MapCreate,
    MapDeleteElem,
    MapFreeze,
    MapGetNextKey,
    MapInfo,
    MapLookupAndDeleteElem,
    MapLookupElem,
    MapUpdateElem,
)
from actplane.loader.btf_write import BtfWriter, load_btf
from actplane.loader.syscall import RUNNING_KERNEL, Handle, Kernel, bpf, object_name

BPF_ANY = 0
BPF_NOEXIST = 1
BPF_EXIST = 2

BPF_F_NO_PREALLOC = 1 << 0
BPF_F_RDONLY_PROG = 1 << 7
BPF_F_MMAPABLE = 1 << 10

_STORAGE_SINCE = {
    MapType.BPF_MAP_TYPE_SK_STORAGE: "5.2",
    MapType.BPF_MAP_TYPE_INODE_STORAGE: "5.10",
    MapType.BPF_MAP_TYPE_TASK_STORAGE: "5.11",
    MapType.BPF_MAP_TYPE_CGRP_STORAGE: "6.2",
}
"""Maps that hang a value on a kernel object. The kernel wants their key and value described in BTF."""

SINCE = {**_STORAGE_SINCE, MapType.BPF_MAP_TYPE_RINGBUF: "5.8", MapType.BPF_MAP_TYPE_USER_RINGBUF: "6.1"}

_SMALLEST = {
    MapType.BPF_MAP_TYPE_RINGBUF: (0, 0, 4096),
    MapType.BPF_MAP_TYPE_USER_RINGBUF: (0, 0, 4096),
    MapType.BPF_MAP_TYPE_PROG_ARRAY: (4, 4, 1),
}
"""Key size, value size and entries of the smallest map of a type, where they are not 4, 8 and 1."""

_PER_CPU = {
    MapType.BPF_MAP_TYPE_PERCPU_HASH,
    MapType.BPF_MAP_TYPE_PERCPU_ARRAY,
    MapType.BPF_MAP_TYPE_LRU_PERCPU_HASH,
}


class Map(Handle):
    """An open map. `spec` says what it was made from."""

    def __init__(self, fd: int, spec: MapSpec, kernel: Kernel = RUNNING_KERNEL) -> None:
        super().__init__(fd, kernel)
        self.spec = spec
        # The kernel lays the values of all possible CPUs side by side, each rounded up to 8 bytes.
        is_per_cpu = spec.type in _PER_CPU
        self._value_bytes = -(-spec.value_size // 8) * 8 * possible_cpus() if is_per_cpu else spec.value_size

    @classmethod
    def create(cls, spec: MapSpec, kernel: Kernel = RUNNING_KERNEL) -> Map:
        """
        Create a map, write its contents and freeze it, as its spec says.

        Raises: UnsupportedFeature if the kernel does not know this type of map, else KernelError.
        Since:  4.4; ring buffer 5.8, inode storage 5.10, task storage 5.11.
        """
        try:
            created = cls._open(spec, kernel)
        except KernelError as error:
            raise _explain(spec, error, kernel) from error
        try:
            created._fill()
        except BaseException:
            created.close()
            raise
        return created

    @classmethod
    def _open(cls, spec: MapSpec, kernel: Kernel) -> Map:
        attr = MapCreate(
            map_type=spec.type,
            key_size=spec.key_size,
            value_size=spec.value_size,
            max_entries=_entries(spec),
            map_flags=spec.flags,
            map_name=object_name(spec.name),
        )
        if spec.type not in _STORAGE_SINCE:
            return cls(bpf(attr, kernel), spec, kernel)
        # Local storage has no number of elements of its own and is never preallocated.
        attr.set("max_entries", 0)
        attr.set("map_flags", spec.flags | BPF_F_NO_PREALLOC)
        writer = BtfWriter()
        attr.set("btf_key_type_id", writer.integer("int", 4, is_signed=True))
        attr.set("btf_value_type_id", writer.byte_array(spec.value_size))
        with load_btf(writer.encode(), kernel) as btf:
            attr.set("btf_fd", btf.fd)
            return cls(bpf(attr, kernel), spec, kernel)

    def _fill(self) -> None:
        if self.spec.contents is not None:
            size = self.spec.value_size
            for index, start in enumerate(range(0, len(self.spec.contents), size)):
                value = self.spec.contents[start : start + size].ljust(size, b"\0")
                self.update(index.to_bytes(4, "little"), value)
        if self.spec.is_frozen:
            self.freeze()

    def lookup(self, key: bytes) -> bytes | None:
        """
        Return the value of a key, or None if there is none.

        Shape:  key is key_size bytes; the value value_size bytes, for per-CPU maps the values of
                all possible CPUs, each padded to 8 bytes. The key of task storage is a pidfd, of
                inode and socket storage a descriptor, 4 bytes each.
        Raises: KernelError.
        """
        return self._read(MapLookupElem, key)

    def take(self, key: bytes) -> bytes | None:
        """Return the value of a key and delete it, or None if there is none (hash maps, since 5.14)."""
        return self._read(MapLookupAndDeleteElem, key)

    def _read(self, command: type[MapLookupElem] | type[MapLookupAndDeleteElem], key: bytes) -> bytes | None:
        value = ctypes.create_string_buffer(self._value_bytes)
        try:
            bpf(command(map_fd=self.fd, key=self._key(key), value=value), self.kernel)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """
        Set the value of a key.

        Units:  flags is BPF_ANY, BPF_NOEXIST (EEXIST if the key is there) or BPF_EXIST (ENOENT if not).
        Raises: KernelError.
        """
        if len(value) != self._value_bytes:
            raise ValueError(f"map {self.spec.name}: value: got {len(value)} bytes, expected {self._value_bytes}")
        bpf(MapUpdateElem(map_fd=self.fd, key=self._key(key), value=value, flags=flags), self.kernel)

    def delete(self, key: bytes) -> bool:
        """Delete a key; return whether it was there. Raises KernelError."""
        try:
            bpf(MapDeleteElem(map_fd=self.fd, key=self._key(key)), self.kernel)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def keys(self) -> Iterator[bytes]:
        """
        Iterate over the keys. One that is deleted meanwhile makes a hash map start over, so a key
        may come twice; a reader that must not see that collects them in a set.

        Raises: KernelError.
        """
        key: bytes | None = None
        while True:
            following = ctypes.create_string_buffer(self.spec.key_size)
            attr = MapGetNextKey(map_fd=self.fd, next_key=following)
            if key is not None:
                attr.set("key", key)
            try:
                bpf(attr, self.kernel)
            except KernelError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            key = following.raw
            yield key

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over keys and values, leaving out keys that vanish meanwhile. Raises KernelError."""
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def freeze(self) -> None:
        """Refuse all further writes from user space. Raises KernelError. Since: 5.2."""
        bpf(MapFreeze(map_fd=self.fd), self.kernel)

    def info(self) -> MapInfo:
        """Return what the kernel tells about the map. Raises KernelError. Since: 4.13."""
        info = MapInfo()
        self.info_into(info)
        return info

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.spec.key_size:
            raise ValueError(f"map {self.spec.name}: key: got {len(key)} bytes, expected {self.spec.key_size}")
        return key


def _entries(spec: MapSpec) -> int:
    """Return how many elements to make room for: a table of perf events without a number has one for each CPU."""
    if spec.type is MapType.BPF_MAP_TYPE_PERF_EVENT_ARRAY and not spec.max_entries:
        return possible_cpus()
    return spec.max_entries


def possible_cpus() -> int:
    """
    Return the number of CPUs the kernel keeps per-CPU memory for, present or not.

    Source: /sys/devices/system/cpu/possible, a list of ranges like "0-3,8".
    """
    ranges = re.findall(r"(\d+)(?:-(\d+))?", Path("/sys/devices/system/cpu/possible").read_text())
    return sum(int(last or first) - int(first) + 1 for first, last in ranges)


def is_map_type_supported(map_type: MapType, kernel: Kernel = RUNNING_KERNEL) -> bool:
    """
    Say whether the kernel knows a type of map, by creating the smallest one.

    Raises: KernelError if it answers anything but yes, or no (EINVAL), as it does without privileges.
    """
    key_size, value_size, max_entries = _SMALLEST.get(map_type, (4, 8, 1))
    try:
        Map._open(MapSpec("probe", map_type, key_size, value_size, max_entries), kernel).close()
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _explain(spec: MapSpec, error: KernelError, kernel: Kernel) -> KernelError:
    since = SINCE.get(spec.type)
    if since is not None and error.errno == errno.EINVAL and not is_map_type_supported(spec.type, kernel):
        return UnsupportedFeature(spec.type.name, since, error.errno, f"map {spec.name} needs it")
    return KernelError(f"{error.call} of {spec.type.name} {spec.name!r}", error.errno, error.hint)
