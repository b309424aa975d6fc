"""
From facts to a verdict: labels gained, gates passed, clauses that match.

Every step of this is straight code made for the policy: a test of a bit that a recogniser set, then
tests of label masks. What no fact selects is jumped over, so the cost of an event does not grow with
the number of rules that do not concern it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from actplane.codegen import layout
from actplane.codegen.recognize import Recognizer, facts_of
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder
from actplane.ir.policy import (
    After,
    Clause,
    Condition,
    Effect,
    LabelTest,
    LineageIncludes,
    ObjectKind,
    Operation,
    Policy,
    TargetIs,
)

VERDICTS = {
    Effect.NOTIFY: layout.VERDICT_NOTIFY,
    Effect.BLOCK: layout.VERDICT_BLOCK,
    Effect.KILL: layout.VERDICT_KILL,
}
ACCESS = {
    Operation.OPEN: layout.ACCESS_OPEN,
    Operation.READ: layout.ACCESS_READ,
    Operation.WRITE: layout.ACCESS_WRITE,
    Operation.UNLINK: layout.ACCESS_UNLINK,
}
KIND_OF_OPERATION = {
    Operation.EXEC: "exec",
    Operation.OPEN: "file",
    Operation.READ: "file",
    Operation.WRITE: "file",
    Operation.UNLINK: "file",
    Operation.CONNECT: "endpoint",
    Operation.RECV: "endpoint",
}
KIND_OF_SOURCE = {ObjectKind.EXEC: "exec", ObjectKind.FILE: "file", ObjectKind.ENDPOINT: "endpoint"}

Body = Callable[[], None]


def _exempting(operation: Operation) -> str:
    """Return the facts that may exempt: not those of an argv[0], which the caller writes as it likes."""
    kind = KIND_OF_OPERATION[operation]
    return "identity" if kind == "exec" else kind


def _kind_of(region: str) -> str:
    """Return whose facts a region holds."""
    return "exec" if region == "identity" else region


def signed32(mask: int) -> int:
    """
    Return a 32-bit mask as the immediate of a 32-bit operation.

    >>> signed32(0x80000000)
    -2147483648
    """
    return mask - (1 << 32) if mask >> 31 else mask


def words_of(labels: Iterable[int]) -> dict[int, int]:
    """
    Return masks by index of the 32-bit word.

    >>> words_of([0, 33])
    {0: 1, 1: 2}
    """
    masks: dict[int, int] = defaultdict(int)
    for label in sorted(labels):
        masks[label // 32] |= 1 << (label % 32)
    return dict(masks)


@dataclass(frozen=True, slots=True)
class Judge:
    """What the clauses of one policy come to, given the recognisers of its patterns."""

    policy: Policy
    recognizers: Mapping[str, Recognizer]
    carries: bool
    """Whether files and sockets can carry labels on this tier."""

    @property
    def label_words(self) -> int:
        """32-bit words of labels that this policy uses; an even number, so that pairs can be copied."""
        return 2 * ((len(self.policy.labels) + 63) // 64)

    @property
    def inbox_words(self) -> int:
        """Label words that may arrive while a process waits: none if nothing carries labels."""
        return self.label_words if self.flowing else 0

    @property
    def flowing(self) -> frozenset[int]:
        """
        Labels worth carrying on files and sockets.

        Those that some clause asks about, less the seed: every process of the session has that
        one from birth, so carrying it changes nothing, unless something declassifies it.
        """
        asked: set[int] = set()
        if not self.carries:
            return frozenset()
        for clause in self.policy.clauses:
            for test in clause.when:
                asked |= test.required | test.forbidden
        removed = {t.label for t in self.policy.transforms if t.is_declassify}
        seed = self.policy.seed
        if seed is not None and seed not in removed:
            asked.discard(seed)
        return frozenset(asked)

    @property
    def gains_labels(self) -> bool:
        """Whether a process can gain labels otherwise than by what it executes."""
        return bool(self.flowing) or any(s.kind is not ObjectKind.EXEC for s in self.policy.sources)

    @property
    def receives(self) -> bool:
        """Whether it matters from whom a process receives."""
        return bool(self.clauses([Operation.RECV])) or any(s.kind is ObjectKind.ENDPOINT for s in self.policy.sources)

    @property
    def closes_on_write(self) -> bool:
        """Whether a write to a file can close a gate."""
        return any(invalidator.operation is Operation.WRITE for invalidator in self.policy.invalidators)

    def clauses(self, operations: Iterable[Operation]) -> list[tuple[int, Clause]]:
        wanted = set(operations)
        return [(n, clause) for n, clause in enumerate(self.policy.clauses) if clause.operation in wanted]

    # Events

    def begin(self, f: FunctionBuilder, scratch: bc.Value, state: bc.Value, kinds: Sequence[str]) -> None:
        """Emit: forget the event before; the subject has the labels of its process."""
        for kind in kinds:
            if kind in self.recognizers:
                self.recognizers[kind].clear(f, scratch)
        verdict = f.load(scratch, layout.SCRATCH_VERDICT, name="verdict")
        with f.when(verdict, "!=", 0):
            f.store(scratch, layout.SCRATCH_VERDICT, 0)
            for word in range(self.matched_bytes // 8):
                f.store(scratch, layout.SCRATCH_MATCHED + 8 * word, 0)
        f.store(scratch, layout.SCRATCH_FLAGS, 0)
        f.store(scratch, layout.SCRATCH_CAUSE, layout.CAUSE_CLAUSES)
        for pair in range(self.label_words // 2):
            labels = f.load(state, layout.STATE_LABELS + 8 * pair, name="labels")
            f.store(scratch, layout.SCRATCH_LABELS + 8 * pair, labels)
        if self.policy.gates:
            f.store(scratch, layout.SCRATCH_NOW, f.helper("bpf_ktime_get_ns"))

    @property
    def matched_bytes(self) -> int:
        """Bytes of the bits of clauses that matched, a multiple of 8."""
        return 8 * ((len(self.policy.clauses) + 63) // 64)

    def add_source_labels(self, f: FunctionBuilder, scratch: bc.Value, kind: str) -> None:
        """Emit: the subject gains the labels of the sources that the facts of a kind name."""
        bodies: dict[int, list[Body]] = defaultdict(list)
        for source in self.policy.sources:
            if KIND_OF_SOURCE[source.kind] == kind:
                offset, mask = self._label(layout.SCRATCH_LABELS, source.label)
                bodies[source.pattern].append(lambda o=offset, m=mask: _set_bits(f, scratch, o, m))  # type: ignore[misc]
        self._select(f, scratch, "identity" if kind == "exec" else kind, bodies)

    def apply_transforms(self, f: FunctionBuilder, scratch: bc.Value) -> None:
        """Emit: declassify and endorse, in the order of the policy."""
        for transform in self.policy.transforms:
            offset, mask = self._label(layout.SCRATCH_LABELS, transform.label)
            change = _clear_bits if transform.is_declassify else _set_bits
            body: Body = lambda c=change, o=offset, m=mask: c(f, scratch, o, m)  # type: ignore[misc]  # noqa: E731
            self._select(f, scratch, "identity", {transform.pattern: [body]})

    def judge_function(self, name: str, operations: Sequence[Operation]) -> bc.Function:
        """
        Return `name(scratch, state)`: evaluate the clauses of some operations; the result is the verdict.

        What the event changes has not been stored yet, because it may be denied; it is counted in.
        """
        f = FunctionBuilder(name, ["scratch", "state"])
        scratch, state = f.parameters
        bodies: dict[int, list[Body]] = defaultdict(list)
        for number, clause in self.clauses(operations):
            bodies[clause.pattern].append(
                lambda n=number, c=clause: self._clause(f, scratch, state, n, c)  # type: ignore[misc]
            )
        self._select(f, scratch, KIND_OF_OPERATION[operations[0]], bodies)
        f.ret(f.load(scratch, layout.SCRATCH_VERDICT, name="verdict"))
        return f.finish()

    def _clause(
        self,
        f: FunctionBuilder,
        scratch: bc.Value,
        state: bc.Value,
        number: int,
        clause: Clause,
    ) -> None:
        after = f.new_block("after")
        with f.at(clause.span):
            if clause.operation in ACCESS:
                access = f.load(scratch, layout.SCRATCH_ACCESS, name="access")
                self._require(f, access, "&", ACCESS[clause.operation], after)
            if clause.argument is not None:
                self._require_fact(f, scratch, "argument", clause.argument, after)
            self._require_labels(f, scratch, clause.when, after)
            if clause.unless is not None:
                self._unless(f, scratch, state, clause, clause.unless, after)
            _set_bits(f, scratch, layout.SCRATCH_VERDICT, VERDICTS[clause.effect])
            _set_bits(f, scratch, layout.SCRATCH_MATCHED + 4 * (number // 32), 1 << (number % 32))
        f.start(after)

    def _require_labels(self, f: FunctionBuilder, scratch: bc.Value, when: Sequence[LabelTest], after: str) -> None:
        if any(not test.required and not test.forbidden for test in when):
            return
        matched = f.new_block("matched")
        for test in when:
            other = f.new_block("other")
            for index, mask in words_of(test.required).items():
                word = f.load(scratch, layout.SCRATCH_LABELS + 4 * index, 4, "labels")
                f.update(word, "&", signed32(mask), width=32)
                self._require(f, word, "==", signed32(mask), other, 32)
            for index, mask in words_of(test.forbidden).items():
                word = f.load(scratch, layout.SCRATCH_LABELS + 4 * index, 4, "labels")
                f.update(word, "&", signed32(mask), width=32)
                self._require(f, word, "==", 0, other, 32)
            f.jump(matched)
            f.start(other)
        f.jump(after)
        f.start(matched)

    def _unless(
        self,
        f: FunctionBuilder,
        scratch: bc.Value,
        state: bc.Value,
        clause: Clause,
        condition: Condition,
        after: str,
    ) -> None:
        """Emit: go to `after` if the condition holds."""
        fails = f.new_block("fails")
        match condition:
            case TargetIs(pattern, is_negated):
                offset, mask = self._fact(_exempting(clause.operation), pattern)
                word = f.load(scratch, offset, 4, "facts")
                holds, else_ = (fails, after) if is_negated else (after, fails)
                f.branch(word, "&", signed32(mask), holds, else_, 32)
            case LineageIncludes(lineage):
                if clause.operation is Operation.EXEC:
                    # A process descends from what it becomes by this exec, too.
                    itself = f.new_block("itself")
                    self._require_fact(f, scratch, "identity", self.policy.lineages[lineage], itself)
                    f.jump(after)
                    f.start(itself)
                word = f.load(state, layout.STATE_LINEAGE + 4 * (lineage // 32), 4, "lineage")
                f.branch(word, "&", signed32(1 << (lineage % 32)), after, fails, 32)
            case After(gate):
                self._gate_holds(f, scratch, clause, gate, after, fails)
        f.start(fails)

    def _gate_holds(
        self, f: FunctionBuilder, scratch: bc.Value, event: Clause, number: int, holds: str, fails: str
    ) -> None:
        """
        Emit: go to `holds` if a gate is passed and fresh.

        State changes before rules are judged: a gate that this exec passes is passed now, and one that
        it also invalidates is stale at once (equal times are stale).
        """
        gate = self.policy.gates[number]
        passed = f.load(f.map_value("session", layout.session_gate(number)), name="passed")
        if event.operation is Operation.EXEC and gate.exits is None:
            self._if_fact(f, scratch, "identity", gate.pattern, lambda: self._now(f, scratch, passed))
        self._require(f, passed, "!=", 0, fails)
        for invalidator in gate.since:
            offset = layout.session_invalidated(len(self.policy.gates), invalidator)
            since = f.load(f.map_value("session", offset), name="since")
            self._if_invalidates(f, scratch, event, invalidator, since)
            self._require(f, passed, ">", since, fails)
        f.jump(holds)

    def _if_invalidates(
        self, f: FunctionBuilder, scratch: bc.Value, clause: Clause, number: int, since: bc.Value
    ) -> None:
        invalidator = self.policy.invalidators[number]
        kind = KIND_OF_OPERATION[invalidator.operation]
        if kind != KIND_OF_OPERATION[clause.operation]:
            return
        skip = f.new_block("skip")
        if invalidator.operation in ACCESS:
            access = f.load(scratch, layout.SCRATCH_ACCESS, name="access")
            self._require(f, access, "&", ACCESS[invalidator.operation], skip)
        self._require_fact(f, scratch, _exempting(invalidator.operation), invalidator.pattern, skip)
        self._now(f, scratch, since)
        f.start(skip)

    # What an allowed event changes

    def commit_labels(self, f: FunctionBuilder, scratch: bc.Value, state: bc.Value) -> None:
        """Emit: the process has gained what the subject gained. Safe beside its other threads."""
        for pair in range(self.label_words // 2):
            gained = f.load(scratch, layout.SCRATCH_LABELS + 8 * pair, name="gained")
            had = f.load(state, layout.STATE_LABELS + 8 * pair, name="had")
            with f.when(gained, "!=", had):
                f.atomic("|", state, layout.STATE_LABELS + 8 * pair, gained)

    def replace_labels(self, f: FunctionBuilder, scratch: bc.Value, state: bc.Value) -> None:
        """Emit: the process, alone after its exec, has the labels of the subject, no others."""
        for pair in range(self.label_words // 2):
            labels = f.load(scratch, layout.SCRATCH_LABELS + 8 * pair, name="labels")
            f.store(state, layout.STATE_LABELS + 8 * pair, labels)

    def commit_exec(self, f: FunctionBuilder, scratch: bc.Value, state: bc.Value) -> None:
        """Emit: lineage, and the gates that this exec passes or whose exit will."""
        bodies: dict[int, list[Body]] = defaultdict(list)
        for number, pattern in enumerate(self.policy.lineages):
            offset, mask = self._label(layout.STATE_LINEAGE, number)
            bodies[pattern].append(lambda o=offset, m=mask: _set_bits(f, state, o, m))  # type: ignore[misc]
        for number, gate in enumerate(self.policy.gates):
            if gate.exits is None:
                bodies[gate.pattern].append(lambda n=number: self._stamp(f, scratch, layout.session_gate(n)))  # type: ignore[misc]
            else:
                offset, mask = self._label(layout.STATE_PENDING, number)
                bodies[gate.pattern].append(lambda o=offset, m=mask: _set_bits(f, state, o, m))  # type: ignore[misc]
        self._select(f, scratch, "identity", bodies)

    def commit_invalidations(self, f: FunctionBuilder, scratch: bc.Value, kind: str) -> None:
        """Emit: remember that an invalidating event happened."""
        bodies: dict[int, list[Body]] = defaultdict(list)
        for number, invalidator in enumerate(self.policy.invalidators):
            if KIND_OF_OPERATION[invalidator.operation] == kind:
                bodies[invalidator.pattern].append(
                    lambda n=number, o=invalidator.operation: self._invalidate(f, scratch, n, o)  # type: ignore[misc]
                )
        self._select(f, scratch, "identity" if kind == "exec" else kind, bodies)

    def _invalidate(self, f: FunctionBuilder, scratch: bc.Value, number: int, operation: Operation) -> None:
        skip = f.new_block("skip")
        if operation in ACCESS:
            access = f.load(scratch, layout.SCRATCH_ACCESS, name="access")
            self._require(f, access, "&", ACCESS[operation], skip)
        self._stamp(f, scratch, layout.session_invalidated(len(self.policy.gates), number))
        f.start(skip)

    def _stamp(self, f: FunctionBuilder, scratch: bc.Value, offset: int) -> None:
        now = f.load(scratch, layout.SCRATCH_NOW, name="now")
        f.store(f.map_value("session", offset), 0, now)

    def _now(self, f: FunctionBuilder, scratch: bc.Value, time: bc.Value) -> None:
        f.assign(time, f.load(scratch, layout.SCRATCH_NOW, name="now"))

    # Facts

    def _fact(self, region: str, pattern: int) -> tuple[int, int]:
        """Return (offset in the scratch, mask) of a pattern's fact."""
        index, mask = self.recognizers[_kind_of(region)].bit(pattern)
        return facts_of(region) + 8 + 4 * index, mask

    @staticmethod
    def _label(base: int, number: int) -> tuple[int, int]:
        return base + 4 * (number // 32), 1 << (number % 32)

    @staticmethod
    def _require(
        f: FunctionBuilder, a: bc.Value, relation: bc.Relation, b: bc.Operand, other: str, width: bc.Width = 64
    ) -> None:
        """Emit: go to `other` unless a RELATION b."""
        go_on = f.new_block("so")
        f.branch(a, relation, b, go_on, other, width)
        f.start(go_on)

    def _require_fact(self, f: FunctionBuilder, scratch: bc.Value, kind: str, pattern: int, other: str) -> None:
        offset, mask = self._fact(kind, pattern)
        self._require(f, f.load(scratch, offset, 4, "facts"), "&", signed32(mask), other, 32)

    def _if_fact(self, f: FunctionBuilder, scratch: bc.Value, kind: str, pattern: int, body: Body) -> None:
        skip = f.new_block("skip")
        self._require_fact(f, scratch, kind, pattern, skip)
        body()
        f.start(skip)

    def _select(self, f: FunctionBuilder, scratch: bc.Value, region: str, bodies: Mapping[int, Sequence[Body]]) -> None:
        """Emit: run the bodies of every pattern that the facts of a region name."""
        if not bodies:
            return
        facts = facts_of(region)
        recognizer = self.recognizers[_kind_of(region)]
        by_word: dict[int, list[tuple[int, Sequence[Body]]]] = defaultdict(list)
        for pattern, chosen in bodies.items():
            index, mask = recognizer.bit(pattern)
            by_word[index].append((mask, chosen))
        done = f.new_block("selected")
        summary = f.load(scratch, facts, name="summary")
        words = sum(1 << index for index in by_word)
        self._require(f, summary, "&", f.let(words, "words"), done)
        for index in sorted(by_word):
            self._select_bits(f, scratch, facts + 8 + 4 * index, sorted(by_word[index], key=lambda item: item[0]))
        f.jump(done)
        f.start(done)

    def _select_bits(
        self, f: FunctionBuilder, scratch: bc.Value, offset: int, bits: Sequence[tuple[int, Sequence[Body]]]
    ) -> None:
        """Emit: test the bits of a word, half of them at a time."""
        skip = f.new_block("skip")
        facts = f.load(scratch, offset, 4, "facts")
        self._require(f, facts, "&", signed32(sum(mask for mask, _ in bits)), skip, 32)
        if len(bits) == 1:
            for body in bits[0][1]:
                body()
        else:
            half = len(bits) // 2
            self._select_bits(f, scratch, offset, bits[:half])
            self._select_bits(f, scratch, offset, bits[half:])
        f.start(skip)


def _set_bits(f: FunctionBuilder, base: bc.Value, offset: int, mask: int) -> None:
    word = f.load(base, offset, 4, "word")
    f.update(word, "|", signed32(mask), width=32)
    f.store(base, offset, word, 4)


def _clear_bits(f: FunctionBuilder, base: bc.Value, offset: int, mask: int) -> None:
    word = f.load(base, offset, 4, "word")
    f.update(word, "&", signed32(~mask & 0xFFFFFFFF), width=32)
    f.store(base, offset, word, 4)
