"""
Indirect jumps: what is loaded from a jump table, and where it leads.

Source: check_mem_access() and check_indirect_jump() in kernel/bpf/verifier.c of Linux 7.1.
"""

from __future__ import annotations

from actplane.asm.insn import Insn
from actplane.asm.jump_tables import ADDRESS_BYTES
from actplane.verifier.domains import arith
from actplane.verifier.domains.kinds import Kind
from actplane.verifier.domains.scalar import constant
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import Pointer, name_of
from actplane.verifier.paths.verification import Handler, Verification
from actplane.verifier.tables.refusals import refuse


def loaded_place(slot: int, reg: int, base: Pointer, off: int, size: int) -> Pointer:
    """
    Return the address that is loaded `off` bytes behind the start of a jump table, to which the variable
    part of `base` is added. `var` of the result says where in the table it stood.
    """
    if size != ADDRESS_BYTES:
        refuse(
            "jump-table", slot, f"r{reg}: {size} bytes of a jump table are loaded, an address has {ADDRESS_BYTES}", reg
        )
    return Pointer(Kind.INSN, map=base.map, var=arith.add(base.var, constant(off)))


def compile_indirect_jump(v: Verification, slot: int, insn: Insn) -> Handler:
    """Return the handler of a jump to the address in a register."""
    reg = insn.dst
    uses_reserved = bool(insn.src or insn.off or insn.imm)
    inside = frozenset(v.code.following[slot])

    def jump(state: State) -> int:
        if uses_reserved:
            refuse("bad-instruction", slot, "an indirect jump uses reserved fields")
        address = state.frames[-1].regs[reg]
        if not isinstance(address, Pointer) or address.kind is not Kind.INSN:
            refuse("jump-table", slot, f"r{reg} is {name_of(address)}, expected an address from a jump table", reg)
        facts = address.map
        assert facts is not None
        first, last = address.var.umin // ADDRESS_BYTES, address.var.umax // ADDRESS_BYTES
        places = facts.places_between(first, last)
        for place in places:
            if place not in inside:
                # Kernels that we know do not look, and go on in the middle of another function.
                claim = f"r{reg} is from {facts.spec.name!r}, which leads to slot {place}, outside of this function"
                refuse("jump-table", slot, claim, reg)
        before = state.steps
        for place in places[:-1]:
            v.push(state, place, f"r{reg} leads to slot {place}", slot)
        if len(places) > 1:
            state.steps = (slot, f"r{reg} leads to slot {places[-1]}", before)
        return places[-1]

    return jump
