"""
States in the words of the kernel's verifier log, so that both can be compared line by line.
"""

from __future__ import annotations

import re
from typing import Final

from actplane.asm import disassemble
from actplane.asm.insn import Insn
from actplane.asm.isa import (
    ALU,
    ALU64,
    ATOMIC,
    CALL,
    CLASS_MASK,
    END,
    JMP,
    JMP32,
    LD,
    LD_IMM64,
    LDX,
    MODE_MASK,
    OP_CALL,
    OP_JA,
    OPERATION_MASK,
    STX,
    X,
)
from actplane.errors import EncodeError
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.scalar import S32_MAX, S32_MIN, S64_MAX, S64_MIN, Range
from actplane.verifier.domains.tnum import U32, U64
from actplane.verifier.paths.flow import Code
from actplane.verifier.paths.state import DYNPTR, INVALID, ITER, SPILL, Frame, Slot, State
from actplane.verifier.paths.values import Pointer, Scalar, Value
from actplane.verifier.paths.verification import Handler, Verification


def state_text(state: State, regs: tuple[int, ...] = (), *, frame: Frame | None = None) -> str:
    """Return the registers and stack of a frame, the current one if none is given; only `regs` if any are named."""
    frame = frame or state.frames[-1]
    parts = [f"frame{frame.index}:"] if frame.index else []
    for reg, value in enumerate(frame.regs):
        if value is not None and (not regs or reg in regs):
            parts.append(f"R{reg}={value_text(value, frame.index)}")
    if not regs:
        parts.extend(slot_text(index, slot, frame.index) for index, slot in sorted(frame.stack.items()))
    return _joined(state, frame, parts)


def _joined(state: State, frame: Frame, parts: list[str]) -> str:
    if state.refs:
        parts.append(f"refs={','.join(str(ref.id) for ref in state.refs)}")
    if frame.callback is not None:
        parts.append("async_cb" if frame.is_async else "cb")
    return " ".join(part for part in parts if part)


def value_text(value: Value, frame_index: int = 0) -> str:
    """Return one register's value in a frame, such as `map_value(map=a,ks=4,vs=8)` or `scalar(umax=7)`."""
    if isinstance(value, Scalar):
        if value.range.is_const:
            return _signed(value.range.smin)
        facts = _range_facts(value.range)
        if value.id:
            facts.insert(0, f"id={value.id}" + (f"{value.delta:+d}" if value.delta is not None else ""))
        return f"scalar({','.join(facts)})"
    return _pointer_text(value, frame_index)


def _pointer_text(value: Pointer, frame_index: int) -> str:
    name = value.type_name
    if value.kind is Kind.STACK:
        name = f"fp[{value.frame}]" if value.frame != frame_index else "fp"
        if value.var.is_const:
            return f"{name}{_signed(value.off + value.var.smin)}"
    if value.kind is Kind.BTF_ID and value.ref:
        # What holds a reference is trusted for that, and the kernel does not say so.
        name = name.removeprefix("trusted_")
    if value.kind is Kind.BTF_ID and value.types is not None and value.type_id:
        name += value.types.type_at(value.type_id).name
    facts = []
    # What holds a reference is told apart by that; until it is known not to be null, by its id too.
    if value.id and (not value.ref or value.flags & Flag.NULL):
        facts.append(f"id={value.id}")
    if value.ref:
        facts.append(f"ref_obj_id={value.ref}")
    if value.kind in (Kind.MAP_PTR, Kind.MAP_VALUE, Kind.MAP_KEY) and value.map is not None:
        spec = value.map.spec
        facts.append(f"map={spec.name},ks={spec.key_size},vs={spec.value_size}")
    if value.off:
        facts.append(f"off={_signed(value.off)}")
    if value.kind in (Kind.PACKET, Kind.PACKET_META):
        facts.append(f"r={value.span}")
    if value.kind is Kind.MEM:
        facts.append(f"sz={value.size}")
    if not value.var.is_const:
        facts.extend(_range_facts(value.var))
    elif value.var.value:
        facts.append(f"imm={_signed(value.var.smin)}")
    return f"{name}({','.join(facts)})"


