"""Leaving a session, and giving files other names than those that the policy knows."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import signal
import struct

from tests.kernel.trials.runner import Trials, ended, execute, work

trial = Trials()
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE, MS_REMOUNT, MS_RDONLY = 0x1000, 0x4000, 0x40000, 0x20, 1
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE, OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = -100, 0x8000, 1, 4
SYS_PIVOT_ROOT, SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_PIDFD_GETFD = 155, 428, 429, 438
PTRACE_ATTACH, PTRACE_DETACH, PTRACE_SEIZE = 16, 17, 0x4206
TIOCSCTTY, TIOCSTI = 0x540E, 0x5412


def outside() -> int:
    """Return the number of a process that is not in the session."""
    return int(os.environ["OUTSIDE"])


def path(name: str) -> str:
    return f"{work()}/{name}"


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def in_namespaces(flags: int = CLONE_NEWUSER | CLONE_NEWNS) -> None:
    """Become root of a user namespace, as anybody may, with a mount namespace that only we see."""
    user, group = os.getuid(), os.getgid()
    checked(LIBC.unshare(flags))
    if flags & CLONE_NEWUSER:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    if flags & CLONE_NEWNS:
        checked(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))


def bind(source: str, to: str, flags: int = 0) -> None:
    checked(LIBC.mount(source.encode(), to.encode(), None, MS_BIND | flags, None))


def open_tree(name: str) -> int:
    return checked(LIBC.syscall(SYS_OPEN_TREE, AT_FDCWD, path(name).encode(), OPEN_TREE_CLONE | AT_RECURSIVE))


def write(name: str, folder: int | None = None) -> None:
    os.close(os.open(name, os.O_WRONLY, dir_fd=folder))


# Other names


@trial
def write_in_namespaces() -> None:
    in_namespaces()
    write(path("free/file"))


@trial
def change_flags_of_a_mount() -> None:
    in_namespaces()
    checked(LIBC.mount(None, b"/proc", None, MS_REMOUNT | MS_BIND | MS_RDONLY, None))


@trial
def bind_a_folder() -> None:
    in_namespaces()
    bind(path("protected"), path("free/folder"))
    write(path("free/folder/file"))


@trial
def bind_a_file() -> None:
    in_namespaces()
    bind(path("protected/file"), path("free/file"))
    write(path("free/file"))


@trial
def bind_everything() -> None:
    in_namespaces()
    bind("/", path("free/folder"), MS_REC)
    write(path("free/folder") + path("protected/file"))


@trial
def bind_over_what_is_exempt() -> int:
    in_namespaces()
    bind(path("tools/other"), path("tools/allowed"))
    return execute(path("tools/allowed"))


@trial
def mount_something_new() -> None:
    in_namespaces()
    checked(LIBC.mount(b"none", path("free/folder").encode(), b"tmpfs", 0, None))


@trial
def write_in_a_cloned_tree() -> None:
    in_namespaces()
    write("file", open_tree("protected"))


@trial
def read_in_a_cloned_tree() -> None:
    in_namespaces()
    os.open("file", os.O_RDONLY, dir_fd=open_tree("secret"))


@trial
def attach_a_cloned_tree() -> None:
    in_namespaces()
    tree = open_tree("protected")
    to = path("free/folder").encode()
    checked(LIBC.syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, to, MOVE_MOUNT_F_EMPTY_PATH))
    write(path("free/folder/file"))


@trial
def write_in_an_unmounted_tree() -> None:
    in_namespaces(CLONE_NEWNS)
    place = work()
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    folder = os.open(path("protected"), os.O_PATH)
    checked(LIBC.umount2(place.encode(), MNT_DETACH))
    write("file", folder)


@trial
def pivot_the_root() -> None:
    in_namespaces(CLONE_NEWNS)
    place = work()
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    os.chdir(place)
    checked(LIBC.syscall(SYS_PIVOT_ROOT, b".", b"."))


@trial
def write_in_a_chroot() -> None:
    in_namespaces(CLONE_NEWUSER)
    os.chroot(path("protected"))
    write("/file")


@trial
def called_as_what_is_exempt() -> int:
    """In a chroot any file can be called by any path."""
    in_namespaces(CLONE_NEWUSER)
    os.chroot(path("jail"))
    return execute(path("tools/allowed"), name="true")


@trial
def exempt() -> int:
    return execute(path("tools/allowed"))


@trial
def a_message_queue() -> None:
    """Its mount is attached nowhere, and the kernel's own."""
    name = f"/actplane-{os.getpid()}".encode()
    checked(LIBC.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None))
    LIBC.mq_unlink(name)


# Others


@trial
def trace_a_process_outside() -> None:
    checked(LIBC.ptrace(PTRACE_ATTACH, outside(), None, None))


@trial
def seize_a_process_outside() -> None:
    checked(LIBC.ptrace(PTRACE_SEIZE, outside(), None, None))


@trial
def memory_of_a_process_outside() -> None:
    with open(f"/proc/{outside()}/maps") as maps:
        address = int(maps.readline().partition("-")[0], 16)
    here = ctypes.create_string_buffer(8)
    ours, theirs = struct.pack("QQ", ctypes.addressof(here), 8), struct.pack("QQ", address, 8)
    checked(LIBC.process_vm_readv(outside(), ours, 1, theirs, 1, 0))


@trial
def descriptor_of_a_process_outside() -> None:
    checked(LIBC.syscall(SYS_PIDFD_GETFD, os.pidfd_open(outside()), 0, 0))


@trial
def look_at_a_process_outside() -> None:
    os.readlink(f"/proc/{outside()}/exe")


@trial
def trace_a_process_inside() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        checked(LIBC.ptrace(PTRACE_ATTACH, pid, None, None))
        os.waitpid(pid, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid)


@trial
def type_into_a_terminal() -> None:
    _, terminal = pty.openpty()
    os.setsid()
    fcntl.ioctl(terminal, TIOCSCTTY, 0)
    fcntl.ioctl(terminal, TIOCSTI, b"x")


@trial
def ask_a_terminal() -> None:
    os.get_terminal_size(pty.openpty()[1])


if __name__ == "__main__":
    trial.run()
