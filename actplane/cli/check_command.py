"""`actplane check`: what each rule means, on which tier, and what is wrong or doubtful about it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actplane.cli.exits import Exit
from actplane.cli.options import add_policy_options, add_tier_option, policy_of, tier_of
from actplane.errors import ActplaneError, PolicyError
from actplane.source import Diagnostic, Severity, render_all

if TYPE_CHECKING:
    from actplane.codegen.tier import Tier
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
    tier, why = _tier(options)
    if options.json:
        print(json.dumps(_as_json(text, compilation, tier, why)))
    else:
        _print(text, compilation, tier, why)
    return Exit.OK


def _tier(options: argparse.Namespace) -> tuple[Tier, str]:
    """Return the tier to check for, and why if it is not this kernel's best."""
    from actplane.codegen.tier import Tier
    from actplane.loader.features import Features
    from actplane.runtime import tiers
    from actplane.runtime.privileges import require_privileges

    wanted = tier_of(options)
    if wanted is not None:
        return wanted, "as asked for"
    try:
        require_privileges()
        return tiers.choose(Features()), "the best that this kernel offers"
    except ActplaneError as error:
        return Tier.LSM, "this kernel's tier is unknown: " + str(error).partition("\n")[0]


def _print(text: PolicyText, compilation: Compilation, tier: Tier, why: str) -> None:
    policy = compilation.policy
    name = text.path if text.path is not None else "--rule"
    domain = f", domain {text.domain.name}" if text.domain is not None else ""
    print(f"{name}{domain}: {_count(len(policy.rules), 'rule')}, {_count(len(policy.clauses), 'clause')}; no errors")
    print(f"tier {tier.value}: {why}")
    sentences = _sentences(compilation, tier)
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
    warnings = _warnings(text, compilation, tier)
    if warnings:
        print()
        print(render_all(warnings))
        print(f"\n{_count(len(warnings), 'warning')}")


def _sentences(compilation: Compilation, tier: Tier) -> list[dict[str, Any]]:
    from actplane.codegen.compile import weaknesses
    from actplane.dsl.explain import explain

    weak = {weakening.clause.span: weakening for weakening in weaknesses(compilation.policy, tier)}
    found = []
    for sentence in explain(compilation.policy):
        weakness = weak.get(sentence.span)
        words = ""
        if weakness is not None:
            words = f"{weakness.problem}; in force: {weakness.in_force or 'nothing of it'}"
        found.append(
            {"rule": sentence.rule, "text": sentence.text, "where": str(sentence.span), "weakness": words or None}
        )
    return found


def _warnings(text: PolicyText, compilation: Compilation, tier: Tier) -> list[Diagnostic]:
    from actplane.codegen.compile import weaknesses
    from actplane.dsl.lint import lint
    from actplane.dsl.tree_lint import lint_tree
    from actplane.runtime.tiers import diagnose

    found = [*compilation.warnings, *lint(compilation.policy, compilation.trees)]
    found += lint_tree(compilation.trees, text.root)
    found += diagnose(tier, weaknesses(compilation.policy, tier), Severity.WARNING)
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


def _as_json(text: PolicyText, compilation: Compilation, tier: Tier, why: str) -> dict[str, Any]:
    return {
        "ok": True,
        "path": str(text.path) if text.path is not None else None,
        "domain": text.domain.name if text.domain is not None else None,
        "tier": tier.value,
        "tier_reason": why,
        "rules": [
            {"name": rule.name, "because": rule.because, "instead": rule.instead, "where": str(rule.span)}
            for rule in compilation.policy.rules
        ],
        "sentences": _sentences(compilation, tier),
        "diagnostics": diagnostics_json(_warnings(text, compilation, tier)),
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
