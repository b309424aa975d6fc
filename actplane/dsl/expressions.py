"""Label expressions: their disjunctive form, and the two ways to read `and` and `or` in one breath."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from actplane.dsl import ast
from actplane.ir.policy import ALWAYS, LabelTest

MAX_TESTS = 256
"""Conjunctions one expression may multiply to."""

_EXACT_LABELS = 10
"""Up to so many labels, two readings are compared by what they mean; beyond, by how they are built."""


class TooLarge(ValueError):
    """An expression has too many alternatives."""


def labels_of(expression: ast.Expression, *, only_negated: bool = False) -> Iterator[ast.Word]:
    """Yield every label an expression names (or only those behind `not`), in the order of the text."""
    todo: list[ast.Expression] = [expression]
    while todo:
        item = todo.pop()
        if isinstance(item, ast.Not) or (isinstance(item, ast.Label) and not only_negated):
            yield item.name
        elif isinstance(item, ast.Group):
            todo.append(item.body)
        elif isinstance(item, (ast.And, ast.Or)):
            todo.extend(reversed(item.terms))


def disjunctive(expression: ast.Expression, labels: Mapping[str, int]) -> tuple[LabelTest, ...]:
    """
    Return an expression as alternatives of label tests.

    Shape:  no test contradicts itself or is implied by another; none at all: it never holds.
    Raises: TooLarge beyond MAX_TESTS alternatives.
    """
    if isinstance(expression, ast.Group):
        return disjunctive(expression.body, labels)
    if isinstance(expression, ast.Always):
        return (ALWAYS,)
    if isinstance(expression, ast.Label):
        return (LabelTest(frozenset({labels[expression.name.text]}), frozenset()),)
    if isinstance(expression, ast.Not):
        return (LabelTest(frozenset(), frozenset({labels[expression.name.text]})),)
    parts = [disjunctive(term, labels) for term in expression.terms]
    if isinstance(expression, ast.Or):
        return _simplified(test for part in parts for test in part)
    product: tuple[LabelTest, ...] = (ALWAYS,)
    for part in parts:
        product = _simplified(
            LabelTest(left.required | right.required, left.forbidden | right.forbidden)
            for left in product
            for right in part
        )
    return product


def _simplified(tests: Iterable[LabelTest]) -> tuple[LabelTest, ...]:
    distinct: dict[LabelTest, None] = {}
    for test in tests:
        if not test.required & test.forbidden:
            distinct[test] = None
            if len(distinct) > MAX_TESTS:
                raise TooLarge(f"the expression multiplies to more than {MAX_TESTS} alternatives")
    return tuple(test for test in distinct if not any(other != test and covers(other, test) for other in distinct))


def covers(general: LabelTest, special: LabelTest) -> bool:
    """Tell whether a test holds wherever another one does."""
    return general.required <= special.required and general.forbidden <= special.forbidden


def all_covered(general: Iterable[LabelTest], special: Iterable[LabelTest]) -> bool:
    """Tell whether each of some tests is covered by one of others: enough for implication, not needed for it."""
    several = tuple(general)
    return all(any(covers(each, test) for each in several) for test in special)


# -- two readings ---------------------------------------------------------------------------------


def other_reading(expression: ast.Or) -> ast.Expression | None:
    """
    Return what the original language reads where it differs from ours, or None.

    The original takes `and` and `or` strictly from left to right: `A or B and C` is `(A or B) and C`
    there, and `A or (B and C)` here.
    """
    reading: ast.Expression | None = None
    has_mixture = False
    for term in expression.terms:
        parts = term.terms if isinstance(term, ast.And) else (term,)
        for index, part in enumerate(parts):
            if reading is None:
                reading = part
                continue
            has_mixture |= index > 0 and isinstance(reading, ast.Or)
            reading = _joined(ast.And if index > 0 else ast.Or, reading, part)
    if reading is None or not has_mixture:
        return None
    labels = {name: index for index, name in enumerate(dict.fromkeys(word.text for word in labels_of(expression)))}
    if len(labels) <= _EXACT_LABELS and _are_equal(disjunctive(expression, labels), disjunctive(reading, labels)):
        return None
    return reading


def _joined(kind: type[ast.And] | type[ast.Or], left: ast.Expression, right: ast.Expression) -> ast.Expression:
    span = left.span.to(right.span)
    if isinstance(left, kind):
        return kind((*left.terms, right), span)
    return kind((left, right), span)


def _are_equal(left: tuple[LabelTest, ...], right: tuple[LabelTest, ...]) -> bool:
    return _implies(left, right) and _implies(right, left)


def _implies(left: tuple[LabelTest, ...], right: tuple[LabelTest, ...]) -> bool:
    return all(_always_holds(_given(right, test.required, test.forbidden)) for test in left)


def _given(tests: Iterable[LabelTest], present: frozenset[int], absent: frozenset[int]) -> tuple[LabelTest, ...]:
    """Return what is left of tests once some labels are known to be there, and some not."""
    return tuple(
        LabelTest(test.required - present, test.forbidden - absent)
        for test in tests
        if not test.required & absent and not test.forbidden & present
    )


def _always_holds(tests: tuple[LabelTest, ...]) -> bool:
    if not tests or ALWAYS in tests:
        return bool(tests)
    label = frozenset({min(tests[0].required | tests[0].forbidden)})
    none: frozenset[int] = frozenset()
    return _always_holds(_given(tests, label, none)) and _always_holds(_given(tests, none, label))


def render(expression: ast.Expression, *, is_explicit: bool = False) -> str:
    """
    Return an expression as text; `is_explicit` puts parentheses around every mixture.

    Parentheses that were written stay.
    """
    if isinstance(expression, ast.Always):
        return "true"
    if isinstance(expression, ast.Label):
        return expression.name.text
    if isinstance(expression, ast.Not):
        return f"not {expression.name.text}"
    if isinstance(expression, ast.Group):
        return f"({render(expression.body, is_explicit=is_explicit)})"
    word = " and " if isinstance(expression, ast.And) else " or "
    texts = []
    for term in expression.terms:
        text = render(term, is_explicit=is_explicit)
        texts.append(f"({text})" if is_explicit and isinstance(term, (ast.And, ast.Or)) else text)
    return word.join(texts)
