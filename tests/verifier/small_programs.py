"""
Small programs, each about one rule of the kernel that generated programs do not come by: what is refused
although no path reaches it, declarations of functions, format strings, pointers that become numbers.

They are the category `rules` of `questions`, so that kernels are asked about them, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from actplane.asm.assembler import assemble_object
from actplane.asm.insn import Insn
from actplane.asm.isa import CALL, LD_IMM64, PSEUDO_BTF_ID, PSEUDO_CALL, PSEUDO_FUNC
from actplane.asm.program import MapSpec, Program
from actplane.loader.btf_types import BtfType, Kind, Linkage, Member
from actplane.loader.btf_write import BtfWriter


@dataclass(frozen=True)
class Function:
    """
    How a function is declared: what it takes and returns, the tags of its first argument.

    Types are `int`, `u64`, `void`, `NAME` for a struct of 16 bytes, `TYPE*`, and `NAME=TYPE` for a typedef.
    """

    name: str
    takes: tuple[str, ...] = ()
    returns: str = "int"
    tags: tuple[str, ...] = ()
    is_global: bool = True


@dataclass(frozen=True)
class SmallProgram:
    """A program, why the mirror refuses it ("" if it does not), and how its functions are declared, if they are."""

    name: str
    text: str
    id: str = ""
    functions: tuple[Function, ...] = ()
    unseen: tuple[Insn, ...] = field(default=())
    """Set in front of the last instruction, behind a jump over them."""
    needs_types: bool = False
    """Whether nothing can be said without the kernel's types."""

    def program(self) -> tuple[Program, Mapping[str, MapSpec]]:
        """Return the program and its maps."""
        text = self.text if self.text.startswith(".") else f".prog main socket_filter\n{self.text}"
        found = assemble_object(text, name=self.name)
        program = found.programs[0]
        if self.unseen:
            jump = Insn(0x15, 0, off=sum(insn.slots for insn in self.unseen))
            program = replace(program, insns=(*program.insns[:-1], jump, *self.unseen, program.insns[-1]))
        return program, {spec.name: spec for spec in found.maps}

    def types(self, program: Program) -> tuple[bytes, dict[int, int]] | None:
        """Return BTF and, by their first slots, the ids of the functions in it; None if none are declared."""
        if not self.functions:
            return None
        writer = BtfWriter()
        ids = {}
        for start, function in zip(_starts(program), (Function("main"), *self.functions), strict=True):
            params = tuple(Member(f"a{index}", _type(writer, name)) for index, name in enumerate(function.takes))
            linkage = Linkage.BTF_FUNC_GLOBAL if function.is_global else Linkage.BTF_FUNC_STATIC
            proto = writer.func_proto(_type(writer, function.returns), params)
            ids[start] = writer.func(function.name, proto, linkage)
            for tag in function.tags:
                writer.add(BtfType(Kind.BTF_KIND_DECL_TAG, f"arg:{tag}", target=ids[start], linkage=0))
        return writer.encode(), ids


def _starts(program: Program) -> Sequence[int]:
    starts, slot = {0}, 0
    for insn in program.insns:
        if (insn.code == CALL and insn.src == PSEUDO_CALL) or (insn.code == LD_IMM64 and insn.src == PSEUDO_FUNC):
            starts.add(slot + 1 + insn.imm)
        slot += insn.slots
    return sorted(starts)


def _type(writer: BtfWriter, name: str) -> int:
    if name.endswith("*"):
        return writer.once(BtfType(Kind.BTF_KIND_PTR, target=_type(writer, name[:-1])))
    if "=" in name:
        name, _, target = name.partition("=")
        return writer.once(BtfType(Kind.BTF_KIND_TYPEDEF, name, target=_type(writer, target)))
    if name == "void":
        return 0
    if name in ("int", "u64"):
        return writer.integer(name, 4 if name == "int" else 8, is_signed=name == "int")
    u64 = writer.integer("u64", 8)
    return writer.once(BtfType(Kind.BTF_KIND_STRUCT, name, 16, members=(Member("a", u64), Member("b", u64, 64))))


