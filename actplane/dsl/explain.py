"""A policy in plain sentences, one for each clause, source and transform."""

from __future__ import annotations

from dataclasses import dataclass

from actplane.ir.policy import (
    ALWAYS,
    Clause,
    Condition,
    Effect,
    ExitTest,
    Gate,
    Invalidator,
    LabelSource,
    LabelTest,
    LineageIncludes,
    ObjectKind,
    Operation,
    Policy,
    TargetIs,
    Transform,
)
from actplane.source import Span

_OPERATIONS = {
    Operation.EXEC: "executes",
    Operation.OPEN: "opens",
    Operation.READ: "reads",
    Operation.WRITE: "writes, creates, renames or removes",
    Operation.UNLINK: "removes",
    Operation.CONNECT: "connects or sends to",
    Operation.RECV: "receives from",
}

_EFFECTS = {
    Effect.NOTIFY: "it is reported",
    Effect.BLOCK: "it is denied",
    Effect.KILL: "the process is killed",
}

_EVENTS = {Operation.READ: "read of", Operation.WRITE: "change of", Operation.EXEC: "run of"}


@dataclass(frozen=True, slots=True)
class Sentence:
    """What one line of a policy means. `rule` is empty outside of rules."""

    rule: str
    text: str
    span: Span


def explain(policy: Policy) -> list[Sentence]:
    """
    Return a sentence for every source, transform and clause, in that order.

    >>> from actplane.dsl import compile_policy
    >>> explain(compile_policy('rule r: kill exec "git" "push" if AGENT'))[0].text
    'When a process labelled AGENT executes "git" with the argument "push", the process is killed.'
    """
    speaker = _Speaker(policy)
    sentences = [Sentence("", speaker.source(source), source.span) for source in policy.sources]
    for transform in policy.transforms:
        sentences.append(Sentence("", speaker.transform(transform), transform.span))
    for clause in policy.clauses:
        sentences.append(Sentence(policy.rules[clause.rule].name, speaker.clause(clause), clause.span))
    return sentences


class _Speaker:
    """Turns parts of one policy into words."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def pattern(self, index: int) -> str:
        return f'"{self.policy.patterns[index].text}"'

    def source(self, source: LabelSource) -> str:
        name, shown = self.policy.labels[source.label], self.pattern(source.pattern)
        if source.kind is ObjectKind.FILE:
            return f"What reads or executes a file {shown} gains the label {name}."
        if source.kind is ObjectKind.ENDPOINT:
            return f"What receives from {shown} gains the label {name}."
        return f"A process that executes {shown} gains the label {name}."

    def transform(self, transform: Transform) -> str:
        verb = "loses" if transform.is_declassify else "gains"
        name = self.policy.labels[transform.label]
        return f"A process that executes {self.pattern(transform.pattern)} {verb} the label {name}."

    def clause(self, clause: Clause) -> str:
        argument = "" if clause.argument is None else f" with the argument {self.pattern(clause.argument)}"
        unless = "" if clause.unless is None else f", unless {self.condition(clause.unless)}"
        act = f"{_OPERATIONS[clause.operation]} {self.pattern(clause.pattern)}{argument}"
        return f"When {self.subject(clause.when)} {act}, {_EFFECTS[clause.effect]}{unless}."

    def subject(self, when: tuple[LabelTest, ...]) -> str:
        if when == (ALWAYS,):
            return "any process"
        return "a process " + ", or ".join(map(self.test, when))

    def test(self, test: LabelTest) -> str:
        names = self.policy.labels
        parts = []
        if test.required:
            parts.append("labelled " + " and ".join(names[label] for label in sorted(test.required)))
        if test.forbidden:
            parts.append("not labelled " + " or ".join(names[label] for label in sorted(test.forbidden)))
        return " and ".join(parts)

    def condition(self, condition: Condition) -> str:
        if isinstance(condition, TargetIs):
            verb = "does not match" if condition.is_negated else "matches"
            return f"the target {verb} {self.pattern(condition.pattern)}"
        if isinstance(condition, LineageIncludes):
            shown = self.pattern(self.policy.lineages[condition.lineage])
            return f"it or a process it descends from has executed {shown}"
        return self.gate(self.policy.gates[condition.gate])

    def gate(self, gate: Gate) -> str:
        since = ""
        if gate.since:
            events = " or ".join(self.event(self.policy.invalidators[index]) for index in gate.since)
            since = f" since the last {events}"
        return f"{self.pattern(gate.pattern)} has {_ending(gate.exits)} in this session{since}"

    def event(self, invalidator: Invalidator) -> str:
        return f"{_EVENTS[invalidator.operation]} {self.pattern(invalidator.pattern)}"


def _ending(test: ExitTest | None) -> str:
    if test is None:
        return "been run"
    if test.status is None:
        return "failed"
    return f"ended with {'another status than' if test.is_negated else 'status'} {test.status}"
