"""
Judging accesses to files: opening, later reads and writes, and changes of the name space.

An access is judged when a file is opened or named, before anything happens. A read or write through
an open descriptor is judged again only if labels would flow that have not flowed before, so the
usual read or write costs two look-ups. If a gate is closed by writes, each write to a file is looked
at: the gate may have been passed since the file was opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.codegen import kernel, layout, network
from actplane.codegen.channels import deliver, notify_readers, wait
from actplane.codegen.clauses import Judge, signed32, words_of
from actplane.codegen.frame import argument, conclude, current_state, own_scratch, refuse
from actplane.codegen.paths import NAMELESS, path_functions
from actplane.codegen.report import report_functions
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder
from actplane.ir.policy import Operation
from actplane.ir.regex import MOVED_FOLDER

OBJECTS = MapSpec("objects", MapType.BPF_MAP_TYPE_INODE_STORAGE, 4, layout.OBJECT_BYTES, 0, flags=1)

FILE_OPERATIONS = (Operation.OPEN, Operation.READ, Operation.WRITE, Operation.UNLINK)
ACCESSES = (Operation.OPEN, Operation.READ, Operation.WRITE)
CHANGES = (Operation.WRITE,)
REMOVALS = (Operation.WRITE, Operation.UNLINK)

Program = Callable[[Judge, str, int], tuple[bc.Function, ...]]


def file_open(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `file_open(file)`: also the open of a program by exec."""
    f, scratch, state = _begin(judge, name, denied)
    file = argument(f, 0, "file")
    inode = f.load(file, field=kernel.FILE_INODE, name="inode")
    mode = f.load(file, 0, 4, "mode", kernel.FILE_MODE)
    flags = f.load(file, 0, 4, "flags", kernel.FILE_FLAGS)
    access = f.let(layout.ACCESS_OPEN, "access")
    reads = f.op(flags, "&", kernel.FMODE_EXEC, "reads")
    f.update(reads, "|", mode)
    with f.when(reads, "&", kernel.FMODE_READ | kernel.FMODE_EXEC):
        f.update(access, "|", layout.ACCESS_READ | layout.ACCESS_GAIN)
    with f.when(mode, "&", kernel.FMODE_WRITE):
        f.update(access, "|", layout.ACCESS_WRITE | layout.ACCESS_GIVE)
    with f.when(flags, "&", kernel.O_TRUNC):
        f.update(access, "|", layout.ACCESS_WRITE)
    with f.when(_is_stream(f, inode), "==", 0):
        f.update(access, "&", ~(layout.ACCESS_GAIN | layout.ACCESS_GIVE))
    f.store(scratch, layout.SCRATCH_ACCESS, access)
    dentry = f.load(file, field=kernel.FILE_DENTRY, name="dentry")
    mount = f.load(file, field=kernel.FILE_MOUNT, name="mount")
    _examine(f, judge, scratch, state, dentry, mount, inode, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, ACCESSES))


