"""Text to instructions: every syntax we read, every directive, and what an error says."""

import json
import lzma
from pathlib import Path

import pytest

from actplane.asm import (
    AttachType,
    EnumValue,
    Field,
    Insn,
    Kfunc,
    MapFd,
    MapType,
    MapValue,
    Object,
    ProgType,
    TypeSize,
    assemble,
    assemble_object,
    decode,
    disassemble,
    encode,
)
from actplane.errors import AssembleError, DecodeError, EncodeError

SHARED = Path(__file__).parents[3] / "shared/data"


def rows(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the shared data set {name} is not there")
    return [json.loads(line) for line in lzma.decompress(path.read_bytes()).splitlines()]


def test_llvm_text_of_the_shared_instructions_assembles_to_their_bytes():
    chosen = [row for row in rows("isa-instructions.jsonl.xz") if row["llvm_reassembles"]]
    # LLVM knows a register 11, and writes a map's descriptor with an upper half that is reserved.
    chosen = [row for row in chosen if is_valid(row["hex"])]
    program = assemble("\n".join(row["llvm"] for row in chosen))
    assert len(program.insns) == len(chosen) > 23_000
    for insn, row in zip(program.insns, chosen, strict=True):
        assert encode([insn]).hex() == row["hex"], row


def is_valid(text):
    try:
        decode(bytes.fromhex(text))
    except DecodeError:
        return False
    return True


def test_kernel_text_of_the_shared_instructions_assembles_to_their_bytes():
    chosen = [row for row in rows("isa-instructions.jsonl.xz") if is_valid(row["hex"])]
    lines, slot = [], 0
    for row in chosen:
        lines.append(f"{slot}: {row['kernel']}")
        slot += len(row["hex"]) // 16
    lossy = 0
    # A listing of its own for each, because jumps leave and subprograms are many.
    for row, line in zip(chosen, lines, strict=True):
        text = "0: " + line.partition(": ")[2]
        (insn,) = decode(bytes.fromhex(row["hex"]))
        if (insn.code == 0x18 and insn.src) or insn.code == 0x8D:
            lossy += 1  # the kernel prints a pseudo source as the number, and callx as a helper
            continue
        assert assemble(text).insns == (insn,), row
    assert lossy < 1000


@pytest.mark.parametrize("dialect", ["kernel", "llvm", "ubpf"])
def test_every_dialect_of_ours_reassembles(dialect):
    data = [row["hex"] for row in rows("isa-instructions.jsonl.xz") if is_valid(row["hex"])]
    insns = decode(bytes.fromhex("".join(data)))
    if dialect == "llvm":  # no way to write a call to a subprogram or a kernel function
        insns = [insn for insn in insns if not (insn.code == 0x85 and insn.src)]
    back = assemble(disassemble(insns, dialect)).insns
    assert list(back) == insns


def test_conformance_programs_assemble_to_their_bytes():
    count = 0
    for row in rows("isa-programs.jsonl.xz"):
        if not row["asm_text"] or not row.get("raw_bytes_hex"):
            continue
        if not is_valid(row["raw_bytes_hex"]):
            continue
        assert encode(assemble(row["asm_text"]).insns).hex() == row["raw_bytes_hex"], row["id"]
        count += 1
    assert count > 190


def test_conformance_programs_of_llvm_and_the_kernel_assemble_to_their_bytes():
    count = 0
    for row in rows("isa-programs.jsonl.xz"):
        if not row.get("raw_bytes_hex") or not is_valid(row["raw_bytes_hex"]) or not row.get("kernel_text"):
            continue
        data = bytes.fromhex(row["raw_bytes_hex"])
        insns = decode(data)
        if row["llvm_text_complete"] and not any(insn.code == 0x85 and insn.src for insn in insns):
            assert encode(assemble("\n".join(row["llvm_text"])).insns) == data, row["id"]
        assert encode(assemble("\n".join(row["kernel_text"])).insns) == data, row["id"]
        count += 1
    assert count > 190


LISTING = """\
func#0 @0
0: R1=ctx() R10=fp0
; int x = load(); @ file.c:12
0: (b7) r0 = 0                        ; R0_w=0
1: (18) r1 = 0x10
3: (15) if r0 == 0x0 goto pc+1        ; R0_w=0
5: (95) exit

from 3 to 5: R0=0 R10=fp0
5: R0=0
5: (95) exit
4: (2d) if r1 > r0 goto pc+0
processed 6 insns (limit 1000000) max_states_per_insn 0 total_states 0
"""


def test_a_verifier_log_is_put_back_in_order():
    program = assemble(LISTING)
    assert disassemble(program.insns).splitlines() == [
        "r0 = 0",
        "r1 = 0x10 ll",
        "if r0 == 0 goto +1",
        "if r1 > r0 goto +0",
        "exit",
    ]


def test_a_verifier_log_with_a_gap_is_refused():
    text = LISTING.replace("4: (2d) if r1 > r0 goto pc+0\n", "")
    with pytest.raises(AssembleError, match="slot 4 missing before this line"):
        assemble(text)


def test_bpftool_xlated_is_read():
    text = """\
int prog(struct ctx * ctx):
; return f(1);
   0: (b7) r1 = 1
   1: (85) call pc+2#bpf_prog_0123456789abcdef_F
   2: (18) r2 = map[id:7]
   4: (95) exit
int f(int x):
   5: (bf) r0 = r1
   6: (18) r3 = map[id:9][0]+16
   8: (18) r4 = subprog[+3]
  10: (85) call bpf_map_lookup_elem#1
  11: (95) exit
"""
    insns = assemble(text).insns
    assert [insn.symbol for insn in insns if insn.symbol] == [MapFd("id:7"), MapValue("id:9", 16)]
    assert (insns[1].src, insns[1].imm) == (1, 2)
    assert (insns[6].src, insns[6].imm) == (4, 3)


def test_bpftool_names_helpers_and_says_where_they_lie_in_the_kernel_that_runs():
    text = """\
   0: (85) call bpf_ktime_get_ns#269488
   1: (85) call bpf_get_current_task_btf#-64576
   2: (85) call bpf_user_rnd_u32#22592
   3: (85) call pc+1#bpf_prog_0123456789abcdef_F
   4: (95) exit
   5: (95) exit
"""
    assert disassemble(assemble(text).insns).splitlines()[:4] == [
        "call bpf_ktime_get_ns#5",
        "call bpf_get_current_task_btf#158",
        "call bpf_user_rnd_u32#kfunc",
        "call pc+1",
    ]


# What bpftool 7.1, which is older than these instructions, prints of them.
TOO_NEW = """\
   0: (18) r1 = map[id:7][0]+0
       18 21 00 00 07 00 00 00 00 00 00 00 00 00 00 00
   2: BUG_c3
       c3 31 00 00 00 01 00 00
   3: (bf) r1 = r1
       bf 11 08 00 00 00 00 00
   4: BUG_alu64_d7
       d7 01 00 00 20 00 00 00
   5: (37) r1 /= 3
       37 01 01 00 03 00 00 00
   6: (06) if w0 jmp 0x0 goto pc+0
       06 00 00 00 00 00 00 00
   7: (85) call pc+1#bpf_prog_0123456789abcdef_f
       85 10 01 00 6c 00 00 00
   8: (95) exit
       95 00 00 00 00 00 00 00
   9: (95) exit
       95 00 00 00 00 00 00 00
"""


def test_the_bytes_below_a_line_of_bpftool_count():
    assert disassemble(assemble(TOO_NEW).insns).splitlines() == [
        "r1 = map[id:7][0]+0",
        "r1 = load_acquire((u32 *)(r3 +0))",
        "r1 = (s8)r1",
        "r1 = bswap32 r1",
        "r1 s/= 3",
        "gotol +0",
        "call pc+1",
        "exit",
        "exit",
    ]
    with pytest.raises(AssembleError, match="dst: got 11, expected register"):
        assemble("0: (b7) r11 = 0\n    b7 0b 00 00 00 00 00 00\n")


def test_what_bpftool_does_not_know_is_no_gap():
    with pytest.raises(AssembleError, match="bpftool did not know this instruction") as caught:
        assemble("\n".join(line for line in TOO_NEW.splitlines() if ":" in line))
    # Nor is what follows from such a line a problem of its own.
    assert [d.span.line for d in caught.value.diagnostics] == [2, 4, 6]


def test_a_log_without_instructions_is_told_from_text():
    with pytest.raises(AssembleError, match="a log of level 2 shows every instruction"):
        assemble("processed 128 insns (limit 1000000) max_states_per_insn 4 total_states 11 peak_states 10 mark_read 0")


def test_llvm_objdump_is_read():
    text = """\

prog.o:\tfile format elf64-bpf

Disassembly of section .text:

0000000000000000 <main>:
       0:\tb7 00 00 00 01 00 00 00\tr0 = 0x1
       1:\t18 01 00 00 ff ff ff ff 00 00 00 00 01 00 00 00\tr1 = 0x1ffffffff ll
       3:\t15 01 01 00 00 00 00 00\tif r1 == 0x0 goto +0x1 <LBB0_2>
       4:\t85 10 00 00 01 00 00 00\tcall 0x1
0000000000000028 <LBB0_2>:
       5:\t95 00 00 00 00 00 00 00\texit
0000000000000030 <second>:
       6:\t95 00 00 00 00 00 00 00\texit
"""
    program = assemble(text)
    assert [str(insn) for insn in program.insns] == [
        "r0 = 1",
        "r1 = 0x1ffffffff ll",
        "if r1 == 0 goto +1",
        "call pc+1",
        "exit",
        "exit",
    ]
    assert program.functions == {5: "second"}


def test_what_llvm_objdump_leaves_to_a_linker_is_refused() -> None:
    text = """\
Disassembly of section .text:
0000000000000000 <sub>:
       0:\t95 00 00 00 00 00 00 00\texit
Disassembly of section xdp:
0000000000000000 <main>:
       0:\t85 10 00 00 ff ff ff ff\tcall -0x1
       1:\t95 00 00 00 00 00 00 00\texit
"""
    with pytest.raises(AssembleError) as caught:
        assemble(text, name="t.s")
    assert [(problem.span.line, problem.message) for problem in caught.value.diagnostics] == [
        (4, "a second section, where the slots begin anew"),
        (6, "a call that a relocation leads: it is not here"),
    ]


def test_relocations_of_llvm_objdump_name_maps_and_functions() -> None:
    text = """\
0000000000000000 <main>:
       0:\t18 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00\tr1 = 0x0 ll
\t\t0000000000000000:  R_BPF_64_64\tevents
       2:\t85 10 00 00 ff ff ff ff\tcall -0x1
\t\t0000000000000010:  R_BPF_64_32\tsub
       3:\t95 00 00 00 00 00 00 00\texit
"""
    program = assemble(text + ".func sub\nexit")
    assert program.insns[0].symbol == MapFd("events")
    assert program.insns[1].imm == 1
    with pytest.raises(AssembleError, match="relocation against section"):
        assemble(text.replace("events", ".rodata"))
    with pytest.raises(AssembleError, match="relocation of what is not a 64-bit immediate"):
        assemble("exit\n 0000000000000018: R_BPF_64_64 events")


def test_bytes_that_contradict_their_text_are_refused():
    with pytest.raises(AssembleError, match="the bytes beside it say `r0 = 1`"):
        assemble("       0:\tb7 00 00 00 01 00 00 00\tr0 = 0x2\n")


OBJECT = """\
; every directive once
.equ LIMIT, 4 * 4
.map counts hash key=4 value=8 max_entries=1024 flags=0x1
.map events ringbuf max_entries=4096
.rodata strings
greeting: .asciz "hi; #there"
        .align 4
table:  .u32 1,LIMIT,0xffffffff
.data state
        .zero 8
.prog on_open lsm attach_type=BPF_LSM_MAC attach_to=file_open sleepable license="Dual BSD/GPL"
        r1 = map[counts]                // the map
        r2 = map[strings][0]+table      # constants of data
        r3 = *(u64 *)(r1 + field(file.f_path.dentry))
        r4 += sizeof(task_struct)
        w5 = enum(bpf_attach_type.BPF_LSM_MAC)
        if r1 != 0 goto deny
        *(u8 *)(r10 - LIMIT) = 'a'
        call callback
        r1 = subprog[callback]
        call bpf_ringbuf_output
        call bpf_rcu_read_lock#kfunc
        r0 = 0
        exit
deny:   r0 = -1
        exit
.func callback
deny:   r0 = 0
        goto deny
.section "tp_btf/sched_process_exec"
        exit
"""


def test_directives():
    found = assemble_object(OBJECT)
    counts, events, strings, state = found.maps
    assert (counts.type, counts.key_size, counts.value_size, counts.max_entries, counts.flags) == (1, 4, 8, 1024, 1)
    assert events.type is MapType.BPF_MAP_TYPE_RINGBUF
    assert strings.is_frozen
    assert strings.contents == b"hi; #there\0\0" + bytes.fromhex("01000000 10000000 ffffffff")
    assert (state.value_size, state.contents) == (8, bytes(8))
    lsm, tracing = found.programs
    assert (lsm.name, lsm.prog_type, lsm.attach_type) == ("on_open", ProgType.BPF_PROG_TYPE_LSM, AttachType.BPF_LSM_MAC)
    assert (lsm.attach_to, lsm.is_sleepable, lsm.license) == ("file_open", True, "Dual BSD/GPL")
    assert (tracing.attach_type, tracing.attach_to) == (AttachType.BPF_TRACE_RAW_TP, "sched_process_exec")
    symbols = [insn.symbol for insn in lsm.insns if insn.symbol]
    assert symbols == [
        MapFd("counts"),
        MapValue("strings", 12),
        Field("file", "f_path.dentry"),
        TypeSize("task_struct"),
        EnumValue("bpf_attach_type", "BPF_LSM_MAC"),
        Kfunc("bpf_rcu_read_lock"),
    ]
    assert lsm.functions == {15: "callback"}
    assert lsm.insns[5].off == 8
    assert lsm.insns[-1].off == -2
    assert lsm.insns[6] == Insn(0x72, 10, off=-16, imm=97)


@pytest.mark.parametrize(
    ("text", "symbol"),
    [
        ("if r1 == 5 + enum(e.NAME) goto +1", EnumValue("e", "NAME")),
        ("if w1 s> sizeof(file) goto +1", TypeSize("file")),
        ("if r1 & field(file.f_flags) goto +1", Field("file", "f_flags")),
        ("*(u32 *)(r1 +4) = enum(e.NAME)", EnumValue("e", "NAME")),
        ("*(u32 *)(r1 +4 + field(file.f_flags)) = 7", Field("file", "f_flags")),
        ("lock *(u64 *)(r1 -8 + field(file.f_flags)) |= r2", Field("file", "f_flags")),
        ("r2 = atomic64_fetch_add((u64 *)(r1 +0 + field(a.b | c.d)), r2)", Field("a", "b", (("c", "d"),))),
        ("r0 = atomic_cmpxchg((u32 *)(r1 +0 + field(a.b.c)), r0, r2)", Field("a", "b.c")),
        ("r2 = load_acquire((u8 *)(r1 +0 + field(a.b)))", Field("a", "b")),
        ("store_release((u8 *)(r1 +0 + field(a.b)), r2)", Field("a", "b")),
    ],
)
def test_names_of_the_kernel_survive_wherever_a_number_may_stand(text, symbol):
    (insn,) = assemble(text).insns
    assert insn.symbol == symbol
    for dialect in ("kernel", "ubpf"):
        assert assemble(disassemble([insn], dialect)).insns == (insn,)


def test_an_escape_is_a_byte_and_other_characters_are_utf_8():
    found = assemble_object(
        r"""
        .rodata d
        .ascii "\xff\0\101\n\\\"é"
        .prog p xdp license="GPL \x07 \xff v2"
        exit"""
    )
    assert found.maps[0].contents == b'\xff\x00A\n\\"\xc3\xa9'
    assert found.programs[0].license == "GPL \a \udcff v2"
    assert assemble_object(disassemble(found)) == found


def test_an_object_printed_assembles_to_the_same_object():
    found = assemble_object(OBJECT)
    assert assemble_object(disassemble(found)) == found
    assert all(assemble(disassemble(program)) == program for program in found.programs)


def test_spans_point_at_the_statement():
    insn = assemble("# comment\nstart:  r0 = 1 ; one\n").insns[0]
    assert insn.span is not None
    assert (insn.span.line, insn.span.column, insn.span.text) == (2, 9, "r0 = 1")


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("r0 = *(u64 *)(r10 -8", 1, 21, "got the end of the line, expected ')'"),
        ("exit\nr0 += 0xffffffff", 2, 7, "number out of range: got 4294967295"),
        ("r11 = 0", 1, 1, "unknown statement 'r11'"),
        ("r0 = w1", 1, 6, "register of the wrong width beside the first: got w1, expected r1"),
        ("if r1 = 0 goto +1", 1, 7, "got '=', expected a comparison like ==, s> or &"),
        ("if r1 == 0 goto nowhere", 1, 17, "label 'nowhere' is not defined"),
        ("a: exit\na: exit", 2, 1, "label 'a' is defined twice"),
        ("r0 = *(u64 *)(r1 +40000)", 1, 18, "number out of range: got 40000"),
        ("r0 = UNKNOWN", 1, 6, "unknown constant 'UNKNOWN'"),
        ("call bpf_map_lookup_elem#2", 1, 26, "number of bpf_map_lookup_elem: got 2, expected 1"),
        ("call bpf_nothing#2", 1, 6, "unknown helper 'bpf_nothing'"),
        ("call nothing", 1, 6, "function 'nothing' is not defined"),
        ("r0 = (s64)r1", 1, 7, "no such move: got s64"),
        ("w0 = *(u64 *)(r1 +0)", 1, 1, "register too narrow for 64 bits: got w0, expected r0"),
        ("r1 = atomic64_fetch_add((u32 *)(r2 +0), r1)", 1, 6, "atomic64 of 32 bits"),
        ("r1 = atomic_fetch_add((u32 *)(r2 +0), r3)", 1, 39, "two registers where one is changed"),
        ("lock *(u8 *)(r1 +0) += r2", 1, 8, "type of the access: got u8, expected u32 or u64"),
        (".map m nosuch", 1, 8, "unknown MapType 'nosuch'"),
        (".map m hsah", 1, 8, "did you mean hash"),
        (".nothing", 1, 1, "unknown directive .nothing"),
        (".equ A, 1\n.equ A, 2", 2, 6, "constant 'A' is already 1"),
        (".byte 1", 1, 1, "expected .map, .data or .rodata before it"),
        (".rodata d\n.byte 256", 2, 7, "number out of range: got 256, expected 8 bits"),
        ('.rodata d\n.ascii "open', 2, 8, 'not a word or a closed text: got "open'),
        ('.rodata d\n.ascii "a" "b"c', 2, 12, 'not a word or a closed text: got "b"c'),
        (".rodata d\n.ascii open", 2, 8, '.ascii: got open, expected "open"'),
        ('.rodata d\n.ascii "\\q"', 2, 8, "unknown escape: got \\q"),
        ("r0 = sizeof()", 1, 6, "name of the kernel's: got 'sizeof()', expected sizeof(TYPE)"),
        ("r0 = field(a)", 1, 6, "name of the kernel's: got 'field(a)', expected field(STRUCT.PATH)"),
        ("r0 = enum(a.B | c.D)", 1, 6, "expected enum(TYPE.NAME)"),
        ("r0 = 99999999999 + sizeof(a)", 1, 6, "number out of range: got 99999999999"),
        ("r0 = *(u64 *)(r1 + sizeof(a))", 1, 18, "offset: got '+ sizeof(a)', expected a number or field(STRUCT.PATH)"),
        ("*(u32 *)(r1 +0) = field(a.b)", 1, 19, "a field for its address alone"),
        ("*(u32 *)(r1 + field(a.b)) = enum(c.D)", 1, 29, "one name of the kernel's at most in a store"),
        ("if r1 == enum(a.B) goto out\nout: exit", 1, 25, "label beside a name of the kernel's: got out"),
        (".prog p lsm bogus\nexit", 1, 13, ".prog: got 'bogus', expected one of"),
        (".prog p xdp", 1, 1, "program 'p' has no instruction"),
        ("0: (b7) r0 += 1", 1, 9, "the code beside it is 0xb7"),
        (".equ A, 1 << 64", 1, 9, "shift: got 64, expected 0 to 63"),
        (f".equ A, {'-' * 300}1", 1, 9, "expression of 301 characters: expected at most 200"),
        (f"r0 = {'9' * 5000}", 1, 6, "expression of 5000 characters"),
        ("goto +010", 1, 6, "not a number: got '+010'"),
        ("0: (05) goto pc+\t010", 1, 14, "not a number: got '+\\t010'"),
        ("call bpf_x(", 1, 11, "got '(', expected '#' or the end of the line"),
    ],
)
def test_an_error_has_its_place_and_its_expectation(text, line, column, message):
    with pytest.raises(AssembleError) as caught:
        assemble(text, name="t.s")
    first = caught.value.diagnostics[0]
    assert message in str(caught.value)
    assert first.span is not None
    assert (first.span.line, first.span.column) == (line, column)
    assert f"t.s:{line}:{column}: " in str(caught.value)


def test_all_errors_are_reported_at_once_in_the_order_of_their_places():
    with pytest.raises(AssembleError) as caught:
        assemble("goto a\nr0 = \nexit exit\nr1 = 99999999999\n")
    assert [d.span.line for d in caught.value.diagnostics] == [1, 2, 3, 4]


def test_one_program_is_expected():
    with pytest.raises(AssembleError, match="expected one program, got 2"):
        assemble(".prog a xdp\nexit\n.prog b xdp\nexit\n")
    with pytest.raises(AssembleError, match="expected one program, got 0"):
        assemble("; nothing\n")
    assert assemble_object("") == Object()


def test_an_instruction_with_invalid_fields_has_a_repr_and_no_text():
    insn = Insn(0xB7, 12)
    assert repr(insn) == "Insn(code=0xb7, dst=12, src=0, off=0, imm=0, invalid)"
    with pytest.raises(EncodeError, match="dst: got 12"):
        str(insn)
