"""
Loads and stores: each kind of pointer says what may be accessed through it, and what a
load yields.
"""

from __future__ import annotations

from typing import Final

from actplane.asm.insn import Insn
from actplane.asm.isa import (
    CLASS_MASK,
    DW,
    LDX,
    MEM,
    MEMSX,
    MODE_MASK,
    SIZE_BITS,
    SIZE_MASK,
    ST,
)
from actplane.asm.uapi import MapType, ProgType
from actplane.verifier.domains import arith, tnum
from actplane.verifier.domains.kinds import PACKETS, SOCKETS, Flag, Kind
from actplane.verifier.domains.maps import MapFacts, SpecialField
from actplane.verifier.domains.scalar import S64_MIN, Range, between_signed, constant, sign_extend, truncate
from actplane.verifier.domains.scalar import UNKNOWN as UNKNOWN_RANGE
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, Value, known, scalar
from actplane.verifier.paths.verification import Handler, Verification
from actplane.verifier.rules import btf_access, context, kptrs, stack
from actplane.verifier.rules.indirect_jumps import loaded_place
from actplane.verifier.tables.refusals import refuse

MAX_VAR_OFF: Final = 1 << 29

SIZES: Final = {bits: size.bits // 8 for size, bits in SIZE_BITS.items()}

_UNKNOWN_OF: Final = {size: scalar(truncate(UNKNOWN_RANGE, size)) for size in (1, 2, 4, 8)}
_UNKNOWN_SIGNED: Final = {
    size: scalar(between_signed(-(1 << (8 * size - 1)), (1 << (8 * size - 1)) - 1)) for size in (1, 2, 4)
}


def compile_memory(v: Verification, slot: int, insn: Insn) -> Handler:
    """Return the handler of a load or a store that is not atomic."""
    mode = insn.code & MODE_MASK
    is_load = insn.code & CLASS_MASK == LDX
    is_bad = mode != MEM and not (mode == MEMSX and is_load and insn.code & SIZE_MASK != DW)
    uses_reserved = bool(insn.imm) if insn.code & CLASS_MASK != ST else bool(insn.src)
    if is_bad or uses_reserved:

        def reserved(state: State) -> int:
            refuse("bad-instruction", slot, "a load or store that does not exist, or reserved fields in use")

        return reserved
    if is_load:
        return _compile_load(v, slot, insn, is_signed=mode == MEMSX)
    return _compile_store(v, slot, insn)


_NOWHERE: Final = Pointer(Kind.STACK)
"""A pointer that no program has."""


def _compile_load(v: Verification, slot: int, insn: Insn, *, is_signed: bool) -> Handler:
    dst, src, off, size, following = insn.dst, insn.src, insn.off, SIZES[insn.code & SIZE_MASK], slot + 1
    whole = _UNKNOWN_OF[size]

    # Pointers never change, so what was checked of one need not be checked again: the one that was last
    # seen to point into the stack, and where; and the one through which a number was loaded that is unknown.
    stack_base = _NOWHERE
    number_base = _NOWHERE
    stack_off = 0

    def load(state: State) -> int:
        nonlocal stack_base, stack_off, number_base
        regs = state.frames[-1].regs
        base = regs[src]
        if base is None:
            refuse("uninitialized-register", slot, f"r{src} is read before it is set", src)
        if base is stack_base:
            value: Value | None = stack.read_fixed(v, state, slot, stack_base, stack_off, size)
        elif base is number_base:
            value = UNKNOWN_SCALAR
        else:
            if dst == 10:
                refuse("frame-pointer-write", slot, "r10 is the frame pointer and is read only")
            value = access(v, state, slot, src, base, off, size, is_write=False, is_load_signed=is_signed)
            assert base.__class__ is Pointer
            note_kind(v, slot, base)
            if base.kind is Kind.STACK:
                if base.var.is_const:
                    stack_base, stack_off = base, off + base.off + base.var.smin
            elif value is UNKNOWN_SCALAR and _is_judged_alone(base):
                number_base = base
        if value is UNKNOWN_SCALAR:
            value = _UNKNOWN_SIGNED[size] if is_signed else whole
        elif size < 8 and value.__class__ is Scalar:
            range_ = sign_extend(truncate(value.range, size), size) if is_signed else truncate(value.range, size)
            if range_ is not value.range:
                value = scalar(range_)
        regs[dst] = value
        return following

    return load


def _is_judged_alone(base: Pointer) -> bool:
    """Whether nothing but the pointer itself decides about an access through it."""
    if base.kind is Kind.MAP_VALUE and base.map is not None:
        return not base.map.fields
    return base.kind not in (Kind.STACK, Kind.BTF_ID)


def _compile_store(v: Verification, slot: int, insn: Insn) -> Handler:
    dst, src, off, size, following = insn.dst, insn.src, insn.off, SIZES[insn.code & SIZE_MASK], slot + 1
    is_immediate = insn.code & CLASS_MASK == ST
    immediate = known(insn.imm)
    source = -1 if is_immediate else src
    # The pointer last seen to point into the stack, and where: it need not be checked again.
    stack_base = _NOWHERE
    stack_off = 0

    def store(state: State) -> int:
        nonlocal stack_base, stack_off
        regs = state.frames[-1].regs
        base = regs[dst]
        value: Value | None = immediate if is_immediate else regs[src]
        if base is None or value is None:
            missing = dst if base is None else src
            refuse("uninitialized-register", slot, f"r{missing} is read before it is set", missing)
        if base is stack_base:
            stack.write_fixed(v, state, slot, stack_base, stack_off, size, value, source)
            return following
        access(v, state, slot, dst, base, off, size, is_write=True, value=value, source=source)
        assert base.__class__ is Pointer
        note_kind(v, slot, base)
        if base.kind is Kind.STACK and base.var.is_const:
            stack_base, stack_off = base, off + base.off + base.var.smin
        return following

    return store


def note_kind(v: Verification, slot: int, base: Value) -> None:
    """One load or store is rewritten for one kind of pointer, so it cannot serve two that need it."""
    assert isinstance(base, Pointer)
    kind: object = base.kind
    if base.kind is Kind.BTF_ID:
        kind = (base.kind, bool(base.flags & (Flag.UNTRUSTED | Flag.ALLOC)))
        if not base.flags & (Flag.UNTRUSTED | Flag.ALLOC | Flag.TRUSTED | Flag.RCU):
            kind = (base.kind, False)
    before = v.pointer_kinds.get(slot)
    if before is None:
        v.pointer_kinds[slot] = kind
    elif before != kind and (_needs_rewrite(before) or _needs_rewrite(kind)):
        refuse("mixed-pointers", slot, "one instruction is reached with pointers of kinds that it cannot serve both")


_REWRITTEN: Final = frozenset({Kind.CTX, Kind.SOCKET, Kind.SOCK_COMMON, Kind.TCP_SOCK, Kind.XDP_SOCK})


def _needs_rewrite(kind: object) -> bool:
    return kind in _REWRITTEN or isinstance(kind, tuple)


def access(
    v: Verification,
    state: State,
    slot: int,
    reg: int,
    base: Value,
    off: int,
    size: int,
    *,
    is_write: bool,
    value: Value | None = None,
    source: int = -1,
    is_load_signed: bool = False,
    is_atomic: bool = False,
) -> Value:
    """
    Check an access of `size` bytes at base + off, do it to the state, and return what a load yields.

    `value` is what a store writes (None: bytes of no known value), `source` its register.
    """
    if base.__class__ is Scalar:
        refuse("not-a-pointer", slot, f"r{reg} is a number, not a pointer", reg)
    assert isinstance(base, Pointer)
    kind = base.kind
    if kind is Kind.STACK:
        return _access_stack(v, state, slot, reg, base, off, size, is_write, value, source)
    if v.options.is_strict or is_atomic:
        check_alignment(v, slot, reg, base, off, size)
    off += base.off
    if base.flags & Flag.NULL and kind is not Kind.MAP_VALUE:
        refuse("null-dereference", slot, f"r{reg} is {base.type_name} and may be null", reg)
    if is_write and isinstance(value, Pointer) and not v.is_privileged:
        refuse("pointer-leak", slot, f"r{source} is a pointer and would be stored where others can read it", source)
    if kind is Kind.MAP_VALUE:
        return _access_map_value(v, state, slot, reg, base, off, size, is_write, value, source, is_atomic)
    if kind is Kind.CTX:
        loaded = context.access(v, slot, reg, base, off, size, is_write=is_write)
        if is_load_signed and isinstance(loaded, Pointer):
            refuse("context-access", slot, f"r{reg}: a pointer in the context is loaded with sign extension", reg)
        return loaded
    if kind is Kind.BTF_ID:
        return btf_access.access(v, state, slot, reg, base, off, size, is_write=is_write)
    if kind in PACKETS:
        if is_write and not may_write_packet(v):
            refuse("packet-write", slot, f"r{reg}: this program may not write to the packet", reg)
        check_packet(v, slot, reg, base, off, size)
        return UNKNOWN_SCALAR
    if kind is Kind.MEM:
        if is_write and base.flags & Flag.RDONLY:
            refuse("read-only", slot, f"r{reg} is {base.type_name} and cannot be written to", reg)
        if not base.flags & Flag.UNTRUSTED:
            check_region(v, slot, reg, base, off, size, base.size, "memory-out-of-bounds")
        return UNKNOWN_SCALAR
    return _access_rare(v, state, slot, reg, base, off, size, is_write)


def _access_rare(
    v: Verification, state: State, slot: int, reg: int, base: Pointer, off: int, size: int, is_write: bool
) -> Value:
    kind = base.kind
    if kind is Kind.MAP_KEY:
        if is_write:
            refuse("read-only", slot, f"r{reg} is a map key and cannot be written to", reg)
        assert base.map is not None
        check_region(v, slot, reg, base, off, size, base.map.spec.key_size, "memory-out-of-bounds")
        return UNKNOWN_SCALAR
    if kind in SOCKETS:
        return context.access_socket(v, slot, reg, base, off, size, is_write=is_write)
    if kind is Kind.FLOW_KEYS:
        if off < 0 or off + size > 56:
            refuse("memory-out-of-bounds", slot, f"r{reg}: flow keys have 56 bytes, not {off} to {off + size}", reg)
        return UNKNOWN_SCALAR
    if kind is Kind.BUF:
        return _access_buffer(slot, reg, base, off, size, is_write)
    if kind is Kind.TP_BUFFER:
        if off < 0 or not base.var.is_const or base.var.value:
            refuse("memory-out-of-bounds", slot, f"r{reg}: the offset in the tracepoint's buffer must be constant", reg)
        return UNKNOWN_SCALAR
    if kind is Kind.MAP_PTR:
        return _access_map_pointer(v, slot, reg, base, off, size, is_write)
    refuse("memory-access", slot, f"r{reg} is {base.type_name}, which is not memory", reg)


def _access_buffer(slot: int, reg: int, base: Pointer, off: int, size: int, is_write: bool) -> Value:
    if is_write and base.flags & Flag.RDONLY:
        refuse("read-only", slot, f"r{reg} is {base.type_name} and cannot be written to", reg)
    if off < 0 or not base.var.is_const or base.var.value:
        refuse("memory-out-of-bounds", slot, f"r{reg}: the offset {off} in a buffer is not allowed", reg)
    if base.size and off + size > base.size:
        refuse("memory-out-of-bounds", slot, f"r{reg}: bytes {off} to {off + size} of a buffer of {base.size}", reg)
    return UNKNOWN_SCALAR


def _access_map_pointer(
    v: Verification, slot: int, reg: int, base: Pointer, off: int, size: int, is_write: bool
) -> Value:
    if not v.is_privileged or v.subject.types is None:
        refuse("map-pointer-access", slot, f"r{reg} is a map, whose own fields are not accessible", reg)
    if off < 0:
        refuse("map-pointer-access", slot, f"r{reg}: negative offset {off} in a map", reg)
    if is_write:
        refuse("map-pointer-access", slot, f"r{reg}: the fields of a map can only be read", reg)
    found = btf_access.member_of_map(v, base, off, size)
    if found.problem:
        refuse("map-pointer-access", slot, f"r{reg}: {found.problem}", reg)
    if found.type_id:
        return Pointer(Kind.BTF_ID, flags=Flag.UNTRUSTED, types=v.subject.types, type_id=found.type_id)
    if found.flags & Flag.RDONLY and v.profile.at_least(6, 17):
        return Pointer(Kind.MEM, flags=Flag.RDONLY | Flag.UNTRUSTED)
    return UNKNOWN_SCALAR


def check_alignment(v: Verification, slot: int, reg: int, base: Pointer, off: int, size: int) -> None:
    """Refuse an access that is not aligned, where alignment is asked for."""
    bits = tnum.add(base.var.tnum, ((base.off + off) & tnum.U64, 0))
    if base.kind is Kind.PACKET:
        # Ethernet headers are 14 bytes; the network layer starts them 2 bytes after an aligned address.
        bits = tnum.add(bits, (2, 0))
    if not tnum.is_aligned(bits, size):
        refuse("misaligned", slot, f"r{reg}: an access of {size} bytes is not aligned to {size}", reg)


def _access_stack(
    v: Verification,
    state: State,
    slot: int,
    reg: int,
    base: Pointer,
    off: int,
    size: int,
    is_write: bool,
    value: Value | None,
    source: int,
) -> Value:
    var = base.var
    off += base.off
    if size > 1 and (not var.is_const or (off + var.value) & (size - 1)):
        bits = tnum.add(var.tnum, (off & tnum.U64, 0))
        if not tnum.is_aligned(bits, size):
            refuse("misaligned", slot, f"r{reg}: {size} bytes of stack at offset {off} are not aligned", reg)
    if not var.is_const and not v.is_privileged:
        refuse("stack-variable-offset", slot, f"r{reg}: the stack is accessed at an unknown offset", reg)
    stack.check_bounds(slot, reg, base, off, size)
    if var.is_const:
        off += var.smin
        if is_write:
            stack.write_fixed(v, state, slot, base, off, size, value, source)
            return UNKNOWN_SCALAR
        return stack.read_fixed(v, state, slot, base, off, size)
    if is_write:
        stack.write_variable(v, state, slot, reg, base, off, size, value)
        return UNKNOWN_SCALAR
    return stack.read_variable(v, state, slot, reg, base, off, size)


def check_region(
    v: Verification,
    slot: int,
    reg: int,
    base: Pointer,
    off: int,
    size: int,
    region: int,
    id_: str,
    *,
    allows_nothing: bool = False,
) -> None:
    """
    Refuse unless [off, off + size), moved by the variable offset, lies in [0, region). `off` begins with the
    known offset of the pointer.
    """
    var = base.var
    low, high = off + var.smin, off + var.umax
    if low >= 0 and high + size <= region and size > 0 and var.umax < MAX_VAR_OFF and base.off >= 0:
        return
    if base.off and v.profile.at_least(7, 1):
        # These kernels keep one offset, known or not, so that both parts of it have to be in bounds together.
        var = arith.add(var, constant(base.off))
        low, high = off - base.off + var.smin, off - base.off + var.umax
    name = base.type_name
    if var.smin < 0 and (var.smin == S64_MIN or low < 0):
        refuse("negative-offset", slot, f"r{reg}: the offset in {name} may be negative ({low})", reg)
    if low < 0 or (size <= 0 and not allows_nothing) or low + size > region:
        refuse(id_, slot, f"r{reg}: bytes {low} to {low + size} of {name}, which has {region}", reg)
    if var.umax >= MAX_VAR_OFF:
        refuse("unbounded-access", slot, f"r{reg}: the offset in {name} has no upper bound", reg)
    if high + size > region:
        refuse(id_, slot, f"r{reg}: bytes up to {high + size} of {name}, which has {region}", reg)


def check_packet(
    v: Verification, slot: int, reg: int, base: Pointer, off: int, size: int, *, allows_nothing: bool = False
) -> None:
    """Refuse unless comparisons have shown that the bytes are in the packet."""
    if base.var.smin < 0:
        refuse("negative-offset", slot, f"r{reg}: the offset in the packet may be negative", reg)
    is_empty_ok = size > 0 or allows_nothing
    if base.span < 0 or off < 0 or not is_empty_ok or off + size > base.span:
        claim = f"r{reg}: bytes {off} to {off + size} of the packet, of which {max(base.span, 0)} were checked"
        refuse("packet-out-of-bounds", slot, claim, reg)


_PACKET_READERS: Final = frozenset(
    {
        ProgType.BPF_PROG_TYPE_LWT_IN,
        ProgType.BPF_PROG_TYPE_LWT_OUT,
        ProgType.BPF_PROG_TYPE_LWT_SEG6LOCAL,
        ProgType.BPF_PROG_TYPE_SK_REUSEPORT,
        ProgType.BPF_PROG_TYPE_FLOW_DISSECTOR,
        ProgType.BPF_PROG_TYPE_CGROUP_SKB,
    }
)
_PACKET_WRITERS: Final = frozenset(
    {
        ProgType.BPF_PROG_TYPE_SCHED_CLS,
        ProgType.BPF_PROG_TYPE_SCHED_ACT,
        ProgType.BPF_PROG_TYPE_XDP,
        ProgType.BPF_PROG_TYPE_LWT_XMIT,
        ProgType.BPF_PROG_TYPE_SK_SKB,
        ProgType.BPF_PROG_TYPE_SK_MSG,
        ProgType.BPF_PROG_TYPE_CGROUP_SOCKOPT,
    }
)


def may_write_packet(v: Verification) -> bool:
    return v.prog_type in _PACKET_WRITERS


def may_read_packet(v: Verification) -> bool:
    return v.prog_type in _PACKET_WRITERS or v.prog_type in _PACKET_READERS


def _access_map_value(
    v: Verification,
    state: State,
    slot: int,
    reg: int,
    base: Pointer,
    off: int,
    size: int,
    is_write: bool,
    value: Value | None,
    source: int,
    is_atomic: bool,
) -> Value:
    if base.flags & Flag.NULL:
        refuse("null-dereference", slot, f"r{reg} is {base.type_name} and may be null", reg)
    facts = base.map
    assert facts is not None
    if facts.is_jump_table:
        return _access_jump_table(v, slot, reg, base, facts, off, size, is_write)
    if is_write and not facts.can_write():
        refuse("map-value-access", slot, f"r{reg}: programs may not write to the map {facts.spec.name!r}", reg)
    if not is_write and not facts.can_read():
        refuse("map-value-access", slot, f"r{reg}: programs may not read the map {facts.spec.name!r}", reg)
    check_region(v, slot, reg, base, off, size, facts.spec.value_size, "map-value-out-of-bounds")
    if facts.fields:
        kptr = check_special_fields(v, slot, reg, base, off, size, is_direct=True)
        if kptr is not None:
            return kptrs.access(v, state, slot, reg, base, kptr, is_write=is_write, value=value, is_atomic=is_atomic)
    if not is_write and facts.spec.is_frozen and base.var.is_const and not facts.can_write():
        constant_value = _frozen_value(facts, off + base.var.value, size)
        if constant_value is not None:
            return scalar(constant_value)
    return UNKNOWN_SCALAR


def _access_jump_table(
    v: Verification, slot: int, reg: int, base: Pointer, facts: MapFacts, off: int, size: int, is_write: bool
) -> Value:
    check_alignment(v, slot, reg, base, off - base.off, size)
    if is_write:
        refuse("map-value-access", slot, f"r{reg}: programs may not write to the jump table {facts.spec.name!r}", reg)
    check_region(v, slot, reg, base, off, size, facts.memory_bytes, "map-value-out-of-bounds")
    return loaded_place(slot, reg, base, off, size)


def check_special_fields(
    v: Verification, slot: int, reg: int, base: Pointer, off: int, size: int, *, is_direct: bool
) -> SpecialField | None:
    """Refuse an access that touches a lock, a timer and so on; return the kptr field it touches, if any."""
    facts = base.map
    assert facts is not None
    low, high = off + base.var.smin, off + base.var.umax + size
    for item in facts.fields_touched(low, high):
        if item.what in ("kptr", "kptr_untrusted", "percpu_kptr", "uptr") and is_direct:
            if not base.var.is_const:
                refuse("kptr-access", slot, f"r{reg}: a kptr is accessed at an unknown offset", reg)
            if low != item.off or size != 8:
                refuse("kptr-access", slot, f"r{reg}: a kptr at {item.off} is accessed in part", reg)
            return item
        claim = f"r{reg}: bytes {low} to {high} touch the {item.what} at {item.off}, which only its helpers may"
        refuse("map-value-access", slot, claim, reg)
    return None


def _frozen_value(facts: MapFacts, off: int, size: int) -> Range | None:
    contents = facts.spec.contents
    if contents is None or facts.spec.type is not MapType.BPF_MAP_TYPE_ARRAY or off + size > facts.spec.value_size:
        return None
    return constant(int.from_bytes(contents[off : off + size].ljust(size, b"\0"), "little"))
