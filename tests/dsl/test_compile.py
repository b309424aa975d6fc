"""Policy text to the IR, end to end."""

from __future__ import annotations

import pytest

from actplane import dsl
from actplane.errors import PolicyError
from actplane.ir.policy import ALWAYS, After, Effect, ExitTest, LabelTest, ObjectKind, Operation, PatternKind, TargetIs
from actplane.ir.printer import print_regex

MAIN_JOB = """
source COMMAND = exec "**"
rule no-push:
  kill exec "git" "push" if COMMAND
  because "pushing is the reviewer's job" instead "open a draft and stop"
"""


def compile_text(text, **options):
    return dsl.compile_policy(text, root="/work", resolve=None, **options)


def test_the_main_job_becomes_one_clause():
    policy = compile_text(MAIN_JOB)
    (clause,) = policy.clauses
    (rule,) = policy.rules
    assert (clause.effect, clause.operation, clause.kind) == (Effect.KILL, Operation.EXEC, ObjectKind.EXEC)
    assert policy.patterns[clause.pattern].kind is PatternKind.NAME
    assert policy.patterns[clause.argument].kind is PatternKind.ARGUMENT
    assert clause.when == (LabelTest(frozenset({0}), frozenset()),)
    assert clause.text == 'kill exec "git" "push" if COMMAND'
    assert (rule.because, rule.instead) == ("pushing is the reviewer's job", "open a draft and stop")
    assert policy.labels[policy.seed] == "COMMAND"
    assert dsl.require_seed(policy) == 0


@pytest.mark.parametrize(
    ("text", "seed"),
    [
        ('rule r: kill exec "x" if AGENT', "AGENT"),
        ('source COMMAND = exec "a" source AGENT = exec "a"', "COMMAND"),
        ('source OTHER = exec "a"', None),
    ],
)
def test_the_seed_is_command_then_agent(text, seed):
    policy = compile_text(text)
    assert (None if policy.seed is None else policy.labels[policy.seed]) == seed


def test_a_policy_without_command_or_agent_cannot_be_run():
    with pytest.raises(PolicyError, match="names neither COMMAND nor AGENT"):
        dsl.require_seed(compile_text('rule r: kill exec "x"'))


def test_an_empty_policy_is_a_policy():
    assert compile_text("# nothing\n").clauses == ()


def test_a_gate_with_everything():
    policy = compile_text('rule r: block exec "git" unless after exec "pytest" exits 0 since write "a" or exec "b"')
    (clause,) = policy.clauses
    assert clause.when == (ALWAYS,)
    assert clause.unless == After(0)
    (gate,) = policy.gates
    assert gate.exits == ExitTest(0)
    assert [policy.invalidators[index].operation for index in gate.since] == [Operation.WRITE, Operation.EXEC]


@pytest.mark.parametrize(
    ("status", "expected"),
    [("0", ExitTest(0)), ("255", ExitTest(255)), ("nonzero", ExitTest(None, is_negated=True))],
)
def test_exit_statuses(status, expected):
    policy = compile_text(f'rule r: block exec "a" unless after exec "b" exits {status}')
    assert policy.gates[0].exits == expected


def test_equal_patterns_gates_and_lineages_are_one():
    policy = compile_text(
        """
        source A = exec "git"
        rule r:
          block exec "git" if A unless after exec "**/git"
          block exec "git" if A unless after exec "git"
          block exec "git" if A unless lineage-includes exec "git"
          block exec "git" if A unless lineage-includes exec "git"
        """
    )
    assert [pattern.text for pattern in policy.patterns] == ["git"]
    assert (len(policy.gates), policy.lineages) == (1, (0,))


def test_the_condition_on_the_target_matches_the_same_kind_of_object():
    policy = compile_text('rule r: block connect endpoint "*" unless target not "10."')
    condition = policy.clauses[0].unless
    assert condition == TargetIs(1, is_negated=True)
    assert policy.patterns[1].kind is PatternKind.ENDPOINT


def test_a_clause_that_never_holds_is_left_out_with_a_warning():
    from actplane.source import Source

    text = 'rule r: kill exec "x" if A and not A'
    compilation = dsl.compile_sources([Source("p", text)], root="/")
    assert compilation.policy.clauses == ()
    assert any("never holds" in item.message for item in compilation.warnings)


def languages(text):
    found = dsl.compile_policy(text, root="/", follow=lambda path: path.replace("/bin", "/usr/bin"))
    return [print_regex(pattern.regex) for pattern in found.patterns]


WIDE, NARROW = "(?:/bin/x|/usr/bin/x)", "/bin/x"
WIDE_FILE = "(?:/bin/x|/bin//|/usr/bin/x|(?:/usr|/usr/bin)//)"
WIDE_OTHER = WIDE_FILE.replace("x", "y")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('rule r: kill exec "/bin/x"', [WIDE]),
        ('rule r: block write file "/bin/x"', [WIDE_FILE]),
        ('source A = file "/bin/x" rule r: kill exec "y" if A', [WIDE_FILE, "y"]),
        ('source A = exec "/bin/x" rule r: kill exec "y" if not A', [NARROW, "y"]),
        ('declassify A by exec "/bin/x"', [NARROW]),
        ('rule r: kill exec "y" unless lineage-includes exec "/bin/x"', ["y", NARROW]),
        ('rule r: kill exec "y" unless after exec "/bin/x" since write "/bin/x"', ["y", NARROW, WIDE_FILE]),
        ('rule r: block write file "/bin/y" unless target "/bin/x"', [WIDE_OTHER, NARROW]),
        ('rule r: block write file "/bin/y" unless target not "/bin/x"', [WIDE_OTHER, WIDE_FILE]),
    ],
)
def test_links_widen_what_forbids_and_never_what_allows(text, expected):
    assert languages(text) == expected
