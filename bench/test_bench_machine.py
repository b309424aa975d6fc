"""
How fast the interpreter is: a million instructions of four kinds, single steps, and getting ready.

Figures are printed as instructions a second, and as seconds a million instructions.
"""

from __future__ import annotations

import random
import time

import pytest

from actplane import asm
from actplane.asm import R0, R1, R2, R6, R10, HelperId, Insn, MapSpec, MapType, Reg, Size
from actplane.asm.cfg import build_graph
from actplane.asm.cfg_draw import draw_text
from actplane.asm.machine import Machine

MILLION = 1_000_000
GOAL_SECONDS = 2.0


def arithmetic() -> list[Insn]:
    """Blocks of 16 operations of all widths."""
    rng = random.Random(1)
    operations = [asm.add64, asm.sub64, asm.mul64, asm.xor64, asm.or64, asm.and32, asm.add32, asm.rsh64, asm.mov64]
    body = [rng.choice(operations)(Reg(rng.randrange(5)), Reg(rng.randrange(5))) for _ in range(14)]
    start = [asm.mov64(Reg(register), register + 7) for register in range(5)]
    return counted(start, body)


def memory() -> list[Insn]:
    """Stores to and loads from the stack in turn."""
    body = []
    for offset in range(-56, 0, 8):
        body += [asm.stx(Size.DW, R10, R6, offset), asm.ldx(Size.DW, R1, R10, offset)]
    return counted([], body)


def branches() -> list[Insn]:
    """Blocks of two instructions, one of them a branch."""
    body = [each for _ in range(7) for each in (asm.xor64(R1, R6), asm.jmp("jgt", R1, 5, 0))]
    return counted([asm.mov64(R1, 1)], body)


def lookups() -> list[Insn]:
    """A map lookup and a counter every ten instructions."""
    body = [
        asm.mov64(R1, R6),
        asm.and64(R1, 15),
        asm.stx(Size.W, R10, R1, -4),
        asm.ld_map_fd(R1, "m"),
        asm.mov64(R2, R10),
        asm.add64(R2, -4),
        asm.call(HelperId.bpf_map_lookup_elem),
        asm.jmp("jeq", R0, 0, 2),
        asm.mov64(R1, 1),
        asm.atomic("add", Size.DW, R0, R1, 0),
    ]
    return counted([], body)


def counted(start: list[Insn], body: list[Insn]) -> list[Insn]:
    """Run a body until a million instructions have run."""
    slots = sum(insn.slots for insn in body)
    times = MILLION // (len(body) + 2)
    head = [*start, asm.mov64(R0, 0), asm.mov64(R6, times)]
    tail = [asm.sub64(R6, 1), asm.jmp("jne", R6, 0, -slots - 2), asm.mov64(R0, 0), asm.exit_()]
    return [*head, *body, *tail]


@pytest.mark.parametrize("kind", [arithmetic, memory, branches, lookups], ids=lambda kind: kind.__name__)
def test_a_million_instructions(kind, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine([MapSpec("m", MapType.BPF_MAP_TYPE_HASH, 4, 8, 16)])
    for number in range(16):
        machine.maps["m"][number] = bytes(8)
    program = machine.load(kind())
    program.run(limit=2 * MILLION)  # translated by now
    seconds = min(timed(lambda: program.run(limit=2 * MILLION)) for _ in range(3))
    executed = program.run(limit=2 * MILLION).executed
    each = seconds / executed
    with capsys.disabled():
        print(f"\n{kind.__name__}: {1 / each / 1e6:.1f} M insn/s, {each * MILLION:.2f} s a million")
    assert each * MILLION < GOAL_SECONDS


def test_single_steps(capsys: pytest.CaptureFixture[str]) -> None:
    program = Machine().load(arithmetic())
    execution = program.start()
    execution.step()
    count = 20_000
    seconds = timed(lambda: [execution.step() for _ in range(count)])
    with capsys.disabled():
        print(f"\nsingle steps with all registers: {count / seconds / 1e3:.0f} k insn/s")
    assert seconds < 2


def test_getting_a_large_program_ready(capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(2)
    insns = [asm.mov64(Reg(register), register) for register in range(10)]
    for _ in range(1000):
        insns += [asm.add64(Reg(rng.randrange(10)), Reg(rng.randrange(10))), asm.xor64(R0, R1)]
        insns += [asm.stx(Size.DW, R10, R0, -8), asm.jmp("jeq", R1, 7, 1), asm.mov64(R2, 1)]
    insns.append(asm.exit_())
    program = Machine().load(insns)
    ready = timed(lambda: program.fast)
    run = timed(program.run)
    drawn = timed(lambda: draw_text(build_graph(insns)))
    with capsys.disabled():
        print(
            f"\n{len(insns)} instructions: translated in {ready * 1e3:.0f} ms, run in {run * 1e3:.1f} ms, "
            f"drawn in {drawn * 1e3:.0f} ms"
        )
    assert ready < 5


def timed(action) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
