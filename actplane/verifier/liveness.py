"""
Which registers are still needed before each slot: the classic backward data flow. What is not needed
may differ where two states are compared.
"""

from __future__ import annotations

from actplane.asm.insn import Insn, Kfunc
from actplane.asm.isa import (
    ALU,
    ALU64,
    ATOMIC,
    CALL,
    CLASS_MASK,
    CMPXCHG,
    END,
    EXIT,
    FETCH,
    GOTOL,
    IND,
    JA,
    LD,
    LD_IMM64,
    LDX,
    LOAD_ACQUIRE,
    MAY_GOTO,
    MODE_MASK,
    MOV,
    NEG,
    OPERATION_MASK,
    PSEUDO_KFUNC_CALL,
    ST,
    STORE_RELEASE,
    STX,
    X,
)
from actplane.verifier.flow import ARGUMENTS, CALLER_SAVED, HELPER_CALL, Code
from actplane.verifier.helper_table import prototypes
from actplane.verifier.types import BtfKind, TypeProvider


def find_live(code: Code, types: TypeProvider | None) -> list[int]:
    """
    Return the registers needed before each slot, as bits. A call of a helper needs as many as its
    prototype has arguments, one of a kernel function as many as `types` say.
    """
    known: dict[tuple[int, int, int, int], tuple[int, int]] = {}
    effects: list[tuple[int, int]] = []
    for insn in code.at:
        if insn is None:
            effects.append((0, 0))
            continue
        key = insn.code, insn.dst, insn.src, insn.imm
        found = known.get(key)
        if found is None or (insn.code == CALL and insn.src == PSEUDO_KFUNC_CALL):
            found = known[key] = (_arguments(insn, types), CALLER_SAVED) if insn.code == CALL else _use_and_def(insn)
        effects.append(found)
    following = code.following
    live = [0] * code.size
    has_loop = any(targets and min(targets) <= slot for slot, targets in enumerate(following))
    is_changed = True
    while is_changed:
        is_changed = False
        for slot in range(code.size - 1, -1, -1):
            targets = following[slot]
            use, define = effects[slot]
            if len(targets) == 1:
                needed = live[targets[0]] & ~define | use
            else:
                needed = use
                for target in targets:
                    needed |= live[target] & ~define
            if needed != live[slot]:
                live[slot] = needed
                is_changed = has_loop
    return live


def _arguments(insn: Insn, types: TypeProvider | None) -> int:
    """Return the registers that a call passes."""
    if insn.src == HELPER_CALL and insn.imm in prototypes():
        count = len(prototypes()[insn.imm].args)
        return ((1 << count) - 1) << 1
    if insn.src == PSEUDO_KFUNC_CALL and isinstance(insn.symbol, Kfunc) and types is not None:
        type_id = types.id_of(BtfKind.FUNC, insn.symbol.name)
        if type_id is not None:
            count = len(types.type_at(types.type_at(type_id).target).members)
            return ((1 << min(count, 5)) - 1) << 1
    return ARGUMENTS


def _use_and_def(insn: Insn) -> tuple[int, int]:
    """Return the registers that an instruction reads and those that it replaces, as bits."""
    code, dst, src = insn.code, 1 << insn.dst, 1 << insn.src
    kind = code & CLASS_MASK
    if kind == LD:
        if code == LD_IMM64:
            return 0, dst
        # LD_ABS and LD_IND read the context in r6 and clobber what a call does.
        return (1 << 6) | (src if code & MODE_MASK == IND else 0), CALLER_SAVED
    if kind == LDX:
        return src, dst
    if kind == ST:
        return dst, 0
    if kind == STX:
        if code & MODE_MASK != ATOMIC:
            return dst | src, 0
        return _atomic_use_and_def(insn, dst, src)
    if kind in (ALU, ALU64):
        return _alu_use_and_def(code, dst, src)
    if code == EXIT:
        return 1, 0
    if code in (JA, GOTOL, MAY_GOTO):
        return 0, 0
    return dst | (src if code & X else 0), 0


def _atomic_use_and_def(insn: Insn, dst: int, src: int) -> tuple[int, int]:
    if insn.imm == CMPXCHG:  # cmpxchg compares with r0 and leaves the old value there
        return dst | src | 1, 1
    if insn.imm == LOAD_ACQUIRE:
        return src, dst
    if insn.imm == STORE_RELEASE:
        return dst | src, 0
    return dst | src, src if insn.imm & FETCH else 0


def _alu_use_and_def(code: int, dst: int, src: int) -> tuple[int, int]:
    op = code & OPERATION_MASK
    if op == MOV:
        return (src if code & X else 0), dst
    if op in (END, NEG):
        return dst, dst
    return dst | (src if code & X else 0), dst
