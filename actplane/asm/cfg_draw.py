"""Pictures of a control flow graph: as text for a terminal, as SVG for a page."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from xml.sax.saxutils import escape

from actplane.asm.cfg import Block, EdgeKind, Function, Graph
from actplane.asm.cfg_effects import ArgumentCount, registers_in
from actplane.asm.cfg_flow import liveness, natural_loops
from actplane.asm.cfg_layout import Layout, Point, Route, lay_out
from actplane.asm.disasm import format_insn
from actplane.asm.insn import Insn

PADDING = 1

# A character of a line by the directions it leads to: up 1, down 2, left 4, right 8.
UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8
_LINES = " ╵╷│╴┘┐┤╶└┌├─┴┬┼"

COLUMN_PX, ROW_PX, FONT_PX = 8, 18, 13
_STYLE = """
    text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #1c2430; white-space: pre }
    .title { font-weight: 700; font-size: 15px }
    .name { fill: #5b6b82 }
    rect { fill: #ffffff; stroke: #5b6b82; rx: 4 }
    rect.loop { fill: #fff7e0; stroke: #b8860b }
    path { fill: none; stroke: #5b6b82; stroke-width: 1.4 }
    path.taken { stroke: #1a7f37 }
    path.back { stroke: #b8860b; stroke-dasharray: 5 3 }
"""

TextOf = Callable[[Insn], str]


def block_lines(graph: Graph, block: Block, text_of: TextOf = format_insn) -> list[str]:
    """Return what stands in the box of a block: one line an instruction, with its index."""
    return [f"{index:>4}: {text_of(graph.insns[index])}" for index in range(block.start, block.end)]


def draw_text(graph: Graph, *, text_of: TextOf = format_insn, argument_count: ArgumentCount | None = None) -> str:
    """
    Return a graph drawn with box characters, one function under the other.

    A block's first line names it and the registers that are live where it starts; edges taken when a
    condition holds are marked `y`, those that go on otherwise `n`.
    """
    pieces = []
    for function in graph.functions:
        titles, layout, contents = _plan(graph, function, text_of, argument_count)
        canvas = _Canvas(layout.width, layout.height)
        for number, box in layout.boxes.items():
            canvas.box(box.x, box.y, box.width, box.height, [titles[number], *contents[number]])
        for route, mark in zip(layout.routes, _marks(graph, function), strict=True):
            canvas.line(route.points)
            canvas.put(route.points[0][0], route.points[0][1] - 1, "┬")
            canvas.arrow(route.points[-1])
            if mark:
                canvas.put(route.points[0][0] + 1, route.points[0][1], mark)
        pieces.append(f"{function.name}:\n{canvas.text()}")
    if graph.unreached:
        rest = [line for number in graph.unreached for line in block_lines(graph, graph.blocks[number], text_of)]
        jumps = ", ".join(map(str, graph.open_jumps))
        title = f"reached by the jump at {jumps}, or never" if jumps else "never reached"
        pieces.append(f"{title}:\n" + "\n".join(rest))
    return "\n\n".join(pieces) + "\n"


def draw_svg(graph: Graph, *, text_of: TextOf = format_insn, argument_count: ArgumentCount | None = None) -> str:
    """Return a graph as an SVG document: loops are tinted, jumps back dashed, taken edges green."""
    pieces = []
    top = 0
    width = 0
    for function in graph.functions:
        titles, layout, contents = _plan(graph, function, text_of, argument_count)
        in_loop = {block for loop in natural_loops(graph, function) for block in loop.blocks}
        pieces.append(f'<g transform="translate({COLUMN_PX * 2},{top + 2 * ROW_PX})">')
        pieces.append(f'<text class="title" x="0" y="{-FONT_PX // 2}">{escape(function.name)}</text>')
        for route, mark in zip(layout.routes, _marks(graph, function), strict=True):
            pieces.extend(_svg_route(route, mark))
        for number, box in layout.boxes.items():
            kind = ' class="loop"' if number in in_loop else ""
            pieces.append(
                f'<rect{kind} x="{box.x * COLUMN_PX}" y="{box.y * ROW_PX}" '
                f'width="{box.width * COLUMN_PX}" height="{box.height * ROW_PX}"/>'
            )
            for row, line in enumerate([titles[number], *contents[number]]):
                kind = ' class="name"' if row == 0 else ""
                x, y = (box.x + 1 + PADDING) * COLUMN_PX, (box.y + 1 + row) * ROW_PX + ROW_PX * 2 // 3
                pieces.append(f'<text{kind} xml:space="preserve" x="{x}" y="{y}">{escape(line)}</text>')
        pieces.append("</g>")
        top += (layout.height + 3) * ROW_PX
        width = max(width, (layout.width + 4) * COLUMN_PX)
    body = "\n".join(pieces)
    marker = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z" style="fill:#5b6b82;stroke:none"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}">\n'
        f"<style>{_STYLE}</style>\n{marker}\n{body}\n</svg>\n"
    )


def _plan(
    graph: Graph, function: Function, text_of: TextOf, argument_count: ArgumentCount | None
) -> tuple[dict[int, str], Layout, dict[int, list[str]]]:
    live = liveness(graph, function, argument_count)
    titles, contents, sizes = {}, {}, {}
    for number in function.blocks:
        block = graph.blocks[number]
        registers = " ".join(f"r{register}" for register in registers_in(live[number].live_in))
        titles[number] = f"{block.name}  in: {registers or '-'}"
        contents[number] = block_lines(graph, block, text_of)
        widest = max(map(len, [titles[number], *contents[number]]))
        sizes[number] = (widest + 2 + 2 * PADDING, len(contents[number]) + 3)
    edges = [(number, target) for number in function.blocks for target in graph.blocks[number].successors]
    return titles, lay_out(sizes, edges, function.entry), contents


def _marks(graph: Graph, function: Function) -> list[str]:
    """Return for each edge, in the order of the layout, `y` or `n` if its block has two ways out."""
    marks = []
    for number in function.blocks:
        edges = graph.blocks[number].edges
        for edge in edges:
            is_choice = edges[0].kind is EdgeKind.TAKEN
            marks.append(("y" if edge.kind is EdgeKind.TAKEN else "n") if is_choice else "")
    return marks


def _svg_route(route: Route, mark: str) -> list[str]:
    points = [(x * COLUMN_PX + COLUMN_PX // 2, y * ROW_PX) for x, y in route.points]
    points[-1] = (points[-1][0], points[-1][1] + ROW_PX)
    for number in range(1, len(points) - 1):
        points[number] = (points[number][0], points[number][1] + ROW_PX // 2)
    path = "M" + " L".join(f"{x} {y}" for x, y in points)
    kind = "back" if route.is_back else "taken" if mark == "y" else ""
    pieces = [f'<path class="{kind}" d="{path}" marker-end="url(#arrow)"/>']
    if mark:
        x, y = points[0]
        pieces.append(f'<text class="name" x="{x + 4}" y="{y + FONT_PX}">{"yes" if mark == "y" else "no"}</text>')
    return pieces


class _Canvas:
    """A grid of characters on which lines join where they meet."""

    def __init__(self, width: int, height: int) -> None:
        self._cells = [[" "] * (width + 1) for _ in range(height + 1)]
        self._joins: dict[Point, int] = {}

    def put(self, x: int, y: int, text: str) -> None:
        for offset, char in enumerate(text):
            self._cells[y][x + offset] = char

    def box(self, x: int, y: int, width: int, height: int, lines: list[str]) -> None:
        self.put(x, y, "┌" + "─" * (width - 2) + "┐")
        for row, line in enumerate(lines, y + 1):
            self.put(x, row, "│" + " " * PADDING + line.ljust(width - 2 - PADDING) + "│")
        self.put(x, y + height - 1, "└" + "─" * (width - 2) + "┘")

    def line(self, points: tuple[Point, ...]) -> None:
        # It starts at the border of its box and ends in the arrow.
        self._join(points[0], UP)
        self._join(points[-1], DOWN)
        for (x, y), (to_x, to_y) in pairwise(points):
            step_x, step_y = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
            while (x, y) != (to_x, to_y):
                self._join((x, y), _direction(step_x, step_y))
                x, y = x + step_x, y + step_y
                self._join((x, y), _direction(-step_x, -step_y))

    def arrow(self, end: Point) -> None:
        self._joins.pop(end, None)
        self.put(*end, "▼")

    def _join(self, at: Point, direction: int) -> None:
        known = self._joins.get(at, 0) | direction
        self._joins[at] = known
        self._cells[at[1]][at[0]] = _LINES[known]

    def text(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self._cells).rstrip("\n")


def _direction(step_x: int, step_y: int) -> int:
    if step_x:
        return RIGHT if step_x > 0 else LEFT
    return DOWN if step_y > 0 else UP
