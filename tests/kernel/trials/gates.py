"""Passing gates and making them stale: what one trial does changes what the next may do."""

from __future__ import annotations

import os
import threading

from tests.kernel.trials.runner import Trials, apart, ended, execute, run_shell, work

trial = Trials()


def bin(name: str) -> str:
    return f"{work()}/bin/{name}"


def ends(program: str, status: int) -> int:
    """Execute a gate's program (a shell) so that it ends with a status."""
    return execute(bin(program), "-c", f"exit {status}")


@trial
def plain_before() -> int:
    return execute(bin("after-plain"))


@trial
def plain_by_argv0() -> int:
    execute(bin("other"), name="plain")
    return execute(bin("after-plain"))


@trial
def plain_that_does_not_exist() -> int:
    execute(f"{work()}/nowhere/plain")
    execute(f"{work()}/data/plain")
    return execute(bin("after-plain"))


@trial
def plain_that_was_denied() -> int:
    execute(f"{work()}/denied/plain")
    return execute(bin("after-plain"))


@trial
def plain_after() -> int:
    execute(bin("plain"))
    return execute(bin("after-plain"))


@trial
def plain_ever_after() -> int:
    return execute(bin("after-plain"))


@trial
def plain_itself() -> int:
    return execute(bin("plain-itself"))


@trial
def zero_before() -> int:
    return execute(bin("after-zero"))


@trial
def zero_with_another_status() -> int:
    ends("zero", 1)
    return execute(bin("after-zero"))


@trial
def zero_by_a_signal() -> int:
    execute(bin("zero"), "-c", "kill -TERM $$")
    return execute(bin("after-zero"))


@trial
def zero_of_a_child_only() -> int:
    execute(bin("zero"), "-c", "true; (exit 0); exit 2")
    return execute(bin("after-zero"))


@trial
def zero_while_it_runs() -> int:
    return run_shell(bin("zero"), bin("after-zero"))


@trial
def zero_after_becoming_another() -> int:
    """What counts is how the process ends, as with a script that ends in `exec`."""
    execute(bin("became"), "-c", f"exec {bin('other')}")
    return execute(bin("after-became"))


@trial
def zero_after() -> int:
    ends("zero", 0)
    return execute(bin("after-zero"))


@trial
def seven_with_zero() -> int:
    ends("seven", 0)
    return execute(bin("after-seven"))


@trial
def seven_after() -> int:
    ends("seven", 7)
    return execute(bin("after-seven"))


@trial
def nonzero_with_zero() -> int:
    ends("nonzero", 0)
    return execute(bin("after-nonzero"))


@trial
def nonzero_after() -> int:
    ends("nonzero", 9)
    return execute(bin("after-nonzero"))


@trial
def nonzero_by_a_signal() -> int:
    execute(bin("signalled"), "-c", "kill -KILL $$")
    return execute(bin("after-signalled"))


@trial
def zero_executed_by_a_thread() -> int:
    def go() -> None:
        thread = threading.Thread(target=lambda: os.execv(bin("threaded"), ["x", "-c", "exit 0"]))
        thread.start()
        thread.join()

    apart(go)
    return execute(bin("after-threaded"))


@trial
def zero_in_another_process_group() -> int:
    pid = os.posix_spawn(bin("spawned"), ["x", "-c", "exit 0"], {}, setsid=True)
    ended(pid)
    return execute(bin("after-spawned"))


@trial
def stale_by_exec_fresh() -> int:
    execute(bin("checked"))
    return execute(bin("after-checked"))


@trial
def stale_by_exec() -> int:
    execute(bin("changer"))
    return execute(bin("after-checked"))


@trial
def stale_by_exec_again_fresh() -> int:
    execute(bin("checked"))
    return execute(bin("after-checked"))


@trial
def stale_by_exec_that_fails() -> int:
    execute(f"{work()}/nowhere/changer")
    return execute(bin("after-checked"))


@trial
def stale_by_itself() -> int:
    execute(bin("selfish"))
    return execute(bin("after-selfish"))


@trial
def stale_by_the_guarded() -> int:
    """The guarded program is itself what makes the gate stale, so it never runs."""
    execute(bin("circle"))
    return execute(bin("after-circle"))


# Files


@trial
def stale_by_write_fresh() -> int:
    execute(bin("tested"))
    return execute(bin("after-tested"))


@trial
def not_stale_by_read() -> int:
    open(f"{work()}/src/code").close()
    return execute(bin("after-tested"))


@trial
def not_stale_by_another_file() -> int:
    open(f"{work()}/notes", "w").close()
    return execute(bin("after-tested"))


@trial
def not_stale_by_a_denied_write() -> int:
    try:
        open(f"{work()}/src/locked", "w").close()
    except PermissionError:
        return execute(bin("after-tested"))
    return 101


@trial
def stale_by_write() -> int:
    open(f"{work()}/src/code", "a").close()
    return execute(bin("after-tested"))


def _again() -> None:
    if execute(bin("tested")) or execute(bin("after-tested")):
        raise AssertionError("the gate is not fresh")


@trial
def stale_by_create() -> int:
    _again()
    open(f"{work()}/src/new", "x").close()
    return execute(bin("after-tested"))


@trial
def stale_by_rename() -> int:
    _again()
    os.rename(f"{work()}/src/new", f"{work()}/elsewhere")
    return execute(bin("after-tested"))


@trial
def stale_by_rename_of_the_folder() -> int:
    _again()
    os.rename(f"{work()}/src", f"{work()}/sources")
    os.rename(f"{work()}/sources", f"{work()}/src")
    return execute(bin("after-tested"))


@trial
def stale_by_unlink() -> int:
    open(f"{work()}/src/doomed", "w").close()
    _again()
    os.unlink(f"{work()}/src/doomed")
    return execute(bin("after-tested"))


@trial
def stale_by_truncate() -> int:
    _again()
    os.truncate(f"{work()}/src/code", 0)
    return execute(bin("after-tested"))


@trial
def stale_by_read() -> int:
    execute(bin("reviewed"))
    if execute(bin("after-reviewed")):
        return 102
    open(f"{work()}/inbox/mail").close()
    return execute(bin("after-reviewed"))


@trial
def stale_by_write_through_an_open_file() -> int:
    with open(f"{work()}/src/code", "ab", buffering=0) as file:
        _again()
        file.write(b"changed")
        return execute(bin("after-tested"))


if __name__ == "__main__":
    trial.run()
