"""A session stays in, and names stay what they are: what every policy rests on, though no clause says it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actplane.codegen.tier import Tier
from actplane.runtime.cgroup import own_directory
from tests.kernel.enforcing import (
    ALLOWED,
    DENIED,
    REPOSITORY,
    Outcome,
    binary,
    command,
    enforce,
    require_tier,
    words,
    write_policy,
)

pytestmark = pytest.mark.fmod_ret

POLICY = """
rule writing: block write file "{work}/protected/**" if AGENT
rule reading: block read file "{work}/secret/**" if AGENT
rule tools: block exec "{work}/{tools,jail}/**" if AGENT unless target "{work}/tools/allowed"
"""

OTHER_NAMES = words("""bind_a_folder bind_a_file bind_everything bind_over_what_is_exempt mount_something_new
    write_in_a_cloned_tree read_in_a_cloned_tree attach_a_cloned_tree write_in_an_unmounted_tree pivot_the_root
    write_in_a_chroot called_as_what_is_exempt""")
OTHERS = words("""trace_a_process_outside seize_a_process_outside memory_of_a_process_outside
    descriptor_of_a_process_outside type_into_a_terminal""")
PASSES = words("""write_in_namespaces change_flags_of_a_mount exempt a_message_queue look_at_a_process_outside
    trace_a_process_inside ask_a_terminal""")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    require_tier(Tier.LSM, Tier.FMOD_RET)
    folder = tmp_path_factory.mktemp("confine")
    work = folder / "work"
    for name in ("protected/file", "secret/file", "free/file", "free/folder/file"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("text")
    binary(work / "tools/allowed")
    binary(work / "tools/other")
    binary(work / "jail" / (work / "tools/allowed").relative_to("/"), "busybox")
    with subprocess.Popen(["sleep", "1000"]) as outside:
        try:
            return enforce(
                folder, POLICY.replace("{work}", str(work)), "confine", outside={"OUTSIDE": str(outside.pid)}
            )
        finally:
            outside.kill()


def test_every_trial_is_looked_at(session: Outcome) -> None:
    assert sorted(session.results) == sorted([*OTHER_NAMES, *OTHERS, *PASSES])


@pytest.mark.parametrize("trial", OTHER_NAMES)
def test_a_file_gets_no_other_name(session: Outcome, trial: str) -> None:
    assert session.results[trial] == DENIED


@pytest.mark.parametrize("trial", OTHERS)
def test_nothing_is_done_through_others(session: Outcome, trial: str) -> None:
    assert session.results[trial] == DENIED


@pytest.mark.parametrize("trial", PASSES)
def test_what_does_not_lead_out_is_allowed(session: Outcome, trial: str) -> None:
    assert session.results[trial] == ALLOWED


def test_events_say_what_was_refused_and_why(session: Outcome) -> None:
    of = {str(event["op"]): event for event in session.events if event["rule"] is None}
    assert any(str(event["target"]).endswith("/free/folder") for event in session.events if event["op"] == "mount")
    assert str(of["ptrace"]["target"]).endswith("/sleep")
    assert "other names" in str(of["mount"]["reason"])
    assert "not in the session" in str(of["ptrace"]["reason"])
    assert str(of["ioctl"]["target"]).isdigit() or "/pts/" in str(of["ioctl"]["target"])
    assert "typed into this terminal" in str(of["ioctl"]["reason"])
    assert "attached nowhere" in str(of["write"]["reason"])
    assert {event["action"] for event in of.values()} == {"blocked"}


LEAVE = """
import os, sys, time
place = sys.argv[1]
if os.fork() == 0:
    os.setsid()
    with open(place + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
    with open(sys.argv[2], "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)
while not os.path.exists(sys.argv[2]) or not os.path.getsize(sys.argv[2]):
    time.sleep(0.01)
"""


def test_who_leaves_the_cgroup_is_ended_with_the_session(tmp_path: Path) -> None:
    require_tier()
    place = own_directory() / f"elsewhere-{os.getpid()}"
    place.mkdir()
    try:
        done = subprocess.run(
            [
                *command(write_policy(tmp_path, 'rule r: kill exec "never" if AGENT'), "--", sys.executable),
                *("-S", "-c", LEAVE, place, tmp_path / "pid"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert "1 process had left the session's cgroup; ended" in done.stderr
        assert not _runs(int((tmp_path / "pid").read_text()))
    finally:
        place.rmdir()


def _runs(pid: int) -> bool:
    """Say whether a process is still there; init may take its time to wait for it."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False
        time.sleep(0.01)
    return True
