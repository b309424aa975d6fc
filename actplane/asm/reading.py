"""
The operands of a statement as its text has them: registers, numbers, sums of constants, names of the kernel's.

Numbers are never bent to fit. A 64-bit operation extends the sign of its 32-bit immediate, so
`r1 += 0xffffffff` is refused there, while `w1 += 0xffffffff` names the same 32 bits as -1 and is
taken. uBPF's syntax and the lines of a verifier log write the raw 32 bits; those are taken as such.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping

from actplane.asm.insn import EnumValue, Field, Symbol, TypeSize

REGISTERS = {f"{prefix}{number}": number for prefix in ("r", "w", "%r") for number in range(11)}
"""Every name of a register, and its number."""


class StatementError(Exception):
    """An operand is wrong; [start, end) are its columns in the line, counted from 0."""

    def __init__(self, message: str, start: int, end: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.start, self.end, self.hint = message, start, end, hint


class Operands:
    """The operands of one statement, by the names its template gives them."""

    __slots__ = ("code", "constants", "match")

    def __init__(self, match: re.Match[str], constants: Mapping[str, int], code: int | None) -> None:
        self.match = match
        self.constants = constants
        self.code = code
        """The code that a listing prints before the statement, if it does."""

    def text(self, name: str) -> str:
        return self.match[name]

    def number(self, name: str, low: int, high: int, hint: str = "") -> int:
        """Return the value of a number, which must lie in [low, high]."""
        text = self.match[name]
        try:
            value = int(text, 0) if text else 0
        except ValueError:
            value = self._sum(name, text)
        if not low <= value <= high:
            raise self.error(name, f"number out of range: got {value}, expected [{low}, {high}]", hint)
        return value

    def signed_32(self, name: str, is_narrow: bool) -> int:
        """Return an immediate; if only its 32 bits count, 0x80000000 and more are negative numbers."""
        if is_narrow or self.code is not None:
            value = self.number(name, -0x80000000, 0xFFFFFFFF)
            return value - 0x100000000 if value > 0x7FFFFFFF else value
        return self.number(name, -0x80000000, 0x7FFFFFFF, _WIDE_HINT)

    def offset(self) -> int:
        return self.number("off", -0x8000, 0x7FFF)

    def register(self, name: str) -> int:
        return REGISTERS[self.match[name]]

    def narrow(self, name: str, is_narrow: bool, what: str) -> int:
        """Return a register that must be written w for 32 bits and r for 64."""
        text = self.match[name]
        if (text[0] == "w") is not is_narrow:
            expected = f"{'w' if is_narrow else 'r'}{text[1:]}"
            raise self.error(name, f"register of the wrong width {what}: got {text}, expected {expected}")
        return REGISTERS[text]

    def same_width(self, name: str, letter: str) -> int:
        """Return the second register of two that must be both r or both w."""
        text = self.match[name]
        return REGISTERS[text] if text[0] == letter else self.narrow(name, letter == "w", "beside the first")

    def at_most(self, name: str, type_: str) -> int:
        """Return a register of a memory access: r always, w also up to 32 bits (as LLVM writes it)."""
        text = self.match[name]
        if text[0] == "w" and type_ == "u64":
            raise self.error(name, f"register too narrow for 64 bits: got {text}, expected r{text[1:]}")
        return REGISTERS[text]

    def target(self, bits: int = 16) -> tuple[int, str]:
        """Return where a jump goes: slots, or the name of a label."""
        text = self.match["to"]
        if text[0] not in "+-":
            if not text.startswith(("pc+", "pc-", "pc ")):
                return 0, text
            text = text[2:]
        try:
            slots = int("".join(text.split()), 0)
        except ValueError:  # zeros in front
            raise self.error("to", f"not a number: got {text!r}") from None
        if not -(1 << bits - 1) <= slots < 1 << bits - 1:
            raise self.error("to", f"offset out of range: got {slots}, expected signed {bits} bits")
        return slots, ""

    def error(self, name: str, message: str, hint: str = "") -> StatementError:
        start, end = self.match.span(name)
        return StatementError(message, start, max(end, start + 1), hint)

    def symbol(self, name: str, low: int, high: int) -> tuple[int, Symbol]:
        """Return the plain part of a number, which must lie in [low, high], and what the kernel's BTF adds to it."""
        text = self.match[name]
        found = _SYMBOL.search(text)
        if found is None:
            raise self.error(name, f"not a number: got {text!r}")
        symbol = _make_symbol(found)
        if symbol is None:
            raise self.error(name, f"name of the kernel's: got {found[0]!r}, expected {_SYMBOLS[found['kind']]}")
        # The symbol counts as 0 here; the loader adds its value.
        value = self._sum(name, text[: found.start()] + "0" + text[found.end() :])
        if not low <= value <= high:
            raise self.error(name, f"number out of range: got {value}, expected [{low}, {high}]")
        return value, symbol

    def immediate(self, name: str, is_narrow: bool) -> tuple[int, Symbol | None]:
        """Return an immediate of 32 bits as `signed_32` has it, and what the kernel's BTF adds to it, if anything."""
        if "(" in self.match[name]:
            return self.symbol(name, -0x80000000, 0x7FFFFFFF)
        return self.signed_32(name, is_narrow), None

    def place(self) -> tuple[int, Symbol | None]:
        """Return the offset of a memory operand, and the kernel's field added to it, if there is one."""
        if "(" not in self.match["off"]:
            return self.offset(), None
        off, symbol = self.symbol("off", -0x8000, 0x7FFF)
        if not isinstance(symbol, Field):
            raise self.error("off", f"offset: got {self.match['off']!r}, expected a number or {_SYMBOLS['field']}")
        return off, symbol

    def _sum(self, name: str, text: str) -> int:
        try:
            return int(text.replace(" ", "").replace("+-", "-"), 0)
        except ValueError:
            pass
        try:
            return evaluate(text, self.constants)
        except ValueError as problem:
            raise self.error(name, str(problem)) from None


