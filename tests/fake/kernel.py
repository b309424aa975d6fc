"""
A kernel behind the single system-call door: enough of one for the loader's own logic.

It reads and writes the caller's memory through the addresses in the attributes, as the real one does,
and hands out real descriptors (of memfds), so leaks show and ring buffers can be mapped. What its
verifier says, and which call fails, is up to the test.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from actplane.asm.uapi import Command, MapType
from actplane.loader import attributes as a
from actplane.loader.ringbuf import BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT


@dataclass
class FakeMap:
    attr: a.MapCreate
    elements: dict[bytes, bytes] = field(default_factory=dict)
    is_frozen: bool = False


@dataclass
class FakeProgram:
    insns: bytes
    name: str
    attach_btf_id: int
    has_lines: bool
    is_sleepable: bool


Verdict = tuple[int, str]
"""An error number (0: accepted) and the log."""


class FakeKernel:
    """
    `verifier` judges every load from its attributes; `fail(command, error, at)` makes the call of that
    number (from 0) of a command fail. `calls` lists the commands as they came.
    """

    def __init__(self, verifier: Callable[[a.ProgLoad], Verdict] = lambda attr: (0, "")) -> None:
        self.verifier = verifier
        self.calls: list[Command] = []
        self.maps: dict[int, FakeMap] = {}
        self.programs: dict[int, FakeProgram] = {}
        self.links: dict[int, a.Attr] = {}
        self.pins: dict[str, int] = {}
        self.unknown_map_types: set[int] = set()
        self._failures: dict[tuple[Command, int], int] = {}
        self._handlers: dict[type[a.Attr], Callable[..., int]] = {
            a.MapCreate: self._map_create,
            a.MapLookupElem: self._lookup,
            a.MapLookupAndDeleteElem: self._take,
            a.MapUpdateElem: self._update,
            a.MapDeleteElem: self._delete,
            a.MapGetNextKey: self._next_key,
            a.MapFreeze: self._freeze,
            a.BtfLoad: lambda attr: self._descriptor("btf"),
            a.ProgLoad: self._prog_load,
            a.LinkCreate: self._link,
            a.RawTracepointOpen: self._link,
            a.LinkUpdate: self._link_update,
            a.LinkDetach: self._link_detach,
            a.ObjGetInfoByFd: self._info,
            a.EnableStats: lambda attr: self._descriptor("stats"),
        }

    def fail(self, command: Command, error: int, at: int = 0) -> None:
        self._failures[command, at] = error

    def bpf(self, attr: a.Attr) -> int:
        count = self.calls.count(attr.command)
        self.calls.append(attr.command)
        failure = self._failures.get((attr.command, count), 0)
        if failure:
            return -failure
        return self._handlers[type(attr)](attr)

    def _descriptor(self, name: str) -> int:
        return os.memfd_create(f"fake-{name}")

    # Maps

    def _map_create(self, attr: a.MapCreate) -> int:
        if attr.map_type in self.unknown_map_types:
            return -errno.EINVAL
        fd = self._descriptor("map")
        made = self.maps[fd] = FakeMap(attr)
        if attr.map_type == MapType.BPF_MAP_TYPE_RINGBUF:
            os.ftruncate(fd, 2 * mmap.PAGESIZE + 2 * attr.max_entries)
        if attr.map_type == MapType.BPF_MAP_TYPE_ARRAY:
            for index in range(attr.max_entries):
                made.elements[index.to_bytes(4, "little")] = bytes(attr.value_size)
        return fd

    def _at(self, attr: a.Attr) -> tuple[FakeMap, bytes]:
        found = self.maps[attr.map_fd]
        return found, ctypes.string_at(attr.key, found.attr.key_size) if attr.key else b""

    def _lookup(self, attr: a.Attr) -> int:
        found, key = self._at(attr)
        if key not in found.elements:
            return -errno.ENOENT
        ctypes.memmove(attr.value, found.elements[key], found.attr.value_size)
        return 0

    def _take(self, attr: a.Attr) -> int:
        return self._lookup(attr) or self._delete(attr)

    def _update(self, attr: a.MapUpdateElem) -> int:
        found, key = self._at(attr)
        if found.is_frozen:
            return -errno.EPERM
        is_storage = found.attr.btf_fd != 0
        if key not in found.elements and len(found.elements) == found.attr.max_entries and not is_storage:
            return -errno.E2BIG
        found.elements[key] = ctypes.string_at(attr.value, found.attr.value_size)
        return 0

    def _delete(self, attr: a.Attr) -> int:
        found, key = self._at(attr)
        return 0 if found.elements.pop(key, None) is not None else -errno.ENOENT

    def _next_key(self, attr: a.MapGetNextKey) -> int:
        found, key = self._at(attr)
        keys = list(found.elements)
        position = keys.index(key) + 1 if key in keys else 0
        if position == len(keys):
            return -errno.ENOENT
        ctypes.memmove(attr.next_key, keys[position], found.attr.key_size)
        return 0

    def _freeze(self, attr: a.MapFreeze) -> int:
        self.maps[attr.map_fd].is_frozen = True
        return 0

    # Programs and links

    def _prog_load(self, attr: a.ProgLoad) -> int:
        error, log = self.verifier(attr)
        if attr.log_level:
            text = log.encode() + b"\0"
            if len(text) > attr.log_size:
                return -errno.ENOSPC
            ctypes.memmove(attr.log_buf, text, len(text))
        if error:
            return -error
        fd = self._descriptor("program")
        self.programs[fd] = FakeProgram(
            insns=ctypes.string_at(attr.insns, attr.insn_cnt * 8),
            name=attr.prog_name.decode(),
            attach_btf_id=attr.attach_btf_id,
            has_lines=attr.line_info_cnt > 0,
            is_sleepable=bool(attr.prog_flags & 1 << 4),
        )
        return fd

    def _link(self, attr: a.Attr) -> int:
        fd = self._descriptor("link")
        self.links[fd] = attr
        return fd

    def _link_update(self, attr: a.LinkUpdate) -> int:
        self.links[attr.link_fd].set("prog_fd", attr.new_prog_fd)
        return 0

    def _link_detach(self, attr: a.LinkDetach) -> int:
        del self.links[attr.link_fd]
        return 0

    def _info(self, attr: a.ObjGetInfoByFd) -> int:
        if attr.bpf_fd in self.programs:
            info = a.ProgInfo.from_address(attr.info)
            program = self.programs[attr.bpf_fd]
            info.id, info.name = attr.bpf_fd + 1000, program.name.encode()
            info.xlated_prog_len = len(program.insns)
            info.nr_map_ids = 0
        return 0


class FakeProducer:
    """The kernel's end of a ring buffer: reserves records, and submits or discards them later."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._size = size_bytes
        self._memory = mmap.mmap(fd, 2 * mmap.PAGESIZE + 2 * size_bytes)
        self._data = 2 * mmap.PAGESIZE

    def close(self) -> None:
        self._memory.close()

    def reserve(self, length: int) -> int | None:
        """Return where a record starts, or None if there is no room."""
        total = (8 + length + 7) // 8 * 8
        consumer = self._position(0)
        producer = self._position(mmap.PAGESIZE)
        if producer + total - consumer >= self._size:
            return None
        self._header(producer, length | BPF_RINGBUF_BUSY_BIT)
        struct.pack_into("<Q", self._memory, mmap.PAGESIZE, producer + total)
        return producer

    def submit(self, at: int, data: bytes) -> None:
        for index, byte in enumerate(data):
            self._write((at + 8 + index) % self._size, bytes([byte]))
        self._header(at, len(data))

    def discard(self, at: int, length: int) -> None:
        self._header(at, length | BPF_RINGBUF_DISCARD_BIT)

    def _position(self, offset: int) -> int:
        return int(struct.unpack_from("<Q", self._memory, offset)[0])

    def _header(self, at: int, word: int) -> None:
        self._write(at % self._size, struct.pack("<II", word, 0))

    def _write(self, offset: int, data: bytes) -> None:
        # The data area is mapped twice in a row; a memfd has two copies instead.
        for copy in (offset, offset + self._size):
            if copy + len(data) <= 2 * self._size:
                self._memory[self._data + copy : self._data + copy + len(data)] = data
