"""
The kernel tests in guests: one boot a variant, one after the other, results and coverage brought back.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from tests.vm.guest import LSM_WITH_BPF, LSM_WITHOUT_BPF, REPOSITORY, SHARE, Guest
from tests.vm.kernels import GuestError, require_kernel

SUITE_SECONDS = 1500

# What no kernel version changes is tested natively, where it takes seconds: thousands of random programs, how a
# command is launched and supervised. In a guest the mirror alone takes ten seconds for every policy that is run.
# `too_old` is for 5.10 alone, see _OLD.
_NATIVE = tuple(
    f"test_kernel_{name}.py"
    for name in ("asm", "elf", "launch", "machine", "machine_helpers", "run", "select", "too_old", "verifier")
)
# The command line is tested once for each tier: what the kernel does on it is in the other modules.
_DENIED = ("test_the_main_job", "test_a_blocked_exec_fails_in_its_caller", "test_a_blocked_first_exec_is_told")
_RUN = {
    "lsm": (
        *(f"{name}[lsm]" for name in _DENIED),
        "test_the_main_job[trace]",
        "test_connections_that_the_trace_tier_cannot_see_are_refused_by_name",
    ),
    "fmod_ret": tuple(f"{name}[fmod_ret]" for name in _DENIED),
}


def _selection(tier: str) -> tuple[str, ...]:
    """Return what is run in a guest whose best tier this is."""
    modules = sorted((REPOSITORY / "tests/kernel").glob("test_*.py"))
    return (
        *(str(path.relative_to(REPOSITORY)) for path in modules if path.name not in _NATIVE),
        *(f"tests/kernel/test_kernel_run.py::{test}" for test in _RUN[tier]),
        "tests/vm/test_boot.py",
    )


@dataclass(frozen=True)
class Variant:
    """One boot: a name for the report, a kernel, its LSM list, and the tests to run there."""

    name: str
    series: str
    lsm: str = LSM_WITH_BPF
    selection: tuple[str, ...] = _selection("lsm")


# No session can run on 5.10, so there it is tested what loads, and that the product says what is missing.
_OLD = ("test_known_kernels.py", "test_kernel_too_old.py", "test_kernel_loader.py")

VARIANTS = (
    Variant("5.10", "5.10", selection=(*(f"tests/kernel/{name}" for name in _OLD), "tests/vm/test_boot.py")),
    Variant("6.1", "6.1"),
    Variant("6.12", "6.12"),
    Variant("6.12-no-bpf-lsm", "6.12", LSM_WITHOUT_BPF, ("-m", "fmod_ret or boot", *_selection("fmod_ret"))),
    Variant("7.2", "7.2"),
)


@dataclass(frozen=True)
class Outcome:
    """What a boot came to: counts of the tests' results, the names of those that failed."""

    variant: str
    passed: int
    skipped: int
    failed: tuple[str, ...]
    seconds: float
    complaint: str = ""
    deaths: int = 0

    @property
    def is_good(self) -> bool:
        # A guest in which nothing passed has proved nothing.
        return not self.failed and not self.complaint and self.passed > 0

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {len(self.failed)} failed, {self.skipped} skipped in {self.seconds:.0f} s"
        earlier = f" (after {self.deaths} attempts in which the guest died)" if self.deaths else ""
        return f"guest {self.variant}: {self.complaint or counts}{earlier}"


def run_suite(names: Sequence[str], results: Path, extra: Sequence[str]) -> list[Outcome]:
    """
    Boot the named variants (all if none is named), run the kernel tests in each, leave
    `results/.coverage.*` and `results/guest-NAME/{junit.xml,output}` behind.
    """
    known = {variant.name: variant for variant in VARIANTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise GuestError(f"guests: unknown variant: got {', '.join(unknown)}, expected some of {', '.join(known)}")
    outcomes = []
    for variant in [known[name] for name in names] or VARIANTS:
        print(f"\n==== guest {variant.name} (lsm={variant.lsm})", flush=True)
        outcome = _run_variant(variant, results, extra)
        print(outcome, flush=True)
        outcomes.append(outcome)
    return outcomes


def _run_variant(variant: Variant, results: Path, extra: Sequence[str]) -> Outcome:
    share = results / f"guest-{variant.name}"
    shutil.rmtree(share, ignore_errors=True)
    start = time.monotonic()
    try:
        guest = Guest(require_kernel(variant.series), lsm=variant.lsm)
        end = guest.run(_command(variant, extra), share=share, timeout_seconds=SUITE_SECONDS)
    except GuestError as error:
        return Outcome(variant.name, 0, 0, (), time.monotonic() - start, str(error))
    for data in share.glob(".coverage*"):
        shutil.move(data, results / f".coverage.guest-{variant.name}{data.name.removeprefix('.coverage')}")
    outcome = _read(variant.name, share / "junit.xml")
    complaint = outcome.complaint
    if end.status != 0 and not outcome.failed:
        complaint = f"pytest ended with exit status {end.status}"
    return replace(outcome, complaint=complaint, seconds=time.monotonic() - start, deaths=len(end.deaths))


def _command(variant: Variant, extra: Sequence[str]) -> str:
    pytest = [
        *(sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-o", "timeout=900"),
        *("--cov=actplane", "--cov-config=tests/vm/coverage.ini", "--cov-report=", f"--junitxml={SHARE}/junit.xml"),
        *variant.selection,
        *extra,
    ]
    # Coverage's database wants a local file system's locks, so it is written to tmpfs and copied.
    return "\n".join(
        (
            f"cd {shlex.quote(str(REPOSITORY))} || exit 1",
            "mkdir /tmp/coverage && export COVERAGE_FILE=/tmp/coverage/.coverage",
            shlex.join(pytest),
            "status=$?",
            f"cp /tmp/coverage/.coverage* {SHARE}/",
            "exit $status",
        )
    )


def _read(name: str, junit: Path) -> Outcome:
    if not junit.exists():
        return Outcome(name, 0, 0, (), 0, "pytest left no results")
    cases = list(ElementTree.parse(junit).getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = tuple(f"{case.get('classname')}::{case.get('name')}" for case in failed)
    return Outcome(name, len(cases) - len(failed) - len(skipped), len(skipped), names, 0)
