"""
Functions of the program: calls of them, callbacks that helpers run, returns, and the end.
"""

from __future__ import annotations

from typing import Any, Final

from actplane.asm.insn import Insn
from actplane.asm.isa import PSEUDO_CALL
from actplane.asm.uapi import AttachType, ProgType
from actplane.verifier.domains.kinds import Kind
from actplane.verifier.domains.types import BtfKind
from actplane.verifier.paths import attach
from actplane.verifier.paths.call_facts import Call
from actplane.verifier.paths.checkpoint import is_at
from actplane.verifier.paths.state import Frame, State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, Value, name_of
from actplane.verifier.paths.verification import Handler, Verification
from actplane.verifier.paths.widening import widen_imprecise
from actplane.verifier.rules import global_functions, graphs, refs
from actplane.verifier.tables.refusals import refuse

END: Final = -1


def compile_subprogram_call(v: Verification, slot: int, insn: Insn) -> Handler:
    """Return the handler of a call of a function of the program."""
    target = slot + 1 + insn.imm
    assert insn.src == PSEUDO_CALL

    def call(state: State) -> int:
        if insn.dst or insn.off:
            refuse("bad-instruction", slot, "a call uses reserved fields")
        function = v.subject.notes.get("globals", {}).get(target)
        if function is not None:
            return _call_global(v, state, slot, target, function)
        if state.locks and not v.profile.at_least(6, 11):
            refuse("lock", slot, "a function is called while a lock is held")
        _enter(v, state, slot, target)
        return target

    return call


def _enter(v: Verification, state: State, slot: int, target: int) -> Frame:
    depth = len(state.frames)
    if depth >= v.profile.max_frames:
        claim = f"the call would be frame {depth + 1}, {v.profile.max_frames} are allowed"
        refuse("too-many-frames", slot, claim)
    caller = state.frames[-1]
    frame = Frame(depth, v.code.function_of[target], slot)
    frame.regs[1:6] = caller.regs[1:6]
    caller.regs[0:6] = [None] * 6
    state.frames.append(frame)
    state.written.append(0)
    return frame


def _call_global(v: Verification, state: State, slot: int, target: int, function: Any) -> int:
    """A global function is verified alone; here only the arguments are checked."""
    if state.locks:
        refuse("lock", slot, "a global function is called while a lock is held")
    global_functions.check_call(v, state, slot, function)
    assert state.trace is not None
    state.trace = (slot, ("global",), state.trace[2])
    regs = state.frames[-1].regs
    regs[0:6] = [None] * 6
    regs[0] = UNKNOWN_SCALAR
    if function.changes_packet:
        refs.forget_packet(v, state)
    if target not in v.globals_called:
        v.globals_called.append(target)
    return slot + 1


_LATER: Final = {
    "bpf_timer_set_callback": (0, 0),
    "bpf_wq_set_callback_impl": (0, 0),
    "bpf_task_work_schedule_signal_impl": (-(1 << 31), (1 << 31) - 1),
    "bpf_task_work_schedule_resume_impl": (-(1 << 31), (1 << 31) - 1),
}
"""Calls that keep a function of the program for later, and what it may return."""


def push_callback(v: Verification, state: State, call: Call) -> None:
    """
    Keep for later the path into the callback of a helper. The path at hand goes on behind the helper,
    as if it ran no callback (any more).
    """
    slot, target = call.slot, call.callback
    if not v.code.is_function(target):
        refuse("callback", slot, f"there is no function at slot {target}")
    if call.name in _LATER:
        _push_async(v, state, call)
        return
    caller = state.frames[-1]
    if call.name == "bpf_for_each_map_elem" and not v.profile.at_least(6, 10):
        known = v.subject.notes.setdefault("walked_maps", {}).setdefault(slot, call.map)
        if known is not call.map:
            refuse("callback", slot, "one call walks one map or another, which kernels take since Linux 6.10")
    if call.name == "bpf_loop":
        if not isinstance(caller.regs[1], Scalar):
            refuse("argument-type", slot, "r1 of bpf_loop must be the number of rounds", 1)
        v.mark_precise(state, 1)
        if not _may_run(caller.regs, caller.callback_depth):
            caller.callback_depth = 0
            return
    if len(state.frames) >= v.profile.max_frames:
        claim = f"the callback would be frame {len(state.frames) + 1}, {v.profile.max_frames} are allowed"
        refuse("too-many-frames", slot, claim)
    other = v.push(state, target, f"{call.name} runs its callback", slot)
    other.callback_unroll += 1
    other.frames[-1].callback_depth += 1
    caller.callback_depth = 0
    frame = Frame(len(other.frames), v.code.function_of[target], slot)
    frame.regs[1:6] = _callback_arguments(v, call, caller.regs)
    frame.callback = call.name
    frame.callback_range = (0, 1)
    other.frames.append(frame)
    other.written.append(0)


