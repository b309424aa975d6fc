"""The guest is what it was asked to be: this kernel, these LSMs, these file systems."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

SERIES = os.environ.get("ACTPLANE_GUEST")

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(SERIES is None, reason="runs in a guest: see `make test-vm`"),
]


def test_the_kernel_is_of_the_series_that_was_booted():
    assert platform.release().startswith(f"{SERIES}.")


def test_the_lsm_list_has_bpf_exactly_if_the_command_line_says_so():
    asked = next(word for word in Path("/proc/cmdline").read_text().split() if word.startswith("lsm="))
    active = Path("/sys/kernel/security/lsm").read_text().split(",")
    assert ("bpf" in active) == ("bpf" in asked.removeprefix("lsm=").split(","))


def test_the_kernel_brings_its_type_information():
    assert Path("/sys/kernel/btf/vmlinux").read_bytes()[:2] == b"\x9f\xeb"


@pytest.mark.parametrize(
    ("place", "kind"), [("/", "9p"), ("/tmp", "tmpfs"), ("/sys/fs/cgroup", "cgroup2"), ("/sys/fs/bpf", "bpf")]
)
def test_file_systems_are_in_place(place: str, kind: str):
    mounted = {fields[1]: fields[2] for fields in map(str.split, Path("/proc/mounts").read_text().splitlines())}
    assert mounted[place] == kind


def test_the_host_tree_cannot_be_written():
    with pytest.raises(OSError, match="Read-only file system"):
        Path(__file__).with_suffix(".touched").write_text("")
