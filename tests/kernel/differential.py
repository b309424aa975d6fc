"""
Give generated programs to the mirror and to the running kernel, and compare the verdicts.

    python -m tests.kernel.differential [--count N] [--seed N] [--show N]

Prints a table of agreement for each kind of program, the times of both, and what they disagree on.
"""

from __future__ import annotations

import argparse
import os
import platform
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from actplane.asm.insn import Insn, MapFd, MapValue
from actplane.asm.program import Program
from actplane.errors import KernelError
from actplane.loader.attributes import ProgLoad
from actplane.loader.btf import Btf
from actplane.loader.maps import Map
from actplane.loader.programs import hook_id
from actplane.loader.syscall import bpf
from actplane.verifier import KernelProfile, Report, profile_of, verify
from tests.verifier.program_grammar import MAPS, programs

LOG_BYTES = 1 << 16


@dataclass(frozen=True)
class Verdict:
    """What the kernel said of one program."""

    is_accepted: bool
    errno: int
    seconds: float


@contextmanager
def created_maps() -> Iterator[dict[str, Map]]:
    """The maps that generated programs refer to, in this kernel."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(Map.create(spec)) for name, spec in MAPS.items()}


def raw_bytes(insns: tuple[Insn, ...], maps: Mapping[str, Map]) -> bytes:
    """Encode without any check, so that bad instructions reach the kernel too."""
    out = bytearray()
    for insn in insns:
        low, high = insn.imm & 0xFFFFFFFF, insn.imm >> 32 & 0xFFFFFFFF
        if isinstance(insn.symbol, MapFd):
            low, high = maps[insn.symbol.name].fd, 0
        elif isinstance(insn.symbol, MapValue):
            low, high = maps[insn.symbol.name].fd, insn.symbol.offset_bytes
        out += struct.pack("<BBhI", insn.code, insn.src << 4 | insn.dst, insn.off, low)
        if insn.slots == 2:
            out += struct.pack("<BBhI", 0, 0, 0, high)
    return bytes(out)


def ask_kernel(program: Program, maps: Mapping[str, Map], btf: Btf) -> Verdict:
    """Load a program, close it again, and return the verdict."""
    data = raw_bytes(program.insns, maps)
    attr = ProgLoad(
        prog_type=program.prog_type, insns=data, insn_cnt=len(data) // 8, license=program.license.encode() + b"\0"
    )
    if program.attach_type is not None:
        attr.set("expected_attach_type", program.attach_type)
    hook = hook_id(program, btf)
    if hook is not None:
        attr.set("attach_btf_id", hook)
    started = time.perf_counter()
    try:
        fd = bpf(attr)
    except KernelError as error:
        return Verdict(False, error.errno, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    os.close(fd)
    return Verdict(True, 0, seconds)


def running_profile() -> KernelProfile:
    """The profile of the running kernel."""
    return profile_of(platform.release())


@dataclass(frozen=True)
class Case:
    """One program with both answers."""

    number: int
    program: Program
    report: Report
    verdict: Verdict

    @property
    def agrees(self) -> bool:
        return self.report.is_accepted == self.verdict.is_accepted


def compare(seed: int, count: int) -> Iterator[Case]:
    """Yield every generated program with the answers of the mirror and of the kernel."""
    btf, profile = Btf.vmlinux(), running_profile()
    with created_maps() as maps:
        for number, program in enumerate(programs(seed, count)):
            report = verify(program, MAPS, btf, profile=profile)
            yield Case(number, program, report, ask_kernel(program, maps, btf))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long, whatever the count")
    parser.add_argument("--show", type=int, default=5, help="how many disagreements to print in full")
    options = parser.parse_args()
    table: Counter[tuple[str, bool, bool]] = Counter()
    causes: Counter[str] = Counter()
    mirror_seconds, kernel_seconds = [], []
    shown = 0
    started = time.monotonic()
    for case in compare(options.seed, options.count):
        if time.monotonic() - started > options.seconds:
            break
        table[case.program.prog_type.name, case.verdict.is_accepted, case.report.is_accepted] += 1
        mirror_seconds.append(case.report.statistics.seconds)
        kernel_seconds.append(case.verdict.seconds)
        if case.agrees:
            continue
        refusal = case.report.refusal
        causes[
            f"mirror refuses: {refusal.id}" if refusal else f"mirror accepts, kernel errno {case.verdict.errno}"
        ] += 1
        if shown < options.show:
            shown += 1
            _show(case)
    for name in sorted({key[0] for key in table}):
        row = [table[name, kernel, mirror] for kernel in (True, False) for mirror in (True, False)]
        print(
            f"{name:34} both accept {row[0]:6}  kernel only {row[1]:4}  mirror only {row[2]:4}  both refuse {row[3]:6}"
        )
    for cause, count in causes.most_common(20):
        print(f"{count:6}  {cause}")
    for who, seconds in (("mirror", mirror_seconds), ("kernel", kernel_seconds)):
        seconds.sort()
        middle, ninety = seconds[len(seconds) // 2], seconds[len(seconds) * 9 // 10]
        print(f"{who}: median {middle * 1e6:.0f} us, p90 {ninety * 1e6:.0f} us, max {seconds[-1] * 1e3:.1f} ms")
    return 0


def _show(case: Case) -> None:
    from actplane.asm import disassemble
    from actplane.errors import EncodeError

    print(f"--- program {case.number}, {case.program.prog_type.name}: kernel {case.verdict}, mirror {case.report}")
    slot = 0
    for insn in case.program.insns:
        try:
            text = disassemble([insn])
        except EncodeError:
            text = repr(insn)
        print(f"  {slot:3}: {text}")
        slot += insn.slots


if __name__ == "__main__":
    sys.exit(main())
