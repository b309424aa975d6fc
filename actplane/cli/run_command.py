"""`actplane run`: a command under a policy."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actplane.cli.exits import table
from actplane.cli.options import POLICY_OPTIONS, add_policy_options, add_tier_option, policy_of, tier_of

_VALUE_OPTIONS = (*POLICY_OPTIONS, "--tier", "--events", "--linger")
"""Options of `run` whose value is the next word."""

_EPILOG = f"""\
The command has the caller's standard streams, descriptors, terminal, process group and signals, and in its
environment besides:
  ACTPLANE_SESSION        names the session, as its events do
  ACTPLANE_TIER           lsm, fmod_ret or trace
  ACTPLANE_POLICY_FILE    the policy file, if there is one
  ACTPLANE_EVENTS_FILE    what --events names
  ACTPLANE_FEEDBACK_FILE  what `feedback: {{path: ...}}` of the policy file names

Started through sudo, the command runs as the user who called sudo. What it leaves running when it ends is
ended after --linger seconds, because no policy would be in force for it any more.

{table()}"""


def add_parser(subparsers: Any, description: str) -> None:
    parser = subparsers.add_parser(
        "run",
        help=description,
        description="Run a command under a policy.",
        usage="actplane run [OPTION...] [--] COMMAND [ARGUMENT...]",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_policy_options(parser)
    add_tier_option(parser, "use this tier (default: the best one that this kernel really offers)")
    parser.add_argument(
        "--allow-degraded", action="store_true", help="where the tier cannot do it, do less than written"
    )
    parser.add_argument("--events", metavar="FILE", type=Path, help="write events to FILE, one JSON object a line")
    parser.add_argument(
        "--linger", metavar="SECONDS", type=_seconds, default=1.0, help="how long what the command left may go on (1)"
    )
    parser.add_argument("--run-as-root", action="store_true", help="keep the command root even if sudo started this")
    parser.add_argument(
        "--no-mirror", action="store_true", help="load programs unverified by the mirror (for debugging)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="leave out the line that says what is in force")
    parser.set_defaults(handler=run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of seconds")
    return seconds


def split_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """
    Split what follows `run` into its options and the command. All from the first word that is
    neither an option nor an option's value is the command; a `--` before it is dropped.

    >>> split_command(["--rule", "x", "-q", "git", "--", "push"])
    (['--rule', 'x', '-q'], ['git', '--', 'push'])
    >>> split_command(["-q", "--", "--odd"])
    (['-q'], ['--odd'])
    """
    at = 0
    while at < len(words):
        if words[at] == "--":
            return list(words[:at]), list(words[at + 1 :])
        if not words[at].startswith("-"):
            break
        at += 2 if words[at] in _VALUE_OPTIONS else 1
    return list(words[:at]), list(words[at:])


def run(options: argparse.Namespace) -> int:
    from actplane.dsl import compile_sources
    from actplane.runtime.session import Plan
    from actplane.runtime.session import run as run_session

    text = policy_of(options)
    compilation = compile_sources(text.sources, root=text.root)
    if compilation.warnings and not options.quiet:
        count = len(compilation.warnings)
        print(
            f"actplane: {count} warning{'s' if count > 1 else ''} about the policy: see `actplane check`",
            file=sys.stderr,
        )
    plan = Plan(
        argv=options.argv,
        policy=compilation.policy,
        policy_path=text.path,
        feedback=text.feedback,
        events=options.events,
        tier=tier_of(options),
        allow_degraded=options.allow_degraded,
        use_mirror=not options.no_mirror,
        is_quiet=options.quiet,
        run_as_root=options.run_as_root,
        linger_seconds=options.linger,
    )
    ending = run_session(plan, os.environ)
    if ending.signal:
        end_by(ending.signal)
    return ending.status


def end_by(number: int) -> None:
    """
    End as the command did, by its signal. A shell then sees 128 + the signal, and a script that was
    interrupted stops: with a mere status it would think the command had dealt with the Ctrl-C.

    Returns only if the signal does not end a process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # It was the command that dumped core, if anybody did.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
