"""Jumps that reach: a conditional jump spans 32,767 slots, so longer ones go over stepping stones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actplane.asm import FunctionHere, Insn, Item, Label, LabelHere, exit_, ja

REACH_SLOTS = 32_000
"""How far a jump is trusted to go, with some slots in reserve for the stones laid in between."""

_ENDS = frozenset({ja(0).code, exit_().code})


def bridge_far_jumps(items: Sequence[Item]) -> list[Item]:
    """
    Return the stream of one function with every jump in reach of its label.

    A stepping stone is a `ja` of its own, laid where no path falls into it, that the far jump goes to
    instead; all far jumps of a neighbourhood to one label share it. `gotol` would do, but only
    from Linux 6.6 on.

    >>> from actplane.asm import R1, jmp, mov64, resolve
    >>> body = [jmp("jeq", R1, 0, "end"), exit_(), *[mov64(R1, 0)] * 40_000, LabelHere("end"), exit_()]
    >>> bridged = bridge_far_jumps(body)
    >>> len(bridged) - len(body), max(insn.off for insn in resolve(bridged)[0])
    (4, 21333)
    """
    stream = list(items)
    rounds = 0
    while True:
        slots = _slots(stream)
        labels = {item.name: slots[at] for at, item in enumerate(stream) if isinstance(item, LabelHere)}
        far = [
            (at, item.symbol.name)
            for at, item in enumerate(stream)
            if isinstance(item, Insn)
            and isinstance(item.symbol, Label)
            and abs(labels[item.symbol.name] - slots[at]) > REACH_SLOTS
        ]
        if not far:
            return stream
        rounds += 1
        stones: dict[tuple[int, str], str] = {}
        for at, name in far:
            place = _place_for_stone(stream, slots, at, labels[name])
            stone = stones.setdefault((place, name), f"{name}~{rounds}.{len(stones)}")
            jump = stream[at]
            assert isinstance(jump, Insn)
            stream[at] = replace(jump, symbol=Label(stone))
        stream = _lay(stream, stones, rounds)


def _slots(stream: Sequence[Item]) -> list[int]:
    """Return the slot that each item of a stream stands at."""
    slots: list[int] = []
    slot = 0
    for item in stream:
        slots.append(slot)
        slot += item.slots if isinstance(item, Insn) else 0
    return slots


def _place_for_stone(stream: Sequence[Item], slots: Sequence[int], at: int, target_slot: int) -> int:
    """
    Return the index before which a stone towards a slot is laid: in reach of the jump at an index.

    That is behind an unconditional jump, if one lies far enough to be worth the step.
    """
    step = 1 if target_slot > slots[at] else -1
    furthest, place = at, at
    # A third of the reach is left for the stones of this and of later rounds.
    while 0 < furthest + step < len(stream) and abs(slots[furthest + step] - slots[at]) <= REACH_SLOTS * 2 // 3:
        furthest += step
        if not _falls_through(stream[furthest - 1]):
            place = furthest
    return place if abs(slots[place] - slots[at]) > REACH_SLOTS // 3 else furthest


def _falls_through(item: Item) -> bool:
    return not (isinstance(item, Insn) and item.code in _ENDS)


def _lay(stream: Sequence[Item], stones: dict[tuple[int, str], str], rounds: int) -> list[Item]:
    """Return the stream with stones (place, label they lead to) laid, jumped over where need be."""
    by_place: dict[int, list[tuple[str, str]]] = {}
    for (place, name), stone in stones.items():
        by_place.setdefault(place, []).append((stone, name))
    laid: list[Item] = []
    for at, item in enumerate(stream):
        here = by_place.get(at, [])
        is_open = bool(here) and at > 0 and not isinstance(item, FunctionHere) and _falls_through(stream[at - 1])
        over = f"over~{rounds}.{at}"
        if is_open:
            laid.append(ja(over))
        for stone, name in here:
            laid.extend((LabelHere(stone), ja(name)))
        if is_open:
            laid.append(LabelHere(over))
        laid.append(item)
    return laid
