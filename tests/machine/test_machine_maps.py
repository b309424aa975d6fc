"""Maps and helpers as programs and people see them."""

from __future__ import annotations

import errno
import struct

import pytest

from actplane import asm
from actplane.asm import R0, R1, R2, R3, R4, R5, R6, R10, HelperId, Insn, MapSpec, MapType, Program, ProgType, Reg, Size
from actplane.asm.machine import (
    Fault,
    LocalStorageMap,
    LpmTrieMap,
    Machine,
    Map,
    MapOfMaps,
    PerCpuMap,
    PerfEventArrayMap,
    QueueMap,
    RingBufferMap,
    Task,
)

EXIT = asm.exit_()
MASK = (1 << 64) - 1
ANY, NOEXIST, EXIST = 0, 1, 2


def spec(kind: str, key_size: int = 4, value_size: int = 8, max_entries: int = 4, **options: object) -> MapSpec:
    return MapSpec("m", MapType[f"BPF_MAP_TYPE_{kind}"], key_size, value_size, max_entries, **options)


def new_map(kind: str, *sizes: int, cpus: int = 1, **options: object) -> Map:
    return Machine([spec(kind, *sizes, **options)], cpus=cpus).maps["m"]


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def call(function: HelperId | int, *arguments: int | Reg) -> list[Insn]:
    """Load arguments into r1, r2, ... and call."""
    return [*(asm.mov64(Reg(i), value) for i, value in enumerate(arguments, 1)), asm.call(function)]


# Elements and errno numbers, by kind of map.


def test_array_has_all_its_elements_and_no_others() -> None:
    array = new_map("ARRAY", contents=bytes(8) + (7).to_bytes(8, "little"))
    assert struct.unpack("<Q", array[1]) == (7,)
    assert array.lookup(key(4)) == 0
    assert array.update(key(4), bytes(8), ANY) == -errno.E2BIG
    assert array.update(key(0), bytes(8), NOEXIST) == -errno.EEXIST
    assert array.update(key(0), bytes(8), 9) == -errno.EINVAL
    assert array.delete(key(0)) == -errno.EINVAL
    array[2] = b"abcdefgh"
    assert array[2] == b"abcdefgh"
    assert len(array) == 4


def test_hash_honours_flags_and_size() -> None:
    table = new_map("HASH", 4, 8, 2)
    assert table.update(key(1), bytes(8), EXIST) == -errno.ENOENT
    assert table.update(key(1), bytes(8), NOEXIST) == 0
    assert table.update(key(1), bytes(8), NOEXIST) == -errno.EEXIST
    assert table.update(key(2), bytes(8), ANY) == 0
    assert table.update(key(3), bytes(8), ANY) == -errno.E2BIG
    assert table.delete(key(9)) == -errno.ENOENT
    assert table.delete(key(1)) == 0
    assert table.keys() == [key(2)]
    assert 1 not in table
    with pytest.raises(KeyError):
        table[1]


def test_lru_hash_evicts_what_was_not_used() -> None:
    table = new_map("LRU_HASH", 4, 8, 2)
    table[1] = table_value = b"12345678"
    table[2] = table_value
    table.lookup(key(1))
    table[3] = table_value
    assert set(table) == {key(1), key(3)}


def test_per_cpu_maps_keep_one_value_for_each_cpu() -> None:
    machine = Machine([spec("PERCPU_HASH")], cpus=2)
    table = machine.maps["m"]
    assert isinstance(table, PerCpuMap)
    machine.cpu = 1
    table[5] = b"onlycpu1"
    machine.cpu = 0
    assert table[5] == bytes(8)
    assert table.on_cpu(1)[5] == b"onlycpu1"
    assert table.lookup_on(key(5), 2) == 0
    del table[5]
    assert 5 not in table.on_cpu(1)


def prefix(text: str, bits: int) -> bytes:
    return bits.to_bytes(4, "little") + bytes(map(int, text.split(".")))


def test_lpm_trie_gives_the_longest_prefix() -> None:
    trie = new_map("LPM_TRIE", 8, 8, 4)
    assert isinstance(trie, LpmTrieMap)
    trie[prefix("10.0.0.0", 8)] = b"wide    "
    trie[prefix("10.1.2.3", 16)] = b"narrow  "  # the bits behind the prefix do not count

    def found(address: str) -> bytes | None:
        pointer = trie.lookup(prefix(address, 32))
        return trie.memory.read(pointer, 8) if pointer else None

    assert found("10.1.200.200") == b"narrow  "
    assert found("10.9.0.0") == b"wide    "
    assert found("11.0.0.0") is None
    assert trie.update(prefix("0.0.0.0", 33), bytes(8), ANY) == -errno.EINVAL
    assert trie.delete(prefix("10.1.0.0", 16)) == 0
    assert found("10.1.200.200") == b"wide    "


