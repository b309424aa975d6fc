"""
Calls of kernel functions: arguments by the function's BTF, flags by `kfunc_table`.
"""

from __future__ import annotations

from typing import Final

from actplane.asm.insn import Insn, Kfunc
from actplane.asm.isa import CALL, PSEUDO_KFUNC_CALL
from actplane.asm.uapi import AttachType
from actplane.verifier.domains.btf_walk import bare, is_struct, pointee, size_of
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.scalar import between_signed
from actplane.verifier.domains.types import BtfKind, Type
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, Value, known, scalar
from actplane.verifier.paths.verification import END, Handler, Verification
from actplane.verifier.rules import (
    dynptrs,
    graphs,
    iterators,
    kfunc_arguments,
    memory,
    objects,
    refs,
    sections,
    subprograms,
)
from actplane.verifier.rules.context import type_names
from actplane.verifier.tables.kfunc_table import KernelFunction, find_function, may_call
from actplane.verifier.tables.refusals import refuse

MAX_ERRNO: Final = 4095

_LOCKS: Final = frozenset({"bpf_res_spin_lock", "bpf_res_spin_lock_irqsave"})
_UNLOCKS: Final = frozenset({"bpf_res_spin_unlock", "bpf_res_spin_unlock_irqrestore"})
_ALLOWED_UNDER_LOCK: Final = graphs.NAMES | _LOCKS | _UNLOCKS | {"bpf_refcount_acquire_impl"}
_ALLOWED_SINCE_6_14: Final = frozenset({"bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy"})

# Calls that run a function of the program.
_RUNS_CALLBACK: Final = frozenset({"bpf_rbtree_add_impl"})


def prepare(v: Verification) -> None:
    """Note which calls advance iterators, and which run functions of the program. Refuses all without a license."""
    for slot, insn in v.code.layout.insns_of({CALL}):
        if insn.src == PSEUDO_KFUNC_CALL and isinstance(insn.symbol, Kfunc):
            if not v.is_gpl:
                name = insn.symbol.name
                refuse("gpl-required", slot, f"{name}: kernel functions are for GPL-compatible programs only")
            function = find_function(insn.symbol.name)
            if function is not None and "next" in function.flags:
                v.code.mark_iter_next(slot)
            if function is not None and function.name in _RUNS_CALLBACK:
                v.code.mark_callback_call(slot)


def compile_kfunc_call(v: Verification, slot: int, insn: Insn) -> Handler:
    """Return the handler of a call of a kernel function."""
    name = insn.symbol.name if isinstance(insn.symbol, Kfunc) else ""
    problem = _problem(v, name)
    if problem is not None:
        id_, claim = problem

        def refused(state: State) -> int:
            refuse(id_, slot, claim)

        return refused
    function = find_function(name)
    proto = _prototype(v, name)
    assert function is not None
    assert proto is not None

    def call(state: State) -> int:
        return _call(v, state, slot, function, proto)

    return call


def _prototype(v: Verification, name: str) -> Type | None:
    types = v.subject.types
    type_id = types.id_of(BtfKind.FUNC, name) if types is not None else None
    if types is None or type_id is None:
        return None
    return types.type_at(types.type_at(type_id).target)


def _problem(v: Verification, name: str) -> tuple[str, str] | None:
    if not name:
        return "kfunc-not-allowed", "the call names no kernel function"
    if v.subject.types is None:
        return "kfunc-not-allowed", f"{name}: no kernel types are given"
    function = find_function(name)
    if _prototype(v, name) is None or (function is not None and not v.profile.at_least(*function.since)):
        return "kfunc-not-allowed", f"the kernel has no function {name}"
    if function is None:
        return "unsupported", f"the kernel function {name} is not modelled"
    prog, _ = type_names(v)
    # Raw tracepoints count as tracing programs since Linux 7.1.
    caller = "TRACING" if prog == "RAW_TRACEPOINT" and v.profile.at_least(7, 1) else prog
    if not may_call(function, caller):
        return "kfunc-not-allowed", f"{prog} programs may not call {name}"
    if name.startswith("bpf_arena_"):
        return "arena-not-modelled", f"{name} works on arenas, which the mirror does not model"
    if "device" in function.flags:
        return "kfunc-not-allowed", f"{name} is for programs that are bound to a network device"
    return _problem_here(v, name)


def _problem_here(v: Verification, name: str) -> tuple[str, str] | None:
    """Functions with a filter of their own on what the program is attached to."""
    prog, _ = type_names(v)
    is_iter = v.program.attach_type is AttachType.BPF_TRACE_ITER
    if name == "bpf_sock_destroy" and not is_iter:
        return "kfunc-not-allowed", f"{name} is for iterators only"
    if name == "bpf_iter_css_task_new" and not (prog == "LSM" or is_iter or v.is_sleepable):
        return "kfunc-not-allowed", f"{name} is for LSM programs, iterators and programs that may sleep"
    is_session = v.program.attach_type is AttachType.BPF_TRACE_KPROBE_SESSION
    if name.startswith("bpf_session_") and prog == "KPROBE" and not is_session:
        return "kfunc-not-allowed", f"{name} is for programs attached to a session of kprobes"
    return None


