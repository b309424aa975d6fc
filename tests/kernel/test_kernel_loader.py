"""The loader on the running kernel: what it makes there, and that nothing of it stays."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from actplane.asm.build import (
    atomic,
    call,
    call_sub,
    exit_,
    jmp,
    ld_func,
    ld_map_fd,
    ld_map_value,
    ldx,
    mov64,
    st,
    stx,
)
from actplane.asm.insn import Field, Insn, MapValue
from actplane.asm.labels import FunctionHere, Item, LabelHere, resolve
from actplane.asm.operands import R0, R1, R2, R3, R4, R6, R10, Size
from actplane.asm.program import MapSpec, Object, Program
from actplane.asm.uapi import AttachType, HelperId, MapType, ProgType
from actplane.errors import KernelError, RejectedByKernel, UnsupportedFeature
from actplane.loader import attributes
from actplane.loader.attributes import Attr, Layout, ProgGetFdById
from actplane.loader.btf import Btf, TypeNotFound
from actplane.loader.btf_types import BtfType, Kind
from actplane.loader.btf_write import BtfWriter, load_btf
from actplane.loader.canary import canary
from actplane.loader.collection import Collection
from actplane.loader.features import Feature, Features
from actplane.loader.links import attach
from actplane.loader.maps import BPF_EXIST, BPF_F_RDONLY_PROG, BPF_NOEXIST, Map
from actplane.loader.pins import ensure_bpffs, is_bpffs, open_link, open_map, pin, unpin
from actplane.loader.programs import load
from actplane.loader.relocate import relocate
from actplane.loader.ringbuf import RingBuffer
from actplane.loader.stats import enable_run_time_stats
from actplane.loader.syscall import RUNNING_KERNEL
from actplane.source import Source
from actplane.verifier import verify

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root: bpf() needs privileges")

POLICY = Source("demo.yaml", 'kill exec "git"\nblock exec "x"\n')
RETURN = (mov64(R0, 0), exit_())
XDP_PACKET = bytes(64)
CGROUP2 = next(
    (
        Path(line.split()[1])
        for line in Path("/proc/mounts").read_text().splitlines()
        if line.split()[2] == "cgroup2" and line.split()[1].startswith("/sys/fs/cgroup")
    ),
    None,
)


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf.vmlinux()


@pytest.fixture(scope="module")
def features() -> Features:
    return Features()


def need(features: Features, feature: Feature) -> None:
    found = features.probe(feature)
    if not found:
        pytest.skip(f"this kernel: no {feature.value}")


def xdp(*items: Item, name: str = "test") -> Program:
    insns, functions = resolve(items)
    return Program(name, ProgType.BPF_PROG_TYPE_XDP, tuple(insns), functions=functions)


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


@contextmanager
def process_mark(pid: int) -> Iterator[bytes]:
    """The key of a process in task storage."""
    fd = os.pidfd_open(pid)
    try:
        yield key(fd)
    finally:
        os.close(fd)


# Maps


def test_a_hash_map_keeps_what_it_is_given() -> None:
    with Map.create(MapSpec("table", MapType.BPF_MAP_TYPE_HASH, 4, 8, 2)) as table:
        table.update(key(1), b"12345678", BPF_NOEXIST)
        with pytest.raises(KernelError, match="EEXIST"):
            table.update(key(1), b"12345678", BPF_NOEXIST)
        with pytest.raises(KernelError, match="ENOENT"):
            table.update(key(2), b"12345678", BPF_EXIST)
        table.update(key(2), b"abcdefgh")
        assert dict(table.items()) == {key(1): b"12345678", key(2): b"abcdefgh"}
        with pytest.raises(KernelError, match="the map is full"):
            table.update(key(3), b"12345678")
        assert table.delete(key(1))
        assert table.lookup(key(1)) is None
        info = table.info()
        assert (info.type, info.key_size, info.value_size, info.name) == (1, 4, 8, b"table")


def test_a_frozen_array_is_read_by_programs_and_written_by_nobody(btf: Btf) -> None:
    spec = MapSpec("tables", MapType.BPF_MAP_TYPE_ARRAY, 4, 8, 1, BPF_F_RDONLY_PROG, b"\1\2\3\4\5\6\7\x08", True)
    read = xdp(ld_map_value(R1, MapValue("tables", 5)), ldx(Size.B, R0, R1), exit_())
    write = xdp(ld_map_value(R1, MapValue("tables", 5)), st(Size.B, R1, 0, 1), *RETURN)
    with Map.create(spec) as tables:
        with load(read, {"tables": tables}, btf) as loaded:
            assert loaded.test_run(XDP_PACKET).retval == 6
        with pytest.raises(RejectedByKernel, match="write into map forbidden"):
            load(write, {"tables": tables}, btf)
        with pytest.raises(KernelError, match="frozen"):
            tables.update(key(0), bytes(8))


def test_per_cpu_values_come_for_every_cpu() -> None:
    with Map.create(MapSpec("counts", MapType.BPF_MAP_TYPE_PERCPU_ARRAY, 4, 4, 1)) as counts:
        found = counts.lookup(key(0))
        assert found is not None
        assert len(found) % 8 == 0
        counts.update(key(0), found)


def test_task_storage_hangs_on_a_process(features: Features) -> None:
    spec = MapSpec("tasks", MapType.BPF_MAP_TYPE_TASK_STORAGE, 4, 104, 0)
    if not features.probe(Feature.TASK_STORAGE):
        with pytest.raises(UnsupportedFeature, match="BPF_MAP_TYPE_TASK_STORAGE"):
            Map.create(spec)
        return
    with Map.create(spec) as tasks, process_mark(os.getpid()) as own:
        assert tasks.lookup(own) is None
        tasks.update(own, b"x" * 104)
        assert tasks.lookup(own) == b"x" * 104
        assert tasks.delete(own)


@pytest.mark.parametrize("feature", [Feature.INODE_STORAGE, Feature.SK_STORAGE])
def test_files_and_sockets_have_storage_too(features: Features, feature: Feature) -> None:
    need(features, feature)
    types = {
        Feature.INODE_STORAGE: MapType.BPF_MAP_TYPE_INODE_STORAGE,
        Feature.SK_STORAGE: MapType.BPF_MAP_TYPE_SK_STORAGE,
    }
    ours = socket.socket() if feature is Feature.SK_STORAGE else open("/proc/self/exe", "rb")  # noqa: SIM115
    with ours, Map.create(MapSpec("labels", types[feature], 4, 32, 0)) as labels:
        labels.update(key(ours.fileno()), b"y" * 32)
        assert labels.lookup(key(ours.fileno())) == b"y" * 32


def test_a_ring_of_a_wrong_size_is_no_lack_of_the_kernel() -> None:
    with pytest.raises(KernelError, match="EINVAL") as caught:
        Map.create(MapSpec("ring", MapType.BPF_MAP_TYPE_RINGBUF, 0, 0, 5000))
    assert not isinstance(caught.value, UnsupportedFeature)


# Programs


def test_a_program_runs_and_tells_about_itself(btf: Btf) -> None:
    spec = MapSpec("table", MapType.BPF_MAP_TYPE_ARRAY, 4, 8, 1)
    program = xdp(ld_map_value(R1, MapValue("table")), mov64(R2, 5), atomic("add", Size.DW, R1, R2), *RETURN)
    with Map.create(spec) as table, load(program, {"table": table}, btf) as loaded:
        for _ in range(3):
            assert loaded.test_run(XDP_PACKET).retval == 0
        assert table.lookup(key(0)) == (15).to_bytes(8, "little")
        info = loaded.info()
        assert info.name == "test"
        assert info.map_ids == (table.info().id,)
        assert info.xlated_bytes == len(loaded.xlated()) == 8 * program.slots


def test_statistics_count_runs_while_they_are_on() -> None:
    with load(xdp(*RETURN), {}) as loaded:
        with enable_run_time_stats():
            loaded.test_run(XDP_PACKET, repeat=100)
        # Not looked at: whether counting stops, for others on this machine may be counting too.
        assert loaded.info().run_count == 100
        assert loaded.info().run_time_ns > 0


def test_a_refused_program_shows_the_policy_line(btf: Btf) -> None:
    insns = (
        replace(mov64(R0, 0), span=POLICY.span(0, 4)),
        replace(ldx(Size.W, R0, R2), span=POLICY.span(16, 21)),
        exit_(),
    )
    with pytest.raises(RejectedByKernel) as caught:
        load(xdp(*insns), {}, btf)
    assert caught.value.errno == errno.EACCES
    assert caught.value.span == POLICY.span(16, 21)
    # The line the kernel prints is the one we gave it, and the one we find by the instruction's number.
    assert '; block exec "x"' in caught.value.log
    assert 'demo.yaml:2: block exec "x"' in str(caught.value)
    assert "R2 !read_ok" in str(caught.value)


def test_a_long_log_comes_whole(btf: Btf) -> None:
    lines = [mov64(R6, number) for number in range(5000)]
    with pytest.raises(RejectedByKernel) as caught:
        load(xdp(*lines, ldx(Size.W, R0, R2), exit_()), {}, btf)
    assert len(caught.value.log) > 1 << 16
    assert "R2 !read_ok" in caught.value.log


def test_functions_and_callbacks_bring_their_names_and_lines(btf: Btf, features: Features) -> None:
    like = Program("like", ProgType.BPF_PROG_TYPE_XDP, RETURN)
    if not features.helper(HelperId.bpf_loop, like):
        pytest.skip("this kernel: no bpf_loop")
    span = POLICY.span(0, 4)
    items: list[Item] = [
        *(replace(insn, span=span) for insn in (mov64(R1, 5), ld_func(R2, "body"), mov64(R3, R10))),
        mov64(R4, 0),
        call(HelperId.bpf_loop),
        replace(call_sub("double"), span=span),
        exit_(),
        FunctionHere("body"),
        mov64(R0, 0),
        exit_(),
        FunctionHere("double"),
        replace(mov64(R0, 10), span=POLICY.span(16, 21)),
        exit_(),
    ]
    with load(xdp(*items, name="no-push.exec_long_name"), {}, btf) as loaded:
        assert loaded.test_run(XDP_PACKET).retval == 10
        assert loaded.info().name in ("no_push.exec_lo", "no_push_exec_long_name")


def test_a_slot_of_a_program_array_takes_a_program(btf: Btf) -> None:
    spec = MapSpec("slots", MapType.BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 2)
    dispatch = xdp(ld_map_fd(R2, "slots"), mov64(R3, 1), call(HelperId.bpf_tail_call), mov64(R0, 7), exit_())
    with (
        Map.create(spec) as slots,
        load(dispatch, {"slots": slots}, btf) as dispatcher,
        load(xdp(mov64(R0, 3), exit_()), {}, btf) as target,
    ):
        assert dispatcher.test_run(XDP_PACKET).retval == 7
        slots.update(key(1), key(target.fd))
        assert dispatcher.test_run(XDP_PACKET).retval == 3
        assert slots.delete(key(1))
        assert dispatcher.test_run(XDP_PACKET).retval == 7


def test_a_run_takes_and_gives_data_and_context(btf: Btf) -> None:
    # XDP: the context starts with the addresses of the packet's first byte and of its end.
    keep = xdp(mov64(R0, 2), exit_())
    with load(keep, {}, btf) as loaded:
        run = loaded.test_run(bytes(range(64)), data_out_bytes=64)
        assert (run.retval, run.data_out) == (2, bytes(range(64)))
    argument = Program(
        "argument", ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, (ldx(Size.DW, R0, R1, 8), exit_()), attach_to="sys_enter"
    )
    with load(argument, {}, btf) as loaded:
        assert loaded.test_run(ctx=bytes(8) + (77).to_bytes(8, "little")).retval == 77


def test_types_that_are_wrong_are_explained() -> None:
    writer = BtfWriter()
    writer.add(BtfType(Kind.BTF_KIND_PTR, "a_pointer_has_no_name", target=99))
    with pytest.raises(KernelError, match=r"BPF_BTF_LOAD\): EINVAL.*\n.*hint: \[1\] PTR .*Invalid name"):
        load_btf(writer.encode())


def test_what_a_type_cannot_do_is_said(btf: Btf) -> None:
    tracing = Program("tp", ProgType.BPF_PROG_TYPE_TRACING, RETURN, AttachType.BPF_TRACE_RAW_TP, "sched_process_exec")
    with load(tracing, {}, btf) as loaded, pytest.raises(KernelError, match=r"BPF_PROG_TEST_RUN\) of .*'tp'"):
        loaded.test_run(XDP_PACKET)
    with pytest.raises(TypeNotFound, match="no tracepoint 'sched_process_flew'"):
        load(replace(tracing, attach_to="sched_process_flew"), {}, btf)


# Types


def test_the_kernels_types_hold_together(btf: Btf) -> None:
    """Members of well-known structs lie within them, and dotted paths agree with the sum of their steps."""
    for name in ("task_struct", "file", "inode", "dentry", "sock", "linux_binprm", "cred", "path"):
        type_id = btf.composite(name)
        size = btf.size_of(type_id)
        for member in btf.type_at(type_id).members:
            if not member.bitfield_bits:
                assert member.offset_bits // 8 + btf.size_of(member.type_id) <= size, f"{name}.{member.name}"
    assert btf.field_offset("file", "f_path.dentry") == btf.field_offset("file", "f_path") + btf.field_offset(
        "path", "dentry"
    )
    assert btf.field_size("task_struct", "comm") == 16
    assert btf.enum_value("bpf_prog_type", "BPF_PROG_TYPE_LSM") == ProgType.BPF_PROG_TYPE_LSM
    assert btf.enum_value("", "BPF_MAP_TYPE_RINGBUF") == MapType.BPF_MAP_TYPE_RINGBUF
    assert [param.name for param in btf.func_proto("bpf_lsm_file_open").members] == ["file"]


def fields_of(btf: Btf, type_id: int, base: int = 0) -> dict[str, int]:
    """The byte offsets of a struct's fields by name, those of anonymous structs and unions within it included."""
    found: dict[str, int] = {}
    for member in btf.type_at(type_id).members:
        at = base + member.offset_bits // 8
        if member.name:
            found[member.name] = at
        else:
            found |= fields_of(btf, btf.bare(member.type_id), at)
    return found