def test_lpm_trie_that_is_full() -> None:
    trie = new_map("LPM_TRIE", 8, 8, 1)
    trie[prefix("10.0.0.0", 8)] = bytes(8)
    assert trie.update(prefix("11.0.0.0", 8), bytes(8), ANY) == -errno.ENOSPC


def test_queue_and_stack() -> None:
    for kind, expected in (("QUEUE", [b"aa", b"bb"]), ("STACK", [b"bb", b"aa"])):
        queue = new_map(kind, 0, 2, 2)
        assert isinstance(queue, QueueMap)
        assert queue.push(b"aa", ANY) == queue.push(b"bb", ANY) == 0
        assert queue.push(b"cc", ANY) == -errno.E2BIG
        assert [queue.pop(), queue.pop()] == expected
        assert queue.pop() is None


def test_map_of_maps_gives_the_inner_map() -> None:
    machine = Machine([spec("ARRAY_OF_MAPS"), MapSpec("inner", MapType.BPF_MAP_TYPE_ARRAY, 4, 8, 1)])
    outer = machine.maps["m"]
    assert isinstance(outer, MapOfMaps)
    outer.put(2, machine.maps["inner"])
    machine.maps["inner"][0] = (77).to_bytes(8, "little")
    program = machine.load(
        [
            *lookup(2),
            asm.mov64(R1, R0),
            asm.st(Size.W, R10, -4, 0),
            asm.mov64(R2, R10),
            asm.add64(R2, -4),
            asm.call(HelperId.bpf_map_lookup_elem),
            asm.ldx(Size.DW, R0, R0, 0),
            EXIT,
        ]
    )
    assert program.run().value == 77


# What programs do with them.


def lookup(number: int) -> list[Insn]:
    return [
        asm.st(Size.W, R10, -4, number),
        asm.ld_map_fd(R1, "m"),
        asm.mov64(R2, R10),
        asm.add64(R2, -4),
        asm.call(HelperId.bpf_map_lookup_elem),
    ]


def test_program_counts_in_an_array() -> None:
    machine = Machine([spec("ARRAY")])
    count = [asm.mov64(R1, 1), asm.atomic("add", Size.DW, R0, R1, 0), asm.mov64(R0, 0), EXIT]
    program = machine.load([*lookup(3), asm.jmp("jeq", R0, 0, 3), *count])
    for _ in range(5):
        program.run()
    assert machine.maps["m"][3] == (5).to_bytes(8, "little")


def test_forgotten_null_check_is_a_fault() -> None:
    program = Machine([spec("HASH")]).load([*lookup(3), asm.ldx(Size.DW, R0, R0, 0), EXIT])
    with pytest.raises(Fault, match="at null: no pointer"):
        program.run()


def test_running_over_the_end_of_an_array_element_is_a_fault() -> None:
    program = Machine([spec("ARRAY")]).load([*lookup(1), asm.ldx(Size.DW, R0, R0, 4), EXIT])
    with pytest.raises(Fault, match=r"read of 8 bytes at m\[1\]\+4: it has 8 bytes"):
        program.run()


def test_map_that_programs_may_not_write() -> None:
    machine = Machine([spec("ARRAY", flags=1 << 7)])
    with pytest.raises(Fault, match="it is read-only"):
        machine.load([*lookup(1), asm.st(Size.DW, R0, 0, 1), EXIT]).run()


def test_map_value_is_addressed_directly() -> None:
    machine = Machine([spec("ARRAY", 4, 16, 1)])
    machine.maps["m"][0] = bytes(8) + (9).to_bytes(8, "little")
    program = [asm.ld_map_value(R1, asm.MapValue("m", 8)), asm.ldx(Size.DW, R0, R1, 0), EXIT]
    assert machine.load(program).run().value == 9
    with pytest.raises(Fault, match="needs an array of one element"):
        Machine([spec("HASH")]).load(program)


