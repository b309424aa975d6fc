"""
Conditional jumps: which way they can go, and what each way teaches about the registers compared.
"""

from __future__ import annotations

from typing import Final

from actplane.asm.insn import Insn
from actplane.asm.isa import (
    ADD,
    CLASS_MASK,
    GOTOL,
    JA,
    JEQ,
    JGE,
    JGT,
    JLE,
    JLT,
    JMP,
    JNE,
    JSET,
    JSGE,
    JSGT,
    JSLE,
    JSLT,
    MAY_GOTO,
    OPERATION_MASK,
    X,
)
from actplane.asm.uapi import MapType
from actplane.verifier.domains import arith, compare
from actplane.verifier.domains.compare import NEGATED
from actplane.verifier.domains.kinds import Flag, Kind, are_trusted
from actplane.verifier.domains.scalar import Range, constant
from actplane.verifier.domains.tnum import U32
from actplane.verifier.paths import speculation
from actplane.verifier.paths.checkpoint import is_at
from actplane.verifier.paths.state import ALL_SPILL, SPILL, Slot, State, replace_pointers
from actplane.verifier.paths.values import ZERO, Pointer, Scalar, Value, known, scalar
from actplane.verifier.paths.verification import Handler, Verification
from actplane.verifier.paths.widening import widen_imprecise
from actplane.verifier.tables.number_versions import rules_for
from actplane.verifier.tables.refusals import refuse

AT_END: Final = -1
BEYOND_END: Final = -2
MAX_PACKET_OFF: Final = 0xFFFF

_SOCKET_MAPS: Final = frozenset({MapType.BPF_MAP_TYPE_SOCKMAP, MapType.BPF_MAP_TYPE_SOCKHASH})
_KNOWN_OPS: Final = frozenset(NEGATED)
_SIGNS: Final = {
    JEQ: "==",
    JNE: "!=",
    JGT: ">",
    JGE: ">=",
    JLT: "<",
    JLE: "<=",
    JSET: "&",
    JSGT: "s>",
    JSGE: "s>=",
    JSLT: "s<",
    JSLE: "s<=",
}


def compile_jump(v: Verification, slot: int, insn: Insn) -> Handler:
    """Return the handler of a jump that is neither a call nor an exit."""
    code, op = insn.code, insn.code & OPERATION_MASK
    if code in (JA, GOTOL):
        target = slot + 1 + (insn.off if code == JA else insn.imm)
        is_bad = insn.src or insn.dst or (insn.imm if code == JA else insn.off)

        def jump(state: State) -> int:
            if is_bad:
                refuse("bad-instruction", slot, "a jump uses reserved fields")
            return target

        return jump
    if code == MAY_GOTO:
        return _compile_may_goto(v, slot, insn)
    if op not in _KNOWN_OPS or (code & X and insn.imm) or (not code & X and insn.src):

        def reserved(state: State) -> int:
            refuse("bad-instruction", slot, "a conditional jump that does not exist, or reserved fields in use")

        return reserved
    return _compile_conditional(v, slot, insn)


def _compile_may_goto(v: Verification, slot: int, insn: Insn) -> Handler:
    target = slot + 1 + insn.off

    def may_goto(state: State) -> int:
        if insn.imm or insn.dst or insn.src:
            refuse("bad-instruction", slot, "may_goto uses reserved fields")
        if not insn.off and not v.profile.at_least(6, 14):
            refuse("bad-instruction", slot, "may_goto goes nowhere, which kernels take since Linux 6.14")
        state.may_goto += 1
        other = v.push(state, target, "may_goto taken", slot)
        _widen(state, slot, v)
        other.may_goto -= 1
        return slot + 1

    return may_goto


def _widen(state: State, slot: int, v: Verification) -> None:
    """Forget numbers that change from round to round, so that the loop comes to a rest."""
    parent = state.parent
    while parent is not None and not is_at(parent, slot, state):
        parent = parent.parent
    # The checkpoint of this visit is the newest one; the one before it is the last round.
    if parent is not None:
        older = parent.parent
        while older is not None and not is_at(older, slot, state):
            older = older.parent
        if older is not None:
            widen_imprecise(older, state)


