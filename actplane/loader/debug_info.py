"""
BTF that a program brings along: the names of its functions, and for each instruction the line of the
policy it came from, so that the kernel's log and its tools show policy lines.

Source: Documentation/bpf/btf.rst, section 3.3; check_btf_func() and check_btf_line() in the kernel.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from actplane.asm.program import Program
from actplane.loader.btf_write import BtfWriter
from actplane.source import Span

FUNC_INFO_BYTES = 8
LINE_INFO_BYTES = 16

_CALL = 0x85
_LD_IMM64 = 0x18
_PSEUDO_CALL = 1
_PSEUDO_FUNC = 4
_MAX_COLUMN = (1 << 10) - 1
_MAX_LINE = (1 << 22) - 1
_MAX_NAME = 127


@dataclass(frozen=True, slots=True)
class DebugInfo:
    """A BTF blob, and the two tables that point into it, as BPF_PROG_LOAD takes them."""

    btf: bytes
    func_info: bytes
    line_info: bytes


def has_debug_info(program: Program) -> bool:
    """Say whether a program knows anything that is worth telling the kernel."""
    return bool(program.functions) or any(insn.span is not None for insn in program.insns)


def debug_info(program: Program) -> DebugInfo:
    """
    Return the debug information of a program.

    Shape:  func_info is one record of 8 bytes for the entry and each subprogram; line_info one of 16
            bytes wherever the policy line changes, and one at the start of each function.
    Units:  the records count slots of 8 bytes.
    Since:  5.0.
    """
    writer = BtfWriter()
    # A function may tail-call only if it is declared to return int.
    proto = writer.func_proto(writer.integer("int", 4, is_signed=True))
    functions = _functions(program)
    func_info = b"".join(
        struct.pack("<II", slot, writer.func(_identifier(name), proto)) for slot, name in sorted(functions.items())
    )
    lines: list[bytes] = []
    slot = 0
    name = program.name
    said: Span | str | None = None
    for insn in program.insns:
        name = functions.get(slot, name)
        # The kernel wants a line at the start of each function; what no policy line caused shows its name.
        wanted = insn.span or name
        if wanted != said or slot in functions:
            lines.append(struct.pack("<IIII", slot, *_line(writer, wanted)))
            said = wanted
        slot += insn.slots
    return DebugInfo(writer.encode(), func_info, b"".join(lines))


def _functions(program: Program) -> dict[int, str]:
    """Return the slot and name of the entry and of every subprogram that is called or pointed to."""
    named: dict[int, str] = {}
    called = {0}
    slot = 0
    for index, insn in enumerate(program.insns):
        if index in program.functions:
            named[slot] = program.functions[index]
        is_call = insn.code == _CALL and insn.src == _PSEUDO_CALL
        if is_call or (insn.code == _LD_IMM64 and insn.src == _PSEUDO_FUNC):
            called.add(slot + 1 + insn.imm)
        slot += insn.slots
    return {0: program.name} | {slot: named.get(slot, f"{program.name}_{slot}") for slot in called if slot}


def _line(writer: BtfWriter, place: Span | str) -> tuple[int, int, int]:
    if isinstance(place, str):
        return writer.string("actplane"), writer.string(f"{place}: not from a line of the policy"), 0
    text = place.source.line(place.line).strip()
    position = min(place.line, _MAX_LINE) << 10 | min(place.column, _MAX_COLUMN)
    return writer.string(place.source.name), writer.string(text), position


def _identifier(name: str) -> str:
    """
    Return a name that BTF allows for a function.

    >>> _identifier("no-push.exec"), _identifier("1st")
    ('no_push_exec', '_1st')
    """
    kept = re.sub(r"[^A-Za-z0-9_]", "_", name)[:_MAX_NAME] or "_"
    return "_" + kept if kept[0].isdigit() else kept
