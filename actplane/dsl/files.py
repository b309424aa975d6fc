"""
Policy files: what may stand in them, and which rules a domain takes from them.

A file is either a single policy (`policy:`) or a catalogue (`rules:` and `domains:`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actplane.dsl.documents import Document, is_null, listing, nearest
from actplane.dsl.domains import FALLBACK_DOMAIN, Binding, Domain, DomainDeclaration, check_domains, resolve_domain
from actplane.dsl.texts import PolicyText
from actplane.errors import PolicyError
from actplane.source import Source, Span

VERSION = 1

_FIELDS = ("version", "policy", "rules", "domains", "default_domain", "feedback")
_CATALOGUE_FIELDS = ("rules", "domains", "default_domain")
_BODY_FIELDS = ("ifc", "policy")


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy file as it is written. `policy` is None for a catalogue."""

    path: Path
    root: Path
    policy: Source | None
    rules: Mapping[str, Source]
    domains: Mapping[str, DomainDeclaration]
    default_domain: str | None
    domains_span: Span | None
    feedback: Path | None

    def resolved_domains(self) -> list[Domain]:
        """Return every domain with the rules in force in it, in the order of the file."""
        return [resolve_domain(domain, self.domains) for domain in self.domains.values()]

    def selected_domain(self, name: str | None = None) -> str:
        """
        Return the domain that is meant.

        It is the one asked for, else `default_domain`, else `session` if it exists, else the only one.
        Raises: PolicyError for an unknown one, or where the choice is ambiguous.
        """
        if name is not None and name not in self.domains:
            message = f"{self.path}: unknown domain '{name}': expected {listing(self.domains)}"
            raise PolicyError.at(None, message, nearest(name, self.domains))
        for choice in (name, self.default_domain, FALLBACK_DOMAIN):
            if choice in self.domains:
                return str(choice)
        if len(self.domains) == 1:
            return next(iter(self.domains))
        raise PolicyError.at(
            self.domains_span,
            f"several domains and none is the default: expected {listing(self.domains)}",
            "name one with --domain, or write `default_domain: NAME`",
        )

    def select(self, domain: str | None = None) -> PolicyText:
        """
        Return the policy of a domain, or the single policy of the file.

        Raises: PolicyError for an unknown or ambiguous domain, one without rules, or a domain asked
        of a file that has none.
        """
        if self.policy is not None:
            if domain is not None:
                raise PolicyError.at(None, f"{self.path}: no domain '{domain}': the file is a single policy")
            return PolicyText((self.policy,), self.root, self.path, None, self.feedback)
        name = self.selected_domain(domain)
        resolved = resolve_domain(self.domains[name], self.domains)
        if not resolved.rules:
            raise PolicyError.at(self.domains[name].span, f"domain '{name}' has no rules", "bind one, or name a parent")
        sources = tuple(self.rules[rule] for rule in resolved.rules)
        return PolicyText(sources, self.root, self.path, resolved, self.feedback)


def load_policy_file(path: str | os.PathLike[str], domain: str | None = None) -> PolicyText:
    """
    Return the policy of a file: the single one, or that of a domain.

    Raises: PolicyError with every problem of the file, or if it cannot be read.
    """
    return read_policy_file(path).select(domain)


def read_policy_file(path: str | os.PathLike[str]) -> PolicyFile:
    """
    Read a policy file, of either form, with all its domains.

    Raises: PolicyError with every problem of the file, or if it cannot be read.
    """
    place = Path(path)
    if place.suffix == ".dsl":
        raise PolicyError.at(None, f"{place}: bare policy text: expected YAML", "put the text under `policy: |`")
    document = Document(Source(str(place), _read(place)))
    if document.root is None or is_null(document.root):
        raise PolicyError.at(None, f"{place}: an empty file: expected `policy:`, or `rules:` and `domains:`")
    file = _Reader(document, place).file()
    document.raise_problems()
    return file


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PolicyError.at(None, f"{path}: cannot read the policy file: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PolicyError.at(
            None, f"{path}:{line}: not UTF-8: byte {error.object[error.start]:#04x}", "save the file as UTF-8"
        ) from None


def _root(path: Path) -> Path:
    """Return the folder relative patterns start from: the project's, also for `.actplane/policy.yaml`."""
    folder = Path(os.path.realpath(path.parent))
    return folder.parent if folder.name == ".actplane" else folder


