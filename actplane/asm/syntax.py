"""
The grammar of one instruction in text: templates of tokens, and what each builds.

A template is a line of tokens: a literal, or `name:CLASS` for an operand. The patterns that
recognise lines and the explanations of lines that nothing recognises both come from the same
templates, so an error can say what was expected where. Three syntaxes share the table, because no
line means different things in two of them: the kernel's (of its verifier and of bpftool), LLVM's,
and uBPF's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from actplane.asm import statement, ubpf
from actplane.asm.insn import Insn
from actplane.asm.reading import Operands

_NAME = r"[A-Za-z_.$][\w.$]*"
_REGISTER = r"(?:10|\d)(?!\w)"
_TERM = (
    r"(?:0[xX][0-9a-fA-F]+(?!\w)|\d+(?!\w)|'(?:\\.|[^'\\])'"
    rf"|(?:field|enum|sizeof)\s*\([^()]*\)|(?!%?[rw]{_REGISTER}|pc[-+]|ll\b){_NAME})"
)
_SUM = rf"[-+]?\s*{_TERM}(?:\s*(?:<<|[-+*|])\s*{_TERM})*"

_NUMBER = r"(?:0[xX][0-9a-fA-F]+|\d+)"
_BITS_16_TO_64 = r"(?:16|32|64)(?!\w)"

# Class of operand: its pattern, and what it is called in an error.
_CLASSES: dict[str, tuple[str, str]] = {
    "R": (rf"r{_REGISTER}", "a register r0 to r10"),
    "W": (rf"w{_REGISTER}", "a register w0 to w10"),
    "RW": (rf"[rw]{_REGISTER}", "a register r0 to r10 or w0 to w10"),
    "UR": (rf"%?r{_REGISTER}", "a register %r0 to %r10"),
    "TYPE": (r"[us](?:8|16|32|64)(?!\w)", "a type u8, u16, u32, u64, s8, s16 or s32"),
    "ALU": (r"(?:s>>|s/|s%|<<|>>|[-+*/|&%^])?=(?!=)", "an operator like =, += or s>>="),
    "CMP": (r"==|!=|s>=|s<=|s>|s<|>=|<=|>|<|&", "a comparison like ==, s> or &"),
    "NUM": (_SUM, "a number or a constant"),
    "VALUE": (rf"[rw]{_REGISTER}|{_SUM}", "a register, a number or a constant"),
    "OFF": (rf"(?:[-+]\s*{_TERM}(?:\s*[-+*]\s*{_TERM})*)?", "an offset like +8"),
    "INDEX": (rf"(?:[-+]\s*-?{_TERM})?", "an offset like + 8"),
    "TO": (rf"(?:pc\s*)?[-+]\s*{_NUMBER}(?!\w)|{_NAME}", "a label or an offset like +3"),
    "NAME": (_NAME, "a name"),
    "MAP": (r"[\w.:-]+", "a map: its name, or fd:N, id:N or idx:N"),
    "SWAP": (rf"(?:le|be|bswap){_BITS_16_TO_64}", "le16, be32, bswap64 and so on"),
    "FETCH": (r"atomic(?:64)?_(?:fetch_(?:add|or|and|xor)|xchg)(?!\w)", "atomic_fetch_add and so on"),
    # uBPF's mnemonics
    "COND": (r"j(?:eq|ne|s?gt|s?ge|s?lt|s?le|set)(?:32)?(?!\w)", "a jump like jeq"),
    "OP": (r"(?:add|s?div|s?mod|sub|mul|or|and|xor|lsh|rsh|arsh|mov)(?:32|64)?(?!\w)", "an operation like add32"),
    "LDOP": (r"ldx(?:dw|w|h|b|sw|sh|sb)(?!\w)", "ldxdw, ldxw, ldxh, ldxb, ldxsw, ldxsh or ldxsb"),
    "STOP": (r"st(?:dw|w|h|b)(?!\w)", "stdw, stw, sth or stb"),
    "STXOP": (r"stx(?:dw|w|h|b)(?!\w)", "stxdw, stxw, stxh or stxb"),
    "SWAPOP": (rf"(?:le|be|bswap|swap){_BITS_16_TO_64}", "le16, be32, bswap64 and so on"),
    "NEGOP": (r"neg(?:32|64)?(?!\w)", "neg or neg32"),
    "SXOP": (r"movsx(?:8|16|32)(?:32|64)(?!\w)", "movsx832, movsx1664 and so on"),
    "LOCKOP": (
        r"(?:(?:fetch[_ ]\s*)?(?:add|or|and|xor)|xchg|cmpxchg)(?:32|64)?(?!\w)",
        "add, or, and, xor, xchg or cmpxchg",
    ),
}

# What a class matches where no constants and no sums are needed: almost always.
_PLAIN_CLASSES = {
    "NUM": rf"[-+]?{_NUMBER}(?![\w.])",
    "VALUE": rf"[rw]{_REGISTER}|[-+]?{_NUMBER}(?![\w.])",
    "OFF": rf"(?:[-+]\s*{_NUMBER}(?![\w.]))?",
}

Build = Callable[[Operands], Insn]

# What a statement looks like, and the function that builds it. Within a first character, frequent
# statements come first.
_TEMPLATES: tuple[tuple[str, Build], ...] = (
    ("dst:RW op:ALU src:RW", statement.alu_register),
    ("dst:RW op:ALU imm:NUM", statement.alu_number),
    ("dst:RW = * ( type:TYPE * ) ( src:R off:OFF )", statement.load),
    ("dst:R = imm:NUM ll", statement.wide_number),
    ("dst:R = map [ map:MAP ] [ 0 ] off:OFF", statement.wide_map_value),
    ("dst:R = map [ map:MAP ]", statement.wide_map),
    ("dst:R = subprog [ to:TO ]", statement.wide_function),
    ("dst:R = btf [ id : imm:NUM ]", statement.wide_btf),
    ("dst:R = btf [ id : imm:NUM ] [ fd : fd:NUM ]", statement.wide_btf),
    ("dst:RW = ( type:TYPE ) src:RW", statement.sign_extend),
    ("dst:RW = - src:RW", statement.negate),
    ("dst:RW = op:SWAP src:RW", statement.swap),
    ("dst:R = addr_space_cast ( src:R , to:NUM , from:NUM )", statement.cast),
    ("dst:RW = * ( type:TYPE * ) skb [ imm:NUM ]", statement.load_absolute),
    ("dst:RW = * ( type:TYPE * ) skb [ src:R off:INDEX ]", statement.load_indirect),
    ("dst:RW = op:FETCH ( ( type:TYPE * ) ( base:R off:OFF ) , src:RW )", statement.atomic_fetch),
    ("dst:RW = atomic_cmpxchg ( ( type:TYPE * ) ( base:R off:OFF ) , r0:RW , src:RW )", statement.atomic_compare),
    ("dst:RW = atomic64_cmpxchg ( ( type:TYPE * ) ( base:R off:OFF ) , r0:RW , src:RW )", statement.atomic_compare),
    ("dst:R = xchg_64 ( base:R off:OFF , src:R )", statement.exchange_64),
    ("dst:W = xchg32_32 ( base:R off:OFF , src:W )", statement.exchange_32),
    ("dst:R = cmpxchg_64 ( base:R off:OFF , r0:R , src:R )", statement.compare_64),
    ("dst:W = cmpxchg32_32 ( base:R off:OFF , r0:W , src:W )", statement.compare_32),
    ("dst:RW = load_acquire ( ( type:TYPE * ) ( src:R off:OFF ) )", statement.load_acquire),
    ("* ( type:TYPE * ) ( base:R off:OFF ) = value:VALUE", statement.store),
    ("if dst:RW cmp:CMP value:VALUE goto to:TO", statement.jump),
    ("goto to:TO", statement.goto),
    ("gotol to:TO", statement.goto_long),
    ("gotox dst:R", statement.goto_register),
    ("may_goto to:TO", statement.may_goto),
    ("call name:NAME # imm:NUM", statement.call_named),
    ("call name:NAME # kfunc", statement.call_kfunc),
    ("call name:NAME # kfunc fd_array [ fd:NUM ]", statement.call_kfunc),
    ("call kernel-function # imm:NUM", statement.call_kfunc_number),
    ("call # imm:NUM", statement.call_kfunc_number),  # where the kernel finds no name for it
    ("call kernel-function # imm:NUM fd_array [ fd:NUM ]", statement.call_kfunc_number),
    ("call to:TO", statement.call),
    ("call imm:NUM", statement.call_number),
    ("call local to:TO", statement.call_local),
    ("callx src:UR", statement.callx),
    ("exit", statement.exit_),
    ("lock * ( type:TYPE * ) ( base:R off:OFF ) op:ALU src:RW", statement.atomic),
    ("store_release ( ( type:TYPE * ) ( base:R off:OFF ) , src:RW )", statement.store_release),
    ("ld_pseudo dst:R , source:NUM , imm:NUM", statement.wide_pseudo),
    ("op:OP dst:UR , src:UR", ubpf.alu_register),
    ("op:OP dst:UR , imm:NUM", ubpf.alu_number),
    ("op:NEGOP dst:UR", ubpf.negate),
    ("op:SWAPOP dst:UR", ubpf.swap),
    ("op:SXOP dst:UR , src:UR", ubpf.sign_extend),
    ("op:LDOP dst:UR , [ src:UR off:OFF ]", ubpf.load),
    ("op:STXOP [ base:UR off:OFF ] , src:UR", ubpf.store),
    ("op:STOP [ base:UR off:OFF ] , imm:NUM", ubpf.store_number),
    ("lddw dst:UR , imm:NUM", ubpf.wide),
    ("op:COND dst:UR , src:UR , to:TO", ubpf.jump_register),
    ("op:COND dst:UR , imm:NUM , to:TO", ubpf.jump_number),
    ("ja to:TO", statement.goto),
    ("ja32 to:TO", statement.goto_long),
    ("lock op:LOCKOP [ base:UR off:OFF ] , src:UR", ubpf.atomic),
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a template: its pattern, its name if it is an operand, and its words."""

    pattern: str
    plain: str
    name: str
    words: str


