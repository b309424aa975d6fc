"""From policy text to instructions, by number of rules: the front end alone, and with code generation."""

from __future__ import annotations

from typing import Any

import pytest

from actplane import dsl
from actplane.codegen.compile import compile_policy
from actplane.codegen.tier import Tier
from actplane.source import Source
from bench.policy_cost import policy_text

RULES = pytest.mark.parametrize("rules", [1, 32, 128, 1000])
ROUNDS = 3


@RULES
def test_front_end(benchmark: Any, rules: int) -> None:
    """Text to checked policy IR."""
    source = Source("bench", policy_text(rules, Tier.LSM))
    policy = benchmark.pedantic(dsl.compile_policy, (source,), rounds=ROUNDS)
    assert len(policy.clauses) == 3 * rules


@RULES
@pytest.mark.parametrize("tier", list(Tier), ids=lambda tier: tier.value)
def test_code_generation(benchmark: Any, rules: int, tier: Tier) -> None:
    """Policy IR to maps and instructions."""
    policy = dsl.compile_policy(Source("bench", policy_text(rules, tier)))
    compiled = benchmark.pedantic(compile_policy, (policy, tier), rounds=ROUNDS)
    sizes = {program.name: program.slots for program in compiled.object.programs}
    benchmark.extra_info.update(programs=len(sizes), slots=sum(sizes.values()), largest=max(sizes.values()))
    assert max(sizes.values()) < 60_000, "one program holds a million instructions, and each may be run many times"
