"""Who runs: the facts that helpers ask of the current task."""

from __future__ import annotations

from dataclasses import dataclass, field

TASK_COMM_LEN = 16


@dataclass(slots=True)
class Task:
    """
    A thread. `tgid` is what user space calls the process id, `pid` the thread id.

    `address` is where its task_struct lies in the machine's memory; the machine gives a task
    without one a region of no bytes, so that its address works as an identity and no more.
    """

    pid: int = 1
    tgid: int = 1
    uid: int = 0
    gid: int = 0
    comm: str = "task"
    cgroup_id: int = 1
    cgroup_ancestors: tuple[int, ...] = (1,)
    """Ids of its cgroup's ancestors by level, the root first."""
    address: int = 0
    registers_address: int = 0
    """Where the struct pt_regs of its system call lies (bpf_task_pt_regs)."""
    signals: list[int] = field(default_factory=list)
    """What bpf_send_signal sent it."""

    @property
    def comm_bytes(self) -> bytes:
        """The name as the kernel keeps it: 16 bytes, NUL at the end."""
        return self.comm.encode()[: TASK_COMM_LEN - 1].ljust(TASK_COMM_LEN, b"\0")
