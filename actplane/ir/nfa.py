"""
A set of regular languages as one nondeterministic automaton, the step before `ir.automaton`.

The patterns of a policy look alike: hundreds start with `**/` or with the same folder. States are
therefore made as in a trie: from one state, the same next part of a regex always leads to the same
state. Every state stands for exactly one language of prefixes, so sharing it is always right, and
five hundred `**/` share one loop instead of running five hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actplane.ir.regex import ANY_MASK, Chars, Concat, Regex, Star, Union


@dataclass(frozen=True, slots=True)
class Nfa:
    """
    States are numbers from 0, the start. All tuples but `patterns` are indexed by state.

    edges    (mask of bytes, state) pairs: read one byte of the mask, go there. Masks hold no NUL.
    silent   states that are entered together with this one, without reading.
    accepts  the patterns that a string ending here matches, one bit for each.
    """

    patterns: int
    edges: tuple[tuple[tuple[int, int], ...], ...]
    silent: tuple[tuple[int, ...], ...]
    accepts: tuple[int, ...]

    def closure(self, state: int) -> frozenset[int]:
        """Return every state entered with a state, itself included, that reads or accepts."""
        seen = {state}
        todo = [state]
        while todo:
            for other in self.silent[todo.pop()]:
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return frozenset(each for each in seen if self.edges[each] or self.accepts[each])

    def loops_on_anything(self, state: int) -> bool:
        """Whether a state, once entered, is never left by any byte of a string."""
        mask = 0
        for chars, target in self.edges[state]:
            if target == state:
                mask |= chars
        return mask == ANY_MASK

    def served(self) -> list[int]:
        """Return for each state the patterns that some string through it can still match."""
        masks = list(self.accepts)
        is_stable = False
        while not is_stable:
            is_stable = True
            for state in reversed(range(len(masks))):
                mask = masks[state]
                for other in self.silent[state]:
                    mask |= masks[other]
                for _, other in self.edges[state]:
                    mask |= masks[other]
                if mask != masks[state]:
                    masks[state] = mask
                    is_stable = False
        return masks


def build_nfa(regexes: Sequence[Regex]) -> Nfa:
    """
    Return one automaton for several regexes; bit i of `accepts` is the i-th regex.

    >>> from actplane.ir.regex import literal
    >>> nfa = build_nfa([literal(b"ab"), literal(b"ac")])
    >>> len(nfa.edges), nfa.accepts
    (4, (0, 0, 1, 2))
    """
    builder = _Builder()
    for index, regex in enumerate(regexes):
        end = builder.follow(0, regex)
        builder.accepts[end] |= 1 << index
    return Nfa(
        len(regexes),
        tuple(map(tuple, builder.edges)),
        tuple(map(tuple, builder.silent)),
        tuple(builder.accepts),
    )


class _Builder:
    """Grows the states. `known` is the trie: (state, part of a regex) to the state after it."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[int, int]]] = [[]]
        self.silent: list[list[int]] = [[]]
        self.accepts: list[int] = [0]
        self.known: dict[tuple[int, int | Star | Union], int] = {}

    def add_state(self) -> int:
        self.edges.append([])
        self.silent.append([])
        self.accepts.append(0)
        return len(self.accepts) - 1

    def follow(self, state: int, regex: Regex) -> int:
        """Return the state reached from a state by exactly the strings of a regex."""
        if isinstance(regex, Chars):
            return self.follow_chars(state, regex.mask & ANY_MASK)
        if isinstance(regex, Concat):
            for part in regex.parts:
                state = self.follow(state, part)
            return state
        known = self.known.get((state, regex))
        if known is None:
            known = self.follow_star(state, regex) if isinstance(regex, Star) else self.follow_union(state, regex)
            self.known[state, regex] = known
        return known

    def follow_chars(self, state: int, mask: int) -> int:
        known = self.known.get((state, mask))
        if known is None:
            known = self.add_state()
            self.edges[state].append((mask, known))
            self.known[state, mask] = known
        return known

    def follow_star(self, state: int, star: Star) -> int:
        body = star.body
        loop = self.add_state()
        self.silent[state].append(loop)
        if isinstance(body, Chars):
            self.edges[loop].append((body.mask & ANY_MASK, loop))
        else:
            self.silent[self.follow(loop, body)].append(loop)
        return loop

    def follow_union(self, state: int, union: Union) -> int:
        end = self.add_state()
        for option in union.options:
            self.silent[self.follow(state, option)].append(end)
        return end
