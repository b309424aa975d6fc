"""Objects that clang made: read, linked for a kernel, and judged. How they were built: objects/build.sh."""

from __future__ import annotations

from pathlib import Path

import pytest

from actplane.asm.insn import MapFd, MapValue, Unresolved
from actplane.asm.program import Program
from actplane.asm.uapi import AttachType, MapType, ProgType
from actplane.loader.elf import LinkedObject, read_elf

OBJECTS = Path(__file__).parent / "objects"


def read(name: str) -> LinkedObject:
    path = OBJECTS / f"{name}.bpf.o"
    return read_elf(path.read_bytes(), path.name).link()


def program(linked: LinkedObject, name: str) -> Program:
    return next(each for each in linked.object.programs if each.name == name)


def test_maps_have_what_their_definitions_say():
    maps = {spec.name: spec for spec in read("maps").object.maps}
    counters = maps["counters"]
    assert (counters.type, counters.key_size, counters.value_size, counters.max_entries) == (
        MapType.BPF_MAP_TYPE_HASH,
        4,
        16,
        1024,
    )
    # libbpf rounds a ring buffer up to a power of two of pages.
    assert maps["events"].max_entries == 8192
    assert (maps["jumps"].type, maps["jumps"].value_size) == (MapType.BPF_MAP_TYPE_PROG_ARRAY, 4)


def test_variables_are_arrays_with_their_contents():
    maps = {spec.name: spec for spec in read("maps").object.maps}
    assert maps[".rodata"].contents == b"\x0a\0\0\0hello\0"
    assert maps[".rodata"].is_frozen
    assert maps[".rodata"].flags == 0x80
    assert maps[".data.apart"].contents == b"\x09\0\0\0"
    assert (maps[".bss"].contents, maps[".bss"].value_size) == (None, 8)


def test_maps_in_maps_are_known():
    linked = read("maps")
    assert linked.inner_maps["outer"].max_entries == 4
    assert linked.types is not None
    assert linked.types.type_at(linked.map_values["counters"]).name == "value"


def test_instructions_name_maps_and_bytes_of_variables():
    entry = program(read("maps"), "entry")
    symbols = [insn.symbol for insn in entry.insns if insn.symbol is not None]
    assert symbols[:2] == [MapValue(".rodata", 0), MapFd("counters")]
    assert MapValue(".data", 4) in symbols
    assert entry.license == "Dual BSD/GPL"


def test_instructions_know_their_line_of_c():
    entry = program(read("maps"), "entry")
    span = entry.insns[1].span
    assert span is not None
    assert str(span).startswith("maps.bpf.c:")
    assert "u32 key = limit;" in span.source.line(span.line)


def test_called_functions_follow_the_program():
    linked = read("calls")
    assert list(program(linked, "first").functions.values()) == ["add", "twice", "hidden_one"]
    assert list(program(linked, "second").functions.values()) == ["each_number", "step", "weak_one"]
    # Hidden functions are verified with their callers, so a verifier must take them for static ones.
    types = linked.types
    assert types is not None
    names = {types.type_at(each).name for each in linked.function_types["first"].values()}
    assert names == {"first", "add", "twice"}


def test_a_call_ends_at_the_first_instruction_of_its_function():
    first = program(read("calls"), "first")
    slots = [sum(insn.slots for insn in first.insns[:index]) for index in range(len(first.insns))]
    called = [
        first.functions[slots.index(slot + 1 + insn.imm)]
        for slot, insn in zip(slots, first.insns, strict=True)
        if insn.code == 0x85 and insn.src == 1
    ]
    assert called == ["add", "hidden_one", "twice"]


@pytest.mark.parametrize(
    ("name", "kind", "attach", "target"),
    [
        ("first", ProgType.BPF_PROG_TYPE_XDP, AttachType.BPF_XDP, None),
        ("third", ProgType.BPF_PROG_TYPE_SCHED_CLS, None, None),
        ("unknown", ProgType.BPF_PROG_TYPE_UNSPEC, None, None),
    ],
)
def test_sections_say_what_programs_are(name: str, kind: ProgType, attach: AttachType | None, target: str | None):
    found = program(read("calls"), name)
    assert (found.prog_type, found.attach_type, found.attach_to) == (kind, attach, target)


def test_without_a_kernel_fields_stay_as_compiled():
    assert not any(isinstance(insn.symbol, Unresolved) for insn in program(read("core"), "unguarded").insns)
