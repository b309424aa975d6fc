"""Policies in random words: what codegen is asked to compile beside the policies of the cases."""

from __future__ import annotations

import random

_PATHS = (
    "/etc/shadow",
    "**/*.pem",
    "/work/{src,lib}/**",
    "notes/**",
    "/a/?/[a-z]*",
    "**/{.env,secret*}",
    "/protected/**",
)
_TOOLS = ("git", "npm", "**/ci-shell", "/usr/bin/agent", "curl", "py*", "/opt/{a,b}/tool")
_WORDS = ("push", "--force", "install", "-f", "--upload-file", "x*")
_PLACES = ("*", "10.0.0.", "10.1.0.0/16:443", "*:80-443", "[2001:db8::1]:22", "unix:/run/*.sock", "127.0.0.0/8")
_FILE_OPS = ("open", "read", "write", "unlink")


def policy_text(rng: random.Random) -> str:
    """Return a policy of 1 to 40 rules; not each one compiles on each tier."""
    labels = ["AGENT", *(f"L{number}" for number in range(rng.randrange(0, 6)))]
    lines = ['source AGENT = exec "/usr/bin/agent"']
    for label in labels[1:]:
        kind = rng.choice(("file", "exec", "endpoint"))
        lines.append(f'source {label} = {kind} "{_target(rng, kind)}"')
    if rng.random() < 0.4:
        lines.append(f'declassify {rng.choice(labels)} by exec "{rng.choice(_TOOLS)}"')
    if rng.random() < 0.3:
        lines.append(f'endorse {rng.choice(labels)} by exec "{rng.choice(_TOOLS)}"')
    for number in range(rng.choice((1, 2, 3, 5, 8, 15, 40))):
        lines.append(f"rule r{number}:")
        lines += [f"  {_clause(rng, labels)}" for _ in range(rng.randrange(1, 4))]
        lines.append('  because "it is so"')
    return "\n".join(lines) + "\n"


def _target(rng: random.Random, kind: str) -> str:
    return rng.choice({"file": _PATHS, "exec": _TOOLS, "endpoint": _PLACES}[kind])


def _clause(rng: random.Random, labels: list[str]) -> str:
    effect = rng.choice(("block", "kill", "notify"))
    kind = rng.choice(("file", "file", "exec", "exec", "endpoint"))
    if kind == "exec":
        words = "".join(f' "{rng.choice(_WORDS)}"' for _ in range(rng.randrange(0, 2)))
        text = f'{effect} exec "{rng.choice(_TOOLS)}"{words}'
    else:
        operation = rng.choice(_FILE_OPS if kind == "file" else ("connect", "recv"))
        text = f'{effect} {operation} {kind} "{_target(rng, kind)}"'
    if rng.random() < 0.8:
        text += f" if {_expression(rng, labels)}"
    if rng.random() < 0.5:
        text += f" unless {_condition(rng, kind)}"
    return text


def _expression(rng: random.Random, labels: list[str]) -> str:
    parts = [rng.choice(("", "", "not ")) + rng.choice(labels) for _ in range(rng.randrange(1, 4))]
    return f" {rng.choice(('and', 'or'))} ".join(parts)


def _condition(rng: random.Random, kind: str) -> str:
    choice = rng.randrange(3)
    if choice == 0:
        return f'target {rng.choice(("", "not "))}"{_target(rng, kind)}"'
    if choice == 1:
        return f'lineage-includes exec "{rng.choice(_TOOLS)}"'
    exits = rng.choice(("", " exits 0", " exits nonzero"))
    since = rng.choice(("", f' since write "{rng.choice(_PATHS)}"', f' since exec "{rng.choice(_TOOLS)}"'))
    return f'after exec "{rng.choice(_TOOLS)}"{exits}{since}'
