"""
eBPF objects as a compiler makes them, to maps and programs.

    found = read_elf(Path("prog.o").read_bytes(), "prog.o")
    linked = found.link(Target(Btf.vmlinux()))
    linked.object.programs

Reading knows no kernel. Linking fills in what one kernel decides: offsets of fields (CO-RE), its
variables and functions, its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from actplane.asm.program import MapSpec, Object
from actplane.loader.btf import Btf
from actplane.loader.btf_types import Kind
from actplane.loader.elf.btf_ext import BtfExt, read_btf_ext
from actplane.loader.elf.externs import KCONFIG, Externs, Target, find_externs, option_contents
from actplane.loader.elf.file import ElfFile, read_elf_file
from actplane.loader.elf.functions import Functions, find_functions
from actplane.loader.elf.link import LinkedProgram, Linker, LinkInput
from actplane.loader.elf.maps import ObjectMaps, add_array, find_maps
from actplane.loader.elf.own_btf import read_object_btf
from actplane.loader.elf.struct_ops import find_operations

_LICENSE_SECTION = "license"


@dataclass(frozen=True, slots=True)
class LinkedObject:
    """
    Maps and programs of an object, linked for one kernel.

    Shape:  `function_types` is, for each program, the BTF_KIND_FUNC in `types` of each function by the
            slot that it starts at; `map_values` the type in `types` of the values of a map; `inner_maps`
            what the maps in a map of maps are like.
    """

    object: Object
    types: Btf | None = None
    function_types: Mapping[str, Mapping[int, int]] = field(default_factory=dict[str, dict[int, int]])
    map_values: Mapping[str, int] = field(default_factory=dict[str, int])
    inner_maps: Mapping[str, MapSpec] = field(default_factory=dict[str, MapSpec])


class ElfObject:
    """An object file that was read. `needs_kernel` says whether linking depends on the kernel at all."""

    def __init__(self, elf: ElfFile, btf: Btf | None, ext: BtfExt, functions: Functions, externs: Externs) -> None:
        self.types = btf
        self._elf = elf
        self._functions = functions
        self._externs = externs
        section = elf.section(_LICENSE_SECTION)
        self.license = section.data.split(b"\0")[0].decode(errors="replace") if section else ""
        self.needs_kernel = bool(externs.by_name) or any(ext.relocations.values())

    @property
    def program_names(self) -> list[str]:
        """Return the names of all programs, in the order of their places."""
        return [function.name for function in self._functions.programs]

    def link(self, target: Target | None = None, only: str | None = None) -> LinkedObject:
        """
        Return the maps and programs, filled in for a kernel.

        Shape:  without a target, fields keep the offsets of the compiler's types, and the options of the
                kernel's configuration are 0. `only` names the one program that is wanted.
        Raises: ElfError if something does not fit together, or the kernel lacks what must be there.
                What a program only may need is a call that a verifier refuses where it is reached.
        """
        maps = find_maps(self._elf, self.types)
        self._add_options(maps, target)
        given = LinkInput(self._elf, self._functions, maps, self._externs, self.license, self.types, target)
        linker = Linker(given)
        linked: list[LinkedProgram] = [
            linker.link(each) for each in self._functions.programs if only in (None, each.name)
        ]
        return LinkedObject(
            Object(tuple(maps.specs.values()), tuple(each.program for each in linked)),
            self.types,
            {each.program.name: each.function_types for each in linked},
            maps.values,
            maps.inner,
        )

    def _add_options(self, maps: ObjectMaps, target: Target | None) -> None:
        if not self._externs.option_bytes or self.types is None:
            return
        contents = bytes(self._externs.option_bytes)
        if target is not None:
            contents = option_contents(self._externs, self.types, target)
        add_array(maps, KCONFIG, contents, self.types.id_of(Kind.BTF_KIND_DATASEC, KCONFIG))


def read_elf(data: bytes, name: str) -> ElfObject:
    """
    Return an eBPF object.

    Raises: ElfError if it is none, of big endian or damaged, or if pyelftools is not installed;
            DecodeError if its BTF is damaged.
    """
    elf = read_elf_file(data, name)
    types, ext = elf.section(".BTF"), elf.section(".BTF.ext")
    btf = read_object_btf(types.data, elf) if types is not None else None
    records = read_btf_ext(ext.data, btf) if ext is not None and btf is not None else BtfExt()
    functions = find_functions(elf, records, find_operations(elf, btf))
    return ElfObject(elf, btf, records, functions, find_externs(elf, btf))
