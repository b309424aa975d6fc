"""Which module an instruction belongs to, and the few instructions that need none."""

from __future__ import annotations

from typing import Final

from actplane.asm.insn import Insn, MapFd, MapValue
from actplane.asm.isa import (
    ABS,
    ALU,
    ALU64,
    ATOMIC,
    CALL,
    CLASS_MASK,
    DW,
    EXIT,
    GOTOX,
    IND,
    LD,
    LD_IMM64,
    LDX,
    MODE_MASK,
    OP_CALL,
    OPERATION_MASK,
    PSEUDO_BTF_ID,
    PSEUDO_CALL,
    PSEUDO_FUNC,
    PSEUDO_KFUNC_CALL,
    SIZE_MASK,
    ST,
    STX,
)
from actplane.asm.uapi import ProgType
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.paths.flow import HELPER_CALL, called_function
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Value, known
from actplane.verifier.paths.verification import Handler, Verification, refusal
from actplane.verifier.rules import refs
from actplane.verifier.rules.alu import compile_alu
from actplane.verifier.rules.atomics import compile_atomic
from actplane.verifier.rules.calls import compile_helper_call
from actplane.verifier.rules.indirect_jumps import compile_indirect_jump
from actplane.verifier.rules.jumps import compile_jump
from actplane.verifier.rules.kernel_symbols import kernel_symbol
from actplane.verifier.rules.kfuncs import compile_kfunc_call
from actplane.verifier.rules.memory import compile_memory
from actplane.verifier.rules.subprograms import compile_exit, compile_subprogram_call
from actplane.verifier.tables.instruction_versions import since
from actplane.verifier.tables.profiles import RETURNS_AT_LOADS
from actplane.verifier.tables.refusals import refuse

PLACELESS: Final = frozenset({LD_IMM64, *(code for code in range(256) if code & CLASS_MASK in (ALU, ALU64))})
"""Opcodes of instructions that do the same wherever they stand, so that one handler serves all that are equal."""


def compile_insn(v: Verification, slot: int, insn: Insn) -> Handler:
    """Return the function that carries out the instruction at a slot on a state."""
    if insn.dst > 10 or insn.src > 10:
        return refusal("bad-instruction", f"there is no register r{insn.dst if insn.dst > 10 else insn.src}")
    first = since(insn)
    if v.profile.version < first:
        return refusal("bad-instruction", f"kernels know this instruction since Linux {first[0]}.{first[1]}")
    kind = insn.code & CLASS_MASK
    if kind in (ALU, ALU64):
        return compile_alu(v, insn)
    if kind in (LDX, ST, STX):
        is_atomic = kind == STX and insn.code & MODE_MASK == ATOMIC
        return compile_atomic(v, slot, insn) if is_atomic else compile_memory(v, slot, insn)
    if kind == LD:
        return _compile_ld(v, slot, insn)
    if insn.code == EXIT:
        return compile_exit(v, slot, insn)
    if insn.code == GOTOX:
        return compile_indirect_jump(v, slot, insn)
    if insn.code & OPERATION_MASK == OP_CALL:
        return _compile_call(v, slot, insn)
    return compile_jump(v, slot, insn)


def _compile_call(v: Verification, slot: int, insn: Insn) -> Handler:
    if insn.code != CALL:
        return refusal("bad-instruction", "there is no call through a register")
    if insn.dst:
        return refusal("bad-instruction", "a call uses reserved fields")
    if insn.src == HELPER_CALL:
        return compile_helper_call(v, slot, insn)
    if insn.src == PSEUDO_CALL:
        return compile_subprogram_call(v, slot, insn)
    if insn.src == PSEUDO_KFUNC_CALL:
        return compile_kfunc_call(v, slot, insn)
    return refusal("bad-instruction", f"there is no kind of call {insn.src}")


