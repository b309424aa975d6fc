"""
What a program says of an event, and what it does about it.

A record is put together only when a clause matched: header, bits of the clauses, the target, the
executable and the arguments of the process. It goes to the ring buffer in one piece; a record that
finds no room is counted.
"""

from __future__ import annotations

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.codegen import kernel, layout
from actplane.codegen.clauses import Judge
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder

RING_BYTES = 1 << 20
BPF_F_NO_PREALLOC = 1
MAX_REPORTED_ARGUMENTS = 256

EVENTS = MapSpec("events", MapType.BPF_MAP_TYPE_RINGBUF, 0, 0, RING_BYTES)
RECORDS = MapSpec("records", MapType.BPF_MAP_TYPE_TASK_STORAGE, 4, layout.RECORD_BYTES, 0, flags=BPF_F_NO_PREALLOC)

# Offsets in the record's header, see layout.RECORD_HEADER.
_TIME = 0
_PID = 8
_TID = 12
_PPID = 16
_UID = 20
_EVENT = 24
_ACTION = 25
_CAUSE = 26
_ACCESS = 27
_CLAUSE_BYTES = 28
_TARGET_BYTES = 30
_EXE_BYTES = 32
_ARGV_BYTES = 34
_RESERVED = 36
_LABELS = 40


def report_functions(judge: Judge, *, can_deny: bool, is_exec_check: bool) -> tuple[bc.Function, ...]:
    """
    Return `conclude(scratch, event)`: report, and kill if that is the verdict.

    Its result is 1 if the event must be denied. Where a program cannot deny, whatever should be
    blocked is killed. `is_exec_check`: the arguments are still those that the caller passed.
    """
    functions = [_conclude(can_deny), _report(judge, is_exec_check)]
    if is_exec_check:
        functions.append(_record_argument())
    return tuple(functions)


def count(f: FunctionBuilder, counter: int) -> None:
    """Emit: one more of what the session counts, at layout.SESSION_DROPS or SESSION_UNMARKED."""
    f.atomic("+", f.map_value("session", counter), 0, f.let(1, "one"))


def report_unmarked(f: FunctionBuilder, task: bc.Value) -> None:
    """Emit: say that a process was killed because its child could not be marked. It needs no memory."""
    record = f.frame_address(f.slot("record", layout.RECORD_BITS))
    _subject(f, record, task)
    f.store(record, _EVENT, layout.EVENT_FORK, 1)
    f.store(record, _ACTION, layout.ACTION_KILLED, 1)
    f.store(record, _CAUSE, layout.CAUSE_NO_MEMORY, 1)
    f.store(record, _ACCESS, 0, 1)
    f.store(record, _CLAUSE_BYTES, 0, 2)
    f.store(record, _TARGET_BYTES, 0, 2)
    f.store(record, _EXE_BYTES, 0, 4)
    f.store(record, _RESERVED, 0, 4)
    for offset in range(_LABELS, layout.RECORD_BITS, 8):
        f.store(record, offset, 0)
    sent = f.helper("bpf_ringbuf_output", f.map_address("events"), record, layout.RECORD_BITS, 0, result="sent")
    with f.when(sent, "!=", 0):
        count(f, layout.SESSION_DROPS)


def _conclude(can_deny: bool) -> bc.Function:
    f = FunctionBuilder("conclude", ["scratch", "event"])
    scratch, event = f.parameters
    verdict = f.load(scratch, layout.SCRATCH_VERDICT, name="verdict")
    # By way of memory, so that a verifier does not tell the three actions apart from here on.
    f.store(scratch, layout.SCRATCH_ACTION, layout.ACTION_NOTIFIED)
    with f.when(verdict, "&", layout.VERDICT_BLOCK):
        f.store(scratch, layout.SCRATCH_ACTION, layout.ACTION_BLOCKED if can_deny else layout.ACTION_KILLED)
    with f.when(verdict, "&", layout.VERDICT_KILL):
        f.store(scratch, layout.SCRATCH_ACTION, layout.ACTION_KILLED)
    f.call("report", scratch, event)
    action = f.load(scratch, layout.SCRATCH_ACTION, name="action")
    with f.when(action, "==", layout.ACTION_NOTIFIED):
        f.ret(0)
    with f.when(action, "==", layout.ACTION_KILLED):
        f.helper("bpf_send_signal", kernel.SIGKILL)
    f.ret(1)
    return f.finish()


