"""
A session without a policy: what launching, supervising and cleaning up do, with no program attached.

    python supervised.py [--linger SECONDS] COMMAND...

Prints the cgroup's path on descriptor 3 if that is open, and ends as the command did.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from actplane.runtime.cgroup import SessionCgroup, own_directory
from actplane.runtime.guard import Guard
from actplane.runtime.launch import Command, FirstProcess
from actplane.runtime.privileges import invoking_user
from actplane.runtime.supervise import Supervisor, blocked_signals


def left_behind() -> list[Path]:
    """Return the cgroups of sessions whose supervisor, named in theirs, is no more."""
    found = []
    for path in own_directory().glob("actplane-*"):
        pid = next(part for part in path.name.split("-") if part.isdigit())
        if not Path("/proc", pid).exists():
            found.append(path)
    return found


def main(argv: list[str]) -> int:
    linger = 1.0
    if argv[0] == "--linger":
        linger, argv = float(argv[1]), argv[2:]
    nothing, writer = os.pipe()
    with blocked_signals() as signals, SessionCgroup.create(f"actplane-test-{os.getpid()}") as cgroup:
        if "CGROUP_FD" in os.environ:
            os.write(int(os.environ["CGROUP_FD"]), f"{cgroup.path}\n".encode())
        user = invoking_user(os.environ)
        command = Command(argv, os.environ, user, signals.mask, signals.ignored)
        first = FirstProcess.start(command, cgroup.fd)
        guard = Guard.start(cgroup, tuple)
        try:
            first.release()
            supervisor = Supervisor(first, guard, cgroup, signals.fd, nothing, lambda: None)
            outcome = supervisor.watch(linger)
        finally:
            guard.dismiss()
            first.close()
            os.close(nothing)
            os.close(writer)
    for pid in outcome.ended_processes:
        print(f"ended {pid}", file=sys.stderr)
    if outcome.is_guard_lost:
        print("guard lost", file=sys.stderr)
    return outcome.ending.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
