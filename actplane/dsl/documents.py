"""YAML with places: every key and value of a document knows its line and column, and so does text inside it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import yaml

from actplane.errors import PolicyError
from actplane.source import Diagnostic, Source, Span

_STRING_TAG = "tag:yaml.org,2002:str"
_NULL_TAG = "tag:yaml.org,2002:null"
_INTEGER_TAG = "tag:yaml.org,2002:int"


class Document:
    """
    One YAML document, and the problems found while reading it.

    The accessors report what is not as it should be and return something harmless, so that reading
    goes on and every problem is found; `raise_problems` ends it.
    """

    def __init__(self, source: Source) -> None:
        """Compose a document. Raises PolicyError if it is not YAML."""
        self.source = source
        self.problems: list[Diagnostic] = []
        self._lines = source.text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        try:
            # Not the faster loader in C: it crashes the interpreter where a document is nested deep.
            self.root: Any = yaml.compose(source.text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = source.span(self._offset(mark)) if mark else None
            raise PolicyError.at(place, f"not YAML: {error.problem or error.context}") from None
        except yaml.reader.ReaderError as error:
            place = source.span(error.position)
            raise PolicyError.at(place, f"not YAML: {error.reason}: {error.character!r}") from None
        except RecursionError:
            raise PolicyError.at(None, f"{source.name}: not a policy file: nested too deep") from None

    def raise_problems(self) -> None:
        if self.problems:
            raise PolicyError(self.problems)

    def error(self, place: Any, message: str, hint: str = "") -> None:
        """Report a problem at a node, a span, or (None) the file as a whole."""
        span = place if isinstance(place, Span) or place is None else self.span(place)
        self.problems.append(Diagnostic(span, message, hint))

    def span(self, node: Any) -> Span:
        """Return the place of a node, up to the end of its first line."""
        start = self._offset(node.start_mark)
        end = self._offset(node.end_mark)
        line_end = self._starts[min(node.start_mark.line + 1, len(self._starts) - 1)] - 1
        return self.source.span(start, max(min(end, line_end), start + 1))

    def _offset(self, mark: Any) -> int:
        return min(self._starts[min(int(mark.line), len(self._starts) - 1)] + int(mark.column), len(self.source.text))

    # -- values -----------------------------------------------------------------------------------

    def entries(self, node: Any, what: str, known: Iterable[str] = ()) -> dict[str, tuple[Any, Any]]:
        """Return the (key node, value node) of a mapping by key; nothing at all for null."""
        if is_null(node):
            return {}
        if not isinstance(node, yaml.MappingNode):
            of = f" of {listing(known)}" if known else ""
            self.error(node, f"{what}: expected a mapping{of}, got {_describe(node)}")
            return {}
        found: dict[str, tuple[Any, Any]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.error(key, f"{what}: expected a name as key, got {_describe(key)}")
            elif key.value in found:
                line = found[key.value][0].start_mark.line + 1
                self.error(key, f"{what}: the key '{key.value}' is there already, in line {line}")
            else:
                found[key.value] = (key, value)
        return found

    def fields(self, node: Any, what: str, known: Iterable[str]) -> dict[str, Any]:
        """Return the values of a mapping that has known keys only."""
        names = sorted(known)
        values: dict[str, Any] = {}
        for name, (key, value) in self.entries(node, what, names).items():
            if name in names:
                values[name] = value
            else:
                self.error(key, f"{what}: unknown key '{name}': expected {listing(names)}", nearest(name, names))
        return values

    def items(self, node: Any, what: str) -> list[Any]:
        """Return the nodes of a sequence; nothing at all for null or where there is none."""
        if node is None or is_null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.error(node, f"{what}: expected a list, got {_describe(node)}")
            return []
        return list(node.value)

    def name(self, node: Any, what: str) -> str:
        """Return a name: any scalar but null, as it is written."""
        if not isinstance(node, yaml.ScalarNode) or is_null(node) or not node.value:
            self.error(node, f"{what}: expected a name, got {_describe(node)}")
            return ""
        return str(node.value)

    def integer(self, node: Any, what: str) -> int | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == _INTEGER_TAG and node.value.isdecimal():
            return int(node.value)
        self.error(node, f"{what}: expected a number, got {_describe(node)}")
        return None

    def text(self, node: Any, what: str) -> Source | None:
        """
        Return text inside the document as a source of its own; None if it is no text.

        Its lines and columns are those of the document wherever the text stands there as it is: in
        a literal block (`|`) or in one line. Folded or escaped text is counted from its own start.
        """
        if not isinstance(node, yaml.ScalarNode) or node.tag not in (_STRING_TAG, _NULL_TAG):
            self.error(node, f"{what}: expected text, got {_describe(node)}")
            return None
        value = str(node.value) if node.tag == _STRING_TAG else ""
        for row, column in self._candidates(node):
            if self._stands_at(value, row, column):
                return Source(self.source.name, value, row + 1, column + 1)
        return Source(f"{self.source.name} ({what})", value)

    def _candidates(self, node: Any) -> Iterable[tuple[int, int]]:
        """Yield the rows and columns, from 0, where the text of a scalar can start."""
        row, column = node.start_mark.line, node.start_mark.column
        if node.style == "|":
            for line in self._lines[row + 1 :]:
                if line.strip():
                    indent = len(line) - len(line.lstrip(" "))
                    # Lines of the text itself may be indented: the first one shows how far.
                    yield from ((row + 1, each) for each in range(indent, -1, -1))
                    return
        elif node.style in ('"', "'"):
            yield row, column + 1
        else:
            yield row, column

    def _stands_at(self, value: str, row: int, column: int) -> bool:
        lines = value.rstrip("\n").split("\n")
        if len(lines) > 1 and row + len(lines) > len(self._lines):
            return False
        if len(lines) == 1:
            return bool(value) and self._lines[row].startswith(lines[0], column)
        shown = self._lines[row : row + len(lines)]
        return all(there[column:] == line for there, line in zip(shown, lines, strict=True))


def is_null(node: Any) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL_TAG


def listing(names: Iterable[str]) -> str:
    """
    Return names as a person lists them.

    >>> listing(["a", "b", "c"])
    'a, b or c'
    """
    several = list(names)
    return " or ".join(filter(None, [", ".join(several[:-1]), *several[-1:]]))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a hint that names the nearest of known names, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def _describe(node: Any) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if node is None or is_null(node):
        return "nothing"
    first, _, more = str(node.value).partition("\n")
    return f"'{first}'" if not more else f"text of {len(node.value.splitlines())} lines"
