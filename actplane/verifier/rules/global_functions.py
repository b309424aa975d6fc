"""
Global functions: each is verified alone, from what its BTF declares of its arguments, and a call of
one checks only the arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actplane.asm.insn import Kfunc
from actplane.asm.isa import ABS, CALL, CLASS_MASK, IND, LD, LD_IMM64, MODE_MASK
from actplane.asm.uapi import AttachType, HelperId, ProgType
from actplane.verifier.domains.btf_walk import bare, is_number, is_struct, pointee, size_of
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.types import BtfKind, Type, TypeProvider
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.flow import HELPER_CALL, called_function
from actplane.verifier.paths.state import Frame, State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, Value, name_of
from actplane.verifier.paths.verification import Verification
from actplane.verifier.rules import arguments, dynptrs, refs
from actplane.verifier.rules.context import type_names
from actplane.verifier.tables.context_tables import STRUCTS, is_context_struct
from actplane.verifier.tables.helper_table import CHANGES_PACKET, SLEEPS, Arg
from actplane.verifier.tables.kfunc_table import find_function
from actplane.verifier.tables.refusals import refuse

GLOBAL: Final = 1
MAX_ARGS: Final = 5


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
    if own is not None and own.types is not None:
        for start in v.code.starts[1:]:
            type_id = own.functions.get(start)
            if type_id is None:
                continue
            function = own.types.type_at(type_id)
            _check_result(v, own.types, function, start)
            if function.kind == BtfKind.FUNC and function.linkage == GLOBAL:
                found[start] = _describe(v, own.types, type_id, start)
    v.subject.notes["globals"] = found


def _check_result(v: Verification, types: TypeProvider, function: Type, start: int) -> None:
    """Refuse what ends a function with a number of the kernel's own, in one that does not return a number."""
    returned = bare(types, types.type_at(function.target).target)
    if is_number(returned):
        return
    for slot in range(start, _end_of(v, start)):
        insn = v.code.at[slot]
        if insn is None:
            continue
        if insn.code == CALL and insn.src == HELPER_CALL and insn.imm == HelperId.bpf_tail_call:
            refuse("tail-call", slot, f"a tail call in {function.name}(), which does not return a number")
        if insn.code != LD_IMM64 and insn.code & CLASS_MASK == LD and insn.code & MODE_MASK in (ABS, IND):
            refuse("bad-instruction", slot, f"LD_ABS or LD_IND in {function.name}(), which does not return a number")


def _end_of(v: Verification, start: int) -> int:
    """Return the slot behind a function."""
    index = v.code.function_of[start]
    return v.code.starts[index + 1] if index + 1 < len(v.code.starts) else v.code.size


def _describe(v: Verification, types: TypeProvider, type_id: int, start: int) -> GlobalFunction:
    function = types.type_at(type_id)
    proto = types.type_at(function.target)
    tags: dict[int, set[str]] = {}
    if v.profile.at_least(6, 8):
        for text, component in types.tags_of(type_id):
            if text.startswith(_TAG):
                tags.setdefault(component, set()).add(text.removeprefix(_TAG))
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


_TAG: Final = "arg:"
_TAGS_SINCE: Final = {
    "ctx": (6, 8),
    "nonnull": (6, 8),
    "trusted": (6, 9),
    "nullable": (6, 9),
    "arena": (6, 9),
    "untrusted": (6, 17),
}


def _parameter(v: Verification, types: TypeProvider, type_id: int, tags: set[str]) -> Parameter | str:
    """Return what an argument is declared to be, or what is wrong with that."""
    for tag in sorted(tags):
        if tag not in _TAGS_SINCE or not v.profile.at_least(*_TAGS_SINCE[tag]):
            return f"has the tag {_TAG}{tag}, which this kernel does not know"
    found = bare(types, type_id)
    if found is not None and found.kind == BtfKind.PTR:
        return _pointer_parameter(v, types, type_id, tags)
    if tags:
        return "has tags, but is no pointer"
    return Parameter("scalar") if is_number(found) else "is neither a number nor a pointer"


def _pointer_parameter(v: Verification, types: TypeProvider, type_id: int, tags: set[str]) -> Parameter | str:
    """The kernel asks in this order; what it finds first decides which other tags may be there."""
    target = pointee(types, type_id) or 0
    inner = types.type_at(target) if target else None
    name = inner.name if inner is not None and is_struct(inner) else ""
    kind, allowed = "mem", {"nonnull"}
    knows_registers = v.prog_type is ProgType.BPF_PROG_TYPE_KPROBE and v.profile.at_least(6, 8)
    if (
        "ctx" in tags
        or is_context_struct(type_names(v)[0], name, v.profile.version)
        or (knows_registers and _are_user_registers(types, type_id))
    ):
        kind, allowed = "context", {"ctx"}
    elif name == "bpf_dynptr":
        kind, allowed = "dynptr", set()
    elif "trusted" in tags:
        kind, allowed = "trusted", {"trusted", "nullable", "untrusted", "arena"}
    elif "untrusted" in tags:
        kind, allowed = "anything" if inner is None or is_number(inner) else "untrusted", {"untrusted"}
    elif "arena" in tags:
        kind, allowed = "arena", {"arena"}
    if tags - allowed:
        return f"has tags that do not go together: {', '.join(_TAG + tag for tag in sorted(tags))}"
    if kind == "context":
        wanted = _declared_otherwise(v, types, type_id) if "ctx" in tags else None
        return Parameter(kind) if wanted is None else f"is tagged arg:ctx and must be {wanted}"
    if kind in ("trusted", "untrusted"):
        return _trusted(v, inner.name if inner is not None else "", "nullable" in tags, kind == "untrusted")
    if kind != "mem":
        return Parameter(kind)
    if not v.profile.at_least(5, 12):
        return "points at memory, which kernels take since Linux 5.12"
    size = size_of(types, target)
    if not size:
        return "points at something whose size is not known"
    return Parameter(kind, size, is_nullable="nonnull" not in tags)


