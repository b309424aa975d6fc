"""`actplane refusal`: what a kernel's verifier log says, and what a refusal id means."""

from __future__ import annotations

import argparse
import difflib
import json
import os
from typing import Any

from actplane.cli.asm_input import STDIN, InputError, read_input
from actplane.cli.exits import Exit
from actplane.errors import VerifyError
from actplane.verifier.kernel_log import KernelRefusal, parse_kernel_log
from actplane.verifier.pages import page_of
from actplane.verifier.tables.refusals import CATALOGUE


def add_parser(subparsers: Any, description: str) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "refusal",
        help=description,
        description="Say why a kernel refused a program, by its verifier log or a message of it; or show the page of a "
        "refusal, by its id: what it means, an example and its repair. Around the log may stand whatever a loader or "
        "logger prints.",
        epilog="Exit status: 0 if that is understood, 125 if not.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        nargs="?",
        default=STDIN,
        metavar="WHAT",
        help="a file with a log, an id, or a message (default: a log on stdin)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Explain an id, a log or a message."""
    if options.what in CATALOGUE:
        _show_page(options.what, options.json)
        return Exit.OK
    found = _found(options.what)
    print(json.dumps(_facts(found), indent=2) if options.json else _text(found))
    return Exit.OK


def _found(what: str) -> KernelRefusal:
    """Return what a file, standard input or the argument itself says. Raises InputError."""
    if what == STDIN or os.path.exists(what):
        data, name = read_input(what)
        found = parse_kernel_log(data.decode("utf-8", errors="replace"))
        if found is None:
            raise InputError(f"{name}: the log names no reason that is known: expected what a kernel's verifier says")
        return found
    found = parse_kernel_log(what)
    if found is None:
        near = difflib.get_close_matches(what, CATALOGUE, n=1)
        hint = f"\n    hint: did you mean {near[0]}?" if near else ""
        raise InputError(f"{what}: neither the id of a refusal, a file, nor a message that is known{hint}")
    return found


def _show_page(id_: str, is_json: bool) -> None:
    if not is_json:
        print(page_of(id_), end="")
        return
    reason = CATALOGUE[id_]
    print(json.dumps({"id": id_, "title": reason.title, "hint": reason.hint, "page": page_of(id_)}, indent=2))


def _text(found: KernelRefusal) -> str:
    said = VerifyError(found.slot, found.message, rule=found.id, insn_text=found.insn_text)
    lines = [str(said) + (f"     [{found.source}]" if found.source else "")]
    lines.append(f"    hint: {CATALOGUE[found.id].hint}")
    if found.suggestion:
        lines.append(f"    the kernel's: {found.suggestion}")
    lines.append(f"    more: actplane refusal {found.id}")
    return "\n".join(lines)


def _facts(found: KernelRefusal) -> dict[str, Any]:
    return {
        "id": found.id,
        "insn": found.slot,
        "insn_text": found.insn_text,
        "message": found.message,
        "source": found.source or None,
        "hint": CATALOGUE[found.id].hint,
        "suggestion": found.suggestion or None,
        "insns_processed": found.processed,
    }
