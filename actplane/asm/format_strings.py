"""
Format strings as the kernel reads them: for what bpf_trace_printk and bpf_snprintf print, and, since the
kernel reads those of bpf_snprintf before the program runs, for whether a program is taken at all.

Source: bpf_bprintf_prepare() in kernel/bpf/helpers.c of Linux 6.18.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_END: Final = rb"(?![0-9A-Za-z\x80-\xff])"
_SPECIFIER: Final = re.compile(
    rb"%(?P<percent>%)|%(?P<flags>[-+ 0]*)(?P<width>(?:[1-9][0-9]*)?)(?:"
    rb"p(?P<pointer>[ku]s" + _END + rb"|[KxsSB]|[iI][46]|" + _END + rb")|"
    rb"(?P<letter>c|s" + _END + rb")|(?P<length>l{0,2})(?P<number>[diuxX]))"
)
_UNPRINTABLE: Final = re.compile(rb"[\x01-\x08\x0e-\x1f\x7f]")


def pieces(template: bytes, arguments: int) -> Iterator[bytes | re.Match[bytes]]:
    """
    Yield the text of a format string as it is, and each specifier for one of a number of arguments as a
    match: of `flags` and `width`, and of a `pointer` kind, a `letter`, or a `number` and its `length`.

    Raises: ValueError, in words about the string, for what the kernel refuses.

    >>> [piece if isinstance(piece, bytes) else piece["number"] for piece in pieces(b"%5lld of 100%%", 1)]
    [b'd', b' of 100', b'%', b'']
    >>> list(pieces(b"%sx", 1))
    Traceback (most recent call last):
        ...
    ValueError: the kernel knows no specifier '%sx'
    """
    unprintable = _UNPRINTABLE.search(template)
    if unprintable is not None:
        raise ValueError(f"byte 0x{unprintable[0].hex()} is not printable")
    position = used = 0
    while (start := template.find(b"%", position)) >= 0:
        match = _SPECIFIER.match(template, start)
        if match is None:
            raise ValueError(f"the kernel knows no specifier {template[start : start + 3].decode(errors='replace')!r}")
        if start > position:
            yield template[position:start]
        position = match.end()
        if match["percent"]:
            yield b"%"
            continue
        used += 1
        if used > arguments:
            plural = "" if arguments == 1 else "s"
            raise ValueError(f"it has more specifiers than the {arguments} argument{plural} given")
        yield match
    yield template[position:]
