"""Accesses to the context and to sockets, by the tables and by the BTF of what is attached to."""

from __future__ import annotations

from typing import Final

from actplane.asm.uapi import ProgType
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Value
from actplane.verifier.paths.verification import Verification
from actplane.verifier.tables import context_tables
from actplane.verifier.tables.refusals import in_bytes, refuse


def type_names(v: Verification) -> tuple[str, str]:
    """Return the names of the program and attach type without their prefixes."""
    attach = v.program.attach_type
    prog = v.prog_type.name.removeprefix("BPF_PROG_TYPE_")
    return prog, attach.name.removeprefix("BPF_") if attach is not None else ""


def access(
    v: Verification,
    slot: int,
    reg: int,
    base: Pointer,
    off: int,
    size: int,
    *,
    is_write: bool,
) -> Value:
    """Check an access to the context; `off` has the pointer's own offset in it. Return what a load yields."""
    var = base.var
    allows_variable = v.prog_type is ProgType.BPF_PROG_TYPE_SYSCALL and v.profile.at_least(7, 0)
    if not allows_variable:
        if base.off < 0:
            refuse("context-modified", slot, f"r{reg}: the context at the negative offset {base.off}", reg)
        if base.off and v.prog_type is not ProgType.BPF_PROG_TYPE_SYSCALL and not v.profile.at_least(7, 0):
            refuse("context-modified", slot, f"r{reg} is the context plus {base.off} and cannot be used so", reg)
        if not var.is_const or var.value:
            refuse("context-modified", slot, f"r{reg} is the context at an unknown offset", reg)
    elif not var.is_const:
        if var.smin < 0 or off + var.umax + size > 0xFFFF:
            refuse("context-access", slot, f"r{reg}: the context is accessed out of bounds", reg)
        return UNKNOWN_SCALAR
    if v.subject.attach is not None:
        return _attach_argument(v, slot, reg, off, size, is_write)
    return _listed_field(v, slot, reg, off, size, is_write)


def _attach_argument(v: Verification, slot: int, reg: int, off: int, size: int, is_write: bool) -> Value:
    point = v.subject.attach
    words = f"r{reg}: {in_bytes(size)} at offset {off} of the arguments of {point.name}"
    is_lsm = v.prog_type is ProgType.BPF_PROG_TYPE_LSM
    if off < 0 or off >= 96 or (not is_lsm and (is_write or off % size)):
        refuse("context-access", slot, f"{words} cannot be accessed", reg)
    if off % 8:
        refuse("context-access", slot, f"{words}: every argument is at a multiple of 8", reg)
    index = off // 8
    args = point.args
    if index == len(args) and point.has_return_arg and point.returns is not None:
        argument = point.returns
    elif index >= len(args):
        refuse("context-access", slot, f"{words}, which end at {8 * len(args)}", reg)
    else:
        argument = args[index]
    if argument.problem:
        refuse("context-access", slot, argument.problem, reg)
    value = argument.value
    if argument.is_pointer and size != 8 and v.profile.at_least(6, 12):
        refuse("context-access", slot, f"{words}: a pointer is loaded in whole", reg)
    if isinstance(value, Pointer):
        if size != 8 and v.profile.at_least(6, 12):
            refuse("context-access", slot, f"{words}: a pointer is loaded in whole", reg)
        if is_write:
            return UNKNOWN_SCALAR
        return value.but(id=v.new_id()) if value.flags & Flag.NULL else value
    return value if value is not None else UNKNOWN_SCALAR


def _listed_field(v: Verification, slot: int, reg: int, off: int, size: int, is_write: bool) -> Value:
    prog, attach = type_names(v)
    layout = context_tables.layout_of(prog, attach, v.profile.version)
    if layout is None:
        refuse("unsupported", slot, f"the context of {prog} programs is not modelled")
    is_kept_back = layout == "cgroup_skb" and not v.is_privileged and _needs_privileges(off, is_write=is_write)
    is_kept_back |= layout == "regs_rw" and is_write and not v.profile.writes_registers
    if is_kept_back or not context_tables.is_allowed(layout, off, size, v.profile.version, is_write=is_write):
        verb = "write" if is_write else "read"
        refuse("context-access", slot, f"r{reg}: {prog} programs may not {verb} {in_bytes(size)} at {off}", reg)
    if is_write:
        return UNKNOWN_SCALAR
    found = context_tables.FIELDS.get(layout, {}).get((off, size))
    if layout == "netfilter":
        return _netfilter_field(v, off)
    if found is None:
        return UNKNOWN_SCALAR
    id_ = v.new_id() if found.flags & Flag.NULL else 0
    return Pointer(found.kind, flags=found.flags, id=id_)


def _needs_privileges(off: int, *, is_write: bool) -> bool:
    """Whether a field of the socket buffer is for privileged programs: data, data_end, and setting tstamp."""
    return 76 <= off < 84 or (is_write and 152 <= off < 160)


def _netfilter_field(v: Verification, off: int) -> Value:
    types = v.subject.types
    name = ("nf_hook_state", "sk_buff")[off // 8]
    type_id = types.id_of(4, name) if types is not None else None
    if types is None or type_id is None:
        return UNKNOWN_SCALAR
    return Pointer(Kind.BTF_ID, flags=Flag.TRUSTED, types=types, type_id=type_id)


# Offsets in struct bpf_sock of what is read as 4 bytes, and of what may be read as fewer; in bpf_tcp_sock of
# what has 8 bytes, and of the last member; bpf_xdp_sock has one member.
_SOCK_WIDE: Final = frozenset(range(0, 80, 4))
_SOCK_NARROW: Final = frozenset({*range(24, 44), *range(52, 72), 44, 48, 49, 4, 8, 12, 72, 76})
_TCP_SOCK_LONG: Final = frozenset({80, 88})
_TCP_SOCK_LAST: Final = 108


def access_socket(v: Verification, slot: int, reg: int, base: Pointer, off: int, size: int, *, is_write: bool) -> Value:
    """Check a load from a socket."""
    if base.flags & Flag.NULL:
        refuse("null-dereference", slot, f"r{reg} is {base.type_name} and may be null", reg)
    if is_write:
        refuse("read-only", slot, f"r{reg} is {base.type_name} and cannot be written to", reg)
    if base.var.smin < 0:
        refuse("negative-offset", slot, f"r{reg}: the offset in {base.type_name} may be negative", reg)
    is_fixed = base.var.is_const and base.var.value == 0
    if base.kind is Kind.TCP_SOCK:
        is_ok = size == 8 if off in _TCP_SOCK_LONG else size == 4 and off % 4 == 0 and 0 <= off <= _TCP_SOCK_LAST
        is_ok = is_ok and off - 4 not in _TCP_SOCK_LONG
    elif base.kind is Kind.XDP_SOCK:
        is_ok = off == 0 and size == 4
    elif base.kind is Kind.SOCK_COMMON:
        # Type, protocol, mark and priority are those of full sockets only.
        is_ok = _sock_ok(off, size) and not 8 <= off < 24
    else:
        is_ok = _sock_ok(off, size)
    if not is_ok or not is_fixed:
        refuse("context-access", slot, f"r{reg}: {in_bytes(size)} at {off} of {base.type_name} cannot be accessed", reg)
    return UNKNOWN_SCALAR


def _sock_ok(off: int, size: int) -> bool:
    if size == 4:
        return off in _SOCK_WIDE
    if size == 2 and off == 48:
        return True
    return size in (1, 2) and off % size == 0 and off in _SOCK_NARROW
