"""Calls of Linux that Python has no name for: clone3 into a cgroup, signalfd, prctl."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Collection
from dataclasses import dataclass

# PyDLL keeps the interpreter's lock over the call: the copy that clone3 makes goes on holding it.
_libc = ctypes.PyDLL(None, use_errno=True)

_SYS_CLONE3 = 435
"""The same number on every architecture, as of all calls added since 5.1."""
_CLONE_PIDFD = 0x1000
_CLONE_INTO_CGROUP = 0x2_0000_0000
_CLONE_ARGS = struct.Struct("<11Q")
"""flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15

_SIGNALFD_SIGINFO_BYTES = 128
_SIGNALFD_SIGINFO = struct.Struct("<IiiI")
"""signo, errno, code, pid: the beginning of struct signalfd_siginfo."""


def clone_into(cgroup_fd: int) -> tuple[int, int]:
    """
    Fork into a cgroup.

    Moving a process that exists waits for every CPU (17 ms here); being born there costs nothing.
    Only for a process with a single thread, as with os.fork().

    Shape:  (pid, pidfd) in the parent, the pidfd closing on exec; (0, -1) in the child.
    Raises: OSError.
    Source: clone3(2).
    Since:  5.7 (CLONE_INTO_CGROUP).
    """
    pidfd = ctypes.c_int(-1)
    flags = _CLONE_PIDFD | _CLONE_INTO_CGROUP
    packed = _CLONE_ARGS.pack(flags, ctypes.addressof(pidfd), 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup_fd)
    pid = _libc.syscall(_SYS_CLONE3, packed, len(packed))
    if pid < 0:
        raise _os_error()
    return (0, -1) if pid == 0 else (pid, pidfd.value)


def die_with_parent() -> None:
    """
    Have the kernel send SIGKILL to this process when its parent ends.

    Gone after an exec that changes credentials. Source: PR_SET_PDEATHSIG(2const). Raises OSError.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) < 0:
        raise _os_error()


def set_name(name: str) -> None:
    """Set the name `ps` shows for this process; 15 bytes are kept."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Received:
    """A signal that arrived. `sender` is a pid; 0 where the kernel itself sent it."""

    signal: int
    is_from_kernel: bool
    sender: int


def signal_descriptor(signals: Collection[int]) -> int:
    """
    Return a descriptor that reads the given signals, which the caller has blocked.

    Raises: OSError. Source: signalfd(2). Since: 2.6.27.
    """
    mask = (ctypes.c_ulong * (128 // ctypes.sizeof(ctypes.c_ulong)))()
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    for number in signals:
        mask[(number - 1) // bits] |= 1 << ((number - 1) % bits)
    fd = _libc.signalfd(-1, ctypes.byref(mask), os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise _os_error()
    return int(fd)


def read_signals(fd: int) -> list[Received]:
    """Return the signals that wait at a descriptor of `signal_descriptor`; none if none do."""
    try:
        data = os.read(fd, 32 * _SIGNALFD_SIGINFO_BYTES)
    except BlockingIOError:
        return []
    received: list[Received] = []
    for start in range(0, len(data), _SIGNALFD_SIGINFO_BYTES):
        number, _, code, pid = _SIGNALFD_SIGINFO.unpack_from(data, start)
        # A positive code says that the kernel made the signal; kill, tgkill and sigqueue give 0 or less.
        is_from_kernel = code > 0
        received.append(Received(number, is_from_kernel, 0 if is_from_kernel else pid))
    return received


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
