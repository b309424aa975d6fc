"""Since when kernels know each instruction: data that `dispatch` asks before an instruction is compiled."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from actplane.asm.insn import Insn
from actplane.asm.isa import (
    ALU,
    ALU64,
    ATOMIC,
    CLASS_MASK,
    DIV,
    END,
    GOTOL,
    GOTOX,
    JMP,
    JMP32,
    LD,
    LDX,
    MAY_GOTO,
    MEMSX,
    MOD,
    MODE_MASK,
    MOV,
    NEG,
    OPERATION_MASK,
    STX,
    X,
    find_form,
)
from actplane.verifier.tables.profiles import KernelProfile

_ALWAYS: Final = (0, 0)
_JUMPS_SINCE: Final = {GOTOL: (6, 1), GOTOX: (6, 19), MAY_GOTO: (6, 9)}
_ADDR_SPACE_CAST: Final = 1
_LOAD_ACQUIRE_STORE_RELEASE: Final = (0x100, 0x110)


def since(insn: Insn) -> tuple[int, int]:
    """
    Return the kernel version that first accepted an instruction; (0, 0) if every kernel we know does.

    Source: the kernel's history: BPF ISA v3 atomics 5.12, ISA v4 6.6 (of that, Debian's 6.1 has the
    long jump), address spaces and may_goto 6.9, load-acquire and store-release 6.15 (on x86), indirect jumps 6.19.

    >>> since(Insn(0xD7, 1, imm=64))
    (6, 6)
    """
    kind, operation = insn.code & CLASS_MASK, insn.code & OPERATION_MASK
    if kind == LD:
        return _ALWAYS
    if kind in (ALU, ALU64):
        return _alu_since(insn, kind, operation)
    if kind == LDX and insn.code & MODE_MASK == MEMSX:
        return (6, 6)
    if kind == STX and insn.code & MODE_MASK == ATOMIC and insn.imm:
        return (6, 15) if insn.imm in _LOAD_ACQUIRE_STORE_RELEASE else (5, 12)
    return _JUMPS_SINCE.get(insn.code, _ALWAYS)


def _alu_since(insn: Insn, kind: int, operation: int) -> tuple[int, int]:
    if operation == MOV and insn.code & X and insn.off:
        return (6, 9) if insn.off == _ADDR_SPACE_CAST else (6, 6)
    is_signed_division = operation in (DIV, MOD) and insn.off == 1
    is_plain_swap = operation == END and kind == ALU64
    return (6, 6) if is_signed_division or is_plain_swap else _ALWAYS


_SWAP: Final = ALU64 | END
_SINCE_LATER: Final = frozenset({_SWAP, MAY_GOTO, GOTOX})
_CHECKED: Final = frozenset(code for code in range(256) if code & CLASS_MASK in (ALU, ALU64, JMP, JMP32))

fields_of: Final[Callable[[Insn], tuple[Any, ...]]] = attrgetter("code", "dst", "src", "off", "imm", "symbol")
"""All that an instruction is, apart from its place: what to know equal instructions by."""


def refusable_unseen(profile: KernelProfile) -> frozenset[int]:
    """Return the opcodes of the instructions that `why_refused_unseen` may refuse for a kernel."""
    return _CHECKED if profile.at_least(7, 1) else _SINCE_LATER


def why_refused_unseen(insn: Insn, profile: KernelProfile) -> tuple[str, str] | None:
    """
    Return why a program is refused for an instruction that no path reaches, as the id of the refusal and
    its claim: an opcode that the kernel does not know, since 7.1 any value in a field that the instruction
    does not use.

    >>> from actplane.verifier.tables.profiles import PROFILES
    >>> why_refused_unseen(Insn(0x95, off=1), PROFILES["7.2"])
    ('bad-instruction', 'an instruction uses reserved fields')
    """
    first = since(insn)
    if insn.code in _SINCE_LATER and not profile.at_least(*first):
        if insn.code == GOTOX:
            return "bad-instruction", f"kernels know this instruction since Linux {first[0]}.{first[1]}"
        return "bad-instruction", f"there is no opcode 0x{insn.code:02x}"
    kind = insn.code & CLASS_MASK
    is_checked = profile.at_least(7, 1) and insn.symbol is None and insn.code in _CHECKED
    # Shifts too far and divisions by 0 are seen on the way only.
    is_number = kind in (ALU, ALU64) and not insn.code & X and insn.code & OPERATION_MASK not in (END, NEG)
    if is_checked and find_form(insn.code, insn.dst, insn.src, insn.off, 1 if is_number else insn.imm) is None:
        return "bad-instruction", "an instruction uses reserved fields"
    return None
