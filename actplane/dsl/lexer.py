"""Policy text to tokens."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, replace
from typing import Any

from ply import lex

from actplane.dsl import vocabulary
from actplane.errors import ActplaneError
from actplane.source import Diagnostic, Source, Span

TOKENS_HINT = "names are letters, digits, '-', '_', '.' and '/'; patterns and texts stand in double quotes"


@dataclass(frozen=True, slots=True)
class Token:
    """One word of a policy. `type` is its group in `vocabulary`, `text` what stands there."""

    type: str
    text: str
    span: Span


def require_docstrings() -> None:
    """
    Refuse to run without docstrings: PLY reads tokens and grammar from them.

    Raises: ActplaneError under `python -OO`.
    """
    if sys.flags.optimize >= 2:
        raise ActplaneError(
            "python -OO removes docstrings, and the grammar of policies is written in them: run python without -OO"
        )


class _Rules:
    """Token rules for PLY. Their docstrings are regular expressions in verbose mode."""

    tokens = ("WORD", "STRING", "UNTERMINATED", "COMMENT", *vocabulary.PUNCTUATION)
    t_ignore = " \t\r\n\f\v\ufeff"
    t_COMMENT = r"\#.*"
    t_WORD = r"[\w./-]+"
    # A string may span lines; a backslash keeps the quote after it from ending the string.
    t_STRING = r'"(?:[^"\\]|\\[\s\S])*"'
    t_UNTERMINATED = r'"[^\n]*'
    t_COLON = r":"
    t_EQUALS = r"="
    t_LPAREN = r"\("
    t_RPAREN = r"\)"

    @staticmethod
    def t_error(token: Any) -> Any:
        # An UNKNOWN token for one character; `tokenize` reports it.
        token.type = "UNKNOWN"
        token.value = token.value[0]
        token.lexer.skip(1)
        return token


@functools.cache
def _lexer() -> Any:
    require_docstrings()
    return lex.lex(object=_Rules)


def tokenize(source: Source) -> tuple[list[Token], list[Diagnostic]]:
    """
    Split a text into tokens, the last of which is END.

    What cannot be a token is reported and left out, so the rest of the text is still parsed.

    >>> tokens, problems = tokenize(Source("demo", 'kill exec "git"'))
    >>> [(token.type, token.text) for token in tokens], problems
    ([('EFFECT', 'kill'), ('EXEC', 'exec'), ('STRING', '"git"'), ('END', '')], [])
    """
    tokens: list[Token] = []
    problems: list[Diagnostic] = []
    lexer = _lexer().clone()
    lexer.input(source.text)
    for found in lexer:
        text = found.value
        span = source.span(found.lexpos, found.lexpos + len(text))
        kind = found.type
        if kind == "COMMENT":
            continue
        if kind == "UNKNOWN":
            _report_unknown(problems, span)
            continue
        if kind == "UNTERMINATED":
            text = text.rstrip()
            span = source.span(span.start, span.start + len(text))
            problems.append(Diagnostic(span, "unterminated string", 'close it with `"`; a quote inside is `\\"`'))
            kind, text = "STRING", text + '"'
        elif kind == "WORD":
            kind = vocabulary.KEYWORDS.get(text, "WORD")
        tokens.append(Token(kind, text, span))
    end = len(source.text.rstrip())
    tokens.append(Token("END", "", source.span(end)))
    return tokens, problems


def comments(source: Source) -> list[Token]:
    """Return the comments of a text, which `tokenize` leaves out, without blanks at their ends."""
    lexer = _lexer().clone()
    lexer.input(source.text)
    texts = ((found.lexpos, found.value.rstrip()) for found in lexer if found.type == "COMMENT")
    return [Token("COMMENT", text, source.span(start, start + len(text))) for start, text in texts]


def _report_unknown(problems: list[Diagnostic], span: Span) -> None:
    # A run of unknown characters is one problem.
    if problems and problems[-1].span is not None and problems[-1].span.end == span.start:
        last = problems[-1]
        if last.message.startswith("unexpected character") and last.span is not None:
            problems[-1] = replace(last, span=last.span.to(span))
            return
    import unicodedata  # Only mistakes need it.

    char = span.text
    name = "" if char.isascii() else f" ({unicodedata.name(char, 'unnamed')}, U+{ord(char):04X})"
    shown = char if char.isprintable() else repr(char)[1:-1]
    problems.append(Diagnostic(span, f"unexpected character '{shown}'{name}", TOKENS_HINT))
