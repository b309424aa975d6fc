"""The mirror against a kernel that knows indirect jumps: generated programs, the same verdicts."""

from __future__ import annotations

import pytest

from actplane.asm.jump_tables import jump_table
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.loader.maps import Map
from actplane.runtime.host_profile import host_profile
from tests.kernel.differential import compared
from tests.kernel.tally import BOTH_ACCEPT, BOTH_REFUSE

COUNT = 60


@pytest.fixture(scope="module")
def types() -> Btf:
    try:
        Map.create(jump_table("probe", [0])).close()
    except ActplaneError as error:
        pytest.skip(f"this kernel has no jump tables, which came with 6.19: {str(error).splitlines()[0]}")
    try:
        return Btf.vmlinux()
    except ActplaneError as error:
        pytest.skip(f"needs the types of a kernel: {error}")


@pytest.mark.no_cover  # several times as long when measured
@pytest.mark.parametrize("category", ["jump tables", "jump tables, mutated"])
def test_programs_with_jump_tables_get_the_kernels_verdict(category: str, types: Btf) -> None:
    tally = compared(category, 2026, COUNT, types, host_profile())
    row = tally.counts[category]
    assert row[BOTH_ACCEPT] > COUNT // 10, "a category should have safe and unsafe programs"
    assert row[BOTH_REFUSE] > COUNT // 10, "a category should have safe and unsafe programs"
    assert row[BOTH_ACCEPT] + row[BOTH_REFUSE] == tally.judged, tally.disagreements
