"""What the mirror costs: counts beside the kernel's, loops without an end, budgets."""

from __future__ import annotations

import gc
import time

import pytest

from actplane.asm.assembler import assemble_object
from actplane.asm.insn import Insn
from actplane.asm.program import Program
from actplane.asm.uapi import ProgType
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.verifier import Options, Report, verify
from actplane.verifier.domains.scalar import FULL_BOUNDS, UNKNOWN, constant, make
from actplane.verifier.paths.values import ZERO
from tests.verifier import corpus

STOCK = "6.18.15+deb13-cloud-amd64"

EXACTLY = {
    # Programs of which the mirror processes exactly as many instructions as Linux 6.18 does.
    "linux-6.12-progs/loop6/trace_virtqueue_add_sgs",
    "linux-7.2-progs/loop2/while_true",
    "linux-7.2-progs/loop5/while_true",
}
MOST_TIMES_THE_KERNELS = 10


def judge(text: str, **options: float) -> Report:
    return verify(assemble_object(text, name="speed").programs[0], {}, options=Options(**options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def types() -> Btf:
    if not corpus.ARCHIVE.exists():
        pytest.skip("needs the corpus of programs beside the repository")
    try:
        return Btf.vmlinux()
    except ActplaneError as error:
        pytest.skip(f"needs the types of a kernel: {error}")


def test_counts_stay_near_the_kernels(types: Btf) -> None:
    counted = 0
    for case in list(corpus.cases())[::11]:
        truth = case.raw["kernel"].get(STOCK, {})
        if case.lacks_contents or case.processed > 20_000 or truth.get("verdict") != "accept":
            continue
        report = corpus.judge(case, types)
        if report is not None and report.is_accepted and truth["insns_processed"] > 50:
            counted += 1
            assert report.statistics.insns_processed <= MOST_TIMES_THE_KERNELS * truth["insns_processed"], case.id
    assert counted > 20


@pytest.mark.parametrize("id_", sorted(EXACTLY))
def test_some_counts_are_the_kernels(types: Btf, id_: str) -> None:
    case = next(case for case in corpus.cases() if case.id == id_)
    report = corpus.judge(case, types)
    assert report is not None
    truth = case.raw["kernel"][STOCK]
    assert report.statistics.insns_processed == truth["insns_processed"]
    assert report.statistics.total_states == truth["total_states"]


@pytest.mark.parametrize(
    "loop",
    [
        "r0 += 1\ngoto again",
        "r0 += 1\nif r0 > 7 goto other\ngoto again\nother:\nr0 = 0\ngoto again",
        "call bpf_get_prandom_u32\ngoto again",
    ],
)
def test_a_loop_without_a_way_out_is_refused_at_once(loop: str) -> None:
    report = judge(f".prog main socket_filter\nr0 = 0\nagain:\n{loop}")
    assert report.refusal is not None
    assert report.refusal.id == "endless-loop"
    assert report.statistics.insns_processed < 20


BOUNDED = ".prog main socket_filter\nr0 = 0\nagain:\nr0 += 1\nif r0 < 900000 goto again\nexit"


def test_a_budget_of_instructions_is_kept() -> None:
    report = judge(BOUNDED, budget_insns=5000)
    assert report.refusal is not None
    assert report.refusal.id == "budget-exhausted"
    assert report.statistics.insns_processed == 5001


def test_a_budget_of_time_is_kept() -> None:
    started = time.perf_counter()
    report = judge(BOUNDED, budget_seconds=0.1)
    assert report.refusal is not None
    assert report.refusal.id == "budget-exhausted"
    assert time.perf_counter() - started < 5


def test_the_collector_is_as_it_was() -> None:
    assert gc.isenabled()
    judge(BOUNDED, budget_insns=10)
    assert gc.isenabled()


@pytest.mark.parametrize("end", ["r0 = 0\nexit", "r0 = r3\nexit"])
def test_a_verification_leaves_nothing_to_the_collector(end: str) -> None:
    text = f".prog main socket_filter\ncall bpf_get_prandom_u32\nif r0 == 1 goto done\nr1 = r0\ndone:\n{end}"
    program = assemble_object(text, name="speed").programs[0]
    gc.collect()
    gc.disable()
    try:
        assert verify(program, {}).is_accepted == (end == "r0 = 0\nexit")
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_equal_instructions_are_refused_where_they_stand() -> None:
    report = judge(".prog main socket_filter\nr3 = 1\nr0 = r3\ncall bpf_get_prandom_u32\nr0 = r3\nexit")
    assert report.refusal is not None
    assert (report.refusal.id, report.refusal.slot) == ("uninitialized-register", 3)


def test_what_is_no_opcode_is_refused() -> None:
    insns = (Insn(0x18, 0, imm=5), Insn(0x118), Insn(0x95))
    report = verify(Program("speed", ProgType.BPF_PROG_TYPE_SOCKET_FILTER, insns), {})
    assert report.refusal is not None
    assert (report.refusal.id, report.refusal.slot) == ("bad-instruction", 2)


def test_ranges_that_modules_hold_are_found_again_after_much_is_forgotten() -> None:
    numbers = tuple(Insn(0x18, 0, imm=number << 20) for number in range(130_000))
    program = Program("speed", ProgType.BPF_PROG_TYPE_SOCKET_FILTER, (*numbers, Insn(0x95)))
    before = constant(1 << 20)
    assert verify(program, {}).is_accepted
    assert constant(0) is ZERO
    assert make(FULL_BOUNDS) is UNKNOWN
    assert constant(1 << 20) is not before
