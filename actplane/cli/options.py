"""Options that several commands have, and finding the policy they name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actplane.codegen.tier import Tier
    from actplane.dsl.texts import PolicyText

POLICY_OPTIONS = ("--policy", "--rule", "--domain")


def add_policy_options(parser: argparse.ArgumentParser, *, is_before_command: bool = False) -> None:
    """Add the options that say which policy is meant. Both sides of the command have them: see `merge`."""
    group = parser.add_argument_group("which policy (default: actplane.yaml here or in a folder above)")
    prefix = _BEFORE if is_before_command else ""
    for option, metavar, text in (
        ("policy", "FILE", "a policy file"),
        ("rule", "DSL", "policy text itself"),
        ("domain", "NAME", "a domain of the policy file"),
    ):
        group.add_argument(f"--{option}", metavar=metavar, dest=prefix + option, help=text)


_BEFORE = "before_"


def merge(options: argparse.Namespace) -> str | None:
    """Make one of the options before and after the command; return what is contradictory about them, if anything."""
    for option in ("policy", "rule", "domain"):
        before = getattr(options, _BEFORE + option)
        after = getattr(options, option, None)
        if before is not None and after is not None:
            return f"--{option} is given before the command and after it: expected it once"
        setattr(options, option, after if before is None else before)
    if options.rule is not None and options.policy is not None:
        return "--rule and --policy both name a policy: expected one of them"
    if options.rule is not None and options.domain is not None:
        return "--domain names a domain of a policy file: expected no --rule beside it"
    return None


def policy_of(options: argparse.Namespace) -> PolicyText:
    """
    Return the texts of the policy that the options name, or of the nearest policy file.

    Raises: PolicyError if there is none, or it cannot be read.
    """
    if options.rule is not None:
        # Without the YAML reader, which text on the command line does not need.
        from actplane.dsl.texts import inline_policy

        return inline_policy(options.rule)
    from actplane.dsl.files import load_policy_file

    return load_policy_file(policy_path_of(options), options.domain)


def policy_path_of(options: argparse.Namespace) -> Path:
    """
    Return the policy file that --policy names, or the nearest one.

    Raises: PolicyError if there is none.
    """
    from actplane.dsl.texts import FILE_NAMES, find_policy_file
    from actplane.errors import PolicyError

    if options.policy is not None:
        return Path(options.policy)
    found = find_policy_file(os.getcwd())
    if found is None:
        raise PolicyError.at(
            None,
            f"no policy: expected {' or '.join(FILE_NAMES)} in {os.getcwd()} or a folder above",
            "`actplane init` writes one; --policy FILE or --rule DSL names one",
        )
    return found


def add_tier_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--tier", choices=("lsm", "fmod_ret", "trace"), help=what)


def tier_of(options: argparse.Namespace) -> Tier | None:
    """Return the tier that was asked for, or None."""
    from actplane.codegen.tier import Tier

    return None if options.tier is None else Tier(options.tier)
