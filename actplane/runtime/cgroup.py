"""
The session's own cgroup: what cgroup programs attach to, and the one handle on every process that
the command leaves behind, wherever it was reparented to.
"""

from __future__ import annotations

import errno
import os
import select
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from actplane.errors import ActplaneError, UnsupportedFeature


class NoCgroup(ActplaneError):
    """There is no place for the session's cgroup."""


def own_directory(mountinfo: str | None = None, membership: str | None = None) -> Path:
    """
    Return the cgroup2 directory this process is in.

    Shape:  the arguments are the texts of /proc/self/mountinfo and /proc/self/cgroup.
    Raises: NoCgroup if cgroup2 is not mounted, or its mount does not show this process's cgroup.
    Source: cgroups(7), proc_pid_mountinfo(5).

    >>> mounts = "34 25 0:29 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw"
    >>> own_directory(mounts, "0::/user.slice/session-1.scope").as_posix()
    '/sys/fs/cgroup/user.slice/session-1.scope'
    """
    mountinfo = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    membership = Path("/proc/self/cgroup").read_text() if membership is None else membership
    own = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), None)
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if own is None or after.split()[:1] != ["cgroup2"]:
            continue
        root, point = before.split()[3:5]
        if root == "/":
            return Path(point + own)
        if own == root or own.startswith(root + "/"):
            return Path(point + own[len(root) :])
    raise NoCgroup(
        "cgroup2 is not mounted, expected a mount that shows this process's cgroup\n"
        "    hint: mount -t cgroup2 none /sys/fs/cgroup"
    )


def session_name(pid: int, suffix: str) -> str:
    """Return the name of the cgroup of the session that process `pid` supervises."""
    return f"actplane-{pid}-{suffix}"


def sweep(parent: Path) -> None:
    """
    Remove what a supervisor left behind that was killed before its session had a guard: an empty cgroup
    with its name. One that still has processes stays.
    """
    for path in parent.glob("actplane-*-*"):
        pid = path.name.split("-")[1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            with suppress(OSError):
                path.rmdir()


class SessionCgroup:
    """A cgroup of its own below that of the supervisor, so that limits set on it still hold."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o755)
        except OSError as error:
            raise NoCgroup(
                f"{path}: mkdir: {error.strerror}\n"
                "    hint: a session needs a cgroup of its own; is cgroup2 read-only here?"
            ) from error
        if not (path / "cgroup.kill").exists():
            path.rmdir()
            raise UnsupportedFeature("ending a whole cgroup (cgroup.kill)", "5.14")
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @classmethod
    def create(cls, name: str) -> SessionCgroup:
        """Create the cgroup `name` beside this process. Raises NoCgroup, UnsupportedFeature. Since: 5.14."""
        parent = own_directory()
        sweep(parent)
        return cls(parent / name)

    def processes(self) -> list[int]:
        """Return the processes in the cgroup and those below it, zombies left out."""
        found: list[int] = []
        for folder, _, _ in os.walk(self.path):
            try:
                found.extend(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
            except OSError as error:
                # A cgroup that vanished meanwhile has no processes.
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
        return found

    def is_populated(self) -> bool:
        """Return whether any process is in the cgroup or below it."""
        return "populated 1" in (self.path / "cgroup.events").read_text()

    def kill(self) -> None:
        """
        End every process in the cgroup and below it at once, forks in flight included.

        Raises: OSError. Since: 5.14 (cgroup.kill).
        """
        (self.path / "cgroup.kill").write_text("1")

    def wait_empty(self, timeout_seconds: float) -> bool:
        """Wait until no process is left; return whether that came true in time."""
        deadline = time.monotonic() + timeout_seconds
        with (self.path / "cgroup.events").open("rb", buffering=0) as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while True:
                events.seek(0)
                if b"populated 0" in events.read():
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poll.poll(left * 1000)

    def remove(self) -> None:
        """
        Remove the cgroup and those that processes of the session made below it.

        Raises: OSError if a process is left in it.
        """
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        for folder, _, _ in os.walk(self.path, topdown=False):
            os.rmdir(folder)

    def __enter__(self) -> SessionCgroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_populated():
            self.kill()
            self.wait_empty(timeout_seconds=5)
        self.remove()
