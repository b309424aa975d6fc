"""
Calls of helpers: whether the program may call it, whether the arguments fit, what it leaves behind.
"""

from __future__ import annotations

from typing import Final

from actplane.asm.format_strings import pieces
from actplane.asm.insn import Insn, Unresolved
from actplane.asm.uapi import AttachType, HelperId, MapType, ProgType
from actplane.verifier.domains.btf_walk import is_struct, size_of, strip
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.scalar import between_signed
from actplane.verifier.domains.types import BtfKind
from actplane.verifier.paths import struct_ops
from actplane.verifier.paths.attach import SLEEPABLE_HOOKS
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.flow import SYNC_CALLBACK_HELPERS
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, Value, scalar
from actplane.verifier.paths.verification import Handler, Verification
from actplane.verifier.rules import arguments, dynptrs, kptrs, memory, refs, stack, subprograms
from actplane.verifier.rules.context import type_names
from actplane.verifier.tables.access_tables import GPL_ONLY_IDS
from actplane.verifier.tables.helper_table import (
    ACQUIRES,
    BOUNDED_RESULT,
    CASTS,
    CHANGES_PACKET,
    PRIVILEGED,
    SLEEPS,
    Prototype,
    parse_argument,
    prototypes,
    works_on,
)
from actplane.verifier.tables.refusals import refuse

MAX_ERRNO: Final = 4095
TAIL_CALL: Final = HelperId.bpf_tail_call
SPIN_UNLOCK: Final = HelperId.bpf_spin_unlock
KPTR_XCHG: Final = HelperId.bpf_kptr_xchg

_PER_TYPE: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    # Helpers of one number with another prototype in some kinds of programs.
    ("get_socket_cookie", "TRACING"): ("sk",),
    ("get_socket_cookie", "LSM"): ("sk",),
    ("get_socket_cookie", "SYSCALL"): ("sk",),
    ("get_socket_cookie", "SK_REUSEPORT"): ("sk",),
    ("setsockopt", "LSM"): ("sk", "any", "any", "mem", "size"),
    ("setsockopt", "TRACING"): ("sk", "any", "any", "mem", "size"),
    ("setsockopt", "CGROUP_SOCKOPT"): ("sk", "any", "any", "mem", "size"),
    ("getsockopt", "LSM"): ("sk", "any", "any", "umem", "size"),
    ("getsockopt", "TRACING"): ("sk", "any", "any", "umem", "size"),
    ("getsockopt", "CGROUP_SOCKOPT"): ("sk", "any", "any", "umem", "size"),
    ("sk_storage_get", "CGROUP_SOCK"): ("map", "ctx", "value?", "any"),
    ("sk_storage_get", "TRACING"): ("map", "btf:sock_common?", "value?", "any"),
    ("sk_storage_get", "LSM"): ("map", "btf:sock_common?", "value?", "any"),
    ("sk_storage_delete", "TRACING"): ("map", "btf:sock_common?"),
    ("sk_storage_delete", "LSM"): ("map", "btf:sock_common?"),
    ("setsockopt", "STRUCT_OPS"): ("sk", "any", "any", "mem", "size"),
    ("getsockopt", "STRUCT_OPS"): ("sk", "any", "any", "umem", "size"),
}

_CLASSID_FROM_PACKET: Final = frozenset({"SCHED_CLS", "SCHED_ACT", "LWT_IN", "LWT_OUT", "LWT_XMIT", "LWT_SEG6LOCAL"})


def compile_helper_call(v: Verification, slot: int, insn: Insn) -> Handler:
    """Return the handler of a call to a helper."""
    helper = insn.imm
    problem = _forbidden(v, helper)
    if isinstance(insn.symbol, Unresolved):
        problem = ("unknown-helper", f"the instruction that was here could not be relocated: {insn.symbol.problem}")
    if insn.off or insn.dst:
        problem = ("bad-instruction", "a call uses reserved fields")
    if problem is not None:
        id_, claim = problem

        def refused(state: State) -> int:
            refuse(id_, slot, claim)

        return refused
    proto = _prototype(v, helper)

    def call(state: State) -> int:
        return _call(v, state, slot, helper, proto)

    return call


