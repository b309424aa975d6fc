r"""
Globs to regular languages.

    **        any span of a path, slashes included      *        any span within a segment
    ?         one character within a segment            [a-z]    one character of a set, [!a-z] of the others
    {a,b}     either, nested as you like                \x       the character x itself

Braces without a comma are themselves, as in a shell: `{}` and `stash@{0}` need no quoting. A
character is a Unicode character in UTF-8. `/**/` also matches a single `/`.

Where slashes mean nothing (arguments, abstract sockets), `*` and `?` match them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actplane.ir.ranges import digit_ranges
from actplane.ir.regex import ANY_MASK, ANYTHING, EMPTY, Chars, Concat, Regex, Star, Union, literal

MAX_ALTERNATIVES = 1024
"""Alternatives the braces of one pattern may multiply to."""
MAX_DEPTH = 32
"""Braces that may stand in each other."""
MAX_LENGTH = 4096
"""Characters of a pattern: no path is longer."""

NOTHING = Union(())
"""The language without a string."""

_SLASH = 0x2F
_LAST_CHARACTER = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_UTF8_LIMITS = (0x7F, 0x7FF, _SURROGATES[0] - 1, 0xFFFF, _LAST_CHARACTER)
"""The last character of each run that UTF-8 encodes alike, surrogates left out."""

CharRange = tuple[int, int]


class GlobError(ValueError):
    """A pattern is wrong in its characters [start, end)."""

    def __init__(self, message: str, start: int, end: int, hint: str = "") -> None:
        super().__init__(message)
        self.start = start
        self.end = end
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Char:
    """One character, as itself."""

    char: str


@dataclass(frozen=True, slots=True)
class OneOf:
    """One character out of ranges, or (negated) one out of none of them. `?` is negated and empty."""

    ranges: tuple[CharRange, ...]
    is_negated: bool


@dataclass(frozen=True, slots=True)
class Span:
    """`*`, or `**` if it is deep."""

    is_deep: bool


Item = Char | OneOf | Span
Items = tuple[Item, ...]

SLASH = Char("/")
DEEP = Span(is_deep=True)


def expand(text: str) -> list[Items]:
    """
    Return the alternatives of a glob, its braces multiplied out.

    Raises: GlobError for a bracket or brace without its end, an empty set, a range that runs
            backwards, a backslash at the end, a NUL, more than MAX_ALTERNATIVES alternatives or
            MAX_LENGTH characters.

    >>> expand("{a,b}?")
    [(Char(char='a'), OneOf(ranges=(), is_negated=True)), (Char(char='b'), OneOf(ranges=(), is_negated=True))]
    """
    if len(text) > MAX_LENGTH:
        raise GlobError(f"a pattern of {len(text)} characters: expected {MAX_LENGTH} at most", 0, len(text))
    return _Reader(text).alternatives()


class _Reader:
    """Recursive descent over one glob."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def alternatives(self) -> list[Items]:
        found = self.sequence("")
        if self.at != len(self.text):
            raise AssertionError("a sequence that nothing ends runs to the end")
        return found

    def sequence(self, ends: str) -> list[Items]:
        """Read up to one of the ending characters; return every way to read it."""
        found: list[Items] = [()]
        while self.at < len(self.text) and self.text[self.at] not in ends:
            choices = self.one()
            if len(found) * len(choices) > MAX_ALTERNATIVES:
                raise GlobError(
                    f"the braces multiply to more than {MAX_ALTERNATIVES} alternatives",
                    0,
                    len(self.text),
                    "write several clauses",
                )
            found = [head + tail for head in found for tail in choices]
        return found

    def one(self) -> list[Items]:
        start = self.at
        char = self.text[start]
        self.at += 1
        if char == "\0":
            raise GlobError("a NUL is in no path, name or argument", start, self.at)
        if char == "\\":
            if self.at == len(self.text):
                raise GlobError("a backslash quotes nothing", start, self.at, "write `\\\\` for a backslash")
            self.at += 1
            return [(Char(self.text[self.at - 1]),)]
        if char == "*":
            is_deep = self.text.startswith("*", self.at)
            while self.text.startswith("*", self.at):
                self.at += 1
            return [(Span(is_deep),)]
        if char == "?":
            return [(OneOf((), is_negated=True),)]
        if char == "[":
            return [(self.one_of(start),)]
        if char == "{":
            return self.braces(start)
        return [(Char(char),)]

    def braces(self, start: int) -> list[Items]:
        choices: list[list[Items]] = []
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise GlobError(f"braces stand in each other more than {MAX_DEPTH} deep", start, start + 1)
        while True:
            choices.append(self.sequence(",}"))
            if self.at == len(self.text):
                raise GlobError("a '{' without its '}'", start, start + 1, "write `\\{` for a brace itself")
            self.at += 1
            if self.text[self.at - 1] == "}":
                break
        self.depth -= 1
        if len(choices) == 1:
            return [(Char("{"), *items, Char("}")) for items in choices[0]]
        return list(dict.fromkeys(items for choice in choices for items in choice))

    def one_of(self, start: int) -> OneOf:
        unclosed = GlobError("a '[' without its ']'", start, start + 1, "write `\\[` for a bracket itself")
        is_negated = self.text.startswith(("!", "^"), self.at)
        self.at += is_negated
        ranges: list[CharRange] = []
        first_at = self.at
        while True:
            if self.at >= len(self.text):
                raise unclosed
            # A ']' that comes first is a member, as in every shell.
            if self.text[self.at] == "]" and self.at > first_at:
                self.at += 1
                return OneOf(tuple(ranges), is_negated)
            low_at = self.at
            low = high = self.member(unclosed)
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                high = self.member(unclosed)
            if high < low:
                raise GlobError(f"the range {self.text[low_at : self.at]} runs backwards", low_at, self.at)
            ranges.append((low, high))

    def member(self, unclosed: GlobError) -> int:
        if self.text.startswith("\\", self.at):
            self.at += 1
        if self.at >= len(self.text):
            raise unclosed
        self.at += 1
        return ord(self.text[self.at - 1])