ATTRIBUTES = sorted((cls for cls in vars(attributes).values() if hasattr(cls, "command")), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("layout", ATTRIBUTES, ids=lambda layout: layout.__name__)
def test_attributes_lie_where_the_kernel_itself_says(btf: Btf, layout: type[Attr]) -> None:
    """The kernel's BTF describes `union bpf_attr`: one of its structs has our fields, at our places."""
    ours = {name: getattr(layout, name).offset for name, *_ in layout._fields_}
    commands = [btf.bare(member.type_id) for member in btf.type_at(btf.composite("bpf_attr")).members]
    theirs = [fields_of(btf, type_id) for type_id in commands if btf.type_at(type_id).members]
    # Fields that an older kernel lacks lie past all it knows.
    known = [{name: at for name, at in ours.items() if name in fields} for fields in theirs]
    best = max(range(len(theirs)), key=lambda index: len(known[index]))
    assert any(
        len(names) == len(known[best]) and names == {name: fields[name] for name in names}
        for names, fields in zip(known, theirs, strict=True)
    )
    missing = ours.keys() - known[best].keys()
    assert all(ours[name] > max(known[best].values()) for name in missing), f"unknown to the kernel: {missing}"


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("bpf_prog_info", attributes.ProgInfo),
        ("bpf_map_info", attributes.MapInfo),
        ("bpf_link_info", attributes.LinkInfo),
    ],
)
def test_infos_lie_where_the_kernel_itself_says(btf: Btf, name: str, layout: type[Layout]) -> None:
    theirs = fields_of(btf, btf.composite(name))
    ours = {field: getattr(layout, field).offset for field, *_ in layout._fields_ if field in theirs}
    # `gpl_compatible` is a bit field of the kernel's; it starts where ours does.
    assert {field: theirs[field] for field in ours} == ours
    assert {"type", "id"} <= ours.keys()


