"""Laws that hold for every instruction: generated from the table, or from all bytes."""

from __future__ import annotations

import itertools
import struct

import pytest
from construct import ConstructError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actplane.asm import Insn, assemble, decode, disassemble, encode
from actplane.asm.isa import BY_CODE, FIELDS, FORMS, LD_IMM64, Form, find_form
from actplane.asm.layout import Instruction, Instructions
from actplane.errors import DecodeError, EncodeError
from tests.asm.generated import instructions, some_instructions

WIDE_SIGNED = range(-(1 << 63), 0)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name}-{form.code:02x}-{form.source.split()[-1]}")
def test_the_edges_of_every_form_survive_bytes_layout_and_text(form: Form) -> None:
    for picks in itertools.product((0, -1), repeat=4):
        ends = [(rule.values or (rule.low, rule.high)) for rule in (form.dst, form.src, form.off, form.imm)]
        insn = Insn(form.code, *(end[pick] for end, pick in zip(ends, picks, strict=True)))
        data = encode([insn])
        assert decode(data) == [insn]
        assert Instruction.build(insn) == data
        assert Instruction.parse(data) == insn
        for dialect in ("kernel", "ubpf"):
            assert assemble(disassemble([insn], dialect)).insns == (insn,)


def test_no_two_forms_claim_the_same_instruction() -> None:
    for forms in BY_CODE.values():
        for one, other in itertools.combinations(forms, 2):
            assert any(
                not any(value in other_rule for value in one_rule.values or (one_rule.low, one_rule.high))
                for one_rule, other_rule in zip(_rules(one), _rules(other), strict=True)
            ), (one, other)


def _rules(form: Form) -> list:
    return [getattr(form, name) for name in FIELDS]


@settings(deadline=None)
@given(st.lists(instructions(), max_size=30))
def test_streams_survive_bytes_layout_and_text(insns: list[Insn]) -> None:
    data = encode(insns)
    assert decode(data) == insns
    assert list(Instructions.parse(data)) == insns
    assert Instructions.build(insns) == data
    if insns:
        assert list(assemble(disassemble(insns)).insns) == insns


def fields(data: bytes) -> tuple[int, int, int, int, int]:
    code, registers, off, imm = struct.unpack_from("<BBhi", data)
    if code == LD_IMM64 and registers >> 4 != 4:
        high = struct.unpack_from("<i", data, 12)[0] if len(data) == 16 else 0
        imm = imm & 0xFFFFFFFF | (high & 0xFFFFFFFF) << 32
    return code, registers & 15, registers >> 4, off, imm


def is_valid_by_table(data: bytes) -> bool:
    if data[0] != LD_IMM64:
        return len(data) == 8 and find_form(*fields(data)) is not None
    if len(data) != 16 or any(data[8:12]) or (data[1] >> 4 == 4 and any(data[12:])):
        return False
    return find_form(*fields(data)) is not None


def decoded(data: bytes) -> list[Insn] | None:
    try:
        return decode(data)
    except DecodeError:
        return None


@settings(deadline=None)
@given(
    st.binary(min_size=8, max_size=8)
    | st.binary(min_size=15, max_size=15).map(lambda rest: bytes([LD_IMM64]) + rest)
    | st.builds(
        lambda head, half: bytes([LD_IMM64, head]) + bytes(6) + bytes(4) + half,
        st.integers(0, 255),
        st.binary(min_size=4, max_size=4),
    )
)
def test_bytes_are_decoded_exactly_or_refused(data: bytes) -> None:
    insns = decoded(data)
    assert (insns is not None) == is_valid_by_table(data)
    if insns is not None:
        assert encode(insns) == data
        assert Instruction.parse(data) == insns[0]


@pytest.mark.no_cover  # a sweep: several times as long when measured
def test_every_code_with_every_pair_of_registers_against_the_table() -> None:
    """65,536 first halves of a slot, each with 12 second halves: the pattern and the table agree."""
    rest = [struct.pack("<hi", off, imm) for off in (0, 1, 8) for imm in (0, 1, 16, 0xE1)]
    valid = 0
    for code in range(256):
        if code == LD_IMM64:
            continue
        for registers in range(256):
            for tail in rest:
                data = bytes((code, registers)) + tail
                is_valid = decoded(data) is not None
                assert is_valid == is_valid_by_table(data), data.hex()
                valid += is_valid
    assert valid > 20_000


@settings(max_examples=500, deadline=None)
@example(Insn(LD_IMM64, 0, 6), "imm", -1)
@example(Insn(LD_IMM64, 0, 0), "imm", 1 << 64)
@given(instructions(), st.sampled_from(FIELDS), st.integers(-(1 << 65), 1 << 65) | st.integers(-20, 300))
def test_a_field_out_of_its_range_is_never_encoded(insn: Insn, name: str, value: int) -> None:
    values = {"dst": insn.dst, "src": insn.src, "off": insn.off, "imm": insn.imm, name: value}
    changed = Insn(insn.code, **values)
    if find_form(changed.code, changed.dst, changed.src, changed.off, changed.imm) is not None:
        assert decode(encode([changed])) == [changed]
    elif changed.code == LD_IMM64 and changed.src == 0 and changed.off == 0 and changed.imm in WIDE_SIGNED:
        assert decode(encode([changed]))[0].imm == changed.imm + (1 << 64)
    else:
        with pytest.raises(EncodeError, match=r"insn 0: .* got "):
            encode([changed])


@pytest.mark.parametrize("dst", [11, 15, 16, 17, 32, 256, -1, 1 << 40])
def test_a_destination_never_spills_into_the_source(dst: int) -> None:
    with pytest.raises(EncodeError, match=f"dst: got {dst}"):
        encode([Insn(0xBF, dst, 1)])


def test_what_construct_cannot_parse_is_refused_too() -> None:
    for data in (bytes(7), bytes([LD_IMM64]) + bytes(7), bytes([LD_IMM64]) + bytes(7) + b"\x95" + bytes(7)):
        with pytest.raises(ConstructError):
            Instruction.parse(data)
        assert decoded(data) is None


@pytest.mark.no_cover  # a sweep: several times as long when measured
def test_a_hundred_thousand_generated_instructions() -> None:
    insns = some_instructions(3, 100_000)
    data = encode(insns)
    assert decode(data) == insns
    assert list(assemble(disassemble(insns)).insns) == insns
