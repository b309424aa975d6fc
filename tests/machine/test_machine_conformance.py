"""The conformance programs of the BPF community: expected results, and programs that must not run."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from actplane.asm.encoding import decode
from actplane.asm.machine import Machine
from actplane.errors import ActplaneError

DATA = Path(__file__).parents[3] / "shared" / "data" / "isa-programs.jsonl.xz"


def read_programs() -> list[dict]:
    if not DATA.exists():
        return []
    with lzma.open(DATA, "rt") as lines:
        return [json.loads(line) for line in lines]


PROGRAMS = read_programs()
EXPECTED = [row for row in PROGRAMS if row["kind"] != "negative" and row["expected_result_u64"]]
NEGATIVE = [row for row in PROGRAMS if row["kind"] == "negative" and row.get("raw_bytes_hex")]

pytestmark = pytest.mark.skipif(not PROGRAMS, reason="the conformance programs (../shared/data) are not here")


# The functions that uBPF's own test runner offers to programs, by their numbers there.


def gather_bytes(machine: Machine, a: int, b: int, c: int, d: int, e: int) -> int:
    return sum((byte & 0xFF) << shift for byte, shift in zip((a, b, c, d, e), (32, 24, 16, 8, 0), strict=True))


def memfrob(machine: Machine, address: int, size: int) -> int:
    machine.memory.write(address, bytes(byte ^ 42 for byte in machine.memory.read(address, size)))
    return address


def test_there_are_as_many_as_the_readme_says() -> None:
    assert len(PROGRAMS) == 237
    # Of the others three are to be assembled only, and six are texts that no assembler takes.
    assert (len(EXPECTED), len(NEGATIVE)) == (184, 44)


@pytest.mark.parametrize("row", EXPECTED, ids=lambda row: row["id"])
def test_program_gives_the_expected_result(row: dict) -> None:
    helpers = {0: gather_bytes, 1: memfrob} if row["suite"].startswith("ubpf") else {}
    machine = Machine(helpers=helpers)
    program = machine.load(decode(bytes.fromhex(row["raw_bytes_hex"])))
    memory = bytes.fromhex(row.get("mem_input_hex") or "")
    execution = program.start(machine.memory.add("input", memory).address if memory else 0)
    execution.registers[2] = len(memory)
    execution.run()
    assert execution.outcome().value == int(row["expected_result_u64"], 16)


@pytest.mark.no_cover  # one of them is a million instructions long
@pytest.mark.parametrize("row", NEGATIVE, ids=lambda row: row["id"])
def test_bad_program_is_refused(row: dict) -> None:
    """Refused when decoded, when loaded or when run; each with its reason, none by a Python error."""
    machine = Machine()
    memory = bytes.fromhex(row.get("mem_input_hex") or "")
    with pytest.raises(ActplaneError):
        machine.load(decode(bytes.fromhex(row["raw_bytes_hex"]))).run(memory)
