"""What is legal in a policy and yet cannot do what it seems to. None of it needs a kernel."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from actplane.dsl import ast, expressions
from actplane.dsl.check import label_words, warning
from actplane.dsl.globs import NOTHING
from actplane.ir.policy import After, Clause, Invalidator, Operation, Policy, TargetIs
from actplane.ir.regex import ANYTHING, Regex
from actplane.source import Diagnostic

_INCLUDES = {
    Operation.OPEN: frozenset({Operation.OPEN, Operation.READ, Operation.WRITE, Operation.UNLINK}),
    Operation.WRITE: frozenset({Operation.WRITE, Operation.UNLINK}),
}
"""Operations that are also one of another name. All others include only themselves."""


def lint(policy: Policy, trees: Sequence[ast.Policy]) -> list[Diagnostic]:
    """Return warnings about a policy that compiled, in the order they were found."""
    return [
        *_unset_labels(policy, trees),
        *_unused_labels(policy, trees),
        *_useless_conditions(policy),
        *_impassable_gates(policy),
        *_shadowed_clauses(policy),
    ]


# -- labels ---------------------------------------------------------------------------------------


def _set_labels(policy: Policy) -> set[int]:
    """Return the labels something can have."""
    found = {source.label for source in policy.sources}
    found |= {transform.label for transform in policy.transforms if not transform.is_declassify}
    return found if policy.seed is None else found | {policy.seed}


def _unset_labels(policy: Policy, trees: Sequence[ast.Policy]) -> Iterator[Diagnostic]:
    known = {policy.labels[label] for label in _set_labels(policy)}
    reported: set[str] = set()
    for word in label_words(trees):
        if word.text in known or word.text in reported:
            continue
        reported.add(word.text)
        close = difflib.get_close_matches(word.text, sorted(known), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"write `source {word.text} = ...`"
        yield warning(word.span, f"nothing ever has the label '{word.text}': no source sets it", hint)
    for clause in policy.clauses:
        never = [test for test in clause.when if not {policy.labels[label] for label in test.required} <= known]
        if len(never) == len(clause.when):
            yield warning(clause.span, "this clause can never fire: it asks for a label that nothing ever has")


def _unused_labels(policy: Policy, trees: Sequence[ast.Policy]) -> Iterator[Diagnostic]:
    tested = {
        word.text
        for tree in trees
        for rule in tree.rules
        for clause in rule.clauses
        if clause.when is not None
        for word in expressions.labels_of(clause.when)
    }
    seed = "" if policy.seed is None else policy.labels[policy.seed]
    reported: set[str] = {seed}
    for tree in trees:
        for source in tree.sources:
            name = source.label.text
            if name not in tested and name not in reported:
                reported.add(name)
                yield warning(source.label.span, f"no clause asks for the label '{name}'", "write `if` in a clause")


# -- conditions and gates -------------------------------------------------------------------------


def _useless_conditions(policy: Policy) -> Iterator[Diagnostic]:
    for clause in policy.clauses:
        condition = clause.unless
        if not isinstance(condition, TargetIs):
            continue
        # An exemption written alike is another pattern: it is narrower in what links and moved folders mean.
        written, pattern = policy.patterns[clause.pattern].text, policy.patterns[condition.pattern].regex
        always = policy.patterns[condition.pattern].text == written or _is_everything(pattern)
        if always and not condition.is_negated:
            yield warning(clause.span, "this clause can never fire: every target it matches is exempt")
        elif (always and condition.is_negated) or (pattern == NOTHING and not condition.is_negated):
            yield warning(clause.span, "the condition never holds: the clause fires as if it were not there")
        elif pattern == NOTHING:
            yield warning(clause.span, "this clause can never fire: no target matches an empty pattern")


def _impassable_gates(policy: Policy) -> Iterator[Diagnostic]:
    for clause in policy.clauses:
        if not isinstance(clause.unless, After):
            continue
        gate = policy.gates[clause.unless.gate]
        invalidators = [policy.invalidators[index] for index in gate.since]
        if any(_covers_run(policy, item, gate.pattern) for item in invalidators):
            yield warning(
                clause.span,
                "nobody can pass this gate: running it makes it stale at once",
                "leave the gate itself out of what comes behind 'since'",
            )


def _covers_run(policy: Policy, invalidator: Invalidator, gate: int) -> bool:
    if invalidator.operation is not Operation.EXEC:
        return False
    return invalidator.pattern == gate or _is_everything(policy.patterns[invalidator.pattern].regex)


def _is_everything(regex: Regex) -> bool:
    return regex == ANYTHING


# -- clauses --------------------------------------------------------------------------------------


def _shadowed_clauses(policy: Policy) -> Iterator[Diagnostic]:
    everything = {index for index, pattern in enumerate(policy.patterns) if _is_everything(pattern.regex)}
    widest = [(number, clause) for number, clause in enumerate(policy.clauses) if clause.pattern in everything]
    by_pattern: dict[int, list[tuple[int, Clause]]] = {}
    for number, clause in enumerate(policy.clauses):
        if clause.pattern not in everything:
            by_pattern.setdefault(clause.pattern, []).append((number, clause))
    for number, clause in enumerate(policy.clauses):
        for other_number, other in widest + by_pattern.get(clause.pattern, []):
            if other_number == number or not _fires_whenever(other, clause):
                continue
            # Of two clauses that say the same, the later one is superfluous.
            if other_number < number or not _fires_whenever(clause, other):
                yield _shadow(other, clause)
                break


def _shadow(strong: Clause, weak: Clause) -> Diagnostic:
    line = strong.span.line
    if strong.effect is weak.effect:
        return warning(weak.span, f"this clause adds nothing: the one in line {line} fires whenever it does")
    return warning(
        weak.span,
        f"'{weak.effect.value}' is shadowed: the clause in line {line} fires whenever this one does, "
        f"and '{strong.effect.value}' is stronger",
    )


def _fires_whenever(strong: Clause, weak: Clause) -> bool:
    """Tell whether a clause whose pattern is as wide surely fires, as strongly, whenever another one does."""
    return (
        strong.effect.rank >= weak.effect.rank
        and strong.kind is weak.kind
        and weak.operation in _INCLUDES.get(strong.operation, frozenset({strong.operation}))
        and strong.argument in (None, weak.argument)
        and strong.unless in (None, weak.unless)
        and expressions.all_covered(strong.when, weak.when)
    )
