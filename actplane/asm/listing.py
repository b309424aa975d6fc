"""What others print around instructions: the verifier in its log, bpftool and llvm-objdump in their dumps."""

from __future__ import annotations

import re

from actplane.asm.build import ld_map_fd, ld_map_value
from actplane.asm.encoding import decode
from actplane.asm.insn import Insn, MapValue
from actplane.asm.isa import CALL, LD_IMM64
from actplane.asm.operands import Reg
from actplane.asm.reading import StatementError
from actplane.errors import DecodeError

CODED = re.compile(
    r"^[ \t]*(?P<slot>\d+): (?:(?:[.\d]{11} )?\((?P<code>[0-9a-f]{2})\)|BUG_(?:\w+_)?[0-9a-f]{2})[ \t]*", re.MULTILINE
)
"""
The start of a line of a verifier log or of bpftool: slot, live registers perhaps, code. bpftool
writes BUG_ and the code for an instruction that it does not know.
"""
_BYTES = r"[0-9a-f]{2}(?: [0-9a-f]{2}){7}(?:(?: [0-9a-f]{2}){8})?"
BYTES_BELOW = re.compile(rf"^[ \t]+{_BYTES}[ \t]*$", re.MULTILINE)
OPCODES = re.compile(rf"{CODED.pattern}[^\n]*\n[ \t]+(?P<bytes>{_BYTES})[ \t]*$", re.MULTILINE)
"""Such a line, and below it the bytes, as `bpftool prog dump xlated ... opcodes` writes them."""
SUMMARY = re.compile(r"processed \d+ insns ")
"""The last line of a verifier log."""

ADDRESSED = re.compile(rf"\s*\d+:\s+(?:(?P<bytes>{_BYTES})(?:\s+|\Z))?")
"""The start of a line of llvm-objdump: the slot, then the 8 or 16 bytes."""
RELOCATION = re.compile(r"\s*[0-9a-f]{16}:\s+R_BPF_64_(?P<kind>64|32)\s+(?P<name>\S+)\Z")
LLVM_SECTION = re.compile(r"Disassembly of section ")
LLVM_SYMBOL = re.compile(r"[0-9a-f]{16} <(?P<name>.*)>:")
LLVM_BLOCK = re.compile(r"LBB\d+_\d+")
"""The name of a block, as the compiler numbers them, where a function's may stand too."""
LLVM_FORMAT = re.compile(r".*\bfile format elf64-bpf")
LLVM_DIRECTIVES = frozenset(
    (".text", ".globl", ".global", ".p2align", ".type", ".size", ".ident", ".addrsig", ".addrsig_sym", ".file")
)

# What follows an operand: LLVM's `<label>`, bpftool's `pc+3#bpf_prog_...`.
_ANNOTATION = re.compile(r"\s+<[^<>]*>\Z|(?P<distance>\bpc[-+]\d+)#\S+\Z")
# What a verifier log says behind the address of a map.
_MAP_STATE = re.compile(
    r"R\d+(?:_[rw]+)?=map_(?P<kind>ptr|value)\((?:[^()]*\bmap=(?P<name>[\w.]+))?(?:[^()]*\boff=(?P<off>\d+))?"
)


def has_name(digits: str) -> bool:
    """Whether an instruction names what its bytes hold as a number of the kernel that runs: a function, a map."""
    code, source = int(digits[:2], 16), int(digits[3], 16)
    return code == CALL or (code == LD_IMM64 and source != 0)


def decoded(digits: str, start: int, end: int) -> Insn:
    """
    Return the instruction that the bytes beside or below a text are.

    Raises: StatementError at [start, end) if they are none.
    """
    try:
        (insn,) = decode(bytes.fromhex(digits))
    except DecodeError as problem:
        raise StatementError(str(problem), start, end) from None
    return insn


def with_map(insn: Insn, said: str) -> Insn:
    """
    Return an ld_imm64 with the map that a verifier log says behind it that its number is the address of.

    Newer kernels say the name too; without one, the address is the name, for all that load the same map.
    """
    found = _MAP_STATE.search(said)
    if found is None or insn.symbol is not None:
        return insn
    name = found["name"] or f"{insn.imm:#x}"
    if found["kind"] == "ptr":
        return ld_map_fd(Reg(insn.dst), name)
    return ld_map_value(Reg(insn.dst), MapValue(name, int(found["off"] or 0)))


def without_state(code: str) -> str:
    """Cut off the state at the target, which a verifier log may say behind a jump."""
    before, distance, after = code.partition(" pc")
    return f"{before} pc{after.split(maxsplit=1)[0]}" if distance and " " in after else code


def without_annotation(code: str) -> str:
    """Cut off what LLVM and bpftool say about a target behind it."""
    return _ANNOTATION.sub(r"\g<distance>", code) if code.endswith(">") or "#" in code else code
