"""
What an object leaves to the kernel it is linked for: options of its configuration (`__kconfig`), its
variables and its functions (`__ksym`).

Source: tools/lib/bpf/libbpf.c of Linux 6.18: bpf_object__collect_externs(), bpf_object__resolve_externs().
"""

from __future__ import annotations

import gzip
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from actplane.loader.btf import Btf
from actplane.loader.btf_types import BtfType, Kind
from actplane.loader.elf.core_access import essential
from actplane.loader.elf.core_match import are_compatible
from actplane.loader.elf.file import ElfError, ElfFile, Symbol, SymbolKind

KCONFIG: Final = ".kconfig"
KSYMS: Final = ".ksyms"

MOST_OPTION_BYTES: Final = 1 << 20

UNKNOWN_ADDRESS: Final = 0xFFFFFFFF_81000000
"""Stands for the address of a variable without a type, where the kernel's symbols cannot be read."""

_TRISTATE: Final = {"y": 1, "m": 2, "n": 0}


@dataclass(frozen=True, slots=True)
class Target:
    """
    The kernel that an object is linked for.

    Shape:  `config` maps options to their values as in /boot/config ("CONFIG_HZ": "250"), None if they
            are not known; `address_of` finds a symbol's address, None is no such symbol.
    """

    btf: Btf
    version: tuple[int, int, int] = (6, 18, 0)
    config: Mapping[str, str] | None = None
    address_of: Callable[[str], int | None] = field(default=lambda name: UNKNOWN_ADDRESS)


@dataclass(frozen=True, slots=True)
class Extern:
    """
    A name that an object does not define. `type_id` is that of the variable or the prototype in the
    object's BTF, 0 for a variable of no type; `offset_bytes` the place of an option in its array.
    """

    name: str
    type_id: int
    is_option: bool = False
    is_function: bool = False
    is_weak: bool = False
    offset_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Externs:
    """All of them by name, and the bytes of the array of options."""

    by_name: Mapping[str, Extern] = field(default_factory=dict[str, Extern])
    option_bytes: int = 0


def find_externs(elf: ElfFile, btf: Btf | None) -> Externs:
    """Return what an object does not define. Raises ElfError if its BTF does not describe one of them."""
    weak = {symbol.name: symbol.is_weak for symbol in elf.symbols if _is_outside(symbol)}
    if not weak:
        return Externs()
    described = _described(btf) if btf is not None else {}
    found: list[Extern] = []
    for name, is_weak in weak.items():
        if name not in described or btf is None:
            raise ElfError(f"{elf.name}: {name!r} is defined nowhere, and the BTF does not say what it is")
        section, type_id = described[name]
        declared = btf.type_at(type_id)
        if section not in (KCONFIG, KSYMS):
            raise ElfError(f"{elf.name}: {name!r}: got section {section!r}, expected {KCONFIG} or {KSYMS}")
        found.append(
            Extern(
                name,
                btf.bare(declared.target),
                section == KCONFIG,
                declared.kind is Kind.BTF_KIND_FUNC,
                is_weak,
            )
        )
    return _placed(found, btf) if btf is not None else Externs()


def _is_outside(symbol: Symbol) -> bool:
    return symbol.section is None and symbol.kind is SymbolKind.NOTYPE and bool(symbol.name) and not symbol.is_local


def _described(btf: Btf) -> dict[str, tuple[str, int]]:
    """Return the section and id of every variable and function that the BTF only declares."""
    found: dict[str, tuple[str, int]] = {}
    for type_id in range(1, len(btf)):
        group = btf.type_at(type_id)
        if group.kind is Kind.BTF_KIND_DATASEC:
            for member in group.members:
                found[btf.type_at(member.type_id).name] = (group.name, member.type_id)
    return found


