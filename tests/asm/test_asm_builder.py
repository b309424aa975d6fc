"""Programs written in Python: what every block emits, and that the object is the bytes."""

from __future__ import annotations

import pytest

from actplane.asm import (
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R10,
    AttachType,
    Builder,
    HelperId,
    Kfunc,
    MapFd,
    MapType,
    MapValue,
    ProgType,
    assemble,
    assemble_object,
    decode,
    disassemble,
    encode,
    s8,
    s32,
    u8,
    u16,
    u32,
    u64,
)
from actplane.errors import EncodeError


def builder() -> Builder:
    return Builder("test", ProgType.BPF_PROG_TYPE_SOCKET_FILTER)


def text_of(b: Builder) -> list[str]:
    return disassemble(b.program().insns).splitlines()


def test_operands_choose_the_instruction() -> None:
    b = builder()
    b.mov(R1, R2)
    b.mov(R1.w, R2.w)
    b.mov(R1, -5)
    b.mov(R1, u16[R2 + 4])
    b.mov(R1.w, u8[R2])
    b.mov(R1, s32[R10 - 16])
    b.mov(u64[R10 - 8], R3)
    b.mov(u32[R10 - 8], R3.w)
    b.mov(u8[R10 - 8 + 1], 255)
    b.add(u64[R1 + 8], R2)
    b.and_(u32[R1 + 8], R2)
    b.mov64(R4, 1 << 40)
    b.movsx(R4, R5, 16)
    b.movsx(R4.w, R5.w, 8)
    b.neg(R4)
    b.neg(R4.w)
    b.cast(R4, R5, 0, 1)
    for name in ("add", "sub", "mul", "div", "sdiv", "mod", "smod", "or_", "and_", "xor", "lsh", "rsh", "arsh"):
        getattr(b, name)(R6, 3)
    b.exit(7)
    signs = ("+=", "-=", "*=", "/=", "s/=", "%=", "s%=", "|=", "&=", "^=", "<<=", ">>=", "s>>=")
    assert text_of(b) == [
        "r1 = r2",
        "w1 = w2",
        "r1 = -5",
        "r1 = *(u16 *)(r2 +4)",
        "r1 = *(u8 *)(r2 +0)",
        "r1 = *(s32 *)(r10 -16)",
        "*(u64 *)(r10 -8) = r3",
        "*(u32 *)(r10 -8) = r3",
        "*(u8 *)(r10 -7) = 255",
        "lock *(u64 *)(r1 +8) += r2",
        "lock *(u32 *)(r1 +8) &= r2",
        "r4 = 0x10000000000 ll",
        "r4 = (s16)r5",
        "w4 = (s8)w5",
        "r4 = -r4",
        "w4 = -w4",
        "r4 = addr_space_cast(r5, 0, 1)",
        *(f"r6 {sign} 3" for sign in signs),
        "r0 = 7",
        "exit",
    ]


def test_blocks_become_the_jumps_they_promise() -> None:
    b = builder()
    with b.when(R1, "==", R2):
        b.mov(R0, 1)
    with b.otherwise():
        b.mov(R0, 2)
    with b.when(R1.w, "&", 4):
        b.mov(R0, 3)
    with b.loop(R6, 10) as loop:
        with b.when(R6, ">", R7):
            loop.leave()
        loop.go_on()
    with b.within(R3, 1, 63):
        b.lsh(R0, R3)
    with b.readable(R2, 14, end=R3, scratch=R4):
        b.mov(R0, u8[R2 + 13])
    b.exit()
    assert text_of(b) == [
        "if r1 != r2 goto +2",
        "r0 = 1",
        "goto +1",
        "r0 = 2",
        "if w1 & 4 goto +1",
        "goto +1",
        "r0 = 3",
        "r6 = 0",
        "if r6 <= r7 goto +1",
        "goto +3",
        "goto +0",
        "r6 += 1",
        "if r6 < 10 goto -5",
        "if r3 < 1 goto +2",
        "if r3 > 63 goto +1",
        "r0 <<= r3",
        "r4 = r2",
        "r4 += 14",
        "if r4 > r3 goto +1",
        "r0 = *(u8 *)(r2 +13)",
        "exit",
    ]


def whole() -> Builder:
    b = Builder("on_open", ProgType.BPF_PROG_TYPE_LSM, AttachType.BPF_LSM_MAC, "file_open", is_sleepable=True)
    counts = b.map("counts", MapType.BPF_MAP_TYPE_ARRAY, max_entries=4)
    with b.function("each") as each:
        b.exit(0)
    b.mov(R1, counts)
    b.mov(R2, each)
    b.mov(R3, MapValue("counts", 16))
    b.mov(R4, MapFd("counts"))
    b.call(HelperId.bpf_loop)
    b.call("each")
    b.call(Kfunc("bpf_rcu_read_lock"))
    b.label("again")
    b.jump_if(R0, "s<", 0, "again")
    b.goto("end")
    b.label("end")
    b.exit(0)
    return b


def test_the_object_is_the_bytes() -> None:
    b = whole()
    assert bytes(b) == encode(b.program().insns, allow_symbols=True)
    assert len(decode(bytes(b))) == len(b.program().insns)
    assert assemble_object(disassemble(b.object())) == b.object()


def test_the_repr_is_text_that_assembles_to_the_same() -> None:
    b = whole()
    assert assemble(repr(b)).insns == b.program().insns
    assert assemble(repr(b)).functions == b.program().functions == {11: "each"}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda b: b.mov(R1, 1 << 40), r"mov64 .*imm: got 1099511627776, expected signed 32 bits"),
        (lambda b: b.mov(R1.w, R2), "operands of different width: got w1 and r2"),
        (lambda b: b.mov(R1, u8[R10 - 40_000]), "off: got -40000"),
        (lambda b: b.mov(R1.w, u64[R2]), "in half a register: got w1, expected r1"),
        (lambda b: b.mov(R1.w, MapFd("m")), "a 64-bit value in half a register"),
        (lambda b: b.mov(u64[R1], R2.w), "got w2, expected a register or a number"),
        (lambda b: b.add(u8[R1], R2), "atomic: got add Size.B, expected"),
        (lambda b: b.add(u64[R1], 4), "got 4, expected a register"),
        (lambda b: b.movsx(R1, 5, 8), "movsx: got 5, expected a register"),
        (lambda b: b.jump_if(R1, "=", 4, "x"), "comparison: got '='"),
        (lambda b: b.otherwise().__enter__(), "must follow a when"),
        (lambda b: (b.goto("nowhere"), b.program()), "label 'nowhere' is not defined"),
        (lambda b: R10 + R1, "offset from r10: got r1, expected a number of bytes"),
        (lambda b: R10 - R1, "offset from r10: got r1, expected a number of bytes"),
        (lambda b: R10 - 1.5, "offset from r10: got 1.5, expected a number of bytes"),
        (lambda b: u8[10], "address: got 10, expected a register"),
    ],
)
def test_what_no_instruction_can_do_is_refused(act, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        act(builder())


def test_an_address_is_not_a_number() -> None:
    assert repr([8 + R10, R10 + 8 - 16]) == "[r10 +8, r10 -8]"
    assert repr(R10 - 8) == "r10 -8"
    assert repr([R1, R1.w, u64[R10 - 8], s8[R2]]) == "[r1, w1, *(u64 *)(r10 -8), *(s8 *)(r2 +0)]"
    assert R10 - 8 != 2