def file_permission(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `file_permission(file, mask)`: each read and write of an open file."""
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    file = argument(f, 0, "file")
    mask = argument(f, 1, "mask")
    functions: list[bc.Function] = []
    if judge.flowing or judge.receives:
        inode = f.load(file, field=kernel.FILE_INODE, name="inode")
        kind = f.load(inode, 0, 2, "kind", kernel.INODE_MODE)
        f.update(kind, "&", kernel.S_IFMT)
        with f.when(kind, "==", kernel.S_IFSOCK):
            functions.extend(network.by_descriptor(f, judge, task, state, file, mask, denied))
    if judge.closes_on_write:
        _close_gates(f, judge, task, state, file, mask, denied)
        functions.append(_close_gates_function(judge))
    if judge.flowing:
        _flow(f, judge, task, state, file, mask, denied)
    f.ret(0)
    return (f.finish(), *functions, *_shared(judge, ACCESSES))


def mmap_file(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """
    Return the program for `mmap_file(file, reqprot, prot, flags)`; `file` is null for memory.

    Kernels from 6.2 to 6.12 hold `file` to be never null: they take a comparison with null out and
    let a load through it crash. Having passed through memory it is a number, and can be compared.
    """
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    scratch = own_scratch(f, task, denied)
    file = argument(f, 0, "file")
    f.store(scratch, layout.SCRATCH_KERNEL, file)
    address = f.load(scratch, layout.SCRATCH_KERNEL, name="address")
    for pointer in (address, file):
        with f.when(pointer, "==", 0):
            f.ret(0)
    mask = f.let(kernel.MAY_READ, "mask")
    protection = argument(f, 2, "protection")
    flags = argument(f, 3, "flags")
    with f.when(protection, "&", kernel.PROT_WRITE), f.when(flags, "&", kernel.MAP_SHARED):
        f.update(mask, "|", kernel.MAY_WRITE)
    _flow(f, judge, task, state, file, mask, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, ACCESSES))


def _flow(
    f: FunctionBuilder,
    judge: Judge,
    task: bc.Value,
    state: bc.Value,
    file: bc.Value,
    mask: bc.Value,
    denied: int,
) -> None:
    """Emit: judge an access by descriptor if it would carry labels that have not been carried."""
    inode = f.load(file, field=kernel.FILE_INODE, name="inode")
    with f.when(_is_stream(f, inode), "==", 0):
        f.ret(0)
    # Whoever reads from a pipe may have to wait there.
    waits = f.let(0, "waits")
    kind = f.load(inode, 0, 2, "kind", kernel.INODE_MODE)
    f.update(kind, "&", kernel.S_IFMT)
    with f.when(kind, "==", kernel.S_IFIFO), f.when(mask, "&", kernel.MAY_READ):
        f.assign(waits, kernel.STORAGE_CREATE)
    labels = f.helper("bpf_inode_storage_get", f.map_address("objects"), inode, 0, waits, result="labels")
    with f.when(waits, "!=", 0):
        with f.when(labels, "==", 0):
            f.ret(denied)
        wait(f, state, labels)
    access = f.let(0, "access")
    with f.when(mask, "&", kernel.MAY_READ), f.when(labels, "!=", 0):
        for index, flowing in words_of(judge.flowing).items():
            new = f.load(labels, 4 * index, 4, "new")
            had = f.load(state, layout.STATE_LABELS + 4 * index, 4, "had")
            f.update(had, "^", -1)
            f.update(new, "&", had)
            with f.when(new, "&", signed32(flowing), width=32):
                f.update(access, "|", layout.ACCESS_READ | layout.ACCESS_GAIN)
    with f.when(mask, "&", kernel.MAY_WRITE):
        for index, flowing in words_of(judge.flowing).items():
            new = f.load(state, layout.STATE_LABELS + 4 * index, 4, "new")
            with f.when(labels, "!=", 0):
                had = f.load(labels, 4 * index, 4, "had")
                f.update(had, "^", -1)
                f.update(new, "&", had)
            with f.when(new, "&", signed32(flowing), width=32):
                f.update(access, "|", layout.ACCESS_WRITE | layout.ACCESS_GIVE)
    with f.when(access, "==", 0):
        f.ret(0)
    scratch = own_scratch(f, task, denied)
    judge.begin(f, scratch, state, ("file",))
    f.store(scratch, layout.SCRATCH_ACCESS, access)
    dentry = f.load(file, field=kernel.FILE_DENTRY, name="dentry")
    mount = f.load(file, field=kernel.FILE_MOUNT, name="mount")
    _examine(f, judge, scratch, state, dentry, mount, inode, denied)


def _close_gates(
    f: FunctionBuilder,
    judge: Judge,
    task: bc.Value,
    state: bc.Value,
    file: bc.Value,
    mask: bc.Value,
    denied: int,
) -> None:
    """Emit: a write to a file closes the gates that writes to it close, as opening it did."""
    inode = f.load(file, field=kernel.FILE_INODE, name="inode")
    kind = f.load(inode, 0, 2, "kind", kernel.INODE_MODE)
    f.update(kind, "&", kernel.S_IFMT)
    with f.when(kind, "==", kernel.S_IFREG), f.when(mask, "&", kernel.MAY_WRITE):
        scratch = own_scratch(f, task, denied)
        judge.begin(f, scratch, state, ("file",))
        f.store(scratch, layout.SCRATCH_ACCESS, layout.ACCESS_WRITE)
        dentry = f.load(file, field=kernel.FILE_DENTRY, name="dentry")
        mount = f.load(file, field=kernel.FILE_MOUNT, name="mount")
        f.call("close_gates", scratch, dentry, mount)


def _close_gates_function(judge: Judge) -> bc.Function:
    """
    Return `close_gates(scratch, dentry, mount)`.

    A path that is too long to judge could not be opened either.
    """
    f = FunctionBuilder("close_gates", ["scratch", "dentry", "mount"])
    scratch, dentry, mount = f.parameters
    length = f.call("path_of", scratch, dentry, mount, result="length")
    with f.when(length, "!=", 0):
        _recognize(f, judge, scratch, length)
        judge.commit_invalidations(f, scratch, "file")
    f.ret(0)
    return f.finish()


def _is_stream(f: FunctionBuilder, inode: bc.Value) -> bc.Value:
    """
    Emit: 0 if bytes written to an object cannot be read from it by others as a file's can.

    Character devices and folders carry no labels: /dev/null hands nothing on, and a terminal would
    taint every process that has it. Sockets have hooks of their own. All eventfds of the machine
    share one inode.
    """
    kind = f.load(inode, 0, 2, "kind", kernel.INODE_MODE)
    f.update(kind, "&", kernel.S_IFMT)
    answer = f.let(1, "is_stream")
    for other in (kernel.S_IFCHR, kernel.S_IFDIR, kernel.S_IFSOCK):
        with f.when(kind, "==", other):
            f.assign(answer, 0)
    superblock = f.load(inode, field=kernel.INODE_SUPERBLOCK, name="superblock")
    with f.when(f.load(superblock, field=kernel.SUPERBLOCK_MAGIC, name="magic"), "==", kernel.ANON_INODE_FS_MAGIC):
        f.assign(answer, 0)
    return answer


# Names


def _named(
    f: FunctionBuilder,
    judge: Judge,
    scratch: bc.Value,
    state: bc.Value,
    folder: bc.Value,
    dentry: bc.Value,
    access: int,
    denied: int,
    moved: bc.Value | None = None,
) -> None:
    """Emit: judge a change of the name `dentry` below `folder` (a path); `moved` holds 0 or ACCESS_FOLDER."""
    f.store(scratch, layout.SCRATCH_ACCESS, access if moved is None else f.op(moved, "|", access, "access"))
    mount = f.load(folder, field=kernel.PATH_MOUNT, name="mount")
    inode = f.load(dentry, field=kernel.DENTRY_INODE, name="inode") if access & layout.ACCESS_STAMP else 0
    _examine(f, judge, scratch, state, dentry, mount, inode, denied)


def create(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `path_mknod`, `path_mkdir` and `path_symlink(dir, dentry, ...)`."""
    f, scratch, state = _begin(judge, name, denied)
    folder, dentry = argument(f, 0, "folder"), argument(f, 1, "dentry")
    _named(f, judge, scratch, state, folder, dentry, layout.ACCESS_WRITE, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, CHANGES))


