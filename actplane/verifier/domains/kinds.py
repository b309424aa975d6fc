"""
Kinds of pointers and what qualifies them, with their names in the kernel's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class Kind(IntEnum):
    """Kinds of pointers, as the kernel's verifier tells them apart."""

    CTX = 1
    MAP_PTR = 2
    MAP_VALUE = 3
    MAP_KEY = 4
    STACK = 5
    PACKET = 6
    PACKET_META = 7
    PACKET_END = 8
    FLOW_KEYS = 9
    SOCKET = 10
    SOCK_COMMON = 11
    TCP_SOCK = 12
    XDP_SOCK = 13
    TP_BUFFER = 14
    BTF_ID = 15
    MEM = 16
    BUF = 17
    FUNC = 18
    DYNPTR = 19
    INSN = 20
    """The address of an instruction, loaded from a jump table."""


PACKETS: Final = frozenset({Kind.PACKET, Kind.PACKET_META})
SOCKETS: Final = frozenset({Kind.SOCKET, Kind.SOCK_COMMON, Kind.TCP_SOCK, Kind.XDP_SOCK})


class Flag:
    """What qualifies a pointer: bits of `Pointer.flags`. Plain numbers, since they are tested so often."""

    NONE: Final = 0
    NULL: Final = 1
    """May be null."""
    RDONLY: Final = 2
    RINGBUF: Final = 4
    """A ring-buffer record."""
    USER: Final = 8
    PERCPU: Final = 16
    UNTRUSTED: Final = 32
    TRUSTED: Final = 64
    RCU: Final = 128
    ALLOC: Final = 256
    """An object that the program allocated."""
    NON_OWN: Final = 512
    """A reference that is valid only while the lock is held."""
    DYNPTR_SLICE: Final = 1024


KIND_NAMES: Final[Mapping[Kind, str]] = {
    Kind.CTX: "ctx",
    Kind.MAP_PTR: "map_ptr",
    Kind.MAP_VALUE: "map_value",
    Kind.MAP_KEY: "map_key",
    Kind.STACK: "fp",
    Kind.PACKET: "pkt",
    Kind.PACKET_META: "pkt_meta",
    Kind.PACKET_END: "pkt_end",
    Kind.FLOW_KEYS: "flow_keys",
    Kind.SOCKET: "sock",
    Kind.SOCK_COMMON: "sock_common",
    Kind.TCP_SOCK: "tcp_sock",
    Kind.XDP_SOCK: "xdp_sock",
    Kind.TP_BUFFER: "tp_buffer",
    Kind.BTF_ID: "ptr_",
    Kind.MEM: "mem",
    Kind.BUF: "buf",
    Kind.FUNC: "func",
    Kind.DYNPTR: "dynptr_ptr",
    Kind.INSN: "insn",
}


_TRUST: Final = Flag.TRUSTED | Flag.ALLOC | Flag.NON_OWN


def are_trusted(flags: int) -> bool:
    """
    Whether flags say that what a pointer to a struct points at is alive, and nothing that puts it in doubt.

    >>> are_trusted(Flag.TRUSTED), are_trusted(Flag.TRUSTED | Flag.NULL), are_trusted(Flag.NONE)
    (True, False, False)
    """
    return bool(flags & _TRUST) and not flags & ~_TRUST


def type_name(kind: Kind, flags: int = 0) -> str:
    """
    Return the name of a pointer kind in the kernel's words.

    >>> type_name(Kind.MAP_VALUE, Flag.NULL), type_name(Kind.BTF_ID, Flag.TRUSTED | Flag.NULL)
    ('map_value_or_null', 'trusted_ptr_or_null_')
    """
    prefix = "".join(
        text
        for flag, text in (
            (Flag.RDONLY, "rdonly_"),
            (Flag.RINGBUF, "ringbuf_"),
            (Flag.USER, "user_"),
            (Flag.PERCPU, "percpu_"),
            (Flag.UNTRUSTED, "untrusted_"),
            (Flag.TRUSTED, "trusted_"),
            (Flag.RCU, "rcu_"),
        )
        if flags & flag
    )
    base = KIND_NAMES[kind]
    if flags & Flag.NULL:
        base = "ptr_or_null_" if kind is Kind.BTF_ID else base + "_or_null"
    return prefix + base
