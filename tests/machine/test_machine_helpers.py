"""Helpers and kfuncs one by one: called with numbers and addresses, judged by what they return and write."""

from __future__ import annotations

import errno
import struct

import pytest

from actplane import asm
from actplane.asm import R0, R1, R2, HelperId, MapSpec, MapType, Program, ProgType, Reg, Size
from actplane.asm.machine import Fault, LoadError, Machine, PerfEventArrayMap, RingBufferMap, Task
from actplane.asm.machine.formatting import format_text

MASK = (1 << 64) - 1
EXIT = asm.exit_()


def invoke(machine: Machine, function: str, *arguments: int, **options: object) -> int:
    """Call a helper (by its name in HelperId) or a kfunc with numbers; returns r0 as a signed number."""
    loads = [asm.ld_imm64(Reg(number), value & MASK) for number, value in enumerate(arguments, 1)]
    call = asm.call(HelperId[function]) if function in HelperId.__members__ else asm.call_kfunc(function)
    program = Program("call", options.pop("kind", ProgType.BPF_PROG_TYPE_SCHED_CLS), (*loads, call, EXIT))
    value = machine.load(program).run(**options).value
    return value - (1 << 64) if value >> 63 else value


def buffer(machine: Machine, size: int = 32, content: bytes = b"") -> int:
    return machine.memory.add("buffer", content.ljust(size, b"\0")).address


@pytest.fixture
def machine() -> Machine:
    specs = [
        MapSpec("array", MapType.BPF_MAP_TYPE_ARRAY, 4, 8, 2),
        MapSpec("per_cpu", MapType.BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 2),
        MapSpec("ring", MapType.BPF_MAP_TYPE_RINGBUF, 0, 0, 4096),
        MapSpec("bloom", MapType.BPF_MAP_TYPE_BLOOM_FILTER, 0, 4, 8),
        MapSpec("queue", MapType.BPF_MAP_TYPE_QUEUE, 0, 4, 2),
        MapSpec("perf", MapType.BPF_MAP_TYPE_PERF_EVENT_ARRAY, 4, 4, 2),
        MapSpec("tasks", MapType.BPF_MAP_TYPE_TASK_STORAGE, 4, 8, 0),
        MapSpec("programs", MapType.BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 2),
    ]
    return Machine(specs, cpus=2, clock_ns=8_000_000)


# Time, place and task.


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("bpf_ktime_get_tai_ns", (), 8_000_000),
        ("bpf_jiffies64", (), 2),
        ("bpf_get_smp_processor_id", (), 0),
        ("bpf_get_numa_node_id", (), 0),
        ("bpf_get_current_ancestor_cgroup_id", (0,), 1),
        ("bpf_get_current_ancestor_cgroup_id", (5,), 0),
        ("bpf_get_current_ancestor_cgroup_id", (-1,), 0),
        ("bpf_get_retval", (), 0),
        ("bpf_get_attach_cookie", (0,), 0),
        ("bpf_per_cpu_ptr", (77, 1), 77),
        ("bpf_per_cpu_ptr", (77, 2), 0),
        ("bpf_this_cpu_ptr", (77,), 77),
        ("bpf_skc_to_unix_sock", (77,), 77),
        ("bpf_csum_update", (0, 0), -errno.EOPNOTSUPP),
        ("bpf_rcu_read_lock", (), 0),
        ("bpf_rcu_read_unlock", (), 0),
        ("bpf_preempt_disable", (), 0),
        ("bpf_preempt_enable", (), 0),
        ("bpf_task_acquire", (77,), 77),
        ("bpf_task_release", (77,), 0),
        ("bpf_rdonly_cast", (77, 1), 77),
        ("bpf_cast_to_kern_ctx", (77,), 77),
    ],
)
def test_helpers_that_only_return(machine: Machine, function: str, arguments: tuple[int, ...], expected: int) -> None:
    assert invoke(machine, function, *arguments) == expected


def test_random_numbers_are_those_of_the_seed() -> None:
    first, second, other = (invoke(Machine(seed=seed), "bpf_get_prandom_u32") for seed in (1, 1, 2))
    assert first == second != other


