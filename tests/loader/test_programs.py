"""Loading programs and whole objects over the fake kernel."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import replace

import pytest

from actplane.asm.build import call_kfunc, call_sub, exit_, ld_func, ld_map_fd, ld_map_value, mov64
from actplane.asm.encoding import decode
from actplane.asm.insn import Field, Insn, MapValue
from actplane.asm.labels import FunctionHere, resolve
from actplane.asm.operands import R0, R1, R2
from actplane.asm.program import MapSpec, Object, Program
from actplane.asm.uapi import AttachType, Command, MapType, ProgType
from actplane.errors import ActplaneError, InternalError, KernelError, RejectedByKernel, VerifyError
from actplane.loader.attributes import LinkCreate, ProgLoad, RawTracepointOpen
from actplane.loader.btf import Btf, TypeNotFound
from actplane.loader.btf_types import Kind
from actplane.loader.collection import Collection
from actplane.loader.debug_info import debug_info
from actplane.loader.links import attach
from actplane.loader.maps import Map
from actplane.loader.programs import load
from actplane.loader.stats import enable_run_time_stats
from actplane.source import Source, Span
from tests.fake.kernel import FakeKernel
from tests.fake.types import small_kernel

POLICY = Source("demo.yaml", 'kill exec "git"\nblock exec "x"\n')
KILL, BLOCK = POLICY.span(0, 4), POLICY.span(16, 21)
RETURN = (mov64(R0, 0), exit_())
PLAIN = Program("plain", ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, RETURN, attach_to="sched_process_exec")
LSM = Program("deny", ProgType.BPF_PROG_TYPE_LSM, RETURN, AttachType.BPF_LSM_MAC, "bprm_check_security")
CONNECT = Program("connect", ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, RETURN, AttachType.BPF_CGROUP_INET4_CONNECT)
TABLE = MapSpec("table", MapType.BPF_MAP_TYPE_ARRAY, 4, 64, 1)


def test_maps_and_kernel_functions_are_resolved() -> None:
    kernel, btf = FakeKernel(), small_kernel()
    insns = (ld_map_fd(R1, "table"), ld_map_value(R2, MapValue("table", 24)), call_kfunc("bpf_task_release"), *RETURN)
    with (
        Map.create(TABLE, kernel) as table,
        load(replace(PLAIN, insns=insns), {"table": table}, btf, kernel=kernel) as loaded,
    ):
        address, value, call, *_ = decode(kernel.programs[loaded.fd].insns)
        assert (address.src, address.imm) == (1, table.fd)
        assert (value.src, value.imm) == (2, 24 << 32 | table.fd)
        assert (call.src, call.imm) == (2, btf.find(Kind.BTF_KIND_FUNC, "bpf_task_release"))


@pytest.mark.parametrize(
    ("insn", "error", "message"),
    [
        (ld_map_fd(R1, "other"), InternalError, "map='other'"),
        (call_kfunc("bpf_nothing"), TypeNotFound, "this kernel has no function 'bpf_nothing'"),
        (replace(mov64(R1, 0), symbol=Field("task_struct", "pid")), InternalError, "resolved before load"),
    ],
)
def test_what_cannot_be_resolved_is_an_error(insn: Insn, error: type[ActplaneError], message: str) -> None:
    with pytest.raises(error, match=message):
        load(replace(PLAIN, insns=(insn, *RETURN)), {}, small_kernel(), kernel=FakeKernel())


@pytest.mark.parametrize(
    ("program", "kind", "name"),
    [
        (LSM, Kind.BTF_KIND_FUNC, "bpf_lsm_bprm_check_security"),
        (
            Program("tp", ProgType.BPF_PROG_TYPE_TRACING, RETURN, AttachType.BPF_TRACE_RAW_TP, "sched_process_exec"),
            Kind.BTF_KIND_TYPEDEF,
            "btf_trace_sched_process_exec",
        ),
        (
            Program("mod", ProgType.BPF_PROG_TYPE_TRACING, RETURN, AttachType.BPF_MODIFY_RETURN, "security_file_open"),
            Kind.BTF_KIND_FUNC,
            "security_file_open",
        ),
    ],
)
def test_a_hook_is_named_by_its_btf_id(program: Program, kind: Kind, name: str) -> None:
    kernel, btf = FakeKernel(), small_kernel()
    with load(replace(program, is_sleepable=True), {}, btf, kernel=kernel) as loaded:
        assert kernel.programs[loaded.fd].attach_btf_id == btf.find(kind, name)
        assert kernel.programs[loaded.fd].is_sleepable


def test_a_hook_that_is_not_there_is_named() -> None:
    with pytest.raises(TypeNotFound, match="program deny: this kernel has no LSM hook 'no_such_hook'"):
        load(replace(LSM, attach_to="no_such_hook"), {}, small_kernel(), kernel=FakeKernel())


def test_an_accepted_program_is_loaded_once_and_without_a_log() -> None:
    levels: list[int] = []

    def verifier(attr: ProgLoad) -> tuple[int, str]:
        levels.append(attr.log_level)
        return 0, ""

    with load(PLAIN, {}, kernel=FakeKernel(verifier)):
        assert levels == [0]


def rejected(program: Program, log: str, error: int = errno.EACCES) -> KernelError:
    with pytest.raises(KernelError) as caught:
        load(program, {}, small_kernel(), kernel=FakeKernel(lambda attr: (error, log)))
    return caught.value


def with_spans(*spans: Span | None) -> Program:
    return replace(PLAIN, insns=tuple(replace(mov64(R0, 0), span=span) for span in spans) + RETURN[1:])


def test_a_refused_program_shows_the_log_and_the_policy_line() -> None:
    log = "0: (b7) r0 = 0\n1: (b7) r0 = 0\nR1 !read_ok\nprocessed 2 insns\n"
    error = rejected(with_spans(KILL, BLOCK, None), log)
    assert isinstance(error, RejectedByKernel)
    assert error.span == BLOCK
    assert error.log == log
    lines = str(error).splitlines()
    assert lines[0] == (
        "bpf(BPF_PROG_LOAD) of BPF_PROG_TYPE_RAW_TRACEPOINT 'plain' on sched_process_exec: EACCES: Permission denied"
    )
    assert '    demo.yaml:2: block exec "x"' in lines
    assert "    R1 !read_ok" in lines


@pytest.mark.parametrize(
    ("log", "span"),
    [
        ("0: (b7) r0 = 0\n1: (b7) r0 = 0\n2: (95) exit\nbad\n", BLOCK),
        ("Verification failed\nReason: r0 may be null\nAt: insn 0 in main\n", KILL),
        ("the program is bad\n", None),
    ],
)
def test_the_last_instruction_with_a_line_is_blamed(log: str, span: Span | None) -> None:
    error = rejected(with_spans(KILL, BLOCK), log)
    assert isinstance(error, RejectedByKernel)
    assert error.span == span


def test_the_log_grows_until_it_fits() -> None:
    log = "0: (b7) r0 = 0\n" * 100_000 + "the end\n"
    kernel = FakeKernel(lambda attr: (errno.EINVAL, log))
    with pytest.raises(RejectedByKernel) as caught:
        load(PLAIN, {}, kernel=kernel)
    assert caught.value.log == log
    assert caught.value.errno == errno.EINVAL
    assert kernel.calls.count(Command.BPF_PROG_LOAD) == 4


def test_a_log_that_never_fits_is_not_waited_for() -> None:
    kernel = FakeKernel(lambda attr: (errno.EINVAL, "x" * (1 << 24)))
    with pytest.raises(KernelError, match="EINVAL"):
        load(PLAIN, {}, kernel=kernel)
    assert kernel.calls.count(Command.BPF_PROG_LOAD) < 8


def test_a_refusal_before_the_verifier_is_no_rejection() -> None:
    error = rejected(LSM, "", errno.EPERM)
    assert not isinstance(error, RejectedByKernel)
    assert "BPF trampolines" in error.hint


def test_a_second_try_may_succeed() -> None:
    answers = [(errno.ENOMEM, ""), (0, "")]
    with load(PLAIN, {}, kernel=FakeKernel(lambda attr: answers.pop(0))) as loaded:
        assert loaded.info().name == "plain"


def test_debug_info_names_functions_and_lines() -> None:
    insns, functions = resolve(
        [
            replace(ld_func(R2, "callback"), span=KILL),
            replace(call_sub("helper"), span=KILL),
            exit_(),
            FunctionHere("callback"),
            replace(mov64(R0, 0), span=BLOCK),
            exit_(),
            FunctionHere("helper"),
            *RETURN,
        ]
    )
    info = debug_info(replace(PLAIN, insns=tuple(insns), functions=functions))
    own = Btf(info.btf)
    names = {slot: own.type_at(type_id).name for slot, type_id in struct.iter_unpack("<II", info.func_info)}
    assert names == {0: "plain", 4: "callback", 6: "helper"}

    def text(offset: int) -> str:
        return own.string_at(offset)

    lines = [
        (slot, text(file), text(line), position >> 10, position & 1023)
        for slot, file, line, position in struct.iter_unpack("<IIII", info.line_info)
    ]
    assert lines == [
        (0, "demo.yaml", 'kill exec "git"', 1, 1),
        (3, "actplane", "plain: not from a line of the policy", 0, 0),
        (4, "demo.yaml", 'block exec "x"', 2, 1),
        (5, "actplane", "callback: not from a line of the policy", 0, 0),
        (6, "actplane", "helper: not from a line of the policy", 0, 0),
    ]


def test_lines_go_along_only_where_there_are_any() -> None:
    kernel = FakeKernel()
    with load(PLAIN, {}, kernel=kernel) as plain, load(with_spans(KILL), {}, kernel=kernel) as lined:
        assert not kernel.programs[plain.fd].has_lines
        assert kernel.programs[lined.fd].has_lines
    with load(with_spans(KILL), {}, kernel=kernel, has_lines=False) as quiet:
        assert not kernel.programs[quiet.fd].has_lines


# Links


def test_a_raw_tracepoint_is_opened_by_name() -> None:
    kernel = FakeKernel()
    with load(PLAIN, {}, kernel=kernel) as loaded, attach(loaded) as link:
        assert isinstance(kernel.links[link.fd], RawTracepointOpen)


def test_an_old_kernel_links_tracing_programs_its_own_way() -> None:
    kernel = FakeKernel()
    with load(LSM, {}, small_kernel(), kernel=kernel) as loaded:
        with attach(loaded) as link:
            assert isinstance(kernel.links[link.fd], LinkCreate)
        kernel.fail(Command.BPF_LINK_CREATE, errno.EINVAL, at=1)
        with attach(loaded) as link:
            assert isinstance(kernel.links[link.fd], RawTracepointOpen)
            assert kernel.links[link.fd].name == 0
        kernel.fail(Command.BPF_LINK_CREATE, errno.EBUSY, at=2)
        with pytest.raises(KernelError, match="of BPF_PROG_TYPE_LSM 'deny' on bprm_check_security: EBUSY"):
            attach(loaded)


def test_a_link_to_a_control_group_can_be_updated_and_undone() -> None:
    kernel = FakeKernel()
    with (
        load(CONNECT, {}, kernel=kernel) as first,
        load(CONNECT, {}, kernel=kernel) as second,
        attach(first, cgroup_fd=3) as link,
    ):
        attr = kernel.links[link.fd]
        assert (attr.prog_fd, attr.target_fd, attr.attach_type) == (first.fd, 3, CONNECT.attach_type)
        link.update(second)
        assert kernel.links[link.fd].prog_fd == second.fd
        link.detach()
        assert link.fd not in kernel.links


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (CONNECT, "needs its descriptor"),
        (replace(PLAIN, attach_to=None), "names no tracepoint"),
        (replace(PLAIN, prog_type=ProgType.BPF_PROG_TYPE_XDP), "no way to attach"),
    ],
)
def test_what_cannot_be_attached_is_a_bug_of_ours(program: Program, message: str) -> None:
    with load(program, {}, kernel=FakeKernel()) as loaded, pytest.raises(InternalError, match=message):
        attach(loaded)


# Collections

OBJECT = Object((TABLE,), (replace(PLAIN, insns=(ld_map_fd(R1, "table"), *RETURN)), LSM))


def test_an_object_is_loaded_and_closed_as_one() -> None:
    kernel = FakeKernel()
    with Collection.load(OBJECT, small_kernel(), kernel=kernel) as collection:
        assert set(collection.maps) == {"table"}
        assert set(collection.programs) == {"plain", "deny"}
        link = collection.attach("deny")
        loaded = collection.programs["deny"]
    assert link.is_closed
    assert loaded.is_closed
    collection.close()


@pytest.mark.parametrize(
    ("command", "at"), [(Command.BPF_MAP_CREATE, 0), (Command.BPF_PROG_LOAD, 0), (Command.BPF_PROG_LOAD, 1)]
)
def test_nothing_stays_open_if_a_step_fails(command: Command, at: int) -> None:
    kernel = FakeKernel()
    for tries in range(2):
        kernel.fail(command, errno.EINVAL, at + tries)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KernelError, match=command.name):
        Collection.load(OBJECT, small_kernel(), kernel=kernel)
    assert os.listdir("/proc/self/fd") == before


def test_the_judge_sees_every_program_before_anything_is_created() -> None:
    kernel = FakeKernel()
    seen: list[str] = []

    def judge(program: Program, maps: object) -> None:
        seen.append(program.name)
        assert maps == {"table": TABLE}
        if program.name == "deny":
            raise VerifyError(3, "r1 may be null")

    with pytest.raises(VerifyError):
        Collection.load(OBJECT, small_kernel(), judge=judge, kernel=kernel)
    assert seen == ["plain", "deny"]
    assert kernel.calls == []


def test_a_shared_map_is_used_and_stays_open() -> None:
    kernel = FakeKernel()
    with Map.create(TABLE, kernel) as table:
        with Collection.load(OBJECT, small_kernel(), shared_maps={"table": table}, kernel=kernel) as collection:
            assert collection.maps == {}
            insns = decode(kernel.programs[collection.programs["plain"].fd].insns)
            assert insns[0].imm == table.fd
        assert not table.is_closed
        wrong = Object((replace(TABLE, value_size=8),))
        with pytest.raises(InternalError, match="another shape"):
            Collection.load(wrong, small_kernel(), shared_maps={"table": table}, kernel=kernel)


@pytest.mark.parametrize("twice", [Object((TABLE, TABLE)), Object((), (PLAIN, PLAIN))])
def test_names_are_unique(twice: Object) -> None:
    with pytest.raises(InternalError, match="of one name"):
        Collection.load(twice, small_kernel(), kernel=FakeKernel())


def test_statistics_are_on_as_long_as_they_are_open() -> None:
    kernel = FakeKernel()
    with enable_run_time_stats(kernel):
        assert kernel.calls == [Command.BPF_ENABLE_STATS]
