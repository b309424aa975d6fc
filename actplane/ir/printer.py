"""
The policy IR as text and as JSON.

One line for each thing; labels, patterns, invalidators, gates, lineages, rules and clauses are
called L0, P0, I0, G0, N0, R0 and C0 by their index. The same policy always prints the same.
"""

from __future__ import annotations

import itertools
from typing import Any

from actplane.ir.policy import (
    ALWAYS,
    After,
    Clause,
    Condition,
    ExitTest,
    Gate,
    LabelTest,
    LineageIncludes,
    Policy,
    TargetIs,
)
from actplane.ir.regex import ANY_MASK, Chars, Concat, Regex, Union

_SPECIAL = frozenset(rb"\.^$*+?{}[]|()")
_SPECIAL_IN_CLASS = frozenset(rb"\^[]-&~|")
_FIRST_PRINTABLE, _LAST_PRINTABLE = 0x21, 0x7E


def print_policy(policy: Policy) -> str:
    """Return the canonical text of a policy, one line for each thing in it."""
    lines: list[str] = []
    for index, name in enumerate(policy.labels):
        lines.append(f"label L{index} {name}" + (" seed" if index == policy.seed else ""))
    for index, pattern in enumerate(policy.patterns):
        lines.append(f"pattern P{index} {pattern.kind.value} {_quoted(pattern.text)} = {print_regex(pattern.regex)}")
    for source in policy.sources:
        lines.append(f"source L{source.label} = {source.kind.value} P{source.pattern}")
    for transform in policy.transforms:
        verb = "declassify" if transform.is_declassify else "endorse"
        lines.append(f"{verb} L{transform.label} by exec P{transform.pattern}")
    for index, invalidator in enumerate(policy.invalidators):
        lines.append(f"invalidator I{index} {invalidator.operation.value} P{invalidator.pattern}")
    for index, gate in enumerate(policy.gates):
        lines.append(f"gate G{index} {_gate(gate)}")
    for index, lineage in enumerate(policy.lineages):
        lines.append(f"lineage N{index} exec P{lineage}")
    for index, rule in enumerate(policy.rules):
        because = f" because {_quoted(rule.because)}" if rule.because else ""
        instead = f" instead {_quoted(rule.instead)}" if rule.instead else ""
        lines.append(f"rule R{index} {rule.name}{because}{instead}")
    for index, clause in enumerate(policy.clauses):
        lines.append(f"clause C{index} R{clause.rule} {_clause(clause)}")
    return "".join(line + "\n" for line in lines)


def print_regex(regex: Regex) -> str:
    r"""
    Return a regular language in the syntax of Python's `re` over bytes.

    `.` is every byte but NUL. `(?!)` is the empty language.

    >>> from actplane.ir.regex import ANYTHING, literal
    >>> print_regex(Concat((literal(b"/a.b/"), ANYTHING)))
    '/a\\.b/.*'
    """
    if isinstance(regex, Chars):
        return _chars(regex.mask)
    if isinstance(regex, Concat):
        return "".join(_repeated(part, len(list(run))) for part, run in itertools.groupby(regex.parts))
    if isinstance(regex, Union):
        return _option(regex)
    body = print_regex(regex.body)
    return f"{body}*" if isinstance(regex.body, Chars) else f"(?:{body})*"


def _repeated(part: Regex, count: int) -> str:
    """Return a part so many times over; runs of a set of bytes are counted, all others written out."""
    text = print_regex(part)
    is_set = isinstance(part, Chars) and part.mask.bit_count() > 1
    return f"{text}{{{count}}}" if is_set and count > 1 else text * count


def _option(union: Union) -> str:
    return f"(?:{'|'.join(print_regex(option) for option in union.options)})" if union.options else "(?!)"


def _chars(mask: int) -> str:
    mask &= ANY_MASK
    if mask == ANY_MASK:
        return "."
    if not mask:
        return "(?!)"
    if mask.bit_count() == 1:
        return _byte(mask.bit_length() - 1, _SPECIAL)
    # What leaves out few bytes reads better as what it leaves out; NUL is never in it.
    missing = ANY_MASK & ~mask
    if missing.bit_count() < mask.bit_count():
        return f"[^{_members(missing)}]"
    return f"[{_members(mask)}]"


