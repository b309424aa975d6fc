"""`actplane run` on this kernel: the main job, what it prints, what it leaves behind, how it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actplane.cli.exits import Exit
from actplane.codegen.tier import Tier
from actplane.errors import ActplaneError
from actplane.loader.features import Features
from actplane.runtime import tiers
from actplane.runtime.privileges import missing_capabilities
from tests.kernel.supervised import left_behind

ACTPLANE = [sys.executable, "-m", "actplane"]
NOBODY = 65534

NO_PUSH = """source COMMAND = exec "**"
      rule no-push:
        kill exec "git" "push" if COMMAND
        because "pushing is the reviewer's job" instead "open a draft and stop"
"""

TWO_PUSHES = 'git push; python3 -c "import subprocess; subprocess.run([\\"git\\",\\"push\\"])"; git status'

is_emulated = "TCG" in Path("/proc/cpuinfo").read_text()
native = pytest.mark.skipif(
    is_emulated, reason="needs no guest: this is the same on every kernel, and emulation is slow"
)

EVERY_TIER = pytest.mark.parametrize(
    "wanted",
    [Tier.LSM, pytest.param(Tier.FMOD_RET, marks=pytest.mark.fmod_ret), Tier.TRACE],
    ids=lambda tier: tier.value,
)
DENYING_TIERS = pytest.mark.parametrize(
    "wanted", [Tier.LSM, pytest.param(Tier.FMOD_RET, marks=pytest.mark.fmod_ret)], ids=lambda tier: tier.value
)


@pytest.fixture(scope="module")
def features() -> Features:
    if missing_capabilities():
        pytest.skip("needs root: programs are loaded")
    return Features()


@pytest.fixture(scope="module")
def tier(features: Features) -> Tier:
    """The best tier of this kernel."""
    try:
        return tiers.choose(features)
    except ActplaneError as error:
        pytest.skip(f"needs a tier: {str(error).splitlines()[0]}")


def require(wanted: Tier, features: Features) -> None:
    """Skip where this kernel does not offer a tier."""
    if not tiers.probe(wanted, features):
        pytest.skip(f"needs a kernel that offers tier {wanted.value}")


@pytest.fixture(autouse=True)
def nothing_left(tier: Tier) -> Iterator[None]:
    """A session leaves no cgroup and no process behind."""
    before = set(left_behind())
    yield
    deadline = time.monotonic() + 20
    while not set(left_behind()) <= before:
        assert time.monotonic() < deadline, "a session's cgroup was left behind"
        time.sleep(0.05)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository without a remote: a push that were let through would fail with status 128."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def run(*words: str | Path, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ACTPLANE, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **variables},
        timeout=300,
    )


def events_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@EVERY_TIER
def test_the_main_job(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, features: Features, wanted: Tier
) -> None:
    require(wanted, features)
    events_path = tmp_path_factory.mktemp("events") / "events.jsonl"
    done = run(
        *("run", "--tier", wanted.value, "--events", events_path, "--rule", NO_PUSH, "--", "bash", "-c", TWO_PUSHES),
        cwd=repository,
    )
    assert done.returncode == 0, done.stderr
    assert "No commits yet" in done.stdout

    said = done.stderr.splitlines()
    assert said[0].startswith(f"actplane: tier {wanted.value}; kill exec: killed before")
    assert [line for line in said if line.startswith("actplane: killed")] == [
        "actplane: killed exec `git push` (rule no-push)",
        "actplane: killed exec `git push` (rule no-push), for the 2nd time",
    ]
    assert "actplane:   because: pushing is the reviewer's job" in said
    assert "actplane:   instead: open a draft and stop" in said
    # Git itself never got to say anything: it died before its first instruction.
    assert "fatal" not in done.stderr

    events = events_of(events_path)
    assert len(events) == 2
    for event in events:
        assert (event["rule"], event["effect"], event["action"]) == ("no-push", "kill", "killed")
        assert (event["op"], event["tier"]) == ("exec", wanted.value)
        assert Path(event["target"]).name == "git"
        assert event["argv"] == ["git", "push"]
        assert event["labels"] == ["COMMAND"]
        assert (event["reason"], event["instead"]) == ("pushing is the reviewer's job", "open a draft and stop")
        assert abs(event["time_ns"] - time.monotonic_ns()) < 300e9
    first, second = events
    assert first["time_ns"] < second["time_ns"]
    assert first["pid"] != second["pid"]


@DENYING_TIERS
def test_a_blocked_exec_fails_in_its_caller(repository: Path, features: Features, wanted: Tier) -> None:
    require(wanted, features)
    code = "import subprocess\ntry: subprocess.run(['git', 'push'])\nexcept PermissionError: print('denied')"
    script = f'git push; echo $?; python3 -c "{code}"; git status'
    rule = NO_PUSH.replace("kill exec", "block exec")
    done = run("run", "--tier", wanted.value, "--rule", rule, "--", "bash", "-c", script, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert "Operation not permitted" in done.stderr
    assert "fatal" not in done.stderr
    assert done.stdout.splitlines()[:2] == ["126", "denied"]
    assert "No commits yet" in done.stdout
    # Python tries every folder of PATH that has a git.
    assert done.stderr.count("actplane: blocked exec `git push` (rule no-push)") >= 2


@DENYING_TIERS
def test_a_blocked_first_exec_is_told(features: Features, wanted: Tier) -> None:
    require(wanted, features)
    done = run("run", "-q", "--tier", wanted.value, "--rule", 'rule r: block exec "id" if AGENT because "why"', "id")
    assert done.returncode == Exit.NOT_EXECUTABLE
    assert done.stderr.splitlines() == [
        "actplane: blocked exec `id` (rule r)",
        "actplane:   because: why",
        "actplane: command not executable: id: Operation not permitted",
    ]


@native
@pytest.mark.parametrize("before", [True, False])
def test_the_policy_is_named_before_or_after_the_command(tmp_path: Path, before: bool) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text(
        "version: 1\nrules:\n  a: {policy: 'rule a: kill exec \"id\" if AGENT'}\n"
        "  b: {policy: 'rule b: kill exec \"who\" if AGENT'}\n"
        "domains:\n  one: {bind: [{rule: a, mode: locked}]}\n  two: {bind: [{rule: b, mode: locked}]}\n"
    )
    which = ["--policy", policy, "--domain", "two"]
    words = [*which, "run", "-q"] if before else ["run", "-q", *which]
    done = run(*words, "sh", "-c", "id -u; who; echo $?")
    assert done.stdout.split() == [str(os.getuid()), str(128 + signal.SIGKILL)], done.stderr
    assert "(rule b)" in done.stderr


@native
@pytest.mark.parametrize("status", [0, 3, 125])
def test_the_status_comes_through(status: int) -> None:
    assert run("run", "-q", "--rule", NO_PUSH, "sh", "-c", f"exit {status}").returncode == status


def test_a_signal_comes_through() -> None:
    """As without actplane: a shell sees 128 + the number, and knows that it was a signal."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        done = run("run", "-q", "--rule", NO_PUSH, "sh", "-c", f"kill -{number.value} $$")
        assert done.returncode == -number