def _are_user_registers(types: TypeProvider, type_id: int) -> bool:
    """Whether a pointer is one to the typedef of the registers, which differ from machine to machine."""
    pointer = bare(types, type_id)
    found = types.type_at(pointer.target) if pointer is not None and pointer.target else None
    while found is not None and found.kind in _QUALIFIERS:
        found = types.type_at(found.target) if found.target else None
    return found is not None and found.kind == BtfKind.TYPEDEF and found.name == "bpf_user_pt_regs_t"


_QUALIFIERS: Final = frozenset({BtfKind.CONST, BtfKind.VOLATILE, BtfKind.RESTRICT, BtfKind.TYPE_TAG})
_REGISTERS: Final = frozenset({ProgType.BPF_PROG_TYPE_KPROBE, ProgType.BPF_PROG_TYPE_PERF_EVENT})
_WORDS: Final = frozenset(
    {
        AttachType.BPF_TRACE_RAW_TP,
        AttachType.BPF_TRACE_FENTRY,
        AttachType.BPF_TRACE_FEXIT,
        AttachType.BPF_MODIFY_RETURN,
    }
)
"""Ways of attaching tracing programs in which the context is an array of 8-byte words."""


def _declared_otherwise(v: Verification, types: TypeProvider, type_id: int) -> str | None:
    """
    Return what an argument tagged as the context must be declared as, None if it is.

    Source: btf_validate_prog_ctx_type() in kernel/bpf/btf.c of Linux 6.18.
    """
    target = pointee(types, type_id) or 0
    inner = types.type_at(target) if target else None
    kind, attach = v.prog_type, v.program.attach_type
    if inner is None or kind in (ProgType.BPF_PROG_TYPE_TRACEPOINT, ProgType.BPF_PROG_TYPE_SYSCALL):
        return None
    name = inner.name if is_struct(inner) else ""
    is_tracing = kind is ProgType.BPF_PROG_TYPE_TRACING
    takes_words = kind in (
        ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT,
        ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE,
        ProgType.BPF_PROG_TYPE_LSM,
        ProgType.BPF_PROG_TYPE_STRUCT_OPS,
    ) or (is_tracing and attach in _WORDS)
    if takes_words and inner.kind == BtfKind.INT and inner.size == 8:
        return None
    if is_tracing and attach is AttachType.BPF_TRACE_RAW_TP and name == "bpf_raw_tracepoint_args":
        return None
    if is_tracing and attach is AttachType.BPF_TRACE_ITER and name.startswith("bpf_iter__"):
        return None
    if kind in _REGISTERS and (name == "pt_regs" or _are_user_registers(types, type_id)):
        return None
    wanted = STRUCTS.get(type_names(v)[0])
    if wanted is None:
        return "void *"
    return None if name == wanted else f"struct {wanted} *"


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
        for slot in range(entry, _end_of(v, entry)):
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
    if function.may_sleep:
        refs.check_may_sleep(v, state, slot, f"{function.name}()")
    if (state.preempt_off or state.irq_id) and not v.profile.at_least(6, 15):
        # Kernels did not know yet which functions sleep.
        refuse("section", slot, f"{function.name}() is a global function, called with preemption or interrupts off")
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
    if kind == "trusted":
        arguments.check_struct(v, call, reg, value, parameter.type_id, is_nullable=parameter.is_nullable)
        return
    if not isinstance(value, Pointer):
        refuse("argument-type", slot, f"r{reg} is {name_of(value)}, {call.name} takes a pointer", reg)
    if kind == "context":
        if value.kind is not Kind.CTX:
            refuse("argument-type", slot, f"r{reg} is {value.type_name}, {call.name} takes the context", reg)
        arguments.check_fixed(call, reg, value)
    elif kind == "mem":
        if value.flags & Flag.NULL and not parameter.is_nullable:
            refuse("argument-null", slot, f"r{reg} may be null, {call.name} does not allow that", reg)
        arguments.check_fixed(call, reg, value)
        target = value.but(flags=value.flags & ~Flag.NULL)
        for is_write in (False, True):
            arguments.check_memory(v, state, call, reg, target, parameter.size, allows_nothing=False, is_write=is_write)
    elif kind == "dynptr":
        dynptrs.check_argument(v, state, call, reg, value, Arg("dynptr", False, ""))


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
