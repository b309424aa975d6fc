"""
Memory as programs see it: regions at 64-bit addresses, and a fault for everything between them.

Every region starts at a multiple of 4 GiB and has such a slot to itself. So the upper half of a
pointer names the region and the lower half is the offset in it, no small mistake leads from one
region into another, and a load is one dictionary access and one `struct.unpack_from`. Every second
slot stays free, so that what lies just below a region is nobody's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from actplane.asm.machine.faults import Fault

SLOT_BITS = 32
OFFSET_MASK = (1 << SLOT_BITS) - 1
ADDRESS_MASK = (1 << 64) - 1
FIRST_SLOT = 0xFFFF_8001
"""Addresses look like those of a kernel with 48-bit addresses, so signed and IS_ERR tests behave."""
LAST_CANONICAL_SLOT = 0xFFFF_FFFB
OVERFLOW_SLOT = 0x8000_0001
"""Where slots go on when the canonical ones are used up (a long simulation with many map elements)."""

Buffer = bytearray | memoryview

LOADERS: dict[int, Callable[..., tuple[int, ...]]] = {
    size: struct.Struct("<" + letter).unpack_from for size, letter in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
}
"""Size in bytes to the function that reads an unsigned number of that size from (buffer, offset)."""
SIGNED_LOADERS: dict[int, Callable[..., tuple[int, ...]]] = {
    size: struct.Struct("<" + letter).unpack_from for size, letter in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))
}
STORERS: dict[int, Callable[..., None]] = {
    size: struct.Struct("<" + letter).pack_into for size, letter in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
}
"""Size in bytes to the function that writes an unsigned number of that size to (buffer, offset, value)."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """One stretch of memory. `buffer` is what a program reads and writes there, without a copy."""

    name: str
    address: int
    buffer: Buffer

    @property
    def size(self) -> int:
        return len(self.buffer)

    @property
    def is_writable(self) -> bool:
        return not (isinstance(self.buffer, memoryview) and self.buffer.readonly)

    def __repr__(self) -> str:
        return f"<{self.name}: {self.size} bytes at {self.address:#x}>"


class Memory:
    """
    All regions of one machine.

    >>> memory = Memory()
    >>> region = memory.add("greeting", b"hello")
    >>> memory.read(region.address + 1, 4)
    b'ello'
    >>> memory.read(region.address + 1, 5)
    Traceback (most recent call last):
    actplane.asm.machine.faults.Fault: read of 5 bytes at greeting+1: it has 5 bytes
    """

    def __init__(self) -> None:
        self.buffers: dict[int, Buffer] = {}
        """Slot number (address >> 32) to its bytes: what translated programs index."""
        self._regions: dict[int, Region] = {}
        self._next_slot = FIRST_SLOT
        self._retired: list[Region] = []

    def add(self, name: str, data: bytes | Buffer | int, *, is_writable: bool = True, at: int | None = None) -> Region:
        """
        Map a new region and return it.

        A `bytearray` or `memoryview` is shared with the caller, `bytes` are copied, an int is a
        number of zero bytes. `at` places it (a multiple of 4 GiB); a free place is chosen otherwise.

        Raises: ValueError if `at` is not such a multiple or is taken.
        """
        buffer: Buffer = data if isinstance(data, bytearray | memoryview) else bytearray(data)
        if not is_writable:
            buffer = memoryview(buffer).toreadonly()
        if at is None:
            slot = self._next_slot
            self._next_slot = OVERFLOW_SLOT if slot >= LAST_CANONICAL_SLOT else slot + 2
        else:
            slot = at >> SLOT_BITS
            if at & OFFSET_MASK or not 0 < slot <= OFFSET_MASK:
                raise ValueError(f"region {name!r}: bad address: got {at:#x}, expected a multiple of 4 GiB, not null")
            if slot in self.buffers:
                raise ValueError(f"region {name!r}: {at:#x} is taken by {self._regions[slot]!r}")
        region = Region(name, slot << SLOT_BITS, buffer)
        self.buffers[slot] = buffer
        self._regions[slot] = region
        return region

    def remove(self, region: Region) -> None:
        """Unmap a region at once: whoever still points into it faults."""
        slot = region.address >> SLOT_BITS
        del self.buffers[slot], self._regions[slot]

    def retire(self, region: Region) -> None:
        """Unmap a region when the run that may still point into it has ended (what RCU does)."""
        self._retired.append(region)

    def reclaim(self) -> None:
        """Unmap everything that was retired."""
        for region in self._retired:
            self.remove(region)
        self._retired.clear()

    def region_at(self, address: int) -> Region | None:
        """Return the region whose slot an address lies in, even if it lies behind the region's end."""
        return self._regions.get(address >> SLOT_BITS)

    def regions(self) -> list[Region]:
        """Return all regions by address."""
        return [self._regions[slot] for slot in sorted(self._regions)]

    def is_mapped(self, address: int, size: int) -> bool:
        """Say whether all of [address, address + size) can be read."""
        buffer = self.buffers.get(address >> SLOT_BITS)
        return buffer is not None and (address & OFFSET_MASK) + size <= len(buffer)

    def read(self, address: int, size: int) -> bytes:
        """
        Return `size` bytes.

        Raises: Fault if any of them is outside a region.
        """
        if not self.is_mapped(address, size):
            raise self.fault(address, size)
        offset = address & OFFSET_MASK
        return bytes(self.buffers[address >> SLOT_BITS][offset : offset + size])

    def write(self, address: int, data: bytes) -> None:
        """
        Write bytes.

        Raises: Fault if any of them is outside a region, or the region is read-only.
        """
        region = self.region_at(address)
        if region is None or not self.is_mapped(address, len(data)) or not region.is_writable:
            raise self.fault(address, len(data), is_write=True)
        offset = address & OFFSET_MASK
        region.buffer[offset : offset + len(data)] = data

    def zero(self, address: int, size: int) -> None:
        """Write zeros: as many as a program names, and none are made if it names too many. Raises: Fault as `write`."""
        if not self.is_mapped(address, size):
            raise self.fault(address, size, is_write=True)
        self.write(address, bytes(size))

    def load_or_zero(self, address: int, size: int) -> int:
        """Return an unsigned number of `size` bytes, 0 if any of them is outside a region."""
        buffer = self.buffers.get(address >> SLOT_BITS)
        offset = address & OFFSET_MASK
        if buffer is None or offset + size > len(buffer):
            return 0
        return LOADERS[size](buffer, offset)[0]

    def read_int(self, address: int, size: int) -> int:
        """Return the unsigned little-endian number of `size` bytes. Raises: Fault as `read`."""
        return int.from_bytes(self.read(address, size), "little")

    def write_int(self, address: int, value: int, size: int) -> None:
        """Write a number modulo 2 ** (8 * size), little-endian. Raises: Fault as `write`."""
        self.write(address, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    def read_string(self, address: int, limit: int = 4096) -> bytes:
        """Return the bytes before the first NUL, at most `limit`. Raises: Fault if there is no NUL in the region."""
        region = self.region_at(address)
        offset = address & OFFSET_MASK
        if region is None or offset >= region.size:
            raise self.fault(address, 1)
        data = bytes(region.buffer[offset : offset + limit])
        text, nul, _ = data.partition(b"\0")
        if not nul and len(data) < limit:
            raise Fault(f"string at {self.name_of(address)} has no NUL before the end of its region")
        return text

    def name_of(self, address: int) -> str:
        """Return an address the way people read it: region and offset, null, or a bare number."""
        slot, offset = address >> SLOT_BITS, address & OFFSET_MASK
        if slot in self._regions:
            return f"{self._regions[slot].name}+{offset}"
        if slot + 1 in self._regions and offset >= 1 << (SLOT_BITS - 1):
            return f"{self._regions[slot + 1].name}-{(1 << SLOT_BITS) - offset}"
        return "null" if address == 0 else f"{address:#x}"

    def fault(self, address: int, size: int, *, is_write: bool = False) -> Fault:
        """Return the fault that says why an access is not possible."""
        verb = "write" if is_write else "read"
        access = f"{verb} of {size} byte{'s' if size != 1 else ''} at {self.name_of(address)}"
        region = self.region_at(address)
        if region is None:
            if address < 1 << SLOT_BITS:
                return Fault(f"{access}: no pointer", hint="a null check or an initialisation is missing")
            slot = address >> SLOT_BITS
            below = self._regions.get(slot + 1)
            if below is not None and address & OFFSET_MASK >= 1 << (SLOT_BITS - 1):
                return Fault(f"{access}: it has {below.size} bytes")
            if slot % 2 and FIRST_SLOT <= slot < self._next_slot:
                return Fault(f"{access}: the memory that was there has been freed")
            return Fault(f"{access}: nothing is mapped there")
        if is_write and not region.is_writable and self.is_mapped(address, size):
            return Fault(f"{access}: it is read-only")
        return Fault(f"{access}: it has {region.size} bytes")