_WIDE_HINT = "a 64-bit operation extends the sign of its 32 bits; load the number with `rN = NUMBER ll`"
_SYMBOL = re.compile(r"(?P<kind>field|enum|sizeof)\s*\((?P<what>[^()]*)\)")


_SYMBOLS = {"sizeof": "sizeof(TYPE)", "enum": "enum(TYPE.NAME)", "field": "field(STRUCT.PATH)"}


def _make_symbol(found: re.Match[str]) -> Symbol | None:
    """Return what a name of the kernel's stands for, None if it is incomplete."""
    what = [part.strip() for part in found["what"].split("|")]
    if found["kind"] == "sizeof":
        return TypeSize(what[0]) if len(what) == 1 and what[0] else None
    pairs = [(struct, path) for struct, _, path in (part.partition(".") for part in what)]
    if not all(struct and path for struct, path in pairs):
        return None
    if found["kind"] == "enum":
        return EnumValue(*pairs[0]) if len(pairs) == 1 else None
    (struct, path), *others = pairs
    return Field(struct, path, tuple(others))


def evaluate(text: str, constants: Mapping[str, int]) -> int:
    """
    Return the value of a constant expression: + - * | << on numbers, characters and names.

    Raises: ValueError, with words for a person, if a name is unknown or the text is no expression.

    >>> evaluate("SIZE*2 + 'a' - 0x10", {"SIZE": 4})
    89
    """
    if len(text) > _LONGEST_EXPRESSION:
        raise ValueError(f"expression of {len(text)} characters: expected at most {_LONGEST_EXPRESSION}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):  # ValueError: a null character, or a number of thousands of digits
        raise ValueError(f"not a number: got {text.strip()!r}") from None
    return _value(tree, constants)


# Nesting and results stay small, so that no text can exhaust the memory or the stack.
_LONGEST_EXPRESSION = 200
_MOST_BITS = 64


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.BitOr: operator.or_,
    ast.LShift: operator.lshift,
}


def _value(tree: ast.expr, constants: Mapping[str, int]) -> int:
    match tree:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return number
        case ast.Constant(value=str() as char) if len(char) == 1:
            return ord(char)
        case ast.Name(id=name) if name in constants:
            return constants[name]
        case ast.Name(id=name):
            raise ValueError(f"unknown constant {name!r}: expected one that .equ defines")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, constants)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, constants)
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            one, other = _value(left, constants), _value(right, constants)
            if type(op) is ast.LShift and not 0 <= other < _MOST_BITS:
                raise ValueError(f"shift: got {other}, expected 0 to {_MOST_BITS - 1}")
            return int(_OPERATORS[type(op)](one, other))
        case _:
            raise ValueError(f"not a number: got {ast.unparse(tree)!r}, expected + - * | << of numbers and constants")
