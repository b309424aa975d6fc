"""The mirror against the running kernel: a few programs of each category, the same verdicts."""

from __future__ import annotations

import os

import pytest

from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.loader.maps import Map
from actplane.runtime.host_profile import host_profile
from tests.kernel.asker import Asker
from tests.kernel.differential import both_logs, compared
from tests.kernel.log_lines import agreement
from tests.kernel.tally import BOTH_ACCEPT, BOTH_REFUSE, MIRROR_ONLY
from tests.verifier import corpus
from tests.verifier.program_grammar import MAPS
from tests.verifier.questions import FINITE, MAKERS, blob_of

COUNT = int(os.environ.get("ACTPLANE_DIFFERENTIAL_COUNT", "120"))

CATEGORIES = ("rules", "grammar", "grammar, mutated", "corpus, mutated", "documentation", "documentation, mutated")
"""What codegen emits is asked about in `test_verifier_policies.py`; the rest of the corpus costs too much here."""


@pytest.fixture(scope="module")
def _may_load() -> None:
    try:
        Map.create(MAPS["array"]).close()
    except ActplaneError as error:
        pytest.skip(f"needs a kernel that lets us load programs: {str(error).splitlines()[0]}")


@pytest.mark.no_cover  # a sweep: several times as long when measured
@pytest.mark.usefixtures("_may_load")
@pytest.mark.parametrize("category", CATEGORIES)
def test_programs_get_the_kernels_verdict(category: str) -> None:
    if category.startswith("corpus") and not corpus.ARCHIVE.exists():
        pytest.skip("needs the corpus of programs beside the repository")
    try:
        types, profile = Btf.vmlinux(), host_profile()
    except ActplaneError as error:
        pytest.skip(f"needs the types of a kernel: {error}")
    count = min(COUNT, FINITE[category](2026, types)) if category in FINITE else COUNT
    tally = compared(category, 2026, count, types, profile)
    row = tally.counts[category]
    assert row[BOTH_ACCEPT] > count // 10, "a category should have safe and unsafe programs"
    assert row[BOTH_REFUSE] > count // 10, "a category should have safe and unsafe programs"
    assert not row[MIRROR_ONLY], tally.disagreements
    assert (row[BOTH_ACCEPT] + row[BOTH_REFUSE]) / tally.judged >= 0.97, tally.disagreements


@pytest.mark.no_cover  # a sweep: several times as long when measured
@pytest.mark.usefixtures("_may_load")
@pytest.mark.parametrize(("category", "share"), [("grammar", 0.97), ("documentation", 0.85)])
def test_log_is_the_kernels_line_by_line(category: str, share: float) -> None:
    try:
        types, profile = Btf.vmlinux(), host_profile()
    except ActplaneError as error:
        pytest.skip(f"needs the types of a kernel: {error}")
    if not profile.at_least(6, 18):
        pytest.skip("needs Linux 6.18 or newer, whose log the mirror writes")
    equal = lines = 0
    with Asker(blob_of, types) as asker:
        for number in range(60):
            question = MAKERS[category](2026, number, types)
            pair = both_logs(question, asker, types, profile) if question is not None else None
            if pair is not None:
                here = agreement(*pair)
                equal, lines = equal + here[0], lines + here[1]
    assert lines > 200
    assert equal / lines >= share, f"{equal} of {lines} lines"