def _may_run(args: list[Value | None], depth: int) -> bool:
    count = args[1]
    assert isinstance(count, Scalar)
    return count.range.umax > depth


def _callback_arguments(v: Verification, call: Call, args: list[Value | None]) -> list[Value | None]:
    if call.name == "bpf_loop":
        return [UNKNOWN_SCALAR, args[3], None, None, None]
    if call.name == "bpf_for_each_map_elem":
        assert call.map is not None
        return [
            Pointer(Kind.MAP_PTR, map=call.map, map_uid=call.map_uid),
            Pointer(Kind.MAP_KEY, map=call.map, id=v.new_id()),
            Pointer(Kind.MAP_VALUE, map=call.map, map_uid=call.map_uid, id=v.new_id()),
            args[3],
            None,
        ]
    if call.name == "bpf_find_vma":
        types = v.subject.types
        type_id = types.id_of(BtfKind.STRUCT, "vm_area_struct") if types is not None else None
        task = args[1]
        if type_id is None:
            refuse("unsupported", call.slot, "bpf_find_vma needs the kernel's types")
        return [task, Pointer(Kind.BTF_ID, types=types, type_id=type_id), args[4], None, None]
    if call.name == "bpf_user_ringbuf_drain":
        return [Pointer(Kind.DYNPTR, id=v.new_id()), args[3], None, None, None]
    if call.name == "bpf_rbtree_add_impl":
        return graphs.compared(v, call)
    refuse("unsupported", call.slot, f"the callback of {call.name} is not modelled")


def _push_async(v: Verification, state: State, call: Call) -> None:
    """The callback runs later, on its own: it is walked from an empty stack."""
    timer_map, uid = call.extra["timer_map"]
    other = v.push(state, call.callback, f"{call.name}: the callback runs", call.slot)
    frame = Frame(0, v.code.function_of[call.callback], -1)
    frame.regs[1] = Pointer(Kind.MAP_PTR, map=timer_map, map_uid=uid)
    frame.regs[2] = Pointer(Kind.MAP_KEY, map=timer_map, id=v.new_id())
    frame.regs[3] = Pointer(Kind.MAP_VALUE, map=timer_map, map_uid=uid, id=v.new_id())
    # All but timers run where sleeping is allowed, whatever the program may do.
    other.in_sleepable = call.name != "bpf_timer_set_callback"
    frame.is_async = True
    frame.callback = call.name
    frame.callback_range = _LATER[call.name]
    v.subject.notes.setdefault("async_callbacks", set()).add(call.callback)
    if other.parent is not None:
        # Not a continuation of this path: a callback that sets itself again is no loop.
        other.parent.branches -= 1
        other.parent = other.trace = None
    other.frames = [frame]
    other.written = [0]
    other.refs = ()
    other.locks = other.rcu_depth = other.preempt_off = other.irq_id = 0


def compile_exit(v: Verification, slot: int, insn: Insn) -> Handler:
    """Return the handler of an exit: a return to the caller, or the end of the program."""
    is_reserved = bool(insn.imm or insn.src or insn.dst)  # the kernel does not look at the offset

    def leave(state: State) -> int:
        if is_reserved:
            refuse("bad-instruction", slot, "an exit uses reserved fields")
        if len(state.frames) > 1:
            return _return(v, state, slot)
        refs.check_nothing_held(v, state, slot, "exit", is_exit=True)
        frame = state.frames[0]
        if frame.is_async:
            _check_callback_result(v, state, slot, frame)
            return END
        check_return_value(v, state, slot)
        return END

    return leave


def _return(v: Verification, state: State, slot: int) -> int:
    frame = state.frames[-1]
    value = frame.regs[0]
    if isinstance(value, Pointer) and value.kind is Kind.STACK:
        refuse("pointer-leak", slot, "a function returns a pointer into its own stack", 0)
    if frame.callback is not None:
        return _return_from_callback(v, state, slot, frame)
    if state.locks and not v.profile.at_least(6, 9):
        refuse("lock", slot, "a function returns while a lock is held")
    state.frames.pop()
    state.written.pop()
    caller = state.frames[-1]
    caller.regs[0] = value
    return frame.call_slot + 1


