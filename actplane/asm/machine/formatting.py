"""The text that bpf_trace_printk and bpf_snprintf make."""

from __future__ import annotations

import re
from collections.abc import Sequence

from actplane.asm.format_strings import pieces
from actplane.asm.machine.arithmetic import to_signed
from actplane.asm.machine.memory import Memory

_WIDTHS = {b"": 32, b"l": 64, b"ll": 64}


def format_text(memory: Memory, template: bytes, arguments: Sequence[int]) -> bytes:
    """
    Return a template with its specifiers filled in, as the kernel's printf would.

    Raises: ValueError for a specifier the kernel refuses or more specifiers than arguments.

    >>> format_text(Memory(), b"%d %llx %c", [0xffffffff, 255, 65])
    b'-1 ff A'
    """
    values = iter(arguments)
    found = pieces(template, len(arguments))
    return b"".join(piece if isinstance(piece, bytes) else _one(memory, piece, next(values)) for piece in found)


def _one(memory: Memory, match: re.Match[bytes], value: int) -> bytes:
    pointer, letter, number = match["pointer"], match["letter"], match["number"]
    if pointer is not None:
        if pointer in (b"i4", b"I4"):
            return ".".join(str(octet) for octet in memory.read(value, 4)).encode()
        if pointer in (b"i6", b"I6"):
            return memory.read(value, 16).hex(":", 2).encode()
        if pointer in (b"ks", b"us"):
            return memory.read_string(value)
        return f"{value:016x}".encode()
    text = (match["flags"] + match["width"]).decode()
    if letter == b"s":
        return f"%{text}s".encode() % memory.read_string(value)
    if letter == b"c":
        return bytes([value & 0xFF])
    bits = _WIDTHS[match["length"]]
    shown = to_signed(value, bits) if number in b"di" else value & ((1 << bits) - 1)
    return f"%{text}{number.decode()}".encode() % shown
