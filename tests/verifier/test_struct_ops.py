"""struct_ops programs: which members, helpers and writes, against types made here."""

from __future__ import annotations

from functools import cache

import pytest

from actplane.asm.assembler import assemble_object
from actplane.loader.btf import Btf
from actplane.loader.btf_types import BtfType, Kind, Member
from actplane.loader.btf_write import BtfWriter
from actplane.verifier import Report, verify


@cache
def types() -> Btf:
    """
    Return struct sock { u32 sk_mark; }, struct tcp_sock { sock at 0; u32 snd_cwnd at 4; u32 snd_nxt at 8; } and struct
    tcp_congestion_ops { void init(sock *); u32 ssthresh(sock *); u32 get_info(sock *); }.
    """
    writer = BtfWriter()
    u32 = writer.integer("unsigned int", 4)

    def struct(name: str, size: int, *members: Member) -> int:
        return writer.add(BtfType(Kind.BTF_KIND_STRUCT, name, size, members=members))

    def pointer(target: int) -> int:
        return writer.add(BtfType(Kind.BTF_KIND_PTR, target=target))

    sock = struct("sock", 4, Member("sk_mark", u32))
    struct("tcp_sock", 12, Member("sk", sock), Member("snd_cwnd", u32, 32), Member("snd_nxt", u32, 64))
    takes_sock = (Member("sk", pointer(sock)),)
    no_answer, answer = writer.func_proto(0, takes_sock), writer.func_proto(u32, takes_sock)
    struct(
        "tcp_congestion_ops",
        24,
        Member("init", pointer(no_answer)),
        Member("ssthresh", pointer(answer), 64),
        Member("get_info", pointer(answer), 128),
    )
    struct("bpf_struct_ops_tcp_congestion_ops", 4, Member("common", u32))
    return Btf(writer.encode())


def judge(member: str, text: str) -> Report:
    found = assemble_object(f".prog main struct_ops attach_to={member}\n{text}", name="test")
    return verify(found.programs[0], {}, types())


OPERATION = "tcp_congestion_ops."
CASES = {
    "nothing returned": (OPERATION + "init", "exit", None),
    "an answer is needed": (OPERATION + "ssthresh", "exit", "uninitialized-register"),
    "an answer": (OPERATION + "ssthresh", "r0 = 2\nexit", None),
    "its socket is a TCP socket": (OPERATION + "ssthresh", "r1 = *(u64 *)(r1 +0)\nr0 = *(u32 *)(r1 +4)\nexit", None),
    "a member that may be set": (OPERATION + "init", "r1 = *(u64 *)(r1 +0)\n*(u32 *)(r1 +4) = 10\nexit", None),
    "a member that may not": (OPERATION + "init", "r1 = *(u64 *)(r1 +0)\n*(u32 *)(r1 +8) = 10\nexit", "read-only"),
    "a helper of others": (OPERATION + "init", "r1 = 0\ncall bpf_send_signal\nexit", "helper-not-allowed"),
    "a closed member": (OPERATION + "get_info", "r0 = 0\nexit", "attach"),
    "no such member": (OPERATION + "none", "r0 = 0\nexit", "attach"),
    "another struct": ("sched_ext_ops.init", "r0 = 0\nexit", "target-not-modelled"),
}


@pytest.mark.parametrize(("member", "text", "id_"), CASES.values(), ids=CASES)
def test_operation(member: str, text: str, id_: str | None) -> None:
    report = judge(member, text)
    assert (report.refusal.id if report.refusal else None) == id_, str(report)
