"""
The grammar of policies, for PLY.

The docstring of every `p_` function is a production; PLY reads them from there. Every terminal's
value is a `lexer.Token`. `error` stands where the parser takes up again after a mistake: it has
skipped to a token that can follow (see `parser`).
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from ply import yacc

from actplane.dsl import ast, vocabulary
from actplane.dsl.lexer import Token, require_docstrings

tokens = ("BEGIN", *vocabulary.TOKENS)
start = "policy"
precedence = (("left", "OR"), ("left", "AND"))


def p_policy(p: Any) -> None:
    """policy : BEGIN declarations END"""
    # BEGIN and END are there for recovery: PLY drops the first token and the last without asking.
    p[0] = ast.Policy(tuple(p[2]))


def p_nothing(p: Any) -> None:
    """declarations :
    items :"""
    p[0] = []


def p_several(p: Any) -> None:
    """declarations : declarations declaration
    items : items item"""
    p[0] = p[1] if p[2] is None else [*p[1], p[2]]


def p_mistake(p: Any) -> None:
    """declaration : error
    item : error"""
    # The parser has skipped to a good token: the next mistake is worth a report of its own.
    p.parser.errok()
    p[0] = None


def p_declaration_source(p: Any) -> None:
    """declaration : SOURCE name EQUALS kind STRING"""
    p[0] = ast.LabelSource(p[2], p[4], _string(p[5]), p[1].span.to(p[5].span))


def p_declaration_transform(p: Any) -> None:
    """declaration : TRANSFORM name BY EXEC STRING"""
    p[0] = ast.Transform(_word(p[1]), p[2], _string(p[5]), p[1].span.to(p[5].span))


def p_declaration_rule(p: Any) -> None:
    """declaration : RULE name COLON items"""
    p[0] = ast.Rule(p[2], tuple(p[4]), p[1].span.to(p[4][-1].span if p[4] else p[3].span))


def p_item_because(p: Any) -> None:
    """item : BECAUSE STRING"""
    p[0] = ast.Because(_string(p[2]), p[1].span.to(p[2].span))


def p_item_instead(p: Any) -> None:
    """item : INSTEAD STRING"""
    p[0] = ast.Instead(_string(p[2]), p[1].span.to(p[2].span))


def p_item_clause(p: Any) -> None:
    """item : EFFECT operation target when unless"""
    last = p[5] or p[4] or p[3]
    p[0] = ast.Clause(_word(p[1]), p[2], p[3], p[4], p[5], p[1].span.to(last.span))


def p_word(p: Any) -> None:
    """operation : EXEC
    operation : ACCESS
    operation : OPERATION
    event_operation : EXEC
    event_operation : ACCESS
    kind : EXEC
    kind : KIND"""
    p[0] = _word(p[1])


def p_target(p: Any) -> None:
    """target : kind strings
    target : strings"""
    kind = p[1] if len(p) == 3 else None
    strings = p[len(p) - 1]
    first = kind or strings[0]
    p[0] = ast.Target(kind, tuple(strings), first.span.to(strings[-1].span))


def p_strings(p: Any) -> None:
    """strings : STRING
    strings : strings STRING"""
    p[0] = [_string(p[1])] if len(p) == 2 else [*p[1], _string(p[2])]


def p_absent(p: Any) -> None:
    """when :
    unless :
    exits :
    since :"""
    p[0] = None


def p_present(p: Any) -> None:
    """when : IF expression
    unless : UNLESS condition
    exits : EXITS name
    since : SINCE events"""
    p[0] = p[2]


def p_expression_and(p: Any) -> None:
    """expression : expression AND expression"""
    terms = p[1].terms if isinstance(p[1], ast.And) else (p[1],)
    p[0] = ast.And((*terms, p[3]), p[1].span.to(p[3].span))


def p_expression_or(p: Any) -> None:
    """expression : expression OR expression"""
    terms = p[1].terms if isinstance(p[1], ast.Or) else (p[1],)
    p[0] = ast.Or((*terms, p[3]), p[1].span.to(p[3].span))


def p_expression_group(p: Any) -> None:
    """expression : LPAREN expression RPAREN"""
    p[0] = ast.Group(p[2], p[1].span.to(p[3].span))


def p_expression_not(p: Any) -> None:
    """expression : NOT name"""
    p[0] = ast.Not(p[2], p[1].span.to(p[2].span))


def p_expression_always(p: Any) -> None:
    """expression : TRUE"""
    p[0] = ast.Always(p[1].span)


def p_expression_label(p: Any) -> None:
    """expression : plain_name"""
    p[0] = ast.Label(p[1], p[1].span)


def p_condition_target(p: Any) -> None:
    """condition : TARGET STRING
    condition : TARGET NOT STRING"""
    text = p[len(p) - 1]
    p[0] = ast.TargetIs(_string(text), len(p) == 4, p[1].span.to(text.span))


def p_condition_lineage(p: Any) -> None:
    """condition : LINEAGE EXEC STRING"""
    p[0] = ast.LineageIncludes(_string(p[3]), p[1].span.to(p[3].span))


def p_condition_after(p: Any) -> None:
    """condition : AFTER EXEC strings exits since"""
    since = tuple(p[5] or ())
    last = since[-1] if since else p[4] or p[3][-1]
    p[0] = ast.After(tuple(p[3]), p[4], since, p[1].span.to(last.span))


def p_events(p: Any) -> None:
    """events : event
    events : events OR event"""
    p[0] = [p[1]] if len(p) == 2 else [*p[1], p[3]]


def p_event(p: Any) -> None:
    """event : event_operation STRING"""
    p[0] = ast.Event(p[1], _string(p[2]), p[1].span.to(p[2].span))


# Keywords are not reserved: wherever a name stands, a keyword is one. Only `true` and `not` at the
# start of a term keep their meaning; behind `not` even they are names.


def p_name(p: Any) -> None:
    """name : plain_name"""
    p[0] = p[1]


def p_name_keyword(p: Any) -> None:
    """name : TRUE
    name : NOT"""
    p[0] = _word(p[1])


def p_plain_name(p: Any) -> None:
    p[0] = _word(p[1])


p_plain_name.__doc__ = "\n".join(
    f"plain_name : {token}" for token in ("WORD", *vocabulary.GROUPS) if token not in ("TRUE", "NOT")
)


def p_error(token: Any) -> None:
    """Replaced for every parse, see `parser`."""


def _word(token: Token) -> ast.Word:
    return ast.Word(token.text, token.span)


def _string(token: Token) -> ast.String:
    return ast.String(token.text[1:-1], token.span)


@functools.cache
def tables() -> Any:
    """
    Return PLY's parser for this grammar, built once a process.

    Raises: ActplaneError under `python -OO`, which removes the grammar.
    """
    require_docstrings()
    return yacc.yacc(
        module=sys.modules[__name__],
        debug=False,
        write_tables=False,
        check_recursion=False,
        errorlog=yacc.NullLogger(),
    )
