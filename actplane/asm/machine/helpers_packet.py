"""Helpers on packets: their bytes, size and checksums."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from actplane.asm.machine.arithmetic import fold_checksum, internet_checksum, to_signed
from actplane.asm.machine.faults import Fault
from actplane.asm.machine.packets import Packet
from actplane.asm.machine.registry import U32, helper
from actplane.asm.uapi import HelperId, ProgType

if TYPE_CHECKING:
    from actplane.asm.machine.machine import Machine

BPF_F_PSEUDO_HDR = 0x10
BPF_F_MARK_MANGLED_0 = 0x20
BPF_F_MARK_ENFORCE = 0x40
BPF_F_HDR_FIELD_MASK = 0xF
BPF_HDR_START_MAC, BPF_HDR_START_NET = 0, 1
TC_ACT_REDIRECT, XDP_REDIRECT = 7, 4
MAX_PACKET = 0xFFFF


def _packet(machine: Machine) -> Packet:
    packet = machine.running.packet
    if packet is None:
        raise Fault("this helper needs a packet: the run was given none", hint="run(..., packet=b'...')")
    return packet


@helper(HelperId.bpf_skb_load_bytes, HelperId.bpf_xdp_load_bytes)
def skb_load_bytes(machine: Machine, context: int, offset: int, destination: int, size: int) -> int:
    size &= U32
    data = _packet(machine).load(offset & U32, size)
    if data is None:
        machine.memory.zero(destination, size)
        return -errno.EFAULT
    machine.memory.write(destination, data)
    return 0


@helper(HelperId.bpf_skb_load_bytes_relative)
def skb_load_bytes_relative(
    machine: Machine, context: int, offset: int, destination: int, size: int, start: int
) -> int:
    start &= U32
    if start not in (BPF_HDR_START_MAC, BPF_HDR_START_NET):
        machine.memory.zero(destination, size & U32)
        return -errno.EFAULT
    base = _packet(machine).network_offset if start == BPF_HDR_START_NET else 0
    return skb_load_bytes(machine, context, base + (offset & U32), destination, size)


@helper(HelperId.bpf_skb_store_bytes)
def skb_store_bytes(machine: Machine, context: int, offset: int, source: int, size: int, flags: int) -> int:
    data = machine.memory.read(source, size & U32)
    return 0 if _packet(machine).store(offset & U32, data) else -errno.EFAULT


@helper(HelperId.bpf_xdp_store_bytes)
def xdp_store_bytes(machine: Machine, context: int, offset: int, source: int, size: int) -> int:
    return skb_store_bytes(machine, context, offset, source, size, 0)


@helper(HelperId.bpf_skb_pull_data)
def skb_pull_data(machine: Machine, context: int, size: int) -> int:
    # All bytes are linear here: nothing to pull, but not more than there are.
    return 0 if size & U32 <= len(_packet(machine).content) else -errno.ENOMEM


@helper(HelperId.bpf_xdp_get_buff_len)
def xdp_get_buff_len(machine: Machine, context: int) -> int:
    return len(_packet(machine).content)


@helper(HelperId.bpf_skb_change_tail)
def skb_change_tail(machine: Machine, context: int, size: int, flags: int) -> int:
    packet = _packet(machine)
    size &= U32
    if flags or not packet.network_offset <= size <= MAX_PACKET:
        return -errno.EINVAL
    packet.replace(packet.content[:size].ljust(size, b"\0"))
    return 0


@helper(HelperId.bpf_xdp_adjust_head)
def xdp_adjust_head(machine: Machine, context: int, delta: int) -> int:
    packet = _packet(machine)
    change = to_signed(delta, 32)
    content = packet.content
    if change < -packet.headroom or len(content) - change < 14:
        return -errno.EINVAL
    packet.headroom += change
    packet.replace(bytes(-change) + content if change < 0 else content[change:])
    return 0


@helper(HelperId.bpf_xdp_adjust_tail)
def xdp_adjust_tail(machine: Machine, context: int, delta: int) -> int:
    packet = _packet(machine)
    content = packet.content
    size = len(content) + to_signed(delta, 32)
    if not 14 <= size <= MAX_PACKET:
        return -errno.EINVAL
    packet.replace(content[:size].ljust(size, b"\0"))
    return 0


@helper(HelperId.bpf_xdp_adjust_meta)
def xdp_adjust_meta(machine: Machine, context: int, delta: int) -> int:
    packet = _packet(machine)
    size = packet.metadata_size - to_signed(delta, 32)
    if size % 4 or not 0 <= size <= 32:
        return -errno.EACCES
    metadata = bytes(packet.region.buffer[: packet.metadata_size])
    packet.replace(packet.content, metadata.rjust(size, b"\0")[-size:] if size else b"")
    return 0


@helper(HelperId.bpf_redirect, HelperId.bpf_redirect_peer)
def redirect(machine: Machine, interface: int, flags: int) -> int:
    machine.redirects.append(interface & U32)
    is_xdp = machine.running.program.prog_type is ProgType.BPF_PROG_TYPE_XDP
    return XDP_REDIRECT if is_xdp else TC_ACT_REDIRECT


@helper(HelperId.bpf_csum_diff)
def csum_diff(machine: Machine, old: int, old_size: int, new: int, new_size: int, seed: int) -> int:
    old_size, new_size, seed = old_size & U32, new_size & U32, seed & U32
    if old_size % 4 or new_size % 4:
        return -errno.EINVAL
    added = internet_checksum(machine.memory.read(new, new_size)) if new_size else 0
    removed = internet_checksum(machine.memory.read(old, old_size)) if old_size else 0
    # Subtracting in ones' complement is adding the inverse.
    total = seed + added + (~removed & U32 if old_size else 0)
    while total >> 32:
        total = (total & U32) + (total >> 32)
    return ~fold_checksum(total) & 0xFFFF


def _replace_checksum(machine: Machine, offset: int, old: int, new: int, flags: int) -> int:
    """Update the 16-bit checksum field at `offset` for a value that changes from old to new; its size is in `flags`."""
    packet = _packet(machine)
    field = packet.load(offset & U32, 2)
    if offset & U32 > MAX_PACKET or offset % 2 or field is None:
        return -errno.EFAULT
    stored = int.from_bytes(field, "little")
    means_none = bool(flags & BPF_F_MARK_MANGLED_0)
    if means_none and not flags & BPF_F_MARK_ENFORCE and stored == 0:
        return 0
    size = flags & BPF_F_HDR_FIELD_MASK
    if size == 0:
        # `new` is a difference that bpf_csum_diff has computed.
        if old:
            return -errno.EINVAL
        change = new & U32
    elif size in (2, 4):
        mask = (1 << 8 * size) - 1
        change = (~old & mask) + (new & mask)
    else:
        return -errno.EINVAL
    result = fold_checksum((~stored & 0xFFFF) + change)
    if means_none and result == 0:
        # A UDP checksum of 0 says that there is none.
        result = 0xFFFF
    packet.store(offset & U32, result.to_bytes(2, "little"))
    return 0


@helper(HelperId.bpf_l3_csum_replace)
def l3_csum_replace(machine: Machine, context: int, offset: int, old: int, new: int, size: int) -> int:
    if size & ~BPF_F_HDR_FIELD_MASK:
        return -errno.EINVAL
    return _replace_checksum(machine, offset, old, new, size)


@helper(HelperId.bpf_l4_csum_replace)
def l4_csum_replace(machine: Machine, context: int, offset: int, old: int, new: int, flags: int) -> int:
    known = BPF_F_MARK_MANGLED_0 | BPF_F_MARK_ENFORCE | BPF_F_PSEUDO_HDR | BPF_F_HDR_FIELD_MASK
    if flags & ~known:
        return -errno.EINVAL
    return _replace_checksum(machine, offset, old, new, flags)


@helper(HelperId.bpf_csum_update)
def csum_update(machine: Machine, context: int, checksum: int) -> int:
    # Only a packet whose checksum the card has computed takes it; these have none.
    return -errno.EOPNOTSUPP