def _call(v: Verification, state: State, slot: int, function: KernelFunction, proto: Type) -> int:
    name = function.name
    is_allowed = name in _ALLOWED_UNDER_LOCK or (name in _ALLOWED_SINCE_6_14 and v.profile.at_least(6, 14))
    if state.locks and not is_allowed:
        refuse("lock", slot, f"{name} is called while a lock is held")
    if "sleep" in function.flags:
        refs.check_may_sleep(v, state, slot, name)
    if name in _LOCKS:
        _push_failed_lock(v, state, slot)
    call = Call(-1, name, slot)
    regs = state.frames[-1].regs
    kfunc_arguments.check_all(v, state, call, function, proto.members)
    if name in _RUNS_CALLBACK or "callback" in function.flags:
        subprograms.push_callback(v, state, call)
    if "throw" in function.flags:
        return _throw(v, state, slot)
    if iterators.is_iterator(function):
        if "next" in function.flags:
            element = _returned(v, state, call, function, proto)
            return iterators.advance(v, state, call, function, element)
        iterators.apply(v, state, call, function)
    sections.apply(v, state, slot, name)
    _give_away(v, state, call, function)
    second, fourth = regs[2], regs[4]
    regs[0:6] = [None] * 6
    if "new_dynptr" in call.extra:
        _make_dynptr(v, state, call)
    if "slice" in name:
        regs[0] = _slice(v, state, call, fourth)
    else:
        regs[0] = _result(v, state, call, function, proto, second)
    if "packet" in function.flags:
        refs.forget_packet(v, state)
    return slot + 1


def _push_failed_lock(v: Verification, state: State, slot: int) -> None:
    """A lock that would never be given is not taken: the program goes on with an error number."""
    other = v.push(state, slot + 1, "the lock was not taken", slot)
    regs = other.frames[-1].regs
    regs[0:6] = [None] * 6
    regs[0] = scalar(between_signed(-MAX_ERRNO, -1))


def _give_away(v: Verification, state: State, call: Call, function: KernelFunction) -> None:
    regs = state.frames[-1].regs
    if call.release:
        held = regs[call.release]
        if not isinstance(held, Pointer) or not refs.release(v, state, held.ref):
            refuse("reference-release", call.slot, f"{call.name}: the reference is not held", call.release)
    elif function.name in graphs.ADDS:
        added = regs[2]
        assert isinstance(added, Pointer)
        objects.lend(v, state, added.ref)


def _throw(v: Verification, state: State, slot: int) -> int:
    """The program ends here: nothing may be held, and what is thrown is what it returns."""
    if any(frame.callback is not None for frame in state.frames):
        refuse("exception", slot, "bpf_throw is called from a callback")
    refs.check_nothing_held(v, state, slot, "bpf_throw", is_exit=True)
    subprograms.check_thrown(v, state, slot)
    return END


_DYNPTR_KINDS: Final = {
    "bpf_dynptr_from_skb": "skb",
    "bpf_dynptr_from_skb_meta": "skb_meta",
    "bpf_dynptr_from_xdp": "xdp",
}


def _make_dynptr(v: Verification, state: State, call: Call) -> None:
    pointer, index, _ = call.extra["new_dynptr"]
    kind = _DYNPTR_KINDS.get(call.name)
    source = call.extra.get("cloned")
    if kind is not None:
        is_readonly = kind == "skb" and not memory.may_write_packet(v)
        dynptrs.create(v, state, call.slot, pointer, index, kind, is_readonly=is_readonly)
    elif source is not None:
        dynptrs.create(v, state, call.slot, pointer, index, source.kind, ref=source.ref, is_readonly=source.is_readonly)


def _slice(v: Verification, state: State, call: Call, size: Value | None) -> Value:
    held = call.dynptr
    if not isinstance(size, Scalar) or not size.range.is_const:
        refuse("argument-constant", call.slot, f"r4 of {call.name} must be a known constant", 4)
    is_writable = call.name.endswith("rdwr")
    if is_writable and held.is_readonly:
        refuse("dynptr", call.slot, "the dynptr can only be read")
    flags = Flag.NULL | (0 if is_writable else Flag.RDONLY)
    if held.kind in ("skb", "skb_meta", "xdp"):
        flags |= Flag.DYNPTR_SLICE
    detail = ("slice", held.id)
    return Pointer(Kind.MEM, flags=flags, size=size.range.value, id=v.new_id(), owner=held.ref, detail=detail)


