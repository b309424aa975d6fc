"""
Arithmetic instructions: numbers are computed, pointers move within what their kind allows.
"""

from __future__ import annotations

from typing import Final

from actplane.asm.insn import Insn
from actplane.asm.isa import (
    ADD,
    ALU64,
    AND,
    ARSH,
    CLASS_MASK,
    DIV,
    END,
    LSH,
    MOD,
    MOV,
    NEG,
    OPERATION_MASK,
    OR,
    RSH,
    SUB,
    XOR,
    X,
)
from actplane.verifier.domains import arith
from actplane.verifier.domains.division import divide
from actplane.verifier.domains.kinds import PACKETS, SOCKETS, Flag, Kind
from actplane.verifier.domains.scalar import (
    S64_MIN,
    UNKNOWN,
    Range,
    constant,
    sign_extend,
    zero_extend32,
)
from actplane.verifier.domains.tnum import U32
from actplane.verifier.paths import speculation
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, known, scalar
from actplane.verifier.paths.verification import Handler, Verification, refusal
from actplane.verifier.tables.profiles import FORKS_ON_SIGN, LINKS_DIFFERENCES, TRACKS_SWAPS
from actplane.verifier.tables.refusals import refuse

MAX_VAR_OFF: Final = 1 << 29
_S32_MAX: Final = (1 << 31) - 1
_S32_MIN: Final = -(1 << 31)

_OP_SIGNS: Final = {OR: "|=", AND: "&=", XOR: "^=", ADD: "+=", SUB: "-="}
_UNKNOWN32: Final = scalar(zero_extend32(UNKNOWN))
_FIXED_KINDS: Final = SOCKETS | {Kind.PACKET_END, Kind.MAP_PTR, Kind.FLOW_KEYS, Kind.INSN}


def compile_alu(v: Verification, insn: Insn) -> Handler:
    """Return the handler of an ALU or ALU64 instruction, wherever it stands."""
    op = insn.code & OPERATION_MASK
    if op == MOV:
        return _compile_move(v, insn)
    if op == END:
        return _compile_swap(v, insn)
    if op == NEG:
        return _compile_negate(v, insn)
    return _compile_binary(v, insn)


def read(regs: list[Scalar | Pointer | None], reg: int, slot: int) -> Scalar | Pointer:
    """Return a register's value. Refuses one that was never set."""
    value = regs[reg]
    if value is None:
        refuse("uninitialized-register", slot, f"r{reg} is read before it is set", reg)
    return value


def _frame_pointer() -> Handler:
    return refusal("frame-pointer-write", "r10 is the frame pointer and is read only")


def _compile_move(v: Verification, insn: Insn) -> Handler:
    is_wide = insn.code & CLASS_MASK == ALU64
    dst, src = insn.dst, insn.src
    if not insn.code & X:
        if src or insn.off:
            return refusal("bad-instruction", "a move of a constant uses reserved fields")
        if dst == 10:
            return _frame_pointer()
        value = known(insn.imm if is_wide else insn.imm & U32)

        def move_constant(state: State) -> int:
            state.frames[-1].regs[dst] = value
            return state.slot + 1

        return move_constant
    if insn.imm or insn.off not in ((0, 8, 16, 32) if is_wide else (0, 8, 16)):
        if not (insn.off == 1 and is_wide and insn.imm):
            return refusal("bad-instruction", "a move uses reserved fields")
        return _compile_cast(insn)
    if dst == 10:
        return _frame_pointer()
    if insn.off:
        return _compile_sign_extend(v, insn, is_wide)

    def move(state: State) -> int:
        regs = state.frames[-1].regs
        value = regs[src]
        if value is None:
            refuse("uninitialized-register", state.slot, f"r{src} is read before it is set", src)
        if value.__class__ is Scalar and not value.range.is_const and (value.id == 0 or value.delta is not None):
            regs[src] = value = Scalar(value.range, v.new_id())
        regs[dst] = value
        return state.slot + 1

    def move32(state: State) -> int:
        regs = state.frames[-1].regs
        value = regs[src]
        if value is None:
            refuse("uninitialized-register", state.slot, f"r{src} is read before it is set", src)
        if isinstance(value, Pointer):
            if not v.is_privileged:
                refuse("pointer-leak", state.slot, f"r{src} is a pointer, and half of it would be copied", src)
            regs[dst] = _UNKNOWN32
            return state.slot + 1
        if value.range.umax <= U32:
            if not value.range.is_const and (value.id == 0 or value.delta is not None):
                regs[src] = value = Scalar(value.range, v.new_id())
            regs[dst] = value
        else:
            regs[dst] = scalar(zero_extend32(value.range))
        return state.slot + 1

    return move if is_wide else move32


