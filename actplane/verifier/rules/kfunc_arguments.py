"""
Arguments of kernel functions: what a parameter asks for, by its type, the ending of its name
(`__sz`, `__k`, `__ign`, `__nullable`, `__str`, `__alloc` ...) and the flags of the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from actplane.verifier.domains.btf_walk import bare, holds_struct, is_number, is_struct, pointee, size_of
from actplane.verifier.domains.kinds import Flag, Kind, are_trusted
from actplane.verifier.domains.types import BtfKind, Member, TypeProvider
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import Pointer, Scalar, Value, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.rules import arguments, dynptrs, graphs, irq_flags, iterators, objects, refs
from actplane.verifier.rules.btf_access import struct_name
from actplane.verifier.rules.context import type_names
from actplane.verifier.tables.context_tables import is_context_struct
from actplane.verifier.tables.helper_table import Arg
from actplane.verifier.tables.kfunc_table import KernelFunction
from actplane.verifier.tables.refusals import refuse

# Structs whose name says what must be passed.
_BY_STRUCT: Final = {
    "bpf_list_head": "list_head",
    "bpf_list_node": "list_node",
    "bpf_rb_root": "rb_root",
    "bpf_rb_node": "rb_node",
    "bpf_wq": "workqueue",
    "bpf_task_work": "task_work",
    "bpf_res_spin_lock": "res_spin_lock",
    "bpf_dynptr": "dynptr",
    "bpf_dynptr_kern": "dynptr",
}

# Endings of a parameter's name that say what must be passed, whatever its type is.
_BY_SUFFIX: Final = {
    "alloc": "alloc",
    "refcounted_kptr": "refcounted",
    "str": "str",
    "map": "map",
    "irq_flag": "irq_flag",
}

_KNOWN_STRUCTS: Final = {
    Kind.SOCKET: "sock",
    Kind.SOCK_COMMON: "sock_common",
    Kind.TCP_SOCK: "tcp_sock",
    Kind.MAP_PTR: "bpf_map",
}
"""Kinds of pointers, other than those of BTF, that the kernel has a struct for."""


def suffix_of(name: str) -> str:
    """
    Return the ending of a parameter's name that annotates it, or nothing.

    >>> suffix_of("local_type_id__k"), suffix_of("p__refcounted_kptr"), suffix_of("flags")
    ('k', 'refcounted_kptr', '')
    """
    return name.rpartition("__")[2] if "__" in name else ""


def check_all(v: Verification, state: State, call: Call, function: KernelFunction, members: Sequence[Member]) -> None:
    """Check the arguments of a call, in order. What they say is left in `call`."""
    index = 0
    while index < len(members[:5]):
        index += _check(v, state, call, function, members, index)
    if "release" in function.flags and not call.release and call.dynptr is None:
        refuse("reference-release", call.slot, f"{call.name} holds no reference, so there is none to release", 1)


def _check(
    v: Verification, state: State, call: Call, function: KernelFunction, members: Sequence[Member], index: int
) -> int:
    """Check one argument. Return how many this took: memory is checked with its length."""
    types = v.subject.types
    assert types is not None
    reg, member = index + 1, members[index]
    suffix = suffix_of(member.name)
    if suffix in ("ign", "prog", "aux"):
        return 1
    value = state.frames[-1].regs[reg]
    if value is None:
        refuse("uninitialized-register", call.slot, f"r{reg} is read before it is set", reg)
    found = bare(types, member.type_id)
    if found is None or found.kind != BtfKind.PTR:
        _check_number(v, state, call, reg, value, member.name, suffix)
        return 1
    is_null = isinstance(value, Scalar) and value.range.is_const and value.range.value == 0
    _check_null(v, call, reg, value, function, suffix, is_null=is_null)
    if isinstance(value, Pointer) and value.ref:
        if "release" in function.flags:
            if call.ref:
                refuse("argument-type", call.slot, f"{call.name}: more than one argument holds a reference", reg)
            call.release = reg
        call.ref = value.ref
    kind = _kind(v, state, call, function, members, index, value, is_null)
    if kind == "null":
        return 1
    if kind == "sized":
        _check_sized(v, state, call, reg, value, members, index, is_null=is_null)
        return 2
    if isinstance(value, Pointer) and kind in ("map", "struct"):
        _check_trust(v, call, reg, value, function)
    if isinstance(value, Pointer):
        _check_offset(call, reg, value, is_released="release" in function.flags and bool(value.ref))
    _CHECKS[kind](v, state, call, reg, value, member, function)
    return 1


def _check_null(
    v: Verification, call: Call, reg: int, value: Value, function: KernelFunction, suffix: str, *, is_null: bool
) -> None:
    may_be_null = is_null or (isinstance(value, Pointer) and bool(value.flags & Flag.NULL))
    if not may_be_null or suffix in ("nullable", "opt"):
        return
    if _wants_trust(v, function):
        refuse("argument-null", call.slot, f"r{reg} of {call.name} may be null", reg)


def _wants_trust(v: Verification, function: KernelFunction) -> bool:
    return bool(function.flags & {"trusted", "rcuarg", "release"}) or v.profile.at_least(7, 0)


def _check_number(v: Verification, state: State, call: Call, reg: int, value: Value, name: str, suffix: str) -> None:
    if not isinstance(value, Scalar):
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected a number", reg)
    is_result_size = name in ("rdonly_buf_size", "rdwr_buf_size")
    if suffix != "k" and not is_result_size:
        return
    if not value.range.is_const:
        refuse("argument-constant", call.slot, f"r{reg} of {call.name} must be a known constant", reg)
    v.mark_precise(state, reg)
    call.extra["result_size" if is_result_size else "constant"] = value.range.value
    if is_result_size:
        call.extra["result_is_readonly"] = name == "rdonly_buf_size"


def _kind(
    v: Verification,
    state: State,
    call: Call,
    function: KernelFunction,
    members: Sequence[Member],
    index: int,
    value: Value,
    is_null: bool,
) -> str:
    """Return what kind of argument a parameter asks for, given what is passed."""
    types = v.subject.types
    assert types is not None
    member = members[index]
    target = pointee(types, member.type_id) or 0
    inner = types.type_at(target) if target else None
    name = inner.name if inner is not None and is_struct(inner) else ""
    suffix = suffix_of(member.name)
    has_size = _has_size(v, state, members, index)
    if function.name == "bpf_cast_to_kern_ctx" or is_context_struct(type_names(v)[0], name, v.profile.version):
        return "context"
    if suffix == "nullable" and is_null and not has_size:
        return "null"
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if index == 0 and iterators.is_iterator(function):
        return "iterator"
    if name in _BY_STRUCT:
        return _BY_STRUCT[name]
    if isinstance(value, Pointer) and (value.kind is Kind.BTF_ID or value.kind in _KNOWN_STRUCTS):
        if not name:
            refuse("argument-type", call.slot, f"r{index + 1} of {call.name} is {value.type_name}, expected memory")
        return "struct"
    if inner is not None and inner.kind == BtfKind.FUNC_PROTO:
        return "callback"
    if not (is_number(inner) or objects.holds_numbers_only(types, target)) and not (has_size and inner is None):
        claim = f"r{index + 1} of {call.name} is {name_of(value)}, expected a pointer to struct {name}"
        refuse("argument-type", call.slot, claim, index + 1)
    return "sized" if has_size else "memory"


def _has_size(v: Verification, state: State, members: Sequence[Member], index: int) -> bool:
    """Whether the argument after this one is the length of the memory that this one points at."""
    if index + 1 >= len(members[:5]):
        return False
    is_named = suffix_of(members[index + 1].name) in ("sz", "szk")
    return is_named and isinstance(state.frames[-1].regs[index + 2], Scalar)


def _check_trust(v: Verification, call: Call, reg: int, value: Pointer, function: KernelFunction) -> None:
    if not _wants_trust(v, function) or _is_trusted(value):
        return
    if "rcuarg" not in function.flags:
        refuse("untrusted-pointer", call.slot, f"r{reg} of {call.name} must be referenced or trusted", reg)
    if not value.flags & Flag.RCU:
        refuse("untrusted-pointer", call.slot, f"r{reg} of {call.name} must be valid under RCU", reg)


def _is_trusted(pointer: Pointer) -> bool:
    """Whether a kernel function that wants trusted pointers takes this one."""
    is_plain = pointer.kind in _KNOWN_STRUCTS and not pointer.flags
    return bool(pointer.ref) or is_plain or are_trusted(pointer.flags)


def _check_offset(call: Call, reg: int, value: Pointer, *, is_released: bool) -> None:
    if is_released and value.kind is not Kind.STACK and value.off:
        refuse("reference-release", call.slot, f"r{reg} must point at the start of what is released", reg)
    arguments.check_fixed(call, reg, value)


Check = Callable[[Verification, State, Call, int, Value, Member, KernelFunction], None]


def _check_context(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    if not isinstance(value, Pointer) or value.kind is not Kind.CTX:
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected the context", reg)


def _check_alloc(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    objects.check_dropped(v, call, reg, value)


def _check_refcounted(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    objects.check_shared(v, call, reg, value)


def _check_string(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    arguments.check_constant_string(v, call, reg, value)


def _check_map(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    if not isinstance(value, Pointer) or value.kind is not Kind.MAP_PTR:
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected a map", reg)
    field_map = call.extra.get("timer_map")
    if field_map is not None and (field_map[0] is not value.map or field_map[1] != value.map_uid):
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is another map than the one that r1 lies in", reg)
    call.map, call.map_uid = value.map, value.map_uid


def _check_iterator(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    """Done when the call takes effect: see `iterators`."""


def _check_graph_head(what: str) -> Check:
    def check(
        v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
    ) -> None:
        graphs.check_head(v, state, call, reg, value, what)

    return check


def _check_graph_node(what: str) -> Check:
    def check(
        v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
    ) -> None:
        graphs.check_node(v, state, call, reg, value, what)

    return check


def _check_in_map_value(what: str) -> Check:
    def check(
        v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
    ) -> None:
        if not isinstance(value, Pointer) or value.kind is not Kind.MAP_VALUE or value.flags & Flag.NULL:
            refuse("argument-type", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected map_value", reg)
        refs.check_field(v, call, reg, value, what)
        call.extra["timer_map"] = (value.map, value.map_uid)

    return check


def _check_lock(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    refs.check_lock(v, state, call, reg, value, takes="unlock" not in call.name, what="res_spin_lock")


def _check_irq_flag(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    irq_flags.check(v, state, call, reg, value)


def _check_dynptr(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    is_new = suffix_of(member.name) == "uninit"
    if call.dynptr is not None:
        call.extra["cloned"] = call.dynptr
    dynptrs.check_argument(v, state, call, reg, value, Arg("dynptr_new" if is_new else "dynptr", False, ""))


def _check_callback(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    if not isinstance(value, Pointer) or value.kind is not Kind.FUNC:
        refuse("callback", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected a function", reg)
    call.callback = value.detail


def _check_struct(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    types = v.subject.types
    assert types is not None
    assert isinstance(value, Pointer)
    target = pointee(types, member.type_id) or 0
    name = types.type_at(target).name
    is_doubtful = bool(value.flags) and not are_trusted(value.flags)
    if value.kind is Kind.BTF_ID and is_doubtful and not value.flags & Flag.RCU:
        refuse("untrusted-pointer", call.slot, f"r{reg} of {call.name} is {value.type_name}, expected {name}", reg)
    held, type_id = _struct_of(types, value)
    given = struct_name(value) if value.kind is Kind.BTF_ID else _KNOWN_STRUCTS[value.kind]
    if name == "__sk_buff" and given == "sk_buff":
        return
    is_strict = ("release" in function.flags and bool(value.ref)) or name.endswith("___init")
    if held is None or not holds_struct(held, type_id, value.off, types, target, is_strict=is_strict):
        refuse("argument-type", call.slot, f"r{reg} of {call.name} points at struct {given}, expected {name}", reg)


def _struct_of(types: TypeProvider, value: Pointer) -> tuple[TypeProvider | None, int]:
    if value.kind is Kind.BTF_ID:
        return value.types, value.type_id
    return types, types.id_of(BtfKind.STRUCT, _KNOWN_STRUCTS[value.kind]) or 0


def _check_memory(
    v: Verification, state: State, call: Call, reg: int, value: Value, member: Member, function: KernelFunction
) -> None:
    types = v.subject.types
    assert types is not None
    size = size_of(types, pointee(types, member.type_id) or 0)
    if isinstance(value, Scalar) and value.range.is_const and not value.range.value:
        return
    if not isinstance(value, Pointer) or size is None:
        refuse("argument-type", call.slot, f"r{reg} of {call.name} is {name_of(value)}, expected memory", reg)
    memory = value.but(flags=value.flags & ~Flag.NULL)
    for is_write in (False, True):
        arguments.check_memory(v, state, call, reg, memory, size, allows_nothing=False, is_write=is_write)


def _check_sized(
    v: Verification,
    state: State,
    call: Call,
    reg: int,
    value: Value,
    members: Sequence[Member],
    index: int,
    *,
    is_null: bool,
) -> None:
    """Check memory together with its length, which the next argument holds."""
    if isinstance(value, Pointer):
        _check_offset(call, reg, value, is_released=False)
    size = state.frames[-1].regs[reg + 1]
    assert isinstance(size, Scalar)
    if not (is_null and suffix_of(members[index].name) in ("opt", "nullable")):
        for is_write in (False, True):
            # Whether it may be null was asked before.
            arguments.check_sized(
                v,
                state,
                call,
                reg + 1,
                size,
                allows_nothing=True,
                is_write=is_write,
                is_raw=False,
                is_nullable=True,
            )
    if suffix_of(members[index + 1].name) == "szk":
        if not size.range.is_const:
            refuse("argument-constant", call.slot, f"r{reg + 1} of {call.name} must be a known constant", reg + 1)
        v.mark_precise(state, reg + 1)


_CHECKS: Final[dict[str, Check]] = {
    "context": _check_context,
    "alloc": _check_alloc,
    "refcounted": _check_refcounted,
    "str": _check_string,
    "map": _check_map,
    "iterator": _check_iterator,
    "list_head": _check_graph_head("list_head"),
    "rb_root": _check_graph_head("rb_root"),
    "list_node": _check_graph_node("list_node"),
    "rb_node": _check_graph_node("rb_node"),
    "workqueue": _check_in_map_value("workqueue"),
    "task_work": _check_in_map_value("task_work"),
    "res_spin_lock": _check_lock,
    "irq_flag": _check_irq_flag,
    "dynptr": _check_dynptr,
    "callback": _check_callback,
    "struct": _check_struct,
    "memory": _check_memory,
}