# -- languages ------------------------------------------------------------------------------------


def text_regex(text: str) -> Regex:
    """Return the language of a glob in which slashes mean nothing. Raises GlobError."""
    return union(items_regex(items, is_path=False) for items in expand(text))


def is_nothing(regex: Regex) -> bool:
    """Tell whether a language has no string at all."""
    if isinstance(regex, Chars):
        return not regex.mask & ANY_MASK
    if isinstance(regex, Concat):
        return any(map(is_nothing, regex.parts))
    return isinstance(regex, Union) and all(map(is_nothing, regex.options))


def has_slash(items: Items) -> bool:
    return SLASH in items


def name_of(items: Items) -> Items | None:
    """
    Return what names a file anywhere: all of `x`, the `x` of `**/x`; None for what names a path.

    >>> name_of(expand("**/git")[0]) == expand("git")[0], name_of(expand("/usr/bin/git")[0])
    (True, None)
    """
    if items[:2] == (DEEP, SLASH):
        items = items[2:]
        if DEEP in items:
            return None
    return None if has_slash(items) or not items else items


def union(options: Iterable[Regex]) -> Regex:
    """Return the union of languages, without a wrapper around a single one."""
    several = tuple(dict.fromkeys(options))
    return several[0] if len(several) == 1 else Union(several)