def _members(mask: int) -> str:
    text = ""
    byte = 0
    while mask >> byte:
        if not mask >> byte & 1:
            byte += 1
            continue
        last = byte
        while mask >> (last + 1) & 1:
            last += 1
        text += _byte(byte, _SPECIAL_IN_CLASS)
        if last > byte:
            text += ("-" if last > byte + 1 else "") + _byte(last, _SPECIAL_IN_CLASS)
        byte = last + 1
    return text


def _byte(byte: int, special: frozenset[int]) -> str:
    if byte in special:
        return "\\" + chr(byte)
    return chr(byte) if _FIRST_PRINTABLE <= byte <= _LAST_PRINTABLE else f"\\x{byte:02x}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in escaped) + '"'


def _gate(gate: Gate) -> str:
    since = "".join(f" I{index}" for index in gate.since)
    return f"exec P{gate.pattern}{_exits(gate.exits)}" + (f" since{since}" if since else "")


def _exits(test: ExitTest | None) -> str:
    if test is None:
        return ""
    if test.status is None:
        return " exits nonzero"
    return f" exits {'not ' if test.is_negated else ''}{test.status}"


def _clause(clause: Clause) -> str:
    argument = "" if clause.argument is None else f" argument P{clause.argument}"
    when = "" if clause.when == (ALWAYS,) else " if " + " or ".join(map(_test, clause.when))
    unless = "" if clause.unless is None else f" unless {_condition(clause.unless)}"
    return f"{clause.effect.value} {clause.operation.value} P{clause.pattern}{argument}{when}{unless}"


def _test(test: LabelTest) -> str:
    if test == ALWAYS:
        return "true"
    names = [f"L{label}" for label in sorted(test.required)] + [f"not L{label}" for label in sorted(test.forbidden)]
    return " and ".join(names)


def _condition(condition: Condition) -> str:
    if isinstance(condition, TargetIs):
        return f"target {'not ' if condition.is_negated else ''}P{condition.pattern}"
    if isinstance(condition, LineageIncludes):
        return f"lineage N{condition.lineage}"
    return f"after G{condition.gate}"


# -- JSON -----------------------------------------------------------------------------------------


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """Return a policy as plain lists and dictionaries; lists are in the order of the indexes."""
    return {
        "labels": list(policy.labels),
        "seed": policy.seed,
        "patterns": [
            {"kind": pattern.kind.value, "text": pattern.text, "regex": print_regex(pattern.regex)}
            for pattern in policy.patterns
        ],
        "sources": [
            {"label": source.label, "kind": source.kind.value, "pattern": source.pattern} for source in policy.sources
        ],
        "transforms": [
            {"label": item.label, "is_declassify": item.is_declassify, "pattern": item.pattern}
            for item in policy.transforms
        ],
        "invalidators": [{"operation": item.operation.value, "pattern": item.pattern} for item in policy.invalidators],
        "gates": [
            {"pattern": gate.pattern, "exits": _exit_json(gate.exits), "since": list(gate.since)}
            for gate in policy.gates
        ],
        "lineages": list(policy.lineages),
        "rules": [{"name": rule.name, "because": rule.because, "instead": rule.instead} for rule in policy.rules],
        "clauses": [_clause_json(clause) for clause in policy.clauses],
    }


def _exit_json(test: ExitTest | None) -> dict[str, Any] | None:
    return None if test is None else {"status": test.status, "is_negated": test.is_negated}


def _clause_json(clause: Clause) -> dict[str, Any]:
    return {
        "rule": clause.rule,
        "effect": clause.effect.value,
        "operation": clause.operation.value,
        "kind": clause.kind.value,
        "pattern": clause.pattern,
        "argument": clause.argument,
        "when": [{"required": sorted(test.required), "forbidden": sorted(test.forbidden)} for test in clause.when],
        "unless": None if clause.unless is None else _condition_json(clause.unless),
        "line": clause.span.line,
        "column": clause.span.column,
        "text": clause.text,
    }


def _condition_json(condition: Condition) -> dict[str, Any]:
    if isinstance(condition, TargetIs):
        return {"target": condition.pattern, "is_negated": condition.is_negated}
    if isinstance(condition, After):
        return {"after": condition.gate}
    return {"lineage": condition.lineage}
