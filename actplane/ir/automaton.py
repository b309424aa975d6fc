"""
A set of patterns as one table that a program in the kernel walks once for every string.

The kernel feeds each byte of a string and then its NUL. `offset` is where the current row lies in
the table; bit 31 says that patterns were recognised on the way into it:

    entry  = u32 at table[(offset + 4 * classes[byte]) & mask]
    offset = entry & mask
    if entry & EMITS: the patterns of accept_sets[u32 at table[(offset + 4 * class_count) & mask]] match

A pattern that ends in "anything" (`/srv/**`) is decided before its string is, and a deterministic
automaton that had to remember which of n such patterns it has met would need 2**n states. So
patterns are emitted by transitions, not only at the end: on the byte after which everything
matches. What was emitted needs no state.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from actplane.errors import ActplaneError
from actplane.ir.nfa import Nfa, build_nfa
from actplane.ir.regex import Regex

EMITS = 1 << 31
"""The bit of an entry that says: the row it leads to names the patterns that just matched."""
ENTRY_BYTES = 4
DEFAULT_MAX_TABLE_BYTES = 16 << 20

_WIDE_CLASSES = 4
"""States with a loop, or an edge for more classes than this, share precomputed rows."""
_SAMPLED_SETS = 4000

_MAX_HELD = 1 << 22
"""
How many states of the NFA the rows may stand for, all together: what the construction costs in memory and time.
Tables within DEFAULT_MAX_TABLE_BYTES need half of it at the most, unless a few patterns put hundreds into every row.
"""

_NOTHING: frozenset[int] = frozenset()


class AutomatonTooLarge(ActplaneError):
    """
    The patterns need more states than fit. `patterns` are the indexes of those that multiply them.

    `**/a/**/b` must remember that `a` was met, whatever else is met: each such pattern can double
    the table, where `**/a/**` and `**/b` each add a few rows.
    """

    def __init__(self, patterns: Sequence[int], row_count: int, limit: str) -> None:
        shown = ", ".join(map(str, patterns[:10])) + (", ..." if len(patterns) > 10 else "")
        super().__init__(
            f"pattern automaton: table too large: got more than {row_count} states, expected at most {limit}\n"
            f"    hint: patterns {shown} multiply the states; use fewer `**` or `?` between fixed parts"
        )
        self.patterns = tuple(patterns)
        self.row_count = row_count


@dataclass(frozen=True, slots=True)
class Automaton:
    """
    A deterministic automaton, ready for the kernel.

    Shape:  `table` holds rows of `class_count` + 1 little-endian u32 entries: where each class of
            bytes leads, then the accept set of the row. Its size is a power of two, so that any
            offset is made safe by a mask. Row 0 is all zeros: no way out, nothing accepted.
    Units:  `start`, `row_bytes` and the entries (without EMITS) are bytes.
    """

    classes: bytes
    """The class of each of the 256 bytes. NUL alone is class 0."""
    class_count: int
    row_bytes: int
    row_count: int
    table: bytes
    accept_sets: tuple[frozenset[int], ...]
    """The patterns that match, by accept-set id. Id 0 is the empty set."""
    start: int
    restarts: bool

    @property
    def table_mask(self) -> int:
        """Every offset inside the table, as a mask."""
        return len(self.table) - 1

    def walk(self, data: bytes) -> frozenset[int]:
        """Feed exactly these bytes, NULs included, as the kernel does; return every pattern emitted."""
        table, mask = self.table, self.table_mask
        found = _NOTHING
        offset = self.start
        for byte in data:
            at = (offset + ENTRY_BYTES * self.classes[byte]) & mask
            entry = int.from_bytes(table[at : at + ENTRY_BYTES], "little")
            offset = entry & mask
            if entry & EMITS:
                at = (offset + ENTRY_BYTES * self.class_count) & mask
                found |= self.accept_sets[int.from_bytes(table[at : at + ENTRY_BYTES], "little")]
        return found

    def matches(self, data: bytes) -> frozenset[int]:
        """
        Return the patterns that match a string, given without its NUL.

        With `restarts`, `data` may be several strings with a NUL between each two.

        >>> from actplane.ir.regex import ANYTHING, Concat, literal
        >>> automaton = compile_automaton([literal(b"ab"), Concat((literal(b"a"), ANYTHING))], restarts=False)
        >>> sorted(automaton.matches(b"ab")), sorted(automaton.matches(b"ax"))
        ([0, 1], [1])
        """
        return self.walk(data + b"\0")

    def describe(self) -> str:
        """
        Return the automaton as text: its size, the classes of bytes, and each row's ways out.

        >>> from actplane.ir.regex import literal
        >>> print(compile_automaton([literal(b"a")], restarts=False).describe())
        4 rows of 16 bytes (64 in all), 3 classes, 2 accept sets
        class 0: \\x00
        class 1: \\x01-` b-\\xff
        class 2: a
        row 0:
        row 1 (start): 2 -> 2
        row 2: 0 -> 3!
        row 3 emits {0}:
        """
        lines = [
            f"{self.row_count} rows of {self.row_bytes} bytes ({len(self.table)} in all), "
            f"{self.class_count} classes, {len(self.accept_sets)} accept sets"
        ]
        lines.extend(f"class {number}: {_byte_ranges(self.classes, number)}" for number in range(self.class_count))
        for number in range(self.row_count):
            row = _entries(self.table[number * self.row_bytes : (number + 1) * self.row_bytes])
            ways: dict[int, list[int]] = {}
            for each, entry in enumerate(row[:-1]):
                if entry:
                    ways.setdefault(entry, []).append(each)
            title = f"row {number}" + (" (start)" if number * self.row_bytes == self.start else "")
            if row[-1]:
                title += f" emits {{{', '.join(map(str, sorted(self.accept_sets[row[-1]])))}}}"
            parts = [
                f"{_number_ranges(numbers)} -> {(entry & ~EMITS) // self.row_bytes}{'!' if entry & EMITS else ''}"
                for entry, numbers in ways.items()
            ]
            lines.append(f"{title}: {', '.join(parts)}".rstrip())
        return "\n".join(lines)


def compile_automaton(
    regexes: Sequence[Regex], *, restarts: bool, max_table_bytes: int = DEFAULT_MAX_TABLE_BYTES
) -> Automaton:
    """
    Compile regexes, each matched against a whole NUL-terminated string, into one automaton.

    After the NUL the state is the start if `restarts` (several strings in a row, such as argv), else
    row 0, where further NULs are padding. A matching pattern is emitted at least once, maybe more.

    Raises: AutomatonTooLarge if the table would not fit in `max_table_bytes`, or would be too much work to make.
    """
    nfa = build_nfa(regexes)
    return _Subsets(nfa, restarts, max_table_bytes).compile()


_Key = tuple[frozenset[int], int, int]
"""A row: the states of the NFA, the patterns emitted on the way in, those to emit on the way out."""


class _Subsets:
    """
    The subset construction.

    A state of the NFA is one of three: *wide* (`*`, `**`, `?`: leads on for many classes), *narrow*
    (a letter), or it only accepts. The row of a set of states is the row of its wide ones, of which
    there are few sets, with the ways of the narrow ones laid over it: most rows are a copy and one
    changed entry.
    """

    def __init__(self, nfa: Nfa, restarts: bool, max_table_bytes: int) -> None:
        self.nfa = nfa
        self.restarts = restarts
        self.max_table_bytes = max_table_bytes
        self.classes, self.class_count, members = _split_alphabet(nfa)
        self.row_bytes = ENTRY_BYTES * (self.class_count + 1)
        self.max_rows = (1 << (max(max_table_bytes, 1).bit_length() - 1)) // self.row_bytes

        closures: dict[int, frozenset[int]] = {}
        self.wide: dict[int, list[tuple[tuple[int, ...], frozenset[int]]]] = {}
        self.narrow: dict[int, list[tuple[tuple[int, ...], frozenset[int]]]] = {}
        for state, edges in enumerate(nfa.edges):
            if not edges:
                continue
            ways: list[tuple[tuple[int, ...], frozenset[int]]] = []
            for mask, target in edges:
                if target not in closures:
                    closures[target] = nfa.closure(target)
                ways.append((members[mask], closures[target]))
            is_wide = any(target == state for _, target in edges) or any(
                len(numbers) > _WIDE_CLASSES for numbers, _ in ways
            )
            (self.wide if is_wide else self.narrow)[state] = ways
        self.wide_states = frozenset(self.wide)
        self.accepting = frozenset(state for state, mask in enumerate(nfa.accepts) if mask)

        # States that no byte leaves and that accept: entering one decides its patterns at once.
        self.decides: dict[int, int] = {}
        for state in self.wide:
            if nfa.loops_on_anything(state):
                patterns = 0
                for other in nfa.closure(state):
                    patterns |= nfa.accepts[other]
                if patterns:
                    self.decides[state] = patterns
        self.deciding = frozenset(self.decides)
        # Once they are emitted, whatever comes with such a state only to accept says nothing new,
        # nor does the state itself if no other way leads on from it.
        self.spent: dict[int, frozenset[int]] = {}
        for state in self.decides:
            together = nfa.closure(state)
            reading = {other for other in together if nfa.edges[other]}
            is_last = reading == {state} and len(nfa.edges[state]) == 1
            self.spent[state] = together - reading | ({state} if is_last else _NOTHING)

        self.offsets: dict[_Key, int] = {(_NOTHING, 0, 0): 0}
        self.rows: list[_Key] = [(_NOTHING, 0, 0)]
        self.held = 0
        self.bases: dict[frozenset[int], tuple[list[int], list[frozenset[int]]]] = {}

    def compile(self) -> Automaton:
        if self.restarts:
            # Row 0 stays the row that nothing leaves; a failed string has one of its own.
            del self.offsets[_NOTHING, 0, 0]
        start, pending = self.settle(self.nfa.closure(0), _NOTHING)
        self.start: tuple[frozenset[int], int] = (start, pending)
        start_offset = self.offset(start, 0, pending)

        accept_ids: dict[int, int] = {0: 0}
        words = array("I", bytes(self.row_bytes))
        ways: dict[tuple[frozenset[int], int], list[int]] = {}
        number = 1
        while number < len(self.rows):
            states, emitted, pending = self.rows[number]
            row = ways.get((states, pending))
            if row is None:
                row = ways[states, pending] = self.row(states, pending)
            words.extend(row)
            words.append(accept_ids.setdefault(emitted, len(accept_ids)))
            number += 1
        if sys.byteorder == "big":
            words.byteswap()
        table = words.tobytes()
        size = 1 << (len(table) - 1).bit_length()
        return Automaton(
            classes=self.classes,
            class_count=self.class_count,
            row_bytes=self.row_bytes,
            row_count=len(self.rows),
            table=table.ljust(size, b"\0"),
            accept_sets=tuple(frozenset(_bits(mask)) for mask in accept_ids),
            start=start_offset,
            restarts=self.restarts,
        )

    def row(self, states: frozenset[int], pending: int) -> list[int]:
        """Return where each class leads from a set of states."""
        wide = states & self.wide_states
        base = self.bases.get(wide)
        if base is None:
            base = self.bases[wide] = self.base(wide)
        base_row, base_targets = base
        row = base_row.copy()
        changed: dict[int, frozenset[int]] = {}
        for state in states:
            for numbers, target in self.narrow.get(state, ()):
                for number in numbers:
                    changed[number] = changed.get(number, base_targets[number]) | target
        for number, target in changed.items():
            row[number] = self.entry(target, wide)
        if pending:
            # Only the start has something pending: patterns that match whatever the string is.
            for number in range(1, self.class_count):
                target, emitted = self.settle(changed.get(number, base_targets[number]), wide)
                row[number] = self.offset(target, emitted | pending, 0) | EMITS
        row[0] = self.end(states, pending)
        return row

    def base(self, wide: frozenset[int]) -> tuple[list[int], list[frozenset[int]]]:
        """Return, by class, the entries of a set of wide states alone, and the states they lead to."""
        targets = [_NOTHING] * self.class_count
        for state in wide:
            for numbers, target in self.wide[state]:
                for number in numbers:
                    targets[number] = targets[number] | target
        return [self.entry(target, wide) for target in targets], targets

    def end(self, states: frozenset[int], pending: int) -> int:
        """Return the entry for NUL: what is accepted here and was not emitted on the way."""
        accepted = 0
        for state in states & self.accepting:
            accepted |= self.nfa.accepts[state]
        for state in states & self.deciding:
            accepted &= ~self.decides[state]
        accepted |= pending
        after, pending_after = self.start if self.restarts else (_NOTHING, 0)
        return self.offset(after, accepted, pending_after) | (EMITS if accepted else 0)

    def entry(self, target: frozenset[int], wide: frozenset[int]) -> int:
        """Return the entry of a transition to a set of states, out of a set with these wide ones."""
        if self.deciding.isdisjoint(target):
            return self.offset(target, 0, 0)
        kept, emitted = self.settle(target, wide)
        return self.offset(kept, emitted, 0) | (EMITS if emitted else 0)

    def settle(self, states: frozenset[int], wide: frozenset[int]) -> tuple[frozenset[int], int]:
        """Return the states to keep, and the patterns decided by entering them from `wide`."""
        emitted = 0
        for state in states & self.deciding:
            if state not in wide:
                emitted |= self.decides[state]
            states -= self.spent[state]
        return states, emitted

    def offset(self, states: frozenset[int], emitted: int, pending: int) -> int:
        """Return the offset of a row, new or known."""
        key = (states, emitted, pending)
        offset = self.offsets.get(key)
        if offset is None:
            self.held += len(states)
            if len(self.rows) >= self.max_rows:
                raise self.too_large(f"{self.max_table_bytes} bytes")
            if self.held > _MAX_HELD:
                raise self.too_large(f"{_MAX_HELD} positions in the patterns for all states together")
            offset = self.offsets[key] = len(self.rows) * self.row_bytes
            self.rows.append(key)
        return offset

    def too_large(self, limit: str) -> AutomatonTooLarge:
        """
        Measure which patterns are to blame, and return the error that names them.

        A group of patterns is measured by how many of the sets met would fall together with others
        if its own states were gone, for each pattern of the group.
        """
        sets = list(dict.fromkeys(states for states, _, _ in self.rows))[-_SAMPLED_SETS:]
        served = self.nfa.served()
        blame: dict[int, float] = {}
        for group in {served[state] for states in sets for state in states}:
            own = frozenset(state for state, mask in enumerate(served) if mask and not mask & ~group)
            left = len({states - own for states in sets})
            blame[group] = (len(sets) - left) / group.bit_count()
        worst = max(blame.values(), default=0.0)
        guilty = 0
        for group, score in blame.items():
            if score >= worst / 4:
                guilty |= group
        return AutomatonTooLarge(_bits(guilty), len(self.rows), limit)


def _split_alphabet(nfa: Nfa) -> tuple[bytes, int, dict[int, tuple[int, ...]]]:
    """Return the class of each byte, how many there are, and the classes of each mask of the NFA."""
    masks = sorted({mask for edges in nfa.edges for mask, _ in edges})
    blocks = [((1 << 256) - 1) & ~1]
    for mask in masks:
        split: list[int] = []
        for block in blocks:
            inside = block & mask
            if inside and inside != block:
                split.append(block & ~mask)
                split.append(inside)
            else:
                split.append(block)
        blocks = split
    classes = bytearray(256)
    members: dict[int, list[int]] = {mask: [] for mask in masks}
    for number, block in enumerate(blocks, 1):
        for byte in _bits(block):
            classes[byte] = number
        for mask in masks:
            if block & mask:
                members[mask].append(number)
    return bytes(classes), len(blocks) + 1, {mask: tuple(numbers) for mask, numbers in members.items()}


def _bits(mask: int) -> list[int]:
    """Return the numbers of the bits that are set, lowest first."""
    numbers: list[int] = []
    while mask:
        low = mask & -mask
        numbers.append(low.bit_length() - 1)
        mask ^= low
    return numbers


def _entries(row: bytes) -> list[int]:
    return [int.from_bytes(row[at : at + ENTRY_BYTES], "little") for at in range(0, len(row), ENTRY_BYTES)]


def _byte_name(byte: int) -> str:
    return chr(byte) if 0x20 < byte < 0x7F and byte not in b"\\-" else f"\\x{byte:02x}"


def _byte_ranges(classes: bytes, number: int) -> str:
    return " ".join(
        _byte_name(first) if first == last else f"{_byte_name(first)}-{_byte_name(last)}"
        for first, last in _runs([byte for byte in range(256) if classes[byte] == number])
    )


def _number_ranges(numbers: list[int]) -> str:
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in _runs(numbers))


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Return consecutive numbers as (first, last) pairs."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
