"""Many rules, many labels: words of bits have edges, and nothing may fall off them."""

from __future__ import annotations

import os

import pytest

from tests.kernel.enforcing import ALLOWED, Outcome, binary, enforce, require_tier
from tests.kernel.trials.many import CHOSEN

RULES = 300
LABELS = 70


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    require_tier()
    folder = tmp_path_factory.mktemp("many")
    programs = folder / "work/bin"
    binary(programs / "true")
    binary(programs / "sh", "sh")
    for number in range(LABELS):
        os.link(programs / "sh", programs / f"s{number}")
    for number in range(RULES):
        os.link(programs / "true", programs / f"p{number}")
    policy = "".join(f'source L{n} = exec "s{n}"\n' for n in range(LABELS))
    policy += "".join(f'rule r{n}: notify exec "p{n}" if L{n % LABELS} and AGENT\n' for n in range(RULES))
    return enforce(folder, policy, "many")


def test_each_rule_fires_for_its_program_and_its_label_alone(session: Outcome) -> None:
    assert set(session.results.values()) == {ALLOWED}
    assert [event["rule"] for event in session.events] == [f"r{n}" for n in (*CHOSEN, 255, 256, 299)]
    for event, number in zip(session.events, (*CHOSEN, 255, 256, 299), strict=True):
        assert event["labels"] == [f"L{number % LABELS}", "AGENT"]
