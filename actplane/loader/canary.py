"""
A canary: proof that programs of a kind, once attached, are really run and really obeyed.

It sits on `task_getpgid`, asked by getpgid(2) of another process or, by number, of oneself; refusing
that harms nobody. It refuses only to processes whose leader carries a mark in task storage, and only
the probing process does, for as long as one call takes.
"""

from __future__ import annotations

import os
from dataclasses import replace

from actplane.asm.build import call, exit_, jmp, ld_map_fd, ldx, mov64
from actplane.asm.insn import Field
from actplane.asm.labels import LabelHere, resolve
from actplane.asm.operands import Reg, Size
from actplane.asm.program import MapSpec, Object, Program
from actplane.asm.uapi import AttachType, HelperId, MapType, ProgType
from actplane.loader.btf import Btf
from actplane.loader.collection import Collection
from actplane.loader.syscall import RUNNING_KERNEL, Kernel

_EPERM = 1
_MARKS = MapSpec("canary_marks", MapType.BPF_MAP_TYPE_TASK_STORAGE, 4, 8, 0)

_HOOKS = {
    ProgType.BPF_PROG_TYPE_LSM: (AttachType.BPF_LSM_MAC, "task_getpgid"),
    ProgType.BPF_PROG_TYPE_TRACING: (AttachType.BPF_MODIFY_RETURN, "security_task_getpgid"),
}


def canary(prog_type: ProgType) -> Object:
    """Return the canary as an LSM program, or (BPF_PROG_TYPE_TRACING) as a fmod_ret program."""
    attach_type, attach_to = _HOOKS[prog_type]
    leader = Field("task_struct", "group_leader")
    insns, _ = resolve(
        [
            call(HelperId.bpf_get_current_task_btf),
            replace(ldx(Size.DW, Reg.R2, Reg.R0), symbol=leader),
            ld_map_fd(Reg.R1, _MARKS.name),
            mov64(Reg.R3, 0),
            mov64(Reg.R4, 0),
            call(HelperId.bpf_task_storage_get),
            jmp("jeq", Reg.R0, 0, "allow"),
            mov64(Reg.R0, -_EPERM),
            exit_(),
            LabelHere("allow"),
            mov64(Reg.R0, 0),
            exit_(),
        ]
    )
    program = Program("canary", prog_type, tuple(insns), attach_type, attach_to)
    return Object((_MARKS,), (program,))


def does_canary_bite(prog_type: ProgType, btf: Btf, kernel: Kernel = RUNNING_KERNEL) -> bool:
    """
    Attach the canary, mark this process, and say whether the kernel refuses it what the canary refuses.

    Raises: what loading and attaching raise.
    Since:  5.11 (task storage).
    """
    own = os.getpid()
    with Collection.load(canary(prog_type), btf, kernel=kernel) as collection:
        collection.attach("canary")
        marks = collection.maps[_MARKS.name]
        process = os.pidfd_open(own)
        try:
            marks.update(process.to_bytes(4, "little"), (1).to_bytes(8, "little"))
            os.getpgid(own)
        except PermissionError:
            return True
        finally:
            os.close(process)
    return False
