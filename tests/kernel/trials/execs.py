"""Executing programs in every way there is."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from tests.kernel.trials.runner import Trials, apart, ended, execute, run_shell, told_by_shell, work

trial = Trials()
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_PARENT = 0x8000
SYS_CLONE = 56
AT_EMPTY_PATH = 0x1000
PUSHED = 12


def bin(name: str) -> str:
    return f"{work()}/bin/{name}"


def fails_with(number: int) -> None:
    raise OSError(number, os.strerror(number))


# By name, by path, by the name it was called by


@trial
def allowed() -> int:
    return execute(bin("innocent"))


@trial
def by_name() -> int:
    return execute(bin("deny"))


@trial
def by_path() -> int:
    return execute(bin("fixed"))


@trial
def same_name_elsewhere() -> int:
    return execute(f"{work()}/other/fixed")


@trial
def through_a_relative_path() -> int:
    os.chdir(f"{work()}/other")
    return execute("../bin/./fixed")


@trial
def symlink_to_a_denied_program() -> int:
    return execute(bin("link-to-deny"))


@trial
def symlink_with_a_denied_name() -> int:
    return execute(f"{work()}/links/deny")


@trial
def denied_name_as_argv0() -> int:
    return execute(bin("innocent"), name="deny")


@trial
def denied_path_as_argv0() -> int:
    return execute(bin("innocent"), name="/somewhere/deny")


@trial
def another_name_as_argv0() -> int:
    return execute(bin("deny"), name="innocent")


@trial
def copied_under_another_name() -> int:
    return execute(bin("copy-of-deny"))


@trial
def hard_linked_under_a_denied_name() -> int:
    return execute(f"{work()}/hard/deny")


@trial
def through_proc_self_root() -> int:
    return execute(f"/proc/self/root{bin('fixed')}")


@trial
def in_a_chroot() -> int:
    os.chroot(work())
    return execute("/static/fixed")


# Without a path


@trial
def by_descriptor() -> int:
    fd = os.open(bin("deny"), os.O_RDONLY)
    return apart(lambda: os.execve(fd, ["x"], {}))


@trial
def by_descriptor_path_only() -> int:
    fd = os.open(bin("deny"), os.O_PATH)
    argv = (ctypes.c_char_p * 2)(b"x", None)

    def go() -> None:
        LIBC.execveat(fd, b"", argv, (ctypes.c_char_p * 1)(None), AT_EMPTY_PATH)
        fails_with(ctypes.get_errno())

    return apart(go)


@trial
def unlinked_before_it_runs() -> int:
    fd = os.open(f"{work()}/doomed/deny", os.O_RDONLY)
    os.unlink(f"{work()}/doomed/deny")
    return apart(lambda: os.execve(fd, ["x"], {}))


def in_memory(name: str) -> int:
    fd = os.memfd_create(name)
    with open(bin("innocent"), "rb") as program:
        os.write(fd, program.read())
    return apart(lambda: os.execve(fd, ["x"], {}))


@trial
def from_memory() -> int:
    return in_memory("hidden")


@trial
def from_allowed_memory() -> int:
    return in_memory("shown")


@trial
def script_by_name() -> int:
    return execute(bin("deploy"))


@trial
def script_through_a_symlink() -> int:
    return execute(bin("link-to-deploy"))


@trial
def script_by_relative_path() -> int:
    os.chdir(bin(""))
    return execute("./fixed-script")


@trial
def script_with_a_denied_interpreter() -> int:
    return execute(bin("needs-deny"))


# Arguments


@trial
def argument() -> int:
    return execute(bin("tool"), "push")


@trial
def argument_later() -> int:
    return execute(bin("tool"), "-C", "/x", "push", "origin")


@trial
def other_arguments() -> int:
    return execute(bin("tool"), "pushy", "pus", "xpush", "PUSH", "", "pull")


@trial
def argument_of_another_program() -> int:
    return execute(bin("innocent"), "push")


@trial
def argument_as_argv0() -> int:
    return execute(bin("tool"), name="push")


@trial
def argument_beyond_128_bytes() -> int:
    return execute(bin("tool"), "-c", "x" * 200, "push")


@trial
def argument_beyond_4_kib() -> int:
    return execute(bin("tool"), "-c", "x" * 5000, "push")


@trial
def argument_after_5000_others() -> int:
    return execute(bin("tool"), *["a"] * 5000, "push")


@trial
def argument_that_is_long_itself() -> int:
    return execute(bin("tool"), "begin" + "-" * 9000 + "end")


@trial
def arguments_as_long_as_a_piece() -> int:
    """Pieces of 1,200 bytes are read: lengths around that must not hide or invent an argument."""
    for length in (1198, 1199, 1200, 1201, 2397, 2398, 2399, 2400):
        if execute(bin("tool"), "x" * length) != 0:
            return 101
        if execute(bin("tool"), "x" * (length - 4) + "push") != 0:
            return 102
        if execute(bin("tool"), "x" * length, "push") == 0:
            return 103
    return 0


@trial
def empty_argv() -> int:
    def go() -> None:
        LIBC.execve(bin("deny").encode(), (ctypes.c_char_p * 1)(None), (ctypes.c_char_p * 1)(None))
        fails_with(ctypes.get_errno())

    return apart(go)


@trial
def argv_changed_by_a_thread() -> int:
    """
    A second thread rewrites an argument while execve reads it. `compare` ends with 0 only if it was
    executed with an argument that is not `pull`, which the policy forbids.
    """
    text = ctypes.create_string_buffer(b"pull")
    argv = (ctypes.c_char_p * 5)(b"compare", ctypes.cast(text, ctypes.c_char_p), b"!=", b"pull", None)

    def attempt() -> None:
        def flip() -> None:
            while True:
                ctypes.memmove(text, b"push", 4)
                ctypes.memmove(text, b"pull", 4)

        threading.Thread(target=flip, daemon=True).start()
        LIBC.execve(bin("compare").encode(), argv, (ctypes.c_char_p * 1)(None))
        fails_with(ctypes.get_errno())

    sys.setswitchinterval(1e-6)
    for _ in range(20):
        result = apart(attempt)
        if result == 0:
            return PUSHED
        if result not in (1, -signal.SIGKILL):
            return result
    return 0


# Ways to become two


@trial
def from_a_thread() -> int:
    return apart(lambda: _in_thread(lambda: os.execv(bin("deny"), ["x"])))


def _in_thread(action: Callable[[], object]) -> int:
    failed = [0]

    def go() -> None:
        try:
            action()
        except OSError as error:
            failed[0] = error.errno or 0

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    return failed[0]


@trial
def after_a_thread_has_executed() -> int:
    """The thread takes the leader's place; what it becomes is still in the session."""
    script = f"{bin('deny')}; exit $?"
    return told_by_shell(apart(lambda: _in_thread(lambda: os.execv("/bin/sh", ["sh", "-c", script]))))


