"""Instructions to text, against what the kernel and LLVM print for the shared data set."""

import json
import lzma
from pathlib import Path

import pytest

from actplane.asm import decode
from actplane.asm.disasm import format_insn

DATA = Path(__file__).parents[3] / "shared/data/isa-instructions.jsonl.xz"


def valid_rows():
    if not DATA.exists():
        pytest.skip(f"the shared data set is not at {DATA.name}")
    for line in lzma.decompress(DATA.read_bytes()).splitlines():
        row = json.loads(line)
        if row["llvm_reassembles"] and row["dst"] <= 10 and row["src"] <= 10:
            yield row


def test_llvm_text():
    wrong = []
    for row in valid_rows():
        text = format_insn(decode(bytes.fromhex(row["hex"]))[0], "llvm")
        if text != row["llvm"]:
            wrong.append((row["hex"], text, row["llvm"]))
    assert not wrong


def test_verifier_text():
    wrong = []
    for row in valid_rows():
        text = format_insn(decode(bytes.fromhex(row["hex"]))[0], "verifier")
        if text != row["kernel"]:
            wrong.append((row["hex"], text, row["kernel"]))
    # The kernel's printer takes callx for a call of helper 0.
    assert [item for item in wrong if "callx" not in item[1]] == []
