"""What codegen emits, the mirror accepts: every program of a policy with all kinds of rules, on every tier."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from actplane.codegen.compile import compile_policy
from actplane.codegen.tier import Tier
from actplane.dsl.compiler import compile_sources
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.loader.relocate import relocate
from actplane.source import Source
from actplane.verifier import verify

CASE = Path(__file__).parents[1] / "cases" / "core-everything.case"


@pytest.mark.no_cover  # a sweep: several times as long when measured
@pytest.mark.parametrize("tier", list(Tier))
def test_programs_of_a_policy_are_accepted(tier: Tier) -> None:
    try:
        types = Btf.vmlinux()
    except ActplaneError as error:
        pytest.skip(f"needs the types of a kernel: {error}")
    text = re.search(r"^=== policy\n(.*?)(?=^=== )", CASE.read_text(), re.S | re.M)
    assert text is not None
    policy = compile_sources([Source(CASE.name, text[1])], resolve=None).policy
    compiled = compile_policy(policy, tier)
    maps = {spec.name: spec for spec in compiled.object.maps}
    refused = []
    for program in compiled.object.programs:
        report = verify(relocate(program, types), maps, types)
        if not report.is_accepted:
            refused.append(str(report))
    assert not refused