def _report(judge: Judge, is_exec_check: bool) -> bc.Function:
    f = FunctionBuilder("report", ["scratch", "event"])
    scratch, event = f.parameters
    task = f.helper("bpf_get_current_task_btf", result="task")
    record = f.helper("bpf_task_storage_get", f.map_address("records"), task, 0, kernel.STORAGE_CREATE, result="record")
    with f.when(record, "==", 0):
        count(f, layout.SESSION_DROPS)
        f.ret(0)
    _header(f, judge, scratch, record, task, event)
    f.store(scratch, layout.SCRATCH_RECORD_AT, layout.RECORD_BITS + judge.matched_bytes)

    length = f.load(scratch, layout.SCRATCH_TARGET_BYTES, name="length")
    source = f.load(scratch, layout.SCRATCH_TARGET, name="source")
    _append(f, scratch, record, _TARGET_BYTES, source, length, layout.RECORD_TARGET_MAX - 1)

    mm = f.load(task, field=kernel.TASK_MM, name="mm")
    with f.when(mm, "!=", 0):
        file = f.load(mm, field=kernel.MM_EXE_FILE, name="file")
        with f.when(file, "!=", 0):
            dentry = f.load(file, field=kernel.FILE_DENTRY, name="dentry")
            mount = f.load(file, field=kernel.FILE_MOUNT, name="mount")
            length = f.call("path_of", scratch, dentry, mount, result="length")
            start = f.let(layout.TEXT_PATH_END, "start")
            f.at_most(length, layout.RECORD_EXE_MAX - 1)
            f.update(start, "-", length)
            _append(f, scratch, record, _EXE_BYTES, start, length, layout.RECORD_EXE_MAX - 1)
        _arguments(f, scratch, record, mm, is_exec_check)

    size = f.load(scratch, layout.SCRATCH_RECORD_AT, name="size")
    f.at_most(size, layout.RECORD_BYTES)
    sent = f.helper("bpf_ringbuf_output", f.map_address("events"), record, size, 0, result="sent")
    with f.when(sent, "!=", 0):
        count(f, layout.SESSION_DROPS)
    f.ret(0)
    return f.finish()


