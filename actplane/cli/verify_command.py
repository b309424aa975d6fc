"""`actplane verify`: ask the mirror what a kernel would say of a program."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import math
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from actplane.asm.program import Program
from actplane.asm.uapi import AttachType, ProgType
from actplane.cli.asm_input import InputError, add_program_argument, chosen_programs, parse_object, read_data
from actplane.cli.elf_input import link_for_kernel, own_types, types_for_kernel
from actplane.cli.exits import Exit
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.loader.btf_types import Kind
from actplane.loader.elf.file import is_elf
from actplane.loader.relocate import relocate
from actplane.runtime.host_profile import host_profile
from actplane.verifier import DEFAULT, PROFILES, KernelProfile, Options, Report, profile_of, verify
from actplane.verifier.sarif import sarif_log


def add_parser(subparsers: Any, description: str = "say what a kernel's verifier would say of a program") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "verify",
        help=description,
        description="Judge programs as a kernel's verifier would, without asking one: text, hex digits, bytes, or an "
        "ELF object of a compiler (needs pyelftools), whose CO-RE relocations are applied for the kernel of --btf.",
        epilog=f"Kernels by name: {', '.join(PROFILES)}, host, or any release string. "
        "Exit status: 0 if every program is accepted, 116 if one is refused, 2 if the arguments make no sense, 125 if "
        "the input cannot be read. The page of a refusal: `actplane refusal ID`.",
        allow_abbrev=False,
    )
    add_program_argument(parser, has_choice=False)
    parser.add_argument("--program", metavar="NAME", help="judge only this program of the file")
    parser.add_argument(
        "--kernel",
        default=DEFAULT.name,
        type=_release,
        metavar="VERSION",
        help=f"the kernel to judge for (default: {DEFAULT.name})",
    )
    parser.add_argument("--attach", metavar="NAME", help="the hook, tracepoint or function (file_open, ...)")
    parser.add_argument(
        "--attach-type", type=_attach_type, metavar="TYPE", help="as in BPF_CGROUP_INET4_CONNECT, with BPF_ or without"
    )
    parser.add_argument("--sleepable", action="store_true", help="the program may sleep")
    parser.add_argument(
        "--btf", metavar="FILE", help="the kernel's types, or a vmlinux (default: the running kernel's)"
    )
    parser.add_argument("--kconfig", metavar="FILE", help="the kernel's configuration (default: the running kernel's)")
    parser.add_argument("--unprivileged", action="store_true", help="judge as for a user without privileges")
    parser.add_argument(
        "--budget-insns", type=_positive(int), metavar="N", help="give up after N instructions on all paths"
    )
    parser.add_argument(
        "--budget-seconds", type=_positive(float), metavar="S", help="give up on a program after S seconds"
    )
    parser.add_argument("--log", action="store_true", help="print the state after every instruction (not in SARIF)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--sarif", action="store_true", help="print a SARIF 2.1.0 log")
    parser.set_defaults(handler=run)


def _release(text: str) -> str:
    """Return the name of a kernel, which may be `host`. Raises ArgumentTypeError if it names none."""
    if text != "host":
        try:
            profile_of(text)
        except ActplaneError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _attach_type(text: str) -> AttachType:
    """Return the attach type of a name. Raises ArgumentTypeError with the names that come near."""
    name = "BPF_" + text.upper().removeprefix("BPF_")
    if name not in AttachType.__members__:
        near = difflib.get_close_matches(name, AttachType.__members__, cutoff=0.7)
        raise argparse.ArgumentTypeError(
            f"no attach type {text!r}" + (f": expected {' or '.join(near)}" if near else "")
        )
    return AttachType[name]


_Number = TypeVar("_Number", int, float)


def _positive(kind: Callable[[str], _Number]) -> Callable[[str], _Number]:
    """Return what reads a number above 0. Raises ArgumentTypeError."""

    def read(text: str) -> _Number:
        with contextlib.suppress(ValueError):
            if 0 < (number := kind(text)) < math.inf:
                return number
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")

    return read


def run(options: argparse.Namespace) -> int:
    """Judge every program of the input and print the answers."""
    profile = host_profile() if options.kernel == "host" else profile_of(options.kernel)
    data, name = read_data(options)
    is_object = is_elf(data)
    if is_object:
        linked, btf = link_for_kernel(data, name, options, profile)
        found = linked.object
        own = {program.name: own_types(linked, program.name) for program in found.programs}
    else:
        found = parse_object(data, name, options)
        own = {}
    programs = [_completed(program, options) for program in chosen_programs(found, options.program)]
    needs_types = is_object or any(_needs_types(program) for program in programs)
    if not is_object:
        btf = types_for_kernel(options, is_needed=needs_types)
        programs = [relocate(program, btf) for program in programs] if btf is not None else programs
    judged = _mirror_options(options)
    reports = [
        _with_hint(
            verify(program, found.maps, btf, own=own.get(program.name), profile=profile, options=judged), program, btf
        )
        for program in programs
    ]
    _print(reports, name, options)
    kinds = {program.prog_type.name.removeprefix("BPF_PROG_TYPE_").lower() for program in programs}
    if options.type is not None and options.type not in kinds:
        print(f"actplane: the input says of what type it is: --type {options.type} is not used", file=sys.stderr)
    for note in _notes(reports, profile, is_of_host=needs_types and btf is not None and not options.btf):
        print(f"actplane: {note}", file=sys.stderr)
    return Exit.OK if all(report.is_accepted for report in reports) else Exit.MIRROR_REFUSED


def _print(reports: list[Report], name: str, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps([report.as_json() for report in reports], indent=2))
    elif options.sarif:
        print(json.dumps(sarif_log(reports, name), indent=2))
    else:
        for report in reports:
            for line in report.log:
                print(line)
            print(report)


def _notes(reports: list[Report], profile: KernelProfile, *, is_of_host: bool) -> Iterator[str]:
    """Yield what whoever relies on the answers should know of them."""
    newest = max(known.version for known in PROFILES.values())
    if profile.version > newest:
        yield f"the mirror knows Linux {newest[0]}.{newest[1]} and older: {profile.name} is judged by that"
    running = platform.release()
    if is_of_host and not re.match(r"{}\.{}\b".format(*profile.version), running):
        yield f"the types are those of the running kernel, {running}: --btf FILE gives those of {profile.name}"
    for id_ in dict.fromkeys(report.refusal.id for report in reports if report.refusal is not None):
        yield f"`actplane refusal {id_}` shows an example and its repair"


_BTF_ATTACHED = (ProgType.BPF_PROG_TYPE_LSM, ProgType.BPF_PROG_TYPE_TRACING)
_PREFIXES = {
    ProgType.BPF_PROG_TYPE_LSM: "bpf_lsm_",
    AttachType.BPF_TRACE_RAW_TP: "btf_trace_",
    AttachType.BPF_TRACE_ITER: "bpf_iter_",
}
"""What the names of hooks, tracepoints and iterators begin with in a kernel's types."""


