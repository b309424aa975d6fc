"""Helpers on the kernel around a program: tasks, time, its memory, text, loops."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from actplane.asm.machine.arithmetic import to_signed
from actplane.asm.machine.faults import Fault
from actplane.asm.machine.formatting import format_text
from actplane.asm.machine.registry import U32, U64, Callback, CallbackHelper, helper
from actplane.asm.uapi import HelperId

if TYPE_CHECKING:
    from actplane.asm.machine.machine import Machine

BPF_MAX_LOOPS = 8 << 20
NS_PER_JIFFY = 4_000_000
"""One tick at CONFIG_HZ=250."""
USER_ADDRESS_LIMIT = 1 << 47
KERNEL_ADDRESS_START = 0xFFFF_8000_0000_0000
"""x86-64 with page tables of four levels."""


@helper(HelperId.bpf_ktime_get_ns, HelperId.bpf_ktime_get_boot_ns, HelperId.bpf_ktime_get_coarse_ns)
def ktime_get_ns(machine: Machine) -> int:
    return machine.read_clock()


@helper(HelperId.bpf_ktime_get_tai_ns)
def ktime_get_tai_ns(machine: Machine) -> int:
    return machine.read_clock()


@helper(HelperId.bpf_jiffies64)
def jiffies64(machine: Machine) -> int:
    return machine.read_clock() // NS_PER_JIFFY


@helper(HelperId.bpf_get_prandom_u32)
def get_prandom_u32(machine: Machine) -> int:
    return machine.random.getrandbits(32)


@helper(HelperId.bpf_get_smp_processor_id)
def get_smp_processor_id(machine: Machine) -> int:
    return machine.cpu


@helper(HelperId.bpf_get_numa_node_id)
def get_numa_node_id(machine: Machine) -> int:
    return 0


# The current task.


@helper(HelperId.bpf_get_current_pid_tgid)
def get_current_pid_tgid(machine: Machine) -> int:
    return machine.task.tgid << 32 | machine.task.pid


@helper(HelperId.bpf_get_current_uid_gid)
def get_current_uid_gid(machine: Machine) -> int:
    return machine.task.gid << 32 | machine.task.uid


@helper(HelperId.bpf_get_current_comm)
def get_current_comm(machine: Machine, buffer: int, size: int) -> int:
    size &= U32
    machine.memory.zero(buffer, size)
    if size:
        machine.memory.write(buffer, machine.task.comm_bytes[: size - 1])
    return 0


@helper(HelperId.bpf_get_current_task, HelperId.bpf_get_current_task_btf)
def get_current_task(machine: Machine) -> int:
    return machine.task.address


@helper(HelperId.bpf_task_pt_regs)
def task_pt_regs(machine: Machine, task: int) -> int:
    return machine.task_at(task).registers_address


@helper(HelperId.bpf_get_current_cgroup_id)
def get_current_cgroup_id(machine: Machine) -> int:
    return machine.task.cgroup_id


@helper(HelperId.bpf_get_current_ancestor_cgroup_id)
def get_current_ancestor_cgroup_id(machine: Machine, level: int) -> int:
    ancestors = machine.task.cgroup_ancestors
    level = to_signed(level, 32)
    return ancestors[level] if 0 <= level < len(ancestors) else 0


@helper(HelperId.bpf_get_ns_current_pid_tgid)
def get_ns_current_pid_tgid(machine: Machine, device: int, inode: int, info: int, size: int) -> int:
    # struct bpf_pidns_info: u32 pid, u32 tgid; the machine has one pid namespace.
    if size != 8:
        return -errno.EINVAL
    machine.memory.write_int(info, machine.task.pid | machine.task.tgid << 32, 8)
    return 0


@helper(HelperId.bpf_send_signal, HelperId.bpf_send_signal_thread)
def send_signal(machine: Machine, signal: int) -> int:
    number = signal & U32
    if not 0 < number <= 64:
        return -errno.EINVAL
    machine.task.signals.append(number)
    return 0


# Memory that a program may not touch directly.


def _refuses_kernel_read(machine: Machine, address: int) -> bool:
    """
    Say whether reading kernel memory at an address gives -ERANGE: it belongs to user space, or is no address.

    Source: copy_from_kernel_nofault_allowed() in arch/x86/mm/maccess.c.
    """
    is_user = address < USER_ADDRESS_LIMIT
    is_kernel = address >= KERNEL_ADDRESS_START or machine.memory.region_at(address) is not None
    return is_user or not is_kernel


@helper(HelperId.bpf_probe_read_kernel)
def probe_read_kernel(machine: Machine, destination: int, size: int, source: int) -> int:
    if _refuses_kernel_read(machine, source):
        machine.memory.zero(destination, size & U32)
        return -errno.ERANGE
    return _copy(machine, destination, size & U32, source)


@helper(HelperId.bpf_probe_read, HelperId.bpf_probe_read_user, HelperId.bpf_copy_from_user)
def probe_read(machine: Machine, destination: int, size: int, source: int) -> int:
    return _copy(machine, destination, size & U32, source)


@helper(HelperId.bpf_copy_from_user_task)
def copy_from_user_task(machine: Machine, destination: int, size: int, source: int, task: int, flags: int) -> int:
    if flags:
        return -errno.EINVAL
    return _copy(machine, destination, size & U32, source)


def _copy(machine: Machine, destination: int, size: int, source: int) -> int:
    """Copy, or fill with zeros what cannot be read: the program never sees what was there before."""
    if size == 0:
        return 0
    if not machine.memory.is_mapped(source, size):
        machine.memory.zero(destination, size)
        return -errno.EFAULT
    machine.memory.write(destination, machine.memory.read(source, size))
    return 0


@helper(HelperId.bpf_probe_read_kernel_str)
def probe_read_kernel_str(machine: Machine, destination: int, size: int, source: int) -> int:
    if size & U32 and _refuses_kernel_read(machine, source):
        machine.memory.zero(destination, size & U32)
        return -errno.ERANGE
    return probe_read_str(machine, destination, size, source)


@helper(HelperId.bpf_probe_read_str, HelperId.bpf_probe_read_user_str)
def probe_read_str(machine: Machine, destination: int, size: int, source: int) -> int:
    size &= U32
    if size == 0:
        return 0
    try:
        text = machine.memory.read_string(source, size - 1) if size > 1 else b""
    except Fault:
        machine.memory.zero(destination, size)
        return -errno.EFAULT
    machine.memory.write(destination, text + b"\0")
    return len(text) + 1


@helper(HelperId.bpf_d_path)
def d_path(machine: Machine, path: int, buffer: int, size: int) -> int:
    """Paths are what the person around the machine put into `Machine.paths`."""
    text = machine.paths.get(path)
    size &= U32
    if text is None:
        return -errno.EINVAL
    if len(text) + 1 > size:
        return -errno.ENAMETOOLONG
    machine.memory.write(buffer, text + b"\0")
    return len(text) + 1


# Text.


@helper(HelperId.bpf_trace_printk)
def trace_printk(machine: Machine, template: int, size: int, first: int, second: int, third: int) -> int:
    return _print(machine, machine.memory.read(template, size), [first, second, third])


@helper(HelperId.bpf_trace_vprintk)
def trace_vprintk(machine: Machine, template: int, size: int, data: int, data_size: int) -> int:
    if data_size % 8:
        return -errno.EINVAL
    return _print(machine, machine.memory.read(template, size), _words(machine, data, data_size))


def _print(machine: Machine, template: bytes, arguments: list[int]) -> int:
    try:
        text = format_text(machine.memory, template.partition(b"\0")[0], arguments)
    except ValueError:
        return -errno.EINVAL
    machine.printed.append(text.decode(errors="replace"))
    return len(text)


def _words(machine: Machine, data: int, size: int) -> list[int]:
    return [machine.memory.read_int(data + offset, 8) for offset in range(0, size, 8)]


@helper(HelperId.bpf_snprintf)
def snprintf(machine: Machine, out: int, out_size: int, template: int, data: int, data_size: int) -> int:
    if data_size % 8:
        return -errno.EINVAL
    try:
        text = format_text(machine.memory, machine.memory.read_string(template), _words(machine, data, data_size))
    except ValueError:
        return -errno.EINVAL
    if out_size:
        machine.memory.write(out, text[: out_size - 1] + b"\0")
    return len(text) + 1


@helper(HelperId.bpf_strncmp)
def strncmp(machine: Machine, left: int, size: int, right: int) -> int:
    for offset in range(size & U32):
        a = machine.memory.read(left + offset, 1)
        b = machine.memory.read(right + offset, 1)
        if a != b:
            return -1 if a < b else 1
        if a == b"\0":
            break
    return 0


@helper(HelperId.bpf_strtol)
def strtol(machine: Machine, text: int, size: int, flags: int, result: int) -> int:
    return _parse_number(machine, machine.memory.read(text, size), flags, result, is_signed=True)


@helper(HelperId.bpf_strtoul)
def strtoul(machine: Machine, text: int, size: int, flags: int, result: int) -> int:
    return _parse_number(machine, machine.memory.read(text, size), flags, result, is_signed=False)


def _parse_number(machine: Machine, text: bytes, flags: int, result: int, *, is_signed: bool) -> int:
    """Parse as __bpf_strtoull() does; returns how many bytes were used."""
    base = flags & 0x1F
    if base not in (0, 8, 10, 16) or flags & ~0x1F:
        return -errno.EINVAL
    position = len(text) - len(text.lstrip(b" \t\n\v\f\r"))
    is_negative = text[position : position + 1] == b"-"
    position += is_negative
    prefix = text[position : position + 2].lower()
    if base in (0, 16) and prefix == b"0x":
        base, position = 16, position + 2
    elif base == 0:
        base = 8 if prefix[:1] == b"0" else 10
    digits = b"0123456789abcdef"[:base]
    end = position
    while end < len(text) and text[end : end + 1].lower() in digits and text[end]:
        end += 1
    if end == position:
        return -errno.EINVAL
    number = int(text[position:end], base)
    limit = (1 << 63) - (not is_negative) if is_signed else U64
    if is_negative and not is_signed:
        return -errno.EINVAL
    if number > limit:
        return -errno.ERANGE
    machine.memory.write_int(result, -number if is_negative else number, 8)
    return end


# Loops and what a program says about itself.


@helper(HelperId.bpf_loop)
def loop(machine: Machine, count: int, function: int, context: int, flags: int) -> CallbackHelper:
    count &= U32
    if flags:
        return -errno.EINVAL
    if count > BPF_MAX_LOOPS:
        return -errno.E2BIG
    for index in range(count):
        if (yield Callback(function, (index, context))):
            return index + 1
    return count


@helper(HelperId.bpf_get_func_arg)
def get_func_arg(machine: Machine, context: int, number: int, value: int) -> int:
    arguments = machine.running.function_arguments
    if number & U32 >= len(arguments):
        return -errno.EINVAL
    machine.memory.write_int(value, arguments[number & U32], 8)
    return 0


@helper(HelperId.bpf_get_func_arg_cnt)
def get_func_arg_cnt(machine: Machine, context: int) -> int:
    return len(machine.running.function_arguments)


@helper(HelperId.bpf_get_func_ret)
def get_func_ret(machine: Machine, context: int, value: int) -> int:
    machine.memory.write_int(value, machine.running.function_result, 8)
    return 0


@helper(HelperId.bpf_get_attach_cookie)
def get_attach_cookie(machine: Machine, context: int) -> int:
    return machine.running.attach_cookie


@helper(HelperId.bpf_get_retval)
def get_retval(machine: Machine) -> int:
    return machine.running.return_value


@helper(HelperId.bpf_set_retval)
def set_retval(machine: Machine, value: int) -> int:
    machine.running.return_value = to_signed(value, 32)
    return 0


@helper(
    HelperId.bpf_sk_fullsock,
    HelperId.bpf_skc_to_tcp_sock,
    HelperId.bpf_skc_to_tcp6_sock,
    HelperId.bpf_skc_to_tcp_timewait_sock,
    HelperId.bpf_skc_to_tcp_request_sock,
    HelperId.bpf_skc_to_udp6_sock,
    HelperId.bpf_skc_to_unix_sock,
    HelperId.bpf_skc_to_mptcp_sock,
)
def cast_socket(machine: Machine, socket: int) -> int:
    """The machine does not know kinds of sockets: what a program takes for one is one."""
    return socket


@helper(HelperId.bpf_per_cpu_ptr)
def per_cpu_ptr(machine: Machine, pointer: int, cpu: int) -> int:
    return pointer if cpu & U32 < machine.cpus else 0


@helper(HelperId.bpf_this_cpu_ptr)
def this_cpu_ptr(machine: Machine, pointer: int) -> int:
    return pointer