def _compile_cast(insn: Insn) -> Handler:
    """Return the handler of addr_space_cast. Programs that have an arena are refused before they are walked."""
    if insn.imm not in (1, 1 << 16):
        return refusal("bad-instruction", "addr_space_cast knows address spaces 0 and 1 only")
    return refusal("bad-instruction", "addr_space_cast needs a program that uses an arena map")


def _compile_sign_extend(v: Verification, insn: Insn, is_wide: bool) -> Handler:
    dst, src, size = insn.dst, insn.src, insn.off // 8

    def move_sign_extended(state: State) -> int:
        regs = state.frames[-1].regs
        value = read(regs, src, state.slot)
        if isinstance(value, Pointer):
            if not v.is_privileged:
                refuse("pointer-leak", state.slot, f"r{src} is a pointer, and part of it would be copied", src)
            regs[dst] = UNKNOWN_SCALAR if is_wide else _UNKNOWN32
            return state.slot + 1
        if value.range.umax < 1 << (insn.off - 1):
            if not value.range.is_const and (value.id == 0 or value.delta is not None):
                regs[src] = value = Scalar(value.range, v.new_id())
            regs[dst] = value
            return state.slot + 1
        extended = sign_extend(value.range, size)
        regs[dst] = scalar(extended if is_wide else zero_extend32(extended))
        return state.slot + 1

    return move_sign_extended


def _compile_swap(v: Verification, insn: Insn) -> Handler:
    is_wide = insn.code & CLASS_MASK == ALU64
    if insn.off or insn.imm not in (16, 32, 64) or (is_wide and insn.code & X) or insn.src:
        return refusal("bad-instruction", "a byte swap uses reserved fields")
    if insn.dst == 10:
        return _frame_pointer()
    tracks_swaps = v.profile.has(TRACKS_SWAPS)

    def swap(state: State) -> int:
        regs = state.frames[-1].regs
        value = read(regs, insn.dst, state.slot)
        if isinstance(value, Pointer) and not v.is_privileged:
            refuse("pointer-arithmetic", state.slot, f"r{insn.dst} is a pointer and cannot be swapped", insn.dst)
        if isinstance(value, Scalar) and tracks_swaps:
            is_swap = is_wide or bool(insn.code & X)
            regs[insn.dst] = scalar(arith.swap_bytes(value.range, insn.imm, is_swap))
        else:
            regs[insn.dst] = UNKNOWN_SCALAR
        return state.slot + 1

    return swap


def _compile_negate(v: Verification, insn: Insn) -> Handler:
    is_wide = insn.code & CLASS_MASK == ALU64
    if insn.code & X or insn.src or insn.off or insn.imm:
        return refusal("bad-instruction", "a negation uses reserved fields")
    if insn.dst == 10:
        return _frame_pointer()

    def negate(state: State) -> int:
        regs = state.frames[-1].regs
        value = read(regs, insn.dst, state.slot)
        if isinstance(value, Pointer):
            if not v.is_privileged:
                refuse("pointer-arithmetic", state.slot, f"r{insn.dst} is a pointer and cannot be negated", insn.dst)
            regs[insn.dst] = UNKNOWN_SCALAR
        elif v.profile.at_least(6, 17):
            regs[insn.dst] = scalar(arith.negate(value.range, is_wide))
        else:
            regs[insn.dst] = UNKNOWN_SCALAR
        return state.slot + 1

    return negate


