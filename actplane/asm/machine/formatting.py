"""
The text that bpf_trace_printk and bpf_snprintf make.

Source: bpf_bprintf_prepare() in kernel/bpf/helpers.c of Linux 6.18.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from actplane.asm.machine.arithmetic import to_signed
from actplane.asm.machine.memory import Memory

_SPECIFIER = re.compile(rb"%(?:%|([-+ 0]*)([1-9]\d*|)(ll|l|)([diuxXcs])|p(?:[KxsSB]|ks|us|i4|I4|i6|I6|))")
_WIDTHS = {b"": 32, b"l": 64, b"ll": 64}


def format_text(memory: Memory, template: bytes, arguments: Sequence[int]) -> bytes:
    """
    Return a template with its specifiers filled in, as the kernel's printf would.

    Raises: ValueError for a specifier the kernel refuses or more specifiers than arguments.

    >>> format_text(Memory(), b"%d %llx %c", [0xffffffff, 255, 65])
    b'-1 ff A'
    """
    pieces = []
    position = used = 0
    while (start := template.find(b"%", position)) >= 0:
        match = _SPECIFIER.match(template, start)
        if match is None:
            raise ValueError(f"bad specifier at byte {start} of {template!r}")
        pieces.append(template[position:start])
        position = match.end()
        if match[0] == b"%%":
            pieces.append(b"%")
            continue
        if used >= len(arguments):
            raise ValueError(f"too few arguments for {template!r}: got {len(arguments)}")
        pieces.append(_one(memory, match, arguments[used]))
        used += 1
    pieces.append(template[position:])
    return b"".join(pieces)


def _one(memory: Memory, match: re.Match[bytes], value: int) -> bytes:
    flags, width, length, letter = match[1] or b"", match[2] or b"", match[3] or b"", match[4]
    if letter is None:
        if match[0] in (b"%pi4", b"%pI4"):
            return ".".join(str(octet) for octet in memory.read(value, 4)).encode()
        if match[0] in (b"%pi6", b"%pI6"):
            return memory.read(value, 16).hex(":", 2).encode()
        if match[0] in (b"%pks", b"%pus"):
            return memory.read_string(value)
        return f"{value:016x}".encode()
    text = (flags + width).decode()
    if letter == b"s":
        return f"%{text}s".encode() % memory.read_string(value)
    if letter == b"c":
        return bytes([value & 0xFF])
    bits = _WIDTHS[length]
    number = to_signed(value, bits) if letter in b"di" else value & ((1 << bits) - 1)
    return f"%{text}{letter.decode()}".encode() % number
