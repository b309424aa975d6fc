"""Run-time statistics of programs: how often they ran and for how long."""

from __future__ import annotations

from actplane.loader.attributes import EnableStats
from actplane.loader.syscall import RUNNING_KERNEL, Handle, Kernel, bpf

_BPF_STATS_RUN_TIME = 0


def enable_run_time_stats(kernel: Kernel = RUNNING_KERNEL) -> Handle:
    """
    Count runs and nanoseconds of every program of the machine, as long as the result is open.

    It costs each run of each program two readings of the clock, so it is on only while someone
    looks. Numbers are in `LoadedProgram.info()`.

    Raises: KernelError.
    Since:  5.8.
    """
    return Handle(bpf(EnableStats(type=_BPF_STATS_RUN_TIME), kernel), kernel)
