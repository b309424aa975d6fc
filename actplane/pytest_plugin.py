"""
A pytest plugin: the fixture `assert_verifies` holds programs of a test suite to what kernels accept.

    @pytest.mark.parametrize("kernel", ["5.10", "6.1", "7.2"])
    def test_my_program(assert_verifies, kernel):
        assert_verifies(program, maps, kernels=kernel)

pytest finds it where actplane is installed. The mirror is imported when the fixture is first used: a test
run without it pays nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from actplane.asm.program import MapSpec, Program
    from actplane.verifier import Options, OwnTypes, Report, TypeProvider


class AssertVerifies(Protocol):
    """
    Fails the test unless the mirror accepts a program for every kernel that is named.

    Shape:  `program`, `maps`, `types`, `own` and `options` as `actplane.verifier.verify` takes them;
            `kernels` is one name or several, by default the mirror's own; with `refusal`, the program
            must be refused for that reason. Returns the reports, in the order of the kernels.
    Raises: ValueError if there is no such refusal, ActplaneError if there is no such kernel.
    """

    def __call__(
        self,
        program: Program,
        maps: Mapping[str, MapSpec] | Iterable[MapSpec] = (),
        types: TypeProvider | None = None,
        *,
        own: OwnTypes | None = None,
        options: Options | None = None,
        kernels: str | Iterable[str] = (),
        refusal: str | None = None,
    ) -> list[Report]: ...


@pytest.fixture(scope="session")
def assert_verifies() -> AssertVerifies:
    """Return a function that judges a program for some kernels and fails the test if one disagrees."""
    from actplane.verifier import DEFAULT, profile_of, verify
    from actplane.verifier.tables.refusals import CATALOGUE

    def judge(
        program: Program,
        maps: Mapping[str, MapSpec] | Iterable[MapSpec] = (),
        types: TypeProvider | None = None,
        *,
        own: OwnTypes | None = None,
        options: Options | None = None,
        kernels: str | Iterable[str] = (),
        refusal: str | None = None,
    ) -> list[Report]:
        if refusal is not None and refusal not in CATALOGUE:
            near = difflib.get_close_matches(refusal, CATALOGUE, n=1)
            raise ValueError(f"no refusal is called {refusal!r}" + (f": did you mean {near[0]!r}?" if near else ""))
        names = (kernels,) if isinstance(kernels, str) else tuple(kernels) or (DEFAULT.name,)
        maps = maps if isinstance(maps, Mapping) else tuple(maps)
        reports = [verify(program, maps, types, own=own, profile=profile_of(name), options=options) for name in names]
        wrong = [report for report in reports if (report.refusal.id if report.refusal else None) != refusal]
        if wrong:
            wanted = f"refused for {refusal}" if refusal else "accepted"
            head = f"expected {program.name} to be {wanted}; for {len(wrong)} of {len(reports)} kernels it is not:"
            pytest.fail("\n".join([head, *map(str, wrong)]), pytrace=False)
        return reports

    return judge
