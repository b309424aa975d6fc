"""
Atomic operations: what is read, changed and written back at once, and loads and stores with an order.
"""

from __future__ import annotations

from typing import Final

from actplane.asm.insn import Insn
from actplane.asm.isa import ADD, AND, CMPXCHG, FETCH, LOAD_ACQUIRE, OR, SIZE_MASK, STORE_RELEASE, XCHG, XOR
from actplane.verifier.domains import tnum
from actplane.verifier.domains.kinds import PACKETS, SOCKETS, Kind
from actplane.verifier.domains.scalar import truncate
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import Pointer, Scalar, Value, scalar
from actplane.verifier.paths.verification import Handler, Verification
from actplane.verifier.rules.memory import SIZES, access, note_kind
from actplane.verifier.tables.refusals import refuse

_ATOMICS: Final = frozenset({ADD, OR, AND, XOR, ADD | FETCH, OR | FETCH, AND | FETCH, XOR | FETCH, XCHG, CMPXCHG})


def compile_atomic(v: Verification, slot: int, insn: Insn) -> Handler:
    """Return the handler of an atomic operation."""
    size = SIZES[insn.code & SIZE_MASK]
    is_wide_enough = size in (4, 8)
    dst, src, off, op = insn.dst, insn.src, insn.off, insn.imm

    def atomic(state: State) -> int:
        regs = state.frames[-1].regs
        if op in (LOAD_ACQUIRE, STORE_RELEASE):
            return _load_or_store_atomically(v, state, slot, insn, size)
        if op not in _ATOMICS:
            refuse("bad-instruction", slot, f"there is no atomic operation 0x{op & tnum.U32:x}")
        if not is_wide_enough:
            refuse("bad-instruction", slot, f"atomic operations work on 4 or 8 bytes, not {size}")
        base, value = regs[dst], regs[src]
        for reg, held in ((src, value), (dst, base)):
            if held is None:
                refuse("uninitialized-register", slot, f"r{reg} is read before it is set", reg)
        if op == CMPXCHG and regs[0] is None:
            refuse("uninitialized-register", slot, "r0 is read before it is set", 0)
        if isinstance(value, Pointer) and not v.is_privileged:
            refuse("pointer-leak", slot, f"r{src} is a pointer and would be stored", src)
        if op == CMPXCHG and isinstance(regs[0], Pointer) and not v.is_privileged:
            refuse("pointer-leak", slot, "r0 is a pointer and would be compared with memory", 0)
        assert base is not None
        _check_base(v, slot, dst, base)
        fetched = 0 if op == CMPXCHG else src if op & FETCH else -1
        if fetched == 10:
            refuse("frame-pointer-write", slot, "r10 is the frame pointer and is read only")
        if fetched == dst:
            # The kernel forgets what the register held before it looks at the address.
            refuse("not-a-pointer", slot, f"r{dst} is the address, and takes what is fetched from there", dst)
        old = access(v, state, slot, dst, base, off, size, is_write=False, is_atomic=True)
        if isinstance(old, Pointer) and not v.is_privileged:
            # Only a load from the stack can have yielded one.
            refuse("pointer-leak", slot, f"r{dst}: a spilled pointer would be used as a number", dst)
        access(v, state, slot, dst, base, off, size, is_write=True, is_atomic=True)
        note_kind(v, slot, base)
        if fetched >= 0:
            regs[fetched] = scalar(truncate(old.range, size)) if isinstance(old, Scalar) else old
        return slot + 1

    return atomic


def _check_base(v: Verification, slot: int, reg: int, base: Value) -> None:
    if isinstance(base, Scalar):
        refuse("not-a-pointer", slot, f"r{reg} is a number, not a pointer", reg)
    if base.kind in (Kind.CTX, Kind.FLOW_KEYS, *PACKETS, *SOCKETS):
        refuse("atomic-access", slot, f"r{reg} is {base.type_name}, which takes no atomic operations", reg)


def _load_or_store_atomically(v: Verification, state: State, slot: int, insn: Insn, size: int) -> int:
    regs = state.frames[-1].regs
    is_load = insn.imm == LOAD_ACQUIRE
    pointer_reg = insn.src if is_load else insn.dst
    base = regs[pointer_reg]
    value = regs[insn.src]
    if base is None or value is None:
        missing = pointer_reg if base is None else insn.src
        refuse("uninitialized-register", slot, f"r{missing} is read before it is set", missing)
    _check_base(v, slot, pointer_reg, base)
    if is_load:
        if insn.dst == 10:
            refuse("frame-pointer-write", slot, "r10 is the frame pointer and is read only")
        loaded = access(v, state, slot, pointer_reg, base, insn.off, size, is_write=False, is_atomic=True)
        if isinstance(loaded, Scalar):
            loaded = scalar(truncate(loaded.range, size))
        regs[insn.dst] = loaded
    else:
        access(
            v,
            state,
            slot,
            pointer_reg,
            base,
            insn.off,
            size,
            is_write=True,
            value=value,
            source=insn.src,
            is_atomic=True,
        )
    note_kind(v, slot, base)
    return slot + 1
