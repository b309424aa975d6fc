"""Indirect jumps: gotox, the tables of places it goes by, and what the control flow of it is."""

from __future__ import annotations

import re

import pytest

from actplane import asm
from actplane.asm import (
    R0,
    R1,
    R2,
    Builder,
    HelperId,
    MapSpec,
    MapType,
    Object,
    ProgType,
    assemble,
    assemble_object,
    disassemble,
    u32,
    u64,
)
from actplane.asm.cfg import EdgeKind, FlowError, build_graph
from actplane.asm.cfg_draw import draw_text
from actplane.asm.cfg_effects import registers_in
from actplane.asm.cfg_flow import dominators, liveness
from actplane.asm.jump_tables import jump_slots, jump_table
from actplane.asm.machine import Fault, LoadError, Machine
from actplane.errors import AssembleError, DecodeError, EncodeError

PICK = """
        .prog pick syscall
        r2 = *(u32 *)(r1 +0)
        if r2 > 2 goto other
        r2 <<= 3
        r1 = map[cases][0]+0
        r1 += r2
        r1 = *(u64 *)(r1 +0)
        r0 = 5
        gotox r1
two:    r0 += 0x100000000 ll
zero:   r0 += 10
        exit
one:    r0 = 7 ll
        exit
other:  r0 = 99
        exit
        .jumptable cases zero, one, two
""".replace("r0 += 0x100000000 ll", "r3 = 0x100000000 ll\n        r0 += r3")


def pick() -> Object:
    return assemble_object(PICK)


def test_gotox_is_one_form_and_its_other_fields_are_reserved() -> None:
    assert asm.gotox(R1).encode().hex() == "0d01000000000000"
    assert asm.decode(bytes.fromhex("0d09000000000000")) == [asm.gotox(asm.R9)]
    for wrong in ("0d11000000000000", "0d01010000000000", "0d01000001000000", "0d0b000000000000"):
        with pytest.raises(DecodeError, match=r"gotox .*got "):
            asm.decode(bytes.fromhex(wrong))
    with pytest.raises(DecodeError, match="unknown opcode 0x0e"):
        asm.decode(bytes.fromhex("0e01000000000000"))


def test_every_dialect_has_a_word_for_it() -> None:
    insns = [asm.gotox(R2)]
    texts = {dialect: disassemble(insns, dialect) for dialect in ("kernel", "llvm", "ubpf", "verifier")}
    assert texts == {"kernel": "gotox r2", "llvm": "gotox r2", "ubpf": "gotox r2", "verifier": "0: (0d) gotox r2"}
    assert all(list(assemble(text).insns) == insns for text in texts.values())


def test_a_table_holds_the_slots_of_labels() -> None:
    (table,) = pick().maps
    assert table == jump_table("cases", [12, 14, 9])
    assert (table.type, table.key_size, table.value_size, table.max_entries) == (34, 4, 16, 3)
    assert table.is_frozen
    assert assemble_object(disassemble(pick())) == pick()


