"""
A second opinion: capstone 5.0 on every form, and the published list of where it is wrong.

`python -m tests.asm.test_asm_capstone` writes docs/capstone.md anew; the test fails if it is stale.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from actplane.asm import Insn, encode, form_of
from actplane.asm.isa import FORMS, Form, Kind
from actplane.asm.operands import Size
from tests.asm.generated import some_instructions

capstone = pytest.importorskip("capstone", reason="capstone is not installed")

PAGE = Path(__file__).parents[2] / "docs/capstone.md"
LETTERS = {Size.B: "b", Size.H: "h", Size.W: "w", Size.DW: "dw"}
INSTRUCTIONS_A_FORM = 100

# Kinds that write dst. capstone refuses them for r10, which is the verifier's business, not the encoding's.
WRITERS = (
    *(Kind.ALU, Kind.NEG, Kind.MOVSX, Kind.ADDR_SPACE_CAST, Kind.END),
    *(Kind.LD_IMM64, Kind.LDX, Kind.LDXSX, Kind.LOAD_ACQUIRE),
)


def expected(insn: Insn, form: Form) -> str:
    """
    What capstone prints if it understands an instruction, in its own words.

    It prints offsets and immediates as unsigned numbers of their width, and no offset of zero.
    """
    dst, src = f"r{insn.dst}", f"r{insn.src}"
    number = f"{insn.imm & 0xFFFFFFFF:#x}"
    operand = src if form.has_register_source else number
    suffix = "64" if form.width == 64 else ""
    letters = LETTERS[form.size] if form.size else ""
    to = f"+{insn.off & 0xFFFF:#x}"
    match form.kind:
        case Kind.ALU:
            return f"{form.operation}{suffix} {dst}, {operand}"
        case Kind.NEG:
            return f"neg{suffix} {dst}"
        case Kind.MOVSX:
            return f"movsx{form.bits}{form.width} {dst}, {src}"
        case Kind.END:
            return f"{form.operation}{form.bits} {dst}"
        case Kind.JUMP:
            return f"{form.operation}{'' if form.width == 64 else '32'} {dst}, {operand}, {to}"
        case Kind.JA:
            return f"jmp {to}"
        case Kind.CALL_HELPER:
            return f"call {number}"
        case Kind.CALLX:
            return f"callx {dst}"
        case Kind.EXIT:
            return "exit "
        case Kind.LD_IMM64 if insn.src == 0:
            return f"lddw {dst}, {insn.imm:#x}"
        case Kind.LDX:
            return f"ldx{letters} {dst}, {_at(src, insn.off & 0xFFFF)}"
        case Kind.LDXSX:
            return f"ldxs{letters} {dst}, {_at(src, insn.off & 0xFFFF)}"
        case Kind.ST:
            return f"st{letters} {_at(dst, insn.off & 0xFFFF)}, {number}"
        case Kind.STX:
            return f"stx{letters} {_at(dst, insn.off & 0xFFFF)}, {src}"
        case Kind.ATOMIC if form.operation == "add":
            return f"xadd{letters} {_at(dst, insn.off & 0xFFFF)}, {src}"
        case Kind.LD_ABS:
            return f"ld{letters} [{number}]"
        case Kind.LD_IND:
            return f"ld{letters} {_at(src, insn.imm & 0xFFFFFFFF)}"
        case _:
            return f"a text of its own for {form.name}"


def _at(register: str, offset: int) -> str:
    return f"[{register}+{offset:#x}]" if offset else f"[{register}]"


def outcomes() -> dict[str, Counter[str]]:
    """For every form, what capstone makes of instructions of it."""
    disassembler = capstone.Cs(capstone.CS_ARCH_BPF, capstone.CS_MODE_BPF_EXTENDED | capstone.CS_MODE_LITTLE_ENDIAN)
    found: dict[str, Counter[str]] = {}
    for number, form in enumerate(FORMS):
        counts = found.setdefault(title(form), Counter())
        for insn in some_instructions(number, INSTRUCTIONS_A_FORM, (form,)):
            if insn.dst == 10 and form.kind in WRITERS:
                insn = replace(insn, dst=9)
            data = encode([insn])
            texts = [f"{one.mnemonic} {one.op_str}" for one in disassembler.disasm(data, 0) if one.size == len(data)]
            if not texts:
                counts["refused"] += 1
            elif texts == [expected(insn, form)]:
                counts["agrees"] += 1
            else:
                counts[f"taken for {texts[0].split()[0]}"] += 1
    return found


def title(form: Form) -> str:
    names = {
        Kind.MOVSX: f"{form.name} of {form.bits} bits",
        Kind.END: f"{form.name}{form.bits}",
    }
    source = ""
    if form.kind in (Kind.ALU, Kind.JUMP):
        source = ", register" if form.has_register_source else ", number"
    size = f", {form.size.name}" if form.size and form.kind is not Kind.LD_IMM64 else ""
    return f"`{form.code:#04x}` {names.get(form.kind, form.name)}{source}{size}"


def render() -> str:
    """The page with the blind spots."""
    found = outcomes()
    right = [name for name, counts in found.items() if set(counts) == {"agrees"}]
    wrong = {name: counts for name, counts in found.items() if set(counts) != {"agrees"}}
    total = sum(sum(counts.values()) for counts in found.values())
    agreed = sum(counts["agrees"] for counts in found.values())
    lines = [
        "# Where capstone is wrong about eBPF",
        "",
        "capstone is a second opinion on our decoder, not its judge. This page lists every form of instruction that",
        "capstone 5.0 refuses or takes for something else; `tests/asm/test_asm_capstone.py` writes it and fails when",
        "it is stale. What is right there is settled by RFC 9669, by the kernel and by LLVM, whose texts and bytes",
        "other tests compare.",
        "",
        f"{total} instructions generated from the table, {INSTRUCTIONS_A_FORM} a form: {agreed} alike, "
        f"{total - agreed} not. {len(right)} of {len(found)} forms are without a difference.",
        "",
        "Two habits are not counted as differences: offsets and immediates are printed unsigned in their own width",
        "(`[r1+0xfff8]` is -8), and instructions that write r10 are refused, which we leave to the verifier.",
        "",
        "| form | capstone |",
        "|---|---|",
    ]
    lines += [f"| {name} | {', '.join(_describe(counts))} |" for name, counts in wrong.items()]
    return "\n".join(lines) + "\n"


def _describe(counts: Counter[str]) -> list[str]:
    return [what if len(counts) == 1 else f"{count} {what}" for what, count in sorted(counts.items())]


def test_capstone_agrees_except_for_its_published_blind_spots() -> None:
    if not capstone.__version__.startswith("5.0"):
        pytest.skip(f"the page is about capstone 5.0, installed is {capstone.__version__}")
    assert PAGE.read_text() == render(), "docs/capstone.md is stale: run python -m tests.asm.test_asm_capstone"


def test_the_plain_instruction_set_is_free_of_differences() -> None:
    """What capstone has known for years, it reads as we do: a difference there would be our bug."""
    plain = (Kind.NEG, Kind.JA, Kind.EXIT, Kind.LDX, Kind.ST, Kind.STX, Kind.LD_ABS, Kind.LD_IND, Kind.CALL_HELPER)
    found = outcomes()
    for form in FORMS:
        is_plain = form.kind in plain or (form.kind is Kind.JUMP and form.width == 64)
        is_plain = is_plain or (form.kind is Kind.ALU and form.operation not in ("sdiv", "smod"))
        if is_plain:
            assert set(found[title(form)]) == {"agrees"}, form


def test_capstone_refuses_every_write_to_the_frame_pointer() -> None:
    disassembler = capstone.Cs(capstone.CS_ARCH_BPF, capstone.CS_MODE_BPF_EXTENDED | capstone.CS_MODE_LITTLE_ENDIAN)
    for form in FORMS:
        if form.kind in (Kind.ALU, Kind.LDX):
            data = encode([Insn(form.code, 10, off=form.off.low if form.off.is_fixed else 0)])
            assert list(disassembler.disasm(data, 0)) == []


def test_the_forms_have_titles_of_their_own() -> None:
    assert len({title(form) for form in FORMS}) == len(FORMS)
    assert all(form_of(insn) in FORMS for insn in some_instructions(1, 100))


if __name__ == "__main__":
    PAGE.write_text(render())
