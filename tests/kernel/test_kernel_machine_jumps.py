"""Indirect jumps: the assembler's jump tables and the interpreter against the running kernel."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from actplane.asm import Insn, MapSpec, Object, ProgType, assemble_object, decode, encode
from actplane.asm.cfg import FlowError, build_graph
from actplane.asm.isa import GOTOX
from actplane.asm.jump_tables import jump_slots, jump_table
from actplane.asm.machine import Machine
from actplane.errors import DecodeError, KernelError
from actplane.loader.attributes import ProgLoad
from actplane.loader.maps import Map
from actplane.loader.programs import LoadedProgram, load
from actplane.loader.syscall import bpf

PROGRAMS = 25
ETHERNET_BYTES = 14


@pytest.fixture(scope="module", autouse=True)
def _kernel_with_jump_tables() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: loading programs is root's")
    try:
        Map.create(jump_table("probe", [0])).close()
    except KernelError as error:
        pytest.skip(f"this kernel has no jump tables, which came with 6.19: {error}")


@contextmanager
def loaded(found: Object) -> Iterator[LoadedProgram]:
    maps: dict[str, Map] = {}
    try:
        for spec in found.maps:
            maps[spec.name] = Map.create(spec)
        with load(found.programs[0], maps, has_lines=False) as program:
            yield program
    finally:
        for each in maps.values():
            each.close()


def text(chance: random.Random, *, has_all: bool) -> str:
    """
    A program that goes where a byte of the packet says, through one of two tables; behind each place
    stand one to three instructions, some of two slots, and every third leads to the next place. With
    `has_all` each place is in a table that the program names.
    """
    places = chance.randint(2, 12)
    lines = [
        ".prog pick xdp",
        "r2 = *(u32 *)(r1 +0)",
        "r3 = *(u32 *)(r1 +4)",
        "r4 = r2",
        "r4 += 14",
        "if r4 > r3 goto short",
        "r5 = *(u8 *)(r2 +0)",
        "r6 = *(u8 *)(r2 +1)",
        "r0 = 0",
        f"if r5 > {places - 1} goto short",
        "r5 <<= 3",
        f"r7 = map[{'first' if chance.random() < 0.5 else 'second'}][0]+0",
        "if r6 == 0 goto +2",
        "r7 = map[second][0]+0",
        "r7 += r5",
        "r7 = *(u64 *)(r7 +0)",
        "gotox r7",
    ]
    for place in range(places):
        lines.append(f"place{place}:")
        for _ in range(chance.randint(1, 3)):
            number = chance.getrandbits(40)
            lines.append(chance.choice((f"r0 += {number & 0xFFFF}", f"r5 = {number:#x} ll", "r0 += r6")))
        if place % 3 != 2 or place == places - 1:
            lines.append("exit")
    lines += ["short:", "r0 = 255", "exit"]
    for name in ("first", "second"):
        order = [chance.randrange(places) for _ in range(places)]
        if has_all and name == "second":
            order = chance.sample(range(places), places)
        lines.append(f".jumptable {name} {', '.join(f'place{place}' for place in order)}")
    return "\n".join(lines)


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_jumps_through_tables_lead_where_the_kernel_goes(seed: int) -> None:
    found = assemble_object(text(random.Random(seed), has_all=True))
    interpreted = Machine(found.maps).load(found.programs[0])
    with loaded(found) as program:
        assert sum(insn.code == GOTOX for insn in decode_lines(program.xlated())) == 1
        for first in range(14):
            for second in (0, 3):
                packet = bytes([first, second]).ljust(ETHERNET_BYTES, b"\0")
                assert interpreted.run(packet=packet).value & 0xFFFFFFFF == program.test_run(packet).retval


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_what_no_table_leads_to_is_dead_for_the_kernel_too(seed: int) -> None:
    found = assemble_object(text(random.Random(seed), has_all=False))
    (program,) = found.programs
    dead = build_graph(program, jump_slots=jump_slots(program, found.maps)).dead_insns
    if not dead:
        with loaded(found):
            return
    slot = sum(insn.slots for insn in program.insns[: dead[0]])
    with pytest.raises(KernelError, match=rf"unreachable insn {slot}\n"), loaded(found):
        pass


def decode_lines(code: bytes) -> list[Insn]:
    """The instructions of the kernel that are jumps; it numbers maps as the decoder does not allow."""
    return [decode(code[at : at + 8])[0] for at in range(0, len(code), 8) if code[at] == GOTOX]


SHORT = """
    .prog p socket_filter
    r1 = map[table][0]+0
    r1 = *(u64 *)(r1 +0)
    gotox r1
 a: r0 = 7 ll
    exit
    .jumptable table a
"""


@pytest.mark.parametrize(("byte", "field"), [(1, "src"), (2, "off"), (4, "imm")])
def test_reserved_fields_of_gotox_are_refused_by_the_kernel_too(byte: int, field: str) -> None:
    found = assemble_object(SHORT)
    (program,) = found.programs
    with loaded(found) as taken:
        assert taken.test_run(bytes(ETHERNET_BYTES)).retval == 7
    with Map.create(found.maps[0]) as table:
        data = bytearray(encode(program.insns, allow_symbols=True))
        data[4:8] = table.fd.to_bytes(4, "little")
        data[24 + byte] = 0x10
        with pytest.raises(DecodeError, match=rf"byte 24: gotox .*{field}: got \d+, expected 0"):
            decode(data)
        attr = ProgLoad(
            prog_type=ProgType.BPF_PROG_TYPE_SOCKET_FILTER, insns=bytes(data), insn_cnt=len(data) // 8, license=b"GPL\0"
        )
        with pytest.raises(KernelError, match="EINVAL"):
            bpf(attr)


@pytest.mark.parametrize(
    ("slots", "is_valid"),
    [([5], False), ([9], False), ([4, 4, 3], True)],
    ids=["middle of ld_imm64", "behind the end", "several"],
)
def test_both_refuse_places_where_no_instruction_starts(slots: list[int], is_valid: bool) -> None:
    (program,) = assemble_object(SHORT).programs
    table: MapSpec = jump_table("table", slots)
    found = Object((table,), (program,))
    if is_valid:
        Machine(found.maps).load(program)
        with loaded(found):
            return
    with pytest.raises(FlowError, match="insn 2: jumps to"):
        Machine(found.maps).load(program)
    with pytest.raises(KernelError, match="EINVAL"), loaded(found):
        pass