def test_labels_of_a_table_are_those_of_its_function() -> None:
    found = assemble_object(
        ".prog p xdp\nout: call f\nexit\n.jumptable a out\n.func f\ngotox r1\nout: exit\n.jumptable b out,\tout"
    )
    assert found.maps == (jump_table("a", [0]), jump_table("b", [3, 3]))


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("exit\n.jumptable", 2, 11, ".jumptable: expected the name of the jump table"),
        ("exit\n.jumptable t", 2, 13, ".jumptable: expected a label"),
        ("a: exit\n.jumptable t a, nowhere", 2, 17, "label 'nowhere' is not defined"),
        ("a: exit\n.jumptable t a\n.jumptable t a", 3, 1, "map 't' is defined twice"),
        (".map t hash\n.prog p xdp\na: exit\n.jumptable t a", 4, 1, "map 't' is defined twice"),
        ("gotox w1", 1, 7, "got 'w1', expected a register r0 to r10"),
        ("gotox somewhere", 1, 7, "got 'somewhere', expected a register r0 to r10"),
        ("gotox r1 r2", 1, 10, "got 'r2', expected the end of the line"),
    ],
)
def test_an_error_has_its_place(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(AssembleError, match=rf"^t\.s:{line}:{column}: {re.escape(message)}"):
        assemble_object(text, name="t.s")


def test_the_builder_has_them_too() -> None:
    b = Builder("pick", ProgType.BPF_PROG_TYPE_SYSCALL)
    b.mov(R2, u32[R1 + 0])
    b.and_(R2, 1)
    b.lsh(R2, 3)
    b.mov(R1, b.jump_table("cases", "zero", "one"))
    b.add(R1, R2)
    b.mov(R1, u64[R1 + 0])
    b.goto(R1)
    b.label("zero")
    b.exit(10)
    b.label("one")
    b.exit(11)
    found = b.object()
    program = Machine(found.maps).load(found.programs[0])
    assert [program.run(bytes([n, 0, 0, 0])).value for n in range(4)] == [10, 11, 10, 11]
    b.jump_table("broken", "nowhere")
    with pytest.raises(EncodeError, match="jump table 'broken': label 'nowhere' is not defined"):
        b.object()


# Control flow.


def test_an_indirect_jump_leads_to_every_place_of_its_function_in_its_tables() -> None:
    found = pick()
    program = found.programs[0]
    slots = jump_slots(program, [*found.maps, jump_table("of another program", [1])])
    assert slots == {9, 12, 14}
    graph = build_graph(program, jump_slots=slots)
    block = graph.block_at(7)
    assert {(graph.blocks[edge.target].start, edge.kind) for edge in block.edges} == {
        (8, EdgeKind.INDIRECT),
        (10, EdgeKind.INDIRECT),
        (12, EdgeKind.INDIRECT),
    }
    assert (graph.open_jumps, graph.dead) == ((), ())
    tree = dominators(graph, graph.functions[0])
    assert {tree[graph.block_at(place).index] for place in (8, 10, 12)} == {block.index}
    assert registers_in(liveness(graph, graph.functions[0])[block.index].live_out) == [0]
    assert "never" not in draw_text(graph)


def test_places_of_other_functions_are_none_of_an_indirect_jump() -> None:
    insns = [asm.call_sub(1), asm.exit_(), asm.gotox(R1), asm.mov64(R0, 1), asm.exit_()]
    assert build_graph(insns, jump_slots=[1]).open_jumps == (2,)
    graph = build_graph(insns, jump_slots=[0, 1, 3])
    assert [graph.blocks[target].start for target in graph.block_at(2).successors] == [3]


def test_of_an_open_jump_nothing_is_known_and_nothing_is_claimed() -> None:
    graph = build_graph(pick().programs[0])
    assert graph.open_jumps == (7,)
    assert (graph.dead, graph.dead_insns) == ((), ())
    assert [graph.blocks[number].start for number in graph.unreached] == [8, 12]
    assert registers_in(liveness(graph, graph.functions[0])[graph.block_at(7).index].live_out) == list(range(10))
    assert "reached by the jump at 7, or never:\n   8: r3 = 0x100000000 ll" in draw_text(graph)


@pytest.mark.parametrize(("slot", "message"), [(10, "the middle of ld_imm64"), (19, "slot 19 of 19")])
def test_a_place_where_no_instruction_starts_is_refused(slot: int, message: str) -> None:
    with pytest.raises(FlowError, match=f"insn 7: jumps to {message}"):
        build_graph(pick().programs[0], jump_slots=[slot])


# The interpreter.


def test_the_machine_goes_where_the_table_says() -> None:
    found = pick()
    program = Machine(found.maps).load(found.programs[0])
    assert [program.run(bytes([n, 0, 0, 0])).value for n in range(4)] == [15, 7, (1 << 32) + 15, 99]
    run = program.start(bytes(4))
    assert [step.insn_index for step in run.trace()][-3:] == [7, 10, 11]
    stopped = program.start(bytes(4))
    stopped.breakpoints.add(10)
    assert stopped.run() is False
    assert stopped.position == (program, 10)
    assert stopped.run() is True


ENTRY = "r0 = map[here][0]+8\nr0 = map[there][0]+0\n"
"""What makes the tables those of the program."""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("r1 = 5", "0x5 is in no jump table of this function"),
        ("r1 = map[here][0]+0", "here+0 is in no jump table of this function"),
        ("r1 = *(u64 *)(r0 +0)", "code of p+80 is in no jump table of this function"),
        ("r1 = map[here][0]+0\nr1 = *(u64 *)(r1 +0)\nr1 += 8", "code of p+80 is in no jump table of this function"),
        ("r1 = subprog[f]", "function f+0 is in no jump table of this function"),
        ("r1 = map[here][0]+16\nr1 = *(u64 *)(r1 +0)", "read of 8 bytes at here+16: it has 16 bytes"),
        ("r1 = map[here][0]+0\n*(u64 *)(r1 +0) = 5", "write of 8 bytes at here+0: it is read-only"),
        ("r1 = 0\ncall bpf_get_prandom_u32", "r1 is read before it has a value"),
    ],
)
def test_only_places_of_the_function_are_gone_to(lines: str, message: str) -> None:
    filler = "r0 = r0\n" * (4 - sum(2 if "map" in line or "subprog" in line else 1 for line in lines.split("\n")))
    text = f".prog p syscall\n{ENTRY}{lines}\n{filler}gotox r1\nplace: exit\n.jumptable here place, place\n"
    found = assemble_object(text + ".func f\nthat: r0 = 0\nexit\n.jumptable there that\n")
    program = Machine(found.maps).load(found.programs[0])
    with pytest.raises(Fault, match=re.escape(message)) as caught:
        program.run()
    assert caught.value.insn_index is not None


