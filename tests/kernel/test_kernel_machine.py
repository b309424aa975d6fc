"""
The interpreter against the running kernel: random programs, the same bytes, the same results.

Every program is an XDP program that takes r0 to r9 and 64 bytes of stack from the packet (so the
verifier knows none of the values), computes something at random from them, and folds everything it
has into the 32 bits that BPF_PROG_TEST_RUN returns. The interpreter runs the middle of it, with the
registers and the stack set from outside, and its fold is done in plain Python; a smaller number of
programs is interpreted whole.
"""

from __future__ import annotations

import errno
import os
import random
import struct

import pytest

from actplane import asm
from actplane.asm import R0, R1, R2, R3, R4, R10, Insn, Kind, Program, ProgType, Reg, Size
from actplane.asm.disasm import format_insn
from actplane.asm.isa import FORMS, Form
from actplane.asm.machine import LoadedProgram as InterpretedProgram
from actplane.asm.machine import Machine
from actplane.errors import KernelError, RejectedByKernel
from actplane.loader.programs import LoadedProgram, load

# An emulated guest takes ten times as long for each program, and there are several guests.
IS_GUEST = "ACTPLANE_GUEST" in os.environ
PROGRAMS_PER_TEST = 50 if IS_GUEST else 2000
TESTS = 4 if IS_GUEST else 10
WHOLE_PROGRAMS = 20 if IS_GUEST else 500
STACK_BYTES = 64
PACKET_BYTES = 80 + STACK_BYTES
INTERESTING = (
    *(0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 255, 256),
    *((1 << bits) + delta for bits in (15, 16, 31, 32, 63) for delta in (-1, 0, 1)),
    *((1 << 64) - small for small in (1, 2, 7, 64, 1 << 31, 1 << 32)),
)

COMPUTING = [form for form in FORMS if form.kind in (Kind.ALU, Kind.NEG, Kind.MOVSX, Kind.END)]
JUMPS = [form for form in FORMS if form.kind is Kind.JUMP]
LOADS = [form for form in FORMS if form.kind in (Kind.LDX, Kind.LDXSX)]
STORES = [form for form in FORMS if form.kind in (Kind.ST, Kind.STX)]
ATOMICS = [form for form in FORMS if form.kind is Kind.ATOMIC]
ORDERED = [form for form in FORMS if form.kind in (Kind.LOAD_ACQUIRE, Kind.STORE_RELEASE)]


def number(rng: random.Random, bits: int) -> int:
    """A signed immediate: an interesting one, a small one or any."""
    value = rng.choice((rng.choice(INTERESTING), rng.randrange(-4, 70), rng.getrandbits(bits)))
    return ((value + (1 << (bits - 1))) & ((1 << bits) - 1)) - (1 << (bits - 1))


def computation(rng: random.Random, form: Form) -> Insn:
    off = rng.choice(form.off.values) if form.off.values else form.off.low
    src = rng.randrange(10) if form.has_register_source else 0
    imm = form.imm.low
    if form.imm.high - form.imm.low > 100:
        imm = number(rng, 32)
        if form.operation in ("div", "mod", "sdiv", "smod"):
            imm = imm or 1  # the verifier refuses to divide by a constant zero
        if form.operation in ("lsh", "rsh", "arsh"):
            imm %= form.width  # and to shift by a constant too large
    return Insn(form.code, rng.randrange(10), src, off, imm)


