"""
States in the words of the kernel's verifier log, so that both can be compared line by line.
"""

from __future__ import annotations

from actplane.asm import disassemble
from actplane.errors import EncodeError
from actplane.verifier.flow import Code
from actplane.verifier.kinds import Kind
from actplane.verifier.scalar import S32_MAX, S32_MIN, S64_MAX, S64_MIN, Range, signed32, signed64
from actplane.verifier.state import ALL_SPILL, DYNPTR, INVALID, ITER, SPILL, Frame, Slot, State
from actplane.verifier.tnum import U32, U64
from actplane.verifier.values import Pointer, Scalar, Value
from actplane.verifier.verification import Handler, Verification


def state_text(state: State, regs: tuple[int, ...] = ()) -> str:
    """Return the registers and stack of the current frame; only `regs` of them if any are named."""
    frame = state.frames[-1]
    parts = [f"frame{frame.index}:"] if frame.index else []
    for reg, value in enumerate(frame.regs):
        if value is not None and (not regs or reg in regs):
            parts.append(f"R{reg}={value_text(value)}")
    if not regs:
        parts.extend(slot_text(index, slot) for index, slot in sorted(frame.stack.items()))
    return " ".join(parts)


def value_text(value: Value) -> str:
    """Return one register's value, such as `map_value(map=a,ks=4,vs=8)` or `scalar(umax=7)`."""
    if isinstance(value, Scalar):
        if value.range.is_const:
            number = value.range.smin
            return str(number) if -(1 << 15) < number < 1 << 15 else f"{number & U64:#x}"
        facts = _range_facts(value.range)
        if value.id:
            facts.insert(0, f"id={value.id}" + (f"{value.delta:+d}" if value.delta is not None else ""))
        return f"scalar({','.join(facts)})"
    return _pointer_text(value)


def _pointer_text(value: Pointer) -> str:
    name = value.type_name
    if value.kind is Kind.STACK:
        name = f"fp[{value.frame}]" if value.frame else "fp"
        if value.var.is_const:
            return f"{name}{value.off + value.var.smin:+d}" if value.off + value.var.smin else f"{name}0"
    if value.kind is Kind.BTF_ID and value.types is not None and value.type_id:
        name += value.types.type_at(value.type_id).name
    facts = []
    if value.id:
        facts.append(f"id={value.id}")
    if value.ref:
        facts.append(f"ref_obj_id={value.ref}")
    if value.off:
        facts.append(f"off={value.off}")
    if value.kind in (Kind.PACKET, Kind.PACKET_META):
        facts.append(f"r={value.span}")
    if value.kind in (Kind.MAP_PTR, Kind.MAP_VALUE, Kind.MAP_KEY) and value.map is not None:
        spec = value.map.spec
        facts.append(f"map={spec.name},ks={spec.key_size},vs={spec.value_size}")
    if value.kind is Kind.MEM:
        facts.append(f"sz={value.size}")
    if not value.var.is_const:
        facts.extend(_range_facts(value.var))
    elif value.var.value:
        facts.append(f"imm={value.var.smin:#x}")
    return f"{name}({','.join(facts)})"


def _range_facts(r: Range) -> list[str]:
    groups: list[tuple[str, int]] = []
    bounds = (
        ("smin", r.smin, S64_MIN),
        ("smax", r.smax, S64_MAX),
        ("umin", r.umin, 0),
        ("umax", r.umax, U64),
        ("smin32", r.s32min, S32_MIN if r.s32min != signed32(r.smin & U32) else r.s32min),
        ("smax32", r.s32max, S32_MAX if r.s32max != signed32(r.smax & U32) else r.s32max),
        ("umin32", r.u32min, 0 if r.u32min != r.umin & U32 else r.u32min),
        ("umax32", r.u32max, U32 if r.u32max != r.umax & U32 else r.u32max),
    )
    for name, number, default in bounds:
        if number == default:
            continue
        same = next((i for i, (_, other) in enumerate(groups) if other == number), None)
        if same is None:
            groups.append((name, number))
        else:
            groups[same] = (f"{groups[same][0]}={name}", number)
    facts = [f"{name}={_number(number)}" for name, number in groups]
    if r.mask != U64:
        facts.append(f"var_off=({r.value:#x}; {r.mask:#x})")
    return facts


def _number(number: int) -> str:
    small = -(1 << 15) < signed64(number) < 1 << 15
    return str(number) if small else f"{number & U64:#x}"


def slot_text(index: int, slot: Slot) -> str:
    """Return one stack slot, such as `fp-8=mmmm0000` or `fp-16=ctx()`."""
    place = f"fp-{8 * (index + 1)}="
    if slot.kinds[0] == SPILL:
        text = value_text(slot.value)
        return place + (text if slot.kinds == ALL_SPILL else slot.kinds[::-1].decode() + text)
    if slot.kinds[0] == DYNPTR:
        return f"{place}dynptr_{slot.value.kind}"
    if slot.kinds[0] == ITER:
        return f"{place}iter_{slot.value.kind}(ref_id={slot.value.ref},depth={slot.value.depth})"
    return place + slot.kinds[::-1].replace(bytes([INVALID]), b"?").decode()


def insn_text(code: Code, slot: int) -> str:
    """Return the instruction at a slot in the kernel's syntax."""
    insn = code.at[slot]
    if insn is None:
        return ""
    try:
        return disassemble([insn]).strip()
    except EncodeError:
        return f"(bad instruction 0x{insn.code:02x})"


def logged(v: Verification, slot: int, handler: Handler) -> Handler:
    """
    Return a handler that also writes a line of log: the instruction and what it changed. Where a compiler
    told the lines of its source, the line comes first, as kernels print it since 6.9.
    """
    insn = v.code.at[slot]
    assert insn is not None
    text = insn_text(v.code, slot)
    span = v.program.span_at(slot) if v.subject.own is not None and v.subject.own.types is not None else None

    def handle(state: State) -> int:
        if span is not None and span != v.subject.notes.get("line logged"):
            v.subject.notes["line logged"] = span
            file = span.source.name.rpartition("/")[2]
            v.log.append(f"; {span.source.line(span.line).strip()} @ {file}:{span.line}")
        frame = state.frames[-1]
        before = frame.regs[:], dict(frame.stack)
        at = len(v.log)
        line = f"{slot}: ({insn.code:02x}) {text}"
        v.log.append(line)
        following = handler(state)
        changed = _changes(state.frames[-1], frame, before)
        if changed:
            v.log[at] = f"{line:<38} ; {changed}"
        return following

    return handle


def _changes(now: Frame, frame: Frame, before: tuple[list[Value | None], dict[int, Slot]]) -> str:
    if now is not frame:
        return f"frame{now.index}: enters" if now.index > frame.index else f"returns to frame{now.index}"
    parts = [
        f"R{reg}={value_text(value)}"
        for reg, value in enumerate(frame.regs)
        if value is not None and value is not before[0][reg]
    ]
    parts += [slot_text(i, slot) for i, slot in sorted(frame.stack.items()) if before[1].get(i) is not slot]
    return " ".join(parts)
