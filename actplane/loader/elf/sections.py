"""
What the name of a section says about the programs in it: their type, where they attach, whether they
may sleep.

Source: tools/lib/bpf of Linux 6.18 and Documentation/bpf/libbpf/program_types.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from actplane.asm.uapi import AttachType, ProgType

_NAMED: Final = """
kprobe                KPROBE
kprobe.multi          KPROBE                   TRACE_KPROBE_MULTI
kprobe.session        KPROBE                   TRACE_KPROBE_SESSION
kretprobe             KPROBE
kretprobe.multi       KPROBE                   TRACE_KPROBE_MULTI
ksyscall              KPROBE
kretsyscall           KPROBE
uprobe                KPROBE
uprobe.s              KPROBE                   -                       sleepable
uprobe.multi          KPROBE                   TRACE_UPROBE_MULTI
uprobe.multi.s        KPROBE                   TRACE_UPROBE_MULTI      sleepable
uprobe.session        KPROBE                   TRACE_UPROBE_SESSION
uprobe.session.s      KPROBE                   TRACE_UPROBE_SESSION    sleepable
uretprobe             KPROBE
uretprobe.s           KPROBE                   -                       sleepable
uretprobe.multi       KPROBE                   TRACE_UPROBE_MULTI
uretprobe.multi.s     KPROBE                   TRACE_UPROBE_MULTI      sleepable
usdt                  KPROBE
usdt.s                KPROBE                   -                       sleepable
tracepoint            TRACEPOINT
tp                    TRACEPOINT
raw_tracepoint        RAW_TRACEPOINT
raw_tracepoint.w      RAW_TRACEPOINT_WRITABLE
raw_tp                RAW_TRACEPOINT
raw_tp.w              RAW_TRACEPOINT_WRITABLE
tp_btf                TRACING                  TRACE_RAW_TP
fentry                TRACING                  TRACE_FENTRY
fentry.s              TRACING                  TRACE_FENTRY            sleepable
fexit                 TRACING                  TRACE_FEXIT
fexit.s               TRACING                  TRACE_FEXIT             sleepable
fmod_ret              TRACING                  MODIFY_RETURN
fmod_ret.s            TRACING                  MODIFY_RETURN           sleepable
freplace              EXT
iter                  TRACING                  TRACE_ITER
iter.s                TRACING                  TRACE_ITER              sleepable
lsm                   LSM                      LSM_MAC
lsm.s                 LSM                      LSM_MAC                 sleepable
lsm_cgroup            LSM                      LSM_CGROUP
struct_ops            STRUCT_OPS
struct_ops.s          STRUCT_OPS               -                       sleepable
"""
"""Sections that may go on with a slash and the name of what the program attaches to."""

_WHOLE: Final = """
action                SCHED_ACT
classifier            SCHED_CLS
tc                    SCHED_CLS
tc/ingress            SCHED_CLS                TCX_INGRESS
tc/egress             SCHED_CLS                TCX_EGRESS
tcx/ingress           SCHED_CLS                TCX_INGRESS
tcx/egress            SCHED_CLS                TCX_EGRESS
netkit/primary        SCHED_CLS                NETKIT_PRIMARY
netkit/peer           SCHED_CLS                NETKIT_PEER
socket                SOCKET_FILTER
xdp                   XDP                      XDP
xdp/devmap            XDP                      XDP_DEVMAP
xdp/cpumap            XDP                      XDP_CPUMAP
xdp.frags             XDP                      XDP
xdp.frags/devmap      XDP                      XDP_DEVMAP
xdp.frags/cpumap      XDP                      XDP_CPUMAP
perf_event            PERF_EVENT
syscall               SYSCALL                  -                       sleepable
netfilter             NETFILTER                NETFILTER
flow_dissector        FLOW_DISSECTOR           FLOW_DISSECTOR
lirc_mode2            LIRC_MODE2               LIRC_MODE2
lwt_in                LWT_IN
lwt_out               LWT_OUT
lwt_xmit              LWT_XMIT
lwt_seg6local         LWT_SEG6LOCAL
sk_lookup             SK_LOOKUP                SK_LOOKUP
sk_msg                SK_MSG                   SK_MSG_VERDICT
sk_reuseport          SK_REUSEPORT             SK_REUSEPORT_SELECT
sk_reuseport/migrate  SK_REUSEPORT             SK_REUSEPORT_SELECT_OR_MIGRATE
sk_skb                SK_SKB
sk_skb/stream_parser  SK_SKB                   SK_SKB_STREAM_PARSER
sk_skb/stream_verdict SK_SKB                   SK_SKB_STREAM_VERDICT
sk_skb/verdict        SK_SKB                   SK_SKB_VERDICT
sockops               SOCK_OPS                 CGROUP_SOCK_OPS
cgroup_skb/ingress    CGROUP_SKB               CGROUP_INET_INGRESS
cgroup_skb/egress     CGROUP_SKB               CGROUP_INET_EGRESS
cgroup/skb            CGROUP_SKB
cgroup/dev            CGROUP_DEVICE            CGROUP_DEVICE
cgroup/sysctl         CGROUP_SYSCTL            CGROUP_SYSCTL
cgroup/getsockopt     CGROUP_SOCKOPT           CGROUP_GETSOCKOPT
cgroup/setsockopt     CGROUP_SOCKOPT           CGROUP_SETSOCKOPT
cgroup/sock           CGROUP_SOCK              CGROUP_INET_SOCK_CREATE
cgroup/sock_create    CGROUP_SOCK              CGROUP_INET_SOCK_CREATE
cgroup/sock_release   CGROUP_SOCK              CGROUP_INET_SOCK_RELEASE
cgroup/post_bind4     CGROUP_SOCK              CGROUP_INET4_POST_BIND
cgroup/post_bind6     CGROUP_SOCK              CGROUP_INET6_POST_BIND
cgroup/bind4          CGROUP_SOCK_ADDR         CGROUP_INET4_BIND
cgroup/bind6          CGROUP_SOCK_ADDR         CGROUP_INET6_BIND
cgroup/connect4       CGROUP_SOCK_ADDR         CGROUP_INET4_CONNECT
cgroup/connect6       CGROUP_SOCK_ADDR         CGROUP_INET6_CONNECT
cgroup/connect_unix   CGROUP_SOCK_ADDR         CGROUP_UNIX_CONNECT
cgroup/sendmsg4       CGROUP_SOCK_ADDR         CGROUP_UDP4_SENDMSG
cgroup/sendmsg6       CGROUP_SOCK_ADDR         CGROUP_UDP6_SENDMSG
cgroup/sendmsg_unix   CGROUP_SOCK_ADDR         CGROUP_UNIX_SENDMSG
cgroup/recvmsg4       CGROUP_SOCK_ADDR         CGROUP_UDP4_RECVMSG
cgroup/recvmsg6       CGROUP_SOCK_ADDR         CGROUP_UDP6_RECVMSG
cgroup/recvmsg_unix   CGROUP_SOCK_ADDR         CGROUP_UNIX_RECVMSG
cgroup/getpeername4   CGROUP_SOCK_ADDR         CGROUP_INET4_GETPEERNAME
cgroup/getpeername6   CGROUP_SOCK_ADDR         CGROUP_INET6_GETPEERNAME
cgroup/getpeername_unix CGROUP_SOCK_ADDR       CGROUP_UNIX_GETPEERNAME
cgroup/getsockname4   CGROUP_SOCK_ADDR         CGROUP_INET4_GETSOCKNAME
cgroup/getsockname6   CGROUP_SOCK_ADDR         CGROUP_INET6_GETSOCKNAME
cgroup/getsockname_unix CGROUP_SOCK_ADDR       CGROUP_UNIX_GETSOCKNAME
"""
"""Sections whose whole name counts."""


@dataclass(frozen=True, slots=True)
class SectionHook:
    """What a section says of its programs. `attach_to` is None where the name says nothing of it."""

    prog_type: ProgType
    attach_type: AttachType | None = None
    attach_to: str | None = None
    is_sleepable: bool = False


def _table(text: str) -> dict[str, SectionHook]:
    found: dict[str, SectionHook] = {}
    for line in text.strip().splitlines():
        name, kind, *rest = line.split()
        attach = AttachType[f"BPF_{rest[0]}"] if rest and rest[0] != "-" else None
        found[name] = SectionHook(ProgType[f"BPF_PROG_TYPE_{kind}"], attach, None, "sleepable" in rest)
    return found


_BY_PREFIX: Final = _table(_NAMED)
_BY_NAME: Final = _table(_WHOLE)


def hook_of(section: str) -> SectionHook | None:
    """
    Return what a section's name says, None if it is not known.

    Shape:  a question mark in front, which tells libbpf not to load the program by itself, is ignored,
            and so is what follows a slash without a meaning ("xdp/filter"), which libbpf no longer
            allows and others do.

    >>> hook_of("lsm.s/file_open").attach_to, hook_of("lsm.s/file_open").is_sleepable
    ('file_open', True)
    >>> hook_of("cgroup/connect4").attach_type.name
    'BPF_CGROUP_INET4_CONNECT'
    """
    name = section.removeprefix("?")
    whole = _BY_NAME.get(name)
    if whole is not None:
        return whole
    prefix, _, rest = name.partition("/")
    found = _BY_PREFIX.get(prefix)
    if found is None:
        return next((_BY_NAME[start] for start in _starts(name) if start in _BY_NAME), None)
    return SectionHook(found.prog_type, found.attach_type, rest or None, found.is_sleepable)


def _starts(name: str) -> Iterator[str]:
    """Iterate over what stands in front of each slash, the longest first."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name
