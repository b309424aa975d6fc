"""Choosing a tier, and saying what is in force on it."""

from __future__ import annotations

import pytest

from actplane.codegen import compile as codegen
from actplane.codegen.compile import weaknesses
from actplane.codegen.tier import Tier
from actplane.dsl import compile_policy
from actplane.errors import UnsupportedFeature
from actplane.ir.policy import Effect, Operation
from actplane.loader.features import Answer, Feature, Finding
from actplane.runtime import tiers
from actplane.source import Severity


class Answers:
    """Features as a test wants them: all are there but those named."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = {Feature[name]: answer for name, answer in answers.items()}
        self.asked: list[Feature] = []

    def probe(self, feature: Feature) -> Finding:
        self.asked.append(feature)
        answer = self.answers.get(feature, Answer.YES)
        return Finding(answer, "" if answer is Answer.YES else f"because of {feature.name}")


def test_the_best_tier_is_taken_and_nothing_below_it_probed() -> None:
    answers = Answers()
    assert tiers.choose(answers) is Tier.LSM
    assert Feature.FMOD_RET_FIRES not in answers.asked


@pytest.mark.parametrize("missing", [Answer.NO, Answer.UNKNOWN])
def test_a_tier_that_is_not_surely_there_is_not_taken(missing: Answer) -> None:
    assert tiers.choose(Answers(LSM_FIRES=missing)) is Tier.FMOD_RET
    assert tiers.choose(Answers(LSM_FIRES=missing, FMOD_RET_FIRES=missing)) is Tier.TRACE
    assert tiers.choose(Answers(INODE_STORAGE=missing)) is Tier.FMOD_RET


def test_the_tier_that_is_asked_for_is_taken_or_refused() -> None:
    assert tiers.choose(Answers(), Tier.TRACE) is Tier.TRACE
    with pytest.raises(tiers.TierNotOffered, match=r"tier fmod_ret.*because of FMOD_RET_FIRES"):
        tiers.choose(Answers(FMOD_RET_FIRES=Answer.NO), Tier.FMOD_RET)


def test_what_every_tier_needs() -> None:
    with pytest.raises(UnsupportedFeature, match="task storage"):
        tiers.choose(Answers(TASK_STORAGE=Answer.NO))
    with pytest.raises(tiers.CannotProbe, match="because of RINGBUF"):
        tiers.choose(Answers(RINGBUF=Answer.UNKNOWN))


def test_no_tier_at_all() -> None:
    with pytest.raises(tiers.TierNotOffered, match="tier trace"):
        tiers.choose(Answers(LSM_FIRES=Answer.NO, FMOD_RET_FIRES=Answer.NO, TP_BTF_SIGNAL=Answer.NO))


def test_where_cgroup_programs_cannot_find_the_mark_only_connect_is_lost() -> None:
    answers = Answers(LSM_FIRES=Answer.NO, FMOD_RET_FIRES=Answer.NO, CGROUP_TASK_STORAGE=Answer.NO)
    tier = tiers.choose(answers)
    assert (tier, tiers.sees_connect(tier, answers)) == (Tier.TRACE, False)
    assert tiers.sees_connect(Tier.LSM, answers)
    policy = compile_policy(POLICY)
    seen = {weak.clause.text for weak in weaknesses(policy, tier)}
    lost = [weak for weak in weaknesses(policy, tier, sees_connect=False) if weak.clause.text not in seen]
    assert [weak.clause.operation for weak in lost] == [Operation.CONNECT, Operation.CONNECT]
    assert not any(weak.in_force for weak in lost)
    compiled = codegen.compile_policy(policy, tier, sees_connect=False)
    assert {hook.kind for hook in compiled.hooks} == {"tp_btf"}
    assert {hook.kind for hook in codegen.compile_policy(policy, tier).hooks} == {"tp_btf", "cgroup"}


POLICY = """
rule a:
  kill exec "x" if AGENT
  kill connect endpoint "10.0.0.0/8" if AGENT
  block connect endpoint "10.1.0.0/16" if AGENT
  block exec "y" if AGENT
  notify exec "z" if AGENT
"""


def test_the_start_line_says_per_effect_what_is_in_force() -> None:
    policy = compile_policy(POLICY)
    assert tiers.start_line(policy, Tier.LSM, 0) == (
        "actplane: tier lsm; kill exec, connect: killed before it happens; "
        "block exec, connect: denied before it happens; notify exec: reported"
    )
    weak = weaknesses(policy, Tier.TRACE)
    assert tiers.start_line(policy, Tier.TRACE, len(weak)) == (
        "actplane: tier trace; kill exec: killed before the new program's first instruction; "
        "kill connect: killed before it happens; block exec: killed instead, before the new program's first "
        "instruction; block connect: denied before it happens; notify exec: reported; "
        "weaker than written: 1 clause (see `actplane check`)"
    )


def test_what_a_tier_cannot_do_is_named_clause_by_clause() -> None:
    policy = compile_policy(POLICY)
    (error,) = tiers.diagnose(Tier.TRACE, weaknesses(policy, Tier.TRACE), Severity.ERROR)
    assert error.message.startswith('`block exec "y" if AGENT`: tier trace cannot enforce this: ')
    assert error.hint == "with --allow-degraded, kill, before the program's first instruction would be in force"
    assert error.span is not None
    assert error.span.line == 6


def test_a_gate_that_nothing_could_close_is_named() -> None:
    policy = compile_policy('rule r: kill exec "git" if AGENT unless after exec "pytest" since exec "vi" or write "x"')
    (error,) = tiers.diagnose(Tier.TRACE, weaknesses(policy, Tier.TRACE), Severity.ERROR)
    assert "no hook sees a write, which should close its gate" in error.message
    assert weaknesses(policy, Tier.FMOD_RET) == ()


def test_what_is_said_of_a_tier_agrees_with_what_the_compiler_leaves_out() -> None:
    """No effect is called not available that compiles as written, and none available that does not."""
    targets = {Operation.CONNECT: 'endpoint "10.0.0.1"', Operation.RECV: 'endpoint "10.0.0.1"', Operation.EXEC: '"x"'}
    for tier in Tier:
        for effect in Effect:
            for operation in Operation:
                target = targets.get(operation, 'file "/x"')
                policy = compile_policy(f"rule r: {effect.value} {operation.value} {target} if AGENT")
                lost = any(not weak.in_force for weak in weaknesses(policy, tier))
                assert (tiers.in_force(effect, operation, tier) == "not available") == lost
