"""Launching and supervising a command: exactly as if nobody were in between, and nothing left behind."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actplane.runtime.cgroup import NoCgroup, own_directory, session_name, sweep
from tests.kernel.supervised import left_behind

SUPERVISED = [sys.executable, str(Path(__file__).with_name("supervised.py"))]
NOBODY = 65534

is_emulated = "TCG" in Path("/proc/cpuinfo").read_text()
native = pytest.mark.skipif(
    is_emulated, reason="needs no guest: this is the same on every kernel, and emulation is slow"
)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every session removes its cgroup, however it ends."""
    if os.geteuid() != 0:
        pytest.skip("needs root: cgroups are root's")
    try:
        own_directory()
    except NoCgroup:
        pytest.skip("needs cgroup2: none is mounted")
    before = set(left_behind())
    yield
    wait_for(lambda: set(left_behind()) <= before, "the session's cgroup to be removed")


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def run(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SUPERVISED, *argv], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


@native
@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_the_status_comes_through(status: int) -> None:
    assert run("sh", "-c", f"exit {status}").returncode == status


def test_a_signal_is_told_from_a_status() -> None:
    assert run("sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


@native
def test_streams_arguments_and_environment_come_through() -> None:
    done = run("sh", "-c", 'cat; echo "$0 $X"; echo two >&2', "a b", input="one\n", env={**os.environ, "X": "y z"})
    assert done.stdout == "one\na b y z\n"
    assert done.stderr == "two\n"


@native
def test_the_command_has_the_descriptors_of_its_caller_and_no_other() -> None:
    reader, writer = os.pipe()
    try:
        done = run(
            "sh", "-c", "echo /proc/$$/fd/*; cat <&$FD", env={**os.environ, "FD": str(reader)}, pass_fds=[reader]
        )
        os.write(writer, b"")
    finally:
        os.close(writer)
        os.close(reader)
    names = {Path(name).name for name in done.stdout.split()}
    # The shell opens /proc/.../fd itself to read it, as some further number.
    assert {"0", "1", "2", str(reader)} <= names
    assert len(names) <= 5


@native
def test_signals_are_those_of_the_caller() -> None:
    """Python ignores SIGPIPE, the supervisor blocks a dozen; the command must see neither."""
    look = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    direct = subprocess.run(look, capture_output=True, text=True)
    assert run(*look).stdout == direct.stdout

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    direct = subprocess.run(look, capture_output=True, text=True, preexec_fn=ignore)
    assert run(*look, preexec_fn=ignore).stdout == direct.stdout
    blocked, ignored = (int(line.split()[1], 16) for line in direct.stdout.splitlines())
    assert blocked & 1 << (signal.SIGUSR1 - 1)
    assert ignored & 1 << (signal.SIGCHLD - 1)
    assert ignored & 1 << (signal.SIGHUP - 1)


@native
@pytest.mark.parametrize(
    ("name", "expected"),
    [("no-such-command-here", "command not found"), ("/no/such", "command not found"), ("/etc", "not executable")],
)
def test_what_cannot_be_executed_is_told(name: str, expected: str) -> None:
    done = run(name)
    assert done.returncode == 1
    assert "CommandError: " in done.stderr
    assert expected in done.stderr


@native
def test_a_script_without_interpreter_is_the_shells(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo from $0 $1\n")
    script.chmod(0o755)
    assert run(str(script), "x").stdout == f"from {script} x\n"


def test_nothing_runs_before_the_release(tmp_path: Path) -> None:
    """A supervisor that dies between start and release leaves a process that never ran the command."""
    proof = tmp_path / "proof"
    code = (
        "import os, sys\n"
        "from actplane.runtime.cgroup import SessionCgroup\n"
        "from actplane.runtime.launch import Command, FirstProcess\n"
        "cgroup = SessionCgroup.create(f'actplane-test-{os.getpid()}')\n"
        "first = FirstProcess.start(Command(['touch', sys.argv[1]], os.environ), cgroup.fd)\n"
        "print(first.pid, cgroup.path, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(proof)], capture_output=True, text=True, timeout=30)
    assert done.returncode == -signal.SIGKILL
    pid, cgroup = done.stdout.split()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the process to end")
    assert not proof.exists()
    os.rmdir(cgroup)


def test_what_a_killed_supervisor_left_is_swept_up() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    stale = own_directory() / session_name(gone.pid, "stale")
    living = own_directory() / session_name(os.getpid(), "living")
    stale.mkdir()
    living.mkdir()
    try:
        sweep(own_directory())
        assert not stale.exists()
        assert living.exists()
    finally:
        living.rmdir()


def test_sudo_is_undone_for_the_command() -> None:
    as_if_sudo = {**os.environ, "SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY)}
    done = run("sh", "-c", "id -u; id -g; id -G; grep -E 'Cap(Prm|Eff|Amb)' /proc/self/status", env=as_if_sudo)
    uid, gid, groups, *capabilities = done.stdout.splitlines()
    assert (uid, gid, groups) == (str(NOBODY), str(NOBODY), str(NOBODY))
    assert [int(line.split()[1], 16) for line in capabilities] == [0, 0, 0]


def test_what_outlives_the_command_is_ended() -> None:
    done = run("--linger", "0.2", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & setsid sleep 1000 >/dev/null 2>&1 & exit 5")
    assert done.returncode == 5
    assert done.stderr.count("ended ") == 2
    for line in done.stderr.splitlines():
        assert _is_gone(int(line.split()[1]))


@native
def test_what_ends_by_itself_soon_may() -> None:
    done = run("--linger", "20", "sh", "-c", "(sleep 0.3; echo late) & exit 0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "late\n", "")


def _start_sleeping(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a session whose command sleeps; return it with the pid of the sleeper."""
    told = tmp_path / "pid"
    session = subprocess.Popen([*SUPERVISED, "sh", "-c", f"echo $$ > {told}; exec sleep 1000"])
    wait_for(lambda: told.exists() and told.read_text().endswith("\n"), "the command to start")
    return session, int(told.read_text())


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_killed_supervisor_takes_the_session_along(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    script = f"sleep 1000 & setsid sleep 1000 & echo $! $$ > {told}; wait"
    session = subprocess.Popen([*SUPERVISED, "sh", "-c", script])
    wait_for(lambda: told.exists() and told.read_text().endswith("\n"), "the command to start")
    pids = [int(word) for word in told.read_text().split()]
    session.kill()
    session.wait()
    wait_for(lambda: all(map(_is_gone, pids)), "the session to end")


def test_a_killed_guard_ends_the_session(tmp_path: Path) -> None:
    session = subprocess.Popen([*SUPERVISED, "sleep", "1000"], stderr=subprocess.PIPE, text=True)
    guards: list[int] = []

    def find_guard() -> bool:
        children = Path(f"/proc/{session.pid}/task/{session.pid}/children").read_text().split()
        guards[:] = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "actplane-guard\n"]
        return bool(guards)

    wait_for(find_guard, "the guard")
    os.kill(guards[0], signal.SIGKILL)
    _, errors = session.communicate(timeout=20)
    assert session.returncode == 128 + signal.SIGKILL
    assert "guard lost" in errors


@native
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_supervisor_reaches_the_command(tmp_path: Path, number: signal.Signals) -> None:
    session, sleeper = _start_sleeping(tmp_path)
    session.send_signal(number)
    assert session.wait(timeout=20) == 128 + number
    assert _is_gone(sleeper)


@native
def test_the_session_does_not_command_its_supervisor(tmp_path: Path) -> None:
    assert run("sh", "-c", "kill -TERM $PPID; exit 9").returncode == 9


class Terminal:
    """A shell's part: runs a session as the foreground job of a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.shell, self.fd = pty.fork()
        if self.shell == 0:
            self._be_the_shell(command)

    def _be_the_shell(self, command: tuple[str, ...]) -> None:
        # Reports the changes of its one job on the terminal, and continues it when told to on it.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        job = os.fork()
        if job == 0:
            os.setpgid(0, 0)
            os.tcsetpgrp(0, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            os.execv(SUPERVISED[0], [*SUPERVISED, *command])
        while True:
            _, status = os.waitpid(job, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                os.write(1, b"<stopped>")
                os.tcsetpgrp(0, os.getpgrp())
                os.read(0, 100)
                os.tcsetpgrp(0, job)
                os.killpg(job, signal.SIGCONT)
            else:
                os.write(1, b"<ended %d>" % os.waitstatus_to_exitcode(status))
                os._exit(0)

    def expect(self, text: str, seconds: float = 20) -> str:
        seen = ""
        deadline = time.monotonic() + seconds
        while text not in seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"expected {text!r} on the terminal, got {seen!r}"
            seen += os.read(self.fd, 4096).decode()
        return seen

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.shell, 0)


def test_job_control() -> None:
    """Ctrl-Z stops the job as its shell sees it, fg continues it, Ctrl-C reaches the command once."""
    script = "trap 'echo got-int; exit 42' INT; echo ready; while :; do sleep 0.05; done"
    terminal = Terminal("bash", "-c", script)
    try:
        terminal.expect("ready")
        for _ in range(2):
            terminal.type("\x1a")
            terminal.expect("<stopped>")
            terminal.type("fg\n")
            time.sleep(0.2)
        terminal.type("\x03")
        seen = terminal.expect("<ended 42>")
        assert seen.count("got-int") == 1
    finally:
        terminal.close()


@native
def test_the_command_has_the_terminal() -> None:
    terminal = Terminal("sh", "-c", "stty size >/dev/null && read line && echo got:$line")
    try:
        terminal.type("hello\n")
        assert "got:hello" in terminal.expect("<ended 0>")
    finally:
        terminal.close()
