"""
Jump tables of a program: whether the kernel takes them, and which places they hold.

Source: bpf_insn_array_init() in kernel/bpf/bpf_insn_array.c and __add_used_map() in kernel/bpf/verifier.c
of Linux 7.1.
"""

from __future__ import annotations

from collections.abc import Mapping

from actplane.asm.insn import MapFd, MapValue
from actplane.asm.isa import LD_IMM64
from actplane.asm.jump_tables import ADDRESS_BYTES, KEY_BYTES, VALUE_BYTES
from actplane.verifier.domains.maps import MapFacts
from actplane.verifier.paths.flow import Layout
from actplane.verifier.tables.refusals import refuse


def places_of_tables(layout: Layout, maps: Mapping[str, MapFacts], *, is_privileged: bool) -> list[list[int]]:
    """
    Return the slots that each jump table holds that the program names, ascending. Raises Refused for a
    table that the kernel does not take, and for an address in one that no place begins at.
    """
    found: dict[str, list[int]] = {}
    for slot in layout.addresses:
        insn = layout.at[slot]
        symbol = insn.symbol if insn is not None else None
        facts = maps.get(symbol.name) if isinstance(symbol, MapFd | MapValue) else None
        if facts is None or not facts.is_jump_table:
            continue
        name, count = facts.spec.name, facts.spec.max_entries
        if not is_privileged:
            refuse("privileged-only", slot, f"{name!r} is a jump table, which privileged users make")
        if name not in found:
            found[name] = _places(layout, slot, facts)
        at = symbol.offset_bytes if isinstance(symbol, MapValue) else 0
        if at % ADDRESS_BYTES or not 0 <= at < facts.memory_bytes:
            refuse("bad-map", slot, f"byte {at} of the jump table {name!r} begins no place: {count} of 8 bytes each")
    return list(found.values())


def _places(layout: Layout, slot: int, facts: MapFacts) -> list[int]:
    spec = facts.spec
    if (spec.key_size, spec.value_size, spec.flags) != (KEY_BYTES, VALUE_BYTES, 0) or spec.max_entries < 1:
        claim = f"{spec.name!r} is a jump table: its keys have {KEY_BYTES} bytes, its values {VALUE_BYTES}, no flags"
        refuse("bad-map", slot, claim)
    if not spec.is_frozen:
        refuse("jump-table", slot, f"the jump table {spec.name!r} is not frozen, so that it may still change")
    places = facts.places_between(0, spec.max_entries - 1)
    for place in places:
        if place >= layout.size:
            claim = f"the jump table {spec.name!r} leads to slot {place}, the program has {layout.size}"
            refuse("jump-table", slot, claim)
        if place and layout.opcodes[place - 1] == LD_IMM64:
            claim = f"the jump table {spec.name!r} leads to slot {place}, into the middle of an ld_imm64"
            refuse("jump-table", slot, claim)
    return places