def _range_facts(r: Range) -> list[str]:
    """Return the bounds that say something; those of one kind that are the same number share it."""
    bounds = [
        ("smin", r.smin, r.smin == S64_MIN),
        ("smax", r.smax, r.smax == S64_MAX),
        ("umin", r.umin, r.umin == 0),
        ("umax", r.umax, r.umax == U64),
        ("smin32", r.s32min, r.s32min == S32_MIN),
        ("smax32", r.s32max, r.s32max == S32_MAX),
        ("umin32", r.u32min, r.u32min == 0),
        ("umax32", r.u32max, r.u32max == U32),
    ]
    facts = []
    said: set[int] = set()
    for index, (name, number, says_nothing) in enumerate(bounds):
        if says_nothing or index in said:
            continue
        same = [
            other
            for other in range(index + 2, len(bounds), 2)
            if not bounds[other][2] and other not in said and bounds[other][1] == number
        ]
        said.update(same)
        text = _signed(number, U32 if name.endswith("32") else U64) if name[0] == "s" else _unsigned(number)
        facts.append("=".join([name, *(bounds[other][0] for other in same), text]))
    if r.mask != U64:
        facts.append(f"var_off=({r.value:#x}; {r.mask:#x})")
    return facts


def _signed(number: int, mask: int = U64) -> str:
    return str(number) if -(1 << 15) <= number < 1 << 15 else f"{number & mask:#x}"


def _unsigned(number: int) -> str:
    return str(number) if number < 1 << 16 else f"{number:#x}"


def slot_text(index: int, slot: Slot, frame_index: int = 0) -> str:
    """Return one stack slot of a frame, such as `fp-8=mmmm0000` or `fp-16=ctx()`."""
    place = f"fp-{8 * (index + 1)}="
    marks = slot.kinds[::-1].replace(bytes([INVALID]), b"?").decode()
    if slot.kinds[0] == SPILL and slot.value is not None:
        # Above a number of less than 8 bytes, the bytes that are not part of it.
        return place + marks.partition(chr(SPILL))[0] + value_text(slot.value, frame_index)
    if slot.kinds[0] == DYNPTR:
        return f"{place}dynptr_{slot.value.kind}"
    if slot.kinds[0] == ITER:
        state = ",state=drained" if slot.value.is_drained else ",state=active"
        return f"{place}iter_{slot.value.kind}(ref_id={slot.value.ref}{state},depth={slot.value.depth})"
    return place + marks if slot.kinds.strip(bytes([INVALID])) else ""


def insn_text(insn: Insn) -> str:
    """Return an instruction in the kernel's syntax."""
    try:
        return disassemble([insn]).strip()
    except EncodeError:
        return f"(bad instruction 0x{insn.code:02x})"


_TARGET: Final = re.compile(r"goto ([+-]\d+)$")
_COMPARED: Final = re.compile(r"^(if \w+ \S+) (-?\d+) goto")


def _kernel_text(code: Code, slot: int) -> str:
    """Return the instruction as the kernel's log has it: jumps from pc, what is compared in hexadecimal."""
    insn = code.at[slot]
    assert insn is not None
    text = _TARGET.sub(r"goto pc\1", insn_text(insn))
    return _COMPARED.sub(lambda match: f"{match[1]} {int(match[2]) & U32:#x} goto", text)


