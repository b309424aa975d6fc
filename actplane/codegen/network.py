"""
Judging connections: an address becomes a short text, and that an automaton reads.

The text is that of `actplane.ir.endpoint`: a letter for the family, the address and the port as
letters a nibble. A unix socket is named by the path of its inode, whatever name it was called by.
"""

from __future__ import annotations

from collections.abc import Sequence

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.codegen import kernel, layout
from actplane.codegen.channels import deliver, notify_readers, wait
from actplane.codegen.clauses import Judge, signed32, words_of
from actplane.codegen.frame import argument, conclude, current_state, own_scratch
from actplane.codegen.paths import path_functions
from actplane.codegen.report import report_functions
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder
from actplane.ir.policy import Operation

SOCKETS = MapSpec("sockets", MapType.BPF_MAP_TYPE_SK_STORAGE, 4, layout.OBJECT_BYTES, 0, flags=1)
"""Labels that wait in a socket for whoever reads from it, and those it has carried already."""

ENDPOINTS = MapSpec("endpoints", MapType.BPF_MAP_TYPE_HASH, 24, layout.OBJECT_BYTES, 1 << 16, flags=1)
"""Labels of what was sent to an address, for whoever receives there or from there."""

# A socket address in SCRATCH_KERNEL, as sockaddr_in and sockaddr_in6 have it.
_FAMILY = layout.SCRATCH_KERNEL
_PORT = layout.SCRATCH_KERNEL + 2
_V4 = layout.SCRATCH_KERNEL + 4
_V6 = layout.SCRATCH_KERNEL + 8
ADDRESS_BYTES = 128
# Made canonical (no IPv4-mapped address, zero what the family does not use), its first 24 bytes are
# the key of ENDPOINTS. Sockets bound to every address read what was sent to a port: family 0.
_KEY_WORDS = (layout.SCRATCH_KERNEL, layout.SCRATCH_KERNEL + 8, layout.SCRATCH_KERNEL + 16)

# Fields of the context of a cgroup program, struct bpf_sock_addr.
_USER_IP4 = 4
_USER_IP6 = 8
_USER_PORT = 24

_BPF_NOEXIST = 1
_LOOPBACK = 0x0100007F
"""127.0.0.1 as it lies in memory."""


