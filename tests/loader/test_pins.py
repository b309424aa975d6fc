"""Finding the BPF file system; what needs a real one is in the kernel tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from actplane.loader import pins
from actplane.loader.pins import is_bpffs, unpin

MOUNTS = """\
22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 22 0:27 / /sys/fs/bpf rw,nosuid shared:9 master:2 - bpf bpf rw,mode=700
99 28 0:44 / /mnt/with\\040space rw - bpf none rw
98 28 0:45 / /mnt/tmp rw - tmpfs bpf rw
"""


@pytest.mark.parametrize(
    ("where", "is_one"),
    [("/sys/fs/bpf", True), ("/mnt/with space", True), ("/sys", False), ("/mnt/tmp", False), ("/nowhere", False)],
)
def test_a_mounted_bpf_file_system_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, is_one: bool
) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(MOUNTS)
    monkeypatch.setattr(pins, "_MOUNTINFO", mountinfo)
    assert is_bpffs(Path(where)) is is_one


def test_unpinning_says_whether_there_was_a_pin(tmp_path: Path) -> None:
    (tmp_path / "pin").touch()
    assert unpin(tmp_path / "pin")
    assert not unpin(tmp_path / "pin")
