"""
The packet of a network program, and the context structure that points to it.

The kernel rewrites a program's 32-bit loads of `data` and `data_end` from the context into loads of
whole pointers. The machine does the same: `POINTER_FIELDS` says at which offsets of a context, by
kind of program, and the translator gives those loads the pointer of the packet.
"""

from __future__ import annotations

from collections.abc import Mapping

from actplane.asm.machine.memory import Memory, Region
from actplane.asm.uapi import ProgType

ETH_HLEN = 14

# struct __sk_buff and struct xdp_md of include/uapi/linux/bpf.h.
SKB_SIZE, SKB_LEN, SKB_DATA, SKB_DATA_END, SKB_DATA_META = 192, 0, 76, 80, 140
XDP_SIZE, XDP_DATA, XDP_DATA_END, XDP_DATA_META = 24, 0, 4, 8

_SKB_POINTERS = {SKB_DATA: "data", SKB_DATA_END: "data_end", SKB_DATA_META: "data_meta"}
_XDP_POINTERS = {XDP_DATA: "data", XDP_DATA_END: "data_end", XDP_DATA_META: "data_meta"}

SKB_TYPES = frozenset(
    {
        ProgType.BPF_PROG_TYPE_SOCKET_FILTER,
        ProgType.BPF_PROG_TYPE_SCHED_CLS,
        ProgType.BPF_PROG_TYPE_SCHED_ACT,
        ProgType.BPF_PROG_TYPE_CGROUP_SKB,
        ProgType.BPF_PROG_TYPE_SK_SKB,
    }
)
POINTER_FIELDS: Mapping[ProgType, Mapping[int, str]] = {
    **dict.fromkeys(SKB_TYPES, _SKB_POINTERS),
    ProgType.BPF_PROG_TYPE_XDP: _XDP_POINTERS,
}
"""Kind of program to {offset in its context: the pointer that a load of 4 bytes there gives}."""


class Packet:
    """
    The bytes of one packet, with metadata before them.

    The region holds exactly these bytes; when they move or grow it is replaced, so old pointers fault
    (the verifier calls that invalidated packet pointers).
    """

    def __init__(self, memory: Memory, data: bytes, *, network_offset: int = ETH_HLEN, headroom: int = 256) -> None:
        self.memory = memory
        self.network_offset = network_offset
        self.headroom = headroom
        self.metadata_size = 0
        self.region: Region = memory.add("packet", data)

    @property
    def data(self) -> int:
        return self.region.address + self.metadata_size

    @property
    def data_end(self) -> int:
        return self.region.address + self.region.size

    @property
    def data_meta(self) -> int:
        return self.region.address

    @property
    def content(self) -> bytes:
        """The packet as it is now, without its metadata."""
        return bytes(self.region.buffer[self.metadata_size :])

    def replace(self, content: bytes, metadata: bytes = b"") -> None:
        """Give the packet other bytes, at another address."""
        self.memory.remove(self.region)
        self.metadata_size = len(metadata)
        self.region = self.memory.add("packet", metadata + content)

    def load(self, offset: int, size: int) -> bytes | None:
        """Return bytes of the packet by offset, None if any of them is outside."""
        content = self.content
        return content[offset : offset + size] if 0 <= offset <= len(content) - size else None

    def store(self, offset: int, data: bytes) -> bool:
        """Overwrite bytes of the packet by offset; False if any of them is outside."""
        if not 0 <= offset <= self.region.size - self.metadata_size - len(data):
            return False
        self.memory.write(self.data + offset, data)
        return True

    def default_context(self, prog_type: ProgType) -> bytes:
        """Return a context structure for this packet: zeros, and the length where there is such a field."""
        if prog_type is ProgType.BPF_PROG_TYPE_XDP:
            return bytes(XDP_SIZE)
        return len(self.content).to_bytes(4, "little").ljust(SKB_SIZE, b"\0")
