"""
CO-RE relocations against types that differ from those a program was compiled with. The programs are
objects/moved.bpf.c, the types objects/target.bpf.c; libbpf 1.7 makes the same of each of them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from actplane.asm.insn import Insn, Kfunc, Unresolved
from actplane.asm.printer import disassemble
from actplane.asm.program import Program
from actplane.loader.btf import Btf
from actplane.loader.elf.core_access import CoreError, CoreKind, essential, parse_access
from actplane.loader.elf.core_match import are_compatible, fields_are_compatible, types_match
from actplane.loader.elf.core_relocation import POISON_HELPER
from actplane.loader.elf.externs import Target
from actplane.loader.elf.file import ElfError, section_bytes
from actplane.loader.elf.objects import ElfObject, read_elf

OBJECTS = Path(__file__).parent / "objects"


@cache
def target() -> Target:
    types = section_bytes((OBJECTS / "target.bpf.o").read_bytes(), "target.bpf.o", ".BTF")
    assert types is not None
    return Target(Btf(types))


@cache
def moved() -> ElfObject:
    return read_elf((OBJECTS / "moved.bpf.o").read_bytes(), "moved.bpf.o")


def linked(name: str) -> Program:
    (program,) = moved().link(target(), only=name).object.programs
    return program


def relocated(name: str) -> Insn:
    """The instruction of a small program that a relocation is in: the last one that loads or moves."""
    return [insn for insn in linked(name).insns if insn.code in (0x18, 0xB7, 0x61, 0x79)][-1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("number", "r0 = *(u32 *)(r1 +12)"),  # from offset 0 into an anonymous struct in an anonymous union
        ("grown", "r0 = *(u64 *)(r1 +16)"),  # 4 bytes without a sign have become 8, and the load with them
        ("element", "r0 = *(u32 *)(r1 +72)"),  # elements have become larger
        ("next", "r0 = *(u32 *)(r1 +12)"),
        ("flexible", "r0 = *(u32 *)(r1 +140)"),  # an array without an end
        ("second", "r0 = 252"),  # the second object behind the one pointed at
        ("bits_offset", "r0 = 40"),
        ("bits_size", "r0 = 8"),
        ("bits_left", "r0 = 48"),
        ("bits_right", "r0 = 55"),
        ("bits_signed", "r0 = 1"),
        ("number_signed", "r0 = 0"),
        ("there", "r0 = 1"),
        ("not_there", "r0 = 0"),
        ("exists", "r0 = 1"),
        ("exists_not", "r0 = 0"),
        ("typedef_exists", "r0 = 1"),
        ("typedef_exists_not", "r0 = 0"),
        ("callback_exists", "r0 = 1"),
        ("size", "r0 = 120"),
        ("matches", "r0 = 1"),
        ("matches_not", "r0 = 0"),
        ("apple", "r0 = 0x5 ll"),
        ("plum", "r0 = 0x384 ll"),
        ("cherry", "r0 = 0x0 ll"),
        ("pear", "r0 = 0x6 ll"),  # both the enum and the enumerator are flavoured
        ("wide", "r0 = 0x123456789abcdef0 ll"),
        ("one_twin", "r0 = 4"),  # of two flavours of the target only one has the field
    ],
)
def test_instructions_get_the_numbers_of_the_target(name: str, text: str):
    assert str(relocated(name)) == text


def test_stores_are_relocated():
    assert "*(u32 *)(r1 +12) = r2" in disassemble(linked("store"))


def test_ids_are_those_of_either_side():
    types = moved().types
    assert types is not None
    assert types.type_at(relocated("local_id").imm).name == "moved"
    assert target().btf.type_at(relocated("target_id").imm).name == "moved"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("gone", "the field byte offset of struct moved.gone is not there"),
        ("renamed", "the field byte offset of struct moved.renamed_type is not there"),
        ("cherry_value", "the enumerator value of enum fruit::CHERRY is not there"),
        (
            "signed_grown",
            "the field byte offset of struct moved.signed_grown has another size: 8 bytes, and 4 when it was compiled",
        ),
    ],
)
def test_what_the_target_lacks_is_a_call_that_no_verifier_accepts(name: str, problem: str):
    (call,) = [insn for insn in linked(name).insns if insn.symbol is not None]
    assert (call.code, call.imm, call.symbol) == (0x85, POISON_HELPER, Unresolved(problem))


def test_several_types_that_differ_are_an_error():
    with pytest.raises(ElfError, match=r"moved.bpf.c:\d+:\d+: function twins, slot 0: .* several types of the name"):
        linked("twins")


def test_variables_and_functions_of_the_kernel():
    variable = linked("variable").insns[0]
    assert (variable.code, variable.src) == (0x18, 3)
    assert target().btf.type_at(variable.imm).name == "a_variable"
    (call,) = [insn for insn in linked("function").insns if insn.code == 0x85]
    assert (call.src, call.symbol) == (2, Kfunc("a_function"))


def test_without_a_target_nothing_is_relocated():
    (program,) = moved().link(only="number").object.programs
    assert str(program.insns[1]) == "r0 = *(u32 *)(r1 +0)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("task_struct", "task_struct"),
        ("task_struct___old", "task_struct"),
        ("a___b___c", "a___b"),
        ("___x", "___x"),
        ("x___", "x___"),
        ("a____b", "a____b"),
    ],
)
def test_flavours(name: str, expected: str):
    assert essential(name) == expected


@pytest.mark.parametrize("text", ["", "a", "0:", "0:99", "0:0:0", ":".join(["0"] * 65)])
def test_accesses_that_make_no_sense(text: str):
    types = moved().types
    assert types is not None
    with pytest.raises(CoreError):
        parse_access(types, CoreKind.BPF_CORE_FIELD_BYTE_OFFSET, types.composite("twin"), text)


def test_an_access_reads_as_in_c():
    types = moved().types
    assert types is not None
    access = parse_access(types, CoreKind.BPF_CORE_FIELD_BYTE_OFFSET, types.composite("moved"), "0:6:1:0")
    assert str(access) == "struct moved.many[1].deep"
    assert access.offset_bits == 8 * (types.field_offset("moved", "many[1].deep"))


def test_three_degrees_of_likeness():
    local, theirs = moved().types, target().btf
    assert local is not None
    ours, other = local.composite("matching"), theirs.composite("matching")
    number, wide = local.find(1, "int"), theirs.find(1, "unsigned long long")  # type: ignore[arg-type]
    assert are_compatible(local, ours, theirs, theirs.composite("twin___a"))
    assert not types_match(local, ours, theirs, theirs.composite("twin___a"))
    assert types_match(local, ours, theirs, other)
    assert fields_are_compatible(local, number, theirs, wide)
    assert not types_match(local, number, theirs, wide)
    assert not fields_are_compatible(local, number, theirs, other)
