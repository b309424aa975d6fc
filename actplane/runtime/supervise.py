"""
Waiting for the command: its end, its stops, signals for it, and what the programs report meanwhile.

The supervisor is in the command's process group, as `nice` would be, so the terminal's Ctrl-C and Ctrl-Z
reach both. It acts on neither: it ends when the command ends and stops when the command stops.
A signal that somebody sends to the supervisor alone is handed on.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from actplane.runtime import libc
from actplane.runtime.cgroup import SessionCgroup
from actplane.runtime.guard import Guard
from actplane.runtime.launch import FirstProcess

HANDED_ON = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTSTP,
        signal.SIGCONT,
    }
)
"""Signals that go to the command when somebody sends them to the supervisor."""

_ENDING = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}

# SIGTTIN and SIGTTOU are only held off: a supervisor in the background may still write to the terminal.
BLOCKED = HANDED_ON | {signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU}


@dataclass(frozen=True, slots=True)
class Ending:
    """How the command ended: by `signal`, or with `status` if that is 0."""

    status: int
    signal: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    How a session ended. `ended_processes` outlived the command and were ended; `is_guard_lost` says
    that they, and the command, were ended because somebody had killed the guard.
    """

    ending: Ending
    ended_processes: tuple[int, ...] = ()
    is_guard_lost: bool = False


@dataclass(frozen=True, slots=True)
class CallersSignals:
    """The signal mask and the ignored SIGCHLD that the caller gave us, to be given to the command."""

    fd: int
    mask: frozenset[int]
    ignored: frozenset[int]


@contextmanager
def blocked_signals() -> Iterator[CallersSignals]:
    """Hold off the signals of a session and read them from a descriptor instead. Raises OSError."""
    ignored: set[int] = set()
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # Inherited; with it the kernel would forget how the command ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ignored.add(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    fd = libc.signal_descriptor(BLOCKED)
    try:
        yield CallersSignals(fd, frozenset(mask), frozenset(ignored))
    finally:
        # What still waits has been handed on or came too late for the command.
        libc.read_signals(fd)
        os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Supervisor:
    """
    One session's watch.

    `reports_fd` is readable when programs have reported something; `read_reports` takes it from there.
    """

    def __init__(
        self,
        first: FirstProcess,
        guard: Guard,
        cgroup: SessionCgroup,
        signals_fd: int,
        reports_fd: int,
        read_reports: Callable[[], None],
    ) -> None:
        self._first = first
        self._guard = guard
        self._cgroup = cgroup
        self._signals_fd = signals_fd
        self._read_reports = read_reports
        self._ending: Ending | None = None
        self._is_guard_lost = False
        self._poll = select.poll()
        self._poll.register(signals_fd, select.POLLIN)
        self._poll.register(reports_fd, select.POLLIN)

    def watch(self, linger_seconds: float) -> Outcome:
        """
        Wait until the command has ended, then end what is left of the session.

        What the command left behind (a background server, the `tee` at the end of a pipe) has
        `linger_seconds` to end by itself. It cannot stay: nobody would be there to judge it.
        """
        while self._ending is None:
            self._step(timeout_ms=None)
        left = self._linger(linger_seconds)
        self._read_reports()
        return Outcome(self._ending, left, self._is_guard_lost)

    def _linger(self, seconds: float) -> tuple[int, ...]:
        deadline = time.monotonic() + seconds
        with (self._cgroup.path / "cgroup.events").open("rb", buffering=0) as events:
            self._poll.register(events, select.POLLPRI)
            while True:
                # Reading is also what makes the next change wake the poll.
                events.seek(0)
                if b"populated 0" in events.read():
                    return ()
                left_seconds = deadline - time.monotonic()
                asked_to_end = left_seconds > 0 and self._step(timeout_ms=max(1, int(left_seconds * 1000)))
                if left_seconds <= 0 or asked_to_end or self._is_guard_lost:
                    processes = tuple(self._cgroup.processes())
                    self._cgroup.kill()
                    self._cgroup.wait_empty(timeout_seconds=5)
                    return processes

    def _step(self, timeout_ms: int | None) -> bool:
        """Wait for something and deal with it; return whether it was a request to end."""
        self._poll.poll(timeout_ms)
        self._read_reports()
        asked_to_end = False
        for received in libc.read_signals(self._signals_fd):
            if received.signal == signal.SIGCHLD:
                self._look_at_children()
            elif received.signal in HANDED_ON and self._is_for_command(received):
                if self._ending is None:
                    signal.pidfd_send_signal(self._first.pidfd, received.signal)
                asked_to_end |= received.signal in _ENDING
            elif self._ending is not None and received.signal in _ENDING and received.is_from_kernel:
                asked_to_end = True
        return asked_to_end

    def _is_for_command(self, received: libc.Received) -> bool:
        """
        Say whether a signal was meant for the command and has not reached it.

        The terminal's signals have: they went to the whole process group. One from within the session is
        not obeyed; what runs under a policy does not command its supervisor.
        """
        return not received.is_from_kernel and received.sender not in self._cgroup.processes()

    def _look_at_children(self) -> None:
        # One SIGCHLD can stand for several changes.
        while self._ending is None:
            options = os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG
            change = os.waitid(os.P_PID, self._first.pid, options)
            if change is None:
                break
            if change.si_code == os.CLD_EXITED:
                self._ending = Ending(change.si_status)
            elif change.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
                self._ending = Ending(128 + change.si_status, change.si_status)
            elif change.si_code == os.CLD_STOPPED and has_terminal():
                self._stop_too()
        self._look_at_guard()

    def _look_at_guard(self) -> None:
        if self._is_guard_lost:
            return
        if os.waitid(os.P_PID, self._guard.pid, os.WEXITED | os.WNOHANG) is not None:
            # Without it, our own end would leave processes that nobody judges. So none go on.
            self._is_guard_lost = True
            self._cgroup.kill()

    def _stop_too(self) -> None:
        """
        Stop, so that the shell which waits for us learns that its job has stopped.

        Its `fg` continues the process group; a command that made a group of its own is continued here.
        """
        os.kill(os.getpid(), signal.SIGSTOP)
        if self._ending is None:
            signal.pidfd_send_signal(self._first.pidfd, signal.SIGCONT)


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal, whose shell could continue it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
