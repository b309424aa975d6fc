"""
What every test is held to: no file descriptor leaks, and no skip without a name.
"""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

KERNEL_TESTS = Path(__file__).parent / "kernel"


def pytest_configure() -> None:
    """
    Obey the signals that a shell's `&` or nohup told this process to ignore.

    Every command that the tests start would ignore them too, those that are tested for obeying among them.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if KERNEL_TESTS in item.path.parents:
            item.add_marker("kernel")


@pytest.fixture(autouse=True)
def no_fd_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves more file descriptors open than it found: on a `bpf()` door each is a kernel object."""
    before = _open_files()
    yield
    if request.node.get_closest_marker("keeps_fds"):
        return
    left = _left_open(before)
    if left:
        # A reference cycle may still hold the object that closes it; what stays after this is a leak.
        gc.collect()
        left = _left_open(before)
    assert not left, f"file descriptors left open: {left}"


def _left_open(before: dict[int, str]) -> dict[int, str]:
    return {fd: target for fd, target in _open_files().items() if before.get(fd) != target}


def _open_files() -> dict[int, str]:
    """Each open descriptor with what it leads to, without the one that reads the list."""
    files = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            files[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return files


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Show a failure at once in a guest, which may not live to the end of the run."""
    if report.failed and "ACTPLANE_GUEST" in os.environ:
        print(f"\n---- {report.nodeid} ({report.when})\n{report.longreprtext}", flush=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the skips by their reasons, so that what was not tested is said in a few lines."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        # For a skip the representation is (path, line, "Skipped: reason").
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section("skipped, and why")
        for reason, count in sorted(reasons.items()):
            terminalreporter.write_line(f"{count:4} {reason}")
