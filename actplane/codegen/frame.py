"""
How every program of a policy begins: whose event is it, and is there room to judge it?

A dispatcher has found the mark already, so these look-ups succeed; a program that cannot judge
denies.
"""

from __future__ import annotations

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.codegen import kernel, layout
from actplane.codegen.channels import absorb
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder

BPF_F_NO_PREALLOC = 1

TASKS = MapSpec("tasks", MapType.BPF_MAP_TYPE_TASK_STORAGE, 4, layout.STATE_BYTES, 0, flags=BPF_F_NO_PREALLOC)
SCRATCH = MapSpec("scratch", MapType.BPF_MAP_TYPE_TASK_STORAGE, 4, layout.SCRATCH_BYTES, 0, flags=BPF_F_NO_PREALLOC)


def current_state(f: FunctionBuilder, unmarked: bc.Operand, inbox_words: int = 0) -> tuple[bc.Value, bc.Value]:
    """
    Emit: (the current task, the state of its process); return `unmarked` if it has none.

    With `inbox_words`, the process first takes so many words of labels from its inbox.
    """
    task = f.helper("bpf_get_current_task_btf", result="task")
    leader = f.load(task, field=kernel.TASK_LEADER, name="leader")
    state = f.helper("bpf_task_storage_get", f.map_address("tasks"), leader, 0, 0, result="state")
    with f.when(state, "==", 0):
        f.ret(unmarked)
    if inbox_words:
        absorb(f, state, inbox_words)
    return task, state


def own_scratch(f: FunctionBuilder, task: bc.Value, denied: bc.Operand) -> bc.Value:
    """Emit: the scratch of the current task; return `denied` if the kernel has no memory for it."""
    scratch = f.helper(
        "bpf_task_storage_get", f.map_address("scratch"), task, 0, kernel.STORAGE_CREATE, result="scratch"
    )
    with f.when(scratch, "==", 0):
        f.ret(denied)
    return scratch


def argument(f: FunctionBuilder, index: int, name: str) -> bc.Value:
    """Emit: the n-th argument of the hook."""
    return f.load(f.parameters[0], 8 * index, name=name)


def refuse(f: FunctionBuilder, scratch: bc.Value, cause: int, conclusion: str) -> None:
    """Emit: what cannot be judged is denied, with its cause; go to the conclusion."""
    f.store(scratch, layout.SCRATCH_VERDICT, layout.VERDICT_BLOCK)
    f.store(scratch, layout.SCRATCH_CAUSE, cause)
    f.jump(conclusion)


def conclude(
    f: FunctionBuilder, scratch: bc.Value, event: int, conclusion: str, denied: bc.Operand, verdicts: int = -1
) -> None:
    """
    Emit the block `conclusion`: report what matched; return `denied` if it must not happen.

    Only the given verdicts are worth a report here.
    """
    f.start(conclusion)
    verdict = f.load(scratch, layout.SCRATCH_VERDICT, name="verdict")
    with f.when(verdict, "&", verdicts):
        refused = f.call("conclude", scratch, event, result="refused")
        with f.when(refused, "!=", 0):
            f.ret(denied)