def test_task_registers_and_namespace_pids(machine: Machine) -> None:
    machine.task = Task(pid=4, tgid=3, registers_address=0x1234)
    assert invoke(machine, "bpf_task_pt_regs", machine.task.address) == 0x1234
    out = buffer(machine)
    assert invoke(machine, "bpf_get_ns_current_pid_tgid", 0, 0, out, 8) == 0
    assert struct.unpack("<II", machine.memory.read(out, 8)) == (4, 3)
    assert invoke(machine, "bpf_get_ns_current_pid_tgid", 0, 0, out, 4) == -errno.EINVAL
    with pytest.raises(Fault, match="is no task"):
        invoke(machine, "bpf_task_pt_regs", out)


def test_function_arguments_and_results(machine: Machine) -> None:
    out = buffer(machine)
    assert invoke(machine, "bpf_get_func_arg", 0, 1, out, arguments=[5, 6]) == 0
    assert machine.memory.read_int(out, 8) == 6
    assert invoke(machine, "bpf_get_func_arg", 0, 2, out, arguments=[5, 6]) == -errno.EINVAL
    assert invoke(machine, "bpf_get_func_arg_cnt", 0, arguments=[5, 6]) == 2
    assert invoke(machine, "bpf_get_func_ret", 0, out) == 0


def test_set_retval_is_kept_with_the_outcome(machine: Machine) -> None:
    program = machine.load([asm.mov64(R1, -1), asm.call(HelperId.bpf_set_retval), EXIT])
    assert program.run().return_value == -1


# Memory and text.


def test_paths_are_those_that_were_given(machine: Machine) -> None:
    machine.paths[0x5000] = b"/etc/passwd"
    out = buffer(machine)
    for function in ("bpf_d_path", "bpf_path_d_path"):
        assert invoke(machine, function, 0x5000, out, 32) == 12
        assert machine.memory.read_string(out) == b"/etc/passwd"
        assert invoke(machine, function, 0x5000, out, 11) == -errno.ENAMETOOLONG
        assert invoke(machine, function, 0x6000, out, 32) == -errno.EINVAL


def test_copying_from_user_space(machine: Machine) -> None:
    source, out = buffer(machine, 8, b"abc"), buffer(machine, 16, b"\xff" * 16)
    assert invoke(machine, "bpf_copy_from_user", out, 4, source) == 0
    assert machine.memory.read(out, 5) == b"abc\0\xff"
    assert invoke(machine, "bpf_copy_from_user_task", out, 4, source, 0, 1) == -errno.EINVAL
    assert invoke(machine, "bpf_copy_from_user_task", out, 4, 0x10, 0, 0) == -errno.EFAULT
    assert machine.memory.read(out, 4) == bytes(4)


def test_copying_strings_from_user_space(machine: Machine) -> None:
    source, out = buffer(machine, 8, b"abc"), buffer(machine, 16, b"\xff" * 16)
    copy = "bpf_copy_from_user_str"
    assert invoke(machine, copy, out, 8, source, 0) == 4
    assert machine.memory.read(out, 5) == b"abc\0\xff"
    assert invoke(machine, copy, out, 8, source, 1) == 4
    assert machine.memory.read(out, 9) == b"abc\0\0\0\0\0\xff"
    assert invoke(machine, copy, out, 3, source, 0) == 3
    assert machine.memory.read(out, 3) == b"ab\0"
    assert invoke(machine, copy, out, 0, source, 0) == 0
    assert invoke(machine, copy, out, 8, source, 2) == -errno.EINVAL
    assert invoke(machine, copy, out, 8, 0x10, 0) == -errno.EFAULT


@pytest.mark.parametrize(
    ("template", "arguments", "expected"),
    [
        (b"%d%%", [0xFFFFFFFF], b"-1%"),
        (b"%5u|%-4d|%03x", [7, 8, 9], b"    7|8   |009"),
        (b"%lld %llu", [MASK, MASK], b"-1 18446744073709551615"),
        (b"%p %c", [0xAB, 65], b"00000000000000ab A"),
        (b"plain", [], b"plain"),
    ],
)
def test_formats(template: bytes, arguments: list[int], expected: bytes) -> None:
    assert format_text(Machine().memory, template, arguments) == expected


def test_formats_of_addresses_and_strings(machine: Machine) -> None:
    octets = buffer(machine, 16, bytes(range(1, 17)))
    text = buffer(machine, 8, b"word")
    assert format_text(machine.memory, b"%pI4 %s", [octets, text]) == b"1.2.3.4 word"
    assert format_text(machine.memory, b"%pI6", [octets]) == b"0102:0304:0506:0708:090a:0b0c:0d0e:0f10"
    for bad, arguments in ((b"%q", [1]), (b"%d %d", [1])):
        with pytest.raises(ValueError, match=r"specifier|too few"):
            format_text(machine.memory, bad, arguments)


