"""Every form of every instruction has words of its own, and fields that give its bytes back."""

from __future__ import annotations

import struct

import pytest

from actplane import asm
from actplane.asm import Form, Insn, Program, ProgType
from actplane.asm.explain import explain, words
from actplane.asm.isa import FORMS


def example(form: Form) -> Insn:
    """An instruction of a form, with other numbers in every field that is free."""

    def pick(name: str, wanted: int) -> int:
        rule = getattr(form, name)
        return wanted if wanted in rule else (rule.values[0] if rule.values else rule.low)

    return Insn(form.code, pick("dst", 3), pick("src", 4), pick("off", -24), pick("imm", 77))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name}-{form.code:#x}")
def test_fields_are_those_of_the_bytes(form: Form) -> None:
    insn = example(form)
    found = explain(Program("p", ProgType.BPF_PROG_TYPE_XDP, (insn,)))[0]
    code, dst, src, off, imm = (field.value for field in found.fields[:5])
    assert struct.pack("<BBhi", code, dst | src << 4, off, imm) == found.data[:8]
    assert found.words.endswith(".")
    assert found.render().count("\n") == (2 if len(found.data) == 8 else 3)


def test_no_two_forms_are_explained_alike() -> None:
    seen: dict[str, Form] = {}
    for form in FORMS:
        insn = example(form)
        text = words(insn, form, target=9)
        other = seen.get(text)
        # goto comes with 16 and with 32 bits of distance: that is no other meaning.
        alike = {"ja", "gotol"}, {"ld_map_fd", "ld_map_idx", "ld_map_value", "ld_map_idx_value"}
        assert other is None or any({form.name, other.name} <= group for group in alike), (text, form, other)
        seen[text] = form


def test_jumps_and_calls_name_where_they_lead() -> None:
    insns = (asm.ld_imm64(asm.R0, 1), asm.jmp("jslt", asm.R1, -5, 1), asm.call_sub(1), asm.exit_(), asm.exit_())
    program = Program("p", ProgType.BPF_PROG_TYPE_XDP, insns, functions={4: "leaf"})
    explained = explain(program)
    assert explained[1].words == "If r1 is less than -5, signed, go on at instruction 3, else at 2."
    assert explained[2].words.startswith("Call leaf at instruction 4")
    assert [each.slot for each in explained] == [0, 2, 3, 4, 5]


def test_a_program_whose_jumps_lead_nowhere_is_explained_all_the_same() -> None:
    explained = explain(Program("p", ProgType.BPF_PROG_TYPE_XDP, (asm.ja(100), asm.exit_())))
    assert explained[0].words == "Go on at its target."
