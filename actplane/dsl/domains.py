"""Domains of a catalogue: which rules each of them binds, inherits and disables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from actplane.dsl.documents import listing, nearest
from actplane.source import Diagnostic, Span

FALLBACK_DOMAIN = "session"
"""The domain that is meant where none is named."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A rule of the catalogue that a domain binds. A locked one holds in every child as well."""

    rule: str
    is_locked: bool
    span: Span


@dataclass(frozen=True, slots=True)
class DomainDeclaration:
    """A domain as it is written."""

    name: str
    parent: str | None
    parent_span: Span
    bindings: tuple[Binding, ...]
    disabled: tuple[tuple[str, Span], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as it is meant: the rules in force, each list in alphabetical order."""

    name: str
    parent: str | None
    locked: tuple[str, ...]
    default: tuple[str, ...]
    disabled: tuple[str, ...]

    @property
    def rules(self) -> tuple[str, ...]:
        return self.locked + self.default


def check_domains(domains: Mapping[str, DomainDeclaration], rules: Mapping[str, object]) -> Iterator[Diagnostic]:
    """Yield what is wrong with the domains of a catalogue."""
    for domain in domains.values():
        for binding in domain.bindings:
            if binding.rule not in rules:
                message = f"domain '{domain.name}' binds an unknown rule '{binding.rule}': expected {listing(rules)}"
                yield Diagnostic(binding.span, message, nearest(binding.rule, rules))
        if domain.parent is not None and domain.parent not in domains:
            message = f"domain '{domain.name}' has an unknown parent '{domain.parent}': expected {listing(domains)}"
            yield Diagnostic(domain.parent_span, message, nearest(domain.parent, domains))
        cycle = _cycle(domain, domains)
        if cycle:
            yield Diagnostic(domain.parent_span, f"domain '{domain.name}' is its own ancestor: {' -> '.join(cycle)}")
        elif domain.disabled:
            yield from _check_disabled(domain, domains)


def _check_disabled(domain: DomainDeclaration, domains: Mapping[str, DomainDeclaration]) -> Iterator[Diagnostic]:
    parent = domains.get(domain.parent) if domain.parent is not None else None
    if parent is None and domain.parent is not None:
        return
    inherited = resolve_domain(parent, domains) if parent is not None else None
    for rule, span in domain.disabled:
        if inherited is not None and rule in inherited.locked:
            message = f"domain '{domain.name}' cannot disable '{rule}': it is locked by '{domain.parent}'"
            yield Diagnostic(span, message, "a locked rule holds in every child domain")
        elif inherited is None or rule not in inherited.default:
            names = inherited.default if inherited is not None else ()
            expected = f"expected {listing(names)}" if names else "it inherits none"
            message = f"domain '{domain.name}' cannot disable '{rule}': it is no inherited default; {expected}"
            yield Diagnostic(span, message, nearest(rule, names))


def _cycle(domain: DomainDeclaration, domains: Mapping[str, DomainDeclaration]) -> list[str]:
    """Return the way from a domain over its parents back to itself, or nothing."""
    path = [domain.name]
    while True:
        parent = domains[path[-1]].parent
        if parent is None or parent not in domains:
            return []
        if parent == domain.name:
            return [*path, parent]
        if parent in path:
            return []
        path.append(parent)


def resolve_domain(domain: DomainDeclaration, domains: Mapping[str, DomainDeclaration]) -> Domain:
    """
    Return the rules in force in a domain.

    locked(D) = locked(parent) + own locked; default(D) = default(parent) - disabled + own default.
    What is locked stays locked however a child binds it. An unknown parent or a cycle ends the
    chain: `check_domains` reports those.
    """
    chain = [domain]
    while (parent := domains.get(chain[-1].parent or "")) is not None and parent not in chain:
        chain.append(parent)
    locked: set[str] = set()
    default: set[str] = set()
    for each in reversed(chain):
        default -= {rule for rule, _ in each.disabled}
        locked |= {binding.rule for binding in each.bindings if binding.is_locked}
        default |= {binding.rule for binding in each.bindings if not binding.is_locked}
        default -= locked
    return Domain(
        domain.name,
        domain.parent,
        tuple(sorted(locked)),
        tuple(sorted(default)),
        tuple(sorted(rule for rule, _ in domain.disabled)),
    )
