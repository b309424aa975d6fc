"""Any text assembles or is refused with diagnostics; any bytes decode or are refused: nothing else happens."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from actplane.asm import assemble_object, decode, disassemble, encode
from actplane.asm.syntax import tokens_of
from actplane.errors import AssembleError, DecodeError
from actplane.source import Diagnostic
from tests.asm.generated import instructions

# Pieces that the grammar is made of, so that lines come close to being right.
LITERALS = sorted({token.words.strip("'") for tokens, _ in tokens_of() for token in tokens if not token.name})
PIECES = (
    *LITERALS,
    *("r0", "r10", "r11", "w3", "%r4", "u8", "u64", "s32", "s64", "1", "-1", "0x", "0xffffffff", "1 << 63", "'a'"),
    *("name", "+=", "s>>=", "==", "s>", "pc+1", "+2", "-0x3", "field(a.b)", "sizeof(", "enum(x)", "fd:3", "id:"),
    *("name:", ";", "#", ".equ", ".map", ".data", ".byte", ".prog", ".section", ".func", ".ascii", '"text"', '"'),
    *("hash", "xdp", "key=4", "=", "0:", "7: (b7)", "0: (18)", "(95)", "b7 00 00 00 01 00 00 00", "R0=1", "\t"),
    *("\n", "\n", "\n", "\x00", "é"),
)


def problems_of(text: str) -> tuple[Diagnostic, ...]:
    try:
        found = assemble_object(text)
    except AssembleError as error:
        return error.diagnostics
    for program in found.programs:
        encode(program.insns, allow_symbols=True)
    return ()


def survives(text: str) -> None:
    for problem in problems_of(text):
        assert problem.span is not None
        assert str(problem.span) in problem.render()


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=20).map(" ".join))
def test_pieces_of_the_grammar_in_any_order(text: str) -> None:
    survives(text)


@settings(deadline=None)
@given(st.text())
def test_any_text(text: str) -> None:
    survives(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(instructions(), min_size=1, max_size=5), st.data())
def test_a_line_with_something_cut_out_or_put_in(insns: list, data: st.DataObject) -> None:
    text = disassemble(insns, data.draw(st.sampled_from(["kernel", "llvm", "ubpf", "verifier"])))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    survives(text[:start] + data.draw(st.sampled_from(("", *PIECES))) + text[end:])


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        insns = decode(data)
    except DecodeError:
        return
    assert encode(insns) == data
