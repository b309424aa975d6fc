"""
Starting the command so that nothing of it runs before the policy is in force.

The command's process is a copy of this one, born in the session's cgroup. It sets itself up (user,
signals), then waits for one byte. Between `start` and `release` the supervisor attaches programs and marks
the process; the byte makes it call exec and nothing else. If the supervisor dies before, the
process reads the end of the pipe and ends without having run anything.

Standard streams, other inherited descriptors (a make jobserver, a shell's `<(...)`), the process
group, the terminal and the environment are those of the caller: `actplane run -- CMD` should differ
from `env CMD` only in what the policy forbids. All descriptors of our own close on exec.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from actplane.errors import ActplaneError
from actplane.runtime import libc
from actplane.runtime.privileges import User, become

_FAILURE = struct.Struct("<ii")
"""What the process says when it could not become the command: a step, an error number."""
_STEP_SET_UP = 0
_STEP_EXEC = 1

_KEEP_LOOKING = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT}
"""Errors after which execvp(3) tries the next directory of PATH."""


class CommandError(ActplaneError):
    """The command could not be executed. `errno` says why, as exec did."""

    def __init__(self, command: str, number: int) -> None:
        if number == errno.ENOENT and "/" not in command:
            text = f"command not found: {command}: no directory of PATH has it"
        elif number in (errno.ENOENT, errno.ENOTDIR):
            text = f"command not found: {command}: {os.strerror(number)}"
        else:
            text = f"command not executable: {command}: {os.strerror(number)}"
        super().__init__(text)
        self.errno = number

    @property
    def is_not_found(self) -> bool:
        return self.errno in (errno.ENOENT, errno.ENOTDIR)


class LaunchFailed(ActplaneError):
    """The command's process could not be made, or could not be made what it should be."""


@dataclass(frozen=True, slots=True)
class Command:
    """
    What to execute, and as whom.

    `signal_mask` are the signals that the caller had blocked, `ignored` those to ignore again: this
    process changes both for itself.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    user: User | None = None
    signal_mask: Iterable[int] = ()
    ignored: Iterable[int] = ()


def candidates(name: str, environment: Mapping[str, str]) -> list[str]:
    """
    Return the paths that stand for a command, in the order to try them, as execvp(3) would.

    >>> candidates("git", {"PATH": "/usr/bin::/bin"})
    ['/usr/bin/git', 'git', '/bin/git']
    >>> candidates("./git", {"PATH": "/usr/bin"})
    ['./git']
    """
    if "/" in name:
        return [name]
    folders = environment.get("PATH", os.defpath).split(":")
    return [os.path.join(folder, name) for folder in folders]


class FirstProcess:
    """The command's process. Until `release` it waits; it ends with the supervisor in any case."""

    def __init__(self, pid: int, pidfd: int, name: str, release_fd: int, failure_fd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._name = name
        self._release_fd = release_fd
        self._failure_fd = failure_fd

    @classmethod
    def start(cls, command: Command, cgroup_fd: int) -> FirstProcess:
        """
        Fork the process into the cgroup.

        Raises: LaunchFailed. Since: 5.7.
        """
        paths = candidates(command.argv[0], command.environment)
        release_read, release_write = os.pipe()
        failure_read, failure_write = os.pipe()
        try:
            pid, pidfd = libc.clone_into(cgroup_fd)
            if pid == 0:
                os.close(release_write)
                _become_command(command, paths, release_read, failure_write)
        except OSError as error:
            os.close(release_write)
            os.close(failure_read)
            raise LaunchFailed(f"cannot make a process in the session's cgroup: {error.strerror}") from error
        finally:
            os.close(release_read)
            os.close(failure_write)
        return cls(pid, pidfd, command.argv[0], release_write, failure_read)

    def release(self) -> None:
        """
        Let the process execute the command, and wait until it has.

        Raises: CommandError if exec failed, LaunchFailed if the user could not be changed to.
        """
        # If it has ended before, what it had to say waits in the other pipe.
        with suppress(BrokenPipeError):
            os.write(self._release_fd, b"!")
        os.close(self._release_fd)
        self._release_fd = -1
        said = os.read(self._failure_fd, _FAILURE.size)
        if len(said) == _FAILURE.size:
            step, number = _FAILURE.unpack(said)
            if step == _STEP_EXEC:
                raise CommandError(self._name, number)
            raise LaunchFailed(f"cannot prepare the command's process: {os.strerror(number)}")

    def close(self) -> None:
        """Close what is left open; a process that was not released ends."""
        for fd in (self._release_fd, self._failure_fd, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self._release_fd = self._failure_fd = self.pidfd = -1


def _become_command(command: Command, paths: list[str], release_fd: int, failure_fd: int) -> None:
    """The life of the process until exec. Never returns: the supervisor's code is not its own."""
    step = _STEP_SET_UP
    try:
        if command.user is not None:
            become(command.user)
        # After the change of user, which would undo it.
        libc.die_with_parent()
        _restore_signals(command)
        if os.read(release_fd, 1):
            step = _STEP_EXEC
            _execute(command, paths)
    except OSError as error:
        os.write(failure_fd, _FAILURE.pack(step, error.errno or errno.EINVAL))
    finally:
        os._exit(125)


def _restore_signals(command: Command) -> None:
    """
    Give the command the signals its caller would have given it.

    Python ignores SIGPIPE and SIGXFSZ on its own account, and does not say whether they already were.
    """
    for reset in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(reset, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in command.ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, command.signal_mask)


def _execute(command: Command, paths: list[str]) -> None:
    """Try the candidates. Returns never; raises the OSError that says most."""
    failure = OSError(errno.ENOENT, "")
    for path in paths:
        try:
            os.execve(path, list(command.argv), command.environment)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                # As execvp(3): a script without an interpreter line is the shell's.
                os.execve("/bin/sh", ["/bin/sh", path, *command.argv[1:]], command.environment)
            if error.errno not in _KEEP_LOOKING:
                raise
            if failure.errno == errno.ENOENT:
                failure = error
    raise failure
