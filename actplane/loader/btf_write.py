"""
Writing BTF: types as values in, one blob out, which the kernel can load.

The kernel wants BTF for local-storage maps, and prints the source line of an instruction in its log
if a program brings line information. Both are written here.
"""

from __future__ import annotations

import ctypes
import struct

from actplane.errors import KernelError
from actplane.loader.attributes import BtfLoad
from actplane.loader.btf_types import (
    BTF_HEADER_BYTES,
    BTF_INT_SIGNED,
    BTF_MAGIC,
    SIZED_KINDS,
    BtfType,
    Kind,
    Linkage,
    Member,
)
from actplane.loader.syscall import RUNNING_KERNEL, Handle, Kernel, bpf

_LOG_BYTES = 1 << 16


class BtfWriter:
    """
    Collects types; each `add` returns the id by which others refer to it, from 1 on.

    >>> writer = BtfWriter()
    >>> writer.add(BtfType(Kind.BTF_KIND_PTR, target=writer.integer("char", 1)))
    2
    """

    def __init__(self) -> None:
        self._types = bytearray()
        self._count = 0
        self._strings = bytearray(b"\0")
        self._string_offsets = {"": 0}
        self._known: dict[BtfType, int] = {}

    def string(self, text: str) -> int:
        """Return the offset of a text in the string section, adding it if it is new."""
        offset = self._string_offsets.get(text)
        if offset is None:
            offset = self._string_offsets[text] = len(self._strings)
            self._strings += text.encode(errors="replace").replace(b"\0", b"?") + b"\0"
        return offset

    def add(self, kind: BtfType) -> int:
        """Append a type and return its id."""
        self._types += self._encode(kind)
        self._count += 1
        return self._count

    def once(self, kind: BtfType) -> int:
        """Return the id of a type, adding it only if an equal one was not added this way before."""
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = self.add(kind)
        return known

    def integer(self, name: str, size_bytes: int, *, is_signed: bool = False) -> int:
        """Return the id of an integer of 1, 2, 4, 8 or 16 bytes."""
        encoding = (BTF_INT_SIGNED if is_signed else 0) << 24 | size_bytes * 8
        return self.once(BtfType(Kind.BTF_KIND_INT, name, size_bytes, encoding=encoding))

    def byte_array(self, count: int) -> int:
        """Return the id of an array of `count` bytes."""
        element = self.integer("unsigned char", 1)
        index = self.integer("unsigned int", 4)
        return self.once(BtfType(Kind.BTF_KIND_ARRAY, target=element, index=index, count=count))

    def func_proto(self, return_type: int, params: tuple[Member, ...] = ()) -> int:
        """Return the id of a function prototype."""
        return self.once(BtfType(Kind.BTF_KIND_FUNC_PROTO, target=return_type, members=params))

    def func(self, name: str, proto: int, linkage: Linkage = Linkage.BTF_FUNC_STATIC) -> int:
        """Return the id of a new function of a prototype."""
        return self.add(BtfType(Kind.BTF_KIND_FUNC, name, target=proto, linkage=linkage))

    def encode(self) -> bytes:
        """Return the blob: header, types, strings."""
        header = struct.pack(
            "<HBBIIIII", BTF_MAGIC, 1, 0, BTF_HEADER_BYTES, 0, len(self._types), len(self._types), len(self._strings)
        )
        return header + bytes(self._types) + bytes(self._strings)

    def _encode(self, kind: BtfType) -> bytes:
        word = kind.size if kind.kind in SIZED_KINDS else kind.target
        count = len(kind.members) or len(kind.enumerators)
        tail: list[int] = []
        match kind.kind:
            case Kind.BTF_KIND_INT:
                tail = [kind.encoding]
            case Kind.BTF_KIND_VAR | Kind.BTF_KIND_DECL_TAG:
                tail = [kind.linkage & 0xFFFFFFFF]
            case Kind.BTF_KIND_FUNC:
                count = kind.linkage
            case Kind.BTF_KIND_ARRAY:
                word = 0
                tail = [kind.target, kind.index, kind.count]
            case Kind.BTF_KIND_STRUCT | Kind.BTF_KIND_UNION:
                for member in kind.members:
                    offset = member.bitfield_bits << 24 | member.offset_bits if kind.is_flagged else member.offset_bits
                    tail += [self.string(member.name), member.type_id, offset]
            case Kind.BTF_KIND_FUNC_PROTO:
                for member in kind.members:
                    tail += [self.string(member.name), member.type_id]
            case Kind.BTF_KIND_DATASEC:
                for member in kind.members:
                    tail += [member.type_id, member.offset_bits // 8, member.size_bytes]
            case Kind.BTF_KIND_ENUM:
                for item in kind.enumerators:
                    tail += [self.string(item.name), item.value & 0xFFFFFFFF]
            case Kind.BTF_KIND_ENUM64:
                for item in kind.enumerators:
                    tail += [self.string(item.name), item.value & 0xFFFFFFFF, item.value >> 32 & 0xFFFFFFFF]
            case _:
                pass
        info = kind.is_flagged << 31 | kind.kind << 24 | count
        return struct.pack(f"<{3 + len(tail)}I", self.string(kind.name), info, word, *tail)


def load_btf(blob: bytes, kernel: Kernel = RUNNING_KERNEL) -> Handle:
    """
    Give a blob to the kernel.

    Raises: KernelError; its hint is what the kernel's log says last.
    Since:  4.18.
    """
    try:
        return Handle(bpf(BtfLoad(btf=blob, btf_size=len(blob)), kernel), kernel)
    except KernelError as error:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        attr = BtfLoad(btf=blob, btf_size=len(blob), btf_log_buf=log, btf_log_size=_LOG_BYTES, btf_log_level=1)
        try:
            # It may well succeed now: the first try can have failed for want of memory.
            return Handle(bpf(attr, kernel), kernel)
        except KernelError:
            # The log lists the header and every type up to the one that is wrong.
            said = log.value.decode(errors="replace").strip().splitlines()
            raise KernelError(error.call, error.errno, said[-1] if said else error.hint) from error
