"""What depends on the kernel's types becomes numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actplane.asm.build import add64, exit_, jmp, ldx, mov64, st
from actplane.asm.insn import EnumValue, Field, Insn, MapFd, TypeSize
from actplane.asm.operands import R0, R1, R2, R10, Size
from actplane.asm.program import Program
from actplane.asm.uapi import ProgType
from actplane.errors import EncodeError, InternalError
from actplane.loader.btf import TypeNotFound
from actplane.loader.relocate import relocate
from actplane.source import Source
from tests.fake.types import small_kernel

PID = Field("task_struct", "pid")


def relocated(insn: Insn) -> Insn:
    program = Program("test", ProgType.BPF_PROG_TYPE_TRACING, (insn, exit_()))
    return relocate(program, small_kernel()).insns[0]


@pytest.mark.parametrize(
    ("insn", "off", "imm"),
    [
        (replace(ldx(Size.W, R0, R1, 4), symbol=PID), 20, 0),
        (replace(st(Size.W, R10, -64, 3), symbol=PID), -48, 3),
        (replace(add64(R1, 1), symbol=PID), 0, 17),
        (replace(mov64(R1, 0), symbol=EnumValue("colour", "BLUE")), 0, 7),
        (replace(st(Size.W, R10, -8, 0), symbol=EnumValue("colour", "RED")), -8, 1),
        (replace(jmp("jeq", R1, 0, 2), symbol=EnumValue("", "BLUE")), 2, 7),
        (replace(mov64(R2, 0), symbol=TypeSize("task_struct")), 0, 24),
        (replace(mov64(R2, 0), symbol=Field("file", "pid", (("task_struct", "id"), ("task_struct", "pid")))), 0, 16),
    ],
)
def test_a_symbol_becomes_its_number(insn: Insn, off: int, imm: int) -> None:
    found = relocated(insn)
    assert (found.off, found.imm, found.symbol) == (off, imm, None)


def test_other_symbols_and_spans_stay() -> None:
    span = Source("p.yaml", "block").span(0)
    insn = replace(mov64(R1, 0), symbol=MapFd("tasks"), span=span)
    assert relocated(insn) == insn
    assert relocated(replace(insn, symbol=PID)).span == span


def test_what_is_missing_is_named_with_its_place() -> None:
    span = Source("p.yaml", "block").span(0)
    missing = Field("task_struct", "uid", (("cred", "uid"),))
    message = (
        r"program test, insn 0 \(p.yaml:1:1\): task_struct.uid: task_struct has no field 'uid'; "
        r"BTF has no struct or union 'cred'"
    )
    with pytest.raises(TypeNotFound, match=message):
        relocated(replace(ldx(Size.W, R0, R1), symbol=missing, span=span))


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(EncodeError, match="program test, insn 0: ldx"):
        relocated(replace(ldx(Size.W, R0, R1, 32760), symbol=PID))


def test_a_load_has_no_place_for_an_enumerator() -> None:
    with pytest.raises(InternalError, match="has no imm"):
        relocated(replace(ldx(Size.W, R0, R1), symbol=EnumValue("colour", "RED")))
