"""
File patterns to languages over absolute paths: where a pattern starts, and what links on its way mean.

The kernel names a file by its path after all links. A pattern whose fixed part leads over a link
(`/bin/sh`, where `/bin` is `/usr/bin`) would never match; what it leads to is known when the policy
is compiled. Where a wider pattern forbids more, it also stands for that. Where a wider pattern allows
more, it does not, for whoever may make links could widen it: there a note says what to write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actplane.dsl import globs
from actplane.dsl.globs import DEEP, SLASH, Char, GlobError, Item, Items
from actplane.ir.regex import ANYTHING, MOVED_FOLDER, Concat, Regex, literal

Follow = Callable[[str], str]
"""Takes a path, returns it with all links followed."""
Note = Callable[[str, str], None]
"""Takes a message and a hint about a pattern that is legal and yet cannot do what it seems to."""

_DOTS: tuple[Items, Items] = ((Char("."),), (Char("."), Char(".")))


@dataclass(frozen=True, slots=True)
class Place:
    """Where patterns are read: the folder relative ones start from, and (or None) what links lead to."""

    root: str
    follow: Follow | None = None


def path_regex(
    text: str, place: Place, note: Note | None = None, *, may_widen: bool = True, moves: bool = False
) -> Regex:
    """
    Return the language of a glob over absolute paths.

    Shape:  `**` and `*` are every path; a pattern without a slash is the last component of a path
            anywhere; one that starts with `**` may start anywhere; others are joined to the root
            unless they start with `/`. `/a/**` is everything below `/a`, but not `/a` itself.
            `may_widen`: what links lead to is part of the language.
            `moves`: so are the folders it leads through, followed by MOVED_FOLDER.
    Raises: GlobError, also for `..` behind a wildcard.

    >>> from actplane.ir.printer import print_regex
    >>> print_regex(path_regex("src/*.c", Place("/work")))
    '/work/src/[^/]*\\\\.c'
    """
    options: list[Regex] = []
    for items in globs.expand(text):
        if not items:
            options.append(globs.NOTHING)
        elif len(items) == 1 and isinstance(items[0], globs.Span):
            options.append(ANYTHING)
        else:
            for path in _paths(items, place, len(text), note, may_widen):
                options.append(globs.items_regex(path, is_path=True))
                folders = globs.folders_regex(path) if moves else globs.NOTHING
                if not globs.is_nothing(folders):
                    options.append(Concat((folders, literal(MOVED_FOLDER))))
    return globs.union(options)


def _paths(items: Items, place: Place, length: int, note: Note | None, may_widen: bool) -> list[Items]:
    """Return an alternative as an absolute path, and as what its links lead to."""
    if note is not None:
        _note_traps(items, note)
    items = _without_dots(_anchored(items, place.root), length)
    options = [items]
    fixed = _fixed_part(items)
    real = place.follow(fixed) if fixed and place.follow is not None else fixed
    if real != fixed and may_widen:
        options.append(_chars(real) + items[len(fixed) :])
    elif real != fixed and note is not None:
        note(f"{fixed} is {real} behind its links, and an exemption is not widened to that", f"write {real}")
    return options


def _note_traps(items: Items, note: Note) -> None:
    if items[-1] == SLASH and len(items) > 1:
        note("no path ends in '/': this pattern never matches", "write `/**` for everything below a folder")
    if items[:2] == (Char("~"), SLASH):
        note("'~' is not expanded: this is a folder named '~'", "write the absolute path, or `**/` and the rest")


def _anchored(items: Items, root: str) -> Items:
    """Make a pattern start with a slash or with `**`."""
    if SLASH not in items and items not in _DOTS:
        return (DEEP, SLASH, *items)
    return items if items[0] in (DEEP, SLASH) else _chars(root.rstrip("/") + "/") + items


def _chars(text: str) -> Items:
    return tuple(Char(char) for char in text)


def _fixed_part(items: Items) -> str:
    """Return the path a pattern surely starts with: all of it, or its folders before the first wildcard."""
    text = ""
    for item in items:
        if not isinstance(item, Char):
            return text[: max(text.rfind("/"), 0)]
        text += item.char
    return text


def _without_dots(items: Items, length: int) -> Items:
    """
    Resolve `.`, `..` and doubled slashes, as the kernel does before a path has a name.

    Raises: GlobError at the whole pattern, which is `length` long, for `..` behind a wildcard.
    """
    segments: list[Items] = [()]
    for item in items:
        if item == SLASH:
            segments.append(())
        else:
            segments[-1] += (item,)
    kept: list[Items] = []
    for index, segment in enumerate(segments):
        is_inner = 0 < index < len(segments) - 1
        if segment == _DOTS[0] or (not segment and is_inner):
            continue
        if segment == _DOTS[1]:
            if not kept or any(not isinstance(item, Char) for item in kept[-1]):
                raise GlobError("'..' behind a wildcard names no folder", 0, length, "write the folder itself")
            if kept[-1]:
                kept.pop()
            continue
        kept.append(segment)
    if kept == [()]:
        return (SLASH,)
    joined: list[Item] = []
    for index, segment in enumerate(kept):
        joined.extend((SLASH, *segment) if index else segment)
    return tuple(joined)