class _Reader:
    """The schema of a policy file."""

    def __init__(self, document: Document, path: Path) -> None:
        self.document = document
        self.path = path

    def file(self) -> PolicyFile:
        document, root = self.document, _root(self.path)
        fields = document.fields(document.root, "policy file", _FIELDS)
        self.version(fields)
        catalogue = [name for name in _CATALOGUE_FIELDS if name in fields]
        policy = None
        if "policy" in fields:
            if catalogue:
                document.error(
                    fields[catalogue[0]],
                    f"'{catalogue[0]}' beside 'policy': a file is a single policy or a catalogue",
                    "move the policy under `rules:`, or remove the domains",
                )
            policy = self.body(fields["policy"], "policy")
        elif "rules" not in fields or "domains" not in fields:
            missing = [f"'{name}'" for name in ("rules", "domains") if name not in fields]
            message = f"policy file: no {' and no '.join(missing)}: expected 'policy', or 'rules' and 'domains'"
            document.error(document.root, message)
        rules = self.rules(fields.get("rules"))
        domains = self.domains(fields.get("domains"))
        document.problems.extend(check_domains(domains, rules))
        return PolicyFile(
            path=self.path,
            root=root,
            policy=policy,
            rules=rules,
            domains=domains,
            default_domain=self.default_domain(fields.get("default_domain"), domains),
            domains_span=document.span(fields["domains"]) if "domains" in fields else None,
            feedback=self.feedback(fields.get("feedback"), root),
        )

    def version(self, fields: Mapping[str, Any]) -> None:
        if "version" in fields:
            version = self.document.integer(fields["version"], "version")
            if version is not None and version != VERSION:
                self.document.error(fields["version"], f"unknown version {version}: expected {VERSION}")

    def body(self, node: Any, what: str) -> Source:
        source = self.document.text(node, what)
        if source is None:
            return Source(str(self.path), "")
        if not source.text.strip():
            self.document.error(node, f"{what}: empty: expected declarations")
        return source

    def rules(self, node: Any) -> dict[str, Source]:
        found: dict[str, Source] = {}
        if node is None:
            return found
        problems = len(self.document.problems)
        entries = self.document.entries(node, "rules")
        if not entries and len(self.document.problems) == problems:
            self.document.error(node, "rules: empty: expected `NAME: {ifc: TEXT}`")
        for name, (key, value) in entries.items():
            what = f"rule '{name}'"
            problems = len(self.document.problems)
            bodies = self.document.fields(value, what, _BODY_FIELDS)
            if len(bodies) == 2:
                self.document.error(key, f"{what} has both 'ifc' and 'policy': expected one of them")
            elif not bodies and len(self.document.problems) == problems:
                self.document.error(key, f"{what} has no text: expected 'ifc' or 'policy'")
            found[name] = self.body(next(iter(bodies.values())), what) if bodies else Source(str(self.path), "")
        return found

    def domains(self, node: Any) -> dict[str, DomainDeclaration]:
        found: dict[str, DomainDeclaration] = {}
        if node is None:
            return found
        problems = len(self.document.problems)
        entries = self.document.entries(node, "domains")
        if not entries and len(self.document.problems) == problems:
            self.document.error(node, "domains: empty: expected `NAME: {bind: [...]}`")
        for name, (key, value) in entries.items():
            found[name] = self.domain(name, key, value)
        return found

    def domain(self, name: str, key: Any, node: Any) -> DomainDeclaration:
        what = f"domain '{name}'"
        fields = self.document.fields(node, what, ("parent", "bind", "disable"))
        span = self.document.span(key)
        parent = fields.get("parent")
        has_parent = parent is not None and not is_null(parent)
        bindings = (self.binding(item, what) for item in self.document.items(fields.get("bind"), f"{what}: bind"))
        disabled = self.document.items(fields.get("disable"), f"{what}: disable")
        return DomainDeclaration(
            name=name,
            parent=self.document.name(parent, f"{what}: parent") if has_parent else None,
            parent_span=self.document.span(parent) if has_parent else span,
            bindings=tuple(binding for binding in bindings if binding is not None),
            disabled=tuple(
                (self.document.name(item, f"{what}: disable"), self.document.span(item)) for item in disabled
            ),
            span=span,
        )

    def binding(self, node: Any, what: str) -> Binding | None:
        problems = len(self.document.problems)
        fields = self.document.fields(node, f"{what}: bind", ("rule", "mode"))
        missing = [name for name in ("rule", "mode") if name not in fields]
        if missing and len(self.document.problems) == problems:
            self.document.error(node, f"{what}: bind: no '{missing[0]}': expected {{rule: NAME, mode: locked|default}}")
        if missing:
            return None
        mode = self.document.name(fields["mode"], f"{what}: mode")
        if mode not in ("locked", "default"):
            message = f"{what}: unknown mode '{mode}': expected locked or default"
            self.document.error(fields["mode"], message, nearest(mode, ("locked", "default")))
        rule = self.document.name(fields["rule"], f"{what}: rule")
        return Binding(rule, mode == "locked", self.document.span(fields["rule"]))

    def default_domain(self, node: Any, domains: Mapping[str, DomainDeclaration]) -> str | None:
        if node is None or is_null(node):
            return None
        name = self.document.name(node, "default_domain")
        if name and name not in domains:
            message = f"default_domain: unknown domain '{name}': expected {listing(domains)}"
            self.document.error(node, message, nearest(name, domains))
        return name

    def feedback(self, node: Any, root: Path) -> Path | None:
        if node is None:
            return None
        fields = self.document.fields(node, "feedback", ("path",))
        if "path" not in fields:
            return None
        return root / self.document.name(fields["path"], "feedback: path")
