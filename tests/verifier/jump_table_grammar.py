"""
Programs with indirect jumps from a random generator: an index, a load from a jump table, the jump, and the
places, with statements of the other grammar between them. Something is wrong with half of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from actplane.asm.insn import MapFd, MapValue
from actplane.asm.isa import GOTOX
from actplane.asm.jump_tables import ADDRESS_BYTES, jump_table
from actplane.asm.program import MapSpec, Program
from tests.verifier.program_grammar import KINDS, MAPS, Writer, write_end, write_statement

_TABLES = ("first", "second")
_COUNTER, _KEPT_TABLE = 9, 8
_ROUNDS = 6


def jumping_sentence(rng: random.Random) -> tuple[Program, dict[str, MapSpec]]:
    """Return one program and its maps."""
    prog_type, attach_type, attach_to = rng.choice(KINDS)
    w = Writer(rng, prog_type)
    count = rng.randrange(2, 7)
    lengths = {name: rng.choice((1, count, count, count, count + 1, 8)) for name in _TABLES}
    if rng.random() < 0.25:
        # The jump is in a function of its own; its table leads there.
        w.emit(0x85, src=1, imm=1)
        w.emit(0x95)
    w.emit(0xBF, 6, 1)
    w.kinds[6] = "ctx"
    for _ in range(rng.randrange(0, 4)):
        write_statement(w)
    has_loop = rng.random() < 0.3
    if has_loop:
        w.emit(0xB7, _COUNTER, imm=0)
    head = len(w.insns)
    if has_loop:
        w.emit(0x07, _COUNTER, imm=rng.choice((1, 1, 1, 1, 0)))
        w.emit(0xB5, _COUNTER, off=2, imm=_ROUNDS)
        w.emit(0xB7, 0, imm=0)
        w.emit(0x95)
    _write_jump(w, lengths)
    places = _write_places(w, count, head if has_loop else None)
    return Program("generated", prog_type, tuple(w.insns), attach_type, attach_to), _maps(w, lengths, places)


def _write_jump(w: Writer, lengths: Mapping[str, int]) -> None:
    rng = w.rng
    name = rng.choice(_TABLES)
    table, index, address = rng.sample((1, 2, 3, 4, 5, 7), 3)
    length = lengths[name]
    at = ADDRESS_BYTES * rng.randrange(length) if rng.random() < 0.4 else 0
    if rng.random() < 0.03:
        at += rng.choice((-8, 4, 8 * length))
    _write_index(w, index, length - at // ADDRESS_BYTES)
    w.emit(0x18, table, 2, symbol=MapValue(name, max(at, 0)))
    if rng.random() < 0.1:
        # Or by the other table.
        other = rng.choice(_TABLES)
        w.emit(0x15, 6 if rng.random() < 0.1 else 0, off=2, imm=rng.choice((0, 7)))
        w.emit(0x18, table, 2, symbol=MapValue(other, 0))
    w.emit(0x0F if rng.random() < 0.94 else 0x1F, table, index)
    off = rng.choice((0, 0, 0, 8, -8, 16, 4)) if rng.random() < 0.1 else 0
    w.emit(0x79 if rng.random() < 0.96 else rng.choice((0x61, 0x69, 0x71, 0x99)), address, table, off)
    if rng.random() < 0.12:
        _misuse(w, address, table, name)
    w.emit(GOTOX, address if rng.random() < 0.98 else rng.randrange(0, 11))
    w.kinds = {reg: kind for reg, kind in w.kinds.items() if reg not in (table, index, address)}


def _write_index(w: Writer, index: int, left: int) -> None:
    """Write code that leaves a multiple of 8 below 8 * `left` in a register, most often."""
    rng = w.rng
    kind = rng.random()
    if kind < 0.2:
        w.emit(0xB7, index, imm=rng.randrange(max(left, 1)))
    else:
        w.emit(0x85, imm=7)
        for reg in range(1, 6):
            w.kinds.pop(reg, None)
        w.kinds[0] = "scalar"
        w.emit(0xBF, index, 0)
        most = max(left + rng.choice((0, 0, 0, 0, 0, 1)), 1)
        if kind < 0.55:
            w.emit(0x57, index, imm=min(rng.choice((1, 3, 7)), most - 1))
        elif kind < 0.7:
            w.emit(0x97, index, imm=most)
        else:
            w.emit(rng.choice((0xA5, 0xA5, 0xA5, 0xC5)), index, off=2, imm=most)
            w.emit(0xB7, 0, imm=0)
            w.emit(0x95)
    if rng.random() < 0.08:
        w.emit(rng.choice((0x07, 0x17)), index, imm=1)
    if rng.random() < 0.95:
        w.emit(0x67, index, imm=3)
    else:
        w.emit(0x27, index, imm=rng.choice((4, 8, 16)))


def _misuse(w: Writer, address: int, table: int, name: str) -> None:
    rng = w.rng
    kind = rng.randrange(9)
    if kind == 0:
        w.emit(rng.choice((0x07, 0x17, 0x57, 0xA7)), address, imm=rng.choice((0, 8)))
    elif kind == 1:
        w.emit(0x7B, 10, address, -8)
        w.emit(0x79, address, 10, -8)
    elif kind == 2:
        w.emit(0x79, rng.choice((0, 7)), address)
    elif kind == 3:
        w.emit(0x7B, table, address)
    elif kind == 4:
        w.emit(0xBC, address, address)
    elif kind == 5:
        w.emit(0x55, address, off=0, imm=0)
    elif kind == 6:
        w.emit(0x18, 1, 1, symbol=MapFd(name))
        w.emit(0xBF, 2, 10)
        w.emit(0x85, imm=rng.choice((1, 2, 3)))
    elif kind == 7:
        w.emit(0xBF, _KEPT_TABLE, address)
        w.emit(0x85, imm=7)
        w.emit(0xBF, address, _KEPT_TABLE)
    else:
        w.emit(0xB7, address, imm=rng.choice((0, 4, 40)))


def _write_places(w: Writer, count: int, head: int | None) -> list[int]:
    """Write what stands at the places, and return where they start, by index."""
    rng, known = w.rng, dict(w.kinds)
    places = []
    for number in range(count):
        places.append(len(w.insns))
        w.kinds = {reg: kind for reg, kind in w.kinds.items() if known.get(reg) == kind}
        for _ in range(rng.randrange(0, 4)):
            write_statement(w)
        if rng.random() < 0.04:
            w.emit(0xBF, 0, rng.randrange(0, 10))
        if head is not None and rng.random() < 0.5 and number + 1 < count:
            w.emit(0x05, off=-(w.slots(head, len(w.insns)) + 1))
        elif rng.random() < 0.7 or number + 1 == count:
            write_end(w)
            w.kinds = dict(known)
    return places


def _maps(w: Writer, lengths: Mapping[str, int], places: list[int]) -> dict[str, MapSpec]:
    rng = w.rng
    slots = [w.slots(0, place) for place in places]
    maps = dict(MAPS)
    for name, length in lengths.items():
        table = [rng.choice(slots) for _ in range(length)]
        if length >= len(slots):
            table[: len(slots)] = slots
        if rng.random() < 0.04:
            table[rng.randrange(length)] = rng.randrange(0, w.slots(0, len(w.insns)) + 2)
        maps[name] = jump_table(name, table)
    return maps
