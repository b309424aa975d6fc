"""
Format strings that the kernel reads before a program runs: those of bpf_snprintf.

Source: bpf_bprintf_prepare() in kernel/bpf/helpers.c of Linux 6.18.
"""

from __future__ import annotations

import re
from typing import Final

_END: Final = rb"(?![0-9A-Za-z\x80-\xff])"
_SPECIFIER: Final = re.compile(
    rb"%(?P<percent>%)|%[-+ 0]*(?:[1-9][0-9]*)?(?:p(?:[ku]s" + _END + rb"|[KxsSB]|[iI][46]|" + _END + rb")"
    rb"|s" + _END + rb"|c|l{0,2}[diuxX])"
)
_UNPRINTABLE: Final = re.compile(rb"[\x01-\x08\x0e-\x1f\x7f]")


def why_bad(template: bytes, arguments: int) -> str | None:
    """
    Return what is wrong with a format string for a number of arguments, None if nothing is.

    >>> why_bad(b"%d of %s", 1), why_bad(b"%pI4: %5lld%%", 2)
    ('it has more specifiers than the 1 argument given', None)
    >>> why_bad(b"100%", 1), why_bad(b"%sx", 1)
    ("the kernel knows no specifier '%'", "the kernel knows no specifier '%sx'")
    """
    unprintable = _UNPRINTABLE.search(template)
    if unprintable is not None:
        return f"byte 0x{unprintable[0].hex()} is not printable"
    position = used = 0
    while (start := template.find(b"%", position)) >= 0:
        match = _SPECIFIER.match(template, start)
        if match is None:
            return f"the kernel knows no specifier {template[start : start + 3].decode(errors='replace')!r}"
        position = match.end()
        used += match["percent"] is None
        if used > arguments:
            plural = "" if arguments == 1 else "s"
            return f"it has more specifiers than the {arguments} argument{plural} given"
    return None
