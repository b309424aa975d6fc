"""`actplane check`: what each rule means, on which tier, and what is wrong or doubtful about it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actplane.cli.exits import Exit
from actplane.cli.options import add_policy_options, add_tier_option, policy_of, tier_of
from actplane.errors import ActplaneError, PolicyError
from actplane.source import Diagnostic, Severity, render_all

if TYPE_CHECKING:
    from actplane.codegen.tier import Tier, Weakening
    from actplane.dsl import Compilation
    from actplane.dsl.texts import PolicyText


def add_parser(subparsers: Any, description: str) -> None:
    parser = subparsers.add_parser(
        "check",
        help=description,
        description="Say each rule of a policy in a plain sentence, its tier on this kernel, and what is wrong.",
        epilog="Exit status: 1 if the policy has errors, else 0; warnings alone do not count.",
        allow_abbrev=False,
    )
    add_policy_options(parser)
    add_tier_option(parser, "check for this tier (default: the best one of this kernel; lsm if that cannot be told)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    from actplane.codegen.compile import weaknesses
    from actplane.dsl import compile_sources

    try:
        text = policy_of(options)
        compilation = compile_sources(text.sources, root=text.root)
    except PolicyError as error:
        if options.json:
            print(json.dumps({"ok": False, "diagnostics": diagnostics_json(error.diagnostics)}))
        else:
            count = len(error.diagnostics)
            print(error, file=sys.stderr)
            print(f"actplane: {count} error{'s' if count > 1 else ''}", file=sys.stderr)
        return Exit.FAILED
    tier, why, sees_connect = _tier(options)
    weak = weaknesses(compilation.policy, tier, sees_connect=sees_connect)
    checked = _Checked(text, compilation, tier, why, weak)
    if options.json:
        print(json.dumps(_as_json(checked)))
    else:
        _print(checked)
    return Exit.OK


@dataclass(frozen=True)
class _Checked:
    """A policy without errors, the tier it was checked for, and what that tier cannot enforce of it."""

    text: PolicyText
    compilation: Compilation
    tier: Tier
    why: str
    weak: Sequence[Weakening]


def _tier(options: argparse.Namespace) -> tuple[Tier, str, bool]:
    """Return the tier to check for, why that one, and whether it can judge connections."""
    from actplane.codegen.tier import Tier
    from actplane.loader.features import Features
    from actplane.runtime import tiers
    from actplane.runtime.privileges import require_privileges

    wanted = tier_of(options)
    if wanted is not None:
        return wanted, "as asked for", True
    try:
        require_privileges()
        features = Features()
        tier = tiers.choose(features)
        return tier, "the best that this kernel offers", tiers.sees_connect(tier, features)
    except ActplaneError as error:
        return Tier.LSM, "this kernel's tier is unknown: " + str(error).partition("\n")[0], True


def _print(checked: _Checked) -> None:
    text, policy, tier = checked.text, checked.compilation.policy, checked.tier
    name = text.path if text.path is not None else "--rule"
    domain = f", domain {text.domain.name}" if text.domain is not None else ""
    print(f"{name}{domain}: {_count(len(policy.rules), 'rule')}, {_count(len(policy.clauses), 'clause')}; no errors")
    print(f"tier {tier.value}: {checked.why}")
    sentences = _sentences(checked)
    outside = [sentence for sentence in sentences if not sentence["rule"]]
    if outside:
        print("\nlabels")
        for sentence in outside:
            print(f"  {sentence['text']}")
    for rule in policy.rules:
        print(f"\nrule {rule.name}")
        for sentence in sentences:
            if sentence["rule"] == rule.name:
                print(f"  {sentence['text']}")
                if sentence["weakness"]:
                    print(f"    ! on tier {tier.value}: {sentence['weakness']}")
        for word, words in (("because", rule.because), ("instead", rule.instead)):
            if words:
                print(f"  {word}: {' '.join(words.split())}")
    warnings = _warnings(checked)
    if warnings:
        print()
        print(render_all(warnings))
        print(f"\n{_count(len(warnings), 'warning')}")


def _sentences(checked: _Checked) -> list[dict[str, Any]]:
    from actplane.dsl.explain import explain

    at = {weakening.clause.span: weakening for weakening in checked.weak}
    found = []
    for sentence in explain(checked.compilation.policy):
        weakness = at.get(sentence.span)
        words = ""
        if weakness is not None:
            words = f"{weakness.problem}; in force: {weakness.in_force or 'nothing of it'}"
        found.append(
            {"rule": sentence.rule, "text": sentence.text, "where": str(sentence.span), "weakness": words or None}
        )
    return found


def _warnings(checked: _Checked) -> list[Diagnostic]:
    from actplane.dsl.lint import lint
    from actplane.dsl.tree_lint import lint_tree
    from actplane.runtime.tiers import diagnose

    compilation = checked.compilation
    found = [*compilation.warnings, *lint(compilation.policy, compilation.trees)]
    found += lint_tree(compilation.trees, checked.text.root)
    found += diagnose(checked.tier, checked.weak, Severity.WARNING)
    if compilation.policy.seed is None:
        found.append(
            Diagnostic(
                None,
                "the policy names neither COMMAND nor AGENT, so `actplane run` cannot use it",
                "the first process of a session gets the label COMMAND (or AGENT): write `if COMMAND` in a clause",
                Severity.WARNING,
            )
        )
    return found


def _as_json(checked: _Checked) -> dict[str, Any]:
    text = checked.text
    return {
        "ok": True,
        "path": str(text.path) if text.path is not None else None,
        "domain": text.domain.name if text.domain is not None else None,
        "tier": checked.tier.value,
        "tier_reason": checked.why,
        "rules": [
            {"name": rule.name, "because": rule.because, "instead": rule.instead, "where": str(rule.span)}
            for rule in checked.compilation.policy.rules
        ],
        "sentences": _sentences(checked),
        "diagnostics": diagnostics_json(_warnings(checked)),
    }


def diagnostics_json(diagnostics: Sequence[Diagnostic]) -> list[dict[str, Any]]:
    """Return diagnostics as plain data. Lines and columns count from 1."""
    return [
        {
            "severity": item.severity.value,
            "message": item.message,
            "hint": item.hint,
            "file": item.span.source.name if item.span else None,
            "line": item.span.line if item.span else None,
            "column": item.span.column if item.span else None,
            "text": item.span.text if item.span else None,
        }
        for item in diagnostics
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