def test_offsets_are_those_the_kernel_uses(btf: Btf, features: Features) -> None:
    """A program that reads our own pid through the offset of a field finds it."""
    like = Program("like", ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, RETURN)
    if not features.helper(HelperId.bpf_get_current_task_btf, like):
        pytest.skip("this kernel: no bpf_get_current_task_btf")
    program = Program(
        "pid",
        ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT,
        (
            call(HelperId.bpf_get_current_task_btf),
            replace(ldx(Size.DW, R1, R0), symbol=Field("task_struct", "group_leader")),
            replace(ldx(Size.W, R0, R1), symbol=Field("task_struct", "no_such_field", (("task_struct", "pid"),))),
            exit_(),
        ),
        attach_to="sched_process_exec",
    )
    with Collection.load(Object(programs=(program,)), btf) as collection:
        found = collection.programs["pid"].test_run().retval
    # In a pid namespace the kernel's own number is another one, the last of this list first.
    status = Path("/proc/self/status").read_text()
    assert found == int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1])


# Ring buffers

RING = MapSpec("ring", MapType.BPF_MAP_TYPE_RINGBUF, 0, 0, 4096)


def numbered_records() -> Object:
    """A program that sends a number one higher at each run, and returns bpf_ringbuf_output's result."""
    count = MapSpec("count", MapType.BPF_MAP_TYPE_ARRAY, 4, 8, 1)
    insns = (
        ld_map_value(R6, MapValue("count")),
        ldx(Size.DW, R1, R6),
        stx(Size.DW, R10, R1, -8),
        ld_map_fd(R1, "ring"),
        mov64(R2, R10),
        Insn(0x07, 2, imm=-8),
        mov64(R3, 8),
        mov64(R4, 0),
        call(HelperId.bpf_ringbuf_output),
        jmp("jne", R0, 0, "full"),
        mov64(R2, 1),
        atomic("add", Size.DW, R6, R2),
        LabelHere("full"),
        exit_(),
    )
    return Object((RING, count), (xdp(*insns),))


