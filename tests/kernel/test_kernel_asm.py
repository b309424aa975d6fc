"""
Our bytes against the kernel's: generated instructions are loaded, and what the kernel reads back of
them (`xlated`) is compared with what we sent.

Each instruction stands in a socket filter behind what makes it acceptable to the verifier: unknown
numbers in the registers it reads, or the middle of a 64 KiB map value, so that every offset is in
bounds. What the kernel rewrites by design is compared modulo that rewriting, and named below. Packet
loads and may_goto it rewrites beyond recognition: what they do is compared in test_kernel_machine_helpers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actplane.asm import Insn, MapSpec, MapType, MapValue, Program, ProgType, decode, encode, form_of, isa
from actplane.asm.build import (
    addr_space_cast,
    call,
    call_sub,
    callx,
    exit_,
    gotol,
    ja,
    jmp,
    ld_btf_id,
    ld_func,
    ld_imm64,
    ld_map_fd,
    ld_map_idx,
    ld_map_idx_value,
    ld_map_value,
    ldx,
    load_acquire,
    mov32,
    mov64,
    stx,
)
from actplane.asm.isa import BY_CODE, FORMS, Form, Kind
from actplane.asm.labels import FunctionHere, resolve
from actplane.asm.operands import R0, R1, R2, R3, R4, R6, R10, Reg, Size
from actplane.errors import DecodeError, KernelError, RejectedByKernel
from actplane.loader.attributes import MapCreate, ProgLoad
from actplane.loader.btf import Btf
from actplane.loader.btf_types import Kind as BtfKind
from actplane.loader.maps import BPF_F_MMAPABLE, Map
from actplane.loader.programs import LoadedProgram, load
from actplane.loader.syscall import Handle, bpf
from tests.asm.generated import some_instructions

COUNT = 12_000
GROUP = 60
MEMORY_BYTES = 1 << 16
MIDDLE = 1 << 15
PRANDOM, BPF_LOOP = 7, 181

ARITHMETIC = (Kind.ALU, Kind.NEG, Kind.MOVSX, Kind.END)
ORDERED = (Kind.ATOMIC, Kind.LOAD_ACQUIRE, Kind.STORE_RELEASE)
ACCESSES = (Kind.LDX, Kind.LDXSX, Kind.ST, Kind.STX, *ORDERED)


@pytest.fixture(scope="module")
def memory() -> Iterator[Map]:
    """An array with one large value, on a kernel that knows every instruction of the table."""
    if os.geteuid() != 0:
        pytest.skip("needs root: loading programs is root's")
    newest = [mov64(R0, 0), stx(Size.DW, R10, R0, -8), load_acquire(Size.DW, R0, R10, -8), exit_()]
    if load_bytes(encode(newest)) is not None:
        pytest.skip("this kernel lacks load_acquire, the newest instruction of the table")
    spec = MapSpec("memory", MapType.BPF_MAP_TYPE_ARRAY, 4, MEMORY_BYTES + 8, 1)
    try:
        found = Map.create(spec)
    except KernelError as error:
        pytest.skip(f"no maps on this kernel: {error}")
    with found:
        yield found


def prologue() -> list[Insn]:
    """16 bytes of the stack that the verifier knows nothing about."""
    unknown = [insn for off in (-4, -8, -12, -16) for insn in (call(PRANDOM), stx(Size.W, R10, R0, off))]
    return [*unknown, mov64(R1, 0)]


def unknown_number(register: int) -> Insn:
    return ldx(Size.DW, Reg(register), R10, -8)


def middle(register: int) -> Insn:
    return ld_map_value(Reg(register), MapValue("memory", MIDDLE))


def acceptable(insn: Insn, form: Form) -> Insn | None:
    """The instruction with its operands moved to where the verifier takes it, or None if there is no such place."""
    if insn.dst == 10 and form.kind not in ACCESSES:
        return None
    if form.kind is Kind.ALU:
        if form.operation in ("lsh", "rsh", "arsh") and not form.has_register_source:
            return replace(insn, imm=insn.imm % form.width)  # other shifts are refused
        if form.operation in ("div", "mod", "sdiv", "smod") and not form.has_register_source and insn.imm in (0, -1):
            return None  # by 0 is refused, and by -1 rewritten to a negation
        if insn.src == 10 and form.has_register_source and form.name != "mov64":
            return None  # arithmetic between a number and the frame
    if form.kind is Kind.MOVSX and insn.src == 10:
        return None
    if form.kind is Kind.JUMP:
        # Offset 0 keeps both ways alive and the same; two like registers have a known outcome.
        return None if insn.src in (10, insn.dst) and form.has_register_source else replace(insn, off=0)
    if form.kind in ACCESSES:
        return _acceptable_access(insn, form)
    return insn if form.kind in ARITHMETIC or form.name == "ld_imm64" else None


def _acceptable_access(insn: Insn, form: Form) -> Insn | None:
    assert form.size is not None
    is_load = form.kind in (Kind.LDX, Kind.LDXSX, Kind.LOAD_ACQUIRE)
    base, value = (insn.src, insn.dst) if is_load else (insn.dst, insn.src)
    if base == 10 or value == 10 or (base == value and not is_load and form.kind is not Kind.ST):
        return None  # the frame has 512 bytes; a pointer may not be stored
    if form.operation == "cmpxchg" and base == 0:
        return None
    if form.kind in ORDERED:
        return replace(insn, off=insn.off // form.size.value * form.size.value)  # must be aligned
    return insn


def placed(insn: Insn, form: Form) -> list[Insn]:
    """What must stand before an acceptable instruction, and the instruction."""
    if form.kind in ACCESSES:
        is_load = form.kind in (Kind.LDX, Kind.LDXSX, Kind.LOAD_ACQUIRE)
        base, value = (insn.src, insn.dst) if is_load else (insn.dst, insn.src)
        numbers = [] if is_load or form.kind is Kind.ST else [value]
        if form.operation == "cmpxchg":
            numbers.append(0)
        return [*map(unknown_number, dict.fromkeys(numbers)), middle(base), insn]
    if form.name == "ld_imm64":
        return [insn]
    registers = [insn.dst, insn.src] if form.has_register_source else [insn.dst]
    return [*(unknown_number(register) for register in dict.fromkeys(registers) if register != 10), insn]


def program(insns: list[Insn]) -> Program:
    return Program("asm", ProgType.BPF_PROG_TYPE_SOCKET_FILTER, (*insns, mov64(R0, 0), exit_()))


def read_back(insns: list[Insn], memory: Map) -> list[Insn]:
    with load(program(insns), {"memory": memory}) as loaded:
        return decode(loaded.xlated())


def as_read_back(insns: list[Insn], memory: Map) -> list[Insn]:
    """What the kernel should read back: maps by their ids instead of descriptors."""
    number = memory.info().id
    return [with_number(insn, number) for insn in (*insns, mov64(R0, 0), exit_())]


def with_number(insn: Insn, number: int) -> Insn:
    """Give a map its descriptor, or its id."""
    return replace(insn, imm=insn.imm | number, symbol=None) if isinstance(insn.symbol, MapValue) else insn


def without_helper_numbers(insns: list[Insn]) -> list[Insn]:
    """The kernel reads back the address of a helper, or nothing, instead of its number."""
    return [replace(insn, imm=0) if form_of(insn).kind is Kind.CALL_HELPER else insn for insn in insns]


def is_division_by_register(form: Form) -> bool:
    return form.operation in ("div", "mod", "sdiv", "smod") and form.has_register_source


def test_generated_instructions_are_read_back_as_they_were_sent(memory: Map) -> None:
    forms = tuple(form for form in FORMS if form.kind in (*ARITHMETIC, *ACCESSES, Kind.JUMP) or form.name == "ld_imm64")
    forms = tuple(form for form in forms if not is_division_by_register(form))
    found = [(insn, form_of(insn)) for insn in some_instructions(618, COUNT, forms)]
    sent = [placed(insn, form) for candidate, form in found if (insn := acceptable(candidate, form)) is not None]
    assert len(sent) > 0.6 * COUNT
    assert {form.name for insns in sent if (form := form_of(insns[-1]))} == {form.name for form in forms}
    for start in range(0, len(sent), GROUP):
        group = sent[start : start + GROUP]
        insns = [*prologue(), *(insn for one in group for insn in one)]
        try:
            back = read_back(insns, memory)
        except RejectedByKernel:
            back = []
        if without_helper_numbers(back) != without_helper_numbers(as_read_back(insns, memory)):
            assert disagreements(group, memory) == []


def disagreements(group: list[list[Insn]], memory: Map) -> list[str]:
    """Load each instruction of a group alone, to name those that are refused or come back changed."""
    found: list[str] = []
    for one in group:
        insns = [*prologue(), *one]
        try:
            back = read_back(insns, memory)
        except RejectedByKernel as error:
            found.append(f"{one[-1]} is refused: {error.log.strip().splitlines()[-2:]}")
            continue
        if without_helper_numbers(back) != without_helper_numbers(as_read_back(insns, memory)):
            found.append(f"{one[-1]} comes back as {back}")
    return found


def test_division_by_a_register_stands_between_checks_for_zero(memory: Map) -> None:
    """
    The kernel puts checks for zero (and for -1, if signed) around it; the division itself stays.

    It keeps the divisor in a register 11 of its own there, so what it reads back is searched, not decoded.
    """
    chance = random.Random(1)
    for form in filter(is_division_by_register, FORMS):
        for _ in range(20):
            insn = Insn(form.code, chance.randrange(10), chance.randrange(10), form.off.low)
            insns = [*prologue(), *placed(insn, form)]
            with load(program(insns), {"memory": memory}) as loaded:
                code = loaded.xlated()
            slots = [code[at : at + 8] for at in range(0, len(code), 8)]
            assert len(slots) > len(insns) + 2
            divisions = [slot for slot in slots if slot[0] == form.code and slot[2:] == encode([insn])[2:]]
            assert divisions, insn


def test_jumps_are_read_back_as_they_were_sent(memory: Map) -> None:
    """Forward and backward, short and long: dead code and jumps by 0 would be removed, so nothing is dead here."""
    filler = mov64(R3, R4)
    for distance in (1, 2, 100, 3000):
        body = [filler] * distance
        forward = [jmp("jeq", R1, 7, 1), ja(distance), *body]
        far = [jmp("jeq", R1, 9, 1), gotol(distance), *body]
        narrow = [jmp("jgt", R1, R2, distance, width=32), *body]
        unknown = [unknown_number(1), unknown_number(2), mov64(R4, 0)]
        insns = [*prologue(), *unknown, *forward, unknown_number(1), *far, *narrow]
        assert without_helper_numbers(read_back(insns, memory)) == without_helper_numbers(as_read_back(insns, memory))
    loop = [mov64(R6, 10), *[Insn(0x07, 6, imm=-1)] * 3, jmp("jsgt", R6, 0, -4)]
    insns = [*prologue(), *loop]
    assert without_helper_numbers(read_back(insns, memory)) == without_helper_numbers(as_read_back(insns, memory))


def test_calls_and_addresses_of_functions_and_maps(memory: Map) -> None:
    stream = [
        mov64(R1, 4),
        ld_func(R2, "callback"),
        mov64(R3, 0),
        mov64(R4, 0),
        call(BPF_LOOP),
        call_sub("sub"),
        mov64(R0, 0),
        exit_(),
        FunctionHere("callback"),
        mov64(R0, 0),
        exit_(),
        FunctionHere("sub"),
        ld_map_fd(R1, "memory"),
        mov64(R0, 0),
        exit_(),
    ]
    insns, functions = resolve(stream)
    sent = Program("asm", ProgType.BPF_PROG_TYPE_SOCKET_FILTER, tuple(insns), functions=functions)
    with load(sent, {"memory": memory}) as loaded:
        back = decode(without_subprogram_numbers(loaded.xlated()))
    (found,) = (insn for insn in back if form_of(insn).name == "ld_map_fd")
    assert found.imm == memory.info().id
    # bpf_loop is inlined, with a call of the callback of its own, and that moves what follows.
    (address,) = (index for index, insn in enumerate(back) if form_of(insn).name == "ld_func")
    slots = [0, *itertools.accumulate(insn.slots for insn in back)]
    callback = slots[address] + 1 + back[address].imm
    calls = [slots[i] + 1 + insn.imm for i, insn in enumerate(back) if form_of(insn).name == "call_sub"]
    assert callback in calls
    assert max(calls) == callback + 2
    assert back[slots.index(max(calls))] == found


def without_subprogram_numbers(code: bytes) -> bytes:
    """
    Undo what the kernel does to calls and addresses of subprograms of a compiled program.

    It notes the number of the subprogram: in the half of ld_func that is reserved, and in the imm of
    call, whose distance moves to off.
    """
    slots = [code[at : at + 8] for at in range(0, len(code), 8)]
    for index, slot in enumerate(slots):
        if slot[:2] == encode([call_sub(0)])[:2]:
            slots[index] = encode([call_sub(int.from_bytes(slot[2:4], "little", signed=True))])
        elif slot[0] == 0x18 and slot[1] >> 4 == isa.PSEUDO_FUNC:
            slots[index + 1] = bytes(8)
    return b"".join(slots)


def load_raw(data: bytes, *maps: Map) -> LoadedProgram:
    """Load raw bytes; `maps` are the elements of fd_array."""
    attr = ProgLoad(
        prog_type=ProgType.BPF_PROG_TYPE_SOCKET_FILTER,
        insns=data,
        insn_cnt=len(data) // 8,
        license=b"GPL\0",
    )
    if maps:
        attr.set("fd_array", (ctypes.c_int * len(maps))(*(each.fd for each in maps)))
    return LoadedProgram(bpf(attr), program([]))


def load_bytes(data: bytes) -> KernelError | None:
    """Load raw bytes, and return the error if the kernel refuses them."""
    try:
        load_raw(data).close()
    except KernelError as error:
        return error
    return None


END = encode([mov64(R0, 0), exit_()])


def test_maps_by_their_index_are_read_back_as_maps_by_descriptor(memory: Map) -> None:
    number = memory.info().id
    for sent, expected in (
        (ld_map_idx(R3, 0), ld_map_fd(R3, number)),
        (ld_map_idx_value(R3, 0, MIDDLE), ld_map_value(R3, (number, MIDDLE))),
    ):
        with load_raw(encode([sent]) + END, memory) as loaded:
            assert loaded.xlated() == encode([expected]) + END


def test_a_symbol_by_its_type_becomes_its_address(memory: Map) -> None:
    """Functions as well as variables; of the latter this kernel may list none in kallsyms."""
    rows = (line.split() for line in Path("/proc/kallsyms").read_text().splitlines())
    addresses = {int(row[0], 16) for row in rows if row[2:] == ["schedule"]}
    if not any(addresses):
        pytest.skip("needs kallsyms with addresses")
    function = Btf.vmlinux().find(BtfKind.BTF_KIND_FUNC, "schedule")
    with load_raw(encode([ld_btf_id(R3, function)]) + END) as loaded:
        back = loaded.xlated()
    assert back[16:] == END
    (insn,) = decode(back[:16])
    assert (insn, insn.imm in addresses) == (ld_imm64(R3, insn.imm), True)


def test_casts_between_address_spaces(memory: Map) -> None:
    """A cast to the kernel's space is just the lower half; one to the arena's stays as it is."""
    arena = Handle(
        bpf(
            MapCreate(
                map_type=MapType.BPF_MAP_TYPE_ARENA,
                max_entries=1,
                map_flags=BPF_F_MMAPABLE,
                map_extra=1 << 32,  # where a process would map it
            )
        )
    )
    with arena:
        start = encode([ld_map_fd(R1, arena.fd), mov64(R2, 64)])
        for cast, expected in (
            (addr_space_cast(R3, R2, 1, 0), addr_space_cast(R3, R2, 1, 0)),
            (addr_space_cast(R3, R2, 0, 1), mov32(R3, R2)),
        ):
            with load_raw(start + encode([cast]) + END) as loaded:
                assert loaded.xlated()[len(start) :] == encode([expected]) + END


def test_codes_that_the_table_lacks_are_refused_by_the_kernel_too(memory: Map) -> None:
    for code in set(range(256)) - set(BY_CODE):
        error = load_bytes(encode([mov64(R0, 0), mov64(R2, 0)]) + bytes((code, 0, 0, 0, 0, 0, 0, 0)) + END)
        assert error is not None, hex(code)
        assert error.errno == errno.EINVAL, hex(code)


def test_reserved_fields_are_refused_by_the_kernel_too(memory: Map) -> None:
    """Bytes with one field wrong: whatever our decoder refuses, the kernel must refuse too."""
    taken: dict[str, str] = {}
    tried = 0
    forms = [form for form in FORMS if form.kind in (*ARITHMETIC, *ACCESSES, Kind.JUMP) or form.name == "ld_imm64"]
    for form in forms:
        candidate = next(
            insn for one in some_instructions(2, 200, (form,)) if (insn := acceptable(one, form)) is not None
        )
        *before, insn = placed(candidate, form)
        head = encode([with_number(one, memory.fd) for one in (*prologue(), *before)])
        assert load_bytes(head + encode([insn]) + END) is None, insn
        for wrong in with_one_wrong_field(encode([insn])):
            with contextlib.suppress(DecodeError):
                decode(wrong)
                continue
            tried += 1
            if load_bytes(head + wrong + END) is None:
                taken[form.name] = wrong.hex()
    assert taken == {}
    assert tried > 300


def with_one_wrong_field(data: bytes) -> Iterator[bytes]:
    """The bytes with one byte of the registers, off, imm or the second slot set to another value."""
    for at, value in (
        (1, data[1] ^ 0x10),
        (1, data[1] | 0xF0),
        (1, data[1] | 0x0F),
        (2, 3),
        (3, 1),
        (4, 0xFF),
        (7, 0x80),
    ):
        yield data[:at] + bytes((value,)) + data[at + 1 :]
    for at in range(8, len(data) - 4):
        yield data[:at] + b"\x01" + data[at + 1 :]


def test_callx_is_refused(memory: Map) -> None:
    """LLVM emits it, no kernel takes it: the table says so."""
    assert load_bytes(encode([mov64(R0, 0), callx(R0)]) + END) is not None