def _prototype(v: Verification, helper: int) -> Prototype:
    proto = prototypes()[helper]
    prog, _ = type_names(v)
    name = proto.name.removeprefix("bpf_")
    special = _PER_TYPE.get((name, prog))
    if name == "get_cgroup_classid" and prog not in _CLASSID_FROM_PACKET:
        special = ()
    if special is None:
        return proto
    args = tuple(map(parse_argument, special))
    if name in ("sk_storage_get", "sk_storage_delete") and not v.profile.at_least(6, 2):
        # The socket had to be there.
        args = (args[0], args[1]._replace(is_nullable=False), *args[2:])
    return Prototype(proto.name, proto.returns, args)


def _forbidden(v: Verification, helper: int) -> tuple[str, str] | None:
    if helper not in prototypes():
        return "unknown-helper", f"there is no helper {helper}"
    name = prototypes()[helper].name
    prog, attach = type_names(v)
    if attach == "TRACE_ITER" and v.program.attach_to in ("tcp", "udp", "unix"):
        attach = "TRACE_ITER:tcp"
    allowed = v.profile.helpers(prog, attach)
    if prog == "STRUCT_OPS":
        allowed = struct_ops.helpers(v.program, v.profile.common_helpers())
    if attach == "LSM_CGROUP" and v.program.attach_to in _SOCKOPT_HOOKS and allowed is not None:
        allowed |= {HelperId.bpf_setsockopt, HelperId.bpf_getsockopt}
    if allowed is None or helper not in allowed:
        return "helper-not-allowed", f"{prog} programs may not call {name}"
    if helper in PRIVILEGED and not v.is_privileged:
        return "privileged-only", f"{name} is for privileged programs only"
    if helper in GPL_ONLY_IDS and not v.is_gpl:
        return "gpl-required", f"{name} is for GPL-compatible programs only"
    if name == "bpf_d_path" and not _may_call_d_path(v):
        return "helper-not-allowed", f"{name} may not be called from {v.program.attach_to}"
    if name in ("bpf_get_func_ret", "bpf_get_func_ip") and prog == "TRACING":
        return _forbidden_here(v, name)
    return None


_SOCKOPT_HOOKS: Final = frozenset(
    {"sock_graft", "inet_csk_clone", "inet_conn_established", "socket_post_create", "socket_socketpair", "sk_clone"}
)


def _forbidden_here(v: Verification, name: str) -> tuple[str, str] | None:
    attach = v.program.attach_type
    if name == "bpf_get_func_ret" and attach is AttachType.BPF_TRACE_FENTRY:
        return None
    if name == "bpf_get_func_ip" and attach in (AttachType.BPF_TRACE_RAW_TP, AttachType.BPF_TRACE_ITER):
        return "helper-not-allowed", f"{name} is for fentry, fexit and fmod_ret"
    return None


_D_PATH: Final = """
dentry_open filp_close security_file_open security_file_permission security_inode_getattr security_path_truncate
vfs_fallocate vfs_getattr vfs_truncate
"""
_D_PATH_HOOKS: Final = frozenset(_D_PATH.split())


def _may_call_d_path(v: Verification) -> bool:
    if v.prog_type is ProgType.BPF_PROG_TYPE_TRACING:
        if v.program.attach_type is AttachType.BPF_TRACE_ITER:
            return True
        return (v.program.attach_to or "") in _D_PATH_HOOKS
    if v.prog_type is ProgType.BPF_PROG_TYPE_LSM:
        return (v.program.attach_to or "") in SLEEPABLE_HOOKS
    return False


