"""
The single door to the kernel: bpf(), with named attributes.

Everything of the loader goes through `bpf()`, which takes the attributes of a command, tries again
when a signal got in the way, and turns a failure into a `KernelError` that names the command. The
kernel behind the door is a parameter, so tests put a fake one there.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, TypeVar

from actplane.asm.uapi import Command
from actplane.errors import KernelError
from actplane.loader.attributes import OBJECT_NAME_LENGTH, Attr, Layout, ObjGetInfoByFd

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351, "loongarch64": 280}

_TRIES = 10
"""How often a call is made when a pending signal ends it. libbpf tries a program load five times."""

_CHARGED = (Command.BPF_MAP_CREATE, Command.BPF_PROG_LOAD, Command.BPF_BTF_LOAD)
"""Commands that kernels before 5.11 charge to RLIMIT_MEMLOCK, answering EPERM over it."""

_HINTS: dict[tuple[Command | None, int], str] = {
    (None, errno.EPERM): "bpf() needs CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN here: run as root",
    (None, errno.ENOSYS): "this kernel was built without CONFIG_BPF_SYSCALL",
    (None, errno.E2BIG): "this kernel is older than an attribute that was set",
    (None, errno.ENOMEM): "out of memory, or over the memory limit of the cgroup or of RLIMIT_MEMLOCK",
    (Command.BPF_PROG_LOAD, errno.EPERM): (
        "loading needs root, and a kernel that allows this kind of program "
        "(some allow no BPF trampolines, which LSM, fentry and fmod_ret programs need)"
    ),
    (Command.BPF_PROG_LOAD, errno.E2BIG): "the program is too large for the kernel's verifier",
    (Command.BPF_MAP_CREATE, errno.E2BIG): "the map is larger than its type allows, or this kernel is too old for it",
    (Command.BPF_MAP_LOOKUP_ELEM, errno.ENOENT): "no element has that key",
    (Command.BPF_MAP_DELETE_ELEM, errno.ENOENT): "no element has that key",
    (Command.BPF_MAP_UPDATE_ELEM, errno.E2BIG): "the map is full, or the index is past its end",
    (Command.BPF_MAP_UPDATE_ELEM, errno.EPERM): "the map is frozen or read-only",
    (Command.BPF_OBJ_PIN, errno.EEXIST): "something is pinned there already",
    (Command.BPF_OBJ_GET, errno.ENOENT): "nothing is pinned there",
}


class Kernel(Protocol):
    """What lies behind the door."""

    def bpf(self, attr: Attr) -> int:
        """Carry out one command; return its result, or minus the error number."""
        ...


class RunningKernel:
    """The kernel this process runs on."""

    def bpf(self, attr: Attr) -> int:
        result = self._call(attr)
        if result == -errno.EPERM and attr.command in _CHARGED:
            with _lifted_memlock_limit() as is_lifted:
                if is_lifted:
                    result = self._call(attr)
        return result

    def _call(self, attr: Attr) -> int:
        function = _syscall()
        if function is None:
            return -errno.ENOSYS
        result = function(attr.command, ctypes.byref(attr), ctypes.sizeof(attr))
        return result if result >= 0 else -ctypes.get_errno()


RUNNING_KERNEL = RunningKernel()


def bpf(attr: Attr, kernel: Kernel = RUNNING_KERNEL) -> int:
    """
    Carry out one command of bpf().

    Shape:  the command is that of the attributes' class; the result is the kernel's: a descriptor
            for commands that create or open something, else 0. Results that the kernel writes into
            the attributes are found there.
    Raises: KernelError, its `call` naming the command.
    Source: bpf(2), include/uapi/linux/bpf.h.
    Since:  that of the command; map and program commands 4.4, links 5.7.
    """
    result = kernel.bpf(attr)
    for _ in range(_TRIES - 1):
        if not _is_interrupted(attr.command, result):
            break
        result = kernel.bpf(attr)
    if result < 0:
        raise KernelError(f"bpf({attr.command.name})", -result, hint_for(attr.command, -result))
    return result


def hint_for(command: Command, error: int) -> str:
    """Return what to do about a failed command, or an empty text."""
    return _HINTS.get((command, error)) or _HINTS.get((None, error), "")


def _is_interrupted(command: Command, result: int) -> bool:
    # A pending signal ends the verifier with EAGAIN and a test run with EINTR, both before any effect.
    return result == -errno.EINTR or (result == -errno.EAGAIN and command is Command.BPF_PROG_LOAD)


@contextmanager
def _lifted_memlock_limit() -> Iterator[bool]:
    """
    Lift RLIMIT_MEMLOCK for a moment; False if that changes nothing, or is not allowed.

    It needs CAP_SYS_RESOURCE. It is put back, because a supervised command inherits it.
    """
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    is_lifted = before != unlimited
    if is_lifted:
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
        except (OSError, ValueError):
            is_lifted = False
    try:
        yield is_lifted
    finally:
        if is_lifted:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


@functools.cache
def _syscall() -> functools.partial[int] | None:
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        return None
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return functools.partial(function, number)


def object_name(name: str) -> bytes:
    """
    Return a name as maps and programs of the kernel may carry it.

    Shape:  letters, digits, dot and underscore; others become underscores. At most 15 bytes: the
            name is for people who list programs, and nothing is ever looked up by it.
    Source: bpf_obj_name_cpy() in kernel/bpf/syscall.c.

    >>> object_name("no-push.exec_and_open")
    b'no_push.exec_an'
    """
    kept = (char if char.isascii() and (char.isalnum() or char in "._") else "_" for char in name)
    return "".join(kept)[: OBJECT_NAME_LENGTH - 1].encode()


H = TypeVar("H", bound="Handle")


class Handle:
    """
    Something the kernel keeps as long as its descriptor is open. Closes with its `with` block; one
    that is forgotten is closed and warned about, as Python does for files.
    """

    def __init__(self, fd: int, kernel: Kernel = RUNNING_KERNEL) -> None:
        self._fd = fd
        self.kernel = kernel

    @property
    def fd(self) -> int:
        """The descriptor. Raises ValueError once closed."""
        if self._fd < 0:
            raise ValueError(f"{type(self).__name__} is closed")
        return self._fd

    @property
    def is_closed(self) -> bool:
        return self._fd < 0

    def fileno(self) -> int:
        """Return the descriptor, for select and poll."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor; doing so again has no effect."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def info_into(self, layout: Layout) -> None:
        """
        Fill in what the kernel tells about the object (BPF_OBJ_GET_INFO_BY_FD).

        Raises: KernelError.
        Since:  4.13; a newer field stays zero on an older kernel.
        """
        bpf(ObjGetInfoByFd(bpf_fd=self.fd, info_len=ctypes.sizeof(layout), info=layout), self.kernel)

    def __enter__(self: H) -> H:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            self.close()
            warnings.warn(f"{type(self).__name__} with descriptor {fd} was never closed", ResourceWarning, 2)