def _header(
    f: FunctionBuilder, judge: Judge, scratch: bc.Value, record: bc.Value, task: bc.Value, event: bc.Value
) -> None:
    _subject(f, record, task)
    f.store(record, _EVENT, event, 1)
    f.store(record, _ACTION, f.load(scratch, layout.SCRATCH_ACTION), 1)
    f.store(record, _CAUSE, f.load(scratch, layout.SCRATCH_CAUSE), 1)
    f.store(record, _ACCESS, f.load(scratch, layout.SCRATCH_ACCESS), 1)
    f.store(record, _CLAUSE_BYTES, judge.matched_bytes, 2)
    f.store(record, _TARGET_BYTES, 0, 2)
    f.store(record, _EXE_BYTES, 0, 4)
    f.store(record, _RESERVED, 0, 4)
    for pair in range(layout.LABEL_BYTES // 8):
        value: bc.Operand = 0
        if 2 * pair < judge.label_words:
            value = f.load(scratch, layout.SCRATCH_LABELS + 8 * pair)
        f.store(record, _LABELS + 8 * pair, value)
    for word in range(judge.matched_bytes // 8):
        f.store(record, layout.RECORD_BITS + 8 * word, f.load(scratch, layout.SCRATCH_MATCHED + 8 * word))


def _subject(f: FunctionBuilder, record: bc.Value, task: bc.Value) -> None:
    """Emit: when it was, and whose event it is."""
    f.store(record, _TIME, f.helper("bpf_ktime_get_ns"))
    f.store(record, _PID, f.load(task, 0, 4, field=kernel.TASK_TGID), 4)
    f.store(record, _TID, f.load(task, 0, 4, field=kernel.TASK_PID), 4)
    parent = f.load(task, field=kernel.TASK_PARENT, name="parent")
    f.store(record, _PPID, f.load(parent, 0, 4, field=kernel.TASK_TGID), 4)
    f.store(record, _UID, f.helper("bpf_get_current_uid_gid"), 4)


def _append(
    f: FunctionBuilder,
    scratch: bc.Value,
    record: bc.Value,
    field: int,
    source: bc.Value,
    length: bc.Value,
    limit: int,
) -> None:
    """Emit: append bytes of the scratch text to the record and note their number."""
    end = _end(f, scratch, record, limit)
    f.at_most(length, limit)
    f.store(record, field, length, 2)
    f.update(source, "&", layout.TEXT_MASK)
    f.update(source, "+", scratch)
    f.update(source, "+", layout.SCRATCH_TEXT)
    f.helper("bpf_probe_read_kernel", end, length, source)
    _advance(f, scratch, length)


def _end(f: FunctionBuilder, scratch: bc.Value, record: bc.Value, room: int) -> bc.Value:
    """Emit: where the record goes on, with that much room behind it."""
    at = f.load(scratch, layout.SCRATCH_RECORD_AT, name="at")
    f.at_most(at, layout.RECORD_BYTES - room)
    f.update(at, "+", record)
    return at


def _advance(f: FunctionBuilder, scratch: bc.Value, length: bc.Value) -> None:
    at = f.load(scratch, layout.SCRATCH_RECORD_AT, name="at")
    f.update(at, "+", length)
    f.store(scratch, layout.SCRATCH_RECORD_AT, at)


def _arguments(f: FunctionBuilder, scratch: bc.Value, record: bc.Value, mm: bc.Value, is_exec_check: bool) -> None:
    if is_exec_check:
        # What the caller asked to run: the strings are where its argv points.
        f.call("argument_vector", scratch)
        context = f.frame_address(f.slot("context", 16))
        f.store(context, 0, scratch)
        f.store(context, 8, record)
        f.helper("bpf_loop", MAX_REPORTED_ARGUMENTS, f.function("record_argument"), context, 0)
        return
    start = f.load(mm, field=kernel.MM_ARG_START, name="start")
    length = f.load(mm, field=kernel.MM_ARG_END, name="length")
    f.update(length, "-", start)
    end = _end(f, scratch, record, layout.RECORD_ARGV_MAX)
    f.at_most(length, layout.RECORD_ARGV_MAX)
    failed = f.helper("bpf_probe_read_user", end, length, start, result="failed")
    with f.when(failed, "==", 0):
        f.store(record, _ARGV_BYTES, length, 2)
        _advance(f, scratch, length)


def _record_argument() -> bc.Function:
    """Return the step that appends one string of the caller's argv to the record."""
    f = FunctionBuilder("record_argument", ["index", "context"])
    context = f.parameters[1]
    scratch = f.load(context, 0, name="scratch")
    record = f.load(context, 8, name="record")
    vector = f.load(scratch, layout.SCRATCH_VECTOR, name="vector")
    pointer = f.op(scratch, "+", layout.SCRATCH_KERNEL, "pointer")
    failed = f.helper("bpf_probe_read_user", pointer, 8, vector, result="failed")
    with f.when(failed, "!=", 0):
        f.ret(1)
    string = f.load(scratch, layout.SCRATCH_KERNEL, name="string")
    with f.when(string, "==", 0):
        f.ret(1)
    f.update(vector, "+", 8)
    f.store(scratch, layout.SCRATCH_VECTOR, vector)
    used = f.load(record, _ARGV_BYTES, 2, "used")
    room = f.let(layout.RECORD_ARGV_MAX, "room")
    f.update(room, "-", used)
    with f.when(room, "s<", 2):
        f.ret(1)
    end = _end(f, scratch, record, layout.RECORD_ARGV_MAX)
    f.at_most(room, layout.RECORD_ARGV_MAX)
    length = f.helper("bpf_probe_read_user_str", end, room, string, result="length")
    with f.when(length, "s<", 0):
        f.ret(1)
    with f.when(length, "==", 0):  # So kernels before 6.13 say of an empty string: its NUL is not counted.
        f.assign(length, 1)
    with f.when(length, "==", room):  # Cut: leave out its NUL, so that a reader sees it.
        f.update(length, "-", 1)
    f.update(used, "+", length)
    f.store(record, _ARGV_BYTES, used, 2)
    _advance(f, scratch, length)
    f.ret(0)
    return f.finish()