def _call(v: Verification, state: State, slot: int, helper: int, proto: Prototype) -> int:
    if state.locks and helper not in (SPIN_UNLOCK, KPTR_XCHG):
        refuse("lock", slot, f"{proto.name} is called while a lock is held")
    if helper in SLEEPS:
        refs.check_may_sleep(v, state, slot, proto.name)
    call = Call(helper, proto.name, slot)
    regs = state.frames[-1].regs
    for index, arg in enumerate(proto.args):
        if arg.kind in ("size", "size0"):
            call.extra["memory"] = proto.args[index - 1]
        arguments.check(v, state, call, index, proto)
    if helper == KPTR_XCHG:
        kptrs.finish_exchange(v, state, call)
    _check_map(v, state, call)
    _check_special(v, state, call, helper)
    _write_results(v, state, call)
    if helper in SYNC_CALLBACK_HELPERS or helper == 170:
        subprograms.push_callback(v, state, call)
    _finish(v, state, call, proto, regs)
    return slot + 1


def _check_map(v: Verification, state: State, call: Call) -> None:
    facts = call.map
    if facts is None:
        return
    name = call.name.removeprefix("bpf_")
    if name in _WRITES_MAP and not facts.can_write():
        claim = f"r{call.map_reg}: programs may not write to the map {facts.spec.name!r}"
        refuse("map-value-access", call.slot, claim, call.map_reg)
    map_name = facts.spec.type.name.removeprefix("BPF_MAP_TYPE_")
    if map_name.startswith(("CGROUP_STORAGE", "PERCPU_CGROUP_STORAGE")):
        map_name = map_name.removesuffix("_DEPRECATED")
    if not works_on(name, map_name):
        claim = f"r{call.map_reg}: {call.name} does not work on a map of type {map_name}"
        refuse("map-helper-mismatch", call.slot, claim, call.map_reg)
    if map_name in ("SOCKMAP", "SOCKHASH") and name in ("map_update_elem", "map_delete_elem"):
        may_update = v.prog_type.name.removeprefix("BPF_PROG_TYPE_") in _SOCKMAP_UPDATERS
        is_iter = v.program.attach_type is AttachType.BPF_TRACE_ITER
        is_sock_ops = v.prog_type is ProgType.BPF_PROG_TYPE_SOCK_OPS and name == "map_delete_elem"
        if not (may_update or is_iter or is_sock_ops):
            claim = f"r{call.map_reg}: {call.name} on a {map_name} is not for this kind of program"
            refuse("map-helper-mismatch", call.slot, claim, call.map_reg)


_WRITES_MAP: Final = frozenset({"map_update_elem", "map_delete_elem", "map_push_elem", "map_pop_elem"})
_SOCKMAP_UPDATERS: Final = frozenset(
    {"SOCKET_FILTER", "SCHED_CLS", "SCHED_ACT", "XDP", "SK_REUSEPORT", "FLOW_DISSECTOR", "SK_LOOKUP"}
)


def _check_special(v: Verification, state: State, call: Call, helper: int) -> None:
    regs = state.frames[-1].regs
    if helper == TAIL_CALL:
        refs.check_nothing_held(v, state, call.slot, "tail call", is_exit=False)
        v.subject.notes.setdefault("tail_calls", set()).add(v.code.function_of[call.slot])
        known = v.subject.notes.setdefault("tail_maps", {}).setdefault(call.slot, call.map)
        if known is not call.map and not v.is_privileged:
            refuse("tail-call", call.slot, "a tail call through one map or another, as the path may be", 2)
    elif call.name == "bpf_get_local_storage":
        flags = regs[2]
        if not (isinstance(flags, Scalar) and flags.range.is_const and flags.range.value == 0):
            refuse("argument-constant", call.slot, "r2: bpf_get_local_storage takes no flags, r2 must be 0", 2)
    elif call.name == "bpf_snprintf":
        _check_format(state, call)
    elif call.name == "bpf_set_retval" and v.program.attach_type is AttachType.BPF_LSM_CGROUP:
        point = v.subject.attach
        if point is not None and point.returns is None:
            refuse("helper-not-allowed", call.slot, "bpf_set_retval: the hook returns nothing that could be set")
    elif call.name == "bpf_set_retval" and v.profile.at_least(7, 1):
        _check_answer(v, state, call)
    elif call.name == "bpf_dynptr_write" and call.dynptr is not None and call.dynptr.kind in ("skb", "skb_meta"):
        refs.forget_packet(v, state)
    if helper in CHANGES_PACKET and (helper != TAIL_CALL or v.profile.at_least(6, 12)):
        refs.forget_packet(v, state)


