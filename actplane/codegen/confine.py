"""
What no policy says, and every policy rests on: that a session stays in, and that names stay what they are.

A process of the session may not attach to one outside (ptrace, its memory, its descriptors) nor type
into a terminal (TIOCSTI), for what is done there is done outside. Where a policy names places, it
may not mount either: in a user namespace of its own everybody can, and would give files other names.
"""

from __future__ import annotations

from actplane.codegen import kernel, layout
from actplane.codegen.clauses import Judge
from actplane.codegen.frame import argument, conclude, current_state, own_scratch
from actplane.codegen.paths import path_functions
from actplane.codegen.report import report_functions
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder
from actplane.ir.policy import PatternKind
from actplane.ir.regex import ANYTHING


def names_places(judge: Judge) -> bool:
    """Whether some pattern depends on where a file is: not on its name alone, and not every file."""
    patterns = judge.policy.patterns
    used = (patterns[index] for kind in ("exec", "file") for index in _patterns(judge, kind))
    return any(pattern.kind is PatternKind.PATH and pattern.regex != ANYTHING for pattern in used)


def _patterns(judge: Judge, kind: str) -> tuple[int, ...]:
    return judge.recognizers[kind].patterns if kind in judge.recognizers else ()


def attach(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `ptrace_access_check(child, mode)`: not to read what anybody may, but to take over."""
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    child = argument(f, 0, "child")
    mode = argument(f, 1, "mode")
    f.update(mode, "&", kernel.PTRACE_MODE_ATTACH)
    with f.when(mode, "==", 0):
        f.ret(0)
    leader = f.load(child, field=kernel.TASK_LEADER, name="leader")
    theirs = f.helper("bpf_task_storage_get", f.map_address("tasks"), leader, 0, 0, result="theirs")
    with f.when(theirs, "!=", 0):
        f.ret(0)
    scratch = own_scratch(f, task, denied)
    _forget(f, judge, scratch, state)
    mm = f.load(child, field=kernel.TASK_MM, name="mm")
    file = f.load(mm, field=kernel.MM_EXE_FILE, name="file")
    with f.when(file, "!=", 0):
        dentry = f.load(file, field=kernel.FILE_DENTRY, name="dentry")
        f.call("path_of", scratch, dentry, f.load(file, field=kernel.FILE_MOUNT, name="mount"))
    return _refused(f, judge, scratch, layout.EVENT_PTRACE, layout.CAUSE_OUTSIDE, denied)


def type_ahead(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `file_ioctl(file, command, argument)`."""
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    file = argument(f, 0, "file")
    command = argument(f, 1, "command")
    types, other = f.new_block("types"), f.new_block("other")
    f.branch(command, "==", kernel.TIOCSTI, types, other, 32)
    f.start(other)
    with f.when(command, "!=", kernel.TIOCLINUX, width=32):
        f.ret(0)
    f.start(types)
    scratch = own_scratch(f, task, denied)
    _forget(f, judge, scratch, state)
    dentry = f.load(file, field=kernel.FILE_DENTRY, name="dentry")
    f.call("path_of", scratch, dentry, f.load(file, field=kernel.FILE_MOUNT, name="mount"))
    return _refused(f, judge, scratch, layout.EVENT_IOCTL, layout.CAUSE_TYPES, denied)


def mount(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `sb_mount(source, path, type, flags, data)`; flags of a mount may change."""
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    flags = argument(f, 3, "flags")
    with f.when(flags, "&", kernel.MS_REMOUNT):
        f.ret(0)
    bound = f.op(flags, "&", kernel.MS_BIND, "bound")
    with f.when(bound, "==", 0), f.when(flags, "&", kernel.MS_PROPAGATION):
        f.ret(0)
    return _mounted(f, judge, task, state, argument(f, 1, "path"), denied)


def move_mount(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `move_mount(from, to)`."""
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    return _mounted(f, judge, task, state, argument(f, 1, "path"), denied)


def pivot_root(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `sb_pivotroot(old, new)`; `new` is where the root will be."""
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    return _mounted(f, judge, task, state, argument(f, 1, "path"), denied)


def _mounted(
    f: FunctionBuilder, judge: Judge, task: bc.Value, state: bc.Value, path: bc.Value, denied: int
) -> tuple[bc.Function, ...]:
    scratch = own_scratch(f, task, denied)
    _forget(f, judge, scratch, state)
    dentry = f.load(path, field=kernel.PATH_DENTRY, name="dentry")
    f.call("path_of", scratch, dentry, f.load(path, field=kernel.PATH_MOUNT, name="mount"))
    return _refused(f, judge, scratch, layout.EVENT_MOUNT, layout.CAUSE_NAMES_PLACES, denied)


def _forget(f: FunctionBuilder, judge: Judge, scratch: bc.Value, state: bc.Value) -> None:
    """Emit: forget the event before; this one has no access, and no target yet."""
    judge.begin(f, scratch, state, ())
    f.store(scratch, layout.SCRATCH_ACCESS, 0)
    f.store(scratch, layout.SCRATCH_TARGET, 0)
    f.store(scratch, layout.SCRATCH_TARGET_BYTES, 0)


def _refused(
    f: FunctionBuilder, judge: Judge, scratch: bc.Value, event: int, cause: int, denied: int
) -> tuple[bc.Function, ...]:
    f.store(scratch, layout.SCRATCH_VERDICT, layout.VERDICT_BLOCK)
    f.store(scratch, layout.SCRATCH_CAUSE, cause)
    f.jump("conclusion")
    conclude(f, scratch, event, "conclusion", denied)
    f.ret(denied)
    return (f.finish(), *path_functions(), *report_functions(judge, can_deny=True, is_exec_check=False))
