"""What the operands of an instruction are made of: registers, sizes, and places in memory."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from actplane.errors import EncodeError


class Reg(IntEnum):
    """
    The eleven registers: r0 result, r1 to r5 arguments, r6 to r9 kept across calls, r10 the frame.

    A register and a number stay distinguishable: `R10 - 8` is an `Address`, never the number 2, and
    `R1.w` the lower half of r1 as the 32-bit operations name it.

    >>> Reg.R10 - 8, Reg.R1.w
    (r10 -8, w1)
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

    def __repr__(self) -> str:
        return f"r{int(self)}"

    def __add__(self, offset_bytes: int) -> Address:  # type: ignore[override]  # an address, not a number
        return Address(self) + offset_bytes

    __radd__ = __add__  # type: ignore[assignment]

    def __sub__(self, offset_bytes: int) -> Address:  # type: ignore[override]
        return Address(self) - offset_bytes

    @property
    def w(self) -> Word:
        return Word(self)


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = Reg


@dataclass(frozen=True, slots=True, repr=False)
class Word:
    """The lower 32 bits of a register; writing them clears the upper 32."""

    reg: Reg

    def __repr__(self) -> str:
        return f"w{int(self.reg)}"


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


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """
    A register and an offset from it, in bytes.

    Raises: EncodeError if what is added is no number: no instruction adds a register to an address.

    >>> Reg.R1 + 4 + 8
    r1 +12
    """

    base: Reg
    offset_bytes: int = 0

    def __add__(self, offset_bytes: int) -> Address:
        return Address(self.base, self.offset_bytes + self._checked(offset_bytes))

    def __sub__(self, offset_bytes: int) -> Address:
        return Address(self.base, self.offset_bytes - self._checked(offset_bytes))

    def _checked(self, offset_bytes: object) -> int:
        if isinstance(offset_bytes, Reg) or not isinstance(offset_bytes, int):
            raise EncodeError(f"offset from {self.base}: got {offset_bytes!r}, expected a number of bytes")
        return offset_bytes

    def __repr__(self) -> str:
        return f"{self.base} {self.offset_bytes:+d}"


@dataclass(frozen=True, slots=True, repr=False)
class Memory:
    """
    What lies at an address: so many bytes, as a number with or without a sign.

    >>> u32[Reg.R1 + 4]
    *(u32 *)(r1 +4)
    """

    size: Size
    address: Address
    is_signed: bool = False

    def __repr__(self) -> str:
        return f"*({'s' if self.is_signed else 'u'}{self.size.bits} *)({self.address})"


@dataclass(frozen=True, slots=True)
class MemoryType:
    """A type that an address is read as: `u32[R1 + 4]`."""

    size: Size
    is_signed: bool = False

    def __getitem__(self, address: Address | Reg) -> Memory:
        if isinstance(address, Reg):
            address = Address(address)
        if not isinstance(address, Address):
            raise EncodeError(f"address: got {address!r}, expected a register, or one with an offset")
        return Memory(self.size, address, self.is_signed)


u8, u16, u32, u64 = (MemoryType(size) for size in Size)
s8, s16, s32 = (MemoryType(size, True) for size in (Size.B, Size.H, Size.W))
