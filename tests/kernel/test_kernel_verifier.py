"""The mirror against the running kernel: generated programs, the same verdicts."""

from __future__ import annotations

import os

import pytest

from actplane.errors import ActplaneError
from actplane.loader.maps import Map
from tests.kernel.differential import compare
from tests.verifier.program_grammar import MAPS

COUNT = int(os.environ.get("ACTPLANE_DIFFERENTIAL_COUNT", "300"))


@pytest.fixture(scope="module")
def _may_load() -> None:
    try:
        Map.create(MAPS["array"]).close()
    except ActplaneError as error:
        pytest.skip(f"needs a kernel that lets us load programs: {str(error).splitlines()[0]}")


@pytest.mark.usefixtures("_may_load")
@pytest.mark.parametrize("seed", [2026, 1122])
def test_generated_programs_get_the_kernels_verdict(seed: int) -> None:
    cases = list(compare(seed, COUNT // 2))
    accepted = sum(case.verdict.is_accepted for case in cases)
    assert COUNT // 10 < accepted < len(cases), "the grammar should write safe and unsafe programs"
    wrongly_accepted = [case for case in cases if case.report.is_accepted and not case.verdict.is_accepted]
    assert not wrongly_accepted, [str(case.program) for case in wrongly_accepted]
    agreed = sum(case.agrees for case in cases)
    assert agreed / len(cases) >= 0.98, [str(case.report) for case in cases if not case.agrees]
