"""The mirror on small programs about one rule each: the same list that kernels are asked about."""

from __future__ import annotations

import pytest

from actplane.loader.btf import Btf
from actplane.verifier import OwnTypes, verify
from actplane.verifier.tables.profiles import PROFILES
from tests.verifier.small_programs import PROGRAMS_ABOUT_RULES, SmallProgram


@pytest.mark.parametrize(
    "small", [pytest.param(one, id=one.name) for one in PROGRAMS_ABOUT_RULES if not one.needs_types]
)
def test_rule(small: SmallProgram) -> None:
    program, maps = small.program()
    declared = small.types(program)
    own = OwnTypes(Btf(declared[0]), declared[1]) if declared is not None else None
    refusal = verify(program, maps, own=own, profile=PROFILES["6.18"]).refusal
    assert (refusal.id if refusal is not None else "") == small.id, refusal


def test_names_tell_the_programs_apart() -> None:
    assert len({one.name for one in PROGRAMS_ABOUT_RULES}) == len(PROGRAMS_ABOUT_RULES)
