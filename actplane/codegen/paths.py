"""
The absolute path of a file, without `bpf_d_path`.

Starting at a dentry, names are written backwards into the scratch text, up through every mount to
the root of the mount tree. Unlike `bpf_d_path` this works in every program type, ignores a chroot
of the process, adds no " (deleted)", and can name a file that does not exist yet.

A mount that is attached nowhere (cloned by open_tree, unmounted while in use) has no way up to the root
of the mount tree, so what lies in it has no path that means anything.
"""

from __future__ import annotations

from actplane.codegen import kernel, layout
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder
from actplane.ir.bytecode import Function

MAX_STEPS = 4096
"""Names and mounts on the way up; a path of 4,096 bytes has at most 2,048 names."""

RUNNING = 0
NO_PATH = 1
"""Too long, or in a mount that is attached nowhere."""
DONE = 2
NAMELESS = 3
"""Done, at an object outside every mount: a pipe has no name at all, a memfd only its own."""


def path_functions() -> tuple[Function, ...]:
    """
    Return `path_of(scratch, dentry, mount)`, which leaves the path in the scratch text.

    It returns the length of the path, 0 if there is none or it does not fit; the path starts at SCRATCH_TARGET and
    ends with NUL at TEXT_PATH_END. `mount` is a vfsmount.
    """
    return (_path_of(), _path_step())


def _path_of() -> Function:
    f = FunctionBuilder("path_of", ["scratch", "dentry", "mount"])
    scratch, dentry, mount = f.parameters
    f.store(scratch, layout.SCRATCH_DENTRY, dentry)
    f.store(scratch, layout.SCRATCH_MOUNT, mount)
    f.store(scratch, layout.SCRATCH_POSITION, layout.TEXT_PATH_END)
    f.store(scratch, layout.SCRATCH_STATUS, RUNNING)
    address = f.field_address(mount, kernel.MOUNT_ROOT)
    root = f.op(scratch, "+", layout.SCRATCH_MOUNT_ROOT)
    f.helper("bpf_probe_read_kernel", root, 8, address)
    context = f.frame_address(f.slot("context", 8))
    f.store(context, 0, scratch)
    f.helper("bpf_loop", MAX_STEPS, f.function("path_step"), context, 0)
    status = f.load(scratch, layout.SCRATCH_STATUS, name="status")
    with f.when(status, "<", DONE):
        f.ret(0)
    position = f.load(scratch, layout.SCRATCH_POSITION, name="position")
    with f.when(position, "==", layout.TEXT_PATH_END):
        f.assign(position, layout.TEXT_PATH_END - 1)
        f.store(scratch, layout.SCRATCH_TEXT + layout.TEXT_PATH_END - 1, ord("/"), 1)
    f.store(scratch, layout.SCRATCH_TARGET, position)
    length = f.let(layout.TEXT_PATH_END, "length")
    f.update(length, "-", position)
    f.store(scratch, layout.SCRATCH_TARGET_BYTES, length)
    f.ret(length)
    return f.finish()


def _path_step() -> Function:
    f = FunctionBuilder("path_step", ["index", "context"])
    scratch = f.load(f.parameters[1], name="scratch")
    dentry = f.load(scratch, layout.SCRATCH_DENTRY, name="dentry")
    root = f.load(scratch, layout.SCRATCH_MOUNT_ROOT, name="root")
    with f.when(dentry, "==", root):
        _climb_mount(f, scratch)
    name = f.op(scratch, "+", layout.SCRATCH_KERNEL, "copy")
    f.helper("bpf_probe_read_kernel", name, kernel.DENTRY_PREFIX_BYTES, dentry)
    parent = f.load(scratch, layout.SCRATCH_KERNEL, name="parent", field=kernel.DENTRY_PARENT)
    length = f.load(scratch, layout.SCRATCH_KERNEL, 4, "length", kernel.DENTRY_NAME_BYTES)
    text = f.load(scratch, layout.SCRATCH_KERNEL, name="text", field=kernel.DENTRY_NAME)
    f.update(length, "&", 255)
    position = f.load(scratch, layout.SCRATCH_POSITION, name="position")
    f.update(position, "-", length)
    with f.when(position, "s<", 1):
        f.store(scratch, layout.SCRATCH_STATUS, NO_PATH)
        f.ret(1)
    _copy_name(f, scratch, position, length, text)
    f.update(position, "-", 1)
    _put_slash(f, scratch, position)
    f.store(scratch, layout.SCRATCH_POSITION, position)
    f.store(scratch, layout.SCRATCH_DENTRY, parent)
    with f.when(parent, "==", dentry):
        f.store(scratch, layout.SCRATCH_STATUS, NAMELESS)
        f.ret(1)
    f.ret(0)
    return f.finish()