def test_snprintf_and_vprintk(machine: Machine) -> None:
    template, data, out = buffer(machine, 8, b"%d-%s"), buffer(machine), buffer(machine, 8, b"\xff" * 8)
    machine.memory.write(data, struct.pack("<QQ", 12, buffer(machine, 8, b"abcdef")))
    assert invoke(machine, "bpf_snprintf", out, 8, template, data, 16) == 10
    assert machine.memory.read(out, 8) == b"12-abcd\0"
    assert invoke(machine, "bpf_snprintf", out, 8, template, data, 8) == -errno.EINVAL
    assert invoke(machine, "bpf_snprintf", out, 8, template, data, 15) == -errno.EINVAL
    assert invoke(machine, "bpf_trace_vprintk", template, 8, data, 16) == 9
    assert invoke(machine, "bpf_trace_vprintk", template, 8, data, 4) == -errno.EINVAL
    assert machine.printed == ["12-abcdef"]


# Maps.


def test_storage_can_be_dropped(machine: Machine) -> None:
    tasks = machine.maps["tasks"]
    task = machine.task.address
    value = invoke(machine, "bpf_task_storage_get", tasks.address, task, buffer(machine, 8, b"initial."), 1)
    assert value
    assert tasks[task] == b"initial."
    assert invoke(machine, "bpf_task_storage_delete", tasks.address, task) == 0
    assert invoke(machine, "bpf_task_storage_delete", tasks.address, task) == -errno.ENOENT
    assert invoke(machine, "bpf_task_storage_delete", tasks.address, 0) == -errno.EINVAL
    assert invoke(machine, "bpf_task_storage_get", tasks.address, task, 0, 0) == 0
    with pytest.raises(Fault, match="this helper does not take it"):
        invoke(machine, "bpf_task_storage_get", machine.maps["array"].address, task, 0, 1)


def test_values_of_other_cpus(machine: Machine) -> None:
    per_cpu = machine.maps["per_cpu"]
    zero = buffer(machine, 4)
    machine.cpu = 1
    per_cpu[0] = b"on cpu 1"
    machine.cpu = 0
    pointer = invoke(machine, "bpf_map_lookup_percpu_elem", per_cpu.address, zero, 1)
    assert machine.memory.read(pointer & MASK, 8) == b"on cpu 1"
    assert invoke(machine, "bpf_map_lookup_percpu_elem", per_cpu.address, zero, 2) == 0
    with pytest.raises(ValueError, match="CPU 2: expected 0 to 1"):
        machine.cpu = 2


def test_queues_and_filters(machine: Machine) -> None:
    bloom, queue, array = (machine.maps[name].address for name in ("bloom", "queue", "array"))
    value = buffer(machine, 4, b"abcd")
    assert invoke(machine, "bpf_map_peek_elem", bloom, value) == -errno.ENOENT
    assert invoke(machine, "bpf_map_push_elem", bloom, value, 0) == 0
    assert invoke(machine, "bpf_map_push_elem", bloom, value, 1) == -errno.EINVAL
    assert invoke(machine, "bpf_map_peek_elem", bloom, value) == 0
    assert invoke(machine, "bpf_map_push_elem", array, value, 0) == -errno.EOPNOTSUPP
    for _ in range(3):
        invoke(machine, "bpf_map_push_elem", queue, value, 2)  # BPF_EXIST: the oldest makes room
    out = buffer(machine, 4)
    assert [invoke(machine, "bpf_map_pop_elem", queue, out) for _ in range(3)] == [0, 0, -errno.ENOENT]
    assert len(machine.maps["bloom"]) == 1


def test_ring_buffer_queries_and_discards(machine: Machine) -> None:
    ring = machine.maps["ring"]
    assert isinstance(ring, RingBufferMap)
    assert invoke(machine, "bpf_ringbuf_query", ring.address, 1) == 4096
    data = buffer(machine, 16, b"x" * 16)
    assert invoke(machine, "bpf_ringbuf_output", ring.address, data, 16, 0) == 0
    assert invoke(machine, "bpf_ringbuf_query", ring.address, 0) == 24
    assert invoke(machine, "bpf_ringbuf_query", ring.address, 9) == 0
    record = invoke(machine, "bpf_ringbuf_reserve", ring.address, 8, 0)
    assert invoke(machine, "bpf_ringbuf_discard", record, 0) == 0
    assert invoke(machine, "bpf_ringbuf_reserve", ring.address, 8, 1) == 0
    assert ring.consume() == [b"x" * 16]
    assert len(ring) == 0