def _check_callback_result(v: Verification, state: State, slot: int, frame: Frame) -> None:
    value = frame.regs[0]
    if value is None:
        refuse("uninitialized-register", slot, "r0 is not set at the end of a callback", 0)
    if not isinstance(value, Scalar):
        refuse("return-value", slot, f"a callback returns {name_of(value)}, expected a number", 0)
    low, high = frame.callback_range or (0, 0)
    v.mark_precise(state, 0)
    if value.range.smin < low or value.range.smax > high:
        refuse(
            "return-value",
            slot,
            f"a callback returns {low} to {high}, r0 is {value.range.smin} to {value.range.smax}",
            0,
        )


def _return_from_callback(v: Verification, state: State, slot: int, frame: Frame) -> int:
    for ref in state.refs:
        if ref.what == "ref" and ref.slot >= 0 and v.code.function_of[ref.slot] == frame.subprogram:
            refuse("reference-leak", slot, f"a callback keeps the reference acquired at slot {ref.slot}")
    _check_callback_result(v, state, slot, frame)
    if frame.is_async:
        return END
    state.frames.pop()
    state.written.pop()
    # The helper may run the callback again: back to the call, with numbers that nothing needs forgotten.
    kept = _checkpoint_at(state, frame.call_slot)
    if kept is not None:
        widen_imprecise(kept, state)
    return frame.call_slot


def _checkpoint_at(state: State, slot: int) -> Any:
    checkpoint = state.parent
    while checkpoint is not None:
        if is_at(checkpoint, slot, state):
            return checkpoint
        checkpoint = checkpoint.parent
    return None


def check_return_value(v: Verification, state: State, slot: int) -> None:
    """Refuse an end of the program with a value in r0 that the hook does not allow."""
    program = v.program
    if attach.takes_no_return_value(program, v.subject.attach) and not v.subject.notes.get("walking_global"):
        return
    value = state.frames[0].regs[0]
    if value is None:
        refuse("uninitialized-register", slot, "r0 is not set at the end of the program", 0)
    if isinstance(value, Pointer) and not v.is_privileged:
        refuse("pointer-leak", slot, "r0 holds a pointer at the end of the program", 0)
    is_thrown = v.code.starts[state.frames[0].subprogram] == v.subject.notes.get("exception_callback")
    if v.subject.notes.get("walking_global") and not is_thrown:
        if not isinstance(value, Scalar):
            refuse("return-value", slot, f"a global function returns {name_of(value)}, expected a number", 0)
        return
    wanted = attach.return_range(program, v.subject.attach, v.profile)
    if wanted is None:
        return
    if not isinstance(value, Scalar):
        refuse("return-value", slot, f"r0 is {name_of(value)}, expected a number", 0)
    v.mark_precise(state, 0)
    low, high = wanted
    range_ = value.range
    # An LSM hook returns an int: the upper half of r0 is not looked at.
    is_int = program.prog_type is ProgType.BPF_PROG_TYPE_LSM and program.attach_type is not AttachType.BPF_LSM_CGROUP
    first, last = (range_.s32min, range_.s32max) if is_int else (range_.smin, range_.smax)
    is_old_lsm = is_int and not v.profile.at_least(6, 12)
    if first < low or last > high:
        if is_old_lsm:
            return
        refuse("return-value", slot, f"r0 is {first} to {last}, this hook takes {low} to {high}", 0)


def check_thrown(v: Verification, state: State, slot: int) -> None:
    """Refuse an exception whose value the hook does not take, where no callback turns it into another."""
    value = state.frames[-1].regs[1]
    if v.subject.notes.get("exception_callback") is not None:
        return
    wanted = attach.return_range(v.program, v.subject.attach, v.profile)
    if wanted is None or not isinstance(value, Scalar):
        return
    low, high = wanted
    if value.range.smin < low or value.range.smax > high:
        claim = f"bpf_throw ends with {value.range.smin} to {value.range.smax}, this hook takes {low} to {high}"
        refuse("return-value", slot, claim, 1)


def entry_state(v: Verification) -> State:
    """Return the state in which a program starts."""
    state = State()
    frame = Frame(0, 0, -1)
    frame.regs[1] = Pointer(Kind.CTX)
    state.frames.append(frame)
    state.written = [0]
    return state