@native
def test_a_command_killed_by_its_policy_says_so(repository: Path) -> None:
    done = run("run", "-q", "--rule", NO_PUSH, "git", "push", cwd=repository)
    assert done.stderr.splitlines()[0] == "actplane: killed exec `git push` (rule no-push)"
    assert done.returncode in (-signal.SIGKILL, Exit.NOT_EXECUTABLE)


@native
def test_standard_streams_and_environment() -> None:
    done = subprocess.run(
        [*ACTPLANE, "run", "-q", "--rule", NO_PUSH, "sh", "-c", "cat; env | grep ^ACTPLANE_ | cut -d= -f1 | sort"],
        input="through\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["through", "ACTPLANE_SESSION", "ACTPLANE_TIER"]
    assert done.stderr == ""


@native
def test_no_descriptor_of_ours_reaches_the_command() -> None:
    done = run("run", "-q", "--rule", NO_PUSH, "ls", "-l", "/proc/self/fd")
    assert "bpf" not in done.stdout
    assert "cgroup" not in done.stdout
    # Three streams and the folder that ls reads.
    assert done.stdout.count("->") == 4, done.stdout


def test_sudo_is_undone_for_the_command(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    events = Path("/tmp") / f"actplane-test-{os.getpid()}.jsonl"
    try:
        done = run(
            "run", "-q", "--rule", 'rule r: notify exec "id" if AGENT', "--events", events, "--", "id", "-u",
            SUDO_UID=str(NOBODY), SUDO_GID=str(NOBODY),
        )  # fmt: skip
        assert done.stdout.split() == [str(NOBODY)]
        # The events file is the user's: it was opened with their rights.
        assert events.stat().st_uid == NOBODY
        assert events_of(events)[0]["uid"] == NOBODY
    finally:
        events.unlink(missing_ok=True)
    kept = run(
        "run", "-q", "--run-as-root", "--rule", NO_PUSH, "--", "id", "-u", SUDO_UID=str(NOBODY), SUDO_GID=str(NOBODY)
    )
    assert kept.stdout.split() == ["0"]


@native
def test_an_events_file_the_user_may_not_write_is_not_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done = run(
        "run", "-q", "--rule", NO_PUSH, "--events", tmp_path / "e", "--", "true", SUDO_UID=str(NOBODY), SUDO_GID="65534"
    )
    assert done.returncode == Exit.FAILURE
    assert "cannot be written: Permission denied" in done.stderr
    assert not (tmp_path / "e").exists()


@native
def test_feedback_goes_where_the_policy_says(tmp_path: Path, repository: Path) -> None:
    (repository / "actplane.yaml").write_text(
        "version: 1\npolicy: |\n  " + NO_PUSH.replace("\n", "\n  ") + "\nfeedback: {path: .actplane/last.txt}\n"
    )
    done = run("run", "sh", "-c", "git push; cat $ACTPLANE_FEEDBACK_FILE", cwd=repository)
    assert "because: pushing is the reviewer's job" in (repository / ".actplane/last.txt").read_text()
    assert done.returncode == 0


def test_a_gate_opens_when_its_command_has_succeeded() -> None:
    rule = 'rule g: kill exec "id" if AGENT unless after exec "true" exits 0\n because "r"'
    done = run("run", "-q", "--rule", rule, "sh", "-c", "id -u; /bin/false; id -u; /bin/true; id -u")
    assert done.stdout.split() == [str(os.getuid())]
    assert done.stderr.count("actplane: killed exec") == 2


def test_connect_is_denied_before_it_happens() -> None:
    """Needs no network: a server of our own counts who got through."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.5)
        accepted: list[object] = []

        def accept() -> None:
            try:
                accepted.append(server.accept()[0].close())
            except TimeoutError:
                return

        code = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
        thread = threading.Thread(target=accept)
        thread.start()
        done = run(
            "run", "-q", "--rule", f'rule c: block connect endpoint "127.0.0.0/8:{port}" if AGENT',
            "--", "python3", "-c", code,
        )  # fmt: skip
        thread.join()
    assert done.returncode == 1
    assert "PermissionError" in done.stderr or "Operation not permitted" in done.stderr
    assert "actplane: blocked connect" in done.stderr
    assert not accepted


@native
def test_processes_outside_of_the_session_are_not_judged(repository: Path) -> None:
    rule = 'rule all: kill exec "**" if AGENT unless target "sleep"'
    session = subprocess.Popen([*ACTPLANE, "run", "-q", "--rule", rule, "sleep", "5"], stderr=subprocess.PIPE)
    time.sleep(2)
    assert subprocess.run(["id"], capture_output=True).returncode == 0
    assert session.poll() is None
    session.terminate()
    assert session.wait(timeout=60) == -signal.SIGTERM
    assert session.stderr is not None
    session.stderr.close()


@native
def test_sessions_do_not_mix() -> None:
    """Two at once, each with a policy of its own."""
    one = subprocess.Popen(
        [*ACTPLANE, "run", "-q", "--rule", 'rule a: kill exec "id" if AGENT', "sh", "-c", "sleep 2; id; who"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    two = run("run", "-q", "--rule", 'rule b: kill exec "who" if AGENT', "sh", "-c", "sleep 2; id -u; who; exit 4")
    out, err = one.communicate(timeout=300)
    assert "(rule a)" in err
    assert "(rule b)" not in err
    assert two.stdout.split() == [str(os.getuid())]
    assert "(rule b)" in two.stderr
    assert two.returncode == 4
    assert "uid=" not in out


@native
def test_a_session_in_a_session_obeys_both() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root inside of the session too")
    inner = [*ACTPLANE, "run", "-q", "--rule", 'rule b: kill exec "who" if AGENT', "sh", "-c", "id; who; exit 6"]
    done = run("run", "-q", "--rule", 'rule a: kill exec "id" if AGENT', "--", *inner)
    assert done.stdout == ""
    assert "(rule a)" in done.stderr
    assert "(rule b)" in done.stderr
    assert done.returncode == 6


@native
def test_the_keys_of_an_event_are_those_that_are_documented(tmp_path: Path) -> None:
    path = tmp_path / "events"
    assert run("run", "-q", "--events", path, "--rule", 'rule r: notify exec "true" if AGENT', "true").returncode == 0
    documented = (Path(__file__).parents[2] / "docs/events.md").read_text()
    keys = {key for row in re.findall(r"^\| (`.*?) \|", documented, re.MULTILINE) for key in re.findall("`(.*?)`", row)}
    (event,) = events_of(path)
    assert set(event) == keys - {"hex"}


def wait_for(path: Path, otherwise: str) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


@native
def test_events_that_find_no_room_are_enforced_and_counted(tmp_path: Path) -> None:
    """With the supervisor stopped nobody reads the ring buffer; the kernel goes on judging."""
    events, ready, done = tmp_path / "events", tmp_path / "ready", tmp_path / "done"
    count = 1000
    script = (
        f"touch {ready}; while ! [ -e {tmp_path}/go ]; do sleep 0.05; done; i=0; "
        f"while [ $i -lt {count} ]; do /bin/true {'x' * 1000}; i=$((i+1)); done; touch {done}; sleep 1"
    )
    rule = 'rule r: notify exec "true" if AGENT'
    session = subprocess.Popen(
        [*ACTPLANE, "run", "--events", str(events), "--rule", rule, "bash", "-c", script],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with session:
        try:
            # Not before the command runs: a supervisor that is stopped releases nobody.
            wait_for(ready, "the command did not start")
            session.send_signal(signal.SIGSTOP)
            (tmp_path / "go").touch()
            wait_for(done, "the command did not come to its end")
            session.send_signal(signal.SIGCONT)
            assert session.stderr is not None
            said = session.stderr.read()
            assert session.wait(timeout=60) == 0
        finally:
            session.kill()
    found = re.search(r"actplane: (\d+) events were enforced and not reported", said)
    assert found, said[-500:]
    assert int(found[1]) + len(events_of(events)) == count


# What is refused, each with its status.


@native
def test_a_command_that_is_not_there() -> None:
    done = run("run", "-q", "--rule", NO_PUSH, "no-such-command-here")
    assert done.returncode == Exit.NOT_FOUND
    assert "actplane: command not found: no-such-command-here" in done.stderr


@native
def test_a_command_that_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    done = run("run", "-q", "--rule", NO_PUSH, tmp_path / "data")
    assert done.returncode == Exit.NOT_EXECUTABLE
    assert "command not executable" in done.stderr
    assert "Permission denied" in done.stderr


@native
def test_a_policy_with_errors_runs_nothing(tmp_path: Path) -> None:
    done = run("run", "--rule", 'rule r: blok exec "git"\nrule s: kill exce "x"', "touch", tmp_path / "ran")
    assert done.returncode == Exit.POLICY
    assert "--rule:1:9" in done.stderr
    assert "--rule:2:14" in done.stderr
    assert not (tmp_path / "ran").exists()


@native
def test_a_policy_that_says_nothing_about_a_session(tmp_path: Path) -> None:
    done = run("run", "--rule", 'rule r: kill exec "git"', "touch", tmp_path / "ran")
    assert done.returncode == Exit.POLICY
    assert "COMMAND" in done.stderr
    assert not (tmp_path / "ran").exists()


@native
def test_what_the_trace_tier_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    rule = 'rule keep:\n  block write file "/etc/**" if AGENT\n  kill exec "id" if AGENT\n'
    words = ("run", "--tier", "trace", "--rule", rule)
    done = run(*words, "touch", tmp_path / "ran")
    assert done.returncode == Exit.NOT_ENFORCEABLE
    assert "--rule:2:3" in done.stderr
    assert 'block write file "/etc/**" if AGENT' in done.stderr
    assert not (tmp_path / "ran").exists()
    weaker = run(*words, "--allow-degraded", "id")
    assert weaker.returncode == -signal.SIGKILL
    assert "weaker than written: 1 clause" in weaker.stderr


@pytest.mark.fmod_ret
def test_a_tier_that_the_kernel_does_not_offer_is_refused(tier: Tier) -> None:
    if tier is Tier.LSM:
        pytest.skip("needs a kernel without the LSM tier")
    done = run("run", "--tier", "lsm", "--rule", NO_PUSH, "true")
    assert done.returncode == Exit.TIER_NOT_OFFERED
    assert "actplane: tier lsm: this kernel does not offer it" in done.stderr
    if "bpf" not in tiers.security_modules():
        assert "hint: boot with `bpf` in the list of security modules" in done.stderr


@native
def test_a_process_without_privileges_is_told(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, to give privileges up")
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *ACTPLANE, "run", "--rule", NO_PUSH, "true"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == Exit.NOT_PRIVILEGED, done.stderr
    assert "actplane: not enough privileges" in done.stderr
    assert "CAP_BPF" in done.stderr


@native
def test_a_session_with_a_task_that_could_not_be_marked_is_ended(tier: Tier) -> None:
    """The kernel does not run out of memory on demand, so its count is what is made up here."""
    script = (
        "import sys\n"
        "from actplane.cli import main\n"
        "from actplane.runtime.engine import Engine\n"
        "Engine.unmarked_tasks = lambda engine: 1\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "--rule", NO_PUSH, "--", "sh", "-c", "git push; sleep 600"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL
    assert "actplane: the kernel had no memory to mark a new process, so the session was ended" in done.stderr


def test_connections_that_the_trace_tier_cannot_see_are_refused_by_name(features: Features) -> None:
    require(Tier.TRACE, features)
    if tiers.sees_connect(Tier.TRACE, features):
        pytest.skip("needs a kernel whose cgroup programs may not read task storage, such as 6.12")
    done = run(
        "run", "--tier", "trace", "--rule", 'rule r: block connect endpoint "10.0.0.0/8" if COMMAND', "--", "true"
    )
    assert done.returncode == Exit.NOT_ENFORCEABLE, done.stderr
    assert "cgroup programs of this kernel may not read task storage" in done.stderr