def remove(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `path_unlink` and `path_rmdir(dir, dentry)`."""
    f, scratch, state = _begin(judge, name, denied)
    folder, dentry = argument(f, 0, "folder"), argument(f, 1, "dentry")
    _named(f, judge, scratch, state, folder, dentry, layout.ACCESS_WRITE | layout.ACCESS_UNLINK, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, REMOVALS))


def rename(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """
    Return the program for `path_rename(old_dir, old_dentry, new_dir, new_dentry)`.

    Two names may also be exchanged, so either of them can be a folder's.
    """
    f, scratch, state = _begin(judge, name, denied)
    moved = f.let(0, "moved")
    for index in (1, 3):
        inode = f.load(argument(f, index, "dentry"), field=kernel.DENTRY_INODE, name="inode")
        with f.when(inode, "!=", 0):
            kind = f.load(inode, 0, 2, "kind", kernel.INODE_MODE)
            f.update(kind, "&", kernel.S_IFMT)
            with f.when(kind, "==", kernel.S_IFDIR):
                f.assign(moved, layout.ACCESS_FOLDER)
    access = layout.ACCESS_WRITE | layout.ACCESS_STAMP
    _named(f, judge, scratch, state, argument(f, 0, "folder"), argument(f, 1, "dentry"), access, denied, moved)
    judge.begin(f, scratch, state, ("file",))
    access = layout.ACCESS_WRITE
    _named(f, judge, scratch, state, argument(f, 2, "folder"), argument(f, 3, "dentry"), access, denied, moved)
    f.ret(0)
    return (f.finish(), *_shared(judge, CHANGES, moves=True))


def link(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `path_link(old_dentry, new_dir, new_dentry)`: links stay within a mount."""
    f, scratch, state = _begin(judge, name, denied)
    access = layout.ACCESS_WRITE | layout.ACCESS_STAMP
    _named(f, judge, scratch, state, argument(f, 1, "folder"), argument(f, 0, "dentry"), access, denied)
    judge.begin(f, scratch, state, ("file",))
    access = layout.ACCESS_WRITE
    _named(f, judge, scratch, state, argument(f, 1, "folder"), argument(f, 2, "dentry"), access, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, CHANGES))


