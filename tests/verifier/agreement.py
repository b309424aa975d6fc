"""
How well the mirror agrees with six kernels on the corpus of real programs.

    python -m tests.verifier.agreement corpus --types DIR --out FILE [--kernel NAME ...] [--unprivileged] [--show]

DIR holds the kernels' types, one file each: `btf-5.10`, `btf-6.1`, ...; where one is missing, the running
kernel's are used, and programs that need those of the other kernel may be judged wrongly.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actplane.loader.btf import Btf
from actplane.verifier import KernelProfile, Report, profile_of
from tests.verifier import corpus

KERNELS = {
    "5.10": "5.10.0-",
    "6.1": "6.1.0-",
    "6.12": "6.12.",
    "6.18": "6.18.15",
    "7.2": "7.2.",
    "host": "-fc-",
}
"""What the release strings of the corpus contain, by the name of the profile."""

MOST_PROCESSED = 6_000

_FLAGS_SINCE = {32: (5, 18), 128: (6, 8)}
"""Flags of BPF_PROG_LOAD (XDP_HAS_FRAGS, TEST_REG_INVARIANTS) that older kernels refuse before they look."""


@dataclass
class Row:
    """One line of the table: a kernel, a tier, all types or ours."""

    programs: int = 0
    equal: int = 0
    kernel_only: list[str] = field(default_factory=list)
    named: int = 0
    """How many of `kernel_only` the mirror refuses by the name of what it does not model."""
    mirror_only: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.equal / self.programs if self.programs else 0.0


NOT_MODELLED = frozenset({"arena-not-modelled", "target-not-modelled", "unsupported"})
"""Ids of refusals that say what the mirror does not model."""


def answers_of(case: corpus.Case, *, is_privileged: bool) -> dict[str, dict[str, Any]]:
    """Return what the kernels said, by release."""
    found: dict[str, dict[str, Any]] | None = case.raw.get("kernel" if is_privileged else "kernel_unpriv")
    return found or {}


def verdict_of(case: corpus.Case, kernel: str, *, is_privileged: bool = True) -> str:
    """Return what a kernel said: accept, reject, or nothing if it could not take the maps or forbids the type."""
    for bit, since in _FLAGS_SINCE.items():
        if case.raw["prog_flags"] & bit and not profile_for(kernel).at_least(*since):
            return ""
    for release, answer in answers_of(case, is_privileged=is_privileged).items():
        if KERNELS[kernel] in release:
            is_forbidden = (
                is_privileged
                and answer["verdict"] == "reject"
                and answer.get("errno") == "EPERM"
                and not answer.get("errmsg")
            )
            return str(answer["verdict"]) if answer["verdict"] != "setup_error" and not is_forbidden else ""
    return ""


def message_of(case: corpus.Case, kernel: str, *, is_privileged: bool = True) -> str:
    """Return the kernel's last words about a case."""
    for release, answer in answers_of(case, is_privileged=is_privileged).items():
        if KERNELS[kernel] in release:
            return str(answer.get("errmsg") or answer.get("errno") or "")
    return ""


def profile_for(kernel: str) -> KernelProfile:
    """Return the profile of one of the corpus's kernels; its host was locked down."""
    if kernel == "6.18":
        return profile_of("6.18.15")
    if kernel != "host":
        return profile_of(kernel)
    return replace(profile_of("6.18"), is_lockdown=True, writes_registers=False)


def types_for(kernel: str, folder: Path | None) -> Btf:
    path = folder / f"btf-{kernel}" if folder is not None else None
    return Btf(path.read_bytes()) if path is not None and path.exists() else Btf.vmlinux()


def judged(
    kernel: str, types: Btf, cases: Iterable[corpus.Case], *, is_privileged: bool = True
) -> Iterable[tuple[corpus.Case, str, Report | None]]:
    """Yield the cases on which a kernel gave a verdict, with it and the mirror's report."""
    profile = profile_for(kernel)
    for case in cases:
        truth = verdict_of(case, kernel, is_privileged=is_privileged)
        if truth and case.processed <= MOST_PROCESSED:
            report = corpus.judge(case, types, profile=profile, max_insns=100_000, is_privileged=is_privileged)
            yield case, truth, report


def table(
    kernel: str, types: Btf, cases: Iterable[corpus.Case], *, is_privileged: bool = True, is_shown: bool = False
) -> dict[str, Row]:
    """Return the rows of one kernel by `tier types`."""
    rows: dict[str, Row] = {}
    for case, truth, report in judged(kernel, types, cases, is_privileged=is_privileged):
        answer = "accept" if report is not None and report.is_accepted else "reject"
        refusal = report.refusal if report is not None else None
        if is_shown and answer != truth:
            said = f"{refusal.id} @{refusal.slot}: {refusal.claim}" if refusal else answer
            words = message_of(case, kernel, is_privileged=is_privileged)
            print(f"{kernel} {case.tier} {case.kind} {case.id}: {truth} {words!r}; mirror: {said}")
        for kinds in ("ours", "all") if case.kind in corpus.OUR_TYPES else ("all",):
            row = rows.setdefault(f"{case.tier} {kinds}", Row())
            row.programs += 1
            if answer == truth:
                row.equal += 1
            else:
                (row.kernel_only if truth == "accept" else row.mirror_only).append(case.id)
                row.named += truth == "accept" and refusal is not None and refusal.id in NOT_MODELLED
    return rows


def measure(arguments: argparse.Namespace) -> int:
    """Judge the whole corpus for each kernel and write what came out."""
    cases = list(corpus.cases())
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for kernel in arguments.kernel or KERNELS:
        is_privileged = not arguments.unprivileged
        types = types_for(kernel, arguments.types)
        rows = table(kernel, types, cases, is_privileged=is_privileged, is_shown=arguments.show)
        found[kernel if is_privileged else f"{kernel} unprivileged"] = {
            name: vars(row) for name, row in sorted(rows.items())
        }
        for name, row in sorted(rows.items()):
            print(
                f"{kernel:5} {name:14} {row.programs:5}  equal {100 * row.share:6.2f} %"
                f"  kernel only {len(row.kernel_only):4} (by name {row.named:3})  mirror only {len(row.mirror_only):4}",
                flush=True,
            )
        arguments.out.write_text(json.dumps(found, indent=1))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("corpus", help=measure.__doc__)
    verb.add_argument("--types", type=Path, help="a folder of BTF files")
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--kernel", action="append", default=[], choices=KERNELS)
    verb.add_argument("--unprivileged", action="store_true", help="compare what users without privileges were told")
    verb.add_argument("--show", action="store_true", help="print each disagreement")
    verb.set_defaults(handler=measure)
    arguments = parser.parse_args()
    return int(arguments.handler(arguments))


if __name__ == "__main__":
    sys.exit(main())
