"""Maps over the fake kernel."""

from __future__ import annotations

import errno

import pytest

from actplane.asm.program import MapSpec
from actplane.asm.uapi import Command, MapType
from actplane.errors import KernelError, UnsupportedFeature
from actplane.loader.maps import BPF_F_NO_PREALLOC, Map, is_map_type_supported, possible_cpus
from tests.fake.kernel import FakeKernel

HASH = MapSpec("table", MapType.BPF_MAP_TYPE_HASH, 4, 8, 3)
TASKS = MapSpec("tasks", MapType.BPF_MAP_TYPE_TASK_STORAGE, 4, 40, 0)


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def value(number: int) -> bytes:
    return number.to_bytes(8, "little")


def test_elements_come_and_go() -> None:
    with Map.create(HASH, FakeKernel()) as table:
        assert table.lookup(key(1)) is None
        table.update(key(1), value(10))
        table.update(key(2), value(20))
        table.update(key(1), value(11))
        assert table.lookup(key(1)) == value(11)
        assert dict(table.items()) == {key(1): value(11), key(2): value(20)}
        assert table.take(key(2)) == value(20)
        assert table.take(key(2)) is None
        assert table.delete(key(1))
        assert not table.delete(key(1))
        assert list(table.keys()) == []


def test_a_full_map_says_so() -> None:
    with Map.create(HASH, FakeKernel()) as table:
        for number in range(3):
            table.update(key(number), value(0))
        with pytest.raises(KernelError, match="the map is full"):
            table.update(key(3), value(0))


@pytest.mark.parametrize(("wrong_key", "wrong_value"), [(b"abc", value(0)), (key(0), b"abc")])
def test_sizes_are_checked_before_the_kernel_reads_past_them(wrong_key: bytes, wrong_value: bytes) -> None:
    kernel = FakeKernel()
    with Map.create(HASH, kernel) as table, pytest.raises(ValueError, match="got 3 bytes, expected"):
        table.update(wrong_key, wrong_value)
    assert Command.BPF_MAP_UPDATE_ELEM not in kernel.calls


def test_contents_are_written_and_then_frozen() -> None:
    kernel = FakeKernel()
    spec = MapSpec("table", MapType.BPF_MAP_TYPE_ARRAY, 4, 4, 3, contents=b"abcdefg", is_frozen=True)
    with Map.create(spec, kernel) as table:
        assert [found for _, found in table.items()] == [b"abcd", b"efg\0", b"\0\0\0\0"]
        with pytest.raises(KernelError, match="frozen"):
            table.update(key(0), b"abcd")
    assert kernel.calls.index(Command.BPF_MAP_FREEZE) > kernel.calls.index(Command.BPF_MAP_UPDATE_ELEM)


@pytest.mark.parametrize("command", [Command.BPF_MAP_UPDATE_ELEM, Command.BPF_MAP_FREEZE])
def test_a_map_that_cannot_be_filled_is_closed(command: Command) -> None:
    kernel = FakeKernel()
    kernel.fail(command, errno.ENOMEM)
    spec = MapSpec("table", MapType.BPF_MAP_TYPE_ARRAY, 4, 4, 1, contents=b"abcd", is_frozen=True)
    with pytest.raises(KernelError, match=command.name):
        Map.create(spec, kernel)


def test_local_storage_brings_btf_along() -> None:
    kernel = FakeKernel()
    with Map.create(TASKS, kernel) as tasks:
        attr = kernel.maps[tasks.fd].attr
        assert attr.btf_fd
        assert (attr.btf_key_type_id, attr.map_flags, attr.max_entries) == (1, BPF_F_NO_PREALLOC, 0)
        assert attr.btf_value_type_id > attr.btf_key_type_id


def test_a_type_the_kernel_does_not_know_is_unsupported() -> None:
    kernel = FakeKernel()
    kernel.unknown_map_types.add(MapType.BPF_MAP_TYPE_TASK_STORAGE)
    with pytest.raises(UnsupportedFeature, match=r"BPF_MAP_TYPE_TASK_STORAGE \(Linux 5.11 or newer\)"):
        Map.create(TASKS, kernel)
    assert not is_map_type_supported(MapType.BPF_MAP_TYPE_TASK_STORAGE, kernel)
    assert is_map_type_supported(MapType.BPF_MAP_TYPE_RINGBUF, kernel)


def test_a_known_type_of_a_wrong_shape_is_no_lack_of_the_kernel() -> None:
    kernel = FakeKernel()
    kernel.fail(Command.BPF_MAP_CREATE, errno.EINVAL)
    with pytest.raises(KernelError, match="BPF_MAP_TYPE_RINGBUF 'ring': EINVAL") as caught:
        Map.create(MapSpec("ring", MapType.BPF_MAP_TYPE_RINGBUF, 0, 0, 5000), kernel)
    assert not isinstance(caught.value, UnsupportedFeature)


def test_per_cpu_values_are_as_long_as_the_kernel_writes_them() -> None:
    with Map.create(MapSpec("counts", MapType.BPF_MAP_TYPE_PERCPU_ARRAY, 4, 9, 1), FakeKernel()) as counts:
        assert len(bytes(counts._value_bytes)) == 16 * possible_cpus()
    assert possible_cpus() >= 1