def path_truncate(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `path_truncate(path)`."""
    f, scratch, state = _begin(judge, name, denied)
    path = argument(f, 0, "path")
    f.store(scratch, layout.SCRATCH_ACCESS, layout.ACCESS_WRITE)
    dentry = f.load(path, field=kernel.PATH_DENTRY, name="dentry")
    mount = f.load(path, field=kernel.PATH_MOUNT, name="mount")
    _examine(f, judge, scratch, state, dentry, mount, 0, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, CHANGES))


def file_truncate(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `file_truncate(file)`, which kernels since 6.2 call for ftruncate."""
    f, scratch, state = _begin(judge, name, denied)
    file = argument(f, 0, "file")
    f.store(scratch, layout.SCRATCH_ACCESS, layout.ACCESS_WRITE)
    dentry = f.load(file, field=kernel.FILE_DENTRY, name="dentry")
    mount = f.load(file, field=kernel.FILE_MOUNT, name="mount")
    _examine(f, judge, scratch, state, dentry, mount, 0, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, CHANGES))


# What every access comes to


def _begin(judge: Judge, name: str, denied: int) -> tuple[FunctionBuilder, bc.Value, bc.Value]:
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    scratch = own_scratch(f, task, denied)
    judge.begin(f, scratch, state, ("file",))
    return f, scratch, state


def _examine(
    f: FunctionBuilder,
    judge: Judge,
    scratch: bc.Value,
    state: bc.Value,
    dentry: bc.Value,
    mount: bc.Value,
    inode: bc.Operand,
    denied: int,
) -> None:
    """Emit: return `denied` unless the access in SCRATCH_ACCESS to an object is allowed."""
    refused = f.call("examine", scratch, state, dentry, mount, inode, result="refused")
    with f.when(refused, "!=", 0):
        f.ret(denied)


def _shared(judge: Judge, operations: Sequence[Operation], *, moves: bool = False) -> tuple[bc.Function, ...]:
    functions = [
        _examine_function(judge, operations, moves),
        *path_functions(),
        *report_functions(judge, can_deny=True, is_exec_check=False),
        deliver(),
    ]
    if "file" in judge.recognizers:
        functions.extend(judge.recognizers["file"].functions())
    if judge.clauses(operations):
        functions.append(judge.judge_function("judge_file", operations))
    return tuple(functions)


