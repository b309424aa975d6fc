"""
Global functions: each is verified alone, from what its BTF declares of its arguments, and a call of
one checks only the arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actplane.asm.insn import Kfunc
from actplane.asm.isa import CALL
from actplane.verifier.domains.btf_walk import bare, is_number, is_struct, pointee, size_of
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.types import BtfKind, TypeProvider
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.flow import HELPER_CALL, called_function
from actplane.verifier.paths.state import Frame, State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, Value, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.rules import arguments, dynptrs
from actplane.verifier.tables.helper_table import CHANGES_PACKET, SLEEPS, Arg
from actplane.verifier.tables.kfunc_table import find_function
from actplane.verifier.tables.refusals import refuse

GLOBAL: Final = 1
MAX_ARGS: Final = 5

_CONTEXT_STRUCTS: Final = frozenset(
    {
        "__sk_buff",
        "xdp_md",
        "bpf_sock",
        "bpf_sock_addr",
        "bpf_sock_ops",
        "sk_msg_md",
        "bpf_flow_keys",
        "pt_regs",
        "user_pt_regs",
        "bpf_raw_tracepoint_args",
        "bpf_perf_event_data",
        "bpf_cgroup_dev_ctx",
        "bpf_sysctl",
        "bpf_sockopt",
        "sk_reuseport_md",
        "bpf_sk_lookup",
        "bpf_nf_ctx",
    }
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One declared argument: scalar, context, mem (of `size` bytes), dynptr, trusted, untrusted, anything or arena."""

    kind: str
    size: int = 0
    is_nullable: bool = False
    type_id: int = 0


@dataclass(frozen=True, slots=True)
class GlobalFunction:
    """A global function by its first slot. `problem` says why it cannot be verified, if so."""

    name: str
    start: int
    parameters: tuple[Parameter, ...]
    problem: str
    changes_packet: bool
    may_sleep: bool


def prepare(v: Verification) -> None:
    """Find the global functions of the program and note them for calls."""
    own = v.subject.own
    found: dict[int, GlobalFunction] = {}
    if own is not None and own.functions and own.functions.keys() != set(v.code.starts):
        claim = f"the function information names {len(own.functions)} functions, the program has {len(v.code.starts)}"
        refuse("unreachable", -1, claim)
    if own is not None and own.types is not None and v.profile.at_least(5, 6):
        for start in v.code.starts[1:]:
            type_id = own.functions.get(start)
            if type_id is None:
                continue
            function = own.types.type_at(type_id)
            if function.kind == BtfKind.FUNC and function.linkage == GLOBAL:
                found[start] = _describe(v, own.types, type_id, start)
    v.subject.notes["globals"] = found


def _describe(v: Verification, types: TypeProvider, type_id: int, start: int) -> GlobalFunction:
    function = types.type_at(type_id)
    proto = types.type_at(function.target)
    tags: dict[int, set[str]] = {}
    for text, component in types.tags_of(type_id):
        tags.setdefault(component, set()).add(text)
    problem = ""
    returned = bare(types, proto.target)
    if returned is not None and not is_number(returned):
        problem = f"{function.name}() does not return a number"
    if returned is None and not v.profile.at_least(7, 1):
        problem = f"{function.name}() returns nothing, which global functions may not"
    if len(proto.members) > MAX_ARGS:
        problem = f"{function.name}() has {len(proto.members)} arguments, {MAX_ARGS} are allowed"
    parameters = []
    for index, member in enumerate(proto.members[:MAX_ARGS]):
        parameter = _parameter(v, types, member.type_id, tags.get(index, set()))
        if isinstance(parameter, str):
            problem = problem or f"argument {index} of {function.name}() {parameter}"
            break
        parameters.append(parameter)
    return GlobalFunction(function.name, start, tuple(parameters), problem, *_effects(v, start))


def _parameter(v: Verification, types: TypeProvider, type_id: int, tags: set[str]) -> Parameter | str:
    found = bare(types, type_id)
    if is_number(found):
        return Parameter("scalar")
    if found is None or found.kind != BtfKind.PTR:
        return "is neither a number nor a pointer"
    if not v.profile.at_least(6, 8):
        tags = set()
    if "arg:ctx" in tags:
        return Parameter("context")
    if "arg:arena" in tags:
        return Parameter("arena")
    target = pointee(types, type_id) or 0
    inner = types.type_at(target) if target else None
    if is_struct(inner) and inner is not None:
        if inner.name in _CONTEXT_STRUCTS and not tags:
            return Parameter("context")
        if inner.name == "bpf_dynptr":
            return Parameter("dynptr")
    is_nullable = "arg:nonnull" not in tags
    if "arg:untrusted" in tags and (inner is None or is_number(inner)):
        return Parameter("anything")
    if "arg:trusted" in tags or "arg:untrusted" in tags:
        return _trusted(v, inner.name if inner is not None else "", "arg:nullable" in tags, "arg:untrusted" in tags)
    size = size_of(types, target)
    if not size:
        return "points at something whose size is not known"
    return Parameter("mem", size, is_nullable)


def _trusted(v: Verification, name: str, is_nullable: bool, is_untrusted: bool) -> Parameter | str:
    kernel = v.subject.types
    name = name.partition("___")[0]
    type_id = kernel.id_of(BtfKind.STRUCT, name) if kernel is not None else None
    if type_id is None:
        return f"points at a struct {name} that the kernel does not have"
    return Parameter("untrusted" if is_untrusted else "trusted", 0, is_nullable, type_id)