def items_regex(items: Items, *, is_path: bool) -> Regex:
    """Return the language of one alternative as it stands; slashes mean something in paths only."""
    avoid = _SLASH if is_path else None
    parts: list[Regex] = []
    index = 0
    while index < len(items):
        item = items[index]
        if is_path and items[index : index + 3] == (SLASH, DEEP, SLASH):
            # `/**/`: any number of folders, none included. The second slash may start another.
            parts.append(Concat((literal(b"/"), Union((EMPTY, Concat((ANYTHING, literal(b"/"))))))))
            index += 3
            while items[index : index + 2] == (DEEP, SLASH):
                index += 2
            continue
        if isinstance(item, Char):
            parts.extend(Chars(1 << byte) for byte in item.char.encode("utf-8", "surrogateescape"))
        elif isinstance(item, Span):
            parts.append(ANYTHING if item.is_deep or not is_path else Star(_any_but(avoid)))
        else:
            parts.append(_one_of(item, avoid))
        index += 1
    return parts[0] if len(parts) == 1 else Concat(tuple(parts))


def folders_regex(items: Items) -> Regex:
    """
    Return the language of the folders that a path pattern leads through.

    Behind a `**` only those count whose own name says something: `*` would be every folder there is.

    >>> from actplane.ir.printer import print_regex
    >>> print_regex(folders_regex(expand("/srv/*/conf/**")[0]))
    '(?:/srv|/srv/[^/]*|/srv/[^/]*/conf)'
    >>> print_regex(folders_regex(expand("/srv/**/.git/*/hooks")[0]))
    '(?:/srv|/srv/(?:|.*/)\\\\.git)'
    """
    ends = [index for index, item in enumerate(items) if item == SLASH and index]
    folders = [items[:end] for end in ends if _is_folder(items[:end])]
    return union(items_regex(folder, is_path=True) for folder in folders) if folders else NOTHING


def _is_folder(items: Items) -> bool:
    name = items[-items[::-1].index(SLASH) :] if SLASH in items else items
    says_something = any(isinstance(item, Char) or (isinstance(item, OneOf) and item.ranges) for item in name)
    return DEEP not in name and (DEEP not in items or says_something)


def _any_but(avoid: int | None) -> Chars:
    return Chars(ANY_MASK if avoid is None else ANY_MASK & ~(1 << avoid))


def _one_of(item: OneOf, avoid: int | None) -> Regex:
    ranges = _complement(item.ranges) if item.is_negated else list(item.ranges)
    outside = [(0, 0)] if avoid is None else [(0, 0), (avoid, avoid)]
    for low, high in outside:
        ranges = _without(ranges, low, high)
    return characters(ranges)


def _complement(ranges: Sequence[CharRange]) -> list[CharRange]:
    rest: list[CharRange] = [(0, _LAST_CHARACTER)]
    for low, high in ranges:
        rest = _without(rest, low, high)
    return rest


def _without(ranges: Sequence[CharRange], low: int, high: int) -> list[CharRange]:
    kept: list[CharRange] = []
    for first, last in ranges:
        if first < low:
            kept.append((first, min(last, low - 1)))
        if last > high:
            kept.append((max(first, high + 1), last))
    return kept


def characters(ranges: Iterable[CharRange]) -> Regex:
    """
    Return the language of single characters in UTF-8.

    Units:  code points, both ends included; surrogates have no encoding and are left out.

    >>> characters([(0x61, 0x62)]) == Chars(0b11 << 0x61)
    True
    """
    single = 0
    longer: list[Regex] = []
    for first, last in ranges:
        low = first
        for limit in _UTF8_LIMITS:
            if _SURROGATES[0] <= low <= _SURROGATES[1]:
                low = _SURROGATES[1] + 1
            high = min(last, limit)
            if low > high:
                continue
            if limit == _UTF8_LIMITS[0]:
                single |= ((1 << (high + 1)) - 1) & ~((1 << low) - 1)
            else:
                for digits in digit_ranges(chr(low).encode(), chr(high).encode(), 0x80, 0xBF):
                    longer.append(Concat(tuple(_byte_range(*digit) for digit in digits)))
            low = high + 1
    single &= ANY_MASK
    return union(([Chars(single)] if single else []) + longer)


def _byte_range(first: int, last: int) -> Chars:
    return Chars(((1 << (last + 1)) - 1) & ~((1 << first) - 1))