def access(rng: random.Random, form: Form) -> Insn:
    """A load or store of the stack, aligned because atomics must be."""
    assert form.size is not None
    size = int(form.size.value)
    offset = -size * rng.randrange(1, STACK_BYTES // size + 1)
    register = rng.randrange(10)
    if form.kind in (Kind.LDX, Kind.LDXSX, Kind.LOAD_ACQUIRE):
        return Insn(form.code, register, 10, offset, form.imm.low)
    if form.kind is Kind.ST:
        return Insn(form.code, 10, 0, offset, number(rng, 32))
    return Insn(form.code, 10, register, offset, form.imm.low)


def body(rng: random.Random, forms: dict[str, list[Form]], length: int) -> list[Insn]:
    insns: list[Insn] = []
    while len(insns) < length:
        what = rng.choices(("compute", "jump", "access"), (10, 2, 3))[0]
        if what == "compute":
            insns.append(computation(rng, rng.choice(forms["compute"])))
        elif what == "access":
            insns.append(access(rng, rng.choice(forms["access"])))
        else:
            form = rng.choice(forms["jump"])
            distance = rng.randrange(1, 4)
            src = rng.randrange(10) if form.has_register_source else 0
            imm = 0 if form.has_register_source else number(rng, 32)
            insns.append(Insn(form.code, rng.randrange(10), src, distance, imm))
            insns.extend(computation(rng, rng.choice(forms["compute"])) for _ in range(distance))
    return insns


def prologue() -> list[Insn]:
    """Leave with 0 unless the packet is long enough; then r0 to r9 and the stack are its bytes."""
    insns = [
        asm.ldx(Size.W, R2, R1, 0),
        asm.ldx(Size.W, R3, R1, 4),
        asm.mov64(R4, R2),
        asm.add64(R4, PACKET_BYTES),
        asm.jmp("jle", R4, R3, 2),
        asm.mov64(R0, 0),
        asm.exit_(),
    ]
    for offset in range(0, STACK_BYTES, 8):
        insns += [asm.ldx(Size.DW, R0, R2, 80 + offset), asm.stx(Size.DW, R10, R0, offset - STACK_BYTES)]
    order = [register for register in range(10) if register != 2] + [2]
    return insns + [asm.ldx(Size.DW, Reg(register), R2, 8 * register) for register in order]


def epilogue() -> list[Insn]:
    """Fold all registers and the stack into 32 bits; multiplying by an odd number loses nothing."""
    insns = []
    for register in range(1, 10):
        insns += [asm.mul64(R0, 0x1B873593), asm.xor64(R0, Reg(register))]
    for offset in range(0, STACK_BYTES, 8):
        insns += [asm.mul64(R0, 0x1B873593), asm.ldx(Size.DW, R1, R10, offset - STACK_BYTES), asm.add64(R0, R1)]
    return [*insns, asm.mov64(R1, R0), asm.rsh64(R1, 32), asm.xor64(R0, R1), asm.exit_()]


PROLOGUE, EPILOGUE = prologue(), epilogue()


def whole_program(middle: list[Insn]) -> Program:
    return Program("random", ProgType.BPF_PROG_TYPE_XDP, (*PROLOGUE, *middle, *EPILOGUE))


def interpret(middle: InterpretedProgram, packet: bytes) -> int:
    """What the whole program returns, with nothing but its middle interpreted."""
    words = struct.unpack(f"<{PACKET_BYTES // 8}Q", packet)
    execution = middle.start()
    execution.registers[:10] = words[:10]
    stack = execution.frame.stack.buffer
    stack[-STACK_BYTES:] = packet[80:]
    execution.run()
    folded = execution.registers[0]
    for register in range(1, 10):
        folded = (folded * 0x1B873593) % 2**64 ^ execution.registers[register]
    for (word,) in struct.iter_unpack("<Q", stack[-STACK_BYTES:]):
        folded = (folded * 0x1B873593 + word) % 2**64
    return (folded ^ folded >> 32) & 0xFFFFFFFF


def listing(program: Program) -> str:
    return "\n".join(map(format_insn, program.insns))


def random_packet(rng: random.Random) -> bytes:
    words = [rng.choice((rng.choice(INTERESTING), rng.getrandbits(64))) for _ in range(PACKET_BYTES // 8)]
    return struct.pack(f"<{len(words)}Q", *words)


def loads(insns: list[Insn]) -> LoadedProgram | None:
    """Load a program; None if the verifier does not take it."""
    try:
        return load(Program("probe", ProgType.BPF_PROG_TYPE_XDP, tuple(insns)), {})
    except RejectedByKernel:
        return None


@pytest.fixture(scope="module")
def forms() -> dict[str, list[Form]]:
    """The forms of instructions that the running kernel knows."""
    try:
        probe = loads([asm.mov64(R0, 2), asm.exit_()])
    except KernelError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            pytest.skip("loading programs is not permitted here")
        raise
    assert probe is not None
    probe.close()

    def is_known(insn: Insn) -> bool:
        start = [asm.mov64(Reg(register), register + 1) for register in range(10)]
        found = loads([*start, asm.st(Size.DW, R10, -8, 1), insn, asm.mov64(R0, 0), asm.exit_()])
        if found is not None:
            found.close()
        return found is not None

    rng = random.Random(0)

    def sample(form: Form) -> Insn:
        insn = computation(rng, form) if form in COMPUTING else access(rng, form)
        return insn if form in COMPUTING else Insn(insn.code, insn.dst, insn.src, -8, insn.imm)

    jumps = [form for form in JUMPS if is_known(Insn(form.code, 1, 2 if form.has_register_source else 0, 0, 0))]
    return {
        "compute": [form for form in COMPUTING if is_known(sample(form))],
        "jump": jumps,
        "access": [form for form in LOADS + STORES + ATOMICS + ORDERED if is_known(sample(form))],
    }


@pytest.mark.no_cover  # a sweep: several times as long when measured
@pytest.mark.parametrize("seed", range(TESTS))
def test_random_programs_give_what_the_kernel_gives(forms: dict[str, list[Form]], seed: int) -> None:
    rng = random.Random(seed)
    machine = Machine()
    for number_of_program in range(PROGRAMS_PER_TEST):
        middle = body(rng, forms, rng.randrange(4, 16))
        interpreted = machine.load([*middle, asm.exit_()])
        program = whole_program(middle)
        with load(program, {}) as loaded:
            for packet in (random_packet(rng), random_packet(rng)):
                expected = loaded.test_run(packet).retval
                where = f"program {number_of_program} of seed {seed}, packet {packet.hex()}:\n{listing(program)}"
                assert interpret(interpreted, packet) == expected, where


@pytest.mark.no_cover  # a sweep: several times as long when measured
def test_whole_random_programs_give_what_the_kernel_gives(forms: dict[str, list[Form]]) -> None:
    rng = random.Random(-1)
    for _ in range(WHOLE_PROGRAMS):
        program = whole_program(body(rng, forms, 12))
        packet = random_packet(rng)
        with load(program, {}) as loaded:
            expected = loaded.test_run(packet).retval
        assert Machine().load(program).run(packet=packet).value & 0xFFFFFFFF == expected, listing(program)


CALLING = """
.prog calling xdp
{prologue}
    *(u64 *)(r10 -72) = 3             // rounds left
again:
    call work
    r2 = r6
    r3 = r7
    r4 = r8
    r5 = r9
    r1 = *(u64 *)(r10 -72)
    r1 -= 1
    *(u64 *)(r10 -72) = r1
    if r1 == 0 goto done
    r1 = r0
    goto again
done:
{epilogue}
.func work
    r0 = r5
    r6 = r1
    r7 = r2
    r8 = r3
    r9 = r4
{stack}
{middle}
    exit
"""


@pytest.mark.no_cover  # a sweep: several times as long when measured
def test_random_functions_called_in_a_loop(forms: dict[str, list[Form]]) -> None:
    """Each round passes the last result on; r6 to r9 and the stack of the caller must survive the callee."""
    rng = random.Random(-2)
    stack = "\n".join(f"*(u64 *)(r10 {offset}) = {offset}" for offset in range(-STACK_BYTES, 0, 8))
    for _ in range(WHOLE_PROGRAMS):
        middle = asm.disassemble(body(rng, forms, 12))
        text = CALLING.format(
            prologue=asm.disassemble(PROLOGUE), epilogue=asm.disassemble(EPILOGUE), stack=stack, middle=middle
        )
        program = asm.assemble(text)
        packet = random_packet(rng)
        with load(program, {}) as loaded:
            expected = loaded.test_run(packet).retval
        assert Machine().load(program).run(packet=packet).value & 0xFFFFFFFF == expected, listing(program)


def test_a_short_packet_is_refused_by_both(forms: dict[str, list[Form]]) -> None:
    program = whole_program([])
    packet = bytes(range(64))
    with load(program, {}) as loaded:
        assert loaded.test_run(packet).retval == 0
    assert Machine().load(program).run(packet=packet).value == 0


def test_every_form_takes_part(forms: dict[str, list[Form]]) -> None:
    """The host's kernel knows the whole set; an older one may lack what came after it."""
    known = {form.name for group in forms.values() for form in group}
    assert {"add64", "div32", "mod64", "arsh32", "neg64", "le", "be", "ldx", "stx", "jsge32"} <= known
