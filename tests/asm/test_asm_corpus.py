"""The assembler on the programs of the verifier's own tests, and on what six kernels logged about them."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from actplane.asm import Insn, Kfunc, MapFd, assemble, decode, disassemble, encode, form_of
from actplane.asm.isa import Kind
from actplane.errors import DecodeError

ARCHIVE = Path(__file__).parents[3] / "shared/data/verifier-cases.tar.xz"
LOG_LINE = re.compile(r"\s*(?P<slot>\d+): \((?P<code>[0-9a-f]{2})\)")

# Kernels that print the instructions of v4 as those that came before with the same code.
BEFORE_V4 = ("5.10.", "6.1.")


@pytest.fixture(scope="module")
def cases() -> list[dict]:
    if not ARCHIVE.exists():
        pytest.skip(f"the shared data set {ARCHIVE.name} is not there")
    with tarfile.open(ARCHIVE) as archive:
        name = next(name for name in archive.getnames() if name.endswith("cases.jsonl"))
        found = archive.extractfile(name)
        assert found is not None
        return [case for line in found if (case := json.loads(line)).get("insns_hex")]


@pytest.mark.no_cover  # a sweep: several times as long when measured
def test_every_program_survives_bytes_and_text_or_no_kernel_takes_it(cases: list[dict]) -> None:
    exact = 0
    for case in cases:
        data = bytes.fromhex(case["insns_hex"])
        try:
            insns = decode(data)
        except DecodeError:
            verdicts = {kernel["verdict"] for kernel in case["kernel"].values()}
            assert verdicts <= {"reject", "setup_error"}, case["id"]
            continue
        assert encode(insns) == data
        assert list(assemble(disassemble(insns)).insns) == insns
        exact += 1
    assert exact > 2_800


def test_every_line_of_every_log_is_the_instruction_it_is_about(cases: list[dict]) -> None:
    seen: set[tuple[str, Insn]] = set()
    for case in cases:
        at_slot = slots_of(bytes.fromhex(case["insns_hex"]))
        for release, kernel in case["kernel"].items():
            # The last line of a log that filled its buffer may be cut.
            for line in (kernel.get("log_tail") or [])[:-1]:
                found = LOG_LINE.match(line)
                insn = at_slot.get(int(found["slot"])) if found else None
                if insn is None or found is None or (line, insn) in seen:
                    continue
                seen.add((line, insn))
                (read,) = assemble(f"0: {line[found.start('code') - 1 :]}").insns
                assert agree(read, insn, release), f"{line} of {insn} is read as {read}"
    assert len(seen) > 2_000


def slots_of(data: bytes) -> dict[int, Insn]:
    try:
        insns = decode(data)
    except DecodeError:
        return {}
    found, slot = {}, 0
    for insn in insns:
        found[slot] = insn
        slot += insn.slots
    return found


def agree(read: Insn, insn: Insn, release: str) -> bool:
    """Whether a line says all of an instruction that a log says at all."""
    kind = form_of(insn).kind
    if kind is Kind.LD_IMM64 and insn.src:
        # The address of the map, by which it is known, or its name.
        return read.dst == insn.dst and (read.src == 0 or isinstance(read.symbol, MapFd) or read.symbol is not None)
    if kind is Kind.CALL_KFUNC:
        is_old = release.startswith(BEFORE_V4)
        return is_old or isinstance(read.symbol, Kfunc) or (read.src, read.imm) == (insn.src, insn.imm)
    if release.startswith(BEFORE_V4) and insn.off and read.code == insn.code:
        return (read.dst, read.src, read.imm) == (insn.dst, insn.src, insn.imm)
    # Linux 7.2 makes a jump whose both ways are the same, or whose outcome is known, into a `goto`.
    return read == insn or (release.startswith("7.2") and kind is Kind.JUMP and form_of(read).kind is Kind.JA)
