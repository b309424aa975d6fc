"""
Dynptrs, and the kfuncs that programs of policies use.

A dynptr is 16 bytes on the program's stack: the address (8), the size with flags in its upper bits
(4), the offset (4), as struct bpf_dynptr_kern lays them out.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from actplane.asm.machine.arithmetic import to_signed
from actplane.asm.machine.faults import Fault
from actplane.asm.machine.helpers_maps import ringbuf_reserve
from actplane.asm.machine.registry import U32, helper, kfunc
from actplane.asm.uapi import HelperId

if TYPE_CHECKING:
    from actplane.asm.machine.machine import Machine

DYNPTR_MAX_SIZE = (1 << 24) - 1


def _set(machine: Machine, dynptr: int, address: int, size: int) -> None:
    machine.memory.write(dynptr, address.to_bytes(8, "little") + size.to_bytes(4, "little") + bytes(4))


def _get(machine: Machine, dynptr: int) -> tuple[int, int]:
    raw = machine.memory.read(dynptr, 16)
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:12], "little")


@helper(HelperId.bpf_dynptr_from_mem)
def dynptr_from_mem(machine: Machine, data: int, size: int, flags: int, dynptr: int) -> int:
    if flags or size & U32 > DYNPTR_MAX_SIZE:
        _set(machine, dynptr, 0, 0)
        return -errno.EINVAL if flags else -errno.E2BIG
    _set(machine, dynptr, data, size & U32)
    return 0


@helper(HelperId.bpf_ringbuf_reserve_dynptr)
def ringbuf_reserve_dynptr(machine: Machine, bpf_map: int, size: int, flags: int, dynptr: int) -> int:
    if flags:
        _set(machine, dynptr, 0, 0)
        return -errno.EINVAL
    record = ringbuf_reserve(machine, bpf_map, size & U32, 0)
    _set(machine, dynptr, record, size & U32 if record else 0)
    return 0 if record else -errno.EINVAL


@helper(HelperId.bpf_ringbuf_submit_dynptr)
def ringbuf_submit_dynptr(machine: Machine, dynptr: int, flags: int) -> int:
    return _finish(machine, dynptr, is_discarded=False)


@helper(HelperId.bpf_ringbuf_discard_dynptr)
def ringbuf_discard_dynptr(machine: Machine, dynptr: int, flags: int) -> int:
    return _finish(machine, dynptr, is_discarded=True)


def _finish(machine: Machine, dynptr: int, *, is_discarded: bool) -> int:
    record, _ = _get(machine, dynptr)
    if record:
        machine.ring_of(record).commit(record, is_discarded=is_discarded)
        _set(machine, dynptr, 0, 0)
    return 0


@helper(HelperId.bpf_dynptr_read)
def dynptr_read(machine: Machine, destination: int, size: int, dynptr: int, offset: int, flags: int) -> int:
    address, total = _get(machine, dynptr)
    if not address or flags:
        return -errno.EINVAL
    if (offset & U32) + (size & U32) > total:
        return -errno.E2BIG
    machine.memory.write(destination, machine.memory.read(address + (offset & U32), size & U32))
    return 0


@helper(HelperId.bpf_dynptr_write)
def dynptr_write(machine: Machine, dynptr: int, offset: int, source: int, size: int, flags: int) -> int:
    address, total = _get(machine, dynptr)
    if not address or flags:
        return -errno.EINVAL
    if (offset & U32) + (size & U32) > total:
        return -errno.E2BIG
    machine.memory.write(address + (offset & U32), machine.memory.read(source, size & U32))
    return 0


@helper(HelperId.bpf_dynptr_data)
def dynptr_data(machine: Machine, dynptr: int, offset: int, size: int) -> int:
    address, total = _get(machine, dynptr)
    if not address or (offset & U32) + (size & U32) > total:
        return 0
    return address + (offset & U32)


@kfunc
def bpf_rcu_read_lock(machine: Machine) -> int:
    return 0


@kfunc
def bpf_rcu_read_unlock(machine: Machine) -> int:
    return 0


@kfunc
def bpf_preempt_disable(machine: Machine) -> int:
    return 0


@kfunc
def bpf_preempt_enable(machine: Machine) -> int:
    return 0


@kfunc
def bpf_rdonly_cast(machine: Machine, pointer: int, type_id: int) -> int:
    return pointer


@kfunc
def bpf_cast_to_kern_ctx(machine: Machine, context: int) -> int:
    return context


@kfunc
def bpf_task_acquire(machine: Machine, task: int) -> int:
    return task


@kfunc
def bpf_task_release(machine: Machine, task: int) -> int:
    return 0


@kfunc
def bpf_path_d_path(machine: Machine, path: int, buffer: int, size: int) -> int:
    from actplane.asm.machine.helpers_kernel import d_path

    return d_path(machine, path, buffer, size)


@kfunc
def bpf_copy_from_user_str(machine: Machine, destination: int, size: int, source: int, flags: int) -> int:
    """Copy a string up to and with its NUL; flag 1 fills the rest of the buffer with zeros."""
    size &= U32
    if flags & ~1:
        return -errno.EINVAL
    if size == 0:
        return 0
    try:
        text = machine.memory.read_string(source, size - 1) if size > 1 else b""
    except Fault:
        machine.memory.zero(destination, size)
        return -errno.EFAULT
    if flags:
        machine.memory.zero(destination, size)
    machine.memory.write(destination, text + b"\0")
    return len(text) + 1


# Open-coded iteration over numbers: struct bpf_iter_num is {int cur, int end} in 8 bytes.


@kfunc
def bpf_iter_num_new(machine: Machine, iterator: int, start: int, end: int) -> int:
    first, last = to_signed(start, 32), to_signed(end, 32)
    if first > last or last - first > 8 << 20:
        machine.memory.write(iterator, bytes(8))
        return -errno.EINVAL if first > last else -errno.E2BIG
    # `cur` is one before the first number until the first call of next.
    machine.memory.write_int(iterator, first - 1, 4)
    machine.memory.write_int(iterator + 4, last, 4)
    return 0


@kfunc
def bpf_iter_num_next(machine: Machine, iterator: int) -> int:
    current = to_signed(machine.memory.read_int(iterator, 4), 32)
    last = to_signed(machine.memory.read_int(iterator + 4, 4), 32)
    if current + 1 >= last:
        machine.memory.write(iterator, bytes(8))
        return 0
    machine.memory.write_int(iterator, current + 1, 4)
    return iterator


@kfunc
def bpf_iter_num_destroy(machine: Machine, iterator: int) -> int:
    machine.memory.write(iterator, bytes(8))
    return 0