VALUE = ".map m array key=4 value=8 max_entries=1\n.prog main socket_filter\n"
READ = "r3 = map[m][0]+0\nr3 += r2\nr0 = *(u64 *)(r3 +0)\nr0 = 0\nexit"
UNTYPED = ".prog main tracing attach_type=BPF_TRACE_RAW_TP attach_to=sched_process_exec\nr1 = 0\nr2 = 0\n"
SOCKET = """.prog main sched_cls
r6 = r1
r2 = r10
r2 += -16
*(u64 *)(r10 -16) = 0
*(u64 *)(r10 -8) = 0
r3 = 12
r4 = -1
r5 = 0
call bpf_sk_lookup_tcp
if r0 == 0 goto end
r7 = r0
"""
TCP_SOCKET = "r1 = r7\ncall bpf_tcp_sock\nif r0 == 0 goto done\n"
RELEASE = "r1 = r7\ncall bpf_sk_release\nend:\nr0 = 0\nexit\n"
NONE_PASSED = "r1 = 0\ncall f\nr0 = 0\nexit\nf:\nr0 = 0\nexit"
CONTEXT_PASSED = "call f\nr0 = 0\nexit\nf:\nr0 = 0\nexit"
STACK_PASSED = f"*(u64 *)(r10 -8) = 0\n*(u64 *)(r10 -16) = 0\nr1 = r10\nr1 += -16\n{CONTEXT_PASSED}"
TASK_PASSED = (
    ".prog main tracing attach_type=BPF_TRACE_RAW_TP attach_to=sched_process_exec\n"
    f"r1 = *(u64 *)(r1 +0)\n{CONTEXT_PASSED}"
)
TAIL_CALL = "r2 = map[p]\nr3 = 0\ncall bpf_tail_call\nr0 = 0\nexit"
PROGRAMS = ".map p prog_array key=4 value=4 max_entries=1\n"


def _unseen(name: str, *insns: Insn, id_: str = "bad-instruction", needs_types: bool = False) -> SmallProgram:
    return SmallProgram(f"unseen {name}", "r0 = 0\nexit", id_, unseen=insns, needs_types=needs_types)


def _declared(
    name: str,
    text: str,
    takes: str,
    *tags: str,
    id_: str = "",
    returns: str = "int",
    kind: str = "",
    needs_types: bool = False,
) -> SmallProgram:
    function = Function("f", (takes,) if takes else (), returns, tags)
    return SmallProgram(name, f".prog main {kind}\n{text}" if kind else text, id_, (function,), needs_types=needs_types)


def _format(text: str, length: int, id_: str = "") -> SmallProgram:
    words = "".join(f"*(u64 *)(r10 -{8 * index}) = 0\n" for index in range(1, 5))
    call = f"r3 = map[ro][0]+0\nr4 = r10\nr4 += -32\nr5 = {length}\ncall bpf_snprintf\nr0 = 0\nexit"
    return SmallProgram(
        f"format {text} of {length} bytes",
        f'.rodata ro\n.asciz "{text}"\n.prog main kprobe\n{words}r1 = r10\nr1 += -16\nr2 = 16\n{call}',
        id_,
    )


def _functions(count: int) -> str:
    """Return a program of a number of functions, the main one included."""
    calls = "".join(f"call f{index}\n" for index in range(1, count))
    return f"{calls}r0 = 0\nexit\n" + "".join(f"f{index}:\nr0 = 0\nexit\n" for index in range(1, count))


PACKET_FILLED = """r2 = *(u32 *)(r1 +START)
r4 = *(u32 *)(r1 +STOP)
r5 = r2
r5 += 64
if r5 > r4 goto end
r3 = 64
r4 = 0
call bpf_fib_lookup
end:
r0 = 0
exit"""

BAD = "global-function"

