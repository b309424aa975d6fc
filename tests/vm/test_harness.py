"""The parts of the harness that need no guest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vm import suite
from tests.vm.initramfs import archive
from tests.vm.kernels import GuestError, _newest, require_kernel


def test_an_unknown_series_is_named_with_what_there_is():
    with pytest.raises(GuestError, match=r"got '4\.4', expected one of 5\.10, 6\.1, 6\.12, 7\.2"):
        require_kernel("4.4")


def test_newest_compares_numbers_not_letters():
    names = ["linux-image-6.12.9+deb13-amd64", "linux-image-6.12.107+deb13-amd64", "linux-image-6.12.43-cloud-amd64"]
    assert _newest(names, r"linux-image-6\.12\.[0-9]+\+deb13-amd64", "trixie") == names[1]


@pytest.mark.skipif(shutil.which("cpio") is None, reason="the cpio command is not installed")
def test_cpio_unpacks_the_archive(tmp_path: Path):
    files = {"init": b"#!/bin/sh\n", "modules/a.ko": b"abc", "modules/deep/b.ko": bytes(range(256))}
    subprocess.run(["cpio", "-i", "--quiet"], input=archive(files), cwd=tmp_path, check=True)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


JUNIT = """<testsuites><testsuite>
  <testcase classname="a" name="good"/><testcase classname="a" name="bad"><failure/></testcase>
  <testcase classname="a" name="broken"><error/></testcase><testcase classname="a" name="absent"><skipped/></testcase>
</testsuite></testsuites>"""


def test_results_are_counted_from_junit(tmp_path: Path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    outcome = suite._read("6.12", tmp_path / "junit.xml")
    assert (outcome.passed, outcome.skipped, outcome.failed) == (1, 1, ("a::bad", "a::broken"))
    assert not outcome.is_good


def test_a_guest_in_which_nothing_passed_is_not_good():
    assert not suite.Outcome("6.12", passed=0, skipped=3, failed=(), seconds=1.0).is_good
    assert suite.Outcome("6.12", passed=1, skipped=3, failed=(), seconds=1.0).is_good
