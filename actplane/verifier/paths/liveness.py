"""
Which registers are still needed before each slot: the classic backward data flow. What is not needed
may differ where two states are compared.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

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
    GOTOX,
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
from actplane.verifier.domains.types import BtfKind, TypeProvider
from actplane.verifier.paths.flow import ARGUMENTS, CALLER_SAVED, HELPER_CALL, Block, Code
from actplane.verifier.tables.helper_table import prototypes


class Liveness:
    """
    The registers needed before each slot, as bits: `live[slot]`. They are found when first asked for, block
    by block. A call of a helper needs as many as its prototype has arguments, one of a kernel function as
    many as `types` say.
    """

    def __init__(self, code: Code, types: TypeProvider | None) -> None:
        self._code = code
        self._types = types
        self._blocks = list(code.blocks.values())
        self._firsts = list(code.blocks)
        self._effects: dict[tuple[Any, ...], tuple[int, int]] = {}
        self._live: dict[int, int] = {}
        """What is needed before the first slot of every block, and other slots that were asked for."""

    def __getitem__(self, slot: int) -> int:
        if not self._live:
            self._find()
        found = self._live.get(slot)
        if found is None:
            block = self._blocks[bisect_right(self._firsts, slot) - 1]
            use, define = self._effect(slot, block.last)
            found = self._live[slot] = self._behind(block) & ~define | use
        return found

    def _find(self) -> None:
        """Carry what each block uses and defines backwards until nothing changes."""
        live = self._live
        blocks = [(block, *self._effect(block.first, block.last)) for block in reversed(self._blocks)]
        live.update((block.first, 0) for block, _, _ in blocks)
        is_changed = True
        while is_changed:
            is_changed = False
            for block, use, define in blocks:
                needed = self._behind(block) & ~define | use
                if needed != live[block.first]:
                    live[block.first] = needed
                    is_changed = True

    def _behind(self, block: Block) -> int:
        """Return the registers needed behind a block, by what is known so far."""
        needed = 0
        for target in block.following:
            needed |= self._live[target]
        return needed

    def _effect(self, first: int, last: int) -> tuple[int, int]:
        """Return the registers that instructions read before they replace them, and those replaced, as bits."""
        known = self._effects
        use = define = 0
        for insn in reversed(self._code.at[first : last + 1]):
            if insn is None:
                continue
            key = insn.code, insn.dst, insn.src, insn.imm, insn.symbol
            found = known.get(key)
            if found is None:
                found = known[key] = self._use_and_def(insn)
            read, replaced = found
            use = use & ~replaced | read
            define |= replaced
        return use, define

    def _use_and_def(self, insn: Insn) -> tuple[int, int]:
        return (_arguments(insn, self._types), CALLER_SAVED) if insn.code == CALL else _use_and_def(insn)


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
    if code == GOTOX:
        return dst, 0
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
