"""The door itself: layouts, retries, errors, and handles that do not leak."""

from __future__ import annotations

import ctypes
import errno
import os
import resource

import pytest

from actplane.asm.uapi import Command
from actplane.errors import InternalError, KernelError
from actplane.loader import attributes as a
from actplane.loader import syscall
from actplane.loader.syscall import Handle, RunningKernel, bpf, object_name
from tests.fake.kernel import FakeKernel


@pytest.mark.parametrize(
    ("layout", "name", "offset"),
    [
        (a.MapCreate, "map_name", 28),
        (a.MapCreate, "btf_fd", 48),
        (a.MapCreate, "btf_vmlinux_value_type_id", 60),
        (a.MapCreate, "map_extra", 64),
        (a.MapUpdateElem, "key", 8),
        (a.MapUpdateElem, "flags", 24),
        (a.MapGetNextKey, "next_key", 16),
        (a.ProgLoad, "insns", 8),
        (a.ProgLoad, "log_buf", 32),
        (a.ProgLoad, "prog_name", 48),
        (a.ProgLoad, "expected_attach_type", 68),
        (a.ProgLoad, "func_info", 80),
        (a.ProgLoad, "line_info", 96),
        (a.ProgLoad, "attach_btf_id", 108),
        (a.ProgLoad, "attach_prog_fd", 112),
        (a.ProgLoad, "fd_array", 120),
        (a.ProgLoad, "log_true_size", 140),
        (a.ProgTestRun, "data_out", 24),
        (a.ProgTestRun, "ctx_in", 48),
        (a.ProgTestRun, "batch_size", 72),
        (a.ObjPin, "bpf_fd", 8),
        (a.ObjGetInfoByFd, "info", 8),
        (a.RawTracepointOpen, "prog_fd", 8),
        (a.BtfLoad, "btf_size", 16),
        (a.LinkCreate, "attach_type", 8),
        (a.LinkUpdate, "old_prog_fd", 12),
        (a.ProgInfo, "map_ids", 56),
        (a.ProgInfo, "run_time_ns", 192),
        (a.ProgInfo, "verified_insns", 216),
        (a.MapInfo, "name", 24),
        (a.MapInfo, "btf_value_type_id", 72),
    ],
)
def test_fields_lie_where_the_kernel_looks(layout: type[a.Layout], name: str, offset: int) -> None:
    assert getattr(layout, name).offset == offset


def test_every_command_has_one_layout() -> None:
    layouts = [
        cls for cls in vars(a).values() if isinstance(cls, type) and issubclass(cls, a.Attr) and "command" in vars(cls)
    ]
    commands = [cls.command for cls in layouts]
    assert len(commands) == len(set(commands))
    assert Command.BPF_PROG_LOAD in commands


def test_what_is_not_named_is_zero() -> None:
    assert a.ProgLoad(prog_type=5).as_bytes() == b"\5" + bytes(ctypes.sizeof(a.ProgLoad) - 1)


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_a_number_that_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(InternalError, match=r"EnableStats\.type does not fit"):
        a.EnableStats(type=value)


def test_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(InternalError, match="MapFreeze has no field 'fd'"):
        a.MapFreeze(fd=3)


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(InternalError, match="map_name"):
        a.MapCreate(map_name=b"x" * 17)


def test_buffers_live_as_long_as_the_attributes() -> None:
    attr = a.ObjPin(pathname=b"/sys/fs/bpf/name\0")
    assert ctypes.string_at(attr.pathname) == b"/sys/fs/bpf/name"
    buffer = ctypes.create_string_buffer(4)
    attr.set("pathname", buffer)
    assert attr.pathname == ctypes.addressof(buffer)


class Flaky:
    """Answers with the given results, one after the other."""

    def __init__(self, *results: int) -> None:
        self.results = list(results)

    def bpf(self, attr: a.Attr) -> int:
        return self.results.pop(0)


@pytest.mark.parametrize("error", [errno.EINTR, errno.EAGAIN])
def test_an_interrupted_load_is_tried_again(error: int) -> None:
    kernel = Flaky(-error, -error, 7)
    assert bpf(a.ProgLoad(), kernel) == 7
    assert kernel.results == []


