"""The syntax tree to the policy IR: names become numbers, patterns become languages."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from actplane.dsl import ast, check, expressions, globs, paths
from actplane.dsl.check import warning
from actplane.dsl.hosts import Resolve
from actplane.ir import policy as ir
from actplane.ir.policy import ObjectKind, Operation, PatternKind
from actplane.ir.regex import Regex
from actplane.source import Diagnostic, Span

SEED_LABELS = ("COMMAND", "AGENT")
"""Labels of a session's first process; the first that the policy names."""

_MAX_STATUS = 255

_Item = TypeVar("_Item")


class _Table(Generic[_Item]):
    """Items without duplicates, numbered in the order they came."""

    def __init__(self) -> None:
        self.items: list[_Item] = []
        self._numbers: dict[Hashable, int] = {}

    def add(self, key: Hashable, item: _Item) -> int:
        number = self._numbers.setdefault(key, len(self.items))
        if number == len(self.items):
            self.items.append(item)
        return number


class Lowering:
    """
    One policy on its way to the IR.

    `place` says where relative patterns start and where links lead, `resolve` looks up host names.
    Problems gather in `diagnostics`; the policy `lower` returns is whole only if none of them is an
    error.
    """

    def __init__(self, place: paths.Place, resolve: Resolve | None) -> None:
        self.place = place
        self.resolve = resolve
        self.diagnostics: list[Diagnostic] = []
        self.labels: dict[str, int] = {}
        self.patterns: _Table[ir.Pattern] = _Table()
        self.invalidators: _Table[ir.Invalidator] = _Table()
        self.gates: _Table[ir.Gate] = _Table()
        self.lineages: _Table[int] = _Table()
        self._known: dict[tuple[ObjectKind | None, str, bool], int] = {}
        self._negated: set[str] = set()

    def lower(self, trees: Sequence[ast.Policy]) -> ir.Policy:
        """Return the IR of the texts that together are one policy."""
        for word in check.label_words(trees):
            self.labels.setdefault(word.text, len(self.labels))
        self._negated = {word.text for word in check.negated_labels(trees)}
        sources: _Table[ir.LabelSource] = _Table()
        transforms: _Table[ir.Transform] = _Table()
        rules: list[ir.Rule] = []
        clauses: list[ir.Clause] = []
        for tree in trees:
            for declaration in tree.declarations:
                if isinstance(declaration, ast.LabelSource):
                    # A source without its kind has been reported by the parser.
                    if declaration.kind.text:
                        source = self.source(declaration)
                        sources.add((source.label, source.kind, source.pattern), source)
                elif isinstance(declaration, ast.Transform):
                    transform = self.transform(declaration)
                    transforms.add((transform.label, transform.is_declassify, transform.pattern), transform)
                else:
                    clauses.extend(self.clauses(declaration, len(rules)))
                    rules.append(_rule(declaration))
        return ir.Policy(
            labels=tuple(self.labels),
            patterns=tuple(self.patterns.items),
            sources=tuple(sources.items),
            transforms=tuple(transforms.items),
            invalidators=tuple(self.invalidators.items),
            gates=tuple(self.gates.items),
            lineages=tuple(self.lineages.items),
            rules=tuple(rules),
            clauses=tuple(clauses),
            seed=next((self.labels[name] for name in SEED_LABELS if name in self.labels), None),
        )

    # -- declarations -----------------------------------------------------------------------------

    def source(self, declaration: ast.LabelSource) -> ir.LabelSource:
        kind = ObjectKind(declaration.kind.text)
        # A label that some clause asks not to have is an exemption from that clause.
        is_exempting = declaration.label.text in self._negated
        consequence = "no process gains the label here"
        pattern = self.pattern(declaration.pattern, kind, consequence, is_exempting=is_exempting)
        return ir.LabelSource(self.labels[declaration.label.text], kind, pattern, declaration.span)

    def transform(self, declaration: ast.Transform) -> ir.Transform:
        consequence = "the label never changes here"
        pattern = self.pattern(declaration.pattern, ObjectKind.EXEC, consequence, is_exempting=True)
        is_declassify = declaration.verb.text == "declassify"
        return ir.Transform(self.labels[declaration.label.text], is_declassify, pattern, declaration.span)

    def clauses(self, rule: ast.Rule, number: int) -> list[ir.Clause]:
        # A clause without its operation has been reported by the parser.
        lowered = (self.clause(clause, number) for clause in rule.clauses if clause.operation.text)
        return [clause for clause in lowered if clause is not None]

    def clause(self, clause: ast.Clause, rule: int) -> ir.Clause | None:
        """Return a clause's IR, or None if its expression never holds."""
        operation = Operation(clause.operation.text)
        kind = check.TARGET_KINDS[operation]
        pattern = self.pattern(clause.target.strings[0], kind, "the clause never matches")
        argument = None
        if kind is ObjectKind.EXEC and len(clause.target.strings) > 1 and clause.target.strings[1].raw:
            argument = self.argument(clause.target.strings[1])
        when = self.when(clause)
        unless = None if clause.unless is None else self.condition(clause.unless, kind)
        if not when:
            return None
        return ir.Clause(
            rule=rule,
            effect=ir.Effect(clause.effect.text),
            operation=operation,
            kind=kind,
            pattern=pattern,
            argument=argument,
            when=when,
            unless=unless,
            span=clause.span,
        )

    def when(self, clause: ast.Clause) -> tuple[ir.LabelTest, ...]:
        if clause.when is None:
            return (ir.ALWAYS,)
        try:
            tests = expressions.disjunctive(clause.when, self.labels)
        except expressions.TooLarge as error:
            self.error(clause.when.span, str(error), "write several clauses")
            return ()
        if not tests:
            self.diagnostics.append(
                warning(clause.when.span, "this never holds: a label would have to be there and not be there")
            )
        return tests

    # -- conditions -------------------------------------------------------------------------------

    def condition(self, condition: ast.Condition, kind: ObjectKind) -> ir.Condition:
        if isinstance(condition, ast.TargetIs):
            is_exempting = not condition.is_negated
            pattern = self.pattern(condition.pattern, kind, "no target is such a one", is_exempting=is_exempting)
            return ir.TargetIs(pattern, condition.is_negated)
        if isinstance(condition, ast.LineageIncludes):
            consequence = "no lineage includes it"
            pattern = self.pattern(condition.pattern, ObjectKind.EXEC, consequence, is_exempting=True)
            return ir.LineageIncludes(self.lineages.add(pattern, pattern))
        return self.gate(condition)

    def gate(self, condition: ast.After) -> ir.After:
        consequence = "nobody can pass this gate"
        pattern = self.pattern(condition.strings[0], ObjectKind.EXEC, consequence, is_exempting=True)
        exits = None if condition.exits is None else self.exit_test(condition.exits)
        known = (event for event in condition.since if event.operation.text)  # Others have been reported.
        since = tuple(sorted({self.invalidator(event) for event in known}))
        gate = ir.Gate(pattern, exits, since, condition.span)
        return ir.After(self.gates.add((pattern, exits, since), gate))

    def exit_test(self, word: ast.Word) -> ir.ExitTest:
        if word.text == "nonzero":
            return ir.ExitTest(None, is_negated=True)
        if word.text.isascii() and word.text.isdecimal() and int(word.text) <= _MAX_STATUS:
            return ir.ExitTest(int(word.text))
        self.error(
            word.span, f"'{word.text}' is no exit status: expected 'nonzero' or a number from 0 to {_MAX_STATUS}"
        )
        return ir.ExitTest(0)

    def invalidator(self, event: ast.Event) -> int:
        operation = Operation(event.operation.text)
        pattern = self.pattern(event.pattern, check.TARGET_KINDS[operation], "it never makes the gate stale")
        return self.invalidators.add((operation, pattern), ir.Invalidator(operation, pattern))

    # -- patterns ---------------------------------------------------------------------------------

    def pattern(self, string: ast.String, kind: ObjectKind, consequence: str, *, is_exempting: bool = False) -> int:
        """
        Return the number of a pattern over objects of a kind; say so where it matches nothing.

        `is_exempting`: what matches is allowed more, so links do not widen the pattern.
        """
        if "\n" in string.raw:
            message = "the pattern spans lines, and so do the names it matches"
            self.diagnostics.append(warning(string.span, message, "is the closing quote missing?"))
        if kind is ObjectKind.ENDPOINT:
            number = self.interned(string, kind, is_exempting, self.endpoint_pattern)
        else:
            lowering = self.file_pattern if kind is ObjectKind.FILE else self.exec_pattern
            number = self.interned(string, kind, is_exempting, lambda each: lowering(each, may_widen=not is_exempting))
        if globs.is_nothing(self.patterns.items[number].regex):
            what = "this pattern" if string.raw else "an empty pattern"
            self.diagnostics.append(warning(string.span, f"{what} matches nothing: {consequence}"))
        return number

    def argument(self, string: ast.String) -> int:
        return self.interned(string, None, False, lambda each: (PatternKind.ARGUMENT, globs.text_regex(each.raw)))

    def interned(
        self,
        string: ast.String,
        kind: ObjectKind | None,
        is_exempting: bool,
        lowering: Callable[[ast.String], tuple[PatternKind, Regex]],
    ) -> int:
        known = self._known.get((kind, string.raw, is_exempting))
        if known is not None:
            return known
        try:
            pattern_kind, regex = lowering(string)
        except globs.GlobError as error:
            self.error(string.inner_span(error.start, error.end), str(error), error.hint)
            pattern_kind, regex = PatternKind.PATH, globs.NOTHING
        number = self.patterns.add((pattern_kind, regex), ir.Pattern(pattern_kind, string.raw, regex))
        self._known[kind, string.raw, is_exempting] = number
        return number

    def file_pattern(self, string: ast.String, *, may_widen: bool) -> tuple[PatternKind, Regex]:
        regex = paths.path_regex(string.raw, self.place, self.note(string), may_widen=may_widen, moves=may_widen)
        return PatternKind.PATH, regex

    def exec_pattern(self, string: ast.String, *, may_widen: bool) -> tuple[PatternKind, Regex]:
        alternatives = globs.expand(string.raw)
        names = [globs.name_of(items) for items in alternatives]
        if all(name is not None or not items for name, items in zip(names, alternatives, strict=True)):
            # A star alone is every name; in a name it stays in it.
            regexes = [globs.NOTHING if n is None else globs.items_regex(n, is_path=len(n) > 1) for n in names]
            return PatternKind.NAME, globs.union(regexes)
        if any(name is not None for name in names):
            raise globs.GlobError(
                "names and paths in one pattern: expected only names, or only patterns with a '/'",
                0,
                len(string.raw),
                "write a clause for each",
            )
        return PatternKind.PATH, paths.path_regex(string.raw, self.place, self.note(string), may_widen=may_widen)

    def endpoint_pattern(self, string: ast.String) -> tuple[PatternKind, Regex]:
        from actplane.dsl import endpoints  # Sockets and addresses take time to import; few policies need them.

        regex = endpoints.endpoint_regex(string.raw, self.place.root, self.resolve, self.note(string))
        return PatternKind.ENDPOINT, regex

    # -- problems ---------------------------------------------------------------------------------

    def note(self, string: ast.String) -> paths.Note:
        return lambda message, hint: self.diagnostics.append(warning(string.span, message, hint))

    def error(self, span: Span, message: str, hint: str = "") -> None:
        self.diagnostics.append(Diagnostic(span, message, hint))


def _rule(rule: ast.Rule) -> ir.Rule:
    return ir.Rule(
        rule.name.text,
        rule.because.text if rule.because else "",
        rule.instead.text if rule.instead else "",
        rule.span,
    )
