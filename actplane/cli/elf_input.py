"""Objects of a compiler as the commands for programs take them: linked for the kernel that is asked about."""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from actplane.cli.asm_input import InputError
from actplane.errors import DecodeError, UnsupportedFeature
from actplane.loader.btf import Btf
from actplane.loader.elf.externs import Target, read_config, running_addresses, running_config
from actplane.loader.elf.file import is_elf, section_bytes
from actplane.loader.elf.objects import LinkedObject, read_elf
from actplane.verifier import KernelProfile, OwnTypes, TypeRef


def read_types(path: str) -> Btf:
    """
    Return the types in a file: BTF alone, or an ELF file (vmlinux) with a section of it.

    Raises: InputError.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    section = section_bytes(data, path, ".BTF") if is_elf(data) else data
    if section is None:
        raise InputError(f"{path}: got an ELF file without a section .BTF")
    try:
        return Btf(section)
    except DecodeError as error:
        raise InputError(f"{path}: these are not the types of a kernel: {error}") from error


def types_for_kernel(options: argparse.Namespace, *, is_needed: bool) -> Btf | None:
    """
    Return the types of --btf, else those of the running kernel, if it describes them.

    Raises: InputError, also if types are needed and there are none.
    """
    if options.btf:
        return read_types(options.btf)
    try:
        return Btf.vmlinux()
    except UnsupportedFeature as error:
        if is_needed:
            raise InputError(f"this needs a kernel's types: {error}\n    hint: give them with --btf FILE") from error
        return None


def link_for_kernel(
    data: bytes, name: str, options: argparse.Namespace, profile: KernelProfile
) -> tuple[LinkedObject, Btf | None]:
    """
    Return an object linked for the kernel that the options tell, and that kernel's types.

    Shape:  the types are those of --btf, else of the running kernel; None if there are none and the
            object needs none.
    Raises: InputError, ElfError.
    """
    found = read_elf(data, name)
    only = options.program if options.program in found.program_names else None
    types = types_for_kernel(options, is_needed=found.needs_kernel)
    if types is None:
        return found.link(only=only), None
    target = Target(types, (*profile.version, profile.patch), _config(options))
    # Another kernel is taken to have whatever symbol a program asks the address of.
    if options.kernel == "host":
        target = replace(target, address_of=running_addresses())
    return found.link(target, only), types


def _config(options: argparse.Namespace) -> Mapping[str, str] | None:
    """Return the options of the configuration that is given, or of the kernel whose types are taken."""
    if not options.kconfig:
        return None if options.btf else running_config()
    try:
        return read_config(Path(options.kconfig).read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{options.kconfig}: cannot be read: {error}") from error


def own_types(linked: LinkedObject, program: str) -> OwnTypes:
    """Return what an object's own BTF says of one program, as the mirror takes it."""
    if linked.types is None:
        return OwnTypes()
    values = {name: TypeRef(linked.types, type_id) for name, type_id in linked.map_values.items()}
    return OwnTypes(linked.types, linked.function_types[program], values, linked.inner_maps)
