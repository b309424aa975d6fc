"""
The command line: arguments, exit statuses, rendering.

A command's module is imported when the command is given, and no other: `actplane run` is the one that
somebody waits for.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from actplane import __version__
from actplane.cli.exits import Exit, exit_of, table
from actplane.cli.options import POLICY_OPTIONS, add_policy_options, merge
from actplane.errors import ActplaneError, AssembleError, PolicyError

COMMANDS = {
    "run": "run a command under a policy",
    "check": "say what each rule of a policy means here, and what is wrong with it",
    "fmt": "print a policy in its one canonical form",
    "compile": "show what a policy becomes, stage by stage",
    "doctor": "say what this kernel really allows",
    "domains": "list the domains of a policy file",
    "verify": "say what a kernel's verifier would say of a program",
    "refusal": "say what a kernel's verifier did say, and what a refusal means",
    "init": "write a policy to start from",
}
"""Each is the module NAME_command with `add_parser(subparsers)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    try:
        options = parse(list(sys.argv[1:] if argv is None else argv))
        status: int = options.handler(options)
        sys.stdout.flush()
        return status
    except (PolicyError, AssembleError) as error:
        # Places come first on their lines, as editors and agents expect them.
        print(error, file=sys.stderr)
        return exit_of(error)
    except ActplaneError as error:
        print(f"actplane: {error}", file=sys.stderr)
        return exit_of(error)
    except BrokenPipeError:
        # Whoever read our output has stopped; the interpreter must not find that out once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILURE
    except KeyboardInterrupt:
        return 130
    except Exception:
        # A bug of ours. Its status must not be taken for the command's.
        traceback.print_exc()
        return Exit.FAILURE


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse a command line. Exits with status 2 where it makes no sense."""
    name, after = _command_in(argv)
    parser = argparse.ArgumentParser(
        prog="actplane",
        description="Kernel-enforced policies for AI agents.",
        epilog=table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"actplane {__version__}")
    add_policy_options(parser, is_before_command=True)
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for command, description in COMMANDS.items():
        if name in (command, None):
            importlib.import_module(f"actplane.cli.{command}_command").add_parser(subparsers, description)
    if name not in COMMANDS:
        for module, function in _FURTHER:
            getattr(importlib.import_module(f"actplane.cli.{module}"), function)(subparsers)
    if name == "run":
        from actplane.cli.run_command import split_command

        own, command_argv = split_command(argv[after:])
        options = parser.parse_args([*argv[:after], *own])
        options.argv = command_argv
        if not command_argv:
            parser.error("run: no command: expected `actplane run [OPTION...] -- COMMAND [ARGUMENT...]`")
    else:
        options = parser.parse_args(argv)
    contradiction = merge(options)
    if contradiction is not None:
        parser.error(contradiction)
    return options


_FURTHER = (("asm_commands", "add_parsers"),)
"""Modules with commands for whoever works on programs, and the function that adds their parsers."""


def _command_in(argv: Sequence[str]) -> tuple[str | None, int]:
    """
    Return the first word that is no option, and the index after it.

    >>> _command_in(["--rule", "run", "--policy=x", "check", "--json"])
    ('check', 4)
    """
    at = 0
    while at < len(argv):
        if argv[at] in POLICY_OPTIONS:
            at += 2
        elif argv[at].startswith("-"):
            at += 1
        else:
            return argv[at], at + 1
    return None, len(argv)
