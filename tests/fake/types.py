"""A small kernel's BTF: enough types for hooks, fields and kernel functions."""

from __future__ import annotations

from actplane.loader.btf import Btf
from actplane.loader.btf_types import BtfType, Enumerator, Kind, Linkage, Member
from actplane.loader.btf_write import BtfWriter


def small_kernel() -> Btf:
    """Return struct task_struct { u64 flags; task_struct *group_leader; struct { u32 pid; } }, some hooks, an enum."""
    writer = BtfWriter()
    u32 = writer.integer("unsigned int", 4)
    u64 = writer.integer("unsigned long", 8)
    inner = writer.add(BtfType(Kind.BTF_KIND_STRUCT, "", 4, members=(Member("pid", u32),)))
    task_members = (Member("flags", u64), Member("group_leader", u64, 64), Member("", inner, 128))
    writer.add(BtfType(Kind.BTF_KIND_STRUCT, "task_struct", 24, members=task_members))
    writer.add(BtfType(Kind.BTF_KIND_ENUM, "colour", 4, enumerators=(Enumerator("RED", 1), Enumerator("BLUE", 7))))
    proto = writer.func_proto(u32)
    for name in (
        "bpf_lsm_bprm_check_security",
        "bpf_lsm_task_getpgid",
        "security_file_open",
        "security_task_getpgid",
        "bpf_task_release",
    ):
        writer.func(name, proto, Linkage.BTF_FUNC_GLOBAL)
    pointer = writer.add(BtfType(Kind.BTF_KIND_PTR, target=proto))
    writer.add(BtfType(Kind.BTF_KIND_TYPEDEF, "btf_trace_sched_process_exec", target=pointer))
    return Btf(writer.encode())
