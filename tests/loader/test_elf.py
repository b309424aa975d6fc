"""Objects that clang made: read, linked for a kernel, and judged. How they were built: objects/build.sh."""

from __future__ import annotations

from pathlib import Path

import pytest

from actplane.asm.insn import MapFd, MapValue, Unresolved
from actplane.asm.program import Program
from actplane.asm.uapi import AttachType, MapType, ProgType
from actplane.loader.btf_types import Linkage
from actplane.loader.elf.objects import LinkedObject, read_elf
from actplane.loader.elf.sections import hook_of

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


def test_maps_of_old_objects_are_found_in_their_sections():
    linked = read("older")
    maps = [
        (spec.name, spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags)
        for spec in linked.object.maps
    ]
    assert maps == [
        ("numbers", MapType.BPF_MAP_TYPE_ARRAY, 4, 8, 16, 0),
        ("names", MapType.BPF_MAP_TYPE_HASH, 8, 32, 100, 1),
        ("events", MapType.BPF_MAP_TYPE_PERF_EVENT_ARRAY, 4, 4, 0, 0),
    ]
    named = [insn.symbol for insn in program(linked, "counter").insns if insn.symbol is not None]
    assert named == [MapFd("numbers"), MapFd("names"), MapFd("events")]


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
    functions = [types.type_at(each) for each in linked.function_types["first"].values()]
    linkages = {function.name: Linkage(function.linkage).name.removeprefix("BTF_FUNC_") for function in functions}
    assert linkages == {"first": "GLOBAL", "add": "GLOBAL", "twice": "STATIC", "hidden_one": "STATIC"}


def test_the_function_that_catches_exceptions_follows_though_nothing_calls_it():
    linked = read("exceptions")
    assert list(program(linked, "throws").functions.values()) == ["caught"]
    assert not program(linked, "throws_alone").functions


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


@pytest.mark.parametrize(
    ("section", "kind", "attach", "target", "is_sleepable"),
    [
        ("lsm.s/file_open", "LSM", "LSM_MAC", "file_open", True),
        ("lsm_cgroup/socket_bind", "LSM", "LSM_CGROUP", "socket_bind", False),
        ("fentry/do_exit", "TRACING", "TRACE_FENTRY", "do_exit", False),
        ("fmod_ret.s/security_file_open", "TRACING", "MODIFY_RETURN", "security_file_open", True),
        ("iter/task", "TRACING", "TRACE_ITER", "task", False),
        ("tp/syscalls/sys_enter_execve", "TRACEPOINT", None, "syscalls/sys_enter_execve", False),
        ("kprobe", "KPROBE", None, None, False),
        ("uprobe.multi.s//bin/sh:main", "KPROBE", "TRACE_UPROBE_MULTI", "/bin/sh:main", True),
        ("cgroup/connect4", "CGROUP_SOCK_ADDR", "CGROUP_INET4_CONNECT", None, False),
        ("cgroup_skb/egress", "CGROUP_SKB", "CGROUP_INET_EGRESS", None, False),
        ("sk_reuseport/migrate", "SK_REUSEPORT", "SK_REUSEPORT_SELECT_OR_MIGRATE", None, False),
        ("syscall", "SYSCALL", None, None, True),
        ("struct_ops.s/init", "STRUCT_OPS", None, "init", True),
        ("?xdp.frags/devmap", "XDP", "XDP_DEVMAP", None, False),
        ("xdp/filter/first", "XDP", "XDP", None, False),
        ("classifier/ingress", "SCHED_CLS", None, None, False),
    ],
)
def test_every_kind_of_section(section: str, kind: str, attach: str | None, target: str | None, is_sleepable: bool):
    found = hook_of(section)
    assert found is not None
    assert found.prog_type.name == f"BPF_PROG_TYPE_{kind}"
    assert found.attach_type == (None if attach is None else AttachType[f"BPF_{attach}"])
    assert (found.attach_to, found.is_sleepable) == (target, is_sleepable)


@pytest.mark.parametrize("section", ["", "xdpfilter", "my/xdp", ".text", "cgroup", "lsmx/file_open"])
def test_sections_that_say_nothing(section: str):
    assert hook_of(section) is None


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("constant", "tcp_congestion_ops.ssthresh"),
        ("nothing", "tcp_congestion_ops.cong_avoid"),
        ("alone", "alone"),  # no variable says what it implements, only the name of its section
    ],
)
def test_struct_ops_programs_implement_members_of_structs(name: str, target: str):
    found = program(read("struct_ops"), name)
    assert (found.prog_type, found.attach_to) == (ProgType.BPF_PROG_TYPE_STRUCT_OPS, target)


def test_without_a_kernel_fields_stay_as_compiled():
    assert not any(isinstance(insn.symbol, Unresolved) for insn in program(read("core"), "unguarded").insns)
