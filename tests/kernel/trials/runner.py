"""
What runs inside a session under test: many small trials, each in a process of its own.

A trial tries one thing. How it ended is its exit status alone, because a status carries no labels while
a pipe or a file would taint whoever reads it: 0 if it was allowed, else the errno it got; a negative
number is the signal that ended it. Python's own failures are 250.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable

FAILED = 250

Trial = Callable[[], "int | None"]


class Trials:
    """The trials of one driver, in the order they are written."""

    def __init__(self) -> None:
        self._trials: dict[str, Trial] = {}

    def __call__(self, trial: Trial) -> Trial:
        self._trials[trial.__name__] = trial
        return trial

    def run(self) -> None:
        """Run all, or those named after the work folder, and print {name: result} as JSON."""
        chosen = sys.argv[2:] or list(self._trials)
        print(json.dumps({name: apart(self._trials[name]) for name in chosen}), flush=True)


def work() -> str:
    """Return the folder that the driver may use: its first argument."""
    return sys.argv[1]


def apart(action: Trial) -> int:
    """Do something in a child process and return how that ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(_status(action))
    return ended(pid)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _status(action: Trial) -> int:
    try:
        result = action() or 0
        if result < 0:
            os.kill(os.getpid(), -result)
        return result
    except OSError as error:
        return error.errno or FAILED
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return FAILED


def run_shell(shell: str, script: str, name: str = "sh") -> int:
    """Run a script by a shell of any name; what its last command came to is told as by `execute`."""
    return told_by_shell(execute(shell, "-c", f"{script}; exit $?", name=name))


def told_by_shell(result: int) -> int:
    """Undo what shells make of results: 126 for what may not be executed, 128 + N for what a signal ended."""
    return {126: errno.EPERM, 128 + signal.SIGKILL: -signal.SIGKILL}.get(result, result)


def execute(program: str, *arguments: str, name: str | None = None) -> int:
    """Execute a program in a child, with `name` as its argv[0]; return how that ended."""
    return apart(lambda: os.execv(program, [name or program, *arguments]))
