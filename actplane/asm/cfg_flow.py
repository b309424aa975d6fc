"""
What follows from a control flow graph: dominators, natural loops, live registers.

Everything is computed for one function of the graph at a time; a call is one instruction here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actplane.asm.cfg import Function, Graph
from actplane.asm.cfg_effects import ARGUMENTS, R10_BIT, ArgumentCount, effects
from actplane.asm.isa import Kind


def reverse_postorder(graph: Graph, function: Function) -> list[int]:
    """
    Return the blocks of a function in an order in which every block comes after those that lead to
    it, except along the edges that close loops.
    """
    order: list[int] = []
    seen = {function.entry}
    stack = [(function.entry, iter(graph.blocks[function.entry].successors))]
    while stack:
        block, successors = stack[-1]
        following = next((target for target in successors if target not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(graph.blocks[following].successors)))
    return order[::-1]


def dominators(graph: Graph, function: Function) -> dict[int, int | None]:
    """
    Return for each block its immediate dominator: the last block that every path to it passes.

    The entry has None. Source: Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm", 2001.
    """
    order = reverse_postorder(graph, function)
    rank = {block: number for number, block in enumerate(order)}
    before = graph.predecessors()
    found: dict[int, int] = {function.entry: function.entry}

    def meet(one: int, other: int) -> int:
        while one != other:
            while rank[one] > rank[other]:
                one = found[one]
            while rank[other] > rank[one]:
                other = found[other]
        return one

    has_changed = True
    while has_changed:
        has_changed = False
        for block in order[1:]:
            known = [each for each in before[block] if each in found]
            best = known[0]
            for each in known[1:]:
                best = meet(best, each)
            if found.get(block) != best:
                found[block] = best
                has_changed = True
    return {block: None if block == function.entry else found[block] for block in order}


def dominates(tree: Mapping[int, int | None], one: int, other: int) -> bool:
    """Say whether every path to `other` passes `one`; a block dominates itself."""
    at: int | None = other
    while at is not None and at != one:
        at = tree[at]
    return at == one


@dataclass(frozen=True, slots=True)
class Loop:
    """A natural loop: where it is entered, the blocks that jump back there, all its blocks."""

    header: int
    latches: tuple[int, ...]
    blocks: tuple[int, ...]
    depth: int = 1
    """1 for an outermost loop, 2 for one inside it."""


def natural_loops(graph: Graph, function: Function) -> list[Loop]:
    """
    Return the natural loops of a function, outer ones first.

    A jump back to a block that does not dominate it makes no natural loop (compilers do not write such
    code); see `irreducible_edges`.
    """
    tree = dominators(graph, function)
    before = graph.predecessors()
    latches: dict[int, list[int]] = {}
    for block in tree:
        for target in dict.fromkeys(graph.blocks[block].successors):
            if dominates(tree, target, block):
                latches.setdefault(target, []).append(block)
    bodies: dict[int, set[int]] = {}
    for header, ends in latches.items():
        body = {header}
        waiting = list(ends)
        while waiting:
            block = waiting.pop()
            if block not in body:
                body.add(block)
                waiting.extend(each for each in before[block] if each in tree)
        bodies[header] = body
    loops = [
        Loop(
            header,
            tuple(latches[header]),
            tuple(sorted(body)),
            1 + sum(header in other and header != outer for outer, other in bodies.items()),
        )
        for header, body in bodies.items()
    ]
    return sorted(loops, key=lambda loop: (loop.depth, loop.header))


def irreducible_edges(graph: Graph, function: Function) -> list[tuple[int, int]]:
    """Return the edges that close a cycle which has no single entry."""
    tree = dominators(graph, function)
    rank = {block: number for number, block in enumerate(reverse_postorder(graph, function))}
    return [
        (block, target)
        for block in tree
        for target in dict.fromkeys(graph.blocks[block].successors)
        if rank[target] <= rank[block] and not dominates(tree, target, block)
    ]


@dataclass(frozen=True, slots=True)
class Liveness:
    """
    The registers whose values are still wanted where a block starts and where it ends, as bit masks.

    r10 is left out: it always has its value.
    """

    live_in: int
    live_out: int


def liveness(graph: Graph, function: Function, argument_count: ArgumentCount | None = None) -> dict[int, Liveness]:
    """
    Return the live registers of every block of a function.

    A called subprogram reads those of r1 to r5 that are live at its entry. Without `argument_count`
    every called helper is taken to read all of them. Behind an open jump every register may be wanted.
    """
    return _liveness(graph, function, argument_count, _subprogram_reads(graph, argument_count))


def _subprogram_reads(graph: Graph, argument_count: ArgumentCount | None) -> dict[int, int]:
    """Return for the first instruction of each function the arguments it reads."""
    found = {graph.blocks[function.entry].start: 0 for function in graph.functions}
    has_changed = True
    while has_changed:
        has_changed = False
        for function in graph.functions:
            start = graph.blocks[function.entry].start
            reads = _liveness(graph, function, argument_count, found)[function.entry].live_in & ARGUMENTS
            if reads != found[start]:
                found[start] = reads
                has_changed = True
    return found


def _liveness(
    graph: Graph, function: Function, argument_count: ArgumentCount | None, subprogram_reads: Mapping[int, int]
) -> dict[int, Liveness]:
    reads: dict[int, int] = {}
    writes: dict[int, int] = {}
    for number in function.blocks:
        block = graph.blocks[number]
        wanted = written = 0
        for index in range(block.start, block.end):
            insn, form = graph.insns[index], graph.forms[index]
            effect = effects(insn, form, argument_count) if argument_count else effects(insn, form)
            is_call = form.kind is Kind.CALL_SUBPROGRAM
            wanted |= (subprogram_reads[graph.targets[index]] if is_call else effect.reads) & ~written
            written |= effect.writes | effect.destroys
        reads[number], writes[number] = wanted & ~R10_BIT, written
    is_open = {number for number in function.blocks if graph.blocks[number].end - 1 in graph.open_jumps}
    live_in = dict.fromkeys(function.blocks, 0)
    live_out = dict.fromkeys(function.blocks, 0)
    order = reverse_postorder(graph, function)[::-1]
    has_changed = True
    while has_changed:
        has_changed = False
        for number in order:
            out = R10_BIT - 1 if number in is_open else 0
            for target in graph.blocks[number].successors:
                out |= live_in[target]
            into = reads[number] | out & ~writes[number]
            if (into, out) != (live_in[number], live_out[number]):
                live_in[number], live_out[number] = into, out
                has_changed = True
    return {number: Liveness(live_in[number], live_out[number]) for number in function.blocks}
