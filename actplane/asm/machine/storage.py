"""
Local storage: values that belong to a kernel object and live as long as it.

Source: kernel/bpf/bpf_local_storage.c, bpf_task_storage.c, bpf_inode_storage.c of Linux 6.18.
"""

from __future__ import annotations

import errno

from actplane.asm.machine.maps import Map
from actplane.asm.machine.memory import Memory, Region
from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType

BPF_LOCAL_STORAGE_GET_F_CREATE = 1


class LocalStorageMap(Map):
    """
    BPF_MAP_TYPE_{TASK,INODE,SK,CGRP}_STORAGE.

    The key is the object: its address, which is what a program holds. `map[address]` reads and
    `map[address] = value` writes the value of an object from outside.
    """

    def __init__(self, spec: MapSpec, memory: Memory, cpus: int) -> None:
        super().__init__(spec, memory, cpus)
        self._elements: dict[int, Region] = {}

    def get(self, owner: int, initial: bytes | None, flags: int) -> int:
        """Return the address of an object's value; 0 if it has none and `flags` does not ask to create it."""
        region = self._elements.get(owner)
        if region is None:
            if not owner or flags != BPF_LOCAL_STORAGE_GET_F_CREATE:
                return 0
            region = self.memory.add(
                f"{self.name} of {self.memory.name_of(owner)}", initial or bytes(self.spec.value_size)
            )
            self._elements[owner] = region
        return region.address

    def drop(self, owner: int) -> int:
        """Remove an object's value. Returns 0, or -ENOENT if it has none."""
        region = self._elements.pop(owner, None)
        if region is None:
            return -errno.ENOENT
        self.memory.retire(region)
        return 0

    # The bytes face: keys are addresses as 8 bytes, or ints.

    def _key(self, key: bytes | int) -> bytes:
        return key.to_bytes(8, "little") if isinstance(key, int) else key

    def element(self, key: bytes) -> Region | None:
        return self._elements.get(int.from_bytes(key, "little"))

    def update(self, key: bytes, value: bytes, flags: int) -> int:
        address = self.get(int.from_bytes(key, "little"), value, BPF_LOCAL_STORAGE_GET_F_CREATE)
        if not address:
            return -errno.EINVAL
        self.memory.write(address, value)
        return 0

    def delete(self, key: bytes) -> int:
        return self.drop(int.from_bytes(key, "little"))

    def keys(self) -> list[bytes]:
        return [owner.to_bytes(8, "little") for owner in self._elements]


STORAGE_MAPS: dict[MapType, type[Map]] = {
    MapType.BPF_MAP_TYPE_TASK_STORAGE: LocalStorageMap,
    MapType.BPF_MAP_TYPE_INODE_STORAGE: LocalStorageMap,
    MapType.BPF_MAP_TYPE_SK_STORAGE: LocalStorageMap,
    MapType.BPF_MAP_TYPE_CGRP_STORAGE: LocalStorageMap,
}
