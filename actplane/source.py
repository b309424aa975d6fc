"""
Text a person wrote, places in it, and what there is to say about them.

Every stage keeps spans, so that a refusal by the kernel can still be shown at the line of the
policy that caused it.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """
    One named text. Lines and columns count from 1; columns count characters.

    `first_line` and `first_column` place a text that was cut out of another file (the block scalar
    of a YAML document, say) where it stands there: line 1 of `text` is line `first_line` of the
    file, and every line starts `first_column - 1` characters to the right.

    >>> Source("demo.yaml", "a b\\nc d").position(4)
    (2, 1)
    """

    name: str
    text: str
    first_line: int = 1
    first_column: int = 1
    _starts: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts = [0]
        starts.extend(newline.end() for newline in re.finditer("\n", self.text))
        object.__setattr__(self, "_starts", starts)

    def position(self, offset: int) -> tuple[int, int]:
        """Return (line, column) of a character offset, as an editor would show it."""
        row = bisect.bisect_right(self._starts, offset) - 1
        column = offset - self._starts[row]
        return row + self.first_line, column + self.first_column

    def line(self, number: int) -> str:
        """Return one line of the text by its number in the file, without its newline."""
        row = number - self.first_line
        end = self._starts[row + 1] - 1 if row + 1 < len(self._starts) else len(self.text)
        return self.text[self._starts[row] : end]

    def span(self, start: int, end: int | None = None) -> Span:
        """Return the span of the characters [start, end); one character if `end` is left out."""
        return Span(self, start, start + 1 if end is None else end)


@dataclass(frozen=True, slots=True)
class Span:
    """The characters [start, end) of a source."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.position(self.start)[1]

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def to(self, other: Span) -> Span:
        """Return the span from the start of this one to the end of another."""
        return Span(self.source, self.start, max(self.end, other.end))

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"


class Severity(Enum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing to say about a place: what is wrong, got and expected, and what to do."""

    span: Span | None
    message: str
    hint: str = ""
    severity: Severity = Severity.ERROR

    def render(self) -> str:
        """
        Return the text a person sees: place and message, the source line with carets, the hint.

        >>> source = Source("demo.yaml", 'blok exec "git"')
        >>> print(Diagnostic(source.span(0, 4), "unknown effect 'blok'", "expected block").render())
        demo.yaml:1:1: unknown effect 'blok'
            blok exec "git"
            ^^^^
            hint: expected block
        """
        lines: list[str] = []
        prefix = "warning: " if self.severity is Severity.WARNING else ""
        if self.span is None:
            lines.append(prefix + self.message)
        else:
            lines.append(f"{self.span}: {prefix}{self.message}")
            text = self.span.source.line(self.span.line)
            before = self.span.column - self.span.source.first_column
            width = min(self.span.end - self.span.start, max(len(text) - before, 1))
            # Tabs keep their width in the caret line, so the caret stands under its word.
            indent = "".join("\t" if char == "\t" else " " for char in text[:before])
            lines.append("    " + text)
            lines.append("    " + indent + "^" * max(width, 1))
        if self.hint:
            lines.append("    hint: " + self.hint)
        return "\n".join(lines)


def render_all(diagnostics: Iterable[Diagnostic]) -> str:
    """Render several diagnostics, in the order of their places."""

    def place(item: Diagnostic) -> tuple[str, int, int]:
        return (item.span.source.name, item.span.line, item.span.column) if item.span else ("", 0, 0)

    return "\n".join(item.render() for item in sorted(diagnostics, key=place))
