"""`actplane domains`: what each domain of a policy file takes from it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from actplane.cli.exits import Exit
from actplane.cli.options import add_policy_options, policy_path_of
from actplane.errors import PolicyError


def add_parser(subparsers: Any, description: str) -> None:
    parser = subparsers.add_parser(
        "domains",
        help=description,
        description="List the domains of a policy file; the one that is used by default has a star.",
        allow_abbrev=False,
    )
    add_policy_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    from actplane.dsl.files import read_policy_file

    if options.rule is not None:
        raise PolicyError.at(None, "--rule: policy text has no domains", "domains stand in policy files")
    file = read_policy_file(policy_path_of(options))
    selected: str | None = None
    if file.policy is None:
        try:
            selected = file.selected_domain(options.domain)
        except PolicyError:
            if options.domain is not None:
                raise
    elif options.domain is not None:
        file.select(options.domain)
    domains = [
        {
            "name": domain.name,
            "selected": domain.name == selected,
            "parent": domain.parent,
            "disabled": list(domain.disabled),
            "locked": list(domain.locked),
            "default": list(domain.default),
        }
        for domain in file.resolved_domains()
    ]
    if options.json:
        print(json.dumps({"path": str(file.path), "selected": selected, "domains": domains}))
    elif file.policy is not None:
        print(f"{file.path} is a single policy: it has no domains.")
    else:
        print(f"Domains in {file.path}")
        for found in domains:
            print(f"\n{'*' if found['selected'] else ' '} {found['name']}")
            for key, words in (
                ("parent", "parent"),
                ("disabled", "disables"),
                ("locked", "locked"),
                ("default", "default"),
            ):
                value = found[key]
                if value:
                    print(f"    {words}: {', '.join(value) if isinstance(value, list) else value}")
        if selected is None:
            print("\nNone of them is the default: name one with --domain, or write `default_domain: NAME`.")
    return Exit.OK