def test_perf_events_of_a_cpu_that_is_not_there(machine: Machine) -> None:
    perf = machine.maps["perf"]
    assert isinstance(perf, PerfEventArrayMap)
    data = buffer(machine, 4, b"data")
    assert invoke(machine, "bpf_perf_event_output", 0, perf.address, 1, data, 4) == 0
    assert invoke(machine, "bpf_perf_event_output", 0, perf.address, 2, data, 4) == -errno.E2BIG
    assert perf.records == [(1, b"data")]


def test_locks_and_exchanged_pointers(machine: Machine) -> None:
    word = buffer(machine, 8, b"\x05")
    assert invoke(machine, "bpf_spin_lock", word) == 0
    assert invoke(machine, "bpf_spin_unlock", word) == 0
    assert invoke(machine, "bpf_kptr_xchg", word, 9) == 5
    assert machine.memory.read_int(word, 8) == 9


def test_maps_refuse_what_they_are_not_for(machine: Machine) -> None:
    key = buffer(machine, 8)
    programs, ring = machine.maps["programs"], machine.maps["ring"]
    with pytest.raises(Fault, match="has no lookup"):
        invoke(machine, "bpf_map_lookup_elem", ring.address, key)
    assert invoke(machine, "bpf_map_update_elem", programs.address, key, key, 0) == -errno.EOPNOTSUPP
    assert invoke(machine, "bpf_map_delete_elem", ring.address, key) == -errno.EOPNOTSUPP
    assert invoke(machine, "bpf_map_delete_elem", programs.address, key) == -errno.ENOENT
    machine.maps["programs"].put(1, machine.load([asm.mov64(R0, 0), EXIT]))
    assert programs.keys() == [b"\1\0\0\0"]
    with pytest.raises(IndexError, match="slot 2: expected 0 to 1"):
        programs.put(2, machine.load([asm.mov64(R0, 0), EXIT]))
    with pytest.raises(KeyError, match="has no elements by key"):
        ring[b""]


def test_bytes_face_checks_sizes(machine: Machine) -> None:
    array = machine.maps["array"]
    with pytest.raises(ValueError, match="value: got 3 bytes, expected 8"):
        array[0] = b"abc"
    with pytest.raises(ValueError, match="key: got 2 bytes, expected 4"):
        array[b"ab"]
    with pytest.raises(ValueError, match="update failed: E2BIG"):
        array[9] = bytes(8)
    with pytest.raises(KeyError):
        del array[0]
    assert repr(array) == "<BPF_MAP_TYPE_ARRAY array: 2 of 2>"
    assert dict(array.items()) == {key: bytes(8) for key in array}


def test_map_names_are_unique_and_kinds_known() -> None:
    spec = MapSpec("m", MapType.BPF_MAP_TYPE_ARRAY, 4, 8, 1)
    with pytest.raises(LoadError, match="map m: the machine has one of this name"):
        Machine([spec, spec])
    with pytest.raises(LoadError, match="BPF_MAP_TYPE_SOCKMAP is not simulated"):
        Machine([MapSpec("m", MapType.BPF_MAP_TYPE_SOCKMAP, 4, 4, 1)])


# Dynptrs, iterators, arenas.


def test_dynptr_over_memory(machine: Machine) -> None:
    data, dynptr, out = buffer(machine, 16, b"0123456789abcdef"), buffer(machine, 16), buffer(machine, 8)
    assert invoke(machine, "bpf_dynptr_from_mem", data, 16, 0, dynptr) == 0
    assert invoke(machine, "bpf_dynptr_read", out, 4, dynptr, 10, 0) == 0
    assert machine.memory.read(out, 4) == b"abcd"
    assert invoke(machine, "bpf_dynptr_write", dynptr, 15, out, 1, 0) == 0
    assert machine.memory.read(data + 15, 1) == b"a"
    assert invoke(machine, "bpf_dynptr_data", dynptr, 4, 8) & MASK == data + 4
    assert invoke(machine, "bpf_dynptr_data", dynptr, 9, 8) == 0
    assert invoke(machine, "bpf_dynptr_read", out, 4, dynptr, 13, 0) == -errno.E2BIG
    assert invoke(machine, "bpf_dynptr_from_mem", data, 1 << 24, 0, dynptr) == -errno.E2BIG
    assert invoke(machine, "bpf_dynptr_read", out, 4, dynptr, 0, 0) == -errno.EINVAL
    assert invoke(machine, "bpf_dynptr_write", dynptr, 0, out, 4, 0) == -errno.EINVAL