def _compile_binary(v: Verification, insn: Insn) -> Handler:
    op, is_wide, dst, src = insn.code & OPERATION_MASK, insn.code & CLASS_MASK == ALU64, insn.dst, insn.src
    is_register = bool(insn.code & X)
    if op > END or (op == END):
        return refusal("bad-instruction", f"there is no ALU operation 0x{op:02x}")
    allowed_off = (0, 1) if op in (DIV, MOD) else (0,)
    if insn.off not in allowed_off or (is_register and insn.imm) or (not is_register and src):
        return refusal("bad-instruction", "an ALU instruction uses reserved fields")
    if dst == 10:
        return _frame_pointer()
    if not is_register:
        if op in (DIV, MOD) and insn.imm == 0:
            return refusal("division-by-zero", "the divisor is the constant 0")
        if op in (LSH, RSH, ARSH) and not 0 <= insn.imm < (64 if is_wide else 32):
            return refusal("shift-out-of-range", f"a shift by {insn.imm} is not below the width")
    operand = constant(insn.imm)
    constant_operand = scalar(operand)
    links_differences = v.profile.has(LINKS_DIFFERENCES)
    keeps_link = op in (ADD, SUB) and v.is_privileged and v.profile.at_least(6, 12)
    # Since 6.9 what cannot be computed is unknown, even that a 32-bit operation clears the upper half.
    forgets_half = not is_wide and v.profile.at_least(6, 9)
    may_fork = op in (AND, OR) and not is_register and v.profile.has(FORKS_ON_SIGN)
    divides = op in (DIV, MOD) and v.profile.at_least(7, 0)

    def compute(state: State) -> int:
        regs = state.frames[-1].regs
        right = regs[src] if is_register else constant_operand
        left = regs[dst]
        if left is None or right is None:
            missing = src if right is None else dst
            refuse("uninitialized-register", state.slot, f"r{missing} is read before it is set", missing)
        if left.__class__ is Scalar and right.__class__ is Scalar:
            if not v.is_privileged:
                speculation.add_numbers(v, state.slot, insn)
            if divides:
                result = divide(op, is_wide, bool(insn.off), left.range, right.range)
            elif forgets_half and not arith.is_computable(op, is_wide, right.range):
                result = UNKNOWN
            else:
                result = arith.apply(op, is_wide, left.range, right.range)
            if keeps_link and left.id and not result.is_const:
                regs[dst] = _linked_sum(left, right.range, result, is_wide, op, links_differences)
            elif may_fork and _is_spread_sign(left.range, is_wide):
                # An arithmetic shift has spread the sign: all ones or nothing. Each is walked alone.
                other = v.push(state, state.slot + 1, f"r{dst} was 0", state.slot)
                other.frames[-1].regs[dst] = scalar(arith.apply(op, is_wide, constant(0), right.range))
                regs[dst] = scalar(arith.apply(op, is_wide, constant(-1), right.range))
            else:
                regs[dst] = scalar(result)
            return state.slot + 1
        regs[dst] = _with_pointer(v, state, state.slot, insn, left, right)
        return state.slot + 1

    return compute


def _is_spread_sign(r: Range, is_wide: bool) -> bool:
    """Whether a number is all ones or 0, as an arithmetic shift by the width less one leaves it."""
    return (r.smin, r.smax) == (-1, 0) if is_wide else (r.s32min, r.s32max) == (-1, 0)


def _linked_sum(left: Scalar, added: Range, result: Range, is_wide: bool, op: int, links_differences: bool) -> Scalar:
    """Keep the link between a number and its copy when a small constant was added."""
    amount = added.smin if op == ADD else -added.smin
    is_simple = is_wide and 0 <= amount <= _S32_MAX and op == ADD
    is_possible = is_simple or (links_differences and _S32_MIN <= amount <= _S32_MAX)
    if not added.is_const or left.delta is not None or not is_possible:
        return scalar(result)
    return Scalar(result, left.id, amount, not is_wide)


def _with_pointer(
    v: Verification, state: State, slot: int, insn: Insn, left: Scalar | Pointer, right: Scalar | Pointer
) -> Scalar | Pointer:
    op = insn.code & OPERATION_MASK
    if isinstance(left, Pointer) and isinstance(right, Pointer):
        if op == SUB and v.is_privileged:
            # Not even that a 32-bit operation clears the upper half is noted where pointers become numbers.
            return UNKNOWN_SCALAR
        sign = _OP_SIGNS.get(op, "op=")
        refuse("pointer-arithmetic", slot, f"r{insn.dst} {sign} r{insn.src}: both are pointers", insn.dst, insn.src)
    if isinstance(left, Pointer):
        assert isinstance(right, Scalar)
        if insn.code & X:
            v.mark_precise(state, insn.src)
        return move_pointer(v, state, slot, insn, left, right, is_reversed=False)
    assert isinstance(right, Pointer)
    v.mark_precise(state, insn.dst)
    return move_pointer(v, state, slot, insn, right, left, is_reversed=True)


