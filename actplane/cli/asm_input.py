"""
Programs as the commands take them: text, hexadecimal digits, bytes or an object file, from a file or a pipe.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from actplane.asm.encoding import decode
from actplane.asm.program import Object, Program
from actplane.asm.uapi import ProgType
from actplane.errors import ActplaneError
from actplane.loader.elf.file import is_elf

STDIN = "-"


class InputError(ActplaneError):
    """A file of a command cannot be read or written, or does not hold what the command needs."""


def add_program_argument(parser: Any, *, has_choice: bool = True) -> None:
    """Add the argument that names a program's file, and what is needed to read it."""
    parser.add_argument(
        "file",
        nargs="?",
        default=STDIN,
        metavar="PROGRAM",
        help="assembler text, hex digits, bytes or an ELF object (default: stdin)",
    )
    types = sorted(kind.name.removeprefix("BPF_PROG_TYPE_").lower() for kind in ProgType if kind)
    parser.add_argument(
        *("--type", "--prog-type"),
        choices=types,
        metavar="TYPE",
        help="the program's type where the file does not say (xdp, lsm, ...)",
    )
    if has_choice:
        parser.add_argument("--program", metavar="NAME", help="which program of the file, if it holds several")


def read_data(options: argparse.Namespace) -> tuple[bytes, str]:
    """Return the bytes of the file an argument names, and what messages call it. Raises InputError."""
    return read_input(options.file)


def read_input(file: str) -> tuple[bytes, str]:
    """Return the bytes of a file, or of standard input for `-`, and what messages call it. Raises InputError."""
    name = "<stdin>" if file == STDIN else file
    if file == STDIN and sys.stdin is None:
        raise InputError(f"{name}: cannot be read: it is closed")
    try:
        return sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes(), name
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error


def read_object(options: argparse.Namespace) -> Object:
    """
    Return the maps and programs of the file an argument names; those of an ELF object as compiled.

    Raises: InputError, AssembleError with all problems of a text, DecodeError, ElfError.
    """
    return parse_object(*read_data(options), options)


def parse_object(data: bytes, name: str, options: argparse.Namespace) -> Object:
    """Return the maps and programs in bytes; see `read_object`."""
    if is_elf(data):
        from actplane.loader.elf.objects import read_elf

        return read_elf(data, name).link().object
    prog_type = ProgType[f"BPF_PROG_TYPE_{options.type.upper()}"] if options.type else None
    code = _code_of(data)
    if code is not None:
        program = Program("main", prog_type or ProgType.BPF_PROG_TYPE_UNSPEC, tuple(decode(code)))
        return Object(programs=(program,))
    from actplane.asm.assembler import assemble_object

    return assemble_object(data.decode("utf-8-sig", errors="replace"), name=name, prog_type=prog_type)


def _code_of(data: bytes) -> bytes | None:
    """Return the bytes of instructions if that is what the data is, also in hex; None for text."""
    if b"\0" in data:
        return data
    try:
        return bytes.fromhex(data.decode("ascii")) if data.strip() else None
    except ValueError:
        return None


def chosen_programs(found: Object, name: str | None) -> tuple[Program, ...]:
    """
    Return the program of that name, or all.

    Raises: InputError if there is none.
    """
    if not found.programs:
        raise InputError("no program: the input has no instructions")
    programs = tuple(program for program in found.programs if name in (None, program.name))
    if not programs:
        raise InputError(f"no program {name!r}: expected one of {_names(found)}")
    return programs


def chosen_program(found: Object, options: argparse.Namespace) -> Program:
    """
    Return the program that --program names, or the only one.

    Raises: InputError if there is no such program, or several to choose from.
    """
    first, *others = chosen_programs(found, options.program)
    if others:
        raise InputError(f"several programs: give --program NAME, one of {_names(found)}")
    return first


def _names(found: Object) -> str:
    return ", ".join(program.name for program in found.programs)
