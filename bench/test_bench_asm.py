"""
How fast the assembler is, beside `struct` on the same bytes in the same run.

Every figure is printed as instructions (or lines) a second and as a ratio to `struct.pack` or
`struct.unpack` of the same slots, one call a slot. Time is the processor's, not the clock's, because
the machine is shared. "fresh" input does not repeat: every instruction and every line differs from
every other, so that no cache helps. "real" input is the instructions of the conformance and
verifier tests as they come, repeats and all.
"""

from __future__ import annotations

import json
import lzma
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actplane.asm import Insn, assemble, decode, disassemble, encode
from actplane.asm.isa import FORMS, Rule

pytestmark = pytest.mark.benchmark(timer=time.process_time, min_rounds=5, warmup=True)

COUNT = 100_000
DATA = Path(__file__).parents[2] / "shared/data/isa-instructions.jsonl.xz"

# What this is meant to reach on the machine it is developed on (two shared cores).
ENCODE, DECODE, ASSEMBLE = 1_000_000, 300_000, 100_000
IMPORT_SECONDS = 0.060


def fresh() -> list[Insn]:
    chance = random.Random(9669)
    found: dict[Insn, None] = {}

    def value(rule: Rule) -> int:
        return chance.choice(rule.values) if rule.values else chance.randint(rule.low, rule.high)

    # Forms without an immediate or an offset have too few members to be all different.
    wide = [form for form in FORMS if not form.imm.is_fixed]
    while len(found) < COUNT:
        form = chance.choice(wide)
        found[Insn(form.code, value(form.dst), value(form.src), value(form.off), value(form.imm))] = None
    return list(found)


def real() -> list[Insn]:
    if not DATA.exists():
        pytest.skip(f"the shared data set is not at {DATA.name}")
    insns: list[Insn] = []
    for line in lzma.decompress(DATA.read_bytes()).splitlines():
        row = json.loads(line)
        if row["llvm_reassembles"] and row["dst"] <= 10 and row["src"] <= 10:
            try:
                insns += decode(bytes.fromhex(row["hex"]))
            except ValueError:
                continue
    chance = random.Random(9669)
    return chance.choices(insns, k=COUNT)


@pytest.fixture(params=["fresh", "real"], scope="module")
def insns(request: pytest.FixtureRequest) -> list[Insn]:
    return fresh() if request.param == "fresh" else real()


def seconds_of(function, *arguments) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        function(*arguments)
        best = min(best, time.process_time() - start)
    return best


def pack(slots: list[tuple[int, int, int, int]]) -> None:
    for slot in slots:
        struct.pack("<BBhi", *slot)


def unpack(data: bytes) -> None:
    for at in range(0, len(data), 8):
        struct.unpack_from("<BBhi", data, at)


def report(benchmark, count: int, baseline: float, target: int, unit: str) -> None:
    best = benchmark.stats.stats.min
    rate = count / best
    benchmark.extra_info.update(rate=round(rate), unit=unit, times_struct=round(best / baseline, 2), target=target)
    times = f"{best / baseline:.1f} times the seconds of struct"
    print(f"\n{benchmark.name}: {rate:,.0f} {unit}/s, {times}, target {target:,}")
    assert rate >= target


def test_encode(benchmark, insns: list[Insn]) -> None:
    data = encode(insns)
    baseline = seconds_of(pack, list(struct.iter_unpack("<BBhi", data)))
    assert benchmark(encode, insns) == data
    report(benchmark, len(insns), baseline, ENCODE, "instructions")


def test_decode(benchmark, insns: list[Insn]) -> None:
    data = encode(insns)
    baseline = seconds_of(unpack, data)
    assert benchmark(decode, data) == insns
    report(benchmark, len(insns), baseline, DECODE, "instructions")


@pytest.mark.parametrize("dialect", ["kernel", "verifier", "ubpf"])
def test_assemble(benchmark, insns: list[Insn], dialect: str) -> None:
    if dialect == "verifier":
        # A log leaves out where a 64-bit immediate comes from, and says how each line is encoded.
        insns = [insn for insn in insns if insn.code not in (0x18, 0x8D) and not (insn.code == 0x85 and insn.src)]
    text = disassemble(insns, dialect)
    data = encode(insns)
    baseline = seconds_of(pack, list(struct.iter_unpack("<BBhi", data)))
    program = benchmark(assemble, text)
    assert encode(program.insns) == data
    report(benchmark, len(insns), baseline, ASSEMBLE, "lines")


def test_disassemble(benchmark, insns: list[Insn]) -> None:
    data = encode(insns)
    baseline = seconds_of(unpack, data)
    benchmark(disassemble, data)
    report(benchmark, len(insns), baseline, ASSEMBLE, "lines")


def test_import() -> None:
    """The seconds that `from actplane import asm` adds to starting Python, best of several."""
    code = "import time; start = time.process_time(); from actplane import asm; print(time.process_time() - start)"
    runs = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(10)]
    print(f"\nimport of actplane.asm: {min(runs) * 1000:.0f} ms, target {IMPORT_SECONDS * 1000:.0f} ms")
    assert min(runs) <= IMPORT_SECONDS
