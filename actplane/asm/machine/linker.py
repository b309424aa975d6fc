"""What the instructions of one program refer to: its maps, helpers, functions and jump tables in a machine."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from actplane.asm.cfg import build_graph
from actplane.asm.encoding import SLOT_BYTES
from actplane.asm.insn import Insn, Kfunc, MapFd, MapValue
from actplane.asm.isa import (
    LD_IMM64,
    PSEUDO_BTF_ID,
    PSEUDO_FUNC,
    PSEUDO_MAP_FD,
    PSEUDO_MAP_IDX,
    PSEUDO_MAP_IDX_VALUE,
    PSEUDO_MAP_VALUE,
    Kind,
)
from actplane.asm.machine.faults import LoadError
from actplane.asm.machine.maps import JumpTableMap, Map
from actplane.asm.machine.memory import ADDRESS_MASK
from actplane.asm.machine.registry import Helper
from actplane.asm.program import Program
from actplane.asm.uapi import HelperId

if TYPE_CHECKING:
    from actplane.asm.machine.machine import Machine

_HANDLES = (PSEUDO_MAP_FD, PSEUDO_MAP_IDX)
_OF_MAPS = (*_HANDLES, PSEUDO_MAP_VALUE, PSEUDO_MAP_IDX_VALUE)
"""The sources of ld_imm64 that name a map; the last two name its first value."""


class Linker:
    """Finds what the instructions of one program refer to."""

    def __init__(
        self,
        machine: Machine,
        program: Program,
        map_numbers: Mapping[int, str],
        kfunc_numbers: Mapping[int, str],
    ) -> None:
        self.machine = machine
        self.program = program
        self.map_numbers = map_numbers
        self.kfunc_numbers = kfunc_numbers
        self.functions: dict[int, int] = {}
        """First instruction of every function whose address is taken, and that address."""
        self._tables = self._jump_tables()
        self.graph = build_graph(program, jump_slots={slot for table in self._tables for slot in table.slots})

    def _jump_tables(self) -> list[JumpTableMap]:
        """Return the jump tables that the program refers to."""
        found: dict[str, JumpTableMap] = {}
        for index, insn in enumerate(self.program.insns):
            if insn.code == LD_IMM64 and insn.src in _OF_MAPS:
                each = self._map(index, insn)
                if isinstance(each, JumpTableMap):
                    found[each.name] = each
        return list(found.values())

    def jumps(self) -> dict[int, dict[int, int]]:
        """Give the places in jump tables addresses, and return where every indirect jump may lead by them."""
        for index in self.graph.open_jumps:
            raise self._error(index, "no jump table of the program leads into this function")
        if not self._tables:
            return {}
        code = self.machine.memory.add(f"code of {self.program.name}", 0)
        for table in self._tables:
            if table.addresses is not None:
                raise LoadError(f"{self.program.name}: map {table.name}: another program has this jump table")
            table.bind(code.address)
        slots = list(accumulate((insn.slots for insn in self.program.insns), initial=0))
        blocks = self.graph.blocks
        return {
            block.end - 1: {
                code.address + SLOT_BYTES * slots[start]: start for start in (blocks[n].start for n in block.successors)
            }
            for block in blocks
            if self.graph.forms[block.end - 1].kind is Kind.GOTOX
        }

    def constants(self) -> dict[int, int]:
        """Return what every ld_imm64 loads."""
        return {
            index: self._constant(index, insn) & ADDRESS_MASK
            for index, insn in enumerate(self.program.insns)
            if self.graph.forms[index].kind is Kind.LD_IMM64
        }

    def _constant(self, index: int, insn: Insn) -> int:
        match insn.src:
            case 0:
                return insn.imm
            case source if source in _HANDLES:
                return self._map(index, insn).address
            case source if source in _OF_MAPS:
                symbol = insn.symbol
                offset = symbol.offset_bytes if isinstance(symbol, MapValue) else insn.imm >> 32
                return self._map(index, insn).direct_value() + offset
            case source if source == PSEUDO_FUNC:
                return self._function_address(self.graph.targets[index])
            case source if source == PSEUDO_BTF_ID:
                address = self.machine.variables.get(insn.imm & 0xFFFFFFFF)
                if address is None:
                    raise self._error(index, f"kernel variable with BTF id {insn.imm & 0xFFFFFFFF} is not known")
                return address
            case _:
                raise self._error(index, f"pseudo source {insn.src} is not simulated")

    def _map(self, index: int, insn: Insn) -> Map:
        symbol = insn.symbol
        number = insn.imm & 0xFFFFFFFF
        name = symbol.name if isinstance(symbol, MapFd | MapValue) else self.map_numbers.get(number)
        if name is None:
            raise self._error(index, f"map number {number} has no name: give map_numbers={{{number}: NAME}}")
        found = self.machine.maps.get(name)
        if found is None:
            known = ", ".join(self.machine.maps) or "none"
            raise self._error(index, f"map {name!r} is not in the machine: it has {known}")
        return found

    def _function_address(self, entry: int) -> int:
        if entry not in self.functions:
            name = self.program.functions.get(entry, f"f{entry}")
            self.functions[entry] = self.machine.memory.add(f"function {name}", 0).address
        return self.functions[entry]

    def helpers(self) -> dict[int, Helper]:
        """Return what every call of a helper or kfunc calls."""
        found = {}
        for index, insn in enumerate(self.program.insns):
            kind = self.graph.forms[index].kind
            if kind is Kind.CALL_HELPER and insn.imm != HelperId.bpf_tail_call:
                found[index] = self._helper(index, insn)
            elif kind is Kind.CALL_KFUNC:
                found[index] = self._kfunc(index, insn)
        return found

    def _helper(self, index: int, insn: Insn) -> Helper:
        helper = self.machine.helper(insn.imm)
        if helper is None:
            known = insn.imm in HelperId.__members__.values()
            name = HelperId(insn.imm).name if known else f"helper {insn.imm}"
            raise self._error(index, f"{name} is not simulated: register it with register_helper({insn.imm}, ...)")
        return helper

    def _kfunc(self, index: int, insn: Insn) -> Helper:
        symbol = insn.symbol
        name = symbol.name if isinstance(symbol, Kfunc) else self.kfunc_numbers.get(insn.imm)
        if name is None:
            raise self._error(index, f"kfunc with BTF id {insn.imm} has no name: give kfunc_numbers")
        kfunc = self.machine.kfunc(name)
        if kfunc is None:
            raise self._error(index, f"kfunc {name} is not simulated: register it with register_kfunc({name!r}, ...)")
        return kfunc

    def _error(self, index: int, message: str) -> LoadError:
        return LoadError(f"{self.program.name}: insn {index}: {message}")
