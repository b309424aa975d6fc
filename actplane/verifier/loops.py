"""
Which slots belong to loops: the strongly connected components of a program's flow, function by
function. What checkpoints in a loop have collected is complete only when all of the loop is walked.
"""

from __future__ import annotations

from actplane.asm.insn import Kfunc
from actplane.asm.isa import CLASS_MASK, LD, LD_IMM64
from actplane.verifier.flow import Code


def find_loops(code: Code) -> dict[int, int]:
    """
    Return the number of the loop that each slot in one belongs to. Loops that overlap are one. A call that
    runs a callback is a loop of its own.

    Source: Tarjan, Depth-first search and linear graph algorithms, 1972.
    """
    loops: dict[int, int] = {}
    # Only slots between the ends of a jump back can be in a loop.
    backward = [(min(targets), slot) for slot, targets in enumerate(code.following) if targets and min(targets) <= slot]
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    for first, _ in sorted(backward):
        if first not in order:
            _walk(code, first, order, low, loops)
    for slot in code.callback_calls:
        loops.setdefault(slot, code.size + slot)
    return loops


def _walk(code: Code, root: int, order: dict[int, int], low: dict[int, int], loops: dict[int, int]) -> None:
    """Walk all that can be reached from a slot, and number the components found."""
    following = code.following
    component: list[int] = []
    open_slots: set[int] = set()
    ways: list[tuple[int, int]] = [(root, 0)]
    while ways:
        slot, step = ways.pop()
        if step == 0:
            order[slot] = low[slot] = len(order)
            component.append(slot)
            open_slots.add(slot)
        targets = following[slot]
        if step:
            low[slot] = min(low[slot], low[targets[step - 1]])
        while step < len(targets):
            target = targets[step]
            step += 1
            if target not in order:
                ways += ((slot, step), (target, 0))
                break
            if target in open_slots:
                low[slot] = min(low[slot], order[target])
        else:
            if low[slot] == order[slot]:
                _close(code, slot, component, open_slots, loops)


def _close(code: Code, root: int, component: list[int], open_slots: set[int], loops: dict[int, int]) -> None:
    members: list[int] = []
    while not members or members[-1] != root:
        members.append(component.pop())
    open_slots.difference_update(members)
    if len(members) > 1 or root in code.following[root]:
        for member in members:
            loops[member] = root


def find_traps(code: Code, loops: dict[int, int]) -> set[int]:
    """
    Return the slots of loops that no jump leaves, so that whoever comes there goes round for ever. What
    may end a loop otherwise counts as a way out: exceptions, loads of the packet, and what lets a loop
    rest (may_goto, iterators, callbacks).
    """
    resting = code.may_gotos | code.iter_next | code.callback_calls
    left = {
        loop
        for slot, loop in loops.items()
        if slot in resting or _may_end(code, slot) or any(loops.get(t) != loop for t in code.following[slot])
    }
    return {slot for slot, loop in loops.items() if loop not in left}


def _may_end(code: Code, slot: int) -> bool:
    insn = code.at[slot]
    if insn is None:
        return False
    is_packet_load = insn.code & CLASS_MASK == LD and insn.code != LD_IMM64
    return is_packet_load or insn.symbol == Kfunc("bpf_throw")
