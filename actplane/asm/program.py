"""
What can be loaded, as plain data: maps, programs and what in them only the running kernel knows.

Nothing here depends on a kernel. Whatever does (descriptors of maps, offsets of fields, ids of BTF
types) is a symbol on an instruction, and the loader resolves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from actplane.asm.insn import Insn
from actplane.asm.uapi import AttachType, MapType, ProgType
from actplane.source import Span


@dataclass(frozen=True, slots=True)
class MapSpec:
    """
    A map to create.

    Units:  key_size and value_size are bytes; `contents` holds the initial elements of an array
            from index 0 on, max_entries * value_size bytes or fewer.
    """

    name: str
    type: MapType
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    contents: bytes | None = None
    is_frozen: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """
    One program to load. Subprograms follow the entry in `insns`, each starting at an
    instruction that carries its name in `functions`.

    `attach_to` is the name of the BTF function or tracepoint: the LSM hook without `bpf_lsm_`
    ("file_open"), the tracepoint without `btf_trace_` ("sched_process_exec"), the kernel function
    for fentry, fexit and fmod_ret ("security_file_open").
    """

    name: str
    prog_type: ProgType
    insns: tuple[Insn, ...]
    attach_type: AttachType | None = None
    attach_to: str | None = None
    is_sleepable: bool = False
    license: str = "GPL"
    functions: Mapping[int, str] = field(default_factory=dict[int, str])
    """Index into `insns` (not slots) of the first instruction of every subprogram, and its name."""

    @property
    def slots(self) -> int:
        """The number of 8-byte slots the program takes in the kernel."""
        return sum(insn.slots for insn in self.insns)

    def span_at(self, slot: int) -> Span | None:
        """Return where in the policy the instruction at a slot (as the kernel counts) came from."""
        at = 0
        for insn in self.insns:
            if at <= slot < at + insn.slots:
                return insn.span
            at += insn.slots
        return None


@dataclass(frozen=True, slots=True)
class Object:
    """Maps and programs that belong together, as one policy or one assembler text yields them."""

    maps: tuple[MapSpec, ...] = ()
    programs: tuple[Program, ...] = ()
