"""`actplane verify`: ask the mirror what a kernel would say of a program."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

from actplane.asm.program import Object, Program
from actplane.asm.uapi import AttachType, ProgType
from actplane.cli.asm_input import InputError, add_program_argument, chosen_programs, parse_object, read_data
from actplane.cli.elf_input import link_for_kernel, own_types, read_types
from actplane.cli.exits import Exit
from actplane.loader.btf import Btf
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
        "Exit status: 0 if every program is accepted, 116 if one is refused.",
        allow_abbrev=False,
    )
    add_program_argument(parser, has_choice=False)
    parser.add_argument("--program", metavar="NAME", help="judge only this program of the file")
    parser.add_argument(
        "--kernel", default=DEFAULT.name, metavar="VERSION", help=f"the kernel to judge for (default: {DEFAULT.name})"
    )
    parser.add_argument("--attach", metavar="NAME", help="the hook, tracepoint or function (file_open, ...)")
    parser.add_argument("--attach-type", metavar="TYPE", help="as in BPF_CGROUP_INET4_CONNECT")
    parser.add_argument("--sleepable", action="store_true", help="the program may sleep")
    parser.add_argument(
        "--btf", metavar="FILE", help="the kernel's types, or a vmlinux (default: the running kernel's)"
    )
    parser.add_argument("--kconfig", metavar="FILE", help="the kernel's configuration (default: the running kernel's)")
    parser.add_argument("--unprivileged", action="store_true", help="judge as for a user without privileges")
    parser.add_argument("--budget-insns", type=int, metavar="N", help="give up after N instructions on all paths")
    parser.add_argument("--budget-seconds", type=float, metavar="S", help="give up on a program after S seconds")
    parser.add_argument("--log", action="store_true", help="print the state after every instruction")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--sarif", action="store_true", help="print a SARIF 2.1.0 log")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Judge every program of the input and print the answers."""
    profile = _profile(options.kernel)
    data, name = read_data(options)
    if is_elf(data):
        reports = _judge_elf(data, name, profile, options)
    else:
        found = parse_object(data, name, options)
        reports = [_judge(program, found, profile, options) for program in chosen_programs(found, options.program)]
    if options.json:
        print(json.dumps([report.as_json() for report in reports], indent=2))
    elif options.sarif:
        print(json.dumps(sarif_log(reports, options.file), indent=2))
    else:
        for report in reports:
            for line in report.log:
                print(line)
            print(report)
    return Exit.OK if all(report.is_accepted for report in reports) else Exit.MIRROR_REFUSED


def _profile(name: str) -> KernelProfile:
    return host_profile() if name == "host" else profile_of(name)


def _judge(program: Program, found: Object, profile: KernelProfile, options: argparse.Namespace) -> Report:
    program = _completed(program, options)
    needs_types = options.btf is not None or program.attach_to is not None or _has_kernel_symbols(program)
    btf = (read_types(options.btf) if options.btf else Btf.vmlinux()) if needs_types else None
    if btf is not None:
        program = relocate(program, btf)
    maps = {spec.name: spec for spec in found.maps}
    return verify(program, maps, btf, profile=profile, options=_mirror_options(options))


def _judge_elf(data: bytes, name: str, profile: KernelProfile, options: argparse.Namespace) -> list[Report]:
    linked, btf = link_for_kernel(data, name, options, profile)
    maps = {spec.name: spec for spec in linked.object.maps}
    judged = _mirror_options(options)
    return [
        verify(
            _completed(program, options),
            maps,
            btf,
            own=own_types(linked, program.name),
            profile=profile,
            options=judged,
        )
        for program in chosen_programs(linked.object, options.program)
    ]


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
        name = options.attach_type.upper()
        name = name if name.startswith("BPF_") else f"BPF_{name}"
        if name not in AttachType.__members__:
            raise InputError(f"--attach-type {options.attach_type}: no such attach type")
        changes["attach_type"] = AttachType[name]
    if options.sleepable:
        changes["is_sleepable"] = True
    program = replace(program, **changes)
    if program.prog_type is ProgType.BPF_PROG_TYPE_UNSPEC:
        raise InputError(f"program {program.name}: its type is not known: give --type TYPE")
    return program


def _has_kernel_symbols(program: Program) -> bool:
    return any(type(insn.symbol).__name__ in ("Field", "EnumValue", "TypeSize") for insn in program.insns)