def test_a_load_is_not_tried_for_ever() -> None:
    kernel = Flaky(*[-errno.EAGAIN] * 100)
    with pytest.raises(KernelError, match=r"BPF_PROG_LOAD\): EAGAIN"):
        bpf(a.ProgLoad(), kernel)
    assert len(kernel.results) > 80


def test_eagain_of_another_command_is_an_error() -> None:
    with pytest.raises(KernelError) as caught:
        bpf(a.MapFreeze(), Flaky(-errno.EAGAIN, 0))
    assert caught.value.errno == errno.EAGAIN


def test_an_error_names_its_command_and_what_to_do() -> None:
    with pytest.raises(KernelError) as caught:
        bpf(a.MapCreate(), Flaky(-errno.EPERM))
    assert caught.value.call == "bpf(BPF_MAP_CREATE)"
    assert str(caught.value).startswith("bpf(BPF_MAP_CREATE): EPERM: Operation not permitted\n    hint: ")
    assert "run as root" in str(caught.value)
    with pytest.raises(KernelError) as caught:
        bpf(a.MapLookupElem(), Flaky(-errno.EIO))
    assert "hint" not in str(caught.value)


def test_the_running_kernel_reports_its_error_number() -> None:
    assert RunningKernel().bpf(a.MapLookupElem(map_fd=0x7FFFFFFF)) in (-errno.EBADF, -errno.EPERM, -errno.ENOSYS)


class Limit:
    """RLIMIT_MEMLOCK, and a kernel that charges maps to it, as before 5.11."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_allowed: bool) -> None:
        self.is_allowed = is_allowed
        self.now = (65536, 65536)
        self.seen: list[tuple[int, int]] = []
        self.kernel = RunningKernel()
        monkeypatch.setattr(resource, "getrlimit", lambda which: self.now)
        monkeypatch.setattr(resource, "setrlimit", self.set)
        monkeypatch.setattr(self.kernel, "_call", self.call)

    def set(self, which: int, limits: tuple[int, int]) -> None:
        if not self.is_allowed:
            raise ValueError("not allowed to raise maximum limit")
        self.now = limits

    def call(self, attr: a.Attr) -> int:
        self.seen.append(self.now)
        return 5 if self.now[0] == resource.RLIM_INFINITY else -errno.EPERM


def test_the_memory_limit_is_lifted_for_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(monkeypatch, is_allowed=True)
    assert limit.kernel.bpf(a.MapCreate()) == 5
    assert limit.now == (65536, 65536)
    assert limit.kernel.bpf(a.MapUpdateElem()) == -errno.EPERM
    assert len(limit.seen) == 3


def test_a_memory_limit_that_cannot_be_lifted_is_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(monkeypatch, is_allowed=False)
    assert limit.kernel.bpf(a.MapCreate()) == -errno.EPERM
    assert len(limit.seen) == 1


def test_a_memory_limit_that_is_no_limit_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(monkeypatch, is_allowed=True)
    limit.now = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(limit.kernel, "_call", lambda attr: -errno.EPERM)
    assert limit.kernel.bpf(a.ProgLoad()) == -errno.EPERM


def test_a_machine_without_the_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscall, "_syscall", lambda: None)
    with pytest.raises(KernelError, match="CONFIG_BPF_SYSCALL"):
        bpf(a.MapCreate(), RunningKernel())


def test_a_handle_closes_with_its_block_and_only_once() -> None:
    fd = os.memfd_create("handle")
    with Handle(fd) as handle:
        assert handle.fd == handle.fileno() == fd
    handle.close()
    assert handle.is_closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(ValueError, match="Handle is closed"):
        _ = handle.fd


def test_a_forgotten_handle_is_closed_and_warned_about() -> None:
    fd = os.memfd_create("handle")
    handle = Handle(fd)
    with pytest.warns(ResourceWarning, match="was never closed"):
        del handle
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_names_fit_the_kernel() -> None:
    assert object_name("kurz") == b"kurz"
    assert object_name("päth/with a-b" * 3) == b"p_th_with_a_bp_"


def test_the_fake_counts_its_calls() -> None:
    kernel = FakeKernel()
    kernel.fail(Command.BPF_ENABLE_STATS, errno.EBUSY, at=1)
    with Handle(bpf(a.EnableStats(), kernel)), pytest.raises(KernelError, match="EBUSY"):
        bpf(a.EnableStats(), kernel)
