"""
Programs from a random generator: sentences of a grammar that knows roughly what each register holds, so
that about half of them are safe, and mutations of any program.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from actplane.asm.insn import Insn, MapFd, MapValue
from actplane.asm.program import MapSpec, Program
from actplane.asm.uapi import AttachType, HelperId, MapType, ProgType

MAPS = {
    "array": MapSpec("array", MapType.BPF_MAP_TYPE_ARRAY, 4, 64, 4),
    "hash": MapSpec("hash", MapType.BPF_MAP_TYPE_HASH, 8, 48, 16),
    "data": MapSpec("data", MapType.BPF_MAP_TYPE_ARRAY, 4, 256, 1),
    "ring": MapSpec("ring", MapType.BPF_MAP_TYPE_RINGBUF, 0, 0, 4096),
}

KINDS: tuple[tuple[ProgType, AttachType | None, str | None], ...] = (
    (ProgType.BPF_PROG_TYPE_SOCKET_FILTER, None, None),
    (ProgType.BPF_PROG_TYPE_XDP, None, None),
    (ProgType.BPF_PROG_TYPE_SCHED_CLS, None, None),
    (ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, None, None),
    (ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_TRACE_RAW_TP, "sched_process_exec"),
    (ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, AttachType.BPF_CGROUP_INET4_CONNECT, None),
)

_ALU = (0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x90, 0xA0, 0xC0)
_JUMPS = (0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0, 0xD0)
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_SMALL = (0, 1, -1, 2, 7, 8, 15, 16, 31, 32, 63, 64, 100, 255, 256, 511)
_INTERESTING = (*_SMALL, 4095, 65535, 1 << 29, -(1 << 31), 2**31 - 1)


class NoSuchRegister(Exception):
    """No register holds what a statement needs; the statement is left out."""


@dataclass
class Writer:
    """One program being written: instructions, and what each register probably holds."""

    rng: random.Random
    prog_type: ProgType
    insns: list[Insn] = field(default_factory=list)
    kinds: dict[int, str] = field(default_factory=lambda: {1: "ctx", 10: "fp"})
    pending: list[tuple[int, int, dict[int, str]]] = field(default_factory=list)
    """Jumps without a target yet: (index of the instruction, statements still to come, registers then)."""

    def emit(self, code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0, symbol: object = None) -> None:
        self.insns.append(Insn(code, dst, src, off, imm, symbol))  # type: ignore[arg-type]

    def pick(self, *kinds: str) -> int:
        """Return a register that probably holds one of these kinds; now and then any register."""
        fitting = [reg for reg, kind in self.kinds.items() if kind in kinds]
        if self.rng.random() < 0.01:
            return self.rng.randrange(0, 10)
        if not fitting:
            raise NoSuchRegister
        return self.rng.choice(fitting)

    def fresh(self) -> int:
        return self.rng.choice((0, 2, 3, 4, 5, 6, 7, 8, 9))

    def slots(self, start: int, end: int) -> int:
        return sum(insn.slots for insn in self.insns[start:end])


def _constant(w: Writer) -> None:
    reg = w.fresh()
    number = w.rng.choice(_INTERESTING) if w.rng.random() < 0.7 else w.rng.randrange(-(1 << 31), 1 << 31)
    w.emit(w.rng.choice((0xB7, 0xB4)), reg, imm=number)
    w.kinds[reg] = "scalar"


def _move(w: Writer) -> None:
    src, dst = w.rng.choice(list(w.kinds)), w.fresh()
    w.emit(0xBF if w.rng.random() < 0.85 else 0xBC, dst, src)
    w.kinds[dst] = w.kinds[src] if w.insns[-1].code == 0xBF else "scalar"


def _arithmetic(w: Writer) -> None:
    op, wide = w.rng.choice(_ALU), w.rng.random() < 0.6
    dst = w.pick("scalar")
    if w.rng.random() < 0.5:
        w.emit(op | 8 | (7 if wide else 4), dst, w.pick("scalar"))
    else:
        number = w.rng.randrange(0, 32) if op in (0x60, 0x70, 0xC0) else w.rng.choice(_INTERESTING)
        if op in (0x30, 0x90):
            number = number or 3
        w.emit(op | (7 if wide else 4), dst, imm=number)
    w.kinds[dst] = "scalar"


def _extend(w: Writer) -> None:
    src, dst = w.pick("scalar"), w.fresh()
    if w.rng.random() < 0.6:
        w.emit(0xBF, dst, src, w.rng.choice((8, 16, 32)))
        w.kinds[dst] = "scalar"
    else:
        w.emit(w.rng.choice((0xD4, 0xDC, 0xD7)), src, imm=w.rng.choice((16, 32, 64)))


def _mask(w: Writer) -> None:
    w.emit(0x57, w.pick("scalar"), imm=w.rng.choice((1, 3, 7, 15, 31, 56, 63, 255)))


def _stack_store(w: Writer) -> None:
    size = w.rng.choice((1, 2, 4, 8, 8, 8))
    off = -size * w.rng.randrange(1, 64 // size + 1)
    if w.rng.random() < 0.3:
        w.emit(0x62 | _SIZES[size], 10, off=off, imm=w.rng.choice((0, 0, 1, -1, 77)))
    else:
        reg = w.rng.choice([r for r, k in w.kinds.items() if size == 8 or k == "scalar"] or [10])
        w.emit(0x63 | _SIZES[size], 10, reg, off)


def _stack_load(w: Writer) -> None:
    size, dst = w.rng.choice((1, 2, 4, 8, 8)), w.fresh()
    w.emit(0x61 | _SIZES[size], dst, 10, -size * w.rng.randrange(1, 64 // size + 1))
    w.kinds[dst] = "scalar"


def _branch(w: Writer) -> None:
    op, klass = w.rng.choice(_JUMPS), w.rng.choice((5, 5, 6))
    reg = w.pick("scalar")
    other = w.pick("scalar")
    w.pending.append((len(w.insns), w.rng.randrange(1, 5), dict(w.kinds)))
    if w.rng.random() < 0.35:
        w.emit(op | 8 | klass, reg, other)
    else:
        w.emit(op | klass, reg, imm=w.rng.choice(_SMALL))


def _loop(w: Writer) -> None:
    reg = w.rng.choice((6, 7, 8, 9))
    w.emit(0xB7, reg, imm=0)
    start = len(w.insns)
    w.kinds[reg] = "scalar"
    for _ in range(w.rng.randrange(0, 3)):
        w.rng.choice((_stack_store, _arithmetic, _mask))(w)
    w.emit(0x07, reg, imm=w.rng.choice((1, 1, 1, 2, 0)))
    w.emit(0xA5, reg, off=-(w.slots(start, len(w.insns)) + 1), imm=w.rng.randrange(1, 12))


def _forget_arguments(w: Writer) -> None:
    for reg in range(1, 6):
        w.kinds.pop(reg, None)


def _plain_call(w: Writer) -> None:
    w.emit(0x85, imm=int(w.rng.choice((HelperId.bpf_get_prandom_u32, HelperId.bpf_ktime_get_ns))))
    _forget_arguments(w)
    w.kinds[0] = "scalar"


def _lookup(w: Writer) -> None:
    name = w.rng.choice(("array", "hash"))
    if name == "array":
        w.emit(0x62, 10, off=-8, imm=w.rng.choice((0, 1, 3, 4, 9)))
    else:
        w.emit(0x7A, 10, off=-8, imm=w.rng.randrange(0, 9))
    w.emit(0xBF, 2, 10)
    w.emit(0x07, 2, imm=-8)
    w.emit(0x18, 1, 1, symbol=MapFd(name))
    w.emit(0x85, imm=int(HelperId.bpf_map_lookup_elem))
    _forget_arguments(w)
    keep = w.rng.choice((0, 6, 7, 8, 9))
    if keep:
        w.emit(0xBF, keep, 0)
    if w.rng.random() < 0.9:
        w.emit(0x15, 0, off=1, imm=0)
        w.emit(0x05, off=2)
        w.emit(0xB7, 0, imm=1)
        w.emit(0x95)
    w.kinds[0] = w.kinds[keep] = "value"


def _direct_value(w: Writer) -> None:
    reg = w.fresh()
    w.emit(0x18, reg, 2, symbol=MapValue("data", w.rng.choice((0, 0, 8, 128, 255))))
    w.kinds[reg] = "value"


def _value_access(w: Writer) -> None:
    base, size = w.pick("value"), w.rng.choice((1, 2, 4, 8))
    off = w.rng.choice((0, 0, 8, 16, 40, 47, 60, 63, -1))
    kind = w.rng.random()
    if kind < 0.4:
        dst = w.fresh()
        w.emit(0x61 | _SIZES[size], dst, base, off)
        w.kinds[dst] = "scalar"
    elif kind < 0.8:
        w.emit(0x63 | _SIZES[size], base, w.pick("scalar"), off)
    else:
        w.emit(0xC3 | _SIZES[w.rng.choice((4, 8))], base, w.pick("scalar"), off & ~7, w.rng.choice((0, 1, 0x40, 0xE1)))


def _value_move(w: Writer) -> None:
    base, offset = w.pick("value"), w.pick("scalar")
    if w.rng.random() < 0.8:
        w.emit(0x57, offset, imm=w.rng.choice((7, 15, 31, 63)))
    w.emit(0x0F, base, offset)


def _packet(w: Writer) -> None:
    if w.prog_type not in (ProgType.BPF_PROG_TYPE_XDP, ProgType.BPF_PROG_TYPE_SCHED_CLS):
        return
    start, end = (0, 4) if w.prog_type is ProgType.BPF_PROG_TYPE_XDP else (76, 80)
    context = w.pick("ctx")
    data, limit, probe = w.rng.sample((2, 3, 4, 5, 6, 7, 8, 9), 3)
    w.emit(0x61, data, context, start)
    w.emit(0x61, limit, context, end)
    w.emit(0xBF, probe, data)
    length = w.rng.choice((1, 8, 14, 34))
    w.emit(0x07, probe, imm=length)
    w.emit(w.rng.choice((0x2D, 0x2D, 0x3D)), probe, limit, 1)
    w.emit(0x05, off=2)
    w.emit(0xB7, 0, imm=0)
    w.emit(0x95)
    size = w.rng.choice((1, 2, 4))
    w.emit(0x61 | _SIZES[size], 0, data, w.rng.choice((0, length - size, length - size, length)))
    w.kinds.update({data: "packet", limit: "end", probe: "packet", 0: "scalar"})


def _record(w: Writer) -> None:
    w.emit(0x18, 1, 1, symbol=MapFd("ring"))
    w.emit(0xB7, 2, imm=w.rng.choice((8, 16, 64)))
    w.emit(0xB7, 3, imm=0)
    w.emit(0x85, imm=int(HelperId.bpf_ringbuf_reserve))
    _forget_arguments(w)
    w.emit(0x55, 0, off=2, imm=0)
    w.emit(0xB7, 0, imm=0)
    w.emit(0x95)
    w.emit(0x7A, 0, off=w.rng.choice((0, 0, 8, 56)), imm=5)
    if w.rng.random() < 0.9:
        w.emit(0xBF, 1, 0)
        w.emit(0xB7, 2, imm=0)
        w.emit(0x85, imm=int(w.rng.choice((HelperId.bpf_ringbuf_submit, HelperId.bpf_ringbuf_discard))))
        w.kinds.pop(0, None)


def _sized_read(w: Writer) -> None:
    if w.prog_type not in (ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, ProgType.BPF_PROG_TYPE_TRACING):
        return
    length = w.pick("scalar")
    if w.rng.random() < 0.8:
        w.emit(0x57, length, imm=w.rng.choice((7, 31, 63)))
    w.emit(0xBF, 2, length)
    w.emit(0xBF, 1, 10)
    w.emit(0x07, 1, imm=w.rng.choice((-64, -64, -32, -8)))
    w.emit(0xB7, 3, imm=0)
    w.emit(0x85, imm=int(HelperId.bpf_probe_read_kernel))
    _forget_arguments(w)
    w.kinds[0] = "scalar"


def _context(w: Writer) -> None:
    context, dst = w.pick("ctx"), w.fresh()
    size = 8 if w.prog_type in (ProgType.BPF_PROG_TYPE_TRACING, ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT) else 4
    off = 24 if w.prog_type is ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR else size * w.rng.randrange(0, 4)
    w.emit(0x61 | _SIZES[size], dst, context, off)
    w.kinds[dst] = "scalar" if w.prog_type is not ProgType.BPF_PROG_TYPE_TRACING else "struct"


def _struct(w: Writer) -> None:
    base, dst = w.pick("struct"), w.fresh()
    w.emit(0x79, dst, base, 8 * w.rng.randrange(0, 32))
    w.kinds[dst] = w.rng.choice(("scalar", "struct"))


_STATEMENTS: tuple[tuple[Callable[[Writer], None], int], ...] = (
    (_constant, 6),
    (_move, 4),
    (_arithmetic, 10),
    (_extend, 3),
    (_mask, 4),
    (_stack_store, 7),
    (_stack_load, 5),
    (_branch, 8),
    (_loop, 1),
    (_plain_call, 3),
    (_lookup, 4),
    (_direct_value, 2),
    (_value_access, 6),
    (_value_move, 4),
    (_packet, 3),
    (_record, 2),
    (_sized_read, 2),
    (_context, 4),
    (_struct, 3),
)


def sentence(rng: random.Random) -> Program:
    """Return one program of the grammar."""
    prog_type, attach_type, attach_to = rng.choice(KINDS)
    w = Writer(rng, prog_type)
    w.emit(0xBF, 6, 1)
    w.kinds[6] = "ctx"
    for reg in rng.sample((0, 7, 8, 9), 2):
        w.emit(0xB7, reg, imm=rng.choice(_INTERESTING))
        w.kinds[reg] = "scalar"
    for _ in range(rng.randrange(2, 22)):
        write_statement(w)
    write_end(w)
    return Program("generated", prog_type, tuple(w.insns), attach_type, attach_to)


_WEIGHTED = [one for one, weight in _STATEMENTS for _ in range(weight)]


def write_statement(w: Writer) -> None:
    """Write one statement, or nothing if no register holds what it needs."""
    before = len(w.insns)
    try:
        w.rng.choice(_WEIGHTED)(w)
    except NoSuchRegister:
        del w.insns[before:]
    land(w)


def write_end(w: Writer) -> None:
    """Write an exit, where all jumps end that have none yet."""
    w.emit(0xB7, 0, imm=w.rng.choice((0, 1, 1, 1)))
    for index, _, _ in w.pending:
        _set_target(w, index, len(w.insns) - 1)
    w.pending = []
    w.emit(0x95)


def land(w: Writer) -> None:
    """Let the jumps whose time has come end here."""
    left = []
    for index, count, then in w.pending:
        if count > 0:
            left.append((index, count - 1, then))
        else:
            _set_target(w, index, len(w.insns))
            # What was set on one of the two ways only is not to be relied on.
            w.kinds = {reg: kind for reg, kind in w.kinds.items() if then.get(reg) == kind}
    w.pending = left


def _set_target(w: Writer, index: int, target: int) -> None:
    w.insns[index] = replace(w.insns[index], off=w.slots(index + 1, target))


def mutation(rng: random.Random, program: Program) -> Program:
    """Return the program with one or two fields changed, or an instruction gone or doubled."""
    insns = list(program.insns)
    for _ in range(rng.randrange(1, 3)):
        at = rng.randrange(len(insns))
        insn = insns[at]
        kind = rng.randrange(8)
        if kind == 0:
            insns[at] = replace(insn, dst=rng.randrange(0, 11))
        elif kind == 1 and insn.code != 0x18 and (insn.code & 8 or insn.code & 7 in (1, 3)):
            insns[at] = replace(insn, src=rng.randrange(0, 11))
        elif kind == 2 and insn.code & 7 in (1, 2, 3, 5, 6) and insn.code not in (0x85, 0x95):
            off = insn.off + rng.choice((-8, -4, -1, 1, 4, 8))
            insns[at] = replace(insn, off=off if -(1 << 15) <= off < 1 << 15 else insn.off)
        elif kind == 3 and (insn.code & 15 in (4, 5, 6, 7) or insn.code & 7 == 2) and insn.code not in (0x05, 0x95):
            insns[at] = replace(insn, imm=rng.choice(_INTERESTING))
        elif kind == 4 and insn.code & 7 in (4, 7) and insn.code & 0xF0 not in (0xB0, 0xD0, 0x80):
            insns[at] = replace(insn, code=rng.choice(_ALU) | (insn.code & 0x0F))
        elif kind == 5 and insn.code & 7 in (5, 6) and insn.code & 0xF0 not in (0x00, 0x80, 0x90):
            insns[at] = replace(insn, code=rng.choice(_JUMPS) | (insn.code & 0x0F))
        elif kind == 6 and insn.code not in (0x18, 0x95):
            insns[at] = Insn(0xB7, 5, imm=0)
        elif kind == 7 and insn.code & 7 in (1, 2, 3) and insn.code & 0xE0 == 0x60:
            insns[at] = replace(insn, code=(insn.code & ~0x18) | _SIZES[rng.choice((1, 2, 4, 8))])
    return replace(program, insns=tuple(insns))
