"""The mirror against real programs with real verdicts: a fixed sample of every type."""

from __future__ import annotations

from collections import Counter

import pytest

from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from tests.verifier import agreement, corpus

SAMPLE = 9
"""Every ninth case is judged here; `bench/test_bench_verifier.py` says how to judge all."""

LARGEST = 2_000

KNOWN_MORE_PRECISE = {
    # 6.12 and 6.18 lose a bound here that 6.1, 7.2 and the mirror keep.
    "real/bcc-libbpf-tools/cpufreq/do_sample",
}


@pytest.fixture(scope="module")
def types() -> Btf:
    if not corpus.ARCHIVE.exists():
        pytest.skip("needs the corpus of programs beside the repository")
    try:
        return Btf.vmlinux()
    except ActplaneError as error:
        pytest.skip(f"needs the types of a kernel: {error}")


def test_core_programs_get_the_kernels_verdict(types: Btf) -> None:
    sample = [
        case
        for case in corpus.cases()
        if case.tier == "core" and case.kind in corpus.OUR_TYPES and case.processed <= LARGEST
    ][::SAMPLE]
    verdicts: Counter[tuple[str, str]] = Counter()
    wrongly_accepted = []
    for case in sample:
        report = corpus.judge(case, types)
        answer = "accept" if report is not None and report.is_accepted else "reject"
        verdicts[case.truth, answer] += 1
        if (case.truth, answer) == ("reject", "accept"):
            wrongly_accepted.append(case.id)
    agreed = verdicts["accept", "accept"] + verdicts["reject", "reject"]
    assert len(sample) > 100
    assert agreed / len(sample) >= 0.97, verdicts
    assert set(wrongly_accepted) <= KNOWN_MORE_PRECISE


def test_extended_programs_get_the_kernels_verdict_or_a_name(types: Btf) -> None:
    """Programs with functions, objects and callbacks: what is refused beyond the kernel is refused by name."""
    cases = [
        case
        for case in corpus.cases()
        if case.tier == "extended" and case.kind in corpus.OUR_TYPES and case.processed <= LARGEST
    ]
    rows = agreement.table("host", types, cases[::SAMPLE])
    row = rows["extended ours"]
    assert row.programs > 40
    assert (row.equal + row.named) / row.programs >= 0.9, row


def test_unprivileged_programs_get_the_kernels_verdict(types: Btf) -> None:
    sample = [case for case in corpus.cases() if case.raw.get("kernel_unpriv") and case.processed <= LARGEST][::SAMPLE]
    rows = agreement.table("6.12", types, sample, is_privileged=False)
    wrong = [name for row in rows.values() for name in row.kernel_only + row.mirror_only]
    assert sum(row.programs for row in rows.values()) > 60
    assert wrong == []
