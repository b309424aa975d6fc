"""
Which registers an instruction reads, writes and destroys.

Sets of registers are bit masks here: bit n stands for register n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actplane.asm.insn import Insn
from actplane.asm.isa import Form, Kind

ARGUMENTS = 0b111110
"""r1 to r5: the arguments of a call, and what it destroys."""
R0_BIT, R6_BIT, R10_BIT = 1 << 0, 1 << 6, 1 << 10

ArgumentCount = Callable[[Insn], int]
"""From the call of a helper or kfunc to how many of r1 to r5 it takes."""


def registers_in(mask: int) -> list[int]:
    """
    Return the numbers of the registers in a mask.

    >>> registers_in(0b10000000011)
    [0, 1, 10]
    """
    return [number for number in range(11) if mask >> number & 1]


@dataclass(frozen=True, slots=True)
class Effects:
    """What one instruction does to registers. A destroyed register has no value afterwards."""

    reads: int = 0
    writes: int = 0
    destroys: int = 0


def _five(call: Insn) -> int:
    return 5


def effects(insn: Insn, form: Form, argument_count: ArgumentCount = _five) -> Effects:
    """
    Return what an instruction reads, writes and destroys.

    `argument_count` says how many arguments a called helper takes; all five are assumed without it.

    >>> from actplane.asm.insn import form_of
    >>> add = Insn(0x0F, 1, 2)
    >>> registers_in(effects(add, form_of(add)).reads)
    [1, 2]
    """
    dst, src = 1 << insn.dst, 1 << insn.src
    operand = src if form.has_register_source else 0
    match form.kind:
        case Kind.ALU:
            return Effects(operand if form.operation == "mov" else dst | operand, dst)
        case Kind.NEG | Kind.END:
            return Effects(dst, dst)
        case Kind.MOVSX | Kind.ADDR_SPACE_CAST | Kind.LDX | Kind.LDXSX | Kind.LOAD_ACQUIRE:
            return Effects(src, dst)
        case Kind.JUMP:
            return Effects(dst | operand)
        case Kind.ST | Kind.GOTOX:
            return Effects(dst)
        case Kind.STX | Kind.STORE_RELEASE:
            return Effects(dst | src)
        case Kind.LD_IMM64:
            return Effects(0, dst)
        case Kind.EXIT:
            return Effects(R0_BIT)
        case Kind.LD_ABS | Kind.LD_IND:
            return Effects(R6_BIT | operand, R0_BIT, ARGUMENTS)
        case Kind.CALL_HELPER | Kind.CALL_KFUNC:
            return Effects((2 << argument_count(insn)) - 2, R0_BIT, ARGUMENTS)
        case Kind.CALL_SUBPROGRAM:
            return Effects(ARGUMENTS, R0_BIT, ARGUMENTS)
        case Kind.CALLX:
            return Effects(ARGUMENTS | dst, R0_BIT, ARGUMENTS)
        case Kind.ATOMIC:
            if form.operation == "cmpxchg":
                return Effects(dst | src | R0_BIT, R0_BIT)
            return Effects(dst | src, src if form.is_fetch else 0)
        case Kind.JA | Kind.GOTOL | Kind.MAY_GOTO:
            return Effects()
