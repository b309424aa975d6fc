"""What can be wrong, or doubtful, with a syntax tree before it is lowered: kinds, arguments, names, readings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from actplane.dsl import ast, expressions
from actplane.ir.policy import MAX_LABELS, ObjectKind, Operation
from actplane.source import Diagnostic, Severity, Span

TARGET_KINDS = {
    Operation.EXEC: ObjectKind.EXEC,
    Operation.OPEN: ObjectKind.FILE,
    Operation.READ: ObjectKind.FILE,
    Operation.WRITE: ObjectKind.FILE,
    Operation.UNLINK: ObjectKind.FILE,
    Operation.CONNECT: ObjectKind.ENDPOINT,
    Operation.RECV: ObjectKind.ENDPOINT,
}
"""What each operation acts on."""


def warning(span: Span, message: str, hint: str = "") -> Diagnostic:
    return Diagnostic(span, message, hint, Severity.WARNING)


def check(trees: Sequence[ast.Policy]) -> Iterator[Diagnostic]:
    """Yield the problems of the texts that together are one policy."""
    rules: dict[str, ast.Rule] = {}
    for tree in trees:
        for rule in tree.rules:
            first = rules.setdefault(rule.name.text, rule)
            if first is not rule:
                yield warning(
                    rule.name.span,
                    f"a rule '{rule.name.text}' is there already, in line {first.span.line}",
                    "reports cannot tell the two apart: give one another name",
                )
            yield from _check_rule(rule)
    yield from _check_label_count(trees)


def label_words(trees: Sequence[ast.Policy]) -> Iterator[ast.Word]:
    """Yield every mention of a label: in sources, then in transforms, then in clauses."""
    for tree in trees:
        yield from (item.label for item in tree.sources)
    for tree in trees:
        yield from (item.label for item in tree.transforms)
    for tree in trees:
        for rule in tree.rules:
            for clause in rule.clauses:
                if clause.when is not None:
                    yield from expressions.labels_of(clause.when)


def negated_labels(trees: Sequence[ast.Policy]) -> Iterator[ast.Word]:
    """Yield every mention of a label behind `not`."""
    for tree in trees:
        for rule in tree.rules:
            for clause in rule.clauses:
                if clause.when is not None:
                    yield from expressions.labels_of(clause.when, only_negated=True)


def _check_label_count(trees: Sequence[ast.Policy]) -> Iterator[Diagnostic]:
    seen: set[str] = set()
    for word in label_words(trees):
        if word.text not in seen:
            seen.add(word.text)
            if len(seen) > MAX_LABELS:
                yield Diagnostic(
                    word.span, f"too many labels: '{word.text}' is number {len(seen)}, expected {MAX_LABELS} at most"
                )
                return


def _check_rule(rule: ast.Rule) -> Iterator[Diagnostic]:
    if not rule.clauses:
        yield warning(rule.name.span, f"rule '{rule.name.text}' has no clauses: it never does anything")
    for kind, word in ((ast.Because, "because"), (ast.Instead, "instead")):
        several = [item for item in rule.items if isinstance(item, kind)]
        for item in several[:-1]:
            line = several[-1].span.line
            yield warning(item.span, f"this '{word}' is not used: the last one of a rule holds, in line {line}")
    for clause in rule.clauses:
        if clause.operation.text:  # Else it is missing, and that has been said.
            yield from _check_clause(clause)


def _check_clause(clause: ast.Clause) -> Iterator[Diagnostic]:
    operation = Operation(clause.operation.text)
    expected = TARGET_KINDS[operation]
    target = clause.target
    if target.kind is None and expected is not ObjectKind.EXEC:
        pattern = target.strings[0].span
        yield Diagnostic(
            pattern,
            f"'{operation.value}' without the kind of its target: expected '{expected.value}' before the pattern",
            f"write `{operation.value} {expected.value} {pattern.text}`",
        )
    elif target.kind is not None and target.kind.text != expected.value:
        yield warning(
            target.kind.span,
            f"'{operation.value}' acts on a target of kind '{expected.value}': '{target.kind.text}' is read as that",
            f"write '{expected.value}'",
        )
    if len(target.strings) > 1:
        yield from _check_arguments(operation, target)
    if isinstance(clause.unless, ast.After) and len(clause.unless.strings) > 1:
        yield Diagnostic(
            clause.unless.strings[1].span,
            "a gate with arguments: expected one pattern after 'after exec'",
            "the gate is passed by any run of the program",
        )
    if clause.when is not None:
        yield from _check_readings(clause.when)


def _check_arguments(operation: Operation, target: ast.Target) -> Iterator[Diagnostic]:
    if operation is not Operation.EXEC:
        yield Diagnostic(
            target.strings[1].span,
            f"'{operation.value}' takes no argument: expected one pattern",
            "only an exec has arguments; write a clause for each pattern",
        )
    elif len(target.strings) > 2:
        yield Diagnostic(
            target.strings[2].span,
            "more than one argument: expected a pattern and one argument",
            'braces name alternatives of one argument: "{push,fetch}"',
        )
    elif not target.strings[1].raw:
        yield warning(target.strings[1].span, "an empty argument asks for nothing: the clause holds for any arguments")


def _check_readings(expression: ast.Expression) -> Iterator[Diagnostic]:
    """Warn where `and` and `or` without parentheses meant something else in the original language."""
    todo = [expression]
    while todo:
        item = todo.pop()
        if isinstance(item, ast.Group):
            todo.append(item.body)
        elif isinstance(item, (ast.And, ast.Or)):
            todo.extend(item.terms)
        if not isinstance(item, ast.Or):
            continue
        try:
            other = expressions.other_reading(item)
        except expressions.TooLarge:
            # Reported once, by lowering.
            continue
        if other is not None:
            ours = expressions.render(item, is_explicit=True)
            theirs = expressions.render(other, is_explicit=True)
            yield warning(
                item.span,
                f"'and' binds before 'or': this is {ours}; the original ActPlane reads {theirs}",
                "put parentheses around what you mean",
            )
