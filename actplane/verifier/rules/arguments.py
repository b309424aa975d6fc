"""
Arguments of helpers: whether what a register holds is what the prototype asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from actplane.asm.uapi import MapType, ProgType
from actplane.verifier.domains.btf_walk import holds_struct
from actplane.verifier.domains.kinds import PACKETS, SOCKETS, Flag, Kind
from actplane.verifier.domains.maps import MapFacts
from actplane.verifier.domains.types import BtfKind
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import ZERO, Pointer, Scalar, Value, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.rules import btf_access, context, dynptrs, kptrs, memory, refs, stack
from actplane.verifier.tables.helper_table import READS_PACKET, Arg, Prototype
from actplane.verifier.tables.refusals import refuse

MAX_SIZE: Final = 1 << 29

_MEMORY: Final = frozenset(
    {Kind.STACK, Kind.PACKET, Kind.PACKET_META, Kind.MAP_KEY, Kind.MAP_VALUE, Kind.MEM, Kind.BUF, Kind.BTF_ID}
)
_KEYS: Final = frozenset({Kind.STACK, Kind.PACKET, Kind.PACKET_META, Kind.MAP_KEY, Kind.MAP_VALUE, Kind.MEM})
_SOCKET_MAPS: Final = frozenset({MapType.BPF_MAP_TYPE_SOCKMAP, MapType.BPF_MAP_TYPE_SOCKHASH})
_PLAIN_CONTEXTS: Final = frozenset(
    {
        ProgType.BPF_PROG_TYPE_KPROBE,
        ProgType.BPF_PROG_TYPE_TRACEPOINT,
        ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT,
        ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE,
        ProgType.BPF_PROG_TYPE_TRACING,
        ProgType.BPF_PROG_TYPE_LSM,
        ProgType.BPF_PROG_TYPE_SYSCALL,
    }
)
"""Kinds of programs whose context is memory as it is, so that functions which take any memory take it, too."""
_MOVABLE: Final = frozenset(
    {Kind.STACK, Kind.PACKET, Kind.PACKET_META, Kind.MAP_KEY, Kind.MAP_VALUE, Kind.MEM, Kind.BUF}
)


def check(v: Verification, state: State, call: Call, index: int, proto: Prototype) -> None:
    """Check argument `index` (0 is r1) of a call against its prototype."""
    arg = proto.args[index]
    reg = index + 1
    value = state.frames[-1].regs[reg]
    if value is None:
        refuse("uninitialized-register", call.slot, f"r{reg} is read before it is set", reg)
    if arg.kind == "any":
        if isinstance(value, Pointer) and not v.is_privileged:
            refuse("pointer-leak", call.slot, f"r{reg} is a pointer and would be passed as a number", reg)
        return
    is_null = isinstance(value, Scalar) and value.range.is_const and value.range.value == 0
    if arg.is_nullable and is_null:
        return
    if isinstance(value, Pointer):
        _check_packet_argument(v, call, reg, value)
        if value.ref and arg.kind != "kptr":
            if call.ref and not v.profile.at_least(7, 0):
                refuse("argument-type", call.slot, f"{call.name}: more than one argument holds a reference", reg)
            call.ref = value.ref
    _CHECKS[arg.kind](v, state, call, reg, value, arg)


def _check_packet_argument(v: Verification, call: Call, reg: int, value: Pointer) -> None:
    if value.kind not in PACKETS:
        return
    is_allowed = v.prog_type is ProgType.BPF_PROG_TYPE_CGROUP_SOCKOPT or (
        memory.may_read_packet(v) and call.helper in READS_PACKET
    )
    if not is_allowed:
        refuse("packet-write", call.slot, f"r{reg}: {call.name} takes no pointers into the packet", reg)


def wrong_type(call: Call, reg: int, value: Value | None, expected: str) -> None:
    """Refuse an argument of the wrong kind."""
    id_ = "argument-null" if isinstance(value, Pointer) and value.flags & Flag.NULL else "argument-type"
    refuse(id_, call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected {expected}", reg)


def _pointer(
    call: Call, reg: int, value: Value, kinds: frozenset[Kind], expected: str, *, nullable: bool = False
) -> Pointer:
    if not isinstance(value, Pointer) or value.kind not in kinds:
        wrong_type(call, reg, value, expected)
    assert isinstance(value, Pointer)
    if value.flags & Flag.NULL and not nullable:
        wrong_type(call, reg, value, expected)
    return value


_MAY_POINT_INSIDE: Final = frozenset(
    {
        Flag.NONE,
        Flag.TRUSTED,
        Flag.RCU,
        Flag.ALLOC,
        Flag.ALLOC | Flag.NON_OWN,
        Flag.ALLOC | Flag.NON_OWN | Flag.RCU,
    }
)
"""What pointers to structs may be that are passed with an offset."""


def check_fixed(call: Call, reg: int, value: Pointer) -> None:
    """Refuse a pointer that was moved, where its start is needed."""
    if value.kind in _MOVABLE:
        return
    if value.kind is Kind.BTF_ID and value.flags in _MAY_POINT_INSIDE:
        if not value.var.is_const or value.var.value:
            refuse("argument-type", call.slot, f"r{reg}: a pointer to a struct at an unknown offset", reg)
        return
    id_ = "context-modified" if value.kind is Kind.CTX else "argument-type"
    if value.off or (value.var is not ZERO and (not value.var.is_const or value.var.value)):
        refuse(id_, call.slot, f"r{reg} is {value.type_name} at an offset, expected its start", reg)


def _map(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    pointer = _pointer(call, reg, value, frozenset({Kind.MAP_PTR}), "map_ptr")
    check_fixed(call, reg, pointer)
    if call.extra.get("timer_map") is not None:
        timer_map, uid = call.extra["timer_map"]
        if timer_map is not pointer.map or uid != pointer.map_uid:
            refuse("argument-type", call.slot, f"r{reg}: the timer lies in another map than this one", reg)
    call.map, call.map_uid, call.map_reg = pointer.map, pointer.map_uid, reg


def _key(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    kinds = _KEYS if v.profile.at_least(6, 2) else _KEYS - {Kind.MEM}
    pointer = _pointer(call, reg, value, kinds, "fp, pkt, map_key, map_value")
    assert call.map is not None
    size = call.map.spec.key_size
    call.extra["key"] = pointer
    check_memory(v, state, call, reg, pointer, size, allows_nothing=False, is_write=False)


def _value(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    if call.map is not None and call.map.spec.type in _SOCKET_MAPS:
        _sk(v, state, call, reg, value, arg)
        return
    pointer = _pointer(call, reg, value, _KEYS | {Kind.MEM, Kind.BUF, Kind.BTF_ID}, "fp, pkt, map_key, map_value, mem")
    if pointer.kind is Kind.MEM and pointer.flags & Flag.RDONLY and not v.profile.at_least(6, 1):
        wrong_type(call, reg, value, "fp, pkt, map_key, map_value, mem")
    assert call.map is not None
    check_memory(v, state, call, reg, pointer, call.map.spec.value_size, allows_nothing=False, is_write=False)


def _empty_value(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    pointer = _pointer(call, reg, value, _KEYS | {Kind.MEM}, "fp, pkt, map_key, map_value, mem")
    assert call.map is not None
    size = call.map.spec.value_size
    is_uninit = not (call.name == "bpf_map_peek_elem" and call.map.spec.type is MapType.BPF_MAP_TYPE_BLOOM_FILTER)
    if is_uninit:
        check_memory(v, state, call, reg, pointer, size, allows_nothing=False, is_write=True, is_raw=True)
        call.written = (reg, pointer, size)
    else:
        check_memory(v, state, call, reg, pointer, size, allows_nothing=False, is_write=False)


_MEM_TEXT: Final = "fp, pkt, pkt_meta, map_key, map_value, mem, ringbuf_mem, buf, trusted_ptr_"


def _memory(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    pointer = _pointer(call, reg, value, _MEMORY, _MEM_TEXT, nullable=arg.is_nullable)
    if call.name == "bpf_dynptr_from_mem" and pointer.kind is not Kind.MAP_VALUE:
        refuse("dynptr", call.slot, f"r{reg} is {pointer.type_name}: a dynptr can be made of a map value only", reg)
    if pointer.flags & Flag.RDONLY and arg.kind != "mem":
        wrong_type(call, reg, value, _MEM_TEXT)
    if pointer.kind is Kind.BTF_ID:
        if not pointer.flags & Flag.TRUSTED and not pointer.ref:
            wrong_type(call, reg, value, _MEM_TEXT)
        if arg.kind != "mem":
            refuse("read-only", call.slot, f"r{reg}: {call.name} may write to a kernel struct", reg)
    if pointer.kind is Kind.MEM and pointer.flags & (Flag.PERCPU | Flag.USER | Flag.UNTRUSTED):
        wrong_type(call, reg, value, _MEM_TEXT)
    check_fixed(call, reg, pointer)
    if arg.detail:
        size = int(arg.detail)
        is_raw = arg.kind == "umem"
        if size in (4, 8):
            memory.check_alignment(v, call.slot, reg, pointer, 0, size)
        check_memory(
            v, state, call, reg, pointer, size, allows_nothing=False, is_write=arg.kind != "mem", is_raw=is_raw
        )
        if is_raw or arg.kind == "wmem":
            call.written = (reg, pointer, size)


def _size(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    """A length belongs to the memory in the argument before it."""
    if not isinstance(value, Scalar):
        wrong_type(call, reg, value, "scalar")
    assert isinstance(value, Scalar)
    memory_arg: Arg = call.extra["memory"]
    check_sized(
        v,
        state,
        call,
        reg,
        value,
        allows_nothing=arg.kind == "size0",
        is_write=memory_arg.kind != "mem",
        is_raw=memory_arg.kind == "umem",
        # Where null may be passed, kernels since 5.17 take what may be null, too.
        is_nullable=memory_arg.is_nullable and v.profile.at_least(5, 17),
    )


def check_sized(
    v: Verification,
    state: State,
    call: Call,
    reg: int,
    value: Scalar,
    *,
    allows_nothing: bool,
    is_write: bool,
    is_raw: bool,
    is_nullable: bool = False,
) -> None:
    """Check the memory in the register before `reg` for a length that `reg` holds."""
    length = value.range
    call.max_size = length.umax
    base = state.frames[-1].regs[reg - 1]
    if length.smin < 0:
        claim = f"r{reg}: the length may be negative; use an unsigned comparison or 'var &= const'"
        refuse("argument-size", call.slot, claim, reg)
    if length.umin == 0 and not allows_nothing:
        refuse("argument-size", call.slot, f"r{reg}: the length may be 0", reg)
    if length.umax >= MAX_SIZE:
        refuse("argument-size", call.slot, f"r{reg}: the length has no upper bound", reg)
    if isinstance(base, Scalar) or base is None:
        is_null = isinstance(base, Scalar) and base.range.is_const and base.range.value == 0
        if not (allows_nothing and is_null and length.umax == 0):
            wrong_type(call, reg - 1, base, _MEM_TEXT)
        v.mark_precise(state, reg)
        return
    if base.flags & Flag.NULL and not is_nullable:
        wrong_type(call, reg - 1, base, _MEM_TEXT)
    # With an unknown length the helper may leave part of the memory as it was.
    is_raw = is_raw and length.is_const
    check_memory(
        v, state, call, reg - 1, base, length.umax, allows_nothing=allows_nothing, is_write=is_write, is_raw=is_raw
    )
    if is_raw:
        call.written = (reg - 1, base, length.umax)
    v.mark_precise(state, reg)


def check_memory(
    v: Verification,
    state: State,
    call: Call,
    reg: int,
    pointer: Pointer,
    size: int,
    *,
    allows_nothing: bool,
    is_write: bool,
    is_raw: bool = False,
) -> None:
    """Check that `size` bytes at a pointer may be read, or written, by what is called."""
    kind, off, slot = pointer.kind, pointer.off, call.slot
    if kind is Kind.STACK:
        if size == 0 and not allows_nothing:
            refuse("argument-size", slot, f"r{reg}: no bytes at all", reg)
        stack.check_bounds(slot, reg, pointer, off, size)
        if not pointer.var.is_const and not v.is_privileged:
            refuse("stack-variable-offset", slot, f"r{reg}: the stack is accessed at an unknown offset", reg)
        low, high = off + pointer.var.smin, off + pointer.var.smax + size
        v.note_stack(state.frames[pointer.frame], -low)
        if not (is_raw and pointer.var.is_const):
            frame = state.frames[pointer.frame]
            clobbers = is_write or not v.profile.at_least(6, 14)
            stack.check_initialized(v, state, slot, reg, frame, low, high, is_write=clobbers)
        return
    if kind in PACKETS:
        memory.check_packet(v, slot, reg, pointer, off, size, allows_nothing=allows_nothing)
    elif kind is Kind.MAP_VALUE:
        _check_map_value(v, call, reg, pointer, size, allows_nothing=allows_nothing, is_write=is_write)
    elif kind is Kind.MAP_KEY:
        if is_write:
            refuse("read-only", slot, f"r{reg} is a map key and cannot be written to", reg)
        assert pointer.map is not None
        key = pointer.map.spec.key_size
        memory.check_region(
            v, slot, reg, pointer, off, size, key, "memory-out-of-bounds", allows_nothing=allows_nothing
        )
    elif kind is Kind.MEM:
        if is_write and pointer.flags & Flag.RDONLY:
            refuse("read-only", slot, f"r{reg} is {pointer.type_name} and cannot be written to", reg)
        memory.check_region(
            v, slot, reg, pointer, off, size, pointer.size, "memory-out-of-bounds", allows_nothing=allows_nothing
        )
    elif kind is Kind.BUF:
        if is_write and pointer.flags & Flag.RDONLY:
            refuse("read-only", slot, f"r{reg} is {pointer.type_name} and cannot be written to", reg)
        is_ok = off >= 0 and pointer.var.is_const and pointer.var.value == 0
        if not is_ok or (pointer.size and off + size > pointer.size):
            refuse("memory-out-of-bounds", slot, f"r{reg}: bytes {off} to {off + size} of a buffer", reg)
    elif kind is Kind.BTF_ID:
        btf_access.access(v, state, slot, reg, pointer, off, size, is_write=is_write)
    elif kind is Kind.CTX and v.prog_type in _PLAIN_CONTEXTS:
        context.access(v, slot, reg, pointer, off + size - 1, 1, is_write=is_write)
    else:
        wrong_type(call, reg, pointer, _MEM_TEXT)


def _check_map_value(
    v: Verification, call: Call, reg: int, pointer: Pointer, size: int, *, allows_nothing: bool, is_write: bool
) -> None:
    facts = pointer.map
    assert facts is not None
    if is_write and not facts.can_write():
        refuse("map-value-access", call.slot, f"r{reg}: programs may not write to the map {facts.spec.name!r}", reg)
    if not is_write and not facts.can_read():
        refuse("map-value-access", call.slot, f"r{reg}: programs may not read the map {facts.spec.name!r}", reg)
    memory.check_region(
        v,
        call.slot,
        reg,
        pointer,
        pointer.off,
        size,
        facts.memory_bytes,
        "map-value-out-of-bounds",
        allows_nothing=allows_nothing,
    )
    if facts.fields:
        memory.check_special_fields(v, call.slot, reg, pointer, pointer.off, size, is_direct=False)


def _ctx(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    pointer = _pointer(call, reg, value, frozenset({Kind.CTX}), "ctx")
    check_fixed(call, reg, pointer)


def _btf(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    types = v.subject.types
    wanted = types.id_of(BtfKind.STRUCT, arg.detail) if types is not None else None
    if wanted is None:
        refuse("argument-type", call.slot, f"r{reg}: the kernel has no struct {arg.detail}", reg)
    check_struct(v, call, reg, value, wanted, is_nullable=arg.is_nullable)


def check_struct(v: Verification, call: Call, reg: int, value: Value, wanted: int, *, is_nullable: bool) -> None:
    """Refuse all but pointers to a struct of the kernel, by its id, that need not be probed."""
    expected = "ptr_, trusted_ptr_, rcu_ptr_"
    pointer = _pointer(call, reg, value, frozenset({Kind.BTF_ID}), expected, nullable=is_nullable)
    if pointer.flags & (Flag.UNTRUSTED | Flag.PERCPU | Flag.USER | Flag.ALLOC):
        wrong_type(call, reg, value, expected)
    check_fixed(call, reg, pointer)
    types = v.subject.types
    assert types is not None
    if pointer.types is None or not holds_struct(pointer.types, pointer.type_id, pointer.off, types, wanted):
        name = btf_access.struct_name(pointer)
        claim = f"r{reg} of {call.name} points at struct {name}, expected {types.type_at(wanted).name}"
        refuse("argument-type", call.slot, claim, reg)


def _sk(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    allowed = SOCKETS | {Kind.BTF_ID}
    is_nullable = call.name == "bpf_sk_assign" and v.prog_type is ProgType.BPF_PROG_TYPE_SK_LOOKUP
    if is_nullable and isinstance(value, Scalar) and value.range.is_const and not value.range.value:
        return
    pointer = _pointer(
        call, reg, value, allowed, "sock_common, sock, tcp_sock, xdp_sock, ptr_, trusted_ptr_", nullable=is_nullable
    )
    if pointer.kind is Kind.BTF_ID:
        if pointer.flags & (Flag.UNTRUSTED | Flag.PERCPU | Flag.USER | Flag.ALLOC | Flag.RCU):
            wrong_type(call, reg, value, "sock_common, sock, tcp_sock, xdp_sock, ptr_, trusted_ptr_")
        _is_sock(v, call, reg, pointer)
    check_fixed(call, reg, pointer)
    if call.name == "bpf_sk_release":
        if not pointer.ref:
            refuse("reference-release", call.slot, f"r{reg} holds no reference, so there is none to release", reg)
        if pointer.off:
            refuse("reference-release", call.slot, f"r{reg} must point at the start of what is released", reg)
        call.release = reg


def _is_sock(v: Verification, call: Call, reg: int, pointer: Pointer) -> None:
    types = v.subject.types
    if types is None or pointer.types is None:
        return
    wanted = types.id_of(BtfKind.STRUCT, "sock_common")
    if wanted is None or not holds_struct(pointer.types, pointer.type_id, pointer.off, types, wanted):
        name = btf_access.struct_name(pointer)
        refuse("argument-type", call.slot, f"r{reg} points at struct {name}, expected a socket", reg)


def _sock_common(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    pointer = _pointer(call, reg, value, SOCKETS, "sock_common, sock, tcp_sock, xdp_sock")
    check_fixed(call, reg, pointer)


def _record(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    pointer = _pointer(call, reg, value, frozenset({Kind.MEM}), "ringbuf_mem")
    if not pointer.flags & Flag.RINGBUF:
        wrong_type(call, reg, value, "ringbuf_mem")
    if pointer.off or not pointer.var.is_const or pointer.var.value:
        refuse("reference-release", call.slot, f"r{reg} must point at the start of the record", reg)
    if not pointer.ref:
        refuse("reference-release", call.slot, f"r{reg} holds no reference, so there is none to release", reg)
    call.release = reg


def _alloc_size(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    if not isinstance(value, Scalar):
        wrong_type(call, reg, value, "scalar")
    assert isinstance(value, Scalar)
    if not value.range.is_const:
        refuse("argument-constant", call.slot, f"r{reg} of {call.name} must be a known constant", reg)
    call.alloc_size = value.range.value
    v.mark_precise(state, reg)


def _func(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    pointer = _pointer(call, reg, value, frozenset({Kind.FUNC}), "func")
    check_fixed(call, reg, pointer)
    call.callback = pointer.detail


def _stack(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    _pointer(call, reg, value, frozenset({Kind.STACK}), "fp")


def _string(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    check_constant_string(v, call, reg, value)


def check_constant_string(v: Verification, call: Call, reg: int, value: Value) -> None:
    """Refuse anything but a terminated string in a frozen, read-only map."""
    pointer = _pointer(call, reg, value, frozenset({Kind.MAP_VALUE}), "map_value")
    facts = pointer.map
    assert facts is not None
    if facts.is_jump_table:
        refuse("argument-constant", call.slot, f"r{reg} points into a jump table, which holds no strings", reg)
    if facts.can_write() or not facts.spec.is_frozen:
        refuse("argument-constant", call.slot, f"r{reg} must point into a read-only map that is frozen", reg)
    if not pointer.var.is_const:
        refuse("argument-constant", call.slot, f"r{reg} must point at a known place", reg)
    at = pointer.off + pointer.var.value
    memory.check_region(
        v,
        call.slot,
        reg,
        pointer,
        pointer.off,
        facts.spec.value_size - at,
        facts.spec.value_size,
        "map-value-out-of-bounds",
    )
    if b"\0" not in constant_contents(facts)[at:]:
        refuse("argument-constant", call.slot, f"r{reg}: the string is not terminated", reg)


def constant_contents(facts: MapFacts) -> bytes:
    """Return the bytes of the one value of a read-only map."""
    return (facts.spec.contents or b"").ljust(facts.spec.value_size, b"\0")


def _lock(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    refs.check_lock(v, state, call, reg, value, takes=call.name == "bpf_spin_lock")


def _timer(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    pointer = _pointer(call, reg, value, frozenset({Kind.MAP_VALUE}), "map_value")
    refs.check_field(v, call, reg, pointer, "timer")
    call.extra["timer_map"] = (pointer.map, pointer.map_uid)


def _percpu(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    pointer = _pointer(call, reg, value, frozenset({Kind.BTF_ID}), "percpu_ptr_")
    if not pointer.flags & Flag.PERCPU or pointer.flags & (Flag.UNTRUSTED | Flag.USER):
        wrong_type(call, reg, value, "percpu_ptr_, percpu_rcu_ptr_, percpu_trusted_ptr_")
    if not pointer.type_id:
        refuse("argument-type", call.slot, f"r{reg}: a per-CPU pointer without a type", reg)
    call.pointer = pointer


def _kptr(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    kptrs.check_exchange(v, state, call, reg, value)


def _object(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    kptrs.check_new_object(v, state, call, reg, value)


def _dynptr(v: Verification, state: State, call: Call, reg: int, value: Value, arg: Arg) -> None:
    dynptrs.check_argument(v, state, call, reg, value, arg)


Check = Callable[["Verification", State, Call, int, Value, Arg], None]

_CHECKS: Final[dict[str, Check]] = {
    "map": _map,
    "key": _key,
    "value": _value,
    "uvalue": _empty_value,
    "mem": _memory,
    "wmem": _memory,
    "umem": _memory,
    "size": _size,
    "size0": _size,
    "ctx": _ctx,
    "btf": _btf,
    "sk": _sk,
    "sock_common": _sock_common,
    "record": _record,
    "alloc_size": _alloc_size,
    "func": _func,
    "stack": _stack,
    "str": _string,
    "lock": _lock,
    "timer": _timer,
    "percpu": _percpu,
    "kptr": _kptr,
    "object": _object,
    "dynptr": _dynptr,
    "dynptr_new": _dynptr,
    "dynptr_end": _dynptr,
}
