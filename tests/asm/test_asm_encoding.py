"""Bytes to instructions and back, against the instructions of the shared data set."""

import json
import lzma
import re
from pathlib import Path

import pytest

from actplane.asm import Insn, Label, decode, encode, resolve
from actplane.asm.build import (
    atomic,
    call,
    call_kfunc,
    call_sub,
    exit_,
    gotol,
    ja,
    jmp,
    ld_func,
    ld_imm64,
    ld_map_fd,
    ld_map_value,
    ldx,
    ldxsx,
    mov64,
)
from actplane.asm.labels import FunctionHere, LabelHere
from actplane.asm.operands import R0, R1, R2, Size
from actplane.errors import DecodeError, EncodeError

DATA = Path(__file__).parents[3] / "shared/data/isa-instructions.jsonl.xz"


def rows():
    if not DATA.exists():
        pytest.skip(f"the shared data set is not at {DATA.name}")
    return [json.loads(line) for line in lzma.decompress(DATA.read_bytes()).splitlines()]


def test_every_instruction_llvm_reassembles_survives_decode_and_encode():
    count = 0
    for row in rows():
        data = bytes.fromhex(row["hex"])
        # LLVM writes and reads back a register 11, which no eBPF has.
        if row["llvm_reassembles"] and row["dst"] <= 10 and row["src"] <= 10:
            (insn,) = decode(data)
            assert encode([insn]) == data
            assert (insn.code, insn.dst, insn.src, insn.off) == tuple(row[k] for k in ("code", "dst", "src", "off"))
            count += 1
    assert count > 20_000


def test_what_llvm_does_not_reassemble_is_refused_or_decoded_exactly():
    refused = 0
    for row in rows():
        data = bytes.fromhex(row["hex"])
        try:
            assert encode(decode(data)) == data
        except DecodeError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("b7000000010000", "got 7 bytes, expected a slot of 8"),
        ("1800000001000000", "got one slot, expected two"),
        ("18000000010000009500000000000000", "second slot: got code 0x95"),
        ("b70b000001000000", "dst: got 11, expected register in [0, 10]"),
        ("bfb1000000000000", "src: got 11"),
        ("9500000001000000", "imm: got 1, expected 0"),
        ("3700020001000000", "off: got 2, expected 0 or 1"),
        ("bf10070000000000", "off: got 7, expected 0 or 8 or 16 or 32"),
        ("ff00000000000000", "unknown opcode 0xff"),
        ("9900000000000000", "bad size, no 64-bit access"),
        ("d300000000000000", "imm: got 0, expected 256 or 272"),
        ("18700000000000000000000000000000", "src: got 7"),
        ("18100000000000000000000001000000", "imm: got 4294967296"),
        ("18400000000000000000000001000000", "imm: got 4294967296"),
        ("e510000000000000", "src: got 1, expected 0"),
        ("bf12010002000000", "imm: got 2, expected 1 or 65536"),
    ],
)
def test_an_invalid_encoding_is_refused_with_the_reason(data, reason):
    with pytest.raises(DecodeError, match=re.escape(reason)):
        decode(bytes.fromhex(data))


def test_encode_names_the_instruction_and_the_field():
    with pytest.raises(EncodeError, match=r"insn 1: mov64 .*imm: got 4294967296, expected signed 32 bits"):
        encode([exit_(), Insn(0xB7, imm=1 << 32)])


def test_labels_and_functions_become_slot_offsets():
    stream = [
        jmp("jeq", R1, 0, "out"),
        ld_imm64(R2, 1 << 40),
        ld_func(R1, "callback"),
        call_sub("callback"),
        LabelHere("out"),
        mov64(R0, 0),
        exit_(),
        FunctionHere("callback"),
        LabelHere("out"),
        gotol("out"),
        ja("out"),
    ]
    insns, functions = resolve(stream)
    assert (insns[0].off, insns[2].imm, insns[3].imm, insns[6].imm, insns[7].off) == (5, 4, 2, -1, -2)
    assert functions == {6: "callback"}
    assert decode(encode(insns)) == insns


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        ([ja("nowhere")], "label 'nowhere' is not defined"),
        ([LabelHere("a"), LabelHere("a")], "label 'a' is defined twice"),
        ([ja("far"), *[exit_()] * 40_000, LabelHere("far"), exit_()], "'far' is too far"),
        ([ja("end"), exit_(), LabelHere("end")], "insn 0: label 'end' stands behind the last instruction"),
        ([exit_(), FunctionHere("f"), LabelHere("end")], "function 'f' has no instruction"),
        ([exit_(), FunctionHere("f"), FunctionHere("g"), exit_()], "^function 'f' has no instruction$"),
        ([call_sub("f"), LabelHere("f"), LabelHere("f"), exit_()], "^function 'f' is defined twice$"),
        ([Insn(0xB7, symbol=Label("out")), LabelHere("out")], "label 'out' on what is no jump"),
        ([Insn(0xFF, symbol=Label("out")), LabelHere("out")], "label 'out' on what is no jump"),
    ],
)
def test_a_label_that_cannot_be_resolved_is_refused(stream, problem):
    with pytest.raises(EncodeError, match=problem):
        resolve(stream)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: mov64(R1, 1.0), "mov64 (code 0xb7): imm: got 1.0, expected signed 32 bits"),
        (lambda: mov64(R1, None), "imm: got None, expected signed 32 bits"),
        (lambda: mov64(None, 1), "dst: got None, expected register"),
        (lambda: mov64(R1, R2.w), "imm: got w2, expected"),
        (lambda: ldx(4, R1, R2), "ldx: got 4, expected Size.W or Size.H or Size.B or Size.DW"),
        (lambda: ldxsx(Size.DW, R1, R2), "ldxsx: got Size.DW, expected Size.W or Size.H or Size.B"),
        (lambda: ldx(Size.W, R1, R2, 1.5), "off: got 1.5, expected signed 16 bits"),
        (lambda: atomic("add", None, R1, R2), "atomic: got add None, expected"),
        (lambda: jmp("jeq", R1, 0, None), "off: got None, expected signed 16 bits"),
        (lambda: call(1.5), "call (code 0x85): imm: got 1.5, expected signed 32 bits"),
        (lambda: call("bpf_loop"), "imm: got 'bpf_loop', expected signed 32 bits"),
        (lambda: call_kfunc(None), "got None, expected a number, a name or Kfunc(name)"),
        (lambda: ld_map_fd(R1, None), "got None, expected a number, a name or MapFd(name)"),
        (lambda: ld_map_value(R1, "m"), "ld_map_value: got 'm', expected a MapValue or (fd, offset_bytes)"),
        (lambda: ld_imm64(R1, 1.5), "ld_imm64 (code 0x18): imm: got 1.5, expected 64 bits"),
        (lambda: encode([Insn(0xB7, imm=1.0)]), "insn 0: mov64 (code 0xb7): imm: got 1.0, expected signed 32 bits"),
        (lambda: encode([Insn(0x18, imm=None)]), "insn 0: ld_imm64 (code 0x18): imm: got None, expected 64 bits"),
        (lambda: encode([Insn(0xB7, dst=None)]), "insn 0: mov64 (code 0xb7): dst: got None, expected register"),
        (lambda: encode([Insn(None)]), "insn 0: opcode: got None"),
    ],
)
def test_what_is_no_number_is_refused_by_name(make, problem):
    with pytest.raises(EncodeError, match=re.escape(problem)):
        make()


@pytest.mark.parametrize("what", [None, 8, "b700000000000000", [0xB7]])
def test_only_bytes_are_decoded(what):
    with pytest.raises(TypeError):
        decode(what)
