"""
Judging an exec: before it commits, where a hook can deny, and again when it has committed.

The first look reads the arguments where the caller's argv points, in memory that another thread may
change. The second reads the strings the kernel has copied, before the new program's first
instruction, and kills what should not have passed.
"""

from __future__ import annotations

from actplane.codegen import kernel, layout
from actplane.codegen.clauses import Judge
from actplane.codegen.frame import argument, conclude, current_state, own_scratch, refuse
from actplane.codegen.paths import path_functions
from actplane.codegen.report import report_functions
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder
from actplane.ir.policy import Effect, Operation

MAX_STRINGS = 1 << 22
"""More arguments than any exec can have: the kernel's limit is 2 MiB for all of them."""


def exec_check(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program that judges an exec before it happens (bprm_check_security)."""
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    scratch = own_scratch(f, task, denied)
    bprm = argument(f, 0, "bprm")
    conclusion = f.new_block("conclusion")
    judge.begin(f, scratch, state, ("exec", "argument"))
    called = f.load(bprm, field=kernel.BPRM_FILENAME, name="called")
    interpreter = f.load(bprm, field=kernel.BPRM_INTERPRETER, name="interpreter")
    with f.when(called, "!=", interpreter):  # A script has been judged; its interpreter follows.
        judge.recognizers["exec"].restore_identity(f, scratch)
    _recognize(f, judge, scratch, bprm, conclusion, trusts_called=False)
    f.call("argument_vector", scratch)
    f.call("walk_arguments", scratch)
    f.call("judge_exec", scratch, state)
    # What is only to be notified is so when the exec has committed.
    conclude(f, scratch, layout.EVENT_EXEC, conclusion, denied, layout.VERDICT_BLOCK | layout.VERDICT_KILL)
    f.ret(0)
    return (
        f.finish(),
        *_shared(judge),
        _argument_vector(),
        *report_functions(judge, can_deny=True, is_exec_check=True),
    )


def exec_commit(judge: Judge, name: str, *, is_checked: bool) -> tuple[bc.Function, ...]:
    """
    Return the program that runs when an exec has committed (sched_process_exec).

    `is_checked`: `exec_check` has looked at it. It alone saw the file of a script, of which only the name
    as called is left now, so what it recognised still counts.
    """
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    scratch = f.helper(
        "bpf_task_storage_get", f.map_address("scratch"), task, 0, kernel.STORAGE_CREATE, result="scratch"
    )
    with f.when(scratch, "==", 0):
        f.helper("bpf_send_signal", kernel.SIGKILL)
        f.ret(0)
    bprm = argument(f, 2, "bprm")
    conclusion = f.new_block("conclusion")
    judge.begin(f, scratch, state, ("exec", "argument"))
    if is_checked:
        judge.recognizers["exec"].restore_identity(f, scratch)
    _recognize(f, judge, scratch, bprm, conclusion, trusts_called=not is_checked)
    f.store(scratch, layout.SCRATCH_VECTOR, 0)
    mm = f.load(task, field=kernel.TASK_MM, name="mm")
    f.store(scratch, layout.SCRATCH_STRING, f.load(mm, field=kernel.MM_ARG_START))
    f.store(scratch, layout.SCRATCH_STRINGS_LEFT, f.load(bprm, 0, 4, field=kernel.BPRM_ARGC))
    f.call("walk_arguments", scratch)
    if _denies_by_argument(judge):
        flags = f.load(scratch, layout.SCRATCH_FLAGS, name="flags")
        with f.when(flags, "&", layout.FLAG_UNREADABLE):
            refuse(f, scratch, layout.CAUSE_ARGUMENTS_UNREADABLE, conclusion)
    f.call("judge_exec", scratch, state)
    conclude(f, scratch, layout.EVENT_EXEC_COMMITTED, conclusion, 0)
    # Whoever was killed has passed no gate.
    judge.replace_labels(f, scratch, state)
    judge.commit_exec(f, scratch, state)
    judge.commit_invalidations(f, scratch, "exec")
    f.ret(0)
    return (
        f.finish(),
        *_shared(judge),
        *report_functions(judge, can_deny=False, is_exec_check=False),
    )


def _denies_by_argument(judge: Judge) -> bool:
    return any(c.argument is not None and c.effect is not Effect.NOTIFY for c in judge.policy.clauses)


def _shared(judge: Judge) -> tuple[bc.Function, ...]:
    functions = [
        judge.judge_function("judge_exec", [Operation.EXEC]),
        *path_functions(),
        *judge.recognizers["exec"].functions(),
        _walk_arguments(judge),
        _argument_step(judge),
    ]
    if "argument" in judge.recognizers:
        functions.extend(judge.recognizers["argument"].functions())
    return tuple(functions)


def _recognize(
    f: FunctionBuilder, judge: Judge, scratch: bc.Value, bprm: bc.Value, conclusion: str, *, trusts_called: bool
) -> None:
    """
    Emit: facts of the executed file's path and of the name it was called by, and the labels they give.

    In a chroot of the caller's making, any file can be called by any path. So of a path as called only
    what a clause forbids counts, and its last component as a name, unless `trusts_called`: where an exec is
    seen only when it has committed, nothing else is left of a script.
    """
    f.store(scratch, layout.SCRATCH_ACCESS, 0)
    file = f.load(bprm, field=kernel.BPRM_FILE, name="file")
    dentry = f.load(file, field=kernel.FILE_DENTRY, name="dentry")
    mount = f.load(file, field=kernel.FILE_MOUNT, name="mount")
    recognizer = judge.recognizers["exec"]
    length = f.call("path_of", scratch, dentry, mount, result="length")
    with f.when(length, "==", 0):
        f.store(scratch, layout.SCRATCH_TARGET_BYTES, 0)
        refuse(f, scratch, layout.CAUSE_NO_PATH, conclusion)
    f.update(length, "+", 1)
    target = f.load(scratch, layout.SCRATCH_TARGET, name="target")
    recognizer.begin(f, scratch)
    recognizer.walk(f, scratch, target, length)
    if not trusts_called:
        recognizer.keep_identity(f, scratch)
    called = f.load(bprm, field=kernel.BPRM_FILENAME, name="called")
    text = f.op(scratch, "+", layout.SCRATCH_TEXT, "text")
    length = f.helper("bpf_probe_read_kernel_str", text, layout.TEXT_PATH_END, called, result="length")
    with f.when(length, ">", layout.TEXT_PATH_END):  # An error, as a number without sign.
        f.store(scratch, layout.SCRATCH_TARGET_BYTES, 0)
        refuse(f, scratch, layout.CAUSE_NO_PATH, conclusion)
    recognizer.begin(f, scratch)
    recognizer.walk(f, scratch, 0, length)
    if trusts_called:
        recognizer.keep_identity(f, scratch)
    else:
        recognizer.add_names_to_identity(f, scratch, judge.policy.patterns)
    target = f.load(scratch, layout.SCRATCH_TARGET, name="target")
    with f.when(length, ">", target):  # It has overwritten the path, which is the target of reports.
        f.call("path_of", scratch, dentry, mount)
    judge.add_source_labels(f, scratch, "exec")
    judge.apply_transforms(f, scratch)


def _argument_vector() -> bc.Function:
    """
    Return `argument_vector(scratch)`: where the caller of execve or execveat put its argv.

    A 32-bit system call passes other registers; its strings are judged by the second look.
    """
    f = FunctionBuilder("argument_vector", ["scratch"])
    (scratch,) = f.parameters
    f.store(scratch, layout.SCRATCH_VECTOR, 0)
    f.store(scratch, layout.SCRATCH_STRING, 0)
    f.store(scratch, layout.SCRATCH_STRINGS_LEFT, 0)
    task = f.helper("bpf_get_current_task_btf", result="task")
    status = f.load(task, 0, 4, "status", kernel.TASK_STATUS)
    with f.when(status, "&", kernel.TS_COMPAT):
        f.ret(0)
    regs = f.helper("bpf_task_pt_regs", task, result="regs")
    call = f.load(regs, field=kernel.REGS_SYSCALL, name="call")
    with f.when(call, "==", kernel.SYSCALL_EXECVE):
        f.store(scratch, layout.SCRATCH_VECTOR, f.load(regs, field=kernel.REGS_SI))
    with f.when(call, "==", kernel.SYSCALL_EXECVEAT):
        f.store(scratch, layout.SCRATCH_VECTOR, f.load(regs, field=kernel.REGS_DX))
    f.ret(0)
    return f.finish()


def _walk_arguments(judge: Judge) -> bc.Function:
    """
    Return `walk_arguments(scratch)`: facts of argv[0] as a name, and of every further argument.

    The strings are those that SCRATCH_VECTOR points to, or if it is 0, SCRATCH_STRINGS_LEFT strings
    one after the other from SCRATCH_STRING on. They are read piece by piece, so there is no limit.
    """
    f = FunctionBuilder("walk_arguments", ["scratch"])
    (scratch,) = f.parameters
    vector = f.load(scratch, layout.SCRATCH_VECTOR, name="vector")
    string = f.load(scratch, layout.SCRATCH_STRING, name="string")
    f.update(vector, "|", string)
    with f.when(vector, "==", 0):
        f.ret(0)
    f.store(scratch, layout.SCRATCH_STATUS, 0)
    judge.recognizers["exec"].begin(f, scratch)
    context = f.frame_address(f.slot("context", 8))
    f.store(context, 0, scratch)
    f.helper("bpf_loop", MAX_STRINGS, f.function("argument_step"), context, 0)
    f.ret(0)
    return f.finish()


def _argument_step(judge: Judge) -> bc.Function:
    """Return the step that reads one string, or one piece of it. SCRATCH_STATUS is 0 in argv[0]."""
    f = FunctionBuilder("argument_step", ["index", "context"])
    scratch = f.load(f.parameters[1], name="scratch")
    string = f.load(scratch, layout.SCRATCH_STRING, name="string")
    with f.when(string, "==", 0):
        vector = f.load(scratch, layout.SCRATCH_VECTOR, name="vector")
        pointer = f.op(scratch, "+", layout.SCRATCH_KERNEL, "pointer")
        failed = f.helper("bpf_probe_read_user", pointer, 8, vector, result="failed")
        with f.when(failed, "!=", 0):
            f.store(scratch, layout.SCRATCH_FLAGS, layout.FLAG_UNREADABLE)
            f.ret(1)
        f.assign(string, f.load(scratch, layout.SCRATCH_KERNEL))
        with f.when(string, "==", 0):
            f.ret(1)
        f.update(vector, "+", 8)
        f.store(scratch, layout.SCRATCH_VECTOR, vector)
    chunk = f.op(scratch, "+", layout.SCRATCH_TEXT + layout.TEXT_CHUNK, "chunk")
    length = f.helper("bpf_probe_read_user_str", chunk, layout.TEXT_CHUNK_BYTES, string, result="length")
    with f.when(length, "s<", 0):
        f.store(scratch, layout.SCRATCH_FLAGS, layout.FLAG_UNREADABLE)
        f.ret(1)
    with f.when(length, "==", 0):  # So kernels before 6.13 say of an empty string: its NUL is not counted.
        f.assign(length, 1)
    f.update(string, "+", length)
    f.store(scratch, layout.SCRATCH_ENDED, 1)
    with f.when(length, "==", layout.TEXT_CHUNK_BYTES):  # The NUL is ours: the string may go on.
        f.update(length, "-", 1)
        f.update(string, "-", 1)
        f.store(scratch, layout.SCRATCH_ENDED, 0)
    f.store(scratch, layout.SCRATCH_STRING, string)
    _feed(f, judge, scratch, length)
    ended = f.load(scratch, layout.SCRATCH_ENDED, name="ended")
    with f.when(ended, "==", 0):
        f.ret(0)
    if "argument" not in judge.recognizers:
        f.ret(1)
        return f.finish()
    status = f.load(scratch, layout.SCRATCH_STATUS, name="status")
    with f.when(status, "==", 0):
        judge.recognizers["argument"].begin(f, scratch)
        f.store(scratch, layout.SCRATCH_STATUS, 1)
    vector = f.load(scratch, layout.SCRATCH_VECTOR, name="vector")
    with f.when(vector, "!=", 0):
        f.store(scratch, layout.SCRATCH_STRING, 0)
        f.ret(0)
    left = f.load(scratch, layout.SCRATCH_STRINGS_LEFT, name="left")
    f.update(left, "-", 1)
    f.store(scratch, layout.SCRATCH_STRINGS_LEFT, left)
    with f.when(left, "s<", 1):
        f.ret(1)
    f.ret(0)
    return f.finish()


def _feed(f: FunctionBuilder, judge: Judge, scratch: bc.Value, length: bc.Value) -> None:
    if "argument" not in judge.recognizers:
        judge.recognizers["exec"].walk(f, scratch, layout.TEXT_CHUNK, length)
        return
    status = f.load(scratch, layout.SCRATCH_STATUS, name="status")
    with f.choice(status, "==", 0) as otherwise:
        judge.recognizers["exec"].walk(f, scratch, layout.TEXT_CHUNK, length)
        otherwise()
        judge.recognizers["argument"].walk(f, scratch, layout.TEXT_CHUNK, length)
