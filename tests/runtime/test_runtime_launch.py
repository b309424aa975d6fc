"""What launching decides without a kernel: whose rights, which file, which cgroup."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from actplane.errors import ActplaneError, UnsupportedFeature
from actplane.runtime import privileges
from actplane.runtime.cgroup import NoCgroup, SessionCgroup, own_directory
from actplane.runtime.launch import candidates
from actplane.runtime.privileges import User, home_variables, invoking_user
from actplane.runtime.reporter import Reporter

MOUNTS = """\
22 28 0:20 / /sys rw shared:7 - sysfs sysfs rw
30 22 0:26 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate
31 22 0:27 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,name=systemd
"""


def test_a_command_is_looked_for_as_a_shell_would() -> None:
    assert candidates("git", {"PATH": "/a:/b"}) == ["/a/git", "/b/git"]
    assert candidates("git", {}) == [f"{folder}/git" for folder in os.defpath.split(":")]
    assert candidates("git", {"PATH": ""}) == ["git"]
    assert candidates("/x/git", {"PATH": "/a"}) == ["/x/git"]


def test_the_cgroup_of_this_process_among_all_mounts() -> None:
    membership = "9:name=systemd:/old\n0::/user.slice/a\n"
    assert own_directory(MOUNTS, membership) == Path("/sys/fs/cgroup/unified/user.slice/a")


def test_a_mount_that_shows_a_part_of_the_tree() -> None:
    mounts = "30 22 0:26 /user.slice /cg rw - cgroup2 none rw\n"
    assert own_directory(mounts, "0::/user.slice/a") == Path("/cg/a")
    assert own_directory(mounts, "0::/user.slice") == Path("/cg")
    with pytest.raises(NoCgroup, match="not mounted"):
        own_directory(mounts, "0::/user.slice2/a")


@pytest.mark.parametrize(("mounts", "membership"), [("", "0::/"), (MOUNTS, "4:memory:/\n")])
def test_no_cgroup2(mounts: str, membership: str) -> None:
    with pytest.raises(NoCgroup, match="hint: mount -t cgroup2"):
        own_directory(mounts, membership)


def test_a_cgroup_that_cannot_be_ended_is_not_used(tmp_path: Path) -> None:
    """A plain folder has no cgroup.kill, as none had before Linux 5.14."""
    with pytest.raises(UnsupportedFeature, match=r"cgroup.kill.*5\.14"):
        SessionCgroup(tmp_path / "session")
    assert not (tmp_path / "session").exists()
    with pytest.raises(NoCgroup, match="No such file"):
        SessionCgroup(tmp_path / "no" / "session")


def test_a_closed_standard_error_is_not_standard_output() -> None:
    code = "from actplane.runtime.reporter import say; say('x')"
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{code}" 2>&-'], capture_output=True, check=True)
    assert done.stdout == b""


def test_who_called_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert invoking_user({}) is None
    assert invoking_user({"SUDO_UID": "0", "SUDO_GID": "0"}) is None
    unknown = invoking_user({"SUDO_UID": "54321", "SUDO_GID": "54322"})
    assert unknown == User(54321, 54322, (54322,))
    with pytest.raises(ActplaneError, match="run-as-root"):
        invoking_user({"SUDO_UID": "1000"})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert invoking_user({"SUDO_UID": "1", "SUDO_GID": "1"}) is None


def test_what_sudo_turned_to_root_is_turned_back() -> None:
    alice = User(1000, 1000, (1000,), "alice", "/home/alice")
    after_sudo = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "PATH": "/bin"}
    assert home_variables(alice, after_sudo) == {"HOME": "/home/alice", "USER": "alice", "LOGNAME": "alice"}
    assert home_variables(alice, {"HOME": "/srv/x", "USER": "alice"}) == {}
    assert home_variables(User(5, 5, ()), after_sudo) == {}


def test_capabilities_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **options: "Name:\tx\nCapEff:\t000000c000000000\n")
    assert privileges.missing_capabilities() == ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]
    monkeypatch.setattr(Path, "read_text", lambda self, **options: "CapEff:\t000001ffffffffff\n")
    assert privileges.missing_capabilities() == []


def test_a_file_that_cannot_be_opened_leaves_none_open(tmp_path: Path) -> None:
    with pytest.raises(ActplaneError, match="cannot be written"):
        Reporter(tmp_path / "events", tmp_path, None)


def test_a_full_disk_is_said_once_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with Reporter(Path("/dev/full"), None, None) as reporter:
        assert reporter._events is not None
        reporter._events.write("one\n")
        reporter._events.write("two\n")
    assert capsys.readouterr().err.count("No space left on device") == 1
