"""
Processes of a session that are no longer in its cgroup.

Whoever may write to a cgroup above can take a process out: root, and a user to whom systemd has delegated
the one that the session was started in. Such a process is judged while the programs are attached, and
nothing ends it with the cgroup. So before they are taken away, it is looked for by its mark.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_SECONDS = 0.01


def end_stragglers(is_marked: Callable[[int], bool], timeout_seconds: float = 5) -> tuple[int, ...]:
    """
    End every process of this machine that bears the mark, and return their numbers.

    `is_marked` looks at a pidfd. A killed process may have made another before it ended, so this goes
    on until none is found, or time is up.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + timeout_seconds
    while found := _kill_marked(is_marked):
        ended |= found
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    return tuple(sorted(ended))


def _kill_marked(is_marked: Callable[[int], bool]) -> set[int]:
    found: set[int] = set()
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        with _pidfd(pid) as fd:
            if fd >= 0 and is_marked(fd) and not _has_ended(fd):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                found.add(pid)
    return found


@contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    """Open a process; -1 if it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _has_ended(pidfd: int) -> bool:
    """Say whether all threads of a process have ended, though nobody has waited for it yet."""
    return bool(select.select([pidfd], [], [], 0)[0])
