"""
The abstract syntax of a policy, as it was written.

Two trees are equal when they say the same, wherever they stand: spans take no part in equality.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from actplane.source import Span


@dataclass(frozen=True, slots=True)
class Word:
    """A name, a keyword or a number."""

    text: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class String:
    """A quoted string. `raw` is what stands between the quotes, backslashes included."""

    raw: str
    span: Span = field(compare=False, repr=False)

    @property
    def text(self) -> str:
        r"""The string as prose: `\"` is a quote, every other backslash stands for itself."""
        return self.raw.replace('\\"', '"')

    def inner_span(self, start: int, end: int) -> Span:
        """Return the place of the characters [start, end) of `raw`."""
        base = self.span.start + 1
        return self.span.source.span(base + start, base + max(end, start + 1))


@dataclass(frozen=True, slots=True)
class Label:
    """The subject has the label."""

    name: Word
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Not:
    """The subject does not have the label."""

    name: Word
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Always:
    """`true`."""

    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class And:
    """Every term holds. Terms are never `And` themselves: what stood in parentheses is a `Group`."""

    terms: tuple[Expression, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Or:
    """Any term holds. Terms are never `Or` themselves."""

    terms: tuple[Expression, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Group:
    """An expression in parentheses. Kept, because it tells how a mixture of `and` and `or` is meant."""

    body: Expression
    span: Span = field(compare=False, repr=False)


Expression = Label | Not | Always | And | Or | Group


@dataclass(frozen=True, slots=True)
class TargetIs:
    """`target [not] PATTERN`."""

    pattern: String
    is_negated: bool
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LineageIncludes:
    """`lineage-includes exec PATTERN`."""

    pattern: String
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """`read|write|exec PATTERN` after `since`."""

    operation: Word
    pattern: String
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class After:
    """`after exec PATTERN [exits STATUS] [since EVENT or ...]`."""

    strings: tuple[String, ...]
    exits: Word | None
    since: tuple[Event, ...]
    span: Span = field(compare=False, repr=False)


Condition = TargetIs | LineageIncludes | After


@dataclass(frozen=True, slots=True)
class Target:
    """`[file|endpoint|exec] PATTERN [ARGUMENT]`: the pattern is the first string."""

    kind: Word | None
    strings: tuple[String, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Clause:
    effect: Word
    operation: Word
    target: Target
    when: Expression | None
    unless: Condition | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Because:
    reason: String
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Instead:
    remedy: String
    span: Span = field(compare=False, repr=False)


Item = Clause | Because | Instead


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and its items in the order written. Of several reasons or remedies the last one holds."""

    name: Word
    items: tuple[Item, ...]
    span: Span = field(compare=False, repr=False)

    @property
    def clauses(self) -> tuple[Clause, ...]:
        return tuple(item for item in self.items if isinstance(item, Clause))

    @property
    def because(self) -> String | None:
        return next((item.reason for item in reversed(self.items) if isinstance(item, Because)), None)

    @property
    def instead(self) -> String | None:
        return next((item.remedy for item in reversed(self.items) if isinstance(item, Instead)), None)


@dataclass(frozen=True, slots=True)
class LabelSource:
    """`source LABEL = KIND PATTERN`."""

    label: Word
    kind: Word
    pattern: String
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Transform:
    """`declassify|endorse LABEL by exec PATTERN`."""

    verb: Word
    label: Word
    pattern: String
    span: Span = field(compare=False, repr=False)


Declaration = LabelSource | Transform | Rule


@dataclass(frozen=True, slots=True)
class Policy:
    """The declarations of one text, in order."""

    declarations: tuple[Declaration, ...]

    @property
    def sources(self) -> tuple[LabelSource, ...]:
        return tuple(item for item in self.declarations if isinstance(item, LabelSource))

    @property
    def transforms(self) -> tuple[Transform, ...]:
        return tuple(item for item in self.declarations if isinstance(item, Transform))

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(item for item in self.declarations if isinstance(item, Rule))
