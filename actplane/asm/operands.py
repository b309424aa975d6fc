"""Registers and memory sizes: what an instruction's operands are made of."""

from __future__ import annotations

from enum import Enum, IntEnum


class Reg(IntEnum):
    """
    The eleven registers: r0 result, r1 to r5 arguments, r6 to r9 kept across calls, r10 the frame.

    `reg + n` is arithmetic on a pointer only in memory operands (`R10 - 8`), see `Builder`; as
    operands of the constructors a register and a number stay distinguishable by their type.
    """

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10

    def __str__(self) -> str:
        return f"r{int(self)}"


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Reg


class Size(Enum):
    """Widths of memory accesses. The value is the number of bytes."""

    B = 1
    H = 2
    W = 4
    DW = 8

    @property
    def bits(self) -> int:
        return 8 * int(self.value)

    @property
    def ctype(self) -> str:
        """The type as the kernel writes it in text: u8, u16, u32 or u64."""
        return f"u{self.bits}"
