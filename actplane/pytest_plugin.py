"""
A pytest plugin: `assert_verifies` holds programs of a test suite to what kernels accept.

    pytest_plugins = ["actplane.pytest_plugin"]

    def test_my_program(assert_verifies):
        assert_verifies(program, maps, kernels=("6.1", "6.12"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import pytest

from actplane.asm.program import MapSpec, Program
from actplane.verifier import DEFAULT, Report, TypeProvider, profile_of, verify


class AssertVerifies(Protocol):
    """Fails the test unless the mirror accepts (or, with `refusal`, refuses for that reason) a program."""

    def __call__(
        self,
        program: Program,
        maps: Mapping[str, MapSpec] | Iterable[MapSpec] = (),
        types: TypeProvider | None = None,
        *,
        kernels: Iterable[str] = (DEFAULT.name,),
        refusal: str | None = None,
    ) -> list[Report]: ...


@pytest.fixture
def assert_verifies() -> AssertVerifies:
    """Return a function that judges a program for some kernels and fails the test if one disagrees."""

    def judge(
        program: Program,
        maps: Mapping[str, MapSpec] | Iterable[MapSpec] = (),
        types: TypeProvider | None = None,
        *,
        kernels: Iterable[str] = (DEFAULT.name,),
        refusal: str | None = None,
    ) -> list[Report]:
        by_name = maps if isinstance(maps, Mapping) else {spec.name: spec for spec in maps}
        reports = [verify(program, by_name, types, profile=profile_of(kernel)) for kernel in kernels]
        for report in reports:
            got = report.refusal.id if report.refusal is not None else None
            if got != refusal:
                wanted = f"refused for {refusal}" if refusal else "accepted"
                pytest.fail(f"expected the program to be {wanted}, got:\n{report}", pytrace=False)
        return reports

    return judge