def test_deleted_element_stays_readable_until_the_program_ends() -> None:
    machine = Machine([spec("HASH")])
    machine.maps["m"][3] = (8).to_bytes(8, "little")
    program = machine.load(
        [
            *lookup(3),
            asm.mov64(R6, R0),
            asm.ld_map_fd(R1, "m"),
            asm.mov64(R2, R10),
            asm.add64(R2, -4),
            asm.call(HelperId.bpf_map_delete_elem),
            asm.ldx(Size.DW, R0, R6, 0),
            asm.stx(Size.DW, R10, R6, -16),
            EXIT,
        ]
    )
    execution = program.start()
    execution.run()
    assert execution.outcome().value == 8
    with pytest.raises(Fault, match="has been freed"):
        machine.memory.read(execution.registers[6], 8)


def test_ring_buffer_keeps_order_and_size() -> None:
    ring = new_map("RINGBUF", 0, 0, 64)
    assert isinstance(ring, RingBufferMap)
    first = ring.reserve(8, 0)
    assert ring.output(b"second") == 0
    assert ring.consume() == []  # the first is still being written
    ring.memory.write(first, b"thefirst")
    ring.commit(first)
    assert ring.consume() == [b"thefirst", b"second"]
    assert [ring.output(bytes(8)) for _ in range(4)] == [0, 0, 0, -errno.EAGAIN]
    assert ring.dropped == 1


def test_program_reports_through_a_ring_buffer() -> None:
    machine = Machine([spec("RINGBUF", 0, 0, 4096)], clock_ns=1234)
    report = [
        asm.ld_map_fd(R1, "m"),
        asm.mov64(R2, 16),
        asm.mov64(R3, 0),
        asm.call(HelperId.bpf_ringbuf_reserve),
        asm.jmp("jeq", R0, 0, 7),
        asm.mov64(R6, R0),
        asm.call(HelperId.bpf_ktime_get_ns),
        asm.stx(Size.DW, R6, R0, 0),
        asm.st(Size.DW, R6, 8, 5),
        asm.mov64(R1, R6),
        asm.mov64(R2, 0),
        asm.call(HelperId.bpf_ringbuf_submit),
        asm.mov64(R0, 0),
        EXIT,
    ]
    machine.load(report).run()
    ring = machine.maps["m"]
    assert isinstance(ring, RingBufferMap)
    assert ring.consume() == [struct.pack("<QQ", 1234, 5)]


def test_submitting_what_was_not_reserved_is_a_fault() -> None:
    program = [*call(HelperId.bpf_ringbuf_submit, R10, 0), EXIT]
    with pytest.raises(Fault, match="no reserved record"):
        Machine([spec("RINGBUF", 0, 0, 4096)]).load(program).run()


def test_task_storage_belongs_to_the_task() -> None:
    machine = Machine([spec("TASK_STORAGE")])
    storage = machine.maps["m"]
    assert isinstance(storage, LocalStorageMap)
    visit = machine.load(
        [
            asm.call(HelperId.bpf_get_current_task_btf),
            asm.mov64(R2, R0),
            asm.ld_map_fd(R1, "m"),
            asm.mov64(R3, 0),
            asm.mov64(R4, 1),
            asm.call(HelperId.bpf_task_storage_get),
            asm.ldx(Size.DW, R1, R0, 0),
            asm.add64(R1, 1),
            asm.stx(Size.DW, R0, R1, 0),
            asm.mov64(R0, R1),
            EXIT,
        ]
    )
    first, second = Task(pid=10, tgid=10), Task(pid=11, tgid=11)
    values = []
    for task in (first, second, first):
        machine.task = task
        values.append(visit.run().value)
    assert values == [1, 1, 2]
    assert storage[second.address] == (1).to_bytes(8, "little")
    assert storage.get(machine.memory.add("other", 0).address, None, 0) == 0


def test_for_each_map_elem_visits_every_element() -> None:
    machine = Machine([spec("HASH")])
    for number in (1, 2, 3):
        machine.maps["m"][number] = (10 * number).to_bytes(8, "little")
    # The callback adds the key to the value and sums the values up in the context.
    callback = [
        asm.ldx(Size.W, R1, R2, 0),
        asm.ldx(Size.DW, R5, R3, 0),
        asm.add64(R5, R1),
        asm.atomic("add", Size.DW, R4, R5, 0),
        asm.mov64(R0, 0),
        EXIT,
    ]
    program = machine.load(
        [
            asm.st(Size.DW, R10, -8, 0),
            asm.ld_map_fd(R1, "m"),
            asm.ld_func(R2, 7),
            asm.mov64(R3, R10),
            asm.add64(R3, -8),
            asm.mov64(R4, 0),
            asm.call(HelperId.bpf_for_each_map_elem),
            asm.ldx(Size.DW, R0, R10, -8),
            EXIT,
            *callback,
        ]
    )
    assert program.run().value == 60 + 6


