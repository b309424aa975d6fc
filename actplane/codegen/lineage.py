"""
Whose process is it: marks that children inherit, threads share and an exec by any thread keeps.

The state of a process is stored on its thread-group leader. New processes start with a copy of the
state of the process that made them, whatever their parent is said to be. New threads get a copy
too: should one of them exec, it takes the leader's place, and what the leader has gained since.
"""

from __future__ import annotations

from actplane.codegen import kernel, layout
from actplane.codegen.channels import forget
from actplane.codegen.clauses import Judge, signed32
from actplane.codegen.frame import argument, current_state
from actplane.codegen.report import count, report_unmarked
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder


def inherit(judge: Judge, name: str, *, can_deny: bool) -> tuple[bc.Function, ...]:
    """
    Return the program that marks a new task (task_alloc where it can deny, else task_newtask).

    A task that cannot be marked is not made. Where that cannot be prevented, its parent is killed, and
    the supervisor is told, which ends the session.
    """
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    child = argument(f, 0, "child")
    copy = f.helper("bpf_task_storage_get", f.map_address("tasks"), child, state, kernel.STORAGE_CREATE, result="copy")
    with f.when(copy, "==", 0):
        if can_deny:
            f.ret(-kernel.ENOMEM)
        else:
            f.helper("bpf_send_signal", kernel.SIGKILL)
            count(f, layout.SESSION_UNMARKED)
            report_unmarked(f, task)
            f.ret(0)
    f.store(copy, layout.STATE_FLAGS, 0, 4)
    for offset in range(layout.STATE_PENDING, layout.STATE_BYTES, 8):
        f.store(copy, offset, 0)
    f.ret(0)
    return (f.finish(),)


def catch_up(judge: Judge, name: str) -> tuple[bc.Function, ...]:
    """
    Return the program that runs when a new task has been made, and has not run (task_newtask).

    Between its mark and the copy of its memory another thread may have read what gives a label.
    """
    f = FunctionBuilder(name, ["context"])
    _, state = current_state(f, 0, judge.inbox_words)
    child = argument(f, 0, "child")
    copy = f.helper("bpf_task_storage_get", f.map_address("tasks"), child, 0, 0, result="copy")
    with f.when(copy, "!=", 0):
        for pair in range(judge.label_words // 2):
            f.store(copy, layout.STATE_LABELS + 8 * pair, f.load(state, layout.STATE_LABELS + 8 * pair))
    f.ret(0)
    return (f.finish(),)


def take_along(judge: Judge, name: str) -> tuple[bc.Function, ...]:
    """
    Return the program by which a thread that executes takes along the state of its process (bprm_check_security).

    It is to take the leader's place. A leader that has ended before hands nothing over.
    """
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    leader = f.load(task, field=kernel.TASK_LEADER, name="leader")
    with f.when(leader, "!=", task):
        own = f.helper("bpf_task_storage_get", f.map_address("tasks"), task, state, kernel.STORAGE_CREATE, result="own")
        with f.when(own, "==", 0):
            f.ret(-kernel.ENOMEM)
        for offset in range(0, layout.STATE_BYTES, 8):
            f.store(own, offset, f.load(state, offset))
    f.ret(0)
    return (f.finish(),)


def exit_program(judge: Judge, name: str) -> tuple[bc.Function, ...]:
    """
    Return the program that runs when a thread ends (sched_process_exit).

    A leader that ends because another thread of its process executes a program hands its state to
    that thread. When the last thread of a process ends, its exit status passes the gates it ran for.
    """
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0)
    signal = f.load(task, field=kernel.TASK_SIGNAL, name="signal")
    heir = f.load(signal, field=kernel.SIGNAL_EXEC_TASK, name="heir")
    with f.when(heir, "!=", 0):
        _hand_over(f, task, state, heir)
        f.ret(0)
    gates = [(n, gate) for n, gate in enumerate(judge.policy.gates) if gate.exits is not None]
    live = f.load(signal, 0, 4, "live", kernel.SIGNAL_LIVE)
    with f.when(live, "!=", 0, width=32):
        f.ret(0)
    if judge.inbox_words:
        forget(f)
    if gates:
        code = _exit_code(f, task, signal)
        now = f.helper("bpf_ktime_get_ns", result="now")
        for number, gate in gates:
            assert gate.exits is not None
            after = f.new_block("after")
            pending = f.load(state, layout.STATE_PENDING + 4 * (number // 32), 4, "pending")
            waits = f.new_block("waits")
            f.branch(pending, "&", signed32(1 << (number % 32)), waits, after, 32)
            f.start(waits)
            passed = f.new_block("passed")
            wanted = 0 if gate.exits.is_negated else (gate.exits.status or 0) << 8
            f.branch(code, "!=" if gate.exits.is_negated else "==", wanted, passed, after, 32)
            f.start(passed)
            f.store(f.map_value("session", layout.session_gate(number)), 0, now)
            f.start(after)
    f.ret(0)
    return (f.finish(),)


def _hand_over(f: FunctionBuilder, task: bc.Value, state: bc.Value, heir: bc.Value) -> None:
    leader = f.load(task, field=kernel.TASK_LEADER, name="leader")
    with f.when(leader, "==", task):
        to = f.helper("bpf_task_storage_get", f.map_address("tasks"), heir, state, kernel.STORAGE_CREATE, result="to")
        with f.when(to, "==", 0):
            f.helper("bpf_send_signal", kernel.SIGKILL)
            f.ret(0)
        for offset in range(0, layout.STATE_BYTES, 8):
            f.store(to, offset, f.load(state, offset))


def _exit_code(f: FunctionBuilder, task: bc.Value, signal: bc.Value) -> bc.Value:
    """Emit: how the process ended, as `wait` reports it."""
    leader = f.load(task, field=kernel.TASK_LEADER, name="leader")
    code = f.load(leader, 0, 4, "code", kernel.TASK_EXIT_CODE)
    flags = f.load(signal, 0, 4, "flags", kernel.SIGNAL_FLAGS)
    with f.when(flags, "&", kernel.SIGNAL_GROUP_EXIT):
        f.assign(code, f.load(signal, 0, 4, "group", kernel.SIGNAL_GROUP_EXIT_CODE))
    return code