def _placed(found: list[Extern], btf: Btf) -> Externs:
    """Lay the options out in their array as libbpf does: by alignment, then size, then name."""

    def order(extern: Extern) -> tuple[int, int, str]:
        return -_alignment(btf, extern.type_id), btf.size_of(extern.type_id), extern.name

    placed: dict[str, Extern] = {}
    end = 0
    for extern in sorted((each for each in found if each.is_option), key=order):
        step = _alignment(btf, extern.type_id)
        start = -(-end // step) * step
        placed[extern.name] = Extern(extern.name, extern.type_id, True, False, extern.is_weak, start)
        end = start + btf.size_of(extern.type_id)
    # libbpf numbers the others behind the options, and has a program call that number if one is missing.
    others = (extern for extern in found if not extern.is_option)
    placed.update((extern.name, extern) for extern in sorted(others, key=lambda extern: extern.name))
    if end > MOST_OPTION_BYTES:
        raise ElfError(f"options of the kernel's configuration: got {end} bytes, expected {MOST_OPTION_BYTES} or less")
    return Externs(placed, end)


def _alignment(btf: Btf, type_id: int) -> int:
    found = btf.type_at(btf.bare(type_id))
    if found.kind is Kind.BTF_KIND_ARRAY:
        return _alignment(btf, found.target)
    return min(btf.size_of(type_id), 8) or 1


def option_contents(externs: Externs, btf: Btf, target: Target) -> bytes:
    """
    Return the contents of the array of options.

    Raises: ElfError if one is not set, or does not fit its type.
    """
    contents = bytearray(externs.option_bytes)
    for extern in externs.by_name.values():
        if extern.is_option:
            value = _option(extern, btf, target)
            contents[extern.offset_bytes : extern.offset_bytes + len(value)] = value
    return bytes(contents)


def _option(extern: Extern, btf: Btf, target: Target) -> bytes:
    found = btf.type_at(extern.type_id)
    size = btf.size_of(extern.type_id)
    major, minor, patch = target.version
    built_in = {
        "LINUX_KERNEL_VERSION": (major << 16) + (minor << 8) + min(patch, 255),
        "LINUX_HAS_BPF_COOKIE": int(target.version >= (5, 15, 0)),
        "LINUX_HAS_SYSCALL_WRAPPER": 1,
    }
    if extern.name in built_in:
        return _number(extern, found, size, built_in[extern.name])
    text = (target.config or {}).get(extern.name)
    if text is None:
        if extern.is_weak:
            return bytes(size)
        hint = "give the kernel's configuration with --kconfig" if target.config is None else "declare it __weak"
        raise ElfError(f"the kernel's option {extern.name} is not set\n    hint: {hint}")
    if text.startswith('"'):
        if found.kind is not Kind.BTF_KIND_ARRAY:
            raise ElfError(f"the kernel's option {extern.name}: got the text {text}, expected a number")
        return text.strip('"').encode()[: size - 1]
    if text in _TRISTATE:
        return _switch(extern, found, size, text)
    try:
        return _number(extern, found, size, int(text, 0))
    except ValueError as error:
        raise ElfError(f"the kernel's option {extern.name}: got {text!r}, expected a number") from error


def _switch(extern: Extern, found: BtfType, size: int, text: str) -> bytes:
    is_tristate = found.kind in (Kind.BTF_KIND_ENUM, Kind.BTF_KIND_ENUM64) and found.name == "libbpf_tristate"
    if is_tristate:
        return _TRISTATE[text].to_bytes(size, "little")
    if found.kind is Kind.BTF_KIND_INT and size == 1:
        if found.name in ("bool", "_Bool"):
            if text == "m":
                raise ElfError(f"the kernel's option {extern.name}: got m, expected y or n for a bool")
            return bytes([text == "y"])
        return text.encode()
    raise ElfError(f"the kernel's option {extern.name}: got {text}, expected a number")


def _number(extern: Extern, found: BtfType, size: int, value: int) -> bytes:
    if found.kind is not Kind.BTF_KIND_INT:
        raise ElfError(f"the kernel's option {extern.name}: got the number {value}, expected another type")
    try:
        return value.to_bytes(size, "little", signed=found.is_signed)
    except OverflowError as error:
        raise ElfError(f"the kernel's option {extern.name}: got {value}, which {size} bytes cannot hold") from error


def find_variable(extern: Extern, btf: Btf, target: Target) -> int | None:
    """
    Return the id of a kernel's variable or function in its BTF, None if it has none and need not.

    Raises: ElfError if it must be there and is not, or is of another type.
    """
    kind = Kind.BTF_KIND_FUNC if extern.is_function else Kind.BTF_KIND_VAR
    noun = "function" if extern.is_function else "variable"
    name = essential(extern.name)
    found = target.btf.id_of(kind, name)
    if found is not None:
        theirs = target.btf.bare(target.btf.type_at(found).target)
        if are_compatible(btf, extern.type_id, target.btf, theirs):
            return found
    if extern.is_weak:
        return None
    problem = "has no" if found is None else "has another type of"
    raise ElfError(f"the kernel {problem} {noun} {name!r}\n    hint: declare it __weak and ask bpf_ksym_exists()")


def running_config() -> Mapping[str, str] | None:
    """Return the options the running kernel was built with, None if it does not say."""
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{platform.release()}")):
        if path.exists():
            return read_config(path.read_bytes())
    return None


def read_config(data: bytes) -> Mapping[str, str]:
    """
    Return the options in the text of a configuration, which may be compressed by gzip.

    >>> read_config(b"CONFIG_HZ=250\\n# CONFIG_X is not set\\n")
    {'CONFIG_HZ': '250'}
    """
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode(errors="replace")
    pairs = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
    return {name: value.strip() for name, _, value in pairs}


def running_addresses() -> Callable[[str], int | None]:
    """Return how to find the address of a symbol of the running kernel; its list is read when first asked."""
    known: dict[str, int] = {}

    def address_of(name: str) -> int | None:
        if not known:
            with open("/proc/kallsyms", encoding="ascii", errors="replace") as lines:
                for line in lines:
                    address, _, symbol = line.split()[:3]
                    known.setdefault(symbol, int(address, 16))
        return known.get(name)

    return address_of
