"""Policy text in one canonical form. What it means and what its comments say stays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actplane.dsl import ast, expressions
from actplane.dsl.lexer import comments
from actplane.dsl.parser import parse
from actplane.errors import PolicyError
from actplane.source import Diagnostic, Source, Span

if TYPE_CHECKING:
    from actplane.dsl.files import PolicyFile

_INDENT = "  "


def format_policy(source: Source) -> str:
    """
    Return a policy text in canonical form; formatting that again changes nothing.

    One declaration or clause a line, items indented by two, an empty line before and after a rule.
    Comments stay in front of what they stand in front of, or behind it in its line.
    Raises: PolicyError if the text is not a policy.

    >>> print(format_policy(Source("p", 'rule r : kill exec   "x" # why')), end="")
    rule r:
      kill exec "x"  # why
    """
    tree, problems = parse(source)
    if problems:
        raise PolicyError(problems)
    return _Formatter(source).run(tree)


class _Formatter:
    def __init__(self, source: Source) -> None:
        self.comments = comments(source)
        self.lines: list[str] = []

    def run(self, tree: ast.Policy) -> str:
        previous: ast.Declaration | None = None
        for declaration in tree.declarations:
            is_apart = isinstance(declaration, ast.Rule) or type(previous) is not type(declaration)
            if previous is not None and is_apart:
                self.lines.append("")
            if isinstance(declaration, ast.Rule):
                self.rule(declaration)
            else:
                self.line("", _declaration(declaration), declaration.span)
            previous = declaration
        self.pending(None, "")
        return "".join(line + "\n" for line in self.lines)

    def rule(self, rule: ast.Rule) -> None:
        head = rule.span.source.span(rule.span.start, rule.name.span.end)
        self.line("", f"rule {rule.name.text}:", head)
        for item in rule.items:
            self.line(_INDENT, _item(item), item.span)

    def line(self, indent: str, text: str, span: Span) -> None:
        """Write one thing, the comments in front of it above and the one behind it beside."""
        self.pending(span, indent)
        if self.comments:
            between = span.source.text[span.end : self.comments[0].span.start]
            if between.strip(" \t:") == "":
                text += f"  {self.comments.pop(0).text}"
        self.lines.append(indent + text)

    def pending(self, span: Span | None, indent: str) -> None:
        """Write the comments that stand in front of the end of a place, or all that are left."""
        while self.comments and (span is None or self.comments[0].span.start < span.end):
            self.lines.append(indent + self.comments.pop(0).text)


def _declaration(declaration: ast.LabelSource | ast.Transform) -> str:
    label, pattern = declaration.label.text, _string(declaration.pattern)
    if isinstance(declaration, ast.LabelSource):
        return f"source {label} = {declaration.kind.text} {pattern}"
    return f"{declaration.verb.text} {label} by exec {pattern}"


def _item(item: ast.Item) -> str:
    if isinstance(item, ast.Because):
        return f"because {_string(item.reason)}"
    if isinstance(item, ast.Instead):
        return f"instead {_string(item.remedy)}"
    words = [item.effect.text, item.operation.text]
    if item.target.kind is not None:
        words.append(item.target.kind.text)
    words.extend(map(_string, item.target.strings))
    if item.when is not None:
        words.append(f"if {expressions.render(item.when)}")
    if item.unless is not None:
        words.append(f"unless {_condition(item.unless)}")
    return " ".join(words)


def _condition(condition: ast.Condition) -> str:
    if isinstance(condition, ast.TargetIs):
        return f"target {'not ' if condition.is_negated else ''}{_string(condition.pattern)}"
    if isinstance(condition, ast.LineageIncludes):
        return f"lineage-includes exec {_string(condition.pattern)}"
    words = ["after exec", *map(_string, condition.strings)]
    if condition.exits is not None:
        words.append(f"exits {condition.exits.text}")
    if condition.since:
        events = (f"{event.operation.text} {_string(event.pattern)}" for event in condition.since)
        words.append(f"since {' or '.join(events)}")
    return " ".join(words)


def _string(string: ast.String) -> str:
    return f'"{string.raw}"'


def format_file(file: PolicyFile) -> str:
    """
    Return the text of a policy file with every policy in it in canonical form.

    Only literal blocks (`|`) are changed; other YAML scalars, and the YAML around, stay as they are.
    Raises: PolicyError with the mistakes of every policy in the file.
    """
    lines = file.path.read_text(encoding="utf-8-sig").split("\n")
    problems: list[Diagnostic] = []
    bodies = list(file.rules.values()) if file.policy is None else [file.policy]
    # From the end, so that lines still to be replaced keep their numbers.
    for source in sorted(bodies, key=lambda each: each.first_line, reverse=True):
        problems.extend(parse(source)[1])
        if problems or not _is_literal_block(source, lines):
            continue
        indent = " " * (source.first_column - 1)
        formatted = [(indent + line).rstrip() for line in format_policy(source).rstrip("\n").split("\n")]
        start = source.first_line - 1
        lines[start : start + len(source.text.rstrip("\n").split("\n"))] = formatted
    if problems:
        raise PolicyError(problems)
    return "\n".join(lines)


def _is_literal_block(source: Source, lines: Sequence[str]) -> bool:
    start = source.first_line - 1
    return start > 0 and re.search(r"\|[-+0-9]*\s*(#.*)?$", lines[start - 1]) is not None