def test_what_the_kernel_refuses_at_load_the_machine_refuses() -> None:
    found = pick()
    machine = Machine(found.maps)
    machine.load(found.programs[0])
    with pytest.raises(LoadError, match="map cases: another program has this jump table"):
        machine.load(found.programs[0])
    with pytest.raises(LoadError, match="insn 0: no jump table of the program leads into this function"):
        Machine().load([asm.gotox(R1), asm.exit_()])
    with pytest.raises(FlowError, match="insn 7: jumps to the middle of ld_imm64"):
        Machine([jump_table("cases", [10])]).load(found.programs[0])
    with pytest.raises(LoadError, match="map t: a jump table has keys of 4 bytes, values of 16, no flags"):
        Machine([MapSpec("t", MapType.BPF_MAP_TYPE_INSN_ARRAY, 4, 8, 1)])


def test_a_table_is_a_map_of_slots_until_its_program_is_loaded() -> None:
    found = pick()
    machine = Machine([jump_table("cases", [0, 0, 0])])
    table = machine.maps["cases"]
    for index, slot in enumerate((12, 14, 9)):
        table[index] = slot.to_bytes(16, "little")
    with pytest.raises(ValueError, match="EINVAL"):
        table[0] = (1 << 32).to_bytes(16, "little")
    program = machine.load(found.programs[0])
    assert [program.run(bytes([n, 0, 0, 0])).value for n in (0, 1)] == [15, 7]
    with pytest.raises(ValueError, match="EPERM"):
        table[0] = bytes(16)
    assert table[2] == (9).to_bytes(16, "little")
    with pytest.raises(KeyError):
        del table[0]


def test_programs_cannot_look_places_up() -> None:
    table = jump_table("t", [0])
    insns = assemble("*(u32 *)(r10 -4) = 0\nr1 = map[t]\nr2 = r10\nr2 += -4\ncall bpf_map_lookup_elem\nexit").insns
    assert insns[4].imm == HelperId.bpf_map_lookup_elem
    with pytest.raises(Fault, match="BPF_MAP_TYPE_INSN_ARRAY has no lookup"):
        Machine([table]).load(insns).run()