def move_pointer(
    v: Verification, state: State, slot: int, insn: Insn, pointer: Pointer, amount: Scalar, *, is_reversed: bool
) -> Scalar | Pointer:
    """Return the pointer moved by a number; `is_reversed` if the number stood left of it."""
    op, is_wide, dst = insn.code & OPERATION_MASK, insn.code & CLASS_MASK == ALU64, insn.dst
    offset = amount.range
    kind = pointer.kind
    if not is_wide:
        if op == SUB and v.is_privileged:
            return UNKNOWN_SCALAR
        refuse("pointer-arithmetic", slot, f"r{dst}: 32-bit arithmetic on a pointer", dst)
    if pointer.flags & Flag.NULL:
        claim = f"r{dst} is {pointer.type_name}: arithmetic on a pointer that may be null"
        refuse("pointer-null-arithmetic", slot, claim, dst)
    if kind is Kind.MEM and pointer.flags & Flag.UNTRUSTED:
        # What is read through it is probed, so nobody keeps count of where it points; a number stays one.
        return amount if is_reversed else pointer
    if kind in _FIXED_KINDS:
        is_nothing = offset.is_const and offset.value == 0 and op == ADD
        is_allowed = offset.is_const if kind is Kind.FLOW_KEYS else kind is Kind.MAP_PTR and is_nothing
        if not is_allowed:
            refuse("pointer-arithmetic", slot, f"r{dst} is {pointer.type_name}, which does not move", dst)
    _check_amount(slot, dst, pointer, offset)
    plan = speculation.before_move(v, state, slot, insn, pointer, amount, is_reversed=is_reversed)
    if op == ADD:
        moved = _add(v, pointer, offset)
    elif op == SUB:
        if is_reversed:
            refuse("pointer-arithmetic", slot, f"r{dst}: a pointer is subtracted from a number", dst)
        moved = _subtract(v, slot, dst, pointer, offset)
    elif op in (OR, AND, XOR):
        refuse("pointer-arithmetic", slot, f"r{dst} {_OP_SIGNS[op]}: a bitwise operation on a pointer", dst)
    else:
        refuse("pointer-arithmetic", slot, f"r{dst}: a pointer can only be added to and subtracted from", dst)
    _check_moved(slot, dst, moved)
    speculation.after_move(v, state, slot, insn, moved, plan)
    return moved


def _add(v: Verification, pointer: Pointer, offset: Range) -> Pointer:
    if offset.is_const and _S32_MIN <= pointer.off + offset.smin <= _S32_MAX:
        return pointer.but(off=pointer.off + offset.smin)
    changes = {"var": arith.add(pointer.var, offset)}
    if pointer.kind in PACKETS:
        # It is another packet pointer now, about which no comparison has said anything.
        return pointer.but(id=v.new_id(), span=0, **changes)
    return pointer.but(**changes)


def _subtract(v: Verification, slot: int, dst: int, pointer: Pointer, offset: Range) -> Pointer:
    if pointer.kind is Kind.STACK:
        refuse("pointer-arithmetic", slot, f"r{dst}: subtraction from a stack pointer", dst)
    if offset.is_const and _S32_MIN <= pointer.off - offset.smin <= _S32_MAX:
        # What was behind the end need not be any more, which kernels know since 7.1.
        span = 0 if pointer.span < 0 and v.profile.at_least(7, 1) else pointer.span
        return pointer.but(off=pointer.off - offset.smin, span=span)
    changes = {"var": arith.sub(pointer.var, offset)}
    if pointer.kind in PACKETS:
        span = 0 if offset.smin < 0 else pointer.span
        return pointer.but(id=v.new_id(), span=span, **changes)
    return pointer.but(**changes)


def _check_amount(slot: int, dst: int, pointer: Pointer, offset: Range) -> None:
    if -MAX_VAR_OFF < offset.smin < MAX_VAR_OFF:
        return
    name = pointer.type_name
    if offset.is_const:
        refuse("pointer-out-of-range", slot, f"r{dst} is {name}: {offset.smin} is too much to move it by", dst)
    if offset.smin == S64_MIN:
        claim = f"r{dst} is {name} and is moved by a number without a lower bound"
        refuse("pointer-out-of-range", slot, claim, dst)
    claim = f"r{dst} is {name} and is moved by {offset.smin} or more, out of any bounds"
    refuse("pointer-out-of-range", slot, claim, dst)


def _check_moved(slot: int, dst: int, pointer: Pointer) -> None:
    var = pointer.var
    if -MAX_VAR_OFF < pointer.off < MAX_VAR_OFF and -MAX_VAR_OFF < var.smin < MAX_VAR_OFF:
        return
    name = pointer.type_name
    if not -MAX_VAR_OFF < pointer.off < MAX_VAR_OFF:
        refuse("pointer-out-of-range", slot, f"r{dst} is {name}: its offset {pointer.off} is too large", dst)
    if var.is_const:
        refuse("pointer-out-of-range", slot, f"r{dst} is {name}: {var.smin} is too much to move it by", dst)
    if var.smin == S64_MIN:
        claim = f"r{dst} is {name}: its offset has no lower bound"
        refuse("pointer-out-of-range", slot, claim, dst)
    refuse("pointer-out-of-range", slot, f"r{dst} is {name}: its offset {var.smin} is out of bounds", dst)