def _compile_ld(v: Verification, slot: int, insn: Insn) -> Handler:
    if insn.code != LD_IMM64:
        if insn.code & MODE_MASK in (ABS, IND) and insn.code & SIZE_MASK != DW:
            return _compile_packet_load(v, slot, insn)
        return refusal("bad-instruction", f"there is no instruction 0x{insn.code:02x}")
    if insn.off:
        return refusal("bad-instruction", "an ld_imm64 uses reserved fields")
    if insn.dst == 10:
        return refusal("frame-pointer-write", "r10 is the frame pointer and is read only")
    dst = insn.dst
    if insn.src == PSEUDO_FUNC:
        return _compile_function_address(v, insn)
    value = _loaded_value(v, slot, insn)

    def load(state: State) -> int:
        state.frames[-1].regs[dst] = value
        return state.slot + 2

    return load


def _compile_function_address(v: Verification, insn: Insn) -> Handler:
    def load(state: State) -> int:
        function = called_function(state.slot, insn)
        if function in v.subject.notes.get("globals", {}):
            refuse("callback", state.slot, "a callback must be a static function")
        state.frames[-1].regs[insn.dst] = Pointer(Kind.FUNC, detail=function)
        return state.slot + 2

    return load


def _loaded_value(v: Verification, slot: int, insn: Insn) -> Value:
    symbol = insn.symbol
    if symbol is not None and isinstance(symbol, MapFd | MapValue):
        facts = v.subject.maps.get(symbol.name)
        if facts is None:
            refuse("bad-map", slot, f"there is no map {symbol.name!r}")
        if isinstance(symbol, MapFd):
            return Pointer(Kind.MAP_PTR, map=facts)
        return Pointer(Kind.MAP_VALUE, map=facts, off=symbol.offset_bytes)
    if insn.src == 0:
        return known(insn.imm)
    if insn.src == PSEUDO_BTF_ID:
        return kernel_symbol(v, slot, insn.imm & 0xFFFFFFFF)
    refuse("bad-instruction", slot, f"an ld_imm64 of kind {insn.src} refers to nothing")


_CLASSIC: frozenset[ProgType] = frozenset(
    {ProgType.BPF_PROG_TYPE_SOCKET_FILTER, ProgType.BPF_PROG_TYPE_SCHED_CLS, ProgType.BPF_PROG_TYPE_SCHED_ACT}
)


def _compile_packet_load(v: Verification, slot: int, insn: Insn) -> Handler:
    """LD_ABS and LD_IND: load from the packet through the context in r6, or end the program."""
    is_indirect = insn.code & MODE_MASK == IND

    def load(state: State) -> int:
        if v.prog_type not in _CLASSIC:
            refuse("bad-instruction", slot, "LD_ABS and LD_IND are for socket filters and traffic control only")
        if insn.dst or insn.off or (not is_indirect and insn.src):
            refuse("bad-instruction", slot, "LD_ABS or LD_IND uses reserved fields")
        frame = state.frames[-1]
        context = frame.regs[6]
        if context is None:
            refuse("uninitialized-register", slot, "r6 is read before it is set", 6)
        refs.check_nothing_held(v, state, slot, "LD_ABS or LD_IND", is_exit=False)
        if not isinstance(context, Pointer) or context.kind is not Kind.CTX or context.flags & Flag.NULL:
            refuse("context-modified", slot, "r6 must hold the context for LD_ABS and LD_IND", 6)
        if context.off or not context.var.is_const:
            refuse("context-modified", slot, "r6 must hold the unmodified context for LD_ABS and LD_IND", 6)
        if is_indirect and frame.regs[insn.src] is None:
            refuse("uninitialized-register", slot, f"r{insn.src} is read before it is set", insn.src)
        frame.regs[0:6] = [None] * 6
        frame.regs[0] = UNKNOWN_SCALAR
        if len(state.frames) > 1 and v.profile.has(RETURNS_AT_LOADS):
            # Beyond the end of the packet the function returns at once.
            other = v.push(state, frame.call_slot + 1, "the load is beyond the packet", slot)
            other.frames.pop()
            other.written.pop()
            other.frames[-1].regs[0] = UNKNOWN_SCALAR
        return slot + 1

    return load
