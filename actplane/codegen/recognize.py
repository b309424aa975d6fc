"""
Recognisers: which patterns a string matches, found in one walk however many patterns there are.

All patterns of a kind become one automaton in a read-only map. Walking a string sets one bit of the
scratch facts for each pattern that matches it; the clauses then look at bits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.codegen import layout
from actplane.errors import PolicyError
from actplane.ir import bytecode as bc
from actplane.ir.automaton import Automaton, AutomatonTooLarge, compile_automaton
from actplane.ir.build import FunctionBuilder
from actplane.ir.policy import Pattern, PatternKind
from actplane.ir.regex import ANYTHING, EMPTY, Concat, Regex, Union, literal
from actplane.source import Diagnostic

CLASSES_BYTES = 512
BYTES_A_STEP = 8
BPF_F_RDONLY_PROG = 1 << 7


def _language(pattern: Pattern) -> Regex:
    """Return what of a whole string a pattern accepts: a NAME is the last component of a path."""
    if pattern.kind is PatternKind.NAME:
        folder = Union((EMPTY, Concat((ANYTHING, literal(b"/")))))
        return Concat((folder, pattern.regex))
    return pattern.regex


def facts_of(region: str) -> int:
    """Return the offset in the scratch of the facts of a region: its summary, then its words."""
    return layout.SCRATCH_FACTS + layout.FACT_REGIONS.index(region) * layout.FACT_BYTES


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 1).bit_length()


@dataclass(frozen=True, slots=True)
class Recognizer:
    """
    The automaton of one kind, its map, and where its facts are.

    `patterns` are ascending indexes into the policy's patterns; the n-th of them has fact bit n.
    """

    kind: str
    patterns: tuple[int, ...]
    automaton: Automaton

    @property
    def map_name(self) -> str:
        return f"{self.kind}_table"

    @property
    def words(self) -> int:
        """32-bit words of facts."""
        return (len(self.patterns) + 31) // 32

    @property
    def summary(self) -> int:
        """Offset in the scratch of the summary of the facts."""
        return facts_of(self.kind)

    def word(self, index: int) -> int:
        """Offset in the scratch of a word of facts."""
        return self.summary + 8 + 4 * index

    def bit(self, pattern: int) -> tuple[int, int]:
        """Return (index of the word, mask) of a pattern of the policy."""
        number = bisect_left(self.patterns, pattern)
        return number // 32, 1 << (number % 32)

    @property
    def _accept_size(self) -> int:
        return _power_of_two(len(self.automaton.accept_sets) * 4 * self.words)

    @property
    def _table_offset(self) -> int:
        return CLASSES_BYTES + self._accept_size + 4 * self.words

    def map_spec(self) -> MapSpec:
        """Return the read-only map: classes (u16, times 4), facts of each accept set, rows."""
        classes = b"".join((4 * c).to_bytes(2, "little") for c in self.automaton.classes)
        accepts = bytearray()
        number = {pattern: n for n, pattern in enumerate(self.patterns)}
        for accepted in self.automaton.accept_sets:
            value = sum(1 << number[self.patterns[index]] for index in accepted)
            accepts += value.to_bytes(4 * self.words, "little")
        contents = classes + bytes(accepts).ljust(self._accept_size + 4 * self.words, b"\0") + self.automaton.table
        return MapSpec(
            self.map_name,
            MapType.BPF_MAP_TYPE_ARRAY,
            key_size=4,
            value_size=len(contents),
            max_entries=1,
            flags=BPF_F_RDONLY_PROG,
            contents=contents,
            is_frozen=True,
        )

    # Code

    def begin(self, f: FunctionBuilder, scratch: bc.Value) -> None:
        """Emit: the next walk starts a new string."""
        f.store(scratch, layout.SCRATCH_AUTOMATON, self.automaton.start)

    def walk(self, f: FunctionBuilder, scratch: bc.Value, at: bc.Operand, length: bc.Operand) -> None:
        """Emit: feed `length` bytes of the scratch text from offset `at`, the final NUL included."""
        f.call(f"walk_{self.kind}", scratch, at, length)

    def functions(self) -> tuple[bc.Function, ...]:
        """Return `walk_KIND(scratch, at, length)` and what it calls."""
        return (
            self._walk(),
            self._word(),
            self._byte(),
            self._emit(),
        )

    def keep_identity(self, f: FunctionBuilder, scratch: bc.Value) -> None:
        """Emit: copy the facts so far to the region `identity`."""
        self._copy(f, scratch, self.summary, facts_of("identity"))

    def add_names_to_identity(self, f: FunctionBuilder, scratch: bc.Value, patterns: Sequence[Pattern]) -> None:
        """Emit: those facts that are of names, not of paths, are in the region `identity` too."""
        masks: dict[int, int] = {}
        for pattern in self.patterns:
            if patterns[pattern].kind is PatternKind.NAME:
                index, mask = self.bit(pattern)
                masks[index] = masks.get(index, 0) | mask
        identity = facts_of("identity")
        facts = f.load(scratch, self.summary, name="facts")
        with f.when(facts, "!=", 0):
            summary = f.load(scratch, identity, name="summary")
            for index, mask in masks.items():
                word = f.load(scratch, self.word(index), 4, "word")
                f.update(word, "&", f.let(mask, "names"))
                with f.when(word, "!=", 0):
                    f.update(word, "|", f.load(scratch, identity + 8 + 4 * index, 4))
                    f.store(scratch, identity + 8 + 4 * index, word, 4)
                    f.update(summary, "|", f.let(1 << index))
            f.store(scratch, identity, summary)

    def restore_identity(self, f: FunctionBuilder, scratch: bc.Value) -> None:
        """Emit: the facts are those that were kept."""
        self._copy(f, scratch, facts_of("identity"), self.summary)

    def _copy(self, f: FunctionBuilder, scratch: bc.Value, source: int, to: int) -> None:
        summary = f.load(scratch, source, name="summary")
        either = f.op(summary, "|", f.load(scratch, to), "either")
        f.store(scratch, to, summary)
        with f.when(either, "!=", 0):
            for index in range(self.words):
                f.store(scratch, to + 8 + 4 * index, f.load(scratch, source + 8 + 4 * index, 4), 4)

    def clear(self, f: FunctionBuilder, scratch: bc.Value) -> None:
        """Emit: forget the facts of the event before."""
        summary = f.load(scratch, self.summary, name="summary")
        with f.when(summary, "!=", 0):
            f.store(scratch, self.summary, 0)
            for index in range(self.words):
                f.store(scratch, self.word(index), 0, 4)

    def _walk(self) -> bc.Function:
        f = FunctionBuilder(f"walk_{self.kind}", ["scratch", "at", "length"])
        scratch, at, length = f.parameters
        f.store(scratch, layout.SCRATCH_AT, at)
        context = f.frame_address(f.slot("context", 8))
        f.store(context, 0, scratch)
        steps = f.op(length, ">>", 3, "steps")
        f.helper("bpf_loop", steps, f.function(f"{self.kind}_word"), context, 0)
        rest = f.op(length, "&", BYTES_A_STEP - 1, "rest")
        with f.when(rest, "!=", 0):
            f.helper("bpf_loop", rest, f.function(f"{self.kind}_byte"), context, 0)
        f.ret(0)
        return f.finish()

    def _word(self) -> bc.Function:
        """Return the step over eight bytes; if patterns match within them, it goes byte by byte."""
        f = FunctionBuilder(f"{self.kind}_word", ["index", "context"])
        _, context = f.parameters
        scratch = f.load(context, name="scratch")
        at = f.load(scratch, layout.SCRATCH_AT, name="at")
        row = f.load(scratch, layout.SCRATCH_AUTOMATON, name="row")
        with f.when(at, ">", layout.TEXT_BYTES - BYTES_A_STEP):
            f.ret(1)
        text = f.op(at, "+", scratch, "text")
        word = f.load(text, layout.SCRATCH_TEXT, name="word")
        rows = f.let(0, "rows")
        for left in reversed(range(BYTES_A_STEP)):
            self._step(f, row, f.op(word, "&", 255, "byte") if left else word)
            f.update(rows, "|", row)
            if left:
                f.update(word, ">>", 8)
        with f.when(rows, "s<", 0, width=32):
            f.helper("bpf_loop", BYTES_A_STEP, f.function(f"{self.kind}_byte"), context, 0)
            f.ret(0)
        f.update(at, "+", BYTES_A_STEP)
        f.store(scratch, layout.SCRATCH_AT, at)
        f.store(scratch, layout.SCRATCH_AUTOMATON, row)
        f.ret(0)
        return f.finish()

    def _byte(self) -> bc.Function:
        f = FunctionBuilder(f"{self.kind}_byte", ["index", "context"])
        scratch = f.load(f.parameters[1], name="scratch")
        at = f.load(scratch, layout.SCRATCH_AT, name="at")
        row = f.load(scratch, layout.SCRATCH_AUTOMATON, name="row")
        with f.when(at, ">", layout.TEXT_BYTES - BYTES_A_STEP):
            f.ret(1)
        text = f.op(at, "+", scratch, "text")
        self._step(f, row, f.load(text, layout.SCRATCH_TEXT, 1, "byte"))
        f.update(at, "+", 1)
        f.store(scratch, layout.SCRATCH_AT, at)
        f.store(scratch, layout.SCRATCH_AUTOMATON, row)
        with f.when(row, "s<", 0, width=32):
            f.call(f"accept_{self.kind}", scratch, row)
        f.ret(0)
        return f.finish()

    def _step(self, f: FunctionBuilder, row: bc.Value, byte: bc.Value) -> None:
        """Emit: the row that a byte leads to."""
        f.update(byte, "<<", 1)
        f.update(byte, "+", f.map_value(self.map_name))
        f.update(row, "+", f.load(byte, 0, 2, "column"))
        f.assign(row, self._load_row(f, row))

    def _load_row(self, f: FunctionBuilder, offset: bc.Value) -> bc.Value:
        entry = f.op(offset, "&", len(self.automaton.table) - 4, "entry")
        f.update(entry, "+", f.map_value(self.map_name, self._table_offset))
        return f.load(entry, 0, 4, "row")

    def _emit(self) -> bc.Function:
        f = FunctionBuilder(f"accept_{self.kind}", ["scratch", "row"])
        scratch, row = f.parameters
        number = self._load_row(f, f.op(row, "+", 4 * self.automaton.class_count))
        f.update(number, "*", 4 * self.words)
        f.update(number, "&", self._accept_size - 4)
        f.update(number, "+", f.map_value(self.map_name, CLASSES_BYTES))
        summary = f.load(scratch, self.summary, name="summary")
        for index in range(self.words):
            bits = f.load(number, 4 * index, 4, "bits")
            with f.when(bits, "!=", 0):
                f.update(bits, "|", f.load(scratch, self.word(index), 4))
                f.store(scratch, self.word(index), bits, 4)
                f.update(summary, "|", f.let(1 << index))
        f.store(scratch, self.summary, summary)
        f.ret(0)
        return f.finish()


def build_recognizer(kind: str, patterns: Sequence[Pattern], chosen: Sequence[int]) -> Recognizer:
    """
    Compile the chosen patterns (ascending indexes into `patterns`) into the automaton of a kind.

    Raises: PolicyError if there are too many, or if together they need too many states.
    """
    limit = 32 * layout.FACT_WORDS
    if len(chosen) > limit:
        message = f"too many {kind} patterns: got {len(chosen)}, expected at most {limit}"
        raise PolicyError([Diagnostic(None, message)])
    regexes = [_language(patterns[index]) for index in chosen]
    try:
        automaton = compile_automaton(regexes, restarts=kind == "argument")
    except AutomatonTooLarge as error:
        names = ", ".join(f'"{patterns[chosen[index]].text}"' for index in error.patterns[:5])
        message = f"the {kind} patterns need too large an automaton"
        raise PolicyError([Diagnostic(None, message, f"these multiply its states: {names}")]) from error
    return Recognizer(kind, tuple(chosen), automaton)