def test_dynptr_over_a_ring_buffer(machine: Machine) -> None:
    ring, dynptr, text = machine.maps["ring"], buffer(machine, 16), buffer(machine, 8, b"reported")
    assert isinstance(ring, RingBufferMap)
    assert invoke(machine, "bpf_ringbuf_reserve_dynptr", ring.address, 8, 0, dynptr) == 0
    assert invoke(machine, "bpf_dynptr_write", dynptr, 0, text, 8, 0) == 0
    assert invoke(machine, "bpf_ringbuf_submit_dynptr", dynptr, 0) == 0
    assert invoke(machine, "bpf_ringbuf_discard_dynptr", dynptr, 0) == 0  # nothing is left in it: no effect
    assert invoke(machine, "bpf_ringbuf_reserve_dynptr", ring.address, 8, 1, dynptr) == -errno.EINVAL
    assert invoke(machine, "bpf_ringbuf_reserve_dynptr", ring.address, 9000, 0, dynptr) == -errno.EINVAL
    assert ring.consume() == [b"reported"]


def test_number_iterator(machine: Machine) -> None:
    iterator = buffer(machine, 8)
    assert invoke(machine, "bpf_iter_num_new", iterator, -1, 2) == 0
    seen = []
    while pointer := invoke(machine, "bpf_iter_num_next", iterator):
        seen.append(struct.unpack("<i", machine.memory.read(pointer & MASK, 4))[0])
    assert seen == [-1, 0, 1]
    assert invoke(machine, "bpf_iter_num_destroy", iterator) == 0
    assert invoke(machine, "bpf_iter_num_new", iterator, 2, 1) == -errno.EINVAL
    assert invoke(machine, "bpf_iter_num_new", iterator, 0, 9 << 20) == -errno.E2BIG


def test_arena_pointers_are_cast_both_ways() -> None:
    arena = Machine([MapSpec("arena", MapType.BPF_MAP_TYPE_ARENA, 0, 0, 2)])
    program = [
        asm.ld_map_value(R1, asm.MapValue("arena", 16)),
        asm.addr_space_cast(R2, R1, 1, 0),  # as user space sees it
        asm.addr_space_cast(R1, R2, 0, 1),  # and back
        asm.st(Size.DW, R1, 0, 7),
        asm.mov64(R0, R2),
        EXIT,
    ]
    assert arena.load(program).run().value == arena.arena_user_base + 16
    region = arena.memory.region_at(arena.maps["arena"].direct_value())
    assert region is not None
    assert region.buffer[16] == 7
    with pytest.raises(Fault, match="needs an arena"):
        Machine().load([asm.mov64(R1, 0), asm.addr_space_cast(R1, R1, 0, 1), EXIT]).run()


# Packets.

XDP = ProgType.BPF_PROG_TYPE_XDP


def test_packet_helpers_need_a_packet(machine: Machine) -> None:
    with pytest.raises(Fault, match="this helper needs a packet"):
        invoke(machine, "bpf_xdp_get_buff_len", 0)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("bpf_xdp_get_buff_len", (0,), 64),
        ("bpf_skb_pull_data", (0, 64), 0),
        ("bpf_skb_pull_data", (0, 65), -errno.ENOMEM),
        ("bpf_skb_change_tail", (0, 100, 0), 0),
        ("bpf_skb_change_tail", (0, 5, 0), -errno.EINVAL),
        ("bpf_xdp_adjust_head", (0, -300), -errno.EINVAL),
        ("bpf_xdp_adjust_head", (0, 60), -errno.EINVAL),
        ("bpf_xdp_adjust_tail", (0, -60), -errno.EINVAL),
        ("bpf_xdp_adjust_meta", (0, -8), 0),
        ("bpf_xdp_adjust_meta", (0, -36), -errno.EACCES),
        ("bpf_redirect", (3, 0), 4),
        ("bpf_l3_csum_replace", (0, 1, 0, 0, 2), -errno.EFAULT),
        ("bpf_l3_csum_replace", (0, 0, 0, 0, 0x10), -errno.EINVAL),
    ],
)
def test_packet_helpers(machine: Machine, function: str, arguments: tuple[int, ...], expected: int) -> None:
    assert invoke(machine, function, *arguments, packet=bytes(64), kind=XDP) == expected