@trial
def forked_by_a_thread() -> int:
    result = []
    thread = threading.Thread(target=lambda: result.append(execute(bin("deny"))))
    thread.start()
    thread.join()
    return result[0]


@trial
def spawned() -> int:
    return ended(os.posix_spawn(bin("deny"), ["x"], {}))


@trial
def vforked() -> int:
    return subprocess.run([bin("deny")], close_fds=False).returncode


@trial
def in_a_session_of_its_own() -> int:
    def again() -> int:
        os.setsid()
        return apart(lambda: os.execv(bin("deny"), ["x"]))

    return apart(again)


@trial
def orphaned() -> int:
    """The parent has ended, and somebody else has adopted the child, when it executes."""
    report = f"{work()}/orphan"

    def middle() -> None:
        parent = os.getpid()
        if os.fork() == 0:
            os.setsid()
            while os.getppid() == parent:
                time.sleep(0.001)
            write_result(report, execute(bin("deny")))

    apart(middle)
    return read_result(report)


@trial
def made_a_sibling() -> int:
    """CLONE_PARENT: the child's parent is ours, not we; its labels come from us all the same."""
    report = f"{work()}/sibling"
    pid = LIBC.syscall(SYS_CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        write_result(report, execute(bin("deny")))
    return read_result(report)


def write_result(path: str, result: int) -> None:
    """Say how something ended where nobody waits for us, and end."""
    with open(path + ".part", "w") as file:
        file.write(str(result))
    os.rename(path + ".part", path)
    os._exit(0)


def read_result(path: str) -> int:
    for _ in range(6000):
        if os.path.exists(path):
            with open(path) as file:
                return int(file.read())
        time.sleep(0.01)
    return errno.ETIMEDOUT


@trial
def that_does_not_exist() -> int:
    return execute(f"{work()}/nowhere/deny")


@trial
def that_is_no_program() -> int:
    return execute(f"{work()}/data/innocent")


# Labels of programs


@trial
def without_the_label() -> int:
    return run_shell("/bin/sh", f"{bin('needs-no-mark')}")


@trial
def label_of_the_executed() -> int:
    return run_shell(bin("marker"), f"exec {bin('needs-no-mark')}")


@trial
def label_kept_by_exec() -> int:
    return run_shell(bin("marker"), f"exec /bin/sh -c 'exec {bin('needs-no-mark')}'")


@trial
def label_inherited_by_fork() -> int:
    return run_shell(bin("marker"), f"(/bin/sh -c '{bin('needs-no-mark')}')")


@trial
def label_not_given_to_the_parent() -> int:
    return run_shell("/bin/sh", f"{bin('marker')} -c true; exec {bin('needs-no-mark')}")


@trial
def label_by_argv0() -> int:
    """A name that is only claimed gives no label: `if not LABEL` must not be open to everybody."""
    return run_shell("/bin/sh", f"exec {bin('needs-no-mark')}", name="marker")


@trial
def declassified() -> int:
    return run_shell(bin("marker"), f"exec {bin('cleaner')} -c 'exec {bin('needs-no-mark')}'")


@trial
def declassified_by_a_child() -> int:
    return run_shell(bin("marker"), f"{bin('cleaner')} -c true; exec {bin('needs-no-mark')}")


@trial
def declassified_by_argv0() -> int:
    python = "import os, sys; os.execv('/bin/sh', ['cleaner', '-c', 'exec ' + sys.argv[1]])"
    return run_shell(bin("marker"), f'exec {sys.executable} -S -c "{python}" {bin("needs-no-mark")}')


@trial
def not_endorsed() -> int:
    return execute(bin("needs-blessing"))


@trial
def endorsed() -> int:
    return run_shell(bin("blesser"), f"exec {bin('needs-blessing')}")


@trial
def both_labels() -> int:
    return run_shell(bin("marker"), f"exec {bin('blesser')} -c 'exec {bin('needs-not-both')}'")


@trial
def one_of_both_labels() -> int:
    return run_shell(bin("marker"), f"exec {bin('needs-not-both')}")


@trial
def the_alternative() -> int:
    """`if BLESSED and MARKED or not AGENT or CHOSEN`, with CHOSEN alone."""
    return run_shell(bin("chooser"), f"exec {bin('needs-not-both')}")


# Conditions


@trial
def not_exempt() -> int:
    return execute(bin("multi-bad"))


@trial
def exempt() -> int:
    return execute(bin("multi-ok"))


@trial
def exempt_by_argv0() -> int:
    return execute(bin("multi-bad"), name="multi-ok")


@trial
def only_exempt_outside() -> int:
    return execute(bin("inverse-a"))


@trial
def caught_inside() -> int:
    return execute(f"{work()}/other/inverse-b")


@trial
def outside_the_lineage() -> int:
    return execute(bin("needs-wrapper"))


@trial
def in_the_lineage() -> int:
    return run_shell(bin("wrapper"), f"/bin/sh -c '{bin('needs-wrapper')}'")


@trial
def in_its_own_lineage() -> int:
    return execute(bin("own-wrapper"))


@trial
def lineage_by_argv0() -> int:
    return run_shell("/bin/sh", f"exec {bin('needs-wrapper')}", name="wrapper")


@trial
def lineage_of_a_sibling() -> int:
    return run_shell("/bin/sh", f"{bin('wrapper')} -c true; exec {bin('needs-wrapper')}")


# Effects


@trial
def all_three_effects() -> int:
    return execute(bin("thrice"), "now")


@trial
def killed() -> int:
    return execute(bin("killme"))


@trial
def noticed() -> int:
    return execute(bin("seen"), "--flag", "caf\u00e9", "a b", "")


@trial
def noticed_with_odd_bytes() -> int:
    return apart(lambda: os.execv(bin("seen-odd").encode(), [b"\xff\n", b"\x1b[2J", b"x" * 2000]))


@trial
def noticed_with_many_arguments() -> int:
    return execute(bin("seen-long"), *(f"argument-{n}" for n in range(400)))


if __name__ == "__main__":
    trial.run()
