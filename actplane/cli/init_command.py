"""`actplane init`: a policy to start from, with its words explained."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from actplane.cli.exits import Exit
from actplane.errors import ActplaneError

FILE = Path("actplane.yaml")

STARTER = """\
# What an agent's processes may do, enforced by the kernel.
#
#   actplane check                       what each rule means, and what this kernel can enforce of it
#   actplane run -- COMMAND              run COMMAND under the default domain
#   actplane run --domain strict -- CMD  run it under another
#
# A rule is one or more clauses, a reason, and what to do instead:
#
#   EFFECT OPERATION PATTERN [ARGUMENT] [if LABELS] [unless CONDITION]
#
# EFFECT     notify: report it;  block: deny it;  kill: end the process
# OPERATION  exec | open file | read file | write file | unlink file | connect endpoint | recv endpoint
# PATTERN    a glob: "git" (a program's name), "src/**" (below this folder), "**/.env" (anywhere), "10.0.0.0/8:443"
# LABELS     AGENT is on the command and on all it starts; `source` puts others on whoever touches something
# CONDITION  target "..." | lineage-includes exec "..." | after exec "..." [exits 0] [since write "..."]

version: 1
default_domain: session

rules:
  no-push:
    policy: |
      rule no-push:
        kill exec "git" "push" if AGENT
        because "publishing is the reviewer's decision"
        instead "commit on a branch, say that it is ready, and stop"

  no-root:
    policy: |
      rule no-root:
        kill exec "{sudo,su,doas,pkexec}" if AGENT
        because "an agent works with its user's rights"
        instead "ask the user to run what needs root"

  tests-before-commit:
    policy: |
      rule tests-before-commit:
        kill exec "git" "commit" if AGENT unless after exec "{pytest,make,npm,cargo,go}" exits 0
        because "what is committed has been tested"
        instead "run the tests; commit when they pass"

  # The rules below look into files. They need a kernel on whose LSM or fmod_ret tier sessions run.

  no-leak:
    policy: |
      source SECRET = file "**/.env"
      source SECRET = file "**/secrets/**"

      # Whoever read a secret, or something written by somebody who had, stays off the network.
      rule no-leak:
        block connect endpoint "*" if AGENT and SECRET
        because "this process has seen a secret"
        instead "do the part that needs the network in a process that reads no secrets"

  no-hooks:
    policy: |
      rule no-hooks:
        block write file "{.git/hooks,.github}/**" if AGENT
        because "these files run with other people's rights"
        instead "propose the change in your report"

domains:
  session:
    bind:
      - {rule: no-push, mode: locked}
      - {rule: no-root, mode: locked}
      - {rule: tests-before-commit, mode: default}
  strict:
    parent: session
    bind:
      - {rule: no-leak, mode: locked}
      - {rule: no-hooks, mode: locked}
"""


def add_parser(subparsers: Any, description: str) -> None:
    parser = subparsers.add_parser(
        "init", help=description, description=f"Write {FILE}, a policy to start from.", allow_abbrev=False
    )
    parser.add_argument("-f", "--force", action="store_true", help=f"replace an {FILE} that is there")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    try:
        # "x" fails on whatever bears the name, a dangling link too.
        with FILE.open("w" if options.force else "x", encoding="utf-8") as file:
            file.write(STARTER)
    except FileExistsError:
        print(f"actplane: {FILE} is there already: kept (--force replaces it)", file=sys.stderr)
        return Exit.OK
    except OSError as error:
        raise ActplaneError(f"{FILE}: cannot be written: {error.strerror}") from error
    print(f"wrote {FILE}")
    print("next: actplane check          what it means here")
    print("      actplane doctor         what this kernel allows")
    print("      actplane run -- COMMAND")
    return Exit.OK
