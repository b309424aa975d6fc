"""Control flow graphs: blocks, dominators, loops, dead code, liveness, and that drawings are legible."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from actplane import asm
from actplane.asm import R0, R1, R2, R6, HelperId, Insn, Program, ProgType, Reg
from actplane.asm.cfg import EdgeKind, FlowError, Graph, build_graph
from actplane.asm.cfg_draw import draw_svg, draw_text
from actplane.asm.cfg_effects import registers_in
from actplane.asm.cfg_flow import dominates, dominators, irreducible_edges, liveness, natural_loops, reverse_postorder
from actplane.asm.cfg_layout import lay_out

EXIT = asm.exit_()

DIAMOND = [asm.mov64(R0, 0), asm.jmp("jeq", R1, 0, 2), asm.mov64(R0, 1), asm.ja(1), asm.mov64(R0, 2), EXIT]
NESTED = [
    asm.mov64(R0, 0),
    asm.mov64(R1, 3),
    asm.mov64(R2, 3),  # the outer loop starts here, the inner one at the next
    asm.add64(R0, R2),
    asm.sub64(R2, 1),
    asm.jmp("jne", R2, 0, -3),
    asm.sub64(R1, 1),
    asm.jmp("jne", R1, 0, -6),
    EXIT,
]


def test_blocks_and_edges_of_a_diamond() -> None:
    graph = build_graph(DIAMOND)
    assert [(block.start, block.end) for block in graph.blocks] == [(0, 2), (2, 4), (4, 5), (5, 6)]
    assert [(edge.target, edge.kind) for edge in graph.blocks[0].edges] == [(2, EdgeKind.TAKEN), (1, EdgeKind.NEXT)]
    assert [(edge.target, edge.kind) for edge in graph.blocks[1].edges] == [(3, EdgeKind.JUMP)]
    assert graph.block_at(3).index == 1
    assert dominators(graph, graph.functions[0]) == {0: None, 1: 0, 2: 0, 3: 0}
    assert natural_loops(graph, graph.functions[0]) == []


def test_jumps_count_slots_and_blocks_count_instructions() -> None:
    graph = build_graph([asm.ja(2), asm.ld_imm64(R0, 1 << 40), asm.mov64(R0, 1), EXIT])
    assert graph.targets == {0: 2}
    assert graph.dead_insns == (1,)


def test_nested_loops() -> None:
    graph = build_graph(NESTED)
    outer, inner = natural_loops(graph, graph.functions[0])
    assert (graph.blocks[outer.header].start, outer.depth) == (2, 1)
    assert (graph.blocks[inner.header].start, inner.depth) == (3, 2)
    assert set(inner.blocks) < set(outer.blocks)
    assert irreducible_edges(graph, graph.functions[0]) == []


def test_a_cycle_with_two_entries_is_no_natural_loop() -> None:
    graph = build_graph([asm.jmp("jeq", R1, 0, 1), asm.mov64(R0, 0), asm.mov64(R0, 1), asm.jmp("jeq", R1, 1, -3), EXIT])
    function = graph.functions[0]
    assert natural_loops(graph, function) == []
    assert len(irreducible_edges(graph, function)) == 1


def test_functions_and_dead_code() -> None:
    insns = (
        asm.mov64(R1, 1),
        asm.call_sub(2),
        EXIT,
        asm.mov64(R0, 9),  # nobody gets here
        asm.mov64(R0, R1),
        EXIT,
    )
    program = Program("main", ProgType.BPF_PROG_TYPE_XDP, insns, functions={4: "same"})
    graph = build_graph(program)
    assert [function.name for function in graph.functions] == ["main", "same"]
    assert graph.functions[0].calls == (4,)
    assert graph.dead_insns == (3,)


@pytest.mark.parametrize(
    ("insns", "message"),
    [
        ([], "no instructions"),
        ([asm.mov64(R0, 0)], "insn 0: the program runs off its end"),
        ([asm.ja(5), EXIT], "insn 0: jumps to slot 6 of 2"),
        ([asm.ja(-2), EXIT], "insn 0: jumps to slot -1 of 2"),
        ([asm.ja(1), asm.ld_imm64(R0, 0), EXIT], "insn 0: jumps to the middle of ld_imm64"),
        ([asm.mov64(R0, 0), asm.jmp("jeq", R0, 0, -1)], "insn 1: the program runs off its end"),
    ],
)
def test_flow_that_goes_nowhere_is_refused(insns: list[Insn], message: str) -> None:
    with pytest.raises(FlowError, match=message):
        build_graph(insns)


# Liveness.


def live_in(insns: list[Insn]) -> list[list[int]]:
    graph = build_graph(insns)
    found = liveness(graph, graph.functions[0])
    return [registers_in(found[number].live_in) for number in sorted(found)]


def test_liveness_of_a_diamond() -> None:
    assert live_in(DIAMOND) == [[1], [], [], [0]]


def test_liveness_goes_round_loops() -> None:
    assert live_in(NESTED) == [[], [0, 1], [0, 1, 2], [0, 1], [0]]


def test_calls_destroy_arguments_and_read_what_they_take() -> None:
    helper = [asm.call(HelperId.bpf_get_prandom_u32), asm.mov64(R1, R6), EXIT]
    assert live_in(helper) == [[1, 2, 3, 4, 5, 6]]
    subprogram = [asm.call_sub(1), EXIT, asm.mov64(R0, R2), EXIT]
    assert live_in(subprogram) == [[2]]


def test_cmpxchg_reads_r0() -> None:
    cas = asm.atomic("cmpxchg", asm.Size.DW, R1, R2, 0)
    assert live_in([cas, EXIT]) == [[0, 1, 2]]


# Random graphs: what the analyses promise, checked against the definitions.


def random_insns(rng: random.Random, count: int) -> list[Insn]:
    """Instructions that move and jump anywhere, the last an exit."""
    insns = []
    for index in range(count):
        target = rng.randrange(count + 1) - index - 1
        insns.append(
            rng.choice(
                [
                    asm.mov64(Reg(rng.randrange(10)), Reg(rng.randrange(10))),
                    asm.jmp("jeq", Reg(rng.randrange(10)), 0, target),
                    asm.jmp("jeq", Reg(rng.randrange(10)), 0, target),
                    asm.ja(target),
                    EXIT,
                ]
            )
        )
    return [*insns, EXIT]


def reachable(graph: Graph, entry: int, without: int | None = None) -> set[int]:
    found, waiting = set(), [entry]
    while waiting:
        block = waiting.pop()
        if block not in found and block != without:
            found.add(block)
            waiting.extend(graph.blocks[block].successors)
    return found


@pytest.mark.parametrize("seed", range(150))
def test_analyses_hold_by_definition_on_random_graphs(seed: int) -> None:
    rng = random.Random(seed)
    graph = build_graph(random_insns(rng, rng.randrange(2, 40)))
    function = graph.functions[0]
    assert set(function.blocks) == reachable(graph, function.entry) == set(reverse_postorder(graph, function))
    tree = dominators(graph, function)
    for block in function.blocks:
        cut_off = set(function.blocks) - reachable(graph, function.entry, without=block)
        assert {other for other in function.blocks if dominates(tree, block, other)} == cut_off
    for loop in natural_loops(graph, function):
        assert all(dominates(tree, loop.header, block) for block in loop.blocks)
        assert all(loop.header in graph.blocks[latch].successors for latch in loop.latches)
    live = liveness(graph, function)
    for block in function.blocks:
        assert live[block].live_out == mask_of(live[each].live_in for each in graph.blocks[block].successors)


def mask_of(masks) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


@pytest.mark.parametrize("seed", range(60))
def test_drawings_of_random_graphs_overlap_nowhere(seed: int) -> None:
    rng = random.Random(seed)
    graph = build_graph(random_insns(rng, rng.randrange(2, 30)))
    function = graph.functions[0]
    sizes = {block: (rng.randrange(5, 20), rng.randrange(3, 8)) for block in function.blocks}
    edges = [(block, target) for block in function.blocks for target in graph.blocks[block].successors]
    plan = lay_out(sizes, edges, function.entry)
    cells: set[tuple[int, int]] = set()
    for box in plan.boxes.values():
        own = {(x, y) for x in range(box.x, box.x + box.width) for y in range(box.y, box.y + box.height)}
        assert not own & cells
        cells |= own
    for route, (source, target) in zip(plan.routes, edges, strict=True):
        assert (route.source, route.target) == (source, target)
        points = route.points
        above, below = plan.boxes[source], plan.boxes[target]
        assert above.x <= points[0][0] < above.x + above.width
        assert points[0][1] == above.y + above.height
        assert below.x <= points[-1][0] < below.x + below.width
        for (x, y), (to_x, to_y) in pairwise(points):
            assert x == to_x or y == to_y
            low_x, high_x, low_y, high_y = min(x, to_x), max(x, to_x), min(y, to_y), max(y, to_y)
            passed = {(column, row) for column in range(low_x, high_x + 1) for row in range(low_y, high_y + 1)}
            assert not passed & cells, "an edge runs through a box"


def test_drawing_names_what_is_never_reached() -> None:
    assert draw_text(build_graph([asm.ja(1), asm.mov64(R0, 1), asm.mov64(R0, 2), EXIT])).endswith(
        "never reached:\n   1: r0 = 1\n"
    )


def test_svg_is_well_formed_and_escapes_its_text() -> None:
    graph = build_graph([asm.mov64(R0, 0), asm.jmp("jlt", R0, 5, -2), EXIT])
    texts = [element.text for element in ElementTree.fromstring(draw_svg(graph)).iter() if element.text]
    assert any("if r0 < 5 goto -2" in text for text in texts)


def test_a_thousand_blocks_are_drawn() -> None:
    insns = [each for _ in range(500) for each in (asm.jmp("jeq", R1, 0, 1), asm.mov64(R0, 1))]
    assert draw_text(build_graph([*insns, asm.mov64(R0, 0), EXIT])).count("▼") == 1500
