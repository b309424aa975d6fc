"""Numbered cases: what generated programs taught the mirror about kernels, and the page that lists them."""

from __future__ import annotations

import json

import pytest

from actplane.asm.assembler import assemble_object
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.verifier import verify
from actplane.verifier.tables.profiles import profile_of
from tests.verifier import publish

MAP = ".map m array key=4 value=8 max_entries=1\n"
SAFE = ""
"""Where a refusal's id is expected: accepted."""

CASES: list[tuple[int, str, str, dict[str, str]]] = [
    (
        2,
        "socket_filter",
        "r0 = *(u32 *)(r1 +0)\nr0 /= 1000\nif r0 > 4294967 goto bad\nr0 = 0\nexit\nbad:\nr0 = r9\nexit",
        {"6.18": "uninitialized-register", "7.2": SAFE},
    ),
    (
        5,
        "socket_filter",
        "call bpf_get_prandom_u32\nr7 = 0\nif r7 & r0 goto bad\nr0 = 0\nexit\nbad:\nr0 = r9\nexit",
        {"6.1": "uninitialized-register", "6.12": SAFE, "6.18": SAFE, "7.2": SAFE},
    ),
    (
        6,
        "socket_filter",
        "call bpf_get_prandom_u32\nif r0 <= r0 goto good\nr0 = r9\ngood:\nr0 = 0\nexit",
        {"6.1": "uninitialized-register", "6.18": "uninitialized-register", "7.2": SAFE},
    ),
    (
        7,
        "socket_filter",
        "call bpf_get_prandom_u32\nr6 = r0\ncall bpf_get_prandom_u32\nr0 &= 7\nif r6 < r0 goto small\nr0 = 0\nexit\n"
        "small:\nif r6 > 7 goto bad\nr0 = 0\nexit\nbad:\nr0 = r9\nexit",
        {"5.10": "uninitialized-register", "6.1": "uninitialized-register", "6.12": SAFE, "7.2": SAFE},
    ),
    (
        8,
        "socket_filter",
        "r1 = map[m][0]+0\nif w1 != 0 goto good\nr0 = r9\ngood:\nr0 = 0\nexit",
        {"5.10": SAFE, "6.18": SAFE},
    ),
    (
        11,
        "socket_filter",
        "r2 = subprog[f]\nr3 = 0\nr4 = 0\ncall bpf_loop\nr0 = 0\nexit\nf:\nr0 = 0\nexit",
        {"6.1": "argument-type", "6.18": "argument-type"},
    ),
    (
        12,
        "socket_filter",
        "r0 = 7\nr0 s/= 2\nexit",
        {"5.10": "bad-instruction", "6.1": "bad-instruction", "6.12": SAFE},
    ),
    (
        13,
        "socket_filter",
        "*(u64 *)(r10 -16) = 0\nr0 = *(u64 *)(r10 -8)\nr0 = 0\nexit",
        {"5.10": SAFE, "6.1": SAFE, "6.12": SAFE},
    ),
    (
        13,
        "socket_filter",
        "*(u64 *)(r10 -8) = 0\nr0 = *(u64 *)(r10 -16)\nr0 = 0\nexit",
        {"5.10": "stack-uninitialized", "6.1": "stack-uninitialized", "6.12": SAFE},
    ),
    (
        15,
        "socket_filter",
        "call bpf_get_prandom_u32\nif w0 s> 0 goto good\nif r0 != 7 goto good\nr0 = r9\ngood:\nr0 = 0\nexit",
        {"6.1": "uninitialized-register", "6.18": SAFE, "7.2": SAFE},
    ),
]


@pytest.mark.parametrize(("number", "kind", "text", "answers"), CASES)
def test_lesson(number: int, kind: str, text: str, answers: dict[str, str]) -> None:
    found = assemble_object(f"{MAP}.prog main {kind}\n{text}\n", name=f"lesson {number}")
    maps = {spec.name: spec for spec in found.maps}
    got = {}
    for kernel in answers:
        refusal = verify(found.programs[0], maps, profile=profile_of(kernel)).refusal
        got[kernel] = refusal.id if refusal is not None else SAFE
    assert got == answers


def test_registers_of_a_task_are_not_trusted_to_be_there() -> None:
    """Case 16."""
    try:
        types = Btf.vmlinux()
    except ActplaneError as error:
        pytest.skip(f"needs the types of a kernel: {error}")
    text = (
        ".prog main raw_tracepoint\ncall bpf_get_current_task_btf\nr1 = r0\ncall bpf_task_pt_regs\n"
        "if r0 != 0 goto good\nr0 = r9\ngood:\nr0 = 0\nexit\n"
    )
    (program,) = assemble_object(text, name="lesson 16").programs
    refusal = verify(program, {}, types).refusal
    assert refusal is not None
    assert refusal.id == "uninitialized-register"


@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12", "6.18", "7.2"])
def test_a_number_stays_spilled_beside_what_a_helper_reads(kernel: str) -> None:
    # Older kernels take what a helper reads for overwritten.
    text = (
        "call bpf_get_prandom_u32\n*(u32 *)(r10 -4) = 0\n*(u32 *)(r10 -8) = r0\nr1 = map[m]\nr2 = r10\nr2 += -4\n"
        "call bpf_map_lookup_elem\nr0 = *(u32 *)(r10 -8)\nexit\n"
    )
    found = assemble_object(f".map m hash key=4 value=8 max_entries=1\n.prog p socket_filter\n{text}", name="spill")
    report = verify(found.programs[0], {spec.name: spec for spec in found.maps}, profile=profile_of(kernel))
    assert report.is_accepted, str(report)


def test_page_has_the_published_numbers() -> None:
    page = publish.PAGE.read_text()
    assert publish.page_of(page, json.loads(publish.NUMBERS.read_text())) == page


def test_lessons_are_on_the_page() -> None:
    page = publish.PAGE.read_text()
    assert all(f"\n{number}. " in page for number, *_ in CASES)
