"""Bytes against LLVM's assembler, for every form that Debian's LLVM 14 can assemble."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from actplane.asm import Insn, assemble, disassemble, encode, form_of
from actplane.asm.isa import FORMS, Form, Kind
from tests.asm.generated import some_instructions

LLVM_MC = next(filter(None, map(shutil.which, ("llvm-mc", "llvm-mc-14", "llvm-mc-15", "llvm-mc-16"))), None)
COUNT = 20_000

# What LLVM 14 does not know at all: v4 of the instruction set, calls that are not of helpers, what clang
# never emitted until then (mod, jset, stores of numbers).
TOO_NEW_KINDS = (
    *(Kind.MOVSX, Kind.LDXSX, Kind.GOTOL, Kind.GOTOX, Kind.MAY_GOTO, Kind.ADDR_SPACE_CAST, Kind.CALLX),
    *(Kind.LOAD_ACQUIRE, Kind.STORE_RELEASE, Kind.CALL_SUBPROGRAM, Kind.CALL_KFUNC, Kind.ST),
)
TOO_NEW_OPERATIONS = ("sdiv", "smod", "bswap", "mod", "jset")


def is_known(form: Form) -> bool:
    if form.kind is Kind.LD_IMM64:
        return form.name == "ld_imm64"
    return form.kind not in TOO_NEW_KINDS and form.operation not in TOO_NEW_OPERATIONS


KNOWN = tuple(form for form in FORMS if is_known(form))
PARSED = tuple(form for form in KNOWN if not form.is_fetch)
"""What its assembler reads; its disassembler prints atomics that fetch, which its assembler cannot parse."""


def generated(seed: int, forms: tuple[Form, ...]) -> list[Insn]:
    # It has no index for packet loads, and takes a negative number of a helper for a distance.
    return [
        insn
        for insn in some_instructions(seed, COUNT, forms)
        if not (form_of(insn).kind in (Kind.LD_IND, Kind.CALL_HELPER) and insn.imm)
    ]


def llvm_mc(arguments: list[str], text: str) -> str:
    command = [str(LLVM_MC), "-triple=bpfel", "-mcpu=v3", "-mattr=+alu32", *arguments]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    return result.stdout


@pytest.mark.skipif(LLVM_MC is None, reason="llvm-mc is not installed")
def test_llvm_assembles_our_text_to_our_bytes_and_we_read_what_it_prints() -> None:
    insns = generated(14, PARSED)
    printed = llvm_mc(["-show-encoding"], disassemble(insns, "llvm"))
    encodings = re.findall(r"# encoding: \[(.*)\]", printed)
    assert len(encodings) == len(insns) > 0.9 * COUNT
    ours = [encode([insn]) for insn in insns]
    theirs = [bytes(int(byte, 16) for byte in encoding.split(",")) for encoding in encodings]
    assert [pair for pair in zip(insns, ours, theirs, strict=True) if pair[1] != pair[2]] == []
    assert list(assemble(printed).insns) == insns


@pytest.mark.skipif(LLVM_MC is None, reason="llvm-mc is not installed")
def test_we_read_what_llvm_makes_of_our_bytes() -> None:
    insns = generated(41, KNOWN)
    lines = [" ".join(f"{byte:#04x}" for byte in encode([insn])) for insn in insns]
    printed = llvm_mc(["-disassemble"], "\n".join(lines))
    assert list(assemble(printed).insns) == insns


def test_most_forms_are_known_to_llvm_14() -> None:
    assert len(PARSED) > 100
    assert len(KNOWN) > 120
