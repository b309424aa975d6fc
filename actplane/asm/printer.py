"""Programs, maps and bytes to text that assembles to the same again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from actplane.asm.disasm import disassemble_insns
from actplane.asm.encoding import decode
from actplane.asm.insn import FunctionAddress, Insn, Subprogram, form_of
from actplane.asm.isa import Kind
from actplane.asm.program import MapSpec, Object, Program

_HEX_BYTES_A_LINE = 32


def disassemble(
    what: bytes | bytearray | memoryview | Iterable[Insn] | Program | Object, dialect: str = "kernel"
) -> str:
    """
    Return the text of bytes, instructions, a program, or maps and programs.

    Shape:  one instruction a line. A program is headed by `.prog`, maps by `.map`; the dialect
            "verifier" puts the slot in front, as a verifier log has it.
    Raises: DecodeError or EncodeError if something is no valid instruction.

    >>> print(disassemble(bytes.fromhex("b7000000010000009500000000000000")))
    r0 = 1
    exit
    """
    match what:
        case Object():
            parts = [_map_lines(spec) for spec in what.maps]
            parts.extend(_program_lines(program, dialect) for program in what.programs)
            return "\n\n".join("\n".join(part) for part in parts)
        case Program():
            return "\n".join(_program_lines(what, dialect))
        case bytes() | bytearray() | memoryview():
            return "\n".join(_insn_lines(decode(what), dialect))
        case _:
            return "\n".join(_insn_lines(list(what), dialect))


def _insn_lines(insns: list[Insn], dialect: str) -> list[str]:
    lines = disassemble_insns(insns, dialect)
    if dialect != "verifier":
        return lines
    slots: list[int] = []
    slot = 0
    for insn in insns:
        slots.append(slot)
        slot += insn.slots
    return [f"{slot}: {line}" for slot, line in zip(slots, lines, strict=True)]


def _program_lines(program: Program, dialect: str) -> Iterator[str]:
    yield _header(program)
    lines = _insn_lines(_with_names(program), dialect)
    for index, line in enumerate(lines):
        if index in program.functions:
            yield f".func {program.functions[index]}"
        yield "    " + line


def _header(program: Program) -> str:
    words = [".prog", program.name, program.prog_type.name.removeprefix("BPF_PROG_TYPE_").lower()]
    if program.attach_type is not None:
        words.append(f"attach_type={program.attach_type.name}")
    if program.attach_to is not None:
        words.append(f"attach_to={program.attach_to}")
    if program.is_sleepable:
        words.append("sleepable")
    if program.license != "GPL":
        words.append(f"license={_quoted(program.license)}")
    return " ".join(words)


def _quoted(text: str) -> str:
    def escaped(char: str) -> str:
        is_plain = char.isprintable() and char not in '"\\'
        return char if is_plain else "".join(f"\\x{byte:02x}" for byte in char.encode(errors="surrogateescape"))

    return '"' + "".join(map(escaped, text)) + '"'


def _with_names(program: Program) -> list[Insn]:
    """Calls to the subprograms by name, where a name belongs to one subprogram only."""
    counts = Counter(program.functions.values())
    names: dict[int, str] = {}
    slot = 0
    for index, insn in enumerate(program.insns):
        name = program.functions.get(index)
        if name is not None and counts[name] == 1:
            names[slot] = name
        slot += insn.slots
    named: list[Insn] = []
    slot = 0
    for insn in program.insns:
        name = None if insn.symbol is not None or not names else names.get(slot + 1 + insn.imm)
        if name is not None:
            kind = form_of(insn).kind
            if kind is Kind.CALL_SUBPROGRAM:
                insn = replace(insn, imm=0, symbol=Subprogram(name))
            elif kind is Kind.LD_IMM64 and form_of(insn).name == "ld_func":
                insn = replace(insn, imm=0, symbol=FunctionAddress(name))
        named.append(insn)
        slot += insn.slots
    return named


def _map_lines(spec: MapSpec) -> Iterator[str]:
    words = [".map", spec.name, spec.type.name.removeprefix("BPF_MAP_TYPE_").lower()]
    words.append(f"key={spec.key_size} value={spec.value_size} max_entries={spec.max_entries}")
    if spec.flags:
        words.append(f"flags={spec.flags:#x}")
    if spec.is_frozen:
        words.append("frozen")
    yield " ".join(words)
    if spec.contents is not None:
        for start in range(0, max(len(spec.contents), 1), _HEX_BYTES_A_LINE):
            part = spec.contents[start : start + _HEX_BYTES_A_LINE]
            yield f"    .hex {part.hex()}" if part else "    .zero 0"