def _token(text: str) -> Token:
    name, _, cls = text.partition(":")
    if cls in _CLASSES and name:
        pattern, words = _CLASSES[cls]
        return Token(pattern, _PLAIN_CLASSES.get(cls, pattern), name, words)
    pattern = re.escape(text) + (r"(?![\w.])" if text[-1].isalnum() else "")
    return Token(pattern, pattern, "", f"'{text}'")


@cache
def tokens_of() -> tuple[tuple[tuple[Token, ...], Build], ...]:
    """Every template as tokens, with what it builds."""
    return tuple((tuple(map(_token, template.split())), build) for template, build in _TEMPLATES)


Matcher = Callable[[str], "re.Match[str] | None"]
Table = dict[str, tuple[tuple[Matcher, Build], ...]]


def shape_of(text: str) -> str:
    """
    Return the key of a statement in `table`: its first character, and what follows the `=` if it assigns.

    >>> shape_of("r1 s>>= 5"), shape_of("r0 = *(u8 *)(r1 +0)"), shape_of("exit")
    ('r5', 'r*', 'e')
    """
    first = text[0]
    if first not in "rw":
        return first
    at = text.find("=") + 1
    if not at:
        return first
    then = text[at : at + 1]
    if then == " ":
        then = text[at + 1 : at + 2]
    return first + (then if then and not then.isspace() else text[at:].lstrip()[:1])