def _with_hint(report: Report, program: Program, types: Btf | None) -> Report:
    """Return a report whose hint names the option that the program as a whole is refused for want of, if one does."""
    refusal = report.refusal
    if refusal is None or refusal.slot >= 0:
        return report
    hint = ""
    if refusal.id == "attach" and program.prog_type in _BTF_ATTACHED:
        hint = _near_names(program, types) if program.attach_to else "name it with --attach, or attach_to= in the text"
    elif refusal.id == "attach" and program.prog_type and program.attach_type is None:
        hint = "say it with --attach-type, or attach_type= in the text"
    elif refusal.id == "sleeping":
        verb = "do without" if program.is_sleepable else "give"
        hint = f"{verb} --sleepable, or `sleepable` in the text"
    return replace(report, refusal=replace(refusal, hint=hint)) if hint else report


def _near_names(program: Program, types: Btf | None) -> str:
    """Return which hook or function may have been meant, "" if that of the program exists or none is like it."""
    name = program.attach_to or ""
    prefix = _PREFIXES.get(program.prog_type) or (_PREFIXES.get(program.attach_type, "") if program.attach_type else "")
    kind = Kind.BTF_KIND_TYPEDEF if prefix == "btf_trace_" else Kind.BTF_KIND_FUNC
    if types is None or types.id_of(kind, prefix + name) is not None:
        return ""
    known = {
        found.removeprefix(prefix)
        for found in types.names_starting(prefix or name[:2])
        if types.id_of(kind, found) is not None
    }
    near = difflib.get_close_matches(name.removeprefix(prefix), known, cutoff=0.75)
    return f"did you mean {' or '.join(near)}?" if near else ""


def _mirror_options(options: argparse.Namespace) -> Options:
    return Options(
        is_privileged=not options.unprivileged,
        budget_insns=options.budget_insns,
        budget_seconds=options.budget_seconds,
        wants_log=options.log,
    )


def _completed(program: Program, options: argparse.Namespace) -> Program:
    """Fill in what the command line says of the program."""
    changes: dict[str, Any] = {}
    if options.type is not None and program.prog_type is ProgType.BPF_PROG_TYPE_UNSPEC:
        changes["prog_type"] = ProgType[f"BPF_PROG_TYPE_{options.type.upper()}"]
    if options.attach is not None:
        changes["attach_to"] = options.attach
    if options.attach_type is not None:
        changes["attach_type"] = options.attach_type
    if options.sleepable:
        changes["is_sleepable"] = True
    program = replace(program, **changes)
    if program.prog_type is ProgType.BPF_PROG_TYPE_UNSPEC:
        raise InputError(f"program {program.name}: its type is not known: give --type TYPE")
    return program


def _needs_types(program: Program) -> bool:
    """Return whether a program attaches to a function or a hook, or names parts of the kernel's types."""
    return program.attach_to is not None or any(
        type(insn.symbol).__name__ in ("Field", "EnumValue", "TypeSize") for insn in program.insns
    )
