"""Since when kernels know each instruction: data that `dispatch` asks before an instruction is compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, Final

from actplane.asm.insn import Insn
from actplane.asm.isa import (
    ALU,
    ALU64,
    ATOMIC,
    BY_CODE,
    CALLX,
    CLASS_MASK,
    DIV,
    DW,
    END,
    GOTOL,
    GOTOX,
    LD_IMM64,
    LDX,
    MAY_GOTO,
    MEMSX,
    MOD,
    MODE_MASK,
    MOV,
    NEG,
    OPERATION_MASK,
    STX,
    B,
    H,
    W,
    X,
    find_form,
)
from actplane.verifier.tables.profiles import KernelProfile

_ALWAYS: Final = (0, 0)
_ADDR_SPACE_CAST: Final = 1
_LOAD_ACQUIRE_STORE_RELEASE: Final = (0x100, 0x110)


def since(insn: Insn) -> tuple[int, int]:
    """
    Return the kernel version that first accepted an instruction; (0, 0) if every kernel we know does.

    Source: the kernel's history: BPF ISA v3 atomics 5.12, ISA v4 6.6 (of that, Debian's 6.1 has the
    long jump), address spaces and may_goto 6.9, load-acquire and store-release 6.15 (on x86), indirect jumps 6.19.

    >>> since(Insn(0xD7, 1, imm=64)), since(Insn(0x37, 1, off=1, imm=3))
    ((6, 6), (6, 6))
    """
    opcode = _OPCODES_SINCE.get(insn.code)
    if opcode is not None:
        return opcode
    kind, operation = insn.code & CLASS_MASK, insn.code & OPERATION_MASK
    if kind in (ALU, ALU64):
        if operation == MOV and insn.code & X and insn.off:
            return (6, 9) if insn.off == _ADDR_SPACE_CAST else (6, 6)
        return (6, 6) if operation in (DIV, MOD) and insn.off == 1 else _ALWAYS
    if kind == STX and insn.code & MODE_MASK == ATOMIC and insn.imm:
        return (6, 15) if insn.imm in _LOAD_ACQUIRE_STORE_RELEASE else (5, 12)
    return _ALWAYS


_OPCODES_SINCE: Final = {
    GOTOL: (6, 1),
    ALU64 | END: (6, 6),
    **dict.fromkeys((LDX | MEMSX | size for size in (B, H, W)), (6, 6)),
    MAY_GOTO: (6, 9),
    **dict.fromkeys((STX | ATOMIC | size for size in (B, H)), (6, 15)),
    GOTOX: (6, 19),
}
_LOADS: Final = frozenset(code for code in BY_CODE if code & CLASS_MASK == LDX)
_STORES: Final = frozenset(code for code in BY_CODE if code & CLASS_MASK == STX)
# Whose fields are looked at before any path is walked: not those of atomics, and of ld_imm64 elsewhere.
_CHECKED: Final = frozenset(BY_CODE) - {LD_IMM64, *(STX | ATOMIC | size for size in (B, H, W, DW))}

fields_of: Final[Callable[[Insn], tuple[Any, ...]]] = attrgetter("code", "dst", "src", "off", "imm", "symbol")
"""All that an instruction is, apart from its place: what to know equal instructions by."""


@cache
def _unknown(version: tuple[int, int]) -> frozenset[int]:
    """Return the opcodes that a kernel does not know, but for 0, which the second half of an ld_imm64 has, too."""
    known = {code for code in BY_CODE if code != CALLX and version >= _OPCODES_SINCE.get(code, _ALWAYS)}
    return frozenset(range(1, 256)) - known


@cache
def _whose_constant_is_checked(version: tuple[int, int]) -> frozenset[int]:
    return _LOADS if version >= (5, 12) else _LOADS | _STORES


def refusable_unseen(profile: KernelProfile) -> frozenset[int]:
    """Return the opcodes of the instructions that `why_refused_unseen` may refuse for a kernel."""
    version = profile.version
    always = _unknown(version) | _whose_constant_is_checked(version)
    return always | _CHECKED if profile.at_least(7, 1) else always


def why_refused_unseen(insn: Insn, profile: KernelProfile) -> tuple[str, str] | None:
    """
    Return why a program is refused for an instruction that no path reaches, as the id of the refusal and
    its claim: an opcode that the kernel does not know, a load with a constant, since 7.1 any value in a
    field that the instruction does not use.

    >>> from actplane.verifier.tables.profiles import PROFILES
    >>> why_refused_unseen(Insn(0x95, off=1), PROFILES["7.2"])
    ('bad-instruction', 'an instruction uses reserved fields')
    >>> why_refused_unseen(Insn(0xFF), PROFILES["6.18"])
    ('bad-instruction', 'there is no opcode 0xff')
    """
    if insn.code in _unknown(profile.version):
        if insn.code in _OPCODES_SINCE:
            major, minor = _OPCODES_SINCE[insn.code]
            return "bad-instruction", f"kernels know the opcode 0x{insn.code:02x} since Linux {major}.{minor}"
        if insn.code == CALLX:
            return "bad-instruction", "there is no call through a register"
        return "bad-instruction", f"there is no opcode 0x{insn.code:02x}"
    if insn.imm and insn.code in _whose_constant_is_checked(profile.version):
        major, minor = since(insn)
        if profile.version < (major, minor):
            return "bad-instruction", f"kernels know this instruction since Linux {major}.{minor}"
        return "bad-instruction", "a load or store uses reserved fields"
    kind = insn.code & CLASS_MASK
    is_checked = profile.at_least(7, 1) and insn.symbol is None and insn.code in _CHECKED
    # Shifts too far and divisions by 0 are seen on the way only.
    is_number = kind in (ALU, ALU64) and not insn.code & X and insn.code & OPERATION_MASK not in (END, NEG)
    if is_checked and find_form(insn.code, insn.dst, insn.src, insn.off, 1 if is_number else insn.imm) is None:
        return "bad-instruction", "an instruction uses reserved fields"
    return None