def logged(v: Verification, slot: int, handler: Handler) -> Handler:
    """
    Return a handler that also writes what the kernel writes at log level 2: the instruction, and after it
    the registers and stack slots that it read or wrote. Where another path is taken up, its whole state
    comes first; where a compiler told the lines of its source, the line, as kernels print it since 6.9.
    """
    insn = v.code.at[slot]
    assert insn is not None
    line = f"{slot}: ({insn.code:02x}) {_kernel_text(v.code, slot)}"
    touched = _operands(insn)
    span = v.program.span_at(slot) if v.subject.own is not None and v.subject.own.types is not None else None
    notes = v.subject.notes

    def handle(state: State) -> int:
        if state is not notes.get("state logged"):
            start = f"\nfrom {state.steps[0]} to {slot}" if state.steps is not None else str(slot)
            v.log.extend(f"{start}: {state_text(state)}".split("\n"))
            notes["state logged"] = state
        # Several places of one line are one line.
        if span is not None and (span.source, span.line) != notes.get("line logged"):
            notes["line logged"] = span.source, span.line
            file = span.source.name.rpartition("/")[2]
            v.log.append(f"; {span.source.line(span.line).strip()} @ {file}:{span.line}")
        frame = state.frames[-1]
        before = dict(frame.stack)
        read = _slots_read(insn, frame)
        at = len(v.log)
        v.log.append(line)
        following = handler(state)
        now = state.frames[-1]
        if following < 0:
            return following
        if now is not frame:
            _log_frames(v, state, following, enters=frame.index < now.index)
        else:
            said = _after(state, now, touched, before, read) if touched else ""
            if said or insn.code == CALL:
                v.log[at] = f"{line}{' ' * _padding(len(line))}; {said}".rstrip()
        return following

    return handle


def _padding(length: int) -> int:
    """Return how many blanks the kernel sets between an instruction of a length and the `;`."""
    position = length + 1
    return -(-max(position + 4, 40) // 8) * 8 - position - 1


def _log_frames(v: Verification, state: State, following: int, *, enters: bool) -> None:
    now = state.frames[-1]
    if enters:
        caller = state_text(state, frame=state.frames[-2])
        v.log += ["caller:", f" {caller}", "callee:", f" {state_text(state)}", f"{following}: {state_text(state)}"]
    else:
        v.log += [f"returning from callee to caller at {following}:", f" {state_text(state, frame=now)}"]


def _after(state: State, frame: Frame, touched: tuple[int, ...], before: dict[int, Slot], read: frozenset[int]) -> str:
    parts = [f"frame{frame.index}:"] if frame.index else []
    parts += [f"R{reg}={value_text(value, frame.index)}" for reg in touched if (value := frame.regs[reg]) is not None]
    parts += [
        slot_text(i, slot, frame.index)
        for i, slot in sorted(frame.stack.items())
        if before.get(i) is not slot or i in read
    ]
    return _joined(state, frame, parts)


def _slots_read(insn: Insn, frame: Frame) -> frozenset[int]:
    """Return which slots of its own frame a load reads."""
    base = frame.regs[insn.src] if insn.code & CLASS_MASK == LDX else None
    if not isinstance(base, Pointer) or base.kind is not Kind.STACK or base.frame != frame.index:
        return frozenset()
    low, high = base.off + insn.off + base.var.smin, base.off + insn.off + base.var.smax
    if high - low > _FRAME_BYTES:
        return frozenset()
    return frozenset(range(max((-high - 1) >> 3, 0), ((-low - 1) >> 3) + 1))


_ARGUMENTS: Final = (0, 1, 2, 3, 4, 5)
_CMPXCHG: Final = 0xF1
_FRAME_BYTES: Final = 512


def _operands(insn: Insn) -> tuple[int, ...]:
    """Return the registers that an instruction reads or writes, in order."""
    kind = insn.code & CLASS_MASK
    if kind in (JMP, JMP32):
        operation = insn.code & OPERATION_MASK
        if operation in (OP_CALL, OP_JA):
            return _ARGUMENTS if operation == OP_CALL else ()
        regs = {insn.dst, insn.src} if insn.code & X else {insn.dst}
    elif kind in (ALU, ALU64):
        regs = {insn.dst, insn.src} if insn.code & X and insn.code & OPERATION_MASK != END else {insn.dst}
    elif kind in (LDX, STX):
        regs = {insn.dst, insn.src}
        if kind == STX and insn.code & MODE_MASK == ATOMIC and insn.imm == _CMPXCHG:
            regs.add(0)
    elif kind == LD and insn.code != LD_IMM64:
        regs = {0, insn.src, 6}
    else:
        regs = {insn.dst}
    return tuple(sorted(regs))
