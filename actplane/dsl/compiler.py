"""Policy text to the policy IR, in one call: parse, check, lower."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from actplane.dsl import ast, check
from actplane.dsl.hosts import Resolve, resolve_host
from actplane.dsl.lower import Lowering
from actplane.dsl.parser import parse
from actplane.dsl.paths import Follow, Place
from actplane.dsl.texts import PolicyText
from actplane.errors import PolicyError
from actplane.ir.policy import Policy
from actplane.source import Diagnostic, Severity, Source


@dataclass(frozen=True, slots=True)
class Compilation:
    """
    A policy that compiled: its IR, the tree of each text, and what is doubtful about it.

    `lint.lint` finds more that is doubtful; it is left to those who ask.
    """

    policy: Policy
    trees: tuple[ast.Policy, ...]
    warnings: tuple[Diagnostic, ...]


def compile_sources(
    sources: Sequence[Source],
    *,
    root: str | os.PathLike[str] | None = None,
    resolve: Resolve | None = resolve_host,
    follow: Follow | None = os.path.realpath,
) -> Compilation:
    """
    Compile the texts that together are one policy.

    Shape:  `root` is the folder that relative patterns start from (default: the working directory);
            `resolve` looks up host names, None makes them errors; `follow` follows links, None
            leaves paths as they are written.
    Raises: PolicyError with every error of every text; ActplaneError under `python -OO`.
    """
    trees: list[ast.Policy] = []
    diagnostics: list[Diagnostic] = []
    for source in sources:
        tree, problems = parse(source)
        trees.append(tree)
        diagnostics.extend(problems)
    base = os.path.realpath(os.getcwd() if root is None else root)
    lowering = Lowering(Place(base, follow), resolve)
    diagnostics.extend(check.check(trees))
    policy = lowering.lower(trees)
    diagnostics.extend(lowering.diagnostics)
    errors = [item for item in diagnostics if item.severity is Severity.ERROR]
    if errors:
        # Doubts about a text that was not understood whole would only mislead.
        raise PolicyError(errors)
    return Compilation(policy, tuple(trees), tuple(diagnostics))


def compile_text(text: PolicyText, *, resolve: Resolve | None = resolve_host) -> Compilation:
    """Compile what a policy file or the command line gave. Raises PolicyError with every error."""
    return compile_sources(text.sources, root=text.root, resolve=resolve)


def compile_policy(
    text: str | Source | Sequence[Source],
    *,
    root: str | os.PathLike[str] | None = None,
    resolve: Resolve | None = resolve_host,
    follow: Follow | None = os.path.realpath,
) -> Policy:
    """
    Compile policy text to its IR; `compile_sources` also returns the trees and the warnings.

    Raises: PolicyError with every error of the text.

    >>> policy = compile_policy('rule r: kill exec "git" "push" if AGENT')
    >>> policy.labels, policy.seed, [pattern.text for pattern in policy.patterns]
    (('AGENT',), 0, ['git', 'push'])
    """
    if isinstance(text, str):
        text = Source("policy", text)
    sources = [text] if isinstance(text, Source) else text
    return compile_sources(sources, root=root, resolve=resolve, follow=follow).policy


def require_seed(policy: Policy) -> int:
    """
    Return the label that a session's first process gets.

    Raises: PolicyError if the policy names neither COMMAND nor AGENT: it says nothing about a session.
    """
    if policy.seed is None:
        span = policy.rules[0].span if policy.rules else None
        raise PolicyError.at(
            span,
            "the policy names neither COMMAND nor AGENT, so it says nothing about the command that is run",
            "the first process of a session gets the label COMMAND (or AGENT): write `if COMMAND` in a clause",
        )
    return policy.seed