def test_records_survive_many_rounds_of_the_ring(btf: Btf) -> None:
    with Collection.load(numbered_records(), btf) as collection, RingBuffer(collection.maps["ring"]) as ring:
        seen: list[bytes] = []
        for _ in range(20):
            collection.programs["test"].test_run(XDP_PACKET, repeat=100)
            seen += ring.poll(1000)
        assert [int.from_bytes(record, "little") for record in seen] == list(range(2000))
        assert list(ring.poll(0)) == []


def test_a_full_ring_refuses_and_keeps_what_it_has(btf: Btf) -> None:
    with Collection.load(numbered_records(), btf) as collection, RingBuffer(collection.maps["ring"]) as ring:
        run = collection.programs["test"].test_run(XDP_PACKET, repeat=1000)
        # The kernel never fills the last byte, so that a full ring is not taken for an empty one.
        assert run.retval == (1 << 32) - errno.EAGAIN
        assert [int.from_bytes(record, "little") for record in ring.consume()] == list(range(4096 // 16 - 1))
        assert collection.programs["test"].test_run(XDP_PACKET).retval == 0
        assert len(list(ring.consume())) == 1


def test_no_wakeup_is_missed_while_records_come_from_another_thread(btf: Btf) -> None:
    with Collection.load(numbered_records(), btf) as collection, RingBuffer(collection.maps["ring"]) as ring:
        sent = threading.Event()

        def send() -> None:
            for _ in range(20):
                collection.programs["test"].test_run(XDP_PACKET, repeat=100)
            sent.set()

        sender = threading.Thread(target=send)
        sender.start()
        seen: list[int] = []
        while not sent.is_set() or ring.waiting_bytes:
            seen += (int.from_bytes(record, "little") for record in ring.poll(100))
        sender.join()
        total = collection.maps["count"].lookup(key(0))
        assert total is not None
        # What found no room was not counted; everything else arrived, once and in order.
        assert seen == list(range(int.from_bytes(total, "little")))


# Links


def marked_exec_counter() -> Object:
    """Counts the execs of processes that carry a mark; returns at once for all others."""
    marks = MapSpec("marks", MapType.BPF_MAP_TYPE_TASK_STORAGE, 4, 8, 0)
    insns, _ = resolve(
        [
            call(HelperId.bpf_get_current_task_btf),
            ld_map_fd(R1, "marks"),
            mov64(R2, R0),
            mov64(R3, 0),
            mov64(R4, 0),
            call(HelperId.bpf_task_storage_get),
            jmp("jeq", R0, 0, "out"),
            mov64(R1, 1),
            atomic("add", Size.DW, R0, R1),
            LabelHere("out"),
            *RETURN,
        ]
    )
    program = Program(
        "count", ProgType.BPF_PROG_TYPE_TRACING, tuple(insns), AttachType.BPF_TRACE_RAW_TP, "sched_process_exec"
    )
    return Object((marks,), (program,))


@contextmanager
def held_child(*argv: str) -> Iterator[int]:
    """A child that waits for SIGCONT, executes argv, and is waited for at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            os.kill(os.getpid(), signal.SIGSTOP)
            os.execv(argv[0], argv)
        finally:
            os._exit(127)
    os.waitpid(pid, os.WUNTRACED)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_tracepoint_program_sees_the_exec_of_a_marked_process(btf: Btf, features: Features) -> None:
    need(features, Feature.TASK_STORAGE)
    with Collection.load(marked_exec_counter(), btf) as collection, held_child("/bin/sleep", "60") as child:
        link = collection.attach("count")
        assert link.info().program_id == collection.programs["count"].info().id
        with process_mark(child) as mark:
            collection.maps["marks"].update(mark, bytes(8))
            os.kill(child, signal.SIGCONT)
            wait_for(lambda: collection.maps["marks"].lookup(mark) == (1).to_bytes(8, "little"))


def wait_for(condition: object) -> None:
    assert callable(condition)
    patience = threading.Event()
    for _ in range(1000):
        if condition():
            return
        patience.wait(0.01)
    raise AssertionError("nothing happened for ten seconds")


def test_a_control_group_may_not_connect(btf: Btf, tmp_path: Path) -> None:
    if CGROUP2 is None:
        pytest.skip("needs cgroup2: none is mounted")
    group = CGROUP2 / f"actplane-test-{os.getpid()}"
    program = Program("deny", ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, RETURN, AttachType.BPF_CGROUP_INET4_CONNECT)
    allow = replace(program, name="allow", insns=(mov64(R0, 1), exit_()))
    group.mkdir()
    try:
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with load(program, {}, btf) as denying, load(allow, {}, btf) as allowing, attach(denying, fd) as link:
                assert connect_within(group) == errno.EPERM
                link.update(allowing)
                assert connect_within(group) == 0
                link.update(denying)
                link.detach()
                assert connect_within(group) == 0
        finally:
            os.close(fd)
    finally:
        group.rmdir()


def connect_within(group: Path) -> int:
    """Return the error of a UDP connect to ourselves by a child in a control group."""
    pid = os.fork()
    if pid == 0:
        status = 255
        try:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                status = client.connect_ex(("127.0.0.1", 9))
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.fmod_ret
@pytest.mark.parametrize(
    ("prog_type", "feature"),
    [
        (ProgType.BPF_PROG_TYPE_LSM, Feature.LSM_FIRES),
        (ProgType.BPF_PROG_TYPE_TRACING, Feature.FMOD_RET_FIRES),
    ],
)
def test_the_canary_bites_only_who_carries_its_mark(
    btf: Btf, features: Features, prog_type: ProgType, feature: Feature
) -> None:
    need(features, feature)
    with Collection.load(canary(prog_type), btf) as collection, held_child("/bin/true") as child:
        collection.attach("canary")
        assert os.getpgid(child) == os.getpgid(0)
        with process_mark(child) as mark:
            collection.maps["canary_marks"].update(mark, bytes(8))
            # The mark of another process is nothing to us.
            assert os.getpgid(child) == os.getpgid(0)
        with process_mark(os.getpid()) as own:
            collection.maps["canary_marks"].update(own, bytes(8))
            with pytest.raises(PermissionError):
                os.getpgid(child)
        collection.close()
        assert os.getpgid(child) == os.getpgid(0)


@pytest.mark.parametrize("prog_type", [ProgType.BPF_PROG_TYPE_LSM, ProgType.BPF_PROG_TYPE_TRACING])
def test_the_mirror_lets_the_canary_pass(btf: Btf, prog_type: ProgType) -> None:
    """The canary is loaded before any mirror looks at it, so it is looked at here."""
    object_ = canary(prog_type)
    maps = {spec.name: spec for spec in object_.maps}
    verify(relocate(object_.programs[0], btf), maps, btf).require()


# Pins


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "bpf"
    where.mkdir()
    assert not is_bpffs(where)
    assert ensure_bpffs(where) == where
    try:
        assert is_bpffs(ensure_bpffs(where))
        yield where
    finally:
        assert ctypes.CDLL(None).umount2(os.fsencode(where), 0) == 0


def test_a_pinned_map_outlives_its_descriptor(bpffs: Path) -> None:
    path = bpffs / "actplane" / "table"
    with Map.create(MapSpec("table", MapType.BPF_MAP_TYPE_HASH, 4, 8, 2)) as table:
        table.update(key(1), b"12345678")
        pin(table, path)
        with pytest.raises(KernelError, match="pinned there already"):
            pin(table, path)
    with open_map(path) as again:
        assert again.spec == MapSpec("table", MapType.BPF_MAP_TYPE_HASH, 4, 8, 2)
        assert again.lookup(key(1)) == b"12345678"
    assert unpin(path)
    with pytest.raises(KernelError, match="nothing is pinned there"):
        open_map(path)


def test_a_pinned_link_outlives_its_descriptor(bpffs: Path, btf: Btf, features: Features) -> None:
    need(features, Feature.TASK_STORAGE)
    path = bpffs / "link"
    with Collection.load(marked_exec_counter(), btf) as collection:
        link = collection.attach("count")
        known = link.info()
        try:
            pin(link, path)
        except KernelError as error:
            pytest.skip(f"this kernel cannot pin such links: {error}")
    with open_link(path) as again:
        assert again.info().id == known.id
    assert unpin(path)


def test_nothing_is_left_in_the_kernel_when_a_collection_closes(btf: Btf) -> None:
    with Collection.load(numbered_records(), btf) as collection:
        program = collection.programs["test"]
        loaded_id = program.info().id
        assert program_exists(loaded_id)
    # Programs are freed after a grace period.
    wait_for(lambda: not program_exists(loaded_id))


def program_exists(program_id: int) -> bool:
    result = RUNNING_KERNEL.bpf(ProgGetFdById(prog_id=program_id))
    if result < 0:
        assert result == -errno.ENOENT
        return False
    os.close(result)
    return True


def test_every_type_of_the_kernel_can_be_read(btf: Btf) -> None:
    step = 1 if os.environ.get("ACTPLANE_GUEST") is None else 50
    kinds = {btf.type_at(type_id).kind for type_id in range(1, len(btf), step)}
    assert {Kind.BTF_KIND_STRUCT, Kind.BTF_KIND_FUNC, Kind.BTF_KIND_FUNC_PROTO, Kind.BTF_KIND_ENUM} <= kinds
