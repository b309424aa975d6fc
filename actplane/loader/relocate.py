"""
What instructions leave to the running kernel: offsets of its fields, values of its enumerators, sizes
of its types. The result is what the mirror judges and what is then loaded.
"""

from __future__ import annotations

from dataclasses import replace

from actplane.asm.insn import EnumValue, Field, Insn, TypeSize, form_of
from actplane.asm.isa import CLASS_MASK, LDX, ST, STX
from actplane.asm.program import Program
from actplane.errors import EncodeError, InternalError
from actplane.loader.btf import Btf, TypeNotFound


def relocate(program: Program, btf: Btf) -> Program:
    """
    Return the program with every Field, EnumValue and TypeSize turned into its number.

    Shape:  a field's offset is added to `off` of a load or store, and to `imm` of anything else; the
            others are added to `imm`. Other symbols stay.
    Raises: TypeNotFound if this kernel has nothing of the kind, naming program and policy line;
            EncodeError if the number does not fit.
    """
    known: dict[Field | EnumValue | TypeSize, int] = {}
    insns = list(program.insns)
    for index, insn in enumerate(insns):
        symbol = insn.symbol
        if isinstance(symbol, (Field, EnumValue, TypeSize)):
            try:
                if symbol not in known:
                    known[symbol] = _number(symbol, btf)
                insns[index] = _apply(insn, known[symbol])
            except (TypeNotFound, EncodeError) as error:
                place = f" ({insn.span})" if insn.span else ""
                raise type(error)(f"program {program.name}, insn {index}{place}: {error}") from error
    return replace(program, insns=tuple(insns))


def _number(symbol: Field | EnumValue | TypeSize, btf: Btf) -> int:
    match symbol:
        case EnumValue(enum, name):
            return btf.enum_value(enum, name)
        case TypeSize(name):
            return btf.size_of(btf.composite(name))
        case Field(name, path, alternatives):
            return _first_offset(((name, path), *alternatives), btf)


def _first_offset(places: tuple[tuple[str, str], ...], btf: Btf) -> int:
    """Return the offset of the first field that exists; say of all of them if none does."""
    problems: list[str] = []
    for struct_name, path in places:
        try:
            return btf.field_offset(struct_name, path)
        except TypeNotFound as error:
            problems.append(str(error))
    raise TypeNotFound("; ".join(problems))


def _apply(insn: Insn, number: int) -> Insn:
    operation = insn.code & CLASS_MASK
    is_memory = operation in (LDX, ST, STX)
    if isinstance(insn.symbol, Field) and is_memory:
        resolved = replace(insn, off=insn.off + number, symbol=None)
    elif is_memory and operation != ST:
        raise InternalError("a load or store from a register has no imm", symbol=insn.symbol)
    else:
        resolved = replace(insn, imm=insn.imm + number, symbol=None)
    # Checks the ranges of the fields, so that nothing is cut when the instruction becomes bytes.
    form_of(resolved)
    return resolved
