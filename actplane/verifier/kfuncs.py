"""
Calls of kernel functions: arguments by the function's BTF, flags by `kfunc_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from actplane.asm.insn import Insn, Kfunc
from actplane.asm.isa import CALL, PSEUDO_KFUNC_CALL
from actplane.verifier import arguments, dynptrs, iterators, memory, refs
from actplane.verifier.btf_access import is_trusted, struct_name
from actplane.verifier.btf_walk import bare, holds_struct, is_number, is_struct, pointee, size_of
from actplane.verifier.call_facts import Call
from actplane.verifier.context import type_names
from actplane.verifier.helper_table import Arg
from actplane.verifier.kfunc_table import KernelFunction, kernel_functions, may_call
from actplane.verifier.kinds import Flag, Kind
from actplane.verifier.refusals import refuse
from actplane.verifier.state import State, replace_pointers
from actplane.verifier.subprograms import check_thrown
from actplane.verifier.types import BtfKind, Member, Type
from actplane.verifier.values import UNKNOWN_SCALAR, Pointer, Scalar, Value, name_of
from actplane.verifier.verification import Handler, Verification

_ALLOWED_UNDER_LOCK: Final = frozenset({"bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy"})


def prepare(v: Verification) -> None:
    """Note which calls advance iterators."""
    for slot, insn in enumerate(v.code.at):
        if insn is not None and insn.code == CALL and insn.src == PSEUDO_KFUNC_CALL and isinstance(insn.symbol, Kfunc):
            function = kernel_functions().get(insn.symbol.name)
            if function is not None and "next" in function.flags:
                v.code.mark_iter_next(slot)


def compile_kfunc_call(v: Verification, slot: int, insn: Insn) -> Handler:
    """Return the handler of a call of a kernel function."""
    name = insn.symbol.name if isinstance(insn.symbol, Kfunc) else ""
    problem = _problem(v, name)
    if problem is not None:
        id_, claim = problem

        def refused(state: State) -> int:
            refuse(id_, slot, claim)

        return refused
    function = kernel_functions()[name]
    proto = _prototype(v, name)
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
    if not v.is_gpl:
        return "gpl-required", f"{name}: kernel functions are for GPL-compatible programs only"
    if _prototype(v, name) is None:
        return "kfunc-not-allowed", f"the kernel has no function {name}"
    function = kernel_functions().get(name)
    if function is None:
        return "unsupported", f"the kernel function {name} is not modelled"
    prog, _ = type_names(v)
    if not may_call(function, prog):
        return "kfunc-not-allowed", f"a {prog} program may not call {name}"
    if "sleep" in function.flags and not v.is_sleepable:
        return "sleeping", f"{name} may sleep, and the program is not sleepable"
    return None


def _call(v: Verification, state: State, slot: int, function: KernelFunction, proto: Type) -> int:
    name = function.name
    if state.locks and name not in _ALLOWED_UNDER_LOCK:
        refuse("lock", slot, f"{name} is called while a lock is held")
    if "sleep" in function.flags and (state.rcu_depth or state.preempt_off):
        refuse("sleeping", slot, f"{name} may sleep inside of a section that does not allow it")
    call = Call(-1, name, slot)
    regs = state.frames[-1].regs
    for index, member in enumerate(proto.members[:5]):
        _check_argument(v, state, call, index, proto.members, member, function)
    if "throw" in function.flags:
        return _throw(v, state, slot)
    if iterators.is_iterator(function):
        if "next" in function.flags:
            return iterators.advance(v, state, call, function, _returned(v, state, call, function, proto))
        iterators.apply(v, state, call, function)
    _sections(v, state, slot, name)
    if "release" in function.flags:
        _release(v, state, call)
    first, second, third, fourth = regs[1:5]
    regs[0:6] = [None] * 6
    if "new_dynptr" in call.extra:
        _make_dynptr(v, state, call, third)
    if "slice" in name:
        regs[0] = _slice(v, state, call, fourth)
        return slot + 1
    regs[0] = _result(v, state, call, function, proto, first, second)
    return slot + 1


def _throw(v: Verification, state: State, slot: int) -> int:
    """The program ends here: nothing may be held, and what is thrown is what it returns."""
    if any(frame.callback is not None for frame in state.frames):
        refuse("callback", slot, "bpf_throw is called from a callback")
    refs.check_nothing_held(v, state, slot, "bpf_throw", is_exit=True)
    check_thrown(v, state, slot)
    return -1


_DYNPTR_KINDS: Final = {"bpf_dynptr_from_skb": "skb", "bpf_dynptr_from_xdp": "xdp"}


def _make_dynptr(v: Verification, state: State, call: Call, third: Value | None) -> None:
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
    if held.kind in ("skb", "xdp"):
        flags |= Flag.DYNPTR_SLICE
    detail = ("slice", held.id)
    return Pointer(Kind.MEM, flags=flags, size=size.range.value, id=v.new_id(), owner=held.ref, detail=detail)


def _sections(v: Verification, state: State, slot: int, name: str) -> None:
    if name == "bpf_rcu_read_lock":
        if state.rcu_depth and not v.profile.at_least(7, 0):
            refuse("section", slot, "an RCU section is open already")
        state.rcu_depth += 1
    elif name == "bpf_rcu_read_unlock":
        if not state.rcu_depth:
            refuse("section", slot, "no RCU section is open")
        state.rcu_depth -= 1
        if not state.rcu_depth:
            _end_rcu(state)
    elif name == "bpf_preempt_disable":
        state.preempt_off += 1
    elif name == "bpf_preempt_enable":
        if not state.preempt_off:
            refuse("section", slot, "preemption is not off")
        state.preempt_off -= 1


def _end_rcu(state: State) -> None:
    """Pointers under RCU are from now on not to be trusted."""
    replace_pointers(
        state,
        lambda p: bool(p.flags & Flag.RCU),
        lambda p: p.but(flags=(p.flags & ~(Flag.RCU | Flag.NULL)) | Flag.UNTRUSTED),
    )


def _check_argument(
    v: Verification,
    state: State,
    call: Call,
    index: int,
    members: Sequence[Member],
    member: Member,
    function: KernelFunction,
) -> None:
    types = v.subject.types
    assert types is not None
    reg = index + 1
    value = state.frames[-1].regs[reg]
    suffix = member.name.rpartition("__")[2] if "__" in member.name else ""
    if suffix == "ign":
        return
    if value is None:
        refuse("uninitialized-register", call.slot, f"r{reg} is read before it is set", reg)
    found = bare(types, member.type_id)
    if is_number(found):
        _check_number(v, state, call, reg, value, suffix)
        return
    if index == 0 and iterators.is_iterator(function):
        return
    if suffix == "prog" or suffix == "aux":
        return
    is_null = isinstance(value, Scalar) and value.range.is_const and value.range.value == 0
    may_be_null = is_null or (isinstance(value, Pointer) and bool(value.flags & Flag.NULL))
    if may_be_null and suffix not in ("nullable", "opt"):
        wants_trust = function.flags & {"trusted", "rcuarg", "release"} or v.profile.at_least(7, 0)
        if wants_trust or is_null:
            refuse("argument-null", call.slot, f"r{reg} of {call.name} may be null", reg)
    if is_null:
        return
    if not isinstance(value, Pointer):
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected a pointer", reg)
    if value.ref:
        call.ref = value.ref
    if index == 0 and "release" in function.flags:
        call.release = reg
    _check_pointer(v, state, call, index, members, value, pointee(types, member.type_id) or 0, function)


def _check_number(v: Verification, state: State, call: Call, reg: int, value: Value, suffix: str) -> None:
    if not isinstance(value, Scalar):
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected a number", reg)
    if suffix in ("k", "szk") or call.name.endswith("buf_size"):
        if not value.range.is_const:
            refuse("argument-constant", call.slot, f"r{reg} of {call.name} must be a known constant", reg)
        v.mark_precise(state, reg)
    if suffix in ("sz", "szk"):
        base = state.frames[-1].regs[reg - 1]
        if isinstance(base, Pointer) and base.kind is not Kind.BTF_ID:
            arguments.check_sized(v, state, call, reg, value, allows_nothing=True, is_write=True, is_raw=False)


def _check_pointer(
    v: Verification,
    state: State,
    call: Call,
    index: int,
    members: Sequence[Member],
    value: Pointer,
    target: int,
    function: KernelFunction,
) -> None:
    types = v.subject.types
    assert types is not None
    reg = index + 1
    inner = types.type_at(target) if target else None
    if inner is not None and inner.name.startswith("bpf_dynptr"):
        is_new = members[index].name.endswith("__uninit")
        if call.dynptr is not None:
            call.extra["cloned"] = call.dynptr
        dynptrs.check_argument(v, state, call, reg, value, Arg("dynptr_new" if is_new else "dynptr", False, ""))
        return
    if value.kind is Kind.CTX and is_struct(inner):
        arguments.check_fixed(call, reg, value)
        return
    if value.kind is Kind.MAP_PTR:
        return
    following = members[index + 1].name if index + 1 < len(members) else ""
    if following.endswith(("__sz", "__szk")):
        return
    if is_struct(inner) and value.kind is Kind.BTF_ID:
        _check_struct(v, call, reg, value, target, function)
        return
    size = size_of(types, target) if target else None
    if value.kind is Kind.BTF_ID or size is None:
        if target == 0 or "cast" in function.flags:
            return
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is {value.type_name}, expected memory", reg)
    if is_struct(inner) and not _is_plain(v, target):
        assert inner is not None
        claim = f"r{reg} of {call.name} is {value.type_name}, expected a pointer to struct {inner.name}"
        refuse("argument-type", call.slot, claim, reg)
    arguments.check_memory(v, state, call, reg, value, size, allows_nothing=False, is_write=True)


def _is_plain(v: Verification, type_id: int, depth: int = 0) -> bool:
    """Whether a struct holds numbers only, so that any memory of its size will do."""
    types = v.subject.types
    assert types is not None
    found = bare(types, type_id)
    if found is None or depth > 4:
        return False
    if found.kind == BtfKind.ARRAY:
        return _is_plain(v, found.target, depth + 1)
    if is_struct(found):
        return all(_is_plain(v, member.type_id, depth + 1) for member in found.members)
    return is_number(found)


def _check_struct(v: Verification, call: Call, reg: int, value: Pointer, target: int, function: KernelFunction) -> None:
    types = v.subject.types
    assert types is not None
    name = types.type_at(target).name
    if "release" in function.flags and reg == 1:
        if not value.ref:
            refuse("reference-release", call.slot, f"r{reg} holds no reference, so there is none to release", reg)
        if value.off:
            refuse("reference-release", call.slot, f"r{reg} must point at the start of what is released", reg)
    under_rcu = bool(value.flags & Flag.RCU) and "rcuarg" in function.flags
    wants_trust = function.flags & {"trusted", "rcuarg"} or v.profile.at_least(7, 0)
    if wants_trust and not is_trusted(value) and not under_rcu:
        refuse("untrusted-pointer", call.slot, f"r{reg} of {call.name} must be referenced or trusted", reg)
    if name == "__sk_buff" and struct_name(value) == "sk_buff":
        return
    if value.types is None or not holds_struct(value.types, value.type_id, value.off, types, target):
        claim = f"r{reg} of {call.name} points at struct {struct_name(value)}, expected {name}"
        refuse("argument-type", call.slot, claim, reg)


def _release(v: Verification, state: State, call: Call) -> None:
    held = state.frames[-1].regs[call.release or 1]
    if not isinstance(held, Pointer) or not held.ref or not refs.release(v, state, held.ref):
        refuse("reference-release", call.slot, f"{call.name}: the reference is not held", 1)


def _result(
    v: Verification,
    state: State,
    call: Call,
    function: KernelFunction,
    proto: Type,
    first: Value | None,
    second: Value | None,
) -> Value | None:
    types = v.subject.types
    assert types is not None
    if function.name == "bpf_rdonly_cast":
        if isinstance(second, Scalar) and second.range.is_const and second.range.value:
            wanted = second.range.value
            if is_struct(bare(types, wanted)):
                return Pointer(Kind.BTF_ID, flags=Flag.UNTRUSTED, types=types, type_id=wanted)
            refuse("argument-type", call.slot, "r2 of bpf_rdonly_cast must be the id of a struct", 2)
        return Pointer(Kind.MEM, flags=Flag.RDONLY | Flag.UNTRUSTED)
    if function.name == "bpf_cast_to_kern_ctx":
        return _kernel_context(v, call)
    return _returned(v, state, call, function, proto)


_KERNEL_CONTEXTS: Final = {
    "SCHED_CLS": "sk_buff",
    "SOCKET_FILTER": "sk_buff",
    "CGROUP_SKB": "sk_buff",
    "XDP": "xdp_buff",
    "CGROUP_SOCK_ADDR": "bpf_sock_addr_kern",
    "SOCK_OPS": "bpf_sock_ops_kern",
    "CGROUP_SOCK": "sock",
}


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
    if target and is_struct(types.type_at(target)):
        flags |= Flag.RCU if "rcu" in function.flags else Flag.TRUSTED
        if function.name == "bpf_get_kmem_cache":
            flags = Flag.NULL | Flag.UNTRUSTED
        return Pointer(Kind.BTF_ID, flags=flags, types=types, type_id=target, id=id_, ref=ref)
    size = size_of(types, target) if target else None
    if size is None:
        return UNKNOWN_SCALAR
    is_iter = "next" in function.flags
    return Pointer(Kind.MEM, flags=flags | (0 if is_iter else Flag.RDONLY), size=size, id=id_, ref=ref)
