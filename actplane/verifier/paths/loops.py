"""
Which slots belong to loops: the strongly connected components of a program's flow, function by
function. What checkpoints in a loop have collected is complete only when all of the loop is walked.
"""

from __future__ import annotations

from actplane.asm.insn import Kfunc
from actplane.asm.isa import CLASS_MASK, LD, LD_IMM64
from actplane.verifier.paths.flow import Code


def find_loops(code: Code) -> dict[int, int]:
    """
    Return the number of the loop that each slot in one belongs to. Loops that overlap are one. A call that
    runs a callback is a loop of its own.

    Source: Tarjan, Depth-first search and linear graph algorithms, 1972.
    """
    loops: dict[int, int] = {}
    # Only blocks between the ends of a jump back can be in a loop.
    backward = {target for block in code.blocks.values() for target in block.following if target <= block.last}
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    for first in sorted(backward):
        if first not in order:
            _walk(code, first, order, low, loops)
    for slot in code.callback_calls:
        loops.setdefault(slot, code.size + slot)
    return loops


def _walk(code: Code, root: int, order: dict[int, int], low: dict[int, int], loops: dict[int, int]) -> None:
    """Walk all blocks that can be reached from one, by their first slots, and number the components found."""
    blocks = code.blocks
    component: list[int] = []
    open_blocks: set[int] = set()
    ways: list[tuple[int, int]] = [(root, 0)]
    while ways:
        first, step = ways.pop()
        if step == 0:
            order[first] = low[first] = len(order)
            component.append(first)
            open_blocks.add(first)
        targets = blocks[first].following
        if step:
            low[first] = min(low[first], low[targets[step - 1]])
        while step < len(targets):
            target = targets[step]
            step += 1
            if target not in order:
                ways += ((first, step), (target, 0))
                break
            if target in open_blocks:
                low[first] = min(low[first], order[target])
        else:
            if low[first] == order[first]:
                _close(code, first, component, open_blocks, loops)


def _close(code: Code, root: int, component: list[int], open_blocks: set[int], loops: dict[int, int]) -> None:
    members: list[int] = []
    while not members or members[-1] != root:
        members.append(component.pop())
    open_blocks.difference_update(members)
    if len(members) > 1 or root in code.blocks[root].following:
        for member in members:
            loops.update(dict.fromkeys(range(member, code.blocks[member].last + 1), root))


def find_traps(code: Code, loops: dict[int, int]) -> set[int]:
    """
    Return the slots of loops that no jump leaves, so that whoever comes there goes round for ever. What
    may end a loop otherwise counts as a way out: exceptions, loads of the packet, and what lets a loop
    rest (may_goto, iterators, callbacks).
    """
    resting = code.may_gotos | code.iter_next | code.callback_calls
    left = {loop for slot, loop in loops.items() if slot in resting or _may_end(code, slot)}
    for slot in code.jumps:
        if slot in loops and any(loops.get(target) != loops[slot] for target in code.following[slot]):
            left.add(loops[slot])
    return {slot for slot, loop in loops.items() if loop not in left}


def _may_end(code: Code, slot: int) -> bool:
    insn = code.at[slot]
    if insn is None:
        return False
    is_packet_load = insn.code & CLASS_MASK == LD and insn.code != LD_IMM64
    return is_packet_load or insn.symbol == Kfunc("bpf_throw")
