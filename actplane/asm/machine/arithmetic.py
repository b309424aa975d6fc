"""
Arithmetic on 32 and 64-bit words held as non-negative Python integers.

The one-line operations (add, and, shifts) are written out by the translator; here are those that
take more than a line. All of them: arguments and results in [0, 2**width).

Source: RFC 9669, sections 4.1 and 4.2.
"""

from __future__ import annotations


def to_signed(value: int, width: int) -> int:
    """
    Return the two's complement reading of the low `width` bits.

    >>> to_signed(0xff, 8), to_signed(0x7f, 8), to_signed(0x1ff, 8)
    (-1, 127, -1)
    """
    sign = 1 << (width - 1)
    return ((value & ((1 << width) - 1)) ^ sign) - sign


def sign_extend(value: int, from_width: int, to_width: int) -> int:
    """
    Return the low `from_width` bits, sign-extended to `to_width` bits.

    >>> hex(sign_extend(0x80, 8, 32))
    '0xffffff80'
    """
    return to_signed(value, from_width) & ((1 << to_width) - 1)


def sdiv(dividend: int, divisor: int, width: int) -> int:
    """
    Signed division that truncates towards zero. By zero it gives 0; INT_MIN / -1 gives INT_MIN.

    >>> to_signed(sdiv(-7 % 2**64, 2, 64), 64)
    -3
    """
    a, b = to_signed(dividend, width), to_signed(divisor, width)
    if b == 0:
        return 0
    quotient = abs(a) // abs(b)
    return (quotient if (a < 0) == (b < 0) else -quotient) & ((1 << width) - 1)


def smod(dividend: int, divisor: int, width: int) -> int:
    """
    Signed remainder with the sign of the dividend. By zero it gives the dividend.

    >>> to_signed(smod(-7 % 2**64, 2, 64), 64)
    -1
    """
    a, b = to_signed(dividend, width), to_signed(divisor, width)
    if b == 0:
        return dividend & ((1 << width) - 1)
    remainder = abs(a) % abs(b)
    return (-remainder if a < 0 else remainder) & ((1 << width) - 1)


def byte_swap(value: int, width: int) -> int:
    """
    Return the low `width` bits with their bytes in the opposite order.

    >>> hex(byte_swap(0xaabb1122, 16))
    '0x2211'
    """
    return int.from_bytes((value & ((1 << width) - 1)).to_bytes(width // 8, "little"), "big")


def internet_checksum(data: bytes, seed: int = 0) -> int:
    """
    Return the 32-bit ones' complement sum of 16-bit little-endian words, as csum_partial() gives it.

    It is not folded to 16 bits and not inverted.
    """
    if len(data) % 2:
        data += b"\0"
    total = seed + sum(int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def fold_checksum(total: int) -> int:
    """Return a sum folded to 16 bits and inverted, as csum_fold() does."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