def _effects(v: Verification, start: int) -> tuple[bool, bool]:
    """Return whether a function, or one that it calls, may change the packet, and whether it may sleep."""
    changes = sleeps = False
    seen: set[int] = set()
    work = [start]
    while work:
        entry = work.pop()
        if entry in seen:
            continue
        seen.add(entry)
        index = v.code.function_of[entry]
        end = v.code.starts[index + 1] if index + 1 < len(v.code.starts) else v.code.size
        for slot in range(entry, end):
            insn = v.code.at[slot]
            if insn is None:
                continue
            if insn.code == CALL and insn.src == HELPER_CALL:
                changes = changes or insn.imm in CHANGES_PACKET
                sleeps = sleeps or insn.imm in SLEEPS
            elif isinstance(insn.symbol, Kfunc):
                kfunc = find_function(insn.symbol.name)
                sleeps = sleeps or (kfunc is not None and "sleep" in kfunc.flags)
            target = called_function(slot, insn)
            if target is not None:
                work.append(target)
    return changes, sleeps


def check_call(v: Verification, state: State, slot: int, function: GlobalFunction) -> None:
    """Check the arguments of a call of a global function."""
    if function.problem:
        refuse("global-function", slot, function.problem)
    is_section = bool(state.rcu_depth or state.preempt_off or state.irq_id)
    if function.may_sleep and (is_section or not v.in_sleepable(state)):
        refuse("sleeping", slot, f"{function.name}() may sleep, which is not allowed here")
    regs = state.frames[-1].regs
    call = Call(-1, f"{function.name}()", slot)
    for reg, parameter in enumerate(function.parameters, start=1):
        if parameter.kind in ("untrusted", "anything"):
            continue  # what is read through it is probed, whatever it is
        value = regs[reg]
        if value is None:
            refuse("uninitialized-register", slot, f"r{reg} is read before it is set", reg)
        _check_argument(v, state, call, reg, value, parameter)


def _check_argument(v: Verification, state: State, call: Call, reg: int, value: Value, parameter: Parameter) -> None:
    slot, kind = call.slot, parameter.kind
    if kind == "scalar":
        if not isinstance(value, Scalar):
            refuse("argument-type", slot, f"r{reg} is {name_of(value)}, {call.name} takes a number", reg)
        return
    is_null = isinstance(value, Scalar) and value.range.is_const and value.range.value == 0
    if is_null and parameter.is_nullable:
        return
    if kind == "arena":
        refuse(
            "arena-not-modelled", slot, f"{call.name} takes a pointer into an arena, which the mirror does not model"
        )
    if not isinstance(value, Pointer):
        refuse("argument-type", slot, f"r{reg} is {name_of(value)}, {call.name} takes a pointer", reg)
    if kind == "context":
        if value.kind is not Kind.CTX:
            refuse("argument-type", slot, f"r{reg} is {value.type_name}, {call.name} takes the context", reg)
        arguments.check_fixed(call, reg, value)
    elif kind == "mem":
        if value.flags & Flag.NULL and not parameter.is_nullable:
            refuse("argument-null", slot, f"r{reg} may be null, {call.name} does not allow that", reg)
        target = value.but(flags=value.flags & ~Flag.NULL)
        for is_write in (False, True):
            arguments.check_memory(v, state, call, reg, target, parameter.size, allows_nothing=False, is_write=is_write)
    elif kind == "dynptr":
        dynptrs.check_argument(v, state, call, reg, value, Arg("dynptr", False, ""))
    elif (
        value.kind is not Kind.BTF_ID
        or value.flags & Flag.UNTRUSTED
        or (value.flags & Flag.NULL and not parameter.is_nullable)
    ):
        refuse("argument-type", slot, f"r{reg} is {value.type_name}, {call.name} takes a trusted pointer", reg)


def entry_state(v: Verification, function: GlobalFunction) -> State:
    """Return the state in which a global function starts, from its declaration alone."""
    state = State()
    frame = Frame(0, v.code.function_of[function.start], -1)
    for reg, parameter in enumerate(function.parameters, start=1):
        frame.regs[reg] = _argument(v, parameter)
    state.frames.append(frame)
    state.written = [0]
    state.slot = function.start
    return state


def _argument(v: Verification, parameter: Parameter) -> Value:
    flags = Flag.NULL if parameter.is_nullable else Flag.NONE
    id_ = v.new_id() if flags else 0
    if parameter.kind == "context":
        return Pointer(Kind.CTX)
    if parameter.kind == "mem":
        return Pointer(Kind.MEM, flags=flags, size=parameter.size, id=id_)
    if parameter.kind == "dynptr":
        return Pointer(Kind.DYNPTR, id=v.new_id())
    if parameter.kind == "anything":
        return Pointer(Kind.MEM, flags=Flag.RDONLY | Flag.UNTRUSTED)
    if parameter.kind in ("trusted", "untrusted"):
        flags |= Flag.TRUSTED if parameter.kind == "trusted" else Flag.UNTRUSTED
        return Pointer(Kind.BTF_ID, flags=flags, types=v.subject.types, type_id=parameter.type_id, id=id_)
    return UNKNOWN_SCALAR