def _climb_mount(f: FunctionBuilder, scratch: bc.Value) -> None:
    mount = f.load(scratch, layout.SCRATCH_MOUNT, name="mount")
    offset = f.let(0, "offset")
    offset = f.field_address(offset, kernel.MOUNT_OF_VFSMOUNT, "offset")
    f.update(mount, "-", offset)
    slot = f.op(scratch, "+", layout.SCRATCH_KERNEL, "slot")
    f.helper("bpf_probe_read_kernel", slot, 8, f.field_address(mount, kernel.MOUNT_PARENT))
    parent = f.load(scratch, layout.SCRATCH_KERNEL, name="parent")
    with f.when(parent, "==", mount):  # The root of a mount tree.
        _end_at_root(f, scratch, mount)
    target = f.op(scratch, "+", layout.SCRATCH_DENTRY, "target")
    f.helper("bpf_probe_read_kernel", target, 8, f.field_address(mount, kernel.MOUNT_POINT))
    outer = f.op(parent, "+", offset, "outer")
    f.store(scratch, layout.SCRATCH_MOUNT, outer)
    root = f.op(scratch, "+", layout.SCRATCH_MOUNT_ROOT, "root")
    f.helper("bpf_probe_read_kernel", root, 8, f.field_address(outer, kernel.MOUNT_ROOT))
    f.ret(0)


def _end_at_root(f: FunctionBuilder, scratch: bc.Value, mount: bc.Value) -> None:
    """
    Emit: done, if this root is also that of the process's mount namespace, whose copies all have the same.

    Mounts of the kernel's own are in no namespace, and neither are those of the layers below an overlay.
    """
    f.store(scratch, layout.SCRATCH_STATUS, DONE)
    slot = f.op(scratch, "+", layout.SCRATCH_KERNEL, "slot")
    f.store(scratch, layout.SCRATCH_KERNEL + 8, 0)
    f.helper("bpf_probe_read_kernel", slot, 8, f.field_address(mount, kernel.MOUNT_NAMESPACE))
    f.update(slot, "+", 8)
    f.helper("bpf_probe_read_kernel", slot, 4, f.field_address(mount, kernel.MOUNT_FLAGS))
    owner = f.load(scratch, layout.SCRATCH_KERNEL, name="owner")
    flags = f.load(scratch, layout.SCRATCH_KERNEL + 8, 4, "flags")
    f.update(flags, "&", kernel.MNT_INTERNAL)
    with f.when(owner, "<", f.let(-kernel.MAX_ERRNO, "error")), f.when(flags, "==", 0):
        task = f.helper("bpf_get_current_task_btf", result="task")
        namespaces = f.load(task, field=kernel.TASK_NAMESPACES, name="namespaces")
        mounts = f.load(namespaces, field=kernel.NAMESPACES_MOUNTS, name="mounts")
        top = f.load(f.load(mounts, field=kernel.MOUNTS_ROOT), field=kernel.MOUNT_TOP, name="top")
        own = f.load(scratch, layout.SCRATCH_MOUNT_ROOT, name="own")
        with f.when(own, "!=", top):
            f.store(scratch, layout.SCRATCH_STATUS, NO_PATH)
    f.ret(1)


def _copy_name(f: FunctionBuilder, scratch: bc.Value, position: bc.Value, length: bc.Value, text: bc.Value) -> None:
    at = f.op(position, "&", layout.TEXT_PATH_END - 1, "at")
    f.update(at, "+", scratch)
    f.update(at, "+", layout.SCRATCH_TEXT)
    f.helper("bpf_probe_read_kernel", at, length, text)


def _put_slash(f: FunctionBuilder, scratch: bc.Value, position: bc.Value) -> None:
    at = f.op(position, "&", layout.TEXT_PATH_END - 1, "at")
    f.update(at, "+", scratch)
    f.store(at, layout.SCRATCH_TEXT, ord("/"), 1)
