"""
Objects of a compiler against the running kernel: what we make of them is what libbpf makes of them, the
mirror says what the kernel says, and our own loader gets them loaded.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from actplane.asm.insn import MapFd, MapValue
from actplane.asm.program import Object
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.loader.collection import Collection
from actplane.loader.elf.objects import read_elf
from tests.kernel.elf_sweep import compare, running_target
from tests.kernel.libbpf import library

OBJECTS = Path(__file__).parents[1] / "loader" / "objects"
LOADED = ["calls", "core", "kernel", "maps"]


@pytest.fixture
def btf() -> Btf:
    try:
        return Btf.vmlinux()
    except ActplaneError as error:
        pytest.skip(f"needs the types of a kernel: {error}")


@pytest.mark.usefixtures("btf")
@pytest.mark.parametrize("name", LOADED)
def test_programs_are_what_libbpf_makes_of_them(name: str):
    if library() is None:
        pytest.skip("needs libbpf 1.0 or newer")
    findings = list(compare(OBJECTS / f"{name}.bpf.o", running_target()))
    assert [each for each in findings if each.is_same_code is False] == []
    assert any(each.is_same_code for each in findings), findings


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("maps", "entry"),
        ("calls", "first"),
        ("calls", "second"),
        ("calls", "third"),
        ("core", "fields"),
        ("core", "types"),
        ("core", "enums"),
        ("core", "guarded"),
        ("core", "direct"),
    ],
)
def test_our_loader_loads_them(name: str, program: str, btf: Btf):
    path = OBJECTS / f"{name}.bpf.o"
    try:
        linked = read_elf(path.read_bytes(), path.name).link(running_target(), only=program)
    except ActplaneError as error:
        pytest.skip(f"needs a kernel with what the program names: {error}")
    (chosen,) = linked.object.programs
    used = {insn.symbol.name for insn in chosen.insns if isinstance(insn.symbol, MapFd | MapValue)}
    if used & set(linked.inner_maps):
        pytest.skip("needs maps of maps, which our loader does not create")
    maps = tuple(spec for spec in linked.object.maps if spec.name in used)
    with Collection.load(Object(maps, (chosen,)), btf) as loaded:
        assert loaded.programs[program].info().name == program
