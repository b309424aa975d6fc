"""
The abstract syntax of a policy, as it was written.

Two trees are equal when they say the same, wherever they stand: spans take no part in equality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actplane.source import Span


class Node:
    """
    What all nodes do alike: compare and print what they say, not where they stand.

    Written once instead of generated for every node: generating is most of what importing costs.
    """

    __slots__ = ()

    def fields(self) -> dict[str, Any]:
        """Return the fields of the node by name, but for its span."""
        names: tuple[str, ...] = self.__match_args__  # type: ignore[attr-defined]
        return {name: getattr(self, name) for name in names if name != "span"}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Node) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash((type(self), *self.fields().values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.fields().items())
        return f"{type(self).__name__}({shown})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Word(Node):
    """A name, a keyword or a number."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class String(Node):
    """A quoted string. `raw` is what stands between the quotes, backslashes included."""

    raw: str
    span: Span

    @property
    def text(self) -> str:
        r"""The string as prose: `\"` is a quote, every other backslash stands for itself."""
        return self.raw.replace('\\"', '"')

    def inner_span(self, start: int, end: int) -> Span:
        """Return the place of the characters [start, end) of `raw`."""
        base = self.span.start + 1
        return self.span.source.span(base + start, base + max(end, start + 1))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Label(Node):
    """The subject has the label."""

    name: Word
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Not(Node):
    """The subject does not have the label."""

    name: Word
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Always(Node):
    """`true`."""

    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class And(Node):
    """Every term holds. Terms are never `And` themselves: what stood in parentheses is a `Group`."""

    terms: tuple[Expression, ...]
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Or(Node):
    """Any term holds. Terms are never `Or` themselves."""

    terms: tuple[Expression, ...]
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Group(Node):
    """An expression in parentheses. Kept, because it tells how a mixture of `and` and `or` is meant."""

    body: Expression
    span: Span


Expression = Label | Not | Always | And | Or | Group


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TargetIs(Node):
    """`target [not] PATTERN`."""

    pattern: String
    is_negated: bool
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LineageIncludes(Node):
    """`lineage-includes exec PATTERN`."""

    pattern: String
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Event(Node):
    """`read|write|exec PATTERN` after `since`."""

    operation: Word
    pattern: String
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class After(Node):
    """`after exec PATTERN [exits STATUS] [since EVENT or ...]`."""

    strings: tuple[String, ...]
    exits: Word | None
    since: tuple[Event, ...]
    span: Span


Condition = TargetIs | LineageIncludes | After


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Target(Node):
    """`[file|endpoint|exec] PATTERN [ARGUMENT]`: the pattern is the first string."""

    kind: Word | None
    strings: tuple[String, ...]
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Clause(Node):
    effect: Word
    operation: Word
    target: Target
    when: Expression | None
    unless: Condition | None
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Because(Node):
    reason: String
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Instead(Node):
    remedy: String
    span: Span


Item = Clause | Because | Instead


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rule(Node):
    """A rule and its items in the order written. Of several reasons or remedies the last one holds."""

    name: Word
    items: tuple[Item, ...]
    span: Span

    @property
    def clauses(self) -> tuple[Clause, ...]:
        return tuple(item for item in self.items if isinstance(item, Clause))

    @property
    def because(self) -> String | None:
        return next((item.reason for item in reversed(self.items) if isinstance(item, Because)), None)

    @property
    def instead(self) -> String | None:
        return next((item.remedy for item in reversed(self.items) if isinstance(item, Instead)), None)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LabelSource(Node):
    """`source LABEL = KIND PATTERN`."""

    label: Word
    kind: Word
    pattern: String
    span: Span


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Transform(Node):
    """`declassify|endorse LABEL by exec PATTERN`."""

    verb: Word
    label: Word
    pattern: String
    span: Span


Declaration = LabelSource | Transform | Rule


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Policy(Node):
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
