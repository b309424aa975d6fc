"""Tokens and syntax trees as text and as JSON, for `actplane compile --emit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actplane.dsl import ast
from actplane.dsl.lexer import Token
from actplane.source import Span


def print_tokens(tokens: Sequence[Token]) -> str:
    """Return one line for each token: its place, its type, what stands there."""
    return "".join(
        f"{token.span.line}:{token.span.column} {token.type} {token.text}".rstrip() + "\n" for token in tokens
    )


def tokens_to_json(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    return [
        {"type": token.type, "text": token.text, "line": token.span.line, "column": token.span.column}
        for token in tokens
    ]


def print_tree(tree: ast.Policy) -> str:
    """Return a tree as an outline: one line for each node with its place, fields below it."""
    lines: list[str] = []
    _outline(tree, "", 0, lines)
    return "".join(line + "\n" for line in lines)


def _outline(value: Any, name: str, depth: int, lines: list[str]) -> None:
    head = "  " * depth + (f"{name}: " if name else "")
    if isinstance(value, tuple):
        for item in value:
            _outline(item, name, depth, lines)
    elif isinstance(value, ast.Word):
        lines.append(f"{head}{value.text}{_place(value)}")
    elif isinstance(value, ast.String):
        lines.append(f'{head}"{value.raw}"{_place(value)}')
    elif isinstance(value, ast.Node):
        lines.append(f"{head}{type(value).__name__}{_place(value)}")
        for field, content in value.fields().items():
            _outline(content, field, depth + 1, lines)
    elif value is not None:
        lines.append(f"{head}{value}")


def _place(node: Any) -> str:
    span = getattr(node, "span", None)
    return f" @{span.line}:{span.column}" if isinstance(span, Span) else ""


def tree_to_json(node: Any) -> Any:
    """Return a tree as plain data; every node names its type and its place."""
    if isinstance(node, tuple):
        return [tree_to_json(item) for item in node]
    if not isinstance(node, ast.Node):
        return node
    found: dict[str, Any] = {"node": type(node).__name__}
    span = getattr(node, "span", None)
    if isinstance(span, Span):
        found |= {"line": span.line, "column": span.column}
    return found | {name: tree_to_json(value) for name, value in node.fields().items()}
