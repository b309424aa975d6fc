"""File patterns of a policy that match nothing in the tree the policy is about."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from actplane.dsl import ast, check, globs, paths
from actplane.dsl.check import warning
from actplane.ir.policy import ObjectKind, Operation
from actplane.ir.printer import print_regex
from actplane.source import Diagnostic

MAX_PATHS = 20_000
"""A tree with more files and folders is not searched to its end, and then nothing is said about it."""


def lint_tree(trees: Sequence[ast.Policy], root: str | os.PathLike[str]) -> list[Diagnostic]:
    """
    Return a warning for each file pattern that nothing below `root` matches.

    Patterns that start with `/` are left out, for they need not mean this tree; so are patterns
    that are wrong. The tree is read as it is now: a pattern may be meant for files still to come.
    """
    base = os.path.realpath(root)
    open_patterns: dict[re.Pattern[bytes], ast.String] = {}
    for string in _file_patterns(trees):
        if string.raw and not string.raw.startswith("/"):
            try:
                regex = paths.path_regex(string.raw, paths.Place(base, os.path.realpath))
            except globs.GlobError:
                continue
            open_patterns.setdefault(re.compile(print_regex(regex).encode("latin-1"), re.DOTALL), string)
    for count, path in enumerate(_paths(os.fsencode(base))):
        if count == MAX_PATHS or not open_patterns:
            return []
        for pattern in [each for each in open_patterns if each.fullmatch(path)]:
            del open_patterns[pattern]
    return [
        warning(string.span, f"nothing below {base} matches this pattern now", "is it spelled as the files are?")
        for string in open_patterns.values()
    ]


def _file_patterns(trees: Sequence[ast.Policy]) -> Iterator[ast.String]:
    for tree in trees:
        yield from (source.pattern for source in tree.sources if source.kind.text == ObjectKind.FILE.value)
        for rule in tree.rules:
            for clause in rule.clauses:
                is_file = check.TARGET_KINDS[Operation(clause.operation.text)] is ObjectKind.FILE
                if is_file:
                    yield clause.target.strings[0]
                if isinstance(clause.unless, ast.TargetIs) and is_file:
                    yield clause.unless.pattern
                if isinstance(clause.unless, ast.After):
                    events = (event for event in clause.unless.since if event.operation.text != "exec")
                    yield from (event.pattern for event in events)


def _paths(base: bytes) -> Iterator[bytes]:
    """Yield every path below a folder, without following links; of `.git` only the folder itself."""
    for folder, folders, files in os.walk(base):
        yield from (os.path.join(folder, name) for name in folders + files)
        folders[:] = [name for name in folders if name != b".git"]