@cache
def table(is_plain: bool) -> Table:
    """
    Return the compiled templates by the shape of what they match.

    The plain table takes numbers only where the full one takes constants and sums too, and at most
    one space between tokens; it is faster and tried first. Neither takes a space at the end.
    """
    by_shape: dict[str, list[tuple[Matcher, Build]]] = {}
    for tokens, build in tokens_of():
        patterns = [token.plain if is_plain else token.pattern for token in tokens]
        parts = (f"(?P<{t.name}>{pattern})" if t.name else pattern for t, pattern in zip(tokens, patterns, strict=True))
        gap = r" ?" if is_plain else r"\s*"
        row = (re.compile(gap.join(parts) + r"\Z").match, build)
        is_assignment = len(tokens) > 2 and (tokens[1].name == "op" or tokens[1].pattern == re.escape("="))
        for first in _first_characters(patterns[0]):
            for then in _first_characters(patterns[2]) if is_assignment and first in "rw" else [""]:
                by_shape.setdefault(first + then, []).append(row)
    return {shape: tuple(rows) for shape, rows in by_shape.items()}


def _first_characters(pattern: str) -> list[str]:
    return sorted({sample[0] for sample in _SAMPLES if re.match(pattern, sample)})


# A text that begins with each character that a token may begin with, and for each class one it matches.
_SAMPLES = (
    *(char + rest for char in map(chr, range(33, 127)) for rest in ("", "1", "_", "a'")),
    *("add", "sub", "mul", "div", "or", "lsh", "rsh", "xor", "neg", "le16", "be16", "swap16", "movsx832"),
    *("ldxw", "stw", "stxw", "jeq", "bswap16", "atomic_xchg", "field(", "enum(", "sizeof("),
    *("map", "btf", "subprog", "addr_space_cast", "atomic_cmpxchg", "atomic64_cmpxchg", "load_acquire"),
    *(
        "xchg_64",
        "xchg32_32",
        "cmpxchg_64",
        "cmpxchg32_32",
        "if",
        "goto",
        "gotol",
        "gotox",
        "may_goto",
        "call",
        "callx",
    ),
    *("exit", "lock", "store_release", "ld_pseudo", "lddw", "ja", "ja32"),
)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where a line stops making sense, and everything that could have stood there."""

    column: int
    expected: tuple[str, ...]


def explain(text: str) -> Mismatch:
    """
    Say how far the best template follows a line that none matches, and what it expected there.

    >>> explain("r1 = *(u64 *)(r10 -8")
    Mismatch(column=20, expected=("')'",))
    """
    furthest, expected = -1, dict[str, None]()
    for tokens, _ in tokens_of():
        column, words = _follow(tokens, text)
        if column > furthest:
            furthest, expected = column, dict[str, None]()
        if column == furthest:
            expected[words] = None
    return Mismatch(furthest, tuple(expected))


def _follow(tokens: tuple[Token, ...], text: str) -> tuple[int, str]:
    at = 0
    for token in tokens:
        start = at + len(text[at:]) - len(text[at:].lstrip())
        found = re.compile(token.pattern).match(text, start)
        if found is None:
            return start, token.words
        at = found.end()
    return at + len(text[at:]) - len(text[at:].lstrip()), "the end of the line"