def _check_answer(v: Verification, state: State, call: Call) -> None:
    """What a program answers in place of the kernel must be 0 or an error number."""
    value = state.frames[-1].regs[1]
    assert isinstance(value, Scalar)
    low, high = value.range.s32min, value.range.s32max
    v.mark_precise(state, 1)
    if low < -MAX_ERRNO or high > 0:
        claim = f"r1 of {call.name} is {low} to {high}, expected {-MAX_ERRNO} to 0"
        refuse("return-value", call.slot, claim, 1)


def _check_format(state: State, call: Call) -> None:
    """The string is read before the program runs, and the data is an array of 8-byte arguments for it."""
    template, length = state.frames[-1].regs[3], state.frames[-1].regs[5]
    assert isinstance(template, Pointer)
    assert template.map is not None
    # The kernel looks at the known bits of a length, whatever the others are.
    size = length.range.value if isinstance(length, Scalar) else 0
    if size % 8:
        refuse("argument-size", call.slot, f"r5: {size} bytes of arguments, expected a multiple of 8", 5)
    contents = arguments.constant_contents(template.map)[template.off + template.var.value :]
    try:
        list(pieces(contents.partition(b"\0")[0], size // 8))
    except ValueError as problem:
        refuse("argument-constant", call.slot, f"r3: the format string is not one that the kernel takes: {problem}", 3)


def _write_results(v: Verification, state: State, call: Call) -> None:
    if call.written is None:
        return
    reg, pointer, size = call.written
    if pointer.kind is Kind.STACK:
        if pointer.var.is_const and size:
            low = pointer.off + pointer.var.smin
            stack.write_range(v, state, call.slot, pointer, low, low + size)
    elif size:
        memory.access(v, state, call.slot, reg, pointer, 0, 1, is_write=True)
        memory.access(v, state, call.slot, reg, pointer, size - 1, 1, is_write=True)


def _finish(v: Verification, state: State, call: Call, proto: Prototype, regs: list[Value | None]) -> None:
    if "end_dynptr" in call.extra:
        dynptrs.end(v, state, call.extra["end_dynptr"])
    elif call.release:
        held = regs[call.release]
        if isinstance(held, Pointer) and not refs.release(v, state, held.ref):
            refuse("reference-release", call.slot, f"r{call.release}: the reference is not held any more", call.release)
    first = regs[1]
    for reg in range(6):
        regs[reg] = None
    if "new_dynptr" in call.extra:
        dynptrs.make(v, state, call)
    regs[0] = _result(v, state, call, proto, first)


def _result(v: Verification, state: State, call: Call, proto: Prototype, first: Value | None) -> Value | None:
    kind, detail = proto.returns.kind, proto.returns.detail
    if kind == "void":
        return None
    if kind == "int":
        return _number(v, call)
    flags = Flag.NULL if proto.returns.is_nullable else Flag.NONE
    if call.helper == HelperId.bpf_map_lookup_elem and _always_finds(v, state, call):
        flags = Flag.NONE
    id_ = v.new_id() if flags else 0
    ref = 0
    if call.helper in CASTS and isinstance(first, Pointer):
        ref = first.ref
    elif call.helper in ACQUIRES or _looks_up_socket(call):
        ref = refs.acquire(v, state, call.slot)
        id_ = ref
    return _pointer_result(v, call, kind, detail, flags, id_, ref)


def _pointer_result(v: Verification, call: Call, kind: str, detail: str, flags: int, id_: int, ref: int) -> Value:
    if kind == "map_value":
        assert call.map is not None
        if not flags and call.map.field_of("spin_lock") is not None:
            id_ = v.new_id()
        return Pointer(Kind.MAP_VALUE, flags=flags, map=call.map, map_uid=call.map_uid, id=id_, ref=ref)
    if kind in ("sock", "tcp_sock", "sock_common"):
        of = {"sock": Kind.SOCKET, "tcp_sock": Kind.TCP_SOCK, "sock_common": Kind.SOCK_COMMON}[kind]
        return Pointer(of, flags=flags, id=id_, ref=ref)
    if kind == "record":
        return Pointer(Kind.MEM, flags=flags | Flag.RINGBUF, size=call.alloc_size, id=id_, ref=ref)
    if kind == "dynptr_data":
        held = call.dynptr
        return Pointer(
            Kind.MEM,
            flags=flags | (Flag.RDONLY if held.is_readonly else 0),
            size=call.alloc_size,
            id=id_,
            owner=held.ref,
            detail=("slice", held.id),
        )
    if kind == "percpu":
        return _percpu_result(v, call, flags, id_)
    if kind == "kptr":
        field = call.kptr
        assert field is not None
        return Pointer(
            Kind.BTF_ID,
            flags=flags | field[2],
            types=field[0],
            type_id=field[1],
            id=id_,
            ref=ref,
        )
    types = v.subject.types
    type_id = types.id_of(BtfKind.STRUCT, detail) if types is not None else None
    if types is None or type_id is None:
        refuse("unsupported", call.slot, f"{call.name} returns a struct {detail}, which is in no BTF given")
    if call.name == "bpf_get_current_task_btf" and v.profile.at_least(6, 2):
        flags |= Flag.TRUSTED
    return Pointer(Kind.BTF_ID, flags=flags, types=types, type_id=type_id, id=id_, ref=ref)


def _percpu_result(v: Verification, call: Call, flags: int, id_: int) -> Value:
    pointer = call.pointer
    assert pointer is not None
    assert pointer.types is not None
    type_id = strip(pointer.types, pointer.type_id)
    target = pointer.types.type_at(type_id)
    if pointer.flags & Flag.ALLOC:
        keep = (pointer.flags & (Flag.RCU | Flag.ALLOC)) | flags
        return Pointer(Kind.BTF_ID, flags=keep, types=pointer.types, type_id=type_id, id=id_)
    if is_struct(target):
        return Pointer(Kind.BTF_ID, flags=flags, types=pointer.types, type_id=type_id, id=id_)
    size = size_of(pointer.types, type_id) or 0
    return Pointer(Kind.MEM, flags=flags | Flag.RDONLY, size=size, id=id_)


def _always_finds(v: Verification, state: State, call: Call) -> bool:
    """Whether the key is a constant that an array has an element for."""
    facts, key = call.map, call.extra.get("key")
    if facts is None or facts.spec.type not in _ARRAYS or not v.profile.at_least(6, 14):
        return False
    if not v.is_privileged or not isinstance(key, Pointer) or key.kind is not Kind.STACK or not key.var.is_const:
        return False
    number = stack.constant_at(v, state, key, key.off + key.var.smin, 4)
    return number is not None and number < facts.spec.max_entries


_ARRAYS: Final = frozenset({MapType.BPF_MAP_TYPE_ARRAY, MapType.BPF_MAP_TYPE_PERCPU_ARRAY})


def _looks_up_socket(call: Call) -> bool:
    return (
        call.helper == HelperId.bpf_map_lookup_elem
        and call.map is not None
        and call.map.spec.type in (MapType.BPF_MAP_TYPE_SOCKMAP, MapType.BPF_MAP_TYPE_SOCKHASH)
    )


def _number(v: Verification, call: Call) -> Scalar:
    if call.helper in BOUNDED_RESULT and (call.name != "bpf_get_task_stack" or v.profile.at_least(5, 13)):
        return scalar(between_signed(-MAX_ERRNO, min(call.max_size, (1 << 31) - 1)))
    if call.name == "bpf_get_retval" and v.profile.at_least(7, 1):
        return scalar(between_signed(-MAX_ERRNO, 0))
    if call.name == "bpf_get_smp_processor_id" and v.profile.at_least(6, 6):
        return scalar(between_signed(0, v.profile.max_cpus - 1))
    return UNKNOWN_SCALAR