def _result(
    v: Verification, state: State, call: Call, function: KernelFunction, proto: Type, second: Value | None
) -> Value | None:
    name = function.name
    if name in _LOCKS:
        return known(0)
    if name in ("bpf_obj_new_impl", "bpf_percpu_obj_new_impl"):
        return objects.new(v, state, call, is_percpu="percpu" in name)
    if name == "bpf_refcount_acquire_impl":
        return objects.share(v, state, call)
    if name in graphs.NAMES - graphs.ADDS:
        return graphs.node(v, state, call, is_acquired="acquire" in function.flags)
    if name == "bpf_rdonly_cast":
        return _cast(v, call, second)
    if name == "bpf_cast_to_kern_ctx":
        return _kernel_context(v, call)
    return _returned(v, state, call, function, proto)


def _cast(v: Verification, call: Call, wanted: Value | None) -> Value:
    """Return what bpf_rdonly_cast makes of an address: a struct of the kernel, or memory without a type."""
    types = v.subject.types
    assert types is not None
    assert isinstance(wanted, Scalar)
    type_id = wanted.range.value
    if not type_id and v.profile.at_least(6, 17):
        return Pointer(Kind.MEM, flags=Flag.RDONLY | Flag.UNTRUSTED)
    try:
        found = bare(types, type_id)
    except KeyError:
        refuse("argument-type", call.slot, f"r2 of {call.name}: the kernel has no type {type_id}", 2)
    if not is_struct(found):
        refuse("argument-type", call.slot, f"r2 of {call.name} must be the id of a struct", 2)
    return Pointer(Kind.BTF_ID, flags=Flag.UNTRUSTED, types=types, type_id=type_id)


_KERNEL_CONTEXTS: Final = {
    **dict.fromkeys(("SCHED_CLS", "SCHED_ACT", "SOCKET_FILTER", "CGROUP_SKB", "SK_SKB"), "sk_buff"),
    **dict.fromkeys(("LWT_IN", "LWT_OUT", "LWT_XMIT", "LWT_SEG6LOCAL"), "sk_buff"),
    "XDP": "xdp_buff",
    "CGROUP_SOCK": "sock",
    "CGROUP_SOCK_ADDR": "bpf_sock_addr_kern",
    "CGROUP_SOCKOPT": "bpf_sockopt_kern",
    "CGROUP_SYSCTL": "bpf_sysctl_kern",
    "CGROUP_DEVICE": "bpf_cgroup_dev_ctx",
    "SOCK_OPS": "bpf_sock_ops_kern",
    "SK_MSG": "sk_msg",
    "SK_LOOKUP": "bpf_sk_lookup_kern",
    "SK_REUSEPORT": "sk_reuseport_kern",
    "FLOW_DISSECTOR": "bpf_flow_dissector",
    "NETFILTER": "bpf_nf_ctx",
    "KPROBE": "pt_regs",
    "PERF_EVENT": "bpf_perf_event_data_kern",
}
"""What the context is inside of the kernel, where that is a struct."""


def _kernel_context(v: Verification, call: Call) -> Value:
    types = v.subject.types
    assert types is not None
    name = _KERNEL_CONTEXTS.get(type_names(v)[0])
    type_id = types.id_of(BtfKind.STRUCT, name) if name is not None else None
    if type_id is None:
        refuse("kfunc-not-allowed", call.slot, "the context of this kind of program has no struct in the kernel")
    return Pointer(Kind.BTF_ID, flags=Flag.TRUSTED, types=types, type_id=type_id)


def _returned(v: Verification, state: State, call: Call, function: KernelFunction, proto: Type) -> Value | None:
    types = v.subject.types
    assert types is not None
    found = bare(types, proto.target)
    if found is None:
        return None
    if found.kind != BtfKind.PTR:
        return UNKNOWN_SCALAR
    target = pointee(types, proto.target) or 0
    flags = Flag.NULL if "null" in function.flags else Flag.NONE
    ref = refs.acquire(v, state, call.slot) if "acquire" in function.flags else 0
    id_ = ref or (v.new_id() if flags else 0)
    is_iter = "next" in function.flags
    if target and is_struct(types.type_at(target)):
        if is_iter:
            flags |= iterators.trust(v, state, call, function)
        else:
            flags |= Flag.RCU if "rcu" in function.flags else Flag.TRUSTED
        if function.name == "bpf_get_kmem_cache":
            flags = Flag.NULL | Flag.UNTRUSTED
        return Pointer(Kind.BTF_ID, flags=flags, types=types, type_id=target, id=id_, ref=ref)
    size = call.extra.get("result_size") or (size_of(types, target) if target else None)
    if function.name == "bpf_session_cookie":
        return Pointer(Kind.MEM, size=8)
    if size is None:
        return UNKNOWN_SCALAR
    is_readonly = call.extra.get("result_is_readonly", True)
    return Pointer(Kind.MEM, flags=flags | (Flag.RDONLY if is_readonly else 0), size=size, id=id_, ref=ref)
