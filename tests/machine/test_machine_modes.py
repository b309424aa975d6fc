"""Whole blocks and single instructions are two translations of the same program: they must agree."""

from __future__ import annotations

import random

import pytest

from actplane import asm
from actplane.asm import R10, Insn, Kind, Reg, Size
from actplane.asm.isa import FORMS, Form
from actplane.asm.machine import Fault, Machine

STACK_BYTES = 32
KINDS = (Kind.ALU, Kind.NEG, Kind.MOVSX, Kind.END, Kind.JUMP, Kind.LDX, Kind.LDXSX, Kind.ST, Kind.STX, Kind.ATOMIC)
RUNNABLE = [form for form in FORMS if form.kind in (*KINDS, Kind.LOAD_ACQUIRE, Kind.STORE_RELEASE)]


def random_insn(rng: random.Random, form: Form) -> Insn:
    """An instruction on r0 to r9, or between them and the stack; one in a while misses the stack."""
    off = rng.choice(form.off.values) if form.off.values else form.off.low
    dst, src = rng.randrange(10), rng.randrange(10) if form.has_register_source else form.src.low
    imm = rng.choice(form.imm.values) if form.imm.values else form.imm.low
    if not form.imm.is_fixed:
        imm = rng.choice((0, 1, -1, 63, rng.getrandbits(31)))
    if form.kind is Kind.JUMP:
        off = rng.randrange(0, 4)
    elif form.size is not None:
        off = rng.randrange(-STACK_BYTES, 1 - form.size.value) if rng.random() < 0.97 else 8
        if form.kind in (Kind.LDX, Kind.LDXSX, Kind.LOAD_ACQUIRE):
            src = 10
        else:
            dst = 10
    return Insn(form.code, dst, src, off, imm)


def random_program(rng: random.Random) -> list[Insn]:
    start = [asm.ld_imm64(Reg(number), rng.getrandbits(64)) for number in range(10)]
    start += [asm.st(Size.DW, R10, offset, rng.randrange(-9, 9)) for offset in range(-STACK_BYTES, 0, 8)]
    middle = [random_insn(rng, rng.choice(RUNNABLE)) for _ in range(30)]
    end = [asm.mov64(Reg.R1, 0)] * 4
    return [*start, *middle, *end, asm.exit_()]


@pytest.mark.parametrize("seed", range(100))
def test_blocks_steps_and_a_mixture_end_alike(seed: int) -> None:
    rng = random.Random(seed)
    program = Machine().load(random_program(rng))
    ends = []
    for steps_first in (0, 10_000, rng.randrange(1, 50)):
        with program.start() as execution:
            stack = execution.frame.stack
            fault = None
            try:
                for _ in range(steps_first):
                    if execution.is_finished:
                        break
                    execution.step()
                execution.run()
            except Fault as error:
                fault = str(error)
            executed = None if fault else execution.executed  # a faulting block counts as a whole
            ends.append((fault, execution.registers[:11], bytes(stack.buffer), executed))
    assert ends[0] == ends[1] == ends[2]


def test_some_of_these_programs_fault_and_most_do_not() -> None:
    """The property above would say little if all runs went the same way."""
    faults = 0
    for seed in range(100):
        try:
            Machine().load(random_program(random.Random(seed))).run()
        except Fault:
            faults += 1
    assert 5 < faults < 60