def test_bytes_relative_to_headers(machine: Machine) -> None:
    out = buffer(machine, 8)
    packet = bytes(range(64))
    assert invoke(machine, "bpf_skb_load_bytes_relative", 0, 1, out, 2, 1, packet=packet) == 0
    assert machine.memory.read(out, 2) == bytes([15, 16])
    assert invoke(machine, "bpf_skb_load_bytes_relative", 0, 1, out, 2, 0, packet=packet) == 0
    assert machine.memory.read(out, 2) == bytes([1, 2])
    assert invoke(machine, "bpf_skb_load_bytes_relative", 0, 1, out, 2, 7, packet=packet) == -errno.EFAULT
    assert invoke(machine, "bpf_xdp_store_bytes", 0, 60, out, 4, packet=packet) == 0
    assert invoke(machine, "bpf_xdp_store_bytes", 0, 61, out, 4, packet=packet) == -errno.EFAULT


def test_redirects_are_recorded(machine: Machine) -> None:
    assert invoke(machine, "bpf_redirect", 5, 0, packet=bytes(64)) == 7
    assert machine.redirects == [5]


# The machine itself.


def test_helpers_have_at_most_five_arguments() -> None:
    with pytest.raises(ValueError, match="got 7 parameters, expected 1 to 6"):
        Machine().register_helper(1000, lambda machine, a, b, c, d, e, f: 0)


def test_numbers_stand_for_maps_and_kfuncs_where_there_are_no_names(machine: Machine) -> None:
    insns = [asm.ld_map_fd(R1, 7), asm.mov64(R0, R1), EXIT]
    assert machine.load(insns, map_numbers={7: "array"}).run().value == machine.maps["array"].address
    machine.register_kfunc("answer", lambda machine: 42)
    assert machine.load([asm.call_kfunc(99), EXIT], kfunc_numbers={99: "answer"}).run().value == 42
    with pytest.raises(LoadError, match="kfunc with BTF id 99 has no name"):
        machine.load([asm.call_kfunc(99), EXIT])


def test_kernel_variables_are_known_by_btf_id(machine: Machine) -> None:
    machine.variables[12] = buffer(machine, 8, b"\x2a")
    assert machine.load([asm.ld_btf_id(R1, 12), asm.ldx(Size.B, R0, R1, 0), EXIT]).run().value == 42


def test_regions_are_placed_where_they_are_wanted(machine: Machine) -> None:
    region = machine.memory.add("user page", b"argv", at=0x7FFF_0000_0000 & ~0xFFFFFFFF)
    assert machine.memory.read(region.address, 4) == b"argv"
    with pytest.raises(ValueError, match="expected a multiple of 4 GiB"):
        machine.memory.add("odd", b"x", at=0x1000)
    with pytest.raises(ValueError, match="is taken by <user page"):
        machine.memory.add("again", b"x", at=region.address)
    assert region in machine.memory.regions()


def test_execution_refuses_what_comes_too_late() -> None:
    execution = Machine().load([asm.mov64(R0, 0), EXIT]).start()
    with pytest.raises(ValueError, match="has not ended"):
        execution.outcome()
    execution.run()
    with pytest.raises(IndexError, match="has ended"):
        execution.step()


def test_tail_call_needs_a_prog_array(machine: Machine) -> None:
    insns = [asm.ld_map_fd(R2, "array"), asm.mov64(Reg.R3, 0), asm.call(HelperId.bpf_tail_call), asm.mov64(R0, 0), EXIT]
    with pytest.raises(Fault, match="tail call through BPF_MAP_TYPE_ARRAY array: expected a prog array"):
        machine.load(insns).run()


def test_a_mistake_in_a_helper_of_ones_own_is_not_taken_for_a_fault() -> None:
    def broken(machine: Machine) -> int:
        return {}["absent"]

    with pytest.raises(KeyError, match="absent"):
        Machine(helpers={1000: broken}).load([asm.call(1000), EXIT]).run()


def test_stack_pointers_survive_into_messages() -> None:
    machine = Machine()
    assert machine.memory.name_of(machine.take_stack(0).address + 500) == "stack+500"
    assert machine.memory.name_of(machine.take_stack(1).address - 8) == "stack of frame 1-8"
