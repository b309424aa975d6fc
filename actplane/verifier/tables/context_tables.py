"""
Which bytes of the context each kind of program may read and write, by the size of the access.

Read from kernels by loading one-access programs. A line gives the read (`r`) or write (`w`) offsets
of accesses of 1, 2, 4 or 8 bytes; a range `a-b` holds every multiple of the size from a to b.
`FIELDS` says which offsets yield pointers instead of numbers.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

from actplane.verifier.domains.kinds import Flag, Kind

_SKB_NARROW: Final = "r1:0-71,84-87,164-167,176-179 r2:0-70,84-86,164-166,176-178"
_SKB_CB: Final = "w1:48-67 w2:48-66"

LAYOUTS: Final = {
    "socket_filter": f"{_SKB_NARROW} {_SKB_CB} r4:0-68,84,164,176 w4:48-64 r8:48-56,168 w8:48-56",
    "regs": "r1:0-167 r2:0-166 r4:0-164 r8:0-160",
    "regs_rw": "r1:0-167 w1:0-167 r2:0-166 w2:0-166 r4:0-164 w4:0-164 r8:0-160 w8:0-160",
    "sched_cls": (
        f"r1:0-75,84-87,160-167,176-180 r2:0-74,84-86,160-166,176-178 {_SKB_CB} r4:0-84,140,160-164,176 "
        "w4:8-12,32,44-64,72 r8:48-56,152,168,184 w8:48-56,152"
    ),
    "tracepoint": "r1:8-8191 r2:8-8190 r4:8-8188 r8:8-8184",
    "xdp": "r4:0-16",
    "xdp_devmap": "r4:0-20",
    "perf_event": "r1:168-183 r2:168-182 r4:168-180 r8:0-176",
    "cgroup_skb": (
        f"r1:0-71,84-91,132-139,164-167,176-179 {_SKB_CB} r2:0-70,84-90,132-138,164-166,176-178 "
        "r4:0-68,76-136,164,176 w4:8,32,48-64 r8:48-56,152,168,184 w8:48-56,152"
    ),
    "sock_create": "r1:4,8,12,48-49,52-72,76 r2:4,8,12,48,52-72,76 r4:0-20,48-76 w4:0,16-20",
    "post_bind4": "r1:4,8,12,24-27,44,48-49,52-72,76 r2:4,8,12,24-26,44,48,52-72,76 r4:4-12,24,44-76",
    "post_bind6": "r1:4,8,12,28-44,48-49,52-72,76 r2:4,8,12,28-44,48,52-72,76 r4:4-12,28-76",
    "lwt": f"{_SKB_NARROW} {_SKB_CB} r4:0-68,76-84,164,176 w4:8,32,48-64 r8:48-56,168 w8:48-56",
    "sock_ops": "r1:212 r2:212 r4:0-164,208-212 w4:4,164 r8:168-200,216",
    "sk_skb": (
        "r1:0-7,12-71,84-91,132-139,164-167,176-179 r2:0-6,12-70,84-90,132-138,164-166,176-178 "
        "r4:0-4,12-68,76-136,164,176 w4:32,44 r8:48-56,168"
    ),
    "cgroup_device": "r1:0-3 r2:0-2 r4:0-8",
    "sk_msg": "r4:16-68 r8:0-8,72",
    "raw_tracepoint": "r1:0-95 r2:0-94 r4:0-92 r8:0-88",
    "addr4": "r1:4-7,24-27 r2:4-6,24-26 r4:0-4,24-36 w4:4,24 r8:64",
    "addr6": "r1:8-27 r2:8-26 r4:0,8-36 w4:8-24 r8:8-16,64 w8:8-16",
    "sendmsg4": "r1:4-7,24-27,40-43 r2:4-6,24-26,40-42 r4:0-4,24-40 w4:4,24,40 r8:64",
    "sendmsg6": "r1:8-27,44-59 r2:8-26,44-58 r4:0,8-36,44-56 w4:8-24,44-56 r8:8-16,48,64 w8:8-16,48",
    "addr_unix": "r1:24-27 r2:24-26 r4:0,24-36 w4:24 r8:64",
    "sk_reuseport": "r1:16-19,24-31 r2:16-30 r4:16-32 r8:0-8,40-48",
    "flow_dissector": "r4:76-80 r8:144",
    "sysctl": "r1:0-7 r2:0-6 r4:0-4 w4:4",
    "raw_tracepoint_writable": "r1:1-95 r2:2-94 r4:4-92 r8:0-88",
    "getsockopt": "r4:24-36 w4:32-36 r8:0-16",
    "setsockopt": "r4:24-32 w4:24-32 r8:0-16",
    "sk_lookup": "r1:8-67 r2:8-66 r4:8-64 r8:0",
    "syscall": "r1:0-65534 w1:0-65534 r2:0-65534 w2:0-65534 r4:0-65532 w4:0-65532 r8:0-65528 w8:0-65528",
    "netfilter": "r8:0-8",
}

# A program type, or a type with an attach type, and its layout. The exact key is looked up first.
CONTEXTS: Final = {
    "SOCKET_FILTER": "socket_filter",
    "KPROBE": "regs",
    "SCHED_CLS": "sched_cls",
    "SCHED_ACT": "sched_cls",
    "TRACEPOINT": "tracepoint",
    "XDP": "xdp",
    "XDP/XDP_DEVMAP": "xdp_devmap",
    "PERF_EVENT": "perf_event",
    "CGROUP_SKB": "cgroup_skb",
    "CGROUP_SOCK": "sock_create",
    "CGROUP_SOCK/CGROUP_INET4_POST_BIND": "post_bind4",
    "CGROUP_SOCK/CGROUP_INET6_POST_BIND": "post_bind6",
    "LWT_IN": "lwt",
    "LWT_OUT": "lwt",
    "LWT_XMIT": "lwt",
    "LWT_SEG6LOCAL": "lwt",
    "SOCK_OPS": "sock_ops",
    "SK_SKB": "sk_skb",
    "CGROUP_DEVICE": "cgroup_device",
    "SK_MSG": "sk_msg",
    "RAW_TRACEPOINT": "raw_tracepoint",
    "RAW_TRACEPOINT_WRITABLE": "raw_tracepoint_writable",
    "CGROUP_SOCK_ADDR/CGROUP_INET4_BIND": "addr4",
    "CGROUP_SOCK_ADDR/CGROUP_INET4_CONNECT": "addr4",
    "CGROUP_SOCK_ADDR/CGROUP_UDP4_RECVMSG": "addr4",
    "CGROUP_SOCK_ADDR/CGROUP_INET4_GETPEERNAME": "addr4",
    "CGROUP_SOCK_ADDR/CGROUP_INET4_GETSOCKNAME": "addr4",
    "CGROUP_SOCK_ADDR/CGROUP_INET6_BIND": "addr6",
    "CGROUP_SOCK_ADDR/CGROUP_INET6_CONNECT": "addr6",
    "CGROUP_SOCK_ADDR/CGROUP_UDP6_RECVMSG": "addr6",
    "CGROUP_SOCK_ADDR/CGROUP_INET6_GETPEERNAME": "addr6",
    "CGROUP_SOCK_ADDR/CGROUP_INET6_GETSOCKNAME": "addr6",
    "CGROUP_SOCK_ADDR/CGROUP_UDP4_SENDMSG": "sendmsg4",
    "CGROUP_SOCK_ADDR/CGROUP_UDP6_SENDMSG": "sendmsg6",
    "CGROUP_SOCK_ADDR": "addr_unix",
    "SK_REUSEPORT": "sk_reuseport",
    "FLOW_DISSECTOR": "flow_dissector",
    "CGROUP_SYSCTL": "sysctl",
    "CGROUP_SOCKOPT/CGROUP_GETSOCKOPT": "getsockopt",
    "CGROUP_SOCKOPT/CGROUP_SETSOCKOPT": "setsockopt",
    "SK_LOOKUP": "sk_lookup",
    "SYSCALL": "syscall",
    "NETFILTER": "netfilter",
}

# Layouts whose bytes are fewer in older kernels: (layout, first kernel that has them) -> removed.
LATER: Final[dict[str, list[tuple[tuple[int, int], str]]]] = {
    "sched_cls": [((5, 16), "r8:184 r1:180")],
    "cgroup_skb": [((5, 16), "r8:184")],
    "sk_reuseport": [((5, 14), "r8:40-48")],
    "sk_lookup": [((5, 17), "r1:64-67 r2:64-66 r4:64")],
    "sock_ops": [((6, 2), "r8:216")],
}


class PointerField(NamedTuple):
    """What a load at an offset of a context yields instead of a number."""

    kind: Kind
    flags: int = 0


_SKB_FIELDS: Final = {
    (76, 4): PointerField(Kind.PACKET),
    (80, 4): PointerField(Kind.PACKET_END),
    (140, 4): PointerField(Kind.PACKET_META),
    (168, 8): PointerField(Kind.SOCK_COMMON, Flag.NULL),
}

FIELDS: Final[dict[str, dict[tuple[int, int], PointerField]]] = {
    "socket_filter": {(168, 8): PointerField(Kind.SOCK_COMMON, Flag.NULL)},
    "sched_cls": _SKB_FIELDS,
    "cgroup_skb": _SKB_FIELDS,
    "lwt": _SKB_FIELDS,
    "sk_skb": _SKB_FIELDS,
    "flow_dissector": {**_SKB_FIELDS, (144, 8): PointerField(Kind.FLOW_KEYS)},
    "xdp": {
        (0, 4): PointerField(Kind.PACKET),
        (4, 4): PointerField(Kind.PACKET_END),
        (8, 4): PointerField(Kind.PACKET_META),
    },
    "addr4": {(64, 8): PointerField(Kind.SOCKET)},
    "sock_ops": {
        (184, 8): PointerField(Kind.SOCKET, Flag.NULL),
        (192, 8): PointerField(Kind.PACKET),
        (200, 8): PointerField(Kind.PACKET_END),
    },
    "sk_msg": {
        (0, 8): PointerField(Kind.PACKET),
        (8, 8): PointerField(Kind.PACKET_END),
        (72, 8): PointerField(Kind.SOCKET),
    },
    "sk_reuseport": {
        (0, 8): PointerField(Kind.PACKET),
        (8, 8): PointerField(Kind.PACKET_END),
        (40, 8): PointerField(Kind.SOCKET),
        (48, 8): PointerField(Kind.SOCK_COMMON, Flag.NULL),
    },
    "getsockopt": {
        (0, 8): PointerField(Kind.SOCKET),
        (8, 8): PointerField(Kind.PACKET),
        (16, 8): PointerField(Kind.PACKET_END),
    },
    "sk_lookup": {(0, 8): PointerField(Kind.SOCKET, Flag.NULL)},
    "raw_tracepoint_writable": {(0, 8): PointerField(Kind.TP_BUFFER)},
}
FIELDS["xdp_devmap"] = FIELDS["xdp"]
FIELDS["setsockopt"] = FIELDS["getsockopt"]
for _name in ("addr6", "sendmsg4", "sendmsg6", "addr_unix"):
    FIELDS[_name] = FIELDS["addr4"]


@cache
def _parse(text: str) -> dict[tuple[str, int], tuple[tuple[int, int], ...]]:
    parsed: dict[tuple[str, int], tuple[tuple[int, int], ...]] = {}
    for part in text.split():
        key, _, ranges = part.partition(":")
        spans = []
        for item in ranges.split(","):
            low, _, high = item.partition("-")
            spans.append((int(low), int(high or low)))
        parsed[key[0], int(key[1])] = tuple(spans)
    return parsed


def _listed(text: str, access: str, off: int, size: int) -> bool:
    spans = _parse(text).get((access, size), ())
    return any(low <= off <= high and (off - low) % size == 0 for low, high in spans)


STRUCTS: Final = {
    "SOCKET_FILTER": "__sk_buff",
    "SCHED_CLS": "__sk_buff",
    "SCHED_ACT": "__sk_buff",
    "CGROUP_SKB": "__sk_buff",
    "SK_SKB": "__sk_buff",
    "LWT_IN": "__sk_buff",
    "LWT_OUT": "__sk_buff",
    "LWT_XMIT": "__sk_buff",
    "LWT_SEG6LOCAL": "__sk_buff",
    "FLOW_DISSECTOR": "__sk_buff",
    "XDP": "xdp_md",
    "SK_MSG": "sk_msg_md",
    "CGROUP_SOCK": "bpf_sock",
    "CGROUP_SOCK_ADDR": "bpf_sock_addr",
    "CGROUP_SOCKOPT": "bpf_sockopt",
    "CGROUP_SYSCTL": "bpf_sysctl",
    "CGROUP_DEVICE": "bpf_cgroup_dev_ctx",
    "SOCK_OPS": "bpf_sock_ops",
    "SK_REUSEPORT": "sk_reuseport_md",
    "SK_LOOKUP": "bpf_sk_lookup",
    "NETFILTER": "bpf_nf_ctx",
    "KPROBE": "pt_regs",
    "PERF_EVENT": "bpf_perf_event_data",
    "RAW_TRACEPOINT": "bpf_raw_tracepoint_args",
    "RAW_TRACEPOINT_WRITABLE": "bpf_raw_tracepoint_args",
}
"""What the context is called in the prototype of a function that takes it; other kinds have no name for it."""

_INSIDE: Final = {"__sk_buff": "sk_buff", "xdp_md": "xdp_buff"}


def is_context_struct(prog_type: str, struct: str, version: tuple[int, int]) -> bool:
    """
    Whether a pointer to a struct, by its name, is the context of a kind of program: since 6.2 by the name of
    the kernel's own struct, too.

    >>> [is_context_struct("XDP", name, (6, 1)) for name in ("xdp_md", "xdp_buff", "__sk_buff")]
    [True, False, False]
    """
    name = STRUCTS.get(prog_type)
    return name is not None and (struct == name or (version >= (6, 2) and struct == _INSIDE.get(name)))


def layout_of(prog_type: str, attach_type: str, version: tuple[int, int]) -> str | None:
    """Return the name of the context layout of a kind of program, None if it has none of its own."""
    name = CONTEXTS.get(f"{prog_type}/{attach_type}") or CONTEXTS.get(prog_type)
    return "regs_rw" if name == "regs" and version >= (6, 18) else name


def is_allowed(layout: str, off: int, size: int, version: tuple[int, int], *, is_write: bool) -> bool:
    """Whether an access of `size` bytes at byte `off` of a context is allowed."""
    access = "w" if is_write else "r"
    if not _listed(LAYOUTS[layout], access, off, size):
        return False
    return not any(version < since and _listed(gone, access, off, size) for since, gone in LATER.get(layout, ()))