# Helpers on the kernel.


def test_helpers_tell_of_the_current_task() -> None:
    machine = Machine()
    machine.task = Task(pid=7, tgid=6, uid=1000, gid=100, comm="bash", cgroup_id=55)
    for helper, expected in (
        (HelperId.bpf_get_current_pid_tgid, 6 << 32 | 7),
        (HelperId.bpf_get_current_uid_gid, 100 << 32 | 1000),
        (HelperId.bpf_get_current_cgroup_id, 55),
        (HelperId.bpf_get_current_task, machine.task.address),
    ):
        assert machine.load([asm.call(helper), EXIT]).run().value == expected
    comm = [asm.mov64(R1, R10), asm.add64(R1, -16), asm.mov64(R2, 16), asm.call(HelperId.bpf_get_current_comm)]
    assert machine.load([*comm, asm.ldx(Size.DW, R0, R10, -16), EXIT]).run().value == int.from_bytes(b"bash", "little")


def test_send_signal_is_recorded() -> None:
    machine = Machine()
    assert machine.load([*call(HelperId.bpf_send_signal, 9), EXIT]).run().value == 0
    assert machine.load([*call(HelperId.bpf_send_signal, 65), EXIT]).run().value == -errno.EINVAL & MASK
    assert machine.task.signals == [9]


def reading(helper: HelperId, size: int) -> list[Insn]:
    """helper(fp - 16, size, *(u64 *)context), then what it returned and what it wrote as one record."""
    return [
        asm.st(Size.DW, R10, -16, -1),
        asm.st(Size.DW, R10, -8, -1),
        asm.ldx(Size.DW, R3, R1, 0),
        asm.mov64(R1, R10),
        asm.add64(R1, -16),
        asm.mov64(R2, size),
        asm.call(helper),
        EXIT,
    ]


@pytest.mark.parametrize(
    ("helper", "source", "size", "expected", "written"),
    [
        (HelperId.bpf_probe_read_kernel, b"12345678", 8, 0, b"12345678" + b"\xff" * 8),
        (HelperId.bpf_probe_read_kernel, b"1234", 8, -errno.EFAULT, bytes(8) + b"\xff" * 8),
        (HelperId.bpf_probe_read_kernel_str, b"abc\0def", 16, 4, b"abc\0" + b"\xff" * 12),
        (HelperId.bpf_probe_read_kernel_str, b"abcdefgh\0", 4, 4, b"abc\0" + b"\xff" * 12),
        (HelperId.bpf_probe_read_user_str, b"abc", 8, -errno.EFAULT, bytes(8) + b"\xff" * 8),
        (HelperId.bpf_probe_read_user_str, b"abc\0", 0, 0, b"\xff" * 16),
    ],
)
def test_reading_foreign_memory(helper: HelperId, source: bytes, size: int, expected: int, written: bytes) -> None:
    machine = Machine()
    execution = machine.load(reading(helper, size)).start(
        machine.memory.add("source", source).address.to_bytes(8, "little")
    )
    stack = execution.frame.stack
    execution.run()
    assert execution.outcome().value == expected & MASK
    assert bytes(stack.buffer[-16:]) == written


def test_printk_formats_as_the_kernel() -> None:
    machine = Machine()
    template = machine.memory.add("template", b"pid %d %s %llx\0")
    name = machine.memory.add("name", b"bash\0")
    arguments = [asm.ld_imm64(R1, template.address), asm.mov64(R2, 15), asm.mov64(R3, -5)]
    rest = [asm.ld_imm64(R4, name.address), asm.ld_imm64(R5, MASK), asm.call(HelperId.bpf_trace_printk), EXIT]
    machine.load([*arguments, *rest]).run()
    assert machine.printed == ["pid -5 bash ffffffffffffffff"]


@pytest.mark.parametrize(
    ("text", "base", "expected", "number"),
    [(b"42 ", 10, 2, 42), (b"-0x1f", 0, 5, -31), (b"077", 0, 3, 63), (b"x", 10, -errno.EINVAL, None)],
)
def test_strtol(text: bytes, base: int, expected: int, number: int | None) -> None:
    machine = Machine()
    source = machine.memory.add("text", text)
    insns = [
        asm.ld_imm64(R1, source.address),
        asm.mov64(R2, len(text)),
        asm.mov64(R3, base),
        asm.mov64(R4, R10),
        asm.add64(R4, -8),
        asm.call(HelperId.bpf_strtol),
        EXIT,
    ]
    execution = machine.load(insns).start()
    stack = execution.frame.stack
    execution.run()
    assert execution.outcome().value == expected & MASK
    if number is not None:
        assert int.from_bytes(stack.buffer[-8:], "little", signed=True) == number