def socket_connect(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `socket_connect(sock, address, addrlen)`; unix sockets have `unix_connect`."""
    f, scratch, state = _begin(judge, name, denied)
    socket = argument(f, 0, "socket")
    _copy_address(f, scratch, argument(f, 1, "address"), argument(f, 2, "length"))
    family = f.load(scratch, _FAMILY, 2, "family")
    with f.when(family, "==", kernel.AF_UNIX):
        f.ret(0)
    with f.when(family, "==", kernel.AF_UNSPEC):  # Takes a connection back.
        f.ret(0)
    sk = _sk(f, socket)
    _judge_address(f, judge, scratch, state, sk, layout.EVENT_CONNECT, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, [Operation.CONNECT], layout.EVENT_CONNECT))


def socket_sendmsg(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """
    Return the program for `socket_sendmsg(sock, msg, size)`.

    A message with an address of its own is judged like a connect to it. One on a connected socket
    is judged if it carries labels that this socket has not carried before.
    """
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    sk = _sk(f, argument(f, 0, "socket"))
    family = f.load(sk, 0, 2, "family", kernel.SOCK_FAMILY)
    message = argument(f, 1, "message")
    address = f.load(message, field=kernel.MSG_NAME, name="address")
    connected, addressed = f.new_block("connected"), f.new_block("addressed")
    named = f.new_block("named")
    f.branch(family, "==", kernel.AF_UNIX, connected, named)
    f.start(named)
    f.branch(address, "==", 0, connected, addressed)
    f.start(connected)
    _send(f, judge, task, state, sk, family, denied)
    f.start(addressed)
    scratch = own_scratch(f, task, denied)
    judge.begin(f, scratch, state, ("endpoint",))
    _copy_address(f, scratch, address, f.load(message, 0, 4, "length", kernel.MSG_NAME_BYTES))
    given = f.load(scratch, _FAMILY, 2, "given")
    with f.when(given, "==", kernel.AF_UNSPEC):  # An IPv4 socket takes it for AF_INET.
        f.store(scratch, _FAMILY, family, 2)
    _judge_address(f, judge, scratch, state, sk, layout.EVENT_CONNECT, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, [Operation.CONNECT], layout.EVENT_CONNECT))


def socket_recvmsg(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `socket_recvmsg(sock, msg, size, flags)`: the process gains what it may read."""
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    sk = _sk(f, argument(f, 0, "socket"))
    family = f.load(sk, 0, 2, "family", kernel.SOCK_FAMILY)
    _receive(f, judge, task, state, sk, family, denied)
    return (f.finish(), *_shared(judge, [Operation.RECV], layout.EVENT_RECV))


def unix_connect(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `unix_stream_connect(sock, other, newsk)`."""
    f, scratch, state = _begin(judge, name, denied)
    other = argument(f, 1, "other")
    _judge_unix(f, scratch, state, other, layout.EVENT_CONNECT, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, [Operation.CONNECT], layout.EVENT_CONNECT))


def unix_send(judge: Judge, name: str, denied: int) -> tuple[bc.Function, ...]:
    """Return the program for `unix_may_send(sock, other)`: each datagram to a unix socket."""
    f, scratch, state = _begin(judge, name, denied)
    other = _sk(f, argument(f, 1, "other"))
    _judge_unix(f, scratch, state, other, layout.EVENT_CONNECT, denied)
    if judge.flowing:
        _give(f, judge, state, other, denied)
    f.ret(0)
    return (f.finish(), *_shared(judge, [Operation.CONNECT], layout.EVENT_CONNECT))


def cgroup_connect(judge: Judge, name: str, family: int) -> tuple[bc.Function, ...]:
    """Return the program for connect and sendto in the session's cgroup: 1 allows, 0 denies."""
    f = FunctionBuilder(name, ["context"])
    (context,) = f.parameters
    task, state = current_state(f, 0, judge.inbox_words)
    scratch = own_scratch(f, task, 0)
    judge.begin(f, scratch, state, ("endpoint",))
    f.store(scratch, _FAMILY, family, 2)
    f.store(scratch, _PORT, f.load(context, _USER_PORT, 4), 2)
    if family == kernel.AF_INET:
        f.store(scratch, _V4, f.load(context, _USER_IP4, 4), 4)
    else:
        for word in range(4):
            f.store(scratch, _V6 + 4 * word, f.load(context, _USER_IP6 + 4 * word, 4), 4)
    refused = f.call(_of("judge_address", layout.EVENT_CONNECT), scratch, state, result="refused")
    with f.when(refused, "!=", 0):
        f.ret(0)
    f.ret(1)
    return (f.finish(), *_shared(judge, [Operation.CONNECT], layout.EVENT_CONNECT))


def by_descriptor(
    f: FunctionBuilder, judge: Judge, task: bc.Value, state: bc.Value, file: bc.Value, mask: bc.Value, denied: int
) -> tuple[bc.Function, ...]:
    """
    Emit: judge what is spliced from a socket, or, by kernels before 6.5, to one; return, and what that calls.

    The hooks of sockets see all else, but not these; reads and writes are left to them.
    """
    flags = f.load(task, 0, 4, "flags", kernel.TASK_FLAGS)
    f.update(flags, "&", kernel.PF_IO_WORKER)
    with f.when(flags, "==", 0):
        regs = f.helper("bpf_task_pt_regs", task, result="regs")
        call = f.load(regs, field=kernel.REGS_SYSCALL, name="call")
        for number in kernel.SYSCALLS_READ_WRITE:
            with f.when(call, "==", number):
                f.ret(0)
    socket = f.helper("bpf_sock_from_file", file, result="socket")
    with f.when(socket, "==", 0):
        f.ret(0)
    sk = _sk(f, socket)
    family = f.load(sk, 0, 2, "family", kernel.SOCK_FAMILY)
    functions: list[bc.Function] = []
    if judge.flowing:
        with f.when(mask, "&", kernel.MAY_WRITE):
            _send(f, judge, task, state, sk, family, denied)
        functions.extend(_shared(judge, [Operation.CONNECT], layout.EVENT_CONNECT))
    with f.when(mask, "&", kernel.MAY_READ):
        _receive(f, judge, task, state, sk, family, denied)
    functions.extend(_shared(judge, [Operation.RECV], layout.EVENT_RECV))
    f.ret(0)
    return tuple(functions)


def _send(
    f: FunctionBuilder, judge: Judge, task: bc.Value, state: bc.Value, sk: bc.Value, family: bc.Value, denied: int
) -> None:
    """Emit: judge bytes for whoever a socket is connected to, if they carry new labels; return."""
    if judge.flowing:
        with f.when(family, "==", kernel.AF_UNIX):
            unix = f.helper("bpf_skc_to_unix_sock", sk, result="unix")
            with f.when(unix, "!=", 0):
                peer = f.load(unix, field=kernel.UNIX_PEER, name="peer")
                with f.when(peer, "!=", 0):
                    _give(f, judge, state, peer, denied)
            f.ret(0)
        fresh = _fresh(f, judge, state, sk)
        with f.when(fresh, "!=", 0):
            scratch = own_scratch(f, task, denied)
            judge.begin(f, scratch, state, ("endpoint",))
            _copy_peer(f, scratch, sk, family)
            _judge_address(f, judge, scratch, state, sk, layout.EVENT_CONNECT, denied)
    f.ret(0)


def _receive(
    f: FunctionBuilder, judge: Judge, task: bc.Value, state: bc.Value, sk: bc.Value, family: bc.Value, denied: int
) -> None:
    """Emit: the process gains the labels of what it may read from a socket; return."""
    if judge.flowing:
        with f.when(family, "==", kernel.AF_UNIX):
            waiting = f.helper(
                "bpf_sk_storage_get", f.map_address("sockets"), sk, 0, kernel.STORAGE_CREATE, result="waiting"
            )
            with f.when(waiting, "==", 0):
                f.ret(denied)
            wait(f, state, waiting)
            for index in words_of(judge.flowing):
                f.atomic("|", state, layout.STATE_LABELS + 4 * index, f.load(waiting, 4 * index, 4), 4)
    scratch = own_scratch(f, task, denied)
    judge.begin(f, scratch, state, ("endpoint",))
    with f.when(family, "==", kernel.AF_UNIX):
        if "endpoint" in judge.recognizers:
            # A connection bears the name of the server it was made to; half a pair has none.
            unix = f.helper("bpf_skc_to_unix_sock", sk, result="unix")
            with f.when(unix, "!=", 0):
                peer = f.load(unix, field=kernel.UNIX_PEER, name="peer")
                with f.when(peer, "!=", 0):
                    _judge_unix(f, scratch, state, peer, layout.EVENT_RECV, denied)
        f.ret(0)
    if judge.flowing:
        _copy_own(f, scratch, sk, family)
        key = f.op(scratch, "+", layout.SCRATCH_KERNEL, "key")
        address = _endpoint(f, key)
        with f.when(address, "==", 0):
            f.ret(denied)
        wait(f, state, address)
        f.call("gain_endpoint", scratch)
    _copy_peer(f, scratch, sk, family)
    _judge_address(f, judge, scratch, state, sk, layout.EVENT_RECV, denied)
    f.ret(0)


# Addresses


def _of(name: str, event: int) -> str:
    """Return the name of a function that there is once more for what is received: some programs judge both."""
    return f"{name}_received" if event == layout.EVENT_RECV else name


def _begin(judge: Judge, name: str, denied: int) -> tuple[FunctionBuilder, bc.Value, bc.Value]:
    f = FunctionBuilder(name, ["context"])
    task, state = current_state(f, 0, judge.inbox_words)
    scratch = own_scratch(f, task, denied)
    judge.begin(f, scratch, state, ("endpoint",))
    return f, scratch, state


def _sk(f: FunctionBuilder, socket: bc.Value) -> bc.Value:
    """Emit: the protocol's half of a socket; one that has none yet is let pass, it goes nowhere."""
    sk = f.load(socket, field=kernel.SOCKET_SK, name="sk")
    with f.when(sk, "==", 0):
        f.ret(0)
    return sk


def _copy_address(f: FunctionBuilder, scratch: bc.Value, address: bc.Value, length: bc.Value) -> None:
    """Emit: copy a socket address that the kernel holds; what it does not have is zero."""
    for word in range(ADDRESS_BYTES // 8):
        f.store(scratch, layout.SCRATCH_KERNEL + 8 * word, 0)
    with f.when(length, ">", ADDRESS_BYTES):
        f.assign(length, ADDRESS_BYTES)
    f.update(length, "&", 2 * ADDRESS_BYTES - 1)
    copy = f.op(scratch, "+", layout.SCRATCH_KERNEL, "copy")
    f.helper("bpf_probe_read_kernel", copy, length, address)


def _copy_peer(f: FunctionBuilder, scratch: bc.Value, sk: bc.Value, family: bc.Value) -> None:
    """Emit: put together the address that a socket is connected to."""
    f.store(scratch, _FAMILY, family, 2)
    f.store(scratch, _PORT, f.load(sk, 0, 2, field=kernel.SOCK_DPORT), 2)
    f.store(scratch, _V4, f.load(sk, 0, 4, field=kernel.SOCK_DADDR), 4)
    with f.when(family, "==", kernel.AF_INET6):
        to = f.op(scratch, "+", _V6, "to")
        f.helper("bpf_probe_read_kernel", to, 16, f.field_address(sk, kernel.SOCK_V6_DADDR))


def _copy_own(f: FunctionBuilder, scratch: bc.Value, sk: bc.Value, family: bc.Value) -> None:
    """Emit: the key of the address that a socket is bound to."""
    for offset in _KEY_WORDS:
        f.store(scratch, offset, 0)
    port = f.load(sk, 0, 2, "port", kernel.SOCK_NUMBER)
    f.store(scratch, _PORT, f.to_big_endian(port, 16), 2)
    bound, v6, done = f.new_block("bound"), f.new_block("v6"), f.new_block("done")
    v4 = f.load(sk, 0, 4, "v4", kernel.SOCK_OWN_ADDRESS)
    # An IPv6 socket that talks IPv4 has its address there as well.
    f.branch(v4, "!=", 0, bound, v6)
    f.start(bound)
    f.store(scratch, _FAMILY, kernel.AF_INET, 2)
    f.store(scratch, _V4, v4, 4)
    f.jump(done)
    f.start(v6)
    with f.when(family, "==", kernel.AF_INET6):
        to = f.op(scratch, "+", _V6, "to")
        f.helper("bpf_probe_read_kernel", to, 16, f.field_address(sk, kernel.SOCK_V6_OWN_ADDRESS))
        any_bit = f.load(scratch, _V6, name="high")
        f.update(any_bit, "|", f.load(scratch, _V6 + 8, name="low"))
        with f.when(any_bit, "!=", 0):
            f.store(scratch, _FAMILY, kernel.AF_INET6, 2)
    f.start(done)


def _judge_address(
    f: FunctionBuilder, judge: Judge, scratch: bc.Value, state: bc.Value, sk: bc.Value, event: int, denied: int
) -> None:
    """Emit: return `denied` unless the address in SCRATCH_KERNEL is allowed."""
    refused = f.call(_of("judge_address", event), scratch, state, result="refused")
    with f.when(refused, "!=", 0):
        f.ret(denied)
    if event == layout.EVENT_CONNECT and judge.flowing:
        carried = f.helper("bpf_sk_storage_get", f.map_address("sockets"), sk, 0, kernel.STORAGE_CREATE)
        with f.when(carried, "!=", 0):
            for pair in range(judge.label_words // 2):
                f.store(carried, 8 * pair, f.load(state, layout.STATE_LABELS + 8 * pair))


def _judge_unix(
    f: FunctionBuilder, scratch: bc.Value, state: bc.Value, other: bc.Value, event: int, denied: int
) -> None:
    refused = f.call(_of("judge_unix", event), scratch, state, other, result="refused")
    with f.when(refused, "!=", 0):
        f.ret(denied)


def _fresh(f: FunctionBuilder, judge: Judge, state: bc.Value, sk: bc.Value) -> bc.Value:
    """Emit: not 0 if the process has labels that the socket has not carried."""
    carried = f.helper("bpf_sk_storage_get", f.map_address("sockets"), sk, 0, 0, result="carried")
    fresh = f.let(0, "fresh")
    for index, flowing in words_of(judge.flowing).items():
        labels = f.load(state, layout.STATE_LABELS + 4 * index, 4, "labels")
        with f.when(carried, "!=", 0):
            had = f.load(carried, 4 * index, 4, "had")
            f.update(had, "^", -1)
            f.update(labels, "&", had)
        f.update(labels, "&", signed32(flowing), width=32)
        f.update(fresh, "|", labels)
    return fresh


def _give(f: FunctionBuilder, judge: Judge, state: bc.Value, sk: bc.Value, denied: int) -> None:
    """Emit: the labels of the process wait in another socket."""
    waiting = f.helper("bpf_sk_storage_get", f.map_address("sockets"), sk, 0, kernel.STORAGE_CREATE, result="waiting")
    with f.when(waiting, "==", 0):
        f.ret(denied)
    for index, flowing in words_of(judge.flowing).items():
        labels = f.load(state, layout.STATE_LABELS + 4 * index, 4, "labels")
        f.update(labels, "&", signed32(flowing), width=32)
        f.atomic("|", waiting, 4 * index, labels, 4)
    notify_readers(f, waiting, denied)


def _shared(judge: Judge, operations: Sequence[Operation], event: int) -> tuple[bc.Function, ...]:
    functions = [
        _judge_address_function(judge, operations, event),
        _nibbles(),
        deliver(),
        *path_functions(),
        *report_functions(judge, can_deny=True, is_exec_check=False),
    ]
    functions.append(_judge_unix_function(event))
    functions.append(_give_endpoint(judge) if event == layout.EVENT_CONNECT else _gain_endpoint(judge))
    functions.append(_settle(judge, operations, event))
    if "endpoint" in judge.recognizers:
        functions.extend(judge.recognizers["endpoint"].functions())
    if judge.clauses(operations):
        functions.append(judge.judge_function(_of("judge_endpoint", event), operations))
    return tuple(functions)


def _judge_address_function(judge: Judge, operations: Sequence[Operation], event: int) -> bc.Function:
    """
    Return `judge_address(scratch, state)`: the address in SCRATCH_KERNEL, as text, judged.

    Its result is 1 if the event must be denied.
    """
    f = FunctionBuilder(_of("judge_address", event), ["scratch", "state"])
    scratch, state = f.parameters
    family = f.load(scratch, _FAMILY, 2, "family")
    v4, v6, done = f.new_block("v4"), f.new_block("v6"), f.new_block("done")
    other, not_v4 = f.new_block("other"), f.new_block("not_v4")
    chunk = layout.SCRATCH_TEXT + layout.TEXT_CHUNK
    length = f.value("length")
    f.branch(family, "==", kernel.AF_INET, v4, not_v4)
    f.start(not_v4)
    f.branch(family, "==", kernel.AF_INET6, v6, other)

    f.start(v6)
    # ::ffff:a.b.c.d reaches the IPv4 address in it, so that is what is judged.
    mapped = f.new_block("mapped")
    plain, maybe = f.new_block("plain"), f.new_block("maybe")
    f.branch(f.load(scratch, _V6, name="high"), "==", 0, maybe, plain)
    f.start(maybe)
    f.branch(f.load(scratch, _V6 + 8, 4, "middle"), "==", signed32(0xFFFF0000), mapped, plain, 32)
    f.start(mapped)
    f.store(scratch, _V4, f.load(scratch, _V6 + 12, 4), 4)
    f.store(scratch, _FAMILY, kernel.AF_INET, 2)
    f.jump(v4)
    f.start(plain)
    f.store(scratch, _V4, 0, 4)
    if event == layout.EVENT_CONNECT:  # To connect to no address is to connect to this host.
        any_bit = f.load(scratch, _V6 + 8, name="low")
        f.update(any_bit, "|", f.load(scratch, _V6))
        with f.when(any_bit, "==", 0):
            f.store(scratch, _V6 + 15, 1, 1)
    f.store(scratch, chunk, ord("6"), 1)
    f.call("nibbles", scratch, layout.SCRATCH_KERNEL + 8, layout.TEXT_CHUNK + 1, 16)
    f.call("nibbles", scratch, layout.SCRATCH_KERNEL + 2, layout.TEXT_CHUNK + 33, 2)
    f.assign(length, 37)
    f.jump(done)

    f.start(v4)
    if event == layout.EVENT_CONNECT:
        with f.when(f.load(scratch, _V4, 4, "v4"), "==", 0):
            f.store(scratch, _V4, _LOOPBACK, 4)
    f.store(scratch, _V6, 0)
    f.store(scratch, _V6 + 8, 0)
    f.store(scratch, chunk, ord("4"), 1)
    f.call("nibbles", scratch, layout.SCRATCH_KERNEL + 4, layout.TEXT_CHUNK + 1, 4)
    f.call("nibbles", scratch, layout.SCRATCH_KERNEL + 2, layout.TEXT_CHUNK + 9, 2)
    f.assign(length, 13)
    f.jump(done)

    f.start(other)
    f.store(scratch, chunk, ord("x"), 1)
    swapped = f.to_big_endian(family, 16)
    f.store(scratch, _PORT, swapped, 2)
    f.call("nibbles", scratch, layout.SCRATCH_KERNEL + 2, layout.TEXT_CHUNK + 1, 2)
    f.assign(length, 5)
    f.start(done)
    at = f.op(length, "+", scratch, "at")
    f.store(at, chunk, 0, 1)
    f.store(scratch, layout.SCRATCH_TARGET, layout.TEXT_CHUNK)
    f.store(scratch, layout.SCRATCH_TARGET_BYTES, length)
    if judge.flowing and event == layout.EVENT_RECV:
        f.call("gain_endpoint", scratch)
    refused = f.call(_of("settle", event), scratch, state, result="refused")
    with f.when(refused, "!=", 0):
        f.ret(1)
    if judge.flowing and event == layout.EVENT_CONNECT:
        refused = f.call("give_endpoint", scratch, result="refused")
        with f.when(refused, "!=", 0):
            f.ret(1)
        f.store(scratch, _FAMILY, 0, 2)
        for offset in (_V4, _V6, _V6 + 4, _V6 + 8, _V6 + 12):
            f.store(scratch, offset, 0, 4)
        f.ret(f.call("give_endpoint", scratch))
    f.ret(0)
    return f.finish()


def _gain_endpoint(judge: Judge) -> bc.Function:
    """Return `gain_endpoint(scratch)`: the subject gains the labels of what was sent to an address."""
    f = FunctionBuilder("gain_endpoint", ["scratch"])
    (scratch,) = f.parameters
    key = f.op(scratch, "+", layout.SCRATCH_KERNEL, "key")
    labels = f.helper("bpf_map_lookup_elem", f.map_address("endpoints"), key, result="labels")
    with f.when(labels, "!=", 0):
        for pair in range(judge.label_words // 2):
            word = f.load(scratch, layout.SCRATCH_LABELS + 8 * pair, name="word")
            f.update(word, "|", f.load(labels, 8 * pair))
            f.store(scratch, layout.SCRATCH_LABELS + 8 * pair, word)
    f.ret(0)
    return f.finish()


def _give_endpoint(judge: Judge) -> bc.Function:
    """Return `give_endpoint(scratch)`: an address gains the labels of the subject; 1 if there is no room."""
    f = FunctionBuilder("give_endpoint", ["scratch"])
    (scratch,) = f.parameters
    worth = f.let(0, "worth")
    for index, flowing in words_of(judge.flowing).items():
        word = f.load(scratch, layout.SCRATCH_LABELS + 4 * index, 4, "word")
        f.update(word, "&", signed32(flowing), width=32)
        f.update(worth, "|", word)
    with f.when(worth, "==", 0):
        f.ret(0)
    labels = _endpoint(f, f.op(scratch, "+", layout.SCRATCH_KERNEL, "key"))
    with f.when(labels, "==", 0):
        f.ret(1)
    for index, flowing in words_of(judge.flowing).items():
        word = f.load(scratch, layout.SCRATCH_LABELS + 4 * index, 4, "word")
        f.update(word, "&", signed32(flowing), width=32)
        f.atomic("|", labels, 4 * index, word, 4)
    notify_readers(f, labels, 1)
    f.ret(0)
    return f.finish()


def _endpoint(f: FunctionBuilder, key: bc.Value) -> bc.Value:
    """Emit: what is known of an address, an entry made if need be; 0 if there is no room."""
    endpoints = f.map_address("endpoints")
    entry = f.helper("bpf_map_lookup_elem", endpoints, key, result="entry")
    with f.when(entry, "==", 0):
        empty = f.frame_address(f.slot("empty", layout.OBJECT_BYTES))
        for offset in range(0, layout.OBJECT_BYTES, 8):
            f.store(empty, offset, 0)
        f.helper("bpf_map_update_elem", endpoints, key, empty, _BPF_NOEXIST)
        f.assign(entry, f.helper("bpf_map_lookup_elem", endpoints, key))
    return entry


def _nibbles() -> bc.Function:
    """Return `nibbles(scratch, from, to, count)`: bytes of the scratch as letters a to p in its text."""
    f = FunctionBuilder("nibbles", ["scratch", "source", "to", "count"])
    scratch, source, to, count = f.parameters
    f.update(source, "&", 4095)
    f.update(source, "+", scratch)
    f.update(to, "&", layout.TEXT_MASK)
    f.update(to, "+", scratch)
    done = f.new_block("done")
    for index in range(16):
        if index in (2, 4):
            more = f.new_block("more")
            f.branch(count, "==", index, done, more)
            f.start(more)
        byte = f.load(source, index, 1, "byte")
        low = f.op(byte, "&", 15, "low")
        f.update(byte, ">>", 4)
        f.update(byte, "+", ord("a"))
        f.update(low, "+", ord("a"))
        f.store(to, layout.SCRATCH_TEXT + 2 * index, byte, 1)
        f.store(to, layout.SCRATCH_TEXT + 2 * index + 1, low, 1)
    f.start(done)
    f.ret(0)
    return f.finish()


def _judge_unix_function(event: int) -> bc.Function:
    """
    Return `judge_unix(scratch, state, sk)`: the name that a unix socket is bound to, judged.

    A socket without a name, such as one half of a pair, is no endpoint.
    """
    f = FunctionBuilder(_of("judge_unix", event), ["scratch", "state", "sk"])
    scratch, state, sk = f.parameters
    unix = f.helper("bpf_skc_to_unix_sock", sk, result="unix")
    with f.when(unix, "==", 0):
        f.ret(0)
    dentry = f.load(unix, field=kernel.UNIX_PATH_DENTRY, name="dentry")
    with f.when(dentry, "!=", 0):
        mount = f.load(unix, field=kernel.UNIX_PATH_MOUNT, name="mount")
        length = f.call("path_of", scratch, dentry, mount, result="length")
        with f.when(length, "==", 0):
            # What cannot be named is denied by the clause-free verdict that `settle` then finds.
            f.store(scratch, layout.SCRATCH_TARGET_BYTES, 0)
            f.store(scratch, layout.SCRATCH_VERDICT, layout.VERDICT_BLOCK)
            f.store(scratch, layout.SCRATCH_CAUSE, layout.CAUSE_NO_PATH)
            f.ret(f.call(_of("settle", event), scratch, state))
        target = f.load(scratch, layout.SCRATCH_TARGET, name="target")
        f.update(target, "-", 1)
        f.update(length, "+", 1)
        f.store(scratch, layout.SCRATCH_TARGET, target)
        f.store(scratch, layout.SCRATCH_TARGET_BYTES, length)
        f.update(target, "&", layout.TEXT_PATH_END - 1)
        f.update(target, "+", scratch)
        f.store(target, layout.SCRATCH_TEXT, ord("u"), 1)
        f.ret(f.call(_of("settle", event), scratch, state))
    address = f.load(unix, field=kernel.UNIX_ADDRESS, name="address")
    with f.when(address, "==", 0):
        f.ret(0)
    # A name follows the family, an abstract one a NUL as well; it ends at the next NUL or with the address.
    size = f.op(scratch, "+", layout.SCRATCH_KERNEL, "size")
    f.helper("bpf_probe_read_kernel", size, 4, f.field_address(address, kernel.UNIX_ADDRESS_BYTES))
    length = f.load(scratch, layout.SCRATCH_KERNEL, 4, "length")
    f.update(length, "-", 2)
    with f.when(length, "s<", 2):
        f.ret(0)
    f.update(length, "&", 127)
    name = f.field_address(address, kernel.UNIX_ADDRESS_NAME, "name")
    f.update(name, "+", 2)
    f.store(scratch, layout.SCRATCH_KERNEL, 0)
    f.helper("bpf_probe_read_kernel", f.op(scratch, "+", layout.SCRATCH_KERNEL), 1, name)
    first = f.load(scratch, layout.SCRATCH_KERNEL, 1, "first")
    f.store(scratch, layout.SCRATCH_TEXT + layout.TEXT_CHUNK, int.from_bytes(b"u@", "little"), 2)
    prefix = f.let(2, "prefix")
    f.update(name, "+", 1)
    with f.when(first, "!=", 0):  # A socket that is closed has lost its file; this is the name it was bound to.
        f.assign(prefix, 1)
        f.update(name, "-", 1)
    text = f.op(scratch, "+", layout.SCRATCH_TEXT + layout.TEXT_CHUNK, "text")
    f.update(text, "+", prefix)
    read = f.helper("bpf_probe_read_kernel_str", text, length, name, result="read")
    with f.when(read, "s<", 1):
        f.ret(0)
    f.update(read, "+", prefix)
    f.update(read, "-", 1)
    f.store(scratch, layout.SCRATCH_TARGET, layout.TEXT_CHUNK)
    f.store(scratch, layout.SCRATCH_TARGET_BYTES, read)
    f.ret(f.call(_of("settle", event), scratch, state))
    return f.finish()


def _settle(judge: Judge, operations: Sequence[Operation], event: int) -> bc.Function:
    """Return `settle(scratch, state)`: judge the endpoint that is the target; 1 if it is denied."""
    f = FunctionBuilder(_of("settle", event), ["scratch", "state"])
    scratch, state = f.parameters
    f.store(scratch, layout.SCRATCH_ACCESS, 0)
    if "endpoint" in judge.recognizers:
        recognizer = judge.recognizers["endpoint"]
        target = f.load(scratch, layout.SCRATCH_TARGET, name="target")
        length = f.load(scratch, layout.SCRATCH_TARGET_BYTES, name="length")
        f.update(length, "+", 1)
        recognizer.begin(f, scratch)
        recognizer.walk(f, scratch, target, length)
    if event == layout.EVENT_RECV:
        judge.add_source_labels(f, scratch, "endpoint")
    if judge.clauses(operations):
        f.call(_of("judge_endpoint", event), scratch, state)
    conclude(f, scratch, event, f.new_block("conclusion"), 1)
    judge.commit_labels(f, scratch, state)
    f.ret(0)
    return f.finish()
