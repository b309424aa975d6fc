"""
Variables and functions of the kernel, whose address an ld_imm64 loads by their id in its BTF.

Source: check_pseudo_btf_id() in kernel/bpf/verifier.c of Linux 6.18.
"""

from __future__ import annotations

from typing import Final

from actplane.asm.isa import PSEUDO_BTF_ID, PSEUDO_MAP_IDX_VALUE
from actplane.verifier.domains.btf_walk import bare, is_struct, size_of, strip
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.tnum import U32
from actplane.verifier.domains.types import BtfKind, TypeProvider
from actplane.verifier.paths.values import Pointer
from actplane.verifier.paths.verification import Verification
from actplane.verifier.tables.refusals import refuse

_PER_CPU_SECTION: Final = ".data..percpu"
_LAST_KIND: Final = PSEUDO_MAP_IDX_VALUE


def check_addresses(v: Verification) -> None:
    """Refuse addresses of what there is not, whether or not a path loads them."""
    for slot in v.code.layout.addresses:
        insn = v.code.at[slot]
        assert insn is not None
        if not 0 <= insn.src <= _LAST_KIND:
            refuse("bad-instruction", slot, f"there is no kind {insn.src} of address that an ld_imm64 could load")
        if insn.src == PSEUDO_BTF_ID and insn.symbol is None:
            kernel_symbol(v, slot, insn.imm & U32)


def kernel_symbol(v: Verification, slot: int, type_id: int) -> Pointer:
    """Return what a register holds that the address of a variable or function was loaded into."""
    types = v.subject.types
    if types is None:
        refuse("bad-map", slot, "no kernel types are given, so nothing is known of its variables")
    try:
        found = types.type_at(type_id)
    except KeyError:
        refuse("bad-map", slot, f"the kernel's types have no id {type_id}")
    if found.kind == BtfKind.FUNC:
        return Pointer(Kind.MEM, flags=Flag.RDONLY)
    if found.kind != BtfKind.VAR:
        refuse("bad-map", slot, f"type {type_id} of the kernel is neither a variable nor a function")
    target = strip(types, found.target)
    if _is_per_cpu(types, type_id):
        return Pointer(Kind.BTF_ID, flags=Flag.PERCPU, types=types, type_id=target)
    if is_struct(bare(types, target)):
        return Pointer(Kind.BTF_ID, types=types, type_id=target)
    size = size_of(types, target)
    if size is None:
        refuse("bad-map", slot, f"the size of the kernel's variable {found.name} is not known")
    return Pointer(Kind.MEM, flags=Flag.RDONLY, size=size)


def _is_per_cpu(types: TypeProvider, type_id: int) -> bool:
    section = types.id_of(BtfKind.DATASEC, _PER_CPU_SECTION)
    return section is not None and any(member.type_id == type_id for member in types.type_at(section).members)
