"""
The process that ends a session whose supervisor was killed.

Programs stay attached as long as somebody holds their links. The guard is forked after they were
attached, so it holds them too: between the supervisor's end and that of the last process of the session
no event goes unjudged. In a session of its own, it gets no signal of the terminal.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

from actplane.runtime import libc
from actplane.runtime.cgroup import SessionCgroup

_DISMISSED = b"."


class Guard:
    """The guard, as the supervisor sees it. `dismiss` lets it go; any other end of ours sets it off."""

    def __init__(self, pid: int, lifeline: int) -> None:
        self.pid = pid
        self._lifeline = lifeline

    @classmethod
    def start(cls, cgroup: SessionCgroup, end_stragglers: Callable[[], object]) -> Guard:
        """Fork the guard of a session's cgroup, and of what has left it. Raises OSError."""
        watched, lifeline = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(lifeline)
            _watch(watched, cgroup, end_stragglers)
        os.close(watched)
        return cls(pid, lifeline)

    def dismiss(self) -> None:
        """Let the guard go, the session being over, and wait until it has."""
        if self._lifeline < 0:
            return
        # Somebody may have killed it; that the session was ended for that was the supervisor's to say.
        with suppress(BrokenPipeError):
            os.write(self._lifeline, _DISMISSED)
        os.close(self._lifeline)
        self._lifeline = -1
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _watch(watched: int, cgroup: SessionCgroup, end_stragglers: Callable[[], object]) -> None:
    """The guard's life. Never returns."""
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        libc.set_name("actplane-guard")
        if os.read(watched, 1) != _DISMISSED:
            cgroup.kill()
            is_empty = cgroup.wait_empty(timeout_seconds=30)
            end_stragglers()
            if is_empty:
                cgroup.remove()
    finally:
        os._exit(0)
