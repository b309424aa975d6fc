"""`actplane fmt`: a policy in its one canonical form."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from actplane.cli.exits import Exit
from actplane.cli.options import add_policy_options, policy_path_of
from actplane.errors import ActplaneError


def add_parser(subparsers: Any, description: str) -> None:
    parser = subparsers.add_parser(
        "fmt",
        help=description,
        description="Print a policy in its one canonical form. Of a file, only literal blocks (`|`) are changed.",
        epilog="Exit status: with --check, 1 if the policy is not in canonical form.",
        allow_abbrev=False,
    )
    add_policy_options(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write the result into the policy file")
    what.add_argument(
        "--check", action="store_true", help="print nothing; say by the exit status whether it would change"
    )
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    if options.rule is not None:
        from actplane.dsl.formatter import format_policy
        from actplane.dsl.texts import inline_policy

        if options.write:
            raise ActplaneError("--write needs a file: expected no --rule beside it")
        return _finish(options, options.rule, format_policy(inline_policy(options.rule).sources[0]))
    from actplane.dsl.files import read_policy_file
    from actplane.dsl.formatter import format_file

    file = read_policy_file(policy_path_of(options))
    before, after = file.path.read_text(encoding="utf-8-sig"), format_file(file)
    if options.write and after != before:
        try:
            file.path.write_text(after, encoding="utf-8")
        except OSError as error:
            raise ActplaneError(f"{file.path}: cannot be written: {error.strerror}") from error
    return _finish(options, before, after)


def _finish(options: argparse.Namespace, before: str, after: str) -> int:
    if options.check:
        return Exit.OK if before == after else Exit.FAILED
    if not options.write:
        sys.stdout.write(after)
    return Exit.OK