def _compile_conditional(v: Verification, slot: int, insn: Insn) -> Handler:
    op, is_wide = insn.code & OPERATION_MASK, insn.code & CLASS_MASK == JMP
    dst, src, is_register = insn.dst, insn.src, bool(insn.code & X)
    taken, following = slot + 1 + insn.off, slot + 1
    operand = known(insn.imm)
    negated = NEGATED[op]
    compares_null = not is_register and insn.imm == 0 and is_wide and op in (JEQ, JNE)
    # Since 7.1 a register that holds 0 serves as well.
    learns_from_zero = is_register and is_wide and op in (JEQ, JNE) and v.profile.at_least(7, 1)
    condition = _condition(insn)
    text, untaken = f"{condition} holds", f"{condition} does not hold"
    source = src if is_register else -1
    compared = (dst, src) if is_register else (dst,)
    decide, learn = rules_for(v.profile, is_same_register=source == dst)

    def refine(state: State, op: int, left: Scalar, right: Scalar) -> None:
        first, second = learn(op, is_wide, left.range, right.range)
        regs = state.frames[-1].regs
        if first is not left.range:
            replace_linked(v, state, left, first, regs, dst)
        if is_register and second is not right.range:
            replace_linked(v, state, right, second, regs, src)

    def branch(state: State) -> int:
        frame = state.frames[-1]
        regs = frame.regs
        left = regs[dst]
        right = regs[src] if is_register else operand
        if left is None or right is None:
            missing = dst if left is None else src
            refuse("uninitialized-register", slot, f"r{missing} is read before it is set", missing)
        if not v.is_privileged and isinstance(right, Pointer) and not _are_packets(left, right):
            refuse("pointer-comparison", slot, f"r{src} is a pointer and is compared with another value", src)
        outcome: bool | None
        if left.__class__ is Scalar and right.__class__ is Scalar:
            outcome = decide(op, is_wide, left.range, right.range)
            if outcome is not None:
                if is_register:
                    v.mark_precise(state, dst, src)
                else:
                    v.mark_precise(state, dst)
        else:
            outcome = _decide_pointers(v, op, is_wide, left, right)
            if outcome is not None:
                if isinstance(right, Scalar) and is_register:
                    v.mark_precise(state, src)
                elif isinstance(left, Scalar):
                    v.mark_precise(state, dst)
        if outcome is not None:
            if not v.is_privileged:
                speculation.untaken(v, state, slot, following if outcome else taken, *compared)
            return taken if outcome else following
        if left.__class__ is Scalar and right.__class__ is Scalar:
            _note_links(v, state, slot, left, right, dst, source)
            other = v.push(state, taken, text, slot)
            state.steps = (slot, untaken, state.steps)
            refine(other, op, left, right)
            refine(state, negated, left, right)
            return following
        other = v.push(state, taken, text, slot)
        state.steps = (slot, untaken, state.steps)
        is_null_check = compares_null or (learns_from_zero and isinstance(right, Scalar) and right.range is ZERO)
        if is_null_check and isinstance(left, Pointer) and left.flags & Flag.NULL:
            mark_null(v, other if op == JEQ else state, left)
            mark_not_null(v, state if op == JEQ else other, left)
        elif is_register:
            _refine_mixed(v, slot, insn, state, other, left, right)
        elif not v.is_privileged and isinstance(left, Pointer):
            refuse("pointer-comparison", slot, f"r{dst} is a pointer and is compared with a number", dst)
        return following

    return branch


_PACKET_KINDS: Final = frozenset({Kind.PACKET, Kind.PACKET_META, Kind.PACKET_END})


def _are_packets(left: Value, right: Pointer) -> bool:
    return isinstance(left, Pointer) and left.kind in _PACKET_KINDS and right.kind in _PACKET_KINDS


def _condition(insn: Insn) -> str:
    letter = "r" if insn.code & CLASS_MASK == JMP else "w"
    right = f"{letter}{insn.src}" if insn.code & X else str(insn.imm)
    return f"{letter}{insn.dst} {_SIGNS[insn.code & OPERATION_MASK]} {right}"


def replace_linked(
    v: Verification, state: State, old: Scalar, range_: Range, regs: list[Value | None], reg: int
) -> None:
    """Give a register a new range, and every register and slot that is known to hold the same number."""
    if not old.id:
        regs[reg] = scalar(range_)
        return
    base = Scalar(range_, old.id, old.delta, old.is_delta32)
    regs[reg] = base
    id_ = old.id
    for frame in state.frames:
        for index in range(10):
            value = frame.regs[index]
            if value.__class__ is Scalar and value.id == id_ and value is not base:
                frame.regs[index] = _follow(v, base, value)
        for i, slot in list(frame.stack.items()):
            value = slot.value
            if value.__class__ is Scalar and value.id == id_ and _is_linkable(v, slot):
                frame.put(i, Slot(slot.kinds, _follow(v, base, value)))


def _is_linkable(v: Verification, slot: Slot) -> bool:
    """Whether comparisons of other copies of the number in a stack slot refine it as well."""
    return slot.kinds == ALL_SPILL or (slot.kinds[0] == SPILL and v.follows_spills)