def _examine_function(judge: Judge, operations: Sequence[Operation], moves: bool) -> bc.Function:
    """
    Return `examine(scratch, state, dentry, mount, inode)`; its result is 1 if the access is denied.

    `moves`: the access may be ACCESS_FOLDER.
    """
    f = FunctionBuilder("examine", ["scratch", "state", "dentry", "mount", "inode"])
    scratch, state, dentry, mount, inode = f.parameters
    conclusion = f.new_block("conclusion")
    access = f.load(scratch, layout.SCRATCH_ACCESS, name="access")
    length = f.call("path_of", scratch, dentry, mount, result="length")
    with f.when(length, "==", 0):
        f.store(scratch, layout.SCRATCH_TARGET_BYTES, 0)
        refuse(f, scratch, layout.CAUSE_NO_PATH, conclusion)
    if "file" in judge.recognizers:
        _recognize(f, judge, scratch, length)
        if moves:
            with f.when(access, "&", layout.ACCESS_FOLDER):
                _recognize_moved(f, judge, scratch, length)
    with f.when(access, "&", layout.ACCESS_READ):
        judge.add_source_labels(f, scratch, "file")
    if judge.flowing:
        with f.when(access, "&", layout.ACCESS_GAIN), f.when(inode, "!=", 0):
            _gain(f, judge, scratch, inode)
    if judge.clauses(operations):
        f.call("judge_file", scratch, state)
    conclude(f, scratch, layout.EVENT_FILE, conclusion, 1)
    judge.commit_labels(f, scratch, state)
    judge.commit_invalidations(f, scratch, "file")
    if judge.flowing:
        with f.when(access, "&", layout.ACCESS_GIVE), f.when(inode, "!=", 0):
            _give(f, judge, scratch, inode)
        if "file" in judge.recognizers:
            with f.when(access, "&", layout.ACCESS_STAMP), f.when(inode, "!=", 0):
                for pair in range(judge.label_words // 2):
                    f.store(scratch, layout.SCRATCH_LABELS + 8 * pair, 0)
                judge.add_source_labels(f, scratch, "file")
                _give(f, judge, scratch, inode)
    f.ret(0)
    return f.finish()


def _recognize(f: FunctionBuilder, judge: Judge, scratch: bc.Value, length: bc.Value) -> None:
    """Emit: facts of the path, its final NUL included. A pipe has no path to match."""
    target = f.load(scratch, layout.SCRATCH_TARGET, name="target")
    recognizer = judge.recognizers["file"]
    named, unnamed, after = f.new_block("named"), f.new_block("unnamed"), f.new_block("after")
    status = f.load(scratch, layout.SCRATCH_STATUS, name="status")
    f.branch(status, "==", NAMELESS, unnamed, named)
    f.start(unnamed)
    f.branch(length, "==", 1, after, named)
    f.start(named)
    f.update(length, "+", 1)
    recognizer.begin(f, scratch)
    recognizer.walk(f, scratch, target, length)
    f.start(after)


def _recognize_moved(f: FunctionBuilder, judge: Judge, scratch: bc.Value, length: bc.Value) -> None:
    """Emit: facts of what lies below the folder whose path was just recognized, its final NUL included."""
    recognizer = judge.recognizers["file"]
    end = MOVED_FOLDER + b"\0"
    f.store(scratch, layout.SCRATCH_TEXT + layout.TEXT_CHUNK, int.from_bytes(end, "little"), 4)
    recognizer.begin(f, scratch)
    recognizer.walk(f, scratch, f.load(scratch, layout.SCRATCH_TARGET), f.op(length, "-", 1, "without_end"))
    recognizer.walk(f, scratch, layout.TEXT_CHUNK, len(end))


def _gain(f: FunctionBuilder, judge: Judge, scratch: bc.Value, inode: bc.Value) -> None:
    labels = f.helper("bpf_inode_storage_get", f.map_address("objects"), inode, 0, 0, result="labels")
    with f.when(labels, "!=", 0):
        for pair in range(judge.label_words // 2):
            word = f.load(scratch, layout.SCRATCH_LABELS + 8 * pair, name="word")
            f.update(word, "|", f.load(labels, 8 * pair))
            f.store(scratch, layout.SCRATCH_LABELS + 8 * pair, word)


def _give(f: FunctionBuilder, judge: Judge, scratch: bc.Value, inode: bc.Value) -> None:
    """Emit: the object gains those labels of the subject that are worth carrying."""
    worth = f.let(0, "worth")
    for index, flowing in words_of(judge.flowing).items():
        word = f.load(scratch, layout.SCRATCH_LABELS + 4 * index, 4, "word")
        f.update(word, "&", signed32(flowing), width=32)
        f.update(worth, "|", word)
    with f.when(worth, "!=", 0):
        labels = f.helper(
            "bpf_inode_storage_get", f.map_address("objects"), inode, 0, kernel.STORAGE_CREATE, result="labels"
        )
        with f.when(labels, "==", 0):
            f.ret(1)
        for index, flowing in words_of(judge.flowing).items():
            word = f.load(scratch, layout.SCRATCH_LABELS + 4 * index, 4, "word")
            f.update(word, "&", signed32(flowing), width=32)
            f.atomic("|", labels, 4 * index, word, 4)
        notify_readers(f, labels, 1)
