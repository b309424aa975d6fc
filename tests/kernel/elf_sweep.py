"""
Objects of any origin, read three ways: by us, by libbpf, and by the kernel.

    python -m tests.kernel.elf_sweep OBJECT...

For each program: whether our instructions are libbpf's, byte for byte, and whether the mirror's verdict is
the kernel's. Prints a line for each that differs, and the sums.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from actplane.asm.encoding import encode
from actplane.asm.insn import Kfunc, MapFd, MapValue, Unresolved
from actplane.asm.program import Program
from actplane.asm.uapi import ProgType
from actplane.cli.elf_input import own_types
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.loader.btf_types import Kind
from actplane.loader.elf.externs import Target, running_addresses, running_config
from actplane.loader.elf.objects import read_elf
from actplane.runtime.host_profile import host_profile
from actplane.verifier import Options, verify
from tests.kernel.libbpf import Loaded, library, load_each

_NEVER_LOADED = "BPF_PROG_TYPE_LWT"
_SLOT_BYTES = 8
_NO_FUNCTION = bytes.fromhex("8520000000000000")


@dataclass(frozen=True)
class Finding:
    """
    What came of one program. None is: could not be compared.

    Shape:  `processed` and `seconds` are what the verification cost, of the mirror and then of the kernel.
    """

    object: str
    program: str
    is_same_code: bool | None
    mirror: bool | None
    kernel: bool | None
    note: str = ""
    processed: tuple[int, int] = (0, 0)
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def is_disagreement(self) -> bool:
        verdicts = {self.mirror, self.kernel} - {None}
        return self.is_same_code is False or len(verdicts) > 1


def running_target() -> Target:
    """This machine's kernel, as an object is linked for it."""
    numbers = [int(number) for number in re.findall(r"\d+", platform.release())[:3]]
    major, minor, patch = (*numbers, 0, 0)[:3]
    return Target(Btf.vmlinux(), (major, minor, patch), running_config(), running_addresses())


def compare(path: Path, target: Target) -> Iterator[Finding]:
    """Compare every program of an object that libbpf reads too."""
    found = read_elf(path.read_bytes(), path.name)
    for name, theirs in load_each(str(path), found.program_names):
        try:
            linked = found.link(target, only=name)
        except ActplaneError as error:
            is_alone = theirs is not None and theirs.is_relocated
            yield Finding(path.name, name, False if is_alone else None, None, None, str(error).splitlines()[0])
            continue
        (program,) = linked.object.programs
        if theirs is None or program.prog_type.name.startswith(_NEVER_LOADED):
            continue
        if program.prog_type is ProgType.BPF_PROG_TYPE_UNSPEC or not theirs.is_relocated:
            yield Finding(path.name, name, None, None, None, "; ".join(theirs.said[-2:]))
            continue
        maps = {spec.name: spec for spec in linked.object.maps}
        report = verify(
            program,
            maps,
            target.btf,
            own=own_types(linked, name),
            profile=host_profile(),
            options=Options(),
        )
        kernel = None if theirs.error and not theirs.log.strip() else not theirs.error
        difference = _difference(program, theirs, target.btf)
        note = difference or ""
        if not note and kernel is not None and kernel != report.is_accepted:
            note = str(report.refusal) if report.refusal is not None else "\n".join(theirs.log.splitlines()[-3:])
        cost = report.statistics
        yield Finding(
            path.name,
            name,
            difference is None,
            report.is_accepted,
            kernel,
            note,
            (cost.insns_processed, theirs.processed),
            (cost.seconds, theirs.seconds),
        )


def _difference(program: Program, theirs: Loaded, btf: Btf) -> str | None:
    """Say where our instructions differ from libbpf's, whose maps and functions are numbers already."""
    if len(theirs.code) != program.slots * _SLOT_BYTES:
        return f"{program.slots} slots, libbpf has {len(theirs.code) // _SLOT_BYTES}"
    slot = 0
    for insn in program.insns:
        ours = encode([replace(insn, symbol=None)])
        other = theirs.code[slot * _SLOT_BYTES : (slot + insn.slots) * _SLOT_BYTES]
        number = int.from_bytes(other[4:8], "little")
        match insn.symbol:
            case MapFd(name) | MapValue(name):
                # libbpf calls .rodata after the object; a map that is closed again has no number.
                known = theirs.maps.get(number, name)
                is_same = ours[:4] + ours[8:] == other[:4] + other[8:] and known.endswith(name)
            case Kfunc(name):
                is_same = ours[:2] == other[:2] and number == btf.id_of(Kind.BTF_KIND_FUNC, name)
            case Unresolved():
                # Before 1.2, libbpf left a weak function that is missing a call of the kernel function 0.
                is_same = ours == other or other == _NO_FUNCTION
            case _:
                is_same = ours == other
        if not is_same:
            return f"slot {slot}: {ours.hex()} ({insn}), libbpf has {other.hex()}"
        slot += insn.slots
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare what we, libbpf and the kernel make of objects.")
    parser.add_argument("objects", nargs="+", type=Path, metavar="OBJECT")
    options = parser.parse_args()
    if library() is None:
        sys.exit("libbpf 1.0 or newer is not installed")
    target = running_target()
    counts: Counter[str] = Counter()
    accepted: list[Finding] = []
    for path in options.objects:
        try:
            findings = list(compare(path, target))
        except ActplaneError as error:
            counts["objects that we refuse"] += 1
            print(f"{path.name}: {str(error).splitlines()[0]}")
            continue
        for each in findings:
            counts["programs"] += 1
            counts[f"same code: {each.is_same_code}"] += 1
            counts[f"mirror {each.mirror}, kernel {each.kernel}"] += 1
            if each.mirror and each.kernel and each.processed[1]:
                accepted.append(each)
            if each.is_disagreement:
                print(f"{each.object} {each.program}: {each.note}")
    for what, count in sorted(counts.items()):
        print(f"{count:6} {what}")
    if accepted:
        _print_costs(accepted)
    return 0


def _print_costs(accepted: list[Finding]) -> None:
    ratios = sorted(ours / theirs for ours, theirs in (each.processed for each in accepted))
    print(f"{sum(ratio == 1 for ratio in ratios):6} of {len(ratios)} accepted by both: as many instructions processed")
    print(f"       mirror's instructions for each of the kernel's: {_spread(ratios, '.3f')}")
    for index, who in enumerate(("mirror", "kernel")):
        print(f"       {who}, ms: {_spread(sorted(each.seconds[index] * 1000 for each in accepted), '.2f')}")


def _spread(values: list[float], form: str) -> str:
    median, ninth, most = values[len(values) // 2], values[len(values) * 9 // 10], values[-1]
    return f"median {median:{form}}, p90 {ninth:{form}}, max {most:{form}}"


if __name__ == "__main__":
    sys.exit(main())