LOOKED_UP = "*(u32 *)(r10 -4) = 0\nr2 = r10\nr2 += -4\nr1 = map[m]\ncall bpf_map_lookup_elem\n"
FOUND_TWICE = (
    f".map m hash key=4 value=8 max_entries=4\n.prog main socket_filter\n{LOOKED_UP}r6 = r0\nr7 = r0\n{LOOKED_UP}"
)

PROGRAMS_ABOUT_RULES: tuple[SmallProgram, ...] = (
    # Where pointers become numbers, 32 bits or 64.
    SmallProgram("w -= on a pointer", f"{VALUE}r2 = r10\nw2 -= 1\nr2 >>= 32\n{READ}", "unbounded-access"),
    SmallProgram("w -= of pointers", f"{VALUE}r2 = r10\nr4 = r10\nw2 -= w4\nr2 >>= 32\n{READ}", "unbounded-access"),
    SmallProgram("w = -w of a pointer", f"{VALUE}r2 = r10\nw2 = -w2\nr2 >>= 32\n{READ}", "unbounded-access"),
    SmallProgram("w = w of a pointer", f"{VALUE}r2 = r10\nw2 = w2\nr2 >>= 32\n{READ}"),
    SmallProgram(
        "a number plus untyped memory",
        f"{UNTYPED}call bpf_rdonly_cast#kfunc\nr6 = 8\nr6 += r0\nr0 = *(u64 *)(r6 +0)\nr0 = 0\nexit",
        "not-a-pointer",
        needs_types=True,
    ),
    SmallProgram(
        "untyped memory plus a number",
        f"{UNTYPED}call bpf_rdonly_cast#kfunc\nr0 += 8\nr0 = *(u64 *)(r0 +0)\nr0 = 0\nexit",
        needs_types=True,
    ),
    SmallProgram("a socket moved by nothing", f"{SOCKET}r7 += 0\n{RELEASE}", "pointer-arithmetic"),
    SmallProgram("a map moved by nothing", f"{VALUE}r2 = map[m]\nr2 += 0\nr0 = 0\nexit"),
    # What is refused although no path reaches it, and what is not.
    *(_unseen(f"opcode {code:#04x}", Insn(code)) for code in (0x38, 0x8D, 0x8F, 0x96, 0x99, 0x9D, 0xFE)),
    _unseen("load with a constant", Insn(0x79, 0, 1, 0, 5)),
    _unseen("address of no kind", Insn(LD_IMM64, 1, 9)),
    _unseen("address of no type", Insn(LD_IMM64, 1, PSEUDO_BTF_ID, 0, 99_999_999), id_="bad-map"),
    _unseen("address of void", Insn(LD_IMM64, 1, PSEUDO_BTF_ID, 0, 1), id_="bad-map"),
    _unseen("move with an offset", Insn(0xB7, 0, off=3), id_=""),
    _unseen("atomic that does not exist", Insn(0xDB, 10, 1, -8, 0x77), id_=""),
    _unseen("register 11", Insn(0xB7, 11), id_=""),
    _unseen("helper that does not exist", Insn(CALL, imm=9999), id_=""),
    SmallProgram(
        "unseen kernel function without a license",
        ".prog main socket_filter license=Proprietary\nr0 = 0\nif r0 == 0 goto end\n"
        "call bpf_rcu_read_lock#kfunc\nend:\nexit",
        "gpl-required",
    ),
    # What can be read of sockets.
    *(
        SmallProgram(
            f"{size} bytes at {off} of a {what}",
            f"{SOCKET}{prepare}r0 = *(u{8 * size} *)(r{'0' if prepare else '7'} +{off})\ndone:\n{RELEASE}",
            id_,
        )
        for what, prepare, off, size, id_ in (
            ("socket", "", 44, 1, ""),
            ("socket", "", 45, 1, "context-access"),
            ("TCP socket", TCP_SOCKET, 80, 8, ""),
            ("TCP socket", TCP_SOCKET, 84, 4, "context-access"),
            ("TCP socket", TCP_SOCKET, 108, 4, ""),
            ("TCP socket", TCP_SOCKET, 112, 4, "context-access"),
        )
    ),
    # Helpers that fill memory take none of the packet's.
    *(
        SmallProgram(
            f"route looked up into the packet of {kind}",
            f".prog main {kind}\n{PACKET_FILLED.replace('START', start).replace('STOP', stop)}",
            "packet-write",
        )
        for kind, start, stop in (("sched_cls", "76", "80"), ("xdp", "0", "4"))
    ),
    # Kernel functions, and who may call them.
    *(
        SmallProgram(f"{call} of {kind}", f".prog main {kind}\ncall {call}#kfunc\nr0 = 0\nexit", id_, needs_types=True)
        for kind, call, id_ in (
            ("perf_event", "bpf_crypto_ctx_create", "kfunc-not-allowed"),
            ("syscall sleepable", "css_rstat_updated", "kfunc-not-allowed"),
            ("kprobe", "bpf_cast_to_kern_ctx", ""),
            ("raw_tracepoint", "bpf_cast_to_kern_ctx", "kfunc-not-allowed"),
        )
    ),
    SmallProgram(
        "string of a user into a value that may be missing",
        ".map h hash key=8 value=64 max_entries=4\n.prog main syscall sleepable\n*(u64 *)(r10 -8) = 0\n"
        "r1 = map[h]\nr2 = r10\nr2 += -8\ncall bpf_map_lookup_elem\nr1 = r0\nr2 = 8\nr3 = 0\nr4 = 0\n"
        "call bpf_copy_from_user_str#kfunc\nr0 = 0\nexit",
        needs_types=True,
    ),
    # How deep the stack is: what is read counts, too.
    SmallProgram(
        "stack read at 264 in a function called",
        "r0 = *(u64 *)(r10 -256)\ncall f\nr0 = 0\nexit\nf:\nr0 = *(u64 *)(r10 -264)\nr0 = 0\nexit",
        "stack-too-deep",
    ),
    SmallProgram(
        "stack read at 256 in a function called",
        "r0 = *(u64 *)(r10 -256)\ncall f\nr0 = 0\nexit\nf:\nr0 = *(u64 *)(r10 -256)\nr0 = 0\nexit",
    ),
    # What tracepoints and iterators pass.
    *(
        SmallProgram(
            f"argument {index} of {name}, {more or 'loaded'}",
            f".prog main tracing attach_type=BPF_TRACE_{kind} attach_to={name}\nr6 = *(u64 *)(r1 +{8 * index})\n"
            f"{more}\nr0 = 0\nexit",
            id_,
            needs_types=True,
        )
        for kind, name, index, more, id_ in (
            ("RAW_TP", "initcall_start", 0, "", "context-access"),
            ("RAW_TP", "mm_page_alloc_zone_locked", 0, "", ""),
            ("RAW_TP", "mm_page_alloc_zone_locked", 0, "r0 = *(u64 *)(r6 +0)", "null-dereference"),
            ("RAW_TP", "tmigr_group_set_cpu_active", 1, "", ""),
            ("ITER", "bpf_map_elem", 1, "r0 = *(u64 *)(r6 +0)", ""),
            ("ITER", "bpf_map_elem", 2, "r0 = *(u8 *)(r6 +0)", "null-dereference"),
        )
    ),
    # What kernels forget of numbers.
    *(
        SmallProgram(
            f"numbers: {name}",
            f"{VALUE}r6 = map[m][0]+0\n{text}\nr6 += r3\nr0 = *(u8 *)(r6 +0)\nout:\nr0 = 0\nexit",
            id_,
        )
        for name, text, id_ in (
            (
                "a signed bound, once the low half says more",
                "r3 = *(u64 *)(r6 +0)\nif r3 s> 7 goto out\nif r3 > 9 goto out",
                "map-value-out-of-bounds",
            ),
            (
                "the same without a reason to forget",
                "r3 = *(u64 *)(r6 +0)\nif r3 > 9 goto out\nif r3 s> 7 goto out",
                "",
            ),
            (
                "the sign of a small number",
                "r3 = *(s8 *)(r6 +0)\nr3 s>>= 5\nr3 = (s8)r3\nif r3 s< 0 goto out",
                "map-value-out-of-bounds",
            ),
            (
                "bounds, where bits are not set",
                "r3 = *(u64 *)(r6 +0)\nif r3 > 7 goto out\nif r3 & 1 goto out\nr3 >>= 1",
                "",
            ),
        )
    ),
    # Where programs are attached, and how many functions they have.
    SmallProgram("nowhere", ".prog main sk_lookup\nr0 = 1\nexit", "attach"),
    SmallProgram("somewhere else", ".prog main xdp attach_type=BPF_SK_LOOKUP\nr0 = 1\nexit"),
    SmallProgram("at a wrong place", ".prog main cgroup_skb attach_type=BPF_SK_LOOKUP\nr0 = 1\nexit", "attach"),
    SmallProgram("at the first place", ".prog main cgroup_sock\nr0 = 1\nexit"),
    SmallProgram("257 functions", _functions(257), "program-too-large"),
    SmallProgram("256 functions", _functions(256)),
    # References of those who called.
    SmallProgram(
        "a tail call of a function, the caller holds a socket",
        f"{PROGRAMS}{SOCKET}r1 = r6\ncall f\n{RELEASE}f:\n{TAIL_CALL}",
        functions=(Function("f", is_global=False),),
    ),
    SmallProgram(
        "a tail call with a socket held",
        f"{PROGRAMS}{SOCKET}r1 = r6\n{TAIL_CALL}\nend:\nr0 = 0\nexit",
        "reference-leak",
    ),
    SmallProgram(
        "a tail call in a function without a result",
        f"{PROGRAMS}.prog main socket_filter\ncall f\nr0 = 0\nexit\nf:\n{TAIL_CALL}",
        "tail-call",
        (Function("f", returns="void", is_global=False),),
    ),
    SmallProgram(
        "a packet load in a function without a result",
        "call f\nr0 = 0\nexit\nf:\nr6 = r1\nr0 = *(u8 *)skb[0]\nr0 = 0\nexit",
        "bad-instruction",
        (Function("f", returns="void", is_global=False),),
    ),
    # How functions are declared.
    _declared("a tag on a number", NONE_PASSED, "int", "nonnull", id_=BAD),
    _declared("a tag that nobody knows", STACK_PASSED, "s*", "good", id_=BAD),
    _declared("memory tagged nullable", STACK_PASSED, "s*", "nullable", id_=BAD),
    _declared("memory tagged nonnull", STACK_PASSED, "s*", "nonnull"),
    _declared("context and nonnull", CONTEXT_PASSED, "__sk_buff*", "ctx", "nonnull", id_=BAD),
    _declared("context by name and nonnull", CONTEXT_PASSED, "__sk_buff*", "nonnull", id_=BAD),
    _declared("context of another kind", CONTEXT_PASSED, "xdp_md*", "ctx", id_=BAD),
    _declared("context as int *", CONTEXT_PASSED, "int*", "ctx", id_=BAD),
    _declared("context as void *", CONTEXT_PASSED, "void*", "ctx"),
    _declared("context by name", CONTEXT_PASSED, "__sk_buff*"),
    _declared("context by the kernel's name", CONTEXT_PASSED, "sk_buff*"),
    _declared("name of another kind's context", CONTEXT_PASSED, "xdp_md*", id_="argument-type"),
    _declared("memory named as another kind's context", STACK_PASSED, "__sk_buff*", kind="xdp"),
    _declared("context of a tracepoint", CONTEXT_PASSED, "s*", "ctx", kind="tracepoint"),
    _declared("context as words", CONTEXT_PASSED, "u64*", "ctx", kind="raw_tracepoint"),
    _declared("context as words, where it is none", CONTEXT_PASSED, "u64*", "ctx", kind="perf_event", id_=BAD),
    _declared("registers", CONTEXT_PASSED, "pt_regs*", kind="kprobe"),
    _declared("registers by their typedef", CONTEXT_PASSED, "bpf_user_pt_regs_t=s*", kind="kprobe"),
    _declared("registers, tagged", CONTEXT_PASSED, "pt_regs*", "ctx", kind="perf_event"),
    _declared("registers, not tagged", CONTEXT_PASSED, "pt_regs*", kind="perf_event", id_="argument-type"),
    _declared("context as memory", CONTEXT_PASSED, "s*", kind="syscall sleepable"),
    _declared("context of fields as memory", CONTEXT_PASSED, "s*", id_="argument-type"),
    _declared("dynptr, tagged", NONE_PASSED, "bpf_dynptr*", "nonnull", id_=BAD),
    _declared("task passed", TASK_PASSED, "task_struct*", "trusted", needs_types=True),
    _declared("task passed for an inode", TASK_PASSED, "inode*", "trusted", id_="argument-type", needs_types=True),
    _declared("task and nonnull", TASK_PASSED, "task_struct*", "trusted", "nonnull", id_=BAD, needs_types=True),
    _declared("no task", NONE_PASSED, "task_struct*", "trusted", "nullable", needs_types=True),
    _declared("untrusted and nullable", NONE_PASSED, "task_struct*", "untrusted", "nullable", id_=BAD),
    # Format strings.
    _format("%d of %s, %5lld%%", 24),
    _format("%pI4 %pks %pB %p%%", 32),
    _format("%d", 7, "argument-size"),
    _format("%d %d", 8, "argument-constant"),
    *(_format(text, 8, "argument-constant") for text in ("%y", "%", "%pX", "%p%", "%lc", "%hd", "%n", "%sx")),
    SmallProgram(
        "arguments of a trace in part",
        '.rodata ro\n.asciz "%d"\n.prog main kprobe\n*(u64 *)(r10 -8) = 0\nr1 = map[ro][0]+0\nr2 = 3\nr3 = r10\n'
        "r3 += -8\nr4 = 7\ncall bpf_trace_vprintk\nr0 = 0\nexit",
    ),
    *(
        SmallProgram(
            f"what is fetched goes over the address: {atomic}",
            f"r0 = r10\n*(u64 *)(r10 -8) = r0\nr1 = 0\n{atomic}\nr0 = 0\nexit",
            "not-a-pointer",
        )
        for atomic in (
            "r0 = atomic64_cmpxchg((u64 *)(r0 -8), r0, r1)",
            "r0 = atomic64_xchg((u64 *)(r0 -8), r0)",
            "r0 = atomic64_fetch_add((u64 *)(r0 -8), r0)",
        )
    ),
    SmallProgram(
        "equal to a pointer that is not null",
        f"{FOUND_TWICE}if r0 == 0 goto out\nif r6 != r0 goto out\nr1 = *(u64 *)(r6 +0)\nout:\nr0 = 0\nexit",
    ),
    SmallProgram(
        "a copy of what is equal to a pointer that is not null",
        f"{FOUND_TWICE}if r0 == 0 goto out\nif r6 != r0 goto out\nr1 = *(u64 *)(r7 +0)\nout:\nr0 = 0\nexit",
        "null-dereference",
    ),
    SmallProgram(
        "equal to the frame pointer", f"{FOUND_TWICE}if r6 != r10 goto out\nr1 = *(u64 *)(r6 +0)\nout:\nr0 = 0\nexit"
    ),
    SmallProgram(
        "two cgroup storages",
        ".map a cgroup_storage key=16 value=8 max_entries=0\n.map b cgroup_storage key=16 value=16 max_entries=0\n"
        ".prog main cgroup_skb\nr1 = map[a]\nr2 = 0\ncall bpf_get_local_storage\nr1 = map[b]\nr2 = 0\n"
        "call bpf_get_local_storage\nr0 = 0\nexit",
        "map-not-allowed",
    ),
)
"""All of them, for Linux 6.18."""
