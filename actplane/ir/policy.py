"""
The policy IR: what a checked policy means, with every name resolved to a number.

It knows neither the text it came from (beyond spans for reports) nor the kernel. Patterns of the
same meaning are one `Pattern`; everything refers to them by index, so the code generator compiles
each kind into one automaton.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from actplane.ir.regex import Regex
from actplane.source import Span

MAX_LABELS = 256
"""Labels one policy can have: four 64-bit words on every process and file."""


class Effect(Enum):
    """What happens when a clause matches, weakest first."""

    NOTIFY = "notify"
    BLOCK = "block"
    KILL = "kill"

    @property
    def rank(self) -> int:
        return (Effect.NOTIFY, Effect.BLOCK, Effect.KILL).index(self)


class Operation(Enum):
    """What a process does to an object."""

    EXEC = "exec"
    OPEN = "open"
    READ = "read"
    WRITE = "write"
    UNLINK = "unlink"
    CONNECT = "connect"
    RECV = "recv"


class ObjectKind(Enum):
    """What a label source or a target is."""

    FILE = "file"
    ENDPOINT = "endpoint"
    EXEC = "exec"


class PatternKind(Enum):
    """
    What string a pattern is matched against.

    PATH      the absolute path of a file, or of an executed file.
    NAME      the last component of an executed file's path and of the name it was called by.
    ARGUMENT  one argument of an exec.
    ENDPOINT  the canonical text of an address, see `actplane.ir.endpoint`.
    """

    PATH = "path"
    NAME = "name"
    ARGUMENT = "argument"
    ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular language over the bytes of one kind of string. `text` is how a person wrote it."""

    kind: PatternKind
    text: str
    regex: Regex


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Whatever touches an object that matches gains a label."""

    label: int
    kind: ObjectKind
    pattern: int
    span: Span


@dataclass(frozen=True, slots=True)
class Transform:
    """Executing a matching file removes a label from the process (declassify) or adds it (endorse)."""

    label: int
    is_declassify: bool
    pattern: int
    span: Span


@dataclass(frozen=True, slots=True)
class ExitTest:
    """
    How a gate's process must end. `status` None with `is_negated`: any status but 0 (`nonzero`).

    A process that a signal ends has no status: it passes only `nonzero`.
    """

    status: int | None
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Invalidator:
    """An event after which a gate must be passed again: reading, writing or executing a match."""

    operation: Operation
    pattern: int


@dataclass(frozen=True, slots=True)
class Gate:
    """
    `after exec PATTERN [exits N] [since ...]`.

    True once a matching exec happened in the session (with `exits`: once that process ended so),
    and, with invalidators, only while that was later than the last of them.
    """

    pattern: int
    exits: ExitTest | None
    since: tuple[int, ...]
    """Indexes into `Policy.invalidators`."""
    span: Span


@dataclass(frozen=True, slots=True)
class TargetIs:
    """`unless target [not] PATTERN`: the same target also matches (or does not match) a pattern."""

    pattern: int
    is_negated: bool


@dataclass(frozen=True, slots=True)
class LineageIncludes:
    """`unless lineage-includes exec PATTERN`: index into `Policy.lineages`."""

    lineage: int


@dataclass(frozen=True, slots=True)
class After:
    """`unless after ...`: index into `Policy.gates`."""

    gate: int


Condition = TargetIs | LineageIncludes | After


@dataclass(frozen=True, slots=True)
class LabelTest:
    """One conjunction: the subject has every required label and no forbidden one."""

    required: frozenset[int]
    forbidden: frozenset[int]


ALWAYS = LabelTest(frozenset(), frozenset())


@dataclass(frozen=True, slots=True)
class Clause:
    """
    EFFECT OP PATTERN [ARGUMENT] if EXPR unless COND.

    `when` is EXPR in disjunctive form: it holds if any test does; `(ALWAYS,)` where there is none.
    """

    rule: int
    effect: Effect
    operation: Operation
    kind: ObjectKind
    pattern: int
    argument: int | None
    when: tuple[LabelTest, ...]
    unless: Condition | None
    span: Span

    @property
    def text(self) -> str:
        return " ".join(self.span.text.split())


@dataclass(frozen=True, slots=True)
class Rule:
    """The words around clauses: `name`, why (`because`), what to do (`instead`)."""

    name: str
    because: str
    instead: str
    span: Span


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy. `seed` is the label of the session's first process (COMMAND, else AGENT)."""

    labels: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    sources: tuple[LabelSource, ...]
    transforms: tuple[Transform, ...]
    invalidators: tuple[Invalidator, ...]
    gates: tuple[Gate, ...]
    lineages: tuple[int, ...]
    """Patterns whose exec is remembered by a process and its descendants."""
    rules: tuple[Rule, ...]
    clauses: tuple[Clause, ...]
    seed: int | None
