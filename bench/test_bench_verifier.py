"""
How long the mirror takes: the programs of a small and of a large policy, a chain of branches, and real
programs beside the running kernel.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from actplane.asm.insn import Insn, MapValue
from actplane.asm.program import MapSpec, Program
from actplane.asm.uapi import MapType, ProgType
from actplane.codegen.compile import compile_policy
from actplane.codegen.tier import Tier
from actplane.dsl.compiler import compile_sources
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.loader.relocate import relocate
from actplane.source import Source
from actplane.verifier import verify
from bench import mirror_times
from tests.verifier import corpus


@pytest.fixture(scope="module")
def types() -> Btf:
    try:
        return Btf.vmlinux()
    except ActplaneError as error:
        pytest.skip(f"needs the types of a kernel: {error}")


def policy_of(rules: int) -> str:
    lines = ['source C = exec "**"']
    for i in range(rules):
        lines.append(f"rule r{i}:")
        lines.append(f'  block write file "/protected/dir{i}/**" if C because "kept"')
        lines.append(f'  kill exec "tool{i}" "push" if C because "reviewed"')
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("rules", [1, 32, 128])
def test_bench_policy_programs(benchmark: Any, types: Btf, rules: int) -> None:
    policy = compile_sources([Source("bench", policy_of(rules))], resolve=None).policy
    compiled = compile_policy(policy, Tier.LSM)
    maps = {spec.name: spec for spec in compiled.object.maps}
    program = relocate(next(p for p in compiled.object.programs if p.name == "bprm_check_security"), types)
    report = benchmark(verify, program, maps, types)
    report.require()


def test_bench_a_thousand_independent_branches(benchmark: Any) -> None:
    insns = [Insn(0x18, 6, 2, symbol=MapValue("data")), Insn(0xB7, 7)]
    for bit in range(1000):
        insns += [Insn(0x61, 1, 6, 4 * (bit % 64)), Insn(0x15, 1, 0, 1, 0), Insn(0x47, 7, imm=1 << bit % 31)]
    insns += [Insn(0x7B, 6, 7), Insn(0xB7, 0), Insn(0x95)]
    program = Program("branches", ProgType.BPF_PROG_TYPE_SOCKET_FILTER, tuple(insns))
    report = benchmark(verify, program, {"data": MapSpec("data", MapType.BPF_MAP_TYPE_ARRAY, 4, 256, 1)})
    report.require()
    assert report.statistics.insns_processed < 10 * len(insns)


EVERY = 30


def test_bench_real_programs_beside_the_kernel(benchmark: Any, types: Btf, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() or not corpus.ARCHIVE.exists():
        pytest.skip("needs root, and the corpus of programs beside the repository")
    cases = [case for case in list(corpus.cases())[::EVERY] if case.kind in corpus.OUR_TYPES]
    rows = benchmark.pedantic(lambda: list(mirror_times.measure(cases, types)), rounds=1)
    lines = mirror_times.table(f"every {EVERY}th program of the corpus", rows)
    benchmark.extra_info["table"] = lines
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert all((row.times_the_kernels or 0) <= 10 for row in rows)
