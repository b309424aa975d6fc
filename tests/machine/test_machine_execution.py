"""Runs of small programs: calls, tail calls, callbacks, limits, stepping, faults with their place."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from actplane import asm
from actplane.asm import R0, R1, R2, R3, R6, R7, R10, HelperId, Insn, MapSpec, MapType, Program, ProgType, Reg, Size
from actplane.asm.cfg import FlowError
from actplane.asm.machine import Callback, Fault, InstructionLimit, LoadError, Machine, ProgArrayMap

MASK = (1 << 64) - 1
EXIT = asm.exit_()


def result(*insns: Insn, **options: object) -> int:
    return Machine().load(insns).run(**options).value


def program(*insns: Insn, prog_type: ProgType = ProgType.BPF_PROG_TYPE_UNSPEC, name: str = "prog") -> Program:
    return Program(name, prog_type, insns)


# Arithmetic at the edges. The expected numbers are those of RFC 9669, section 4.1.


@pytest.mark.parametrize(
    ("insn", "dst", "src", "expected"),
    [
        (asm.div64(R0, R1), 7, 0, 0),
        (asm.mod64(R0, R1), 7, 0, 7),
        (asm.div32(R0, R1), 7 | 5 << 32, 5 << 32, 0),
        (asm.mod32(R0, R1), 7 | 5 << 32, 5 << 32, 7),
        (asm.sdiv64(R0, R1), 1 << 63, MASK, 1 << 63),
        (asm.sdiv32(R0, R1), 1 << 31, MASK, 1 << 31),
        (asm.smod64(R0, R1), 1 << 63, MASK, 0),
        (asm.sdiv64(R0, R1), -7 & MASK, 2, -3 & MASK),
        (asm.smod64(R0, R1), -7 & MASK, 2, -1 & MASK),
        (asm.smod32(R0, R1), -7 & MASK, 0, -7 & 0xFFFFFFFF),
        (asm.lsh64(R0, R1), 1, 65, 2),
        (asm.lsh32(R0, R1), 1, 33, 2),
        (asm.rsh32(R0, R1), MASK, 4, 0x0FFFFFFF),
        (asm.arsh32(R0, R1), 0x80000000, 31, 0xFFFFFFFF),
        (asm.arsh64(R0, R1), 1 << 63, 63, MASK),
        (asm.neg32(R0), 1, 0, 0xFFFFFFFF),
        (asm.neg64(R0), 1 << 63, 0, 1 << 63),
        (asm.mov32(R0, R1), 0, MASK, 0xFFFFFFFF),
        (asm.mov64(R0, -1), 0, 0, MASK),
        (asm.mov32(R0, -1), 0, 0, 0xFFFFFFFF),
        (asm.add32(R0, -1), 0, 0, 0xFFFFFFFF),
        (asm.movsx64(R0, R1, 8), 0, 0x80, -128 & MASK),
        (asm.movsx32(R0, R1, 16), 0, 0x8000, 0xFFFF8000),
        (asm.bswap(R0, 64), 0x0102030405060708, 0, 0x0807060504030201),
        (asm.be(R0, 16), 0xAABBCCDD, 0, 0xDDCC),
        (asm.le(R0, 32), 0xAABBCCDD11223344, 0, 0x11223344),
    ],
    ids=str,
)
def test_arithmetic(insn: Insn, dst: int, src: int, expected: int) -> None:
    assert result(asm.ld_imm64(R0, dst), asm.ld_imm64(R1, src), insn, EXIT) == expected


@pytest.mark.parametrize(
    ("insn", "expected_r0", "expected_r1", "expected_memory"),
    [
        (asm.atomic("add", Size.DW, R10, R1, -8), 9, 5, 15),
        (asm.atomic("add", Size.DW, R10, R1, -8, fetch=True), 9, 10, 15),
        (asm.atomic("xor", Size.W, R10, R1, -8, fetch=True), 9, 10, 15),
        (asm.atomic("xchg", Size.DW, R10, R1, -8), 9, 10, 5),
        (asm.atomic("cmpxchg", Size.DW, R10, R1, -8), 10, 5, 10),
        (asm.load_acquire(Size.DW, R1, R10, -8), 9, 10, 10),
        (asm.store_release(Size.DW, R10, R1, -8), 9, 5, 5),
    ],
    ids=str,
)
def test_atomics(insn: Insn, expected_r0: int, expected_r1: int, expected_memory: int) -> None:
    insns = [asm.st(Size.DW, R10, -8, 10), asm.mov64(R0, 9), asm.mov64(R1, 5), insn, EXIT]
    execution = Machine().load(insns).start()
    steps = list(execution.trace())
    r0, r1 = steps[3].after[:2]
    stack = Machine().load([*insns[:4], asm.ldx(Size.DW, R0, R10, -8), EXIT]).run().value
    assert (r0, r1, stack) == (expected_r0, expected_r1, expected_memory)


def test_cmpxchg_that_matches_stores() -> None:
    cas = asm.atomic("cmpxchg", Size.DW, R10, R1, -8)
    start = [asm.st(Size.DW, R10, -8, 10), asm.mov64(R0, 10), asm.mov64(R1, 5), cas]
    assert result(*start, EXIT) == 10
    assert result(*start, asm.ldx(Size.DW, R0, R10, -8), EXIT) == 5


# Calls.


def test_subprogram_has_its_own_stack_and_keeps_r6_to_r9_of_its_caller() -> None:
    insns = [
        asm.mov64(R6, 42),
        asm.st(Size.DW, R10, -8, 7),
        asm.mov64(R1, 5),
        asm.call_sub(3),
        asm.ldx(Size.DW, R7, R10, -8),
        asm.add64(R0, R7),
        EXIT,
        asm.mov64(R6, 1),
        asm.st(Size.DW, R10, -8, 1000),
        asm.mov64(R0, R1),
        EXIT,
    ]
    assert result(*insns) == 12


def test_call_destroys_the_argument_registers() -> None:
    with pytest.raises(Fault, match=r"insn 2 \(r0 = r1\): r1 is read before it has a value"):
        result(asm.mov64(R1, 1), asm.call(HelperId.bpf_ktime_get_ns), asm.mov64(R0, R1), EXIT)


def test_recursion_ends_at_eight_frames() -> None:
    with pytest.raises(Fault, match="8 frames is too deep"):
        result(asm.call_sub(-1), EXIT)


def tail_calling(name: str, index: int) -> Program:
    call = [asm.ld_map_fd(R2, "programs"), asm.mov64(R3, index), asm.call(HelperId.bpf_tail_call)]
    return program(*call, asm.mov64(R0, 99), EXIT, name=name)


def test_tail_call_becomes_the_other_program_and_falls_through_an_empty_slot() -> None:
    machine = Machine([MapSpec("programs", MapType.BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 4)])
    machine.maps["programs"].put(1, machine.load([asm.ldx(Size.W, R0, R1, 0), EXIT]))
    assert machine.load(tail_calling("filled", 1)).run(struct.pack("<I", 1234)).value == 1234
    assert machine.load(tail_calling("empty", 2)).run(bytes(4)).value == 99
    assert machine.load(tail_calling("outside", 7)).run(bytes(4)).value == 99


def test_tail_calls_end_after_33() -> None:
    machine = Machine([MapSpec("programs", MapType.BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)])
    looping = machine.load(tail_calling("again", 0))
    machine.maps["programs"].put(0, looping)
    outcome = looping.run()
    assert (outcome.value, outcome.executed) == (99, 34 * 3 + 2)


def looping(count: int, body: list[Insn]) -> list[Insn]:
    """bpf_loop(count, callback, fp - 8, 0), then r0 = *(u64 *)(fp - 8)."""
    return [
        asm.st(Size.DW, R10, -8, 0),
        asm.mov64(R1, count),
        asm.ld_func(R2, 7),
        asm.mov64(R3, R10),
        asm.add64(R3, -8),
        asm.mov64(Reg.R4, 0),
        asm.call(HelperId.bpf_loop),
        asm.ldx(Size.DW, R0, R10, -8),
        EXIT,
        *body,
    ]


SUM_UP = [asm.atomic("add", Size.DW, R2, R1, 0), asm.mov64(R0, 0), EXIT]
STOP_AT_3 = [
    asm.atomic("add", Size.DW, R2, R1, 0),
    asm.mov64(R0, 0),
    asm.jmp("jne", R1, 3, 1),
    asm.mov64(R0, 1),
    EXIT,
]


def test_bpf_loop_calls_back() -> None:
    assert result(*looping(10, SUM_UP)) == sum(range(10))
    assert result(*looping(10, STOP_AT_3)) == 0 + 1 + 2 + 3


def test_callbacks_can_be_stepped_through() -> None:
    machine = Machine()
    steps = list(machine.load(looping(2, SUM_UP)).start().trace())
    assert [step.insn_index for step in steps] == [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 9, 10, 11, 7, 8]
    assert [step.before[1] for step in steps if step.insn_index == 9] == [0, 1]


def test_own_helpers_and_callbacks() -> None:
    def twice(machine: Machine, function: int, value: int):
        first = yield Callback(function, (value,))
        return (yield Callback(function, (first,)))

    def triple(machine: Machine, value: int) -> int:
        return 3 * value

    machine = Machine(helpers={1000: twice, 1001: triple})
    insns = [
        asm.ld_func(R1, 4),
        asm.mov64(R2, 5),
        asm.call(1000),
        EXIT,
        asm.call(1001),
        EXIT,
    ]
    assert machine.load(insns).run().value == 45


def test_kfunc_by_name() -> None:
    machine = Machine(kfuncs={"answer": lambda machine: 42})
    assert machine.load([asm.call_kfunc("answer"), EXIT]).run().value == 42


def test_callx_calls_the_function_whose_address_a_register_holds() -> None:
    insns = [asm.ld_func(R6, 4), asm.mov64(R1, 20), asm.callx(R6), EXIT, asm.mov64(R0, R1), asm.add64(R0, 1), EXIT]
    assert result(*insns) == 21


# Limits.


def test_endless_loop_meets_the_limit() -> None:
    with pytest.raises(InstructionLimit, match="more than 1000 instructions"):
        result(asm.ja(-1), limit=1000)


def test_limit_is_exact_for_straight_code() -> None:
    insns = [asm.mov64(R0, 0), asm.add64(R0, 1), EXIT]
    assert result(*insns, limit=3) == 1
    with pytest.raises(InstructionLimit):
        result(*insns, limit=2)


def test_may_goto_jumps_when_its_budget_is_used_up() -> None:
    # r0 counts how often may_goto went on; the budget of a frame is 8 Mi, here it is made small.
    insns = [asm.mov64(R0, 0), asm.may_goto(2), asm.add64(R0, 1), asm.ja(-3), EXIT]
    execution = Machine().load(insns).start()
    execution.frame.may_goto_left = 5
    execution.run()
    assert execution.outcome().value == 5


# Faults.


@pytest.mark.parametrize(
    ("insns", "message"),
    [
        ([asm.mov64(R0, R3), EXIT], r"insn 0 \(r0 = r3\): r3 is read before it has a value"),
        ([EXIT], "r0 is read before it has a value"),
        ([asm.ldx(Size.DW, R0, R10, 0), EXIT], r"read of 8 bytes at stack\+512: it has 512 bytes"),
        ([asm.ldx(Size.DW, R0, R10, -4), EXIT], r"read of 8 bytes at stack\+508"),
        ([asm.stx(Size.B, R10, R10, -513), EXIT], "write of 1 byte at stack-1"),
        ([asm.mov64(R1, 0), asm.ldx(Size.W, R0, R1, 0), EXIT], "at null: no pointer"),
        ([asm.mov64(R1, 0), asm.atomic("add", Size.DW, R1, R1, 8), EXIT], "write of 8 bytes at 0x8: no pointer"),
        ([asm.mov64(R1, 1), asm.mov64(R2, R10), asm.call(1), EXIT], "0x1 is no map"),
        ([asm.ld_abs(Size.W, 0), EXIT], "r6 is read before it has a value"),
    ],
)
def test_fault_says_where_and_what(insns: list[Insn], message: str) -> None:
    with pytest.raises(Fault, match=message):
        result(*insns)


def test_fault_in_the_middle_of_a_block_has_its_own_index_and_leaves_the_registers() -> None:
    insns = [asm.mov64(R0, 1), asm.mov64(R6, 2), asm.ldx(Size.B, R7, R0, 0), asm.mov64(R6, 3), EXIT]
    execution = Machine().load(insns).start()
    with pytest.raises(Fault) as caught:
        execution.run()
    assert caught.value.insn_index == 2
    assert execution.registers[6] == 2
    assert execution.position is not None
    assert execution.position[1] == 2


@pytest.mark.parametrize(
    ("insns", "message"),
    [
        ([asm.call(9999), EXIT], "helper 9999 is not simulated"),
        ([asm.call(HelperId.bpf_sys_bpf), EXIT], "bpf_sys_bpf is not simulated: register it"),
        ([asm.ld_map_fd(R1, "absent"), EXIT], "map 'absent' is not in the machine"),
        ([asm.ld_map_fd(R1, 5), EXIT], "map number 5 has no name"),
        ([asm.call_kfunc("absent"), EXIT], "kfunc absent is not simulated"),
        ([asm.ld_btf_id(R1, 77), EXIT], "BTF id 77 is not known"),
    ],
)
def test_what_cannot_be_linked_is_said_when_loading(insns: list[Insn], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        Machine().load(insns)


def test_a_program_that_reads_its_unwritten_stack_depends_on_the_fill() -> None:
    insns = [asm.ldx(Size.B, R0, R10, -1), EXIT]
    assert Machine(stack_fill=0).load(insns).run().value == 0
    assert Machine(stack_fill=0xAA).load(insns).run().value == 0xAA


def test_kernel_pointers_that_lead_nowhere_may_read_as_zero() -> None:
    insns = [asm.mov64(R1, 0), asm.ldx(Size.DW, R0, R1, 8), asm.ldxsx(Size.W, R2, R10, 4), asm.add64(R0, R2), EXIT]
    assert Machine(has_zero_reads=True).load(insns).run().value == 0
    signed = [asm.st(Size.B, R10, -1, -2), asm.ldxsx(Size.B, R0, R10, -1), EXIT]
    assert Machine(has_zero_reads=True).load(signed).run().value == -2 & MASK
    with pytest.raises(Fault, match="write of 8 bytes at null"):
        Machine(has_zero_reads=True).load([asm.mov64(R1, 0), asm.stx(Size.DW, R1, R1, 0), EXIT]).run()


# Stepping.


def counting(limit: int) -> list[Insn]:
    return [asm.mov64(R0, 0), asm.add64(R0, 1), asm.jmp("jlt", R0, limit, -2), EXIT]


def test_steps_show_what_changed() -> None:
    execution = Machine().load(counting(2)).start()
    steps = list(execution.trace())
    assert [step.insn_index for step in steps] == [0, 1, 2, 1, 2, 3]
    assert [step.changed for step in steps[:3]] == [(0,), (0,), ()]
    assert execution.outcome().value == 2
    assert execution.outcome().executed == 6


def test_breakpoints_stop_and_go_on() -> None:
    execution = Machine().load(counting(3)).start()
    execution.breakpoints = {2}
    seen = []
    while not execution.run():
        seen.append(execution.registers[0])
    assert seen == [1, 2, 3]


def test_a_stepped_run_can_be_continued_at_full_speed_from_anywhere() -> None:
    for steps in range(1, 12):
        execution = Machine().load(counting(5)).start()
        for _ in range(steps):
            execution.step()
        execution.run()
        assert execution.outcome().value == 5
        assert execution.executed == 12


def test_registers_may_be_changed_between_steps() -> None:
    execution = Machine().load(counting(100)).start()
    execution.step()
    execution.registers[0] = 98
    execution.run()
    assert execution.outcome().executed == 1 + 2 * 2 + 1


# What runs keep and give back.


def regions(machine: Machine) -> list[str]:
    return [region.name for region in machine.memory.regions()]


def test_runs_leave_no_memory_behind_however_they_end() -> None:
    machine = Machine()
    ends, faults = machine.load([asm.mov64(R0, 0), EXIT]), machine.load([asm.ldx(Size.DW, R0, R1, 64), EXIT])
    ends.run(bytes(8), packet=bytes(20))
    before = regions(machine)
    ends.run(bytes(8), packet=bytes(20))
    with pytest.raises(Fault, match="it has 8 bytes"):
        faults.run(bytes(8), packet=bytes(20))
    with pytest.raises(InstructionLimit):
        ends.run(bytes(8), limit=1)
    with ends.start(bytes(8)) as run:
        run.step()
    assert regions(machine) == before
    assert run.is_finished
    with pytest.raises(ValueError, match="has not ended"):
        run.outcome()


def test_runs_of_one_machine_do_not_share_their_stacks() -> None:
    machine = Machine()
    reads = machine.load([asm.st(Size.DW, R10, -8, 7), asm.mov64(R1, 0), asm.ldx(Size.DW, R0, R10, -8), EXIT])
    writes = machine.load([asm.st(Size.DW, R10, -8, 9), asm.mov64(R0, 0), EXIT])
    run = reads.start()
    run.step()
    writes.run()
    run.run()
    assert run.outcome().value == 7


def test_a_helper_may_run_another_program_of_the_machine() -> None:
    machine = Machine(helpers={5: lambda machine: inner.run().value})
    inner = machine.load([asm.st(Size.DW, R10, -8, 9), asm.mov64(R0, 1), EXIT])
    outer = machine.load(
        [asm.st(Size.DW, R10, -8, 7), asm.call(5), asm.ldx(Size.DW, R1, R10, -8), asm.add64(R0, R1), EXIT]
    )
    assert outer.run().value == 8


def test_a_label_that_is_not_resolved_is_not_loaded() -> None:
    for insn, name in (
        (asm.ja("x"), "Label"),
        (asm.call_sub("x"), "Subprogram"),
        (asm.ld_func(R1, "x"), "FunctionAddress"),
    ):
        with pytest.raises(FlowError, match=rf"insn 0: {name}\(name='x'\) is not resolved: resolve\(\) does it"):
            Machine().load([insn, EXIT])


def test_a_prog_array_takes_programs_of_its_machine_only() -> None:
    machine = Machine([MapSpec("programs", MapType.BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)])
    programs = machine.maps["programs"]
    assert isinstance(programs, ProgArrayMap)
    programs.put(0, machine.load([asm.mov64(R0, 0), EXIT]))
    with pytest.raises(ValueError, match="a program of another machine"):
        programs.put(0, Machine().load([asm.mov64(R0, 0), EXIT]))


@pytest.mark.parametrize(
    "text",
    [
        "r1 = r10\nr2 = -1\ncall bpf_get_current_comm",
        "r1 = r10\nr2 = -1\nr3 = 0\ncall bpf_probe_read_kernel",
        "r1 = r10\nr2 = -1\nr3 = 0\ncall bpf_probe_read_user",
        "r1 = r10\nr2 = -1\nr3 = 0\ncall bpf_probe_read_kernel_str",
        "r1 = r10\nr2 = -1\nr3 = 0\ncall bpf_probe_read_user_str",
        "r2 = 0\nr3 = r10\nr4 = -1\ncall bpf_skb_load_bytes",
        "r2 = 0\nr3 = r10\nr4 = -1\nr5 = 7\ncall bpf_skb_load_bytes_relative",
        "r1 = r10\nr2 = -1\nr3 = 0\nr4 = 1\ncall bpf_copy_from_user_str#kfunc",
    ],
)
def test_a_size_of_four_gigabytes_is_a_fault_and_not_allocated(text: str) -> None:
    loaded = Machine().load(asm.assemble(text + "\nexit").insns)
    tracemalloc.start()
    with pytest.raises(Fault, match=r"write of 4294967295 bytes at stack\+512: it has 512 bytes"):
        loaded.run(packet=b"")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_record_that_the_ring_has_no_room_for_is_not_allocated() -> None:
    machine = Machine([MapSpec("ring", MapType.BPF_MAP_TYPE_RINGBUF, 0, 0, 4096)])
    text = "r1 = map[ring]\nr2 = 0xffffffff ll\nr3 = 0\ncall bpf_ringbuf_reserve\nexit"
    loaded = machine.load(asm.assemble(text).insns)
    tracemalloc.start()
    assert loaded.run().value == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