# Packets.


def network(*insns: Insn, kind: str = "XDP") -> Program:
    return Program("net", ProgType[f"BPF_PROG_TYPE_{kind}"], insns)


def test_context_gives_pointers_to_the_packet() -> None:
    length = [asm.ldx(Size.W, R2, R1, 0), asm.ldx(Size.W, R0, R1, 4), asm.sub64(R0, R2), EXIT]
    assert Machine().load(network(*length)).run(packet=bytes(33)).value == 33
    first = [asm.ldx(Size.W, R2, R1, 76), asm.ldx(Size.B, R0, R2, 1), EXIT]
    assert Machine().load(network(*first, kind="SCHED_CLS")).run(packet=b"\x01\x02").value == 2


def test_reading_behind_the_packet_is_a_fault() -> None:
    program = network(asm.ldx(Size.W, R2, R1, 0), asm.ldx(Size.DW, R0, R2, 0), EXIT)
    with pytest.raises(Fault, match=r"read of 8 bytes at packet\+0: it has 7 bytes"):
        Machine().load(program).run(packet=bytes(7))


def test_ld_abs_reads_big_endian_and_ends_the_program_outside() -> None:
    program = network(asm.mov64(R6, R1), asm.ld_abs(Size.H, 2), asm.add64(R0, 1), EXIT, kind="SOCKET_FILTER")
    loaded = Machine().load(program)
    assert loaded.run(packet=b"\0\0\x12\x34").value == 0x1235
    assert loaded.run(packet=b"\0\0\x12").value == 0


def test_moving_the_head_of_a_packet_invalidates_pointers() -> None:
    program = network(
        asm.mov64(R6, R1),
        asm.ldx(Size.W, Reg.R7, R1, 0),
        asm.mov64(R2, 4),
        asm.call(HelperId.bpf_xdp_adjust_head),
        asm.ldx(Size.W, R2, R6, 0),
        asm.ldx(Size.B, R0, R2, 0),
        EXIT,
    )
    outcome = Machine().load(program).run(packet=bytes(range(64)))
    assert (outcome.value, outcome.packet) == (4, bytes(range(4, 64)))
    stale = network(*program.insns[:4], asm.ldx(Size.B, R0, Reg.R7, 0), EXIT)
    with pytest.raises(Fault, match="has been freed"):
        Machine().load(stale).run(packet=bytes(64))


def test_checksum_replacement_keeps_a_header_valid() -> None:
    def checksum(header: bytes) -> int:
        total = sum(struct.unpack("!10H", header))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return ~total & 0xFFFF

    header = bytearray.fromhex("4500003c1c46400040060000ac100a63ac100a0c")
    header[10:12] = checksum(header).to_bytes(2, "big")
    header_new = bytearray(header)
    old, new = int.from_bytes(header[14:16], "little"), 0x1122
    header_new[14:16] = new.to_bytes(2, "little")
    program = network(
        asm.mov64(R2, 10),
        asm.mov64(R3, old),
        asm.mov64(R4, new),
        asm.mov64(R5, 2),
        asm.call(HelperId.bpf_l3_csum_replace),
        EXIT,
        kind="SCHED_CLS",
    )
    outcome = Machine().load(program).run(packet=bytes(header))
    assert outcome.packet is not None
    header_new[10:12] = outcome.packet[10:12]
    assert checksum(header_new) == 0


def test_perf_events_are_kept_by_cpu() -> None:
    machine = Machine([spec("PERF_EVENT_ARRAY")], cpus=2)
    machine.cpu = 1
    current_cpu = 0xFFFFFFFF
    program = [
        asm.st(Size.DW, R10, -8, 3),
        asm.ld_map_fd(R2, "m"),
        asm.mov32(R3, current_cpu - (1 << 32)),
        asm.mov64(R4, R10),
        asm.add64(R4, -8),
        asm.mov64(R5, 8),
        asm.call(HelperId.bpf_perf_event_output),
        EXIT,
    ]
    machine.load(program).run()
    events = machine.maps["m"]
    assert isinstance(events, PerfEventArrayMap)
    assert events.records == [(1, (3).to_bytes(8, "little"))]