def _follow(v: Verification, base: Scalar, value: Scalar) -> Scalar:
    """Return a linked number after `base` learned something: equal, or apart by a known amount."""
    if base.delta == value.delta:
        return Scalar(base.range, value.id, value.delta, value.is_delta32)
    difference = constant((value.delta or 0) - (base.delta or 0))
    if base.delta is not None and value.delta is not None and base.is_delta32 != value.is_delta32:
        return value
    is_wide = not (base.is_delta32 or value.is_delta32)
    if not is_wide and base.range.umax > U32:
        return value
    delta = value.delta
    if delta is None and not v.keeps_ids:
        # What marks a number at a distance is copied as well, so that a further copy gets an id of its own.
        delta = 0
    return Scalar(arith.apply(ADD, is_wide, base.range, difference), value.id, delta, value.is_delta32)


def _note_links(v: Verification, state: State, slot: int, left: Scalar, right: Scalar, dst: int, src: int) -> None:
    """Put into the trace which registers and slots this comparison refines together."""
    ids = {value.id for value, reg in ((left, dst), (right, src)) if value.id and reg >= 0}
    if not ids:
        return
    members: list[tuple[int, bool, int]] = []
    for frame in state.frames:
        for index in range(10):
            value = frame.regs[index]
            if value.__class__ is Scalar and value.id in ids:
                members.append((frame.index, False, index))
        for i, kept in frame.stack.items():
            if kept.value.__class__ is Scalar and kept.value.id in ids and _is_linkable(v, kept):
                members.append((frame.index, True, i))
    if len(members) > 1:
        v.note_history(state, slot)
        assert state.trace is not None
        state.trace = (state.trace[0], ("linked", tuple(members)), state.trace[2])


def _decide_pointers(v: Verification, op: int, is_wide: bool, left: Value, right: Value) -> bool | None:
    if isinstance(left, Pointer) and isinstance(right, Scalar):
        return _decide_null(v, op, is_wide, left, right)
    if isinstance(right, Pointer) and isinstance(left, Scalar):
        return _decide_null(v, compare.SWAPPED[op], is_wide, right, left)
    assert isinstance(left, Pointer)
    assert isinstance(right, Pointer)
    if not is_wide:
        return None
    if left.kind is Kind.PACKET_END and right.kind is Kind.PACKET:
        return _decide_packet(compare.SWAPPED[op], right)
    if right.kind is Kind.PACKET_END and left.kind is Kind.PACKET:
        return _decide_packet(op, left)
    return None


def _decide_packet(op: int, packet: Pointer) -> bool | None:
    if op in (JLE, JGT) and packet.span == BEYOND_END:
        return op == JGT
    if op in (JLT, JGE) and packet.span in (BEYOND_END, AT_END):
        return op == JGE
    return None


def is_never_null(pointer: Pointer) -> bool:
    """Whether a pointer of this kind is certainly not null."""
    if pointer.flags & Flag.NULL:
        return False
    if pointer.kind in (
        Kind.SOCKET,
        Kind.TCP_SOCK,
        Kind.MAP_VALUE,
        Kind.MAP_KEY,
        Kind.SOCK_COMMON,
        Kind.MEM,
        Kind.MAP_PTR,
    ):
        return not pointer.flags & Flag.UNTRUSTED
    if pointer.kind is Kind.BTF_ID:
        return bool(pointer.ref) or are_trusted(pointer.flags)
    return False


def _decide_null(v: Verification, op: int, is_wide: bool, pointer: Pointer, number: Scalar) -> bool | None:
    is_zero = number.range.is_const and not number.range.value
    # Of a 32-bit comparison the kernel believes the same, although the low half of an address may be 0.
    if not is_wide:
        is_zero = number.range.is_subreg_const and not number.range.value & U32
    is_unsure = pointer.kind is Kind.MAP_PTR and not v.profile.at_least(6, 12)
    if not is_zero or is_unsure or not is_never_null(pointer):
        return None
    return False if op == JEQ else True if op == JNE else None


def _refine_mixed(
    v: Verification, slot: int, insn: Insn, state: State, other: State, left: Value, right: Value
) -> None:
    """What a comparison with a pointer on at least one side teaches. `other` is where it holds."""
    op = insn.code & OPERATION_MASK
    is_wide = insn.code & CLASS_MASK == JMP
    if isinstance(left, Pointer) and isinstance(right, Pointer):
        if is_wide and op in (JEQ, JNE):
            _learn_same_pointer(v, insn, state, other, left, right)
        if is_wide and op in (JGT, JGE, JLT, JLE) and _learn_packet(op, state, other, left, right):
            return
        if not v.is_privileged:
            refuse("pointer-comparison", slot, "two pointers are compared", insn.dst, insn.src)
        return
    # Only a comparison with the constant 0 in the instruction itself tells null from not null.
    if not v.is_privileged:
        refuse("pointer-comparison", slot, "a pointer is compared with a number", insn.dst, insn.src)


def _learn_same_pointer(v: Verification, insn: Insn, state: State, other: State, left: Pointer, right: Pointer) -> None:
    """
    Of two equal pointers of which one may be null, that one is not: as the kernel does it, in its
    register alone, not in copies.
    """
    are_both = bool(left.flags & Flag.NULL) == bool(right.flags & Flag.NULL)
    if are_both or Kind.BTF_ID in (left.kind, right.kind) or not v.profile.at_least(6, 2):
        return
    equal = other if insn.code & OPERATION_MASK == JEQ else state
    reg, pointer = (insn.dst, left) if left.flags & Flag.NULL else (insn.src, right)
    equal.frames[-1].regs[reg] = _without_null(pointer).but(id=pointer.id)


def _learn_packet(op: int, state: State, other: State, left: Pointer, right: Pointer) -> bool:
    if _is_bounded_pair(left, right):
        packet, is_swapped = left, False
    elif _is_bounded_pair(right, left):
        packet, is_swapped = right, True
    else:
        return False
    if is_swapped:
        op = compare.SWAPPED[op]
    # Now: packet OP end. Where packet <= end its bytes are there; where packet < end one more is.
    inside_state, inside_strict, outside_state, beyond = {
        JGT: (state, False, other, BEYOND_END),
        JGE: (state, True, other, AT_END),
        JLT: (other, True, state, AT_END),
        JLE: (other, False, state, BEYOND_END),
    }[op]
    _note_span(inside_state, packet, inside_strict)
    if packet.kind is Kind.PACKET:
        _note_outside(outside_state, packet, beyond)
    return True


def _is_bounded_pair(packet: Pointer, end: Pointer) -> bool:
    if packet.kind is Kind.PACKET and end.kind is Kind.PACKET_END:
        return True
    is_start = end.kind is Kind.PACKET and not end.id and not end.off and end.var is ZERO
    return packet.kind is Kind.PACKET_META and is_start


def _note_span(state: State, packet: Pointer, is_strict: bool) -> None:
    if packet.off < 0 or (packet.off == 0 and is_strict):
        return
    if packet.var.umax > MAX_PACKET_OFF or packet.var.umax + packet.off > MAX_PACKET_OFF:
        return
    span = packet.off + (1 if is_strict else 0)

    def widen(value: Pointer) -> Pointer:
        return value.but(span=max(value.span, span)) if value.span < span else value

    replace_pointers(state, lambda p: p.kind is packet.kind and p.id == packet.id, widen)


def _note_outside(state: State, packet: Pointer, span: int) -> None:
    for frame in (state.frames[-1],):
        for reg, value in enumerate(frame.regs):
            if isinstance(value, Pointer) and value is packet:
                frame.regs[reg] = value.but(span=span)


def mark_null(v: Verification, state: State, pointer: Pointer) -> None:
    """The pointer, in all its copies, is the number 0; a reference that it would hold is not there."""
    if pointer.ref and pointer.ref == pointer.id:
        state.refs = tuple(ref for ref in state.refs if ref.id != pointer.ref)
    zero = known(0)
    replace_pointers(state, lambda p: p.id == pointer.id and bool(p.flags & Flag.NULL), lambda p: zero)


def mark_not_null(v: Verification, state: State, pointer: Pointer) -> None:
    """The pointer, in all its copies, is not null."""
    replace_pointers(state, lambda p: p.id == pointer.id and bool(p.flags & Flag.NULL), lambda p: _without_null(p))


_CALLING_BACK: Final = ("timer", "workqueue", "task_work")


def _without_null(pointer: Pointer) -> Pointer:
    flags = pointer.flags & ~Flag.NULL
    if pointer.kind is Kind.MAP_VALUE and pointer.map is not None:
        inner = pointer.map.inner
        if inner is not None:
            # Which of the maps inside it is matters only where a callback must belong to it.
            uid = pointer.id if any(map(inner.field_of, _CALLING_BACK)) else 0
            return pointer.but(kind=Kind.MAP_PTR, flags=flags, map=inner, map_uid=uid, id=0)
        if pointer.map.spec.type is MapType.BPF_MAP_TYPE_XSKMAP:
            return pointer.but(kind=Kind.XDP_SOCK, flags=flags)
        if pointer.map.spec.type in _SOCKET_MAPS:
            return pointer.but(kind=Kind.SOCKET, flags=flags)
        # A lock is told from others by the id of the value that it lies in, so that stays.
        keeps_id = any(f.what in ("spin_lock", "res_spin_lock", "timer", "workqueue") for f in pointer.map.fields)
        return pointer.but(flags=flags, id=pointer.id if keeps_id else 0)
    keeps_id = bool(pointer.flags & Flag.NON_OWN) or bool(pointer.ref)
    return pointer.but(flags=flags, id=pointer.id if keeps_id else 0)
