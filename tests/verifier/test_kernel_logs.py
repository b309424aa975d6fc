"""
Verifier logs as they are found in bug reports: what loaders, loggers and terminals print around them, and
what they leave of them. Where a log is a real one, its test names the report; of each, only the lines of
the kernel and the frame around them are here.
"""

from __future__ import annotations

import pytest

from actplane.verifier.kernel_log import parse_kernel_log

LOOKUP = """3: (85) call bpf_map_lookup_elem#1           ; R0_w=map_value_or_null(id=1,map=a,ks=4,vs=16)
4: (79) r0 = *(u64 *)(r0 +0)
R0 invalid mem access 'map_value_or_null'
processed 5 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""


def each_line(before: str, after: str = "") -> str:
    return "".join(f"{before}{line}{after}\n" for line in LOOKUP.splitlines())


AROUND_EACH_LINE = {
    "as it is": LOOKUP,
    "CRLF": each_line("", "\r"),
    "dmesg": each_line("[ 1234.567890] "),
    "dmesg with the thread": each_line("[ 1234.567890][  T812] "),
    "dmesg -T": each_line("[Mon Nov 23 00:01:02 2026] "),
    "journal": each_line("Nov 22 23:59:01 host agent[812]: "),
    "ISO time and level": each_line("2024-12-16T08:42:07Z INF "),
    "Go's log": each_line("2022/06/17 05:00:51 "),
    "logrus": each_line("ERRO[0045] "),
    "time and level": each_line("21:15:35 [WARN] "),
    "level": each_line("[DEBUG] "),
    "env_logger": each_line("[2023-12-19T10:00:00Z INFO  foo] "),
    "logfmt": each_line('level=warning msg="', '" subsys=datapath-loader'),
    "colours": each_line("\x1b[1;31m", "\x1b[0m"),
    "quoted": each_line("> "),
    "blanks": each_line("    "),
    "one value of logfmt": 'level=ERROR msg="no" error="program x: load program: permission denied:\\n\\t'
    + LOOKUP.replace("\n", "\\n\\t")
    + '"',
    "cut off at the beginning": LOOKUP[LOOKUP.index("4:") :],
    "cut off at the end": LOOKUP[: LOOKUP.index("processed")],
}


@pytest.mark.parametrize("log", AROUND_EACH_LINE.values(), ids=AROUND_EACH_LINE)
def test_what_stands_around_the_lines_does_not_matter(log: str) -> None:
    found = parse_kernel_log(log)
    assert found is not None
    assert (found.id, found.slot) == ("null-dereference", 4)
    assert found.message == "R0 invalid mem access 'map_value_or_null'"
    assert found.insn_text == "r0 = *(u64 *)(r0 +0)"


REPORTS = {
    "iovisor/bcc#147": (
        "bpf: Permission denied\n3: (b7) r1 = 0\n4: (61) r3 = *(u32 *)(r1 +0)\nR1 invalid mem access 'imm'\n",
        ("not-a-pointer", 4),
    ),
    "iovisor/bcc#904": (
        "66: (7b) *(u64 *)(r10 -520) = r1\ninvalid stack off=-520 size=8\n\n"
        "HINT: a 1 Kbyte struct\n\nTraceback (most recent call last):\n    b.attach_uretprobe(name=...)\n"
        "Exception: Failed to load BPF program printret: Permission denied\n",
        ("stack-out-of-bounds", 66),
    ),
    "iovisor/bcc#2828": ("back-edge from insn 517 to 486\n", ("loop-not-allowed", 517)),
    "iovisor/bcc#4453": (
        "94: (79) r2 = *(u64 *)(r10 -32)\ninvalid read from stack R10 off=-32 size=8\nprocessed 593 insns\n\n"
        "Traceback (most recent call last):\n    self._trace_autoload()\n",
        ("stack-uninitialized", 94),
    ),
    "vishvananda/netlink#312": ("jump out of range from insn 1 to 2\n", ("bad-jump", 1)),
    "iovisor/gobpf#125": (
        '\tbpf_test.go:472: error while loading "cgroup/skb" (invalid argument):\n'
        "\t\t0: (b7) r0 = 123\n\t\t1: (95) exit\n"
        "\t\tAt program exit the register R0 has value (0x7b; 0x0) should have been 0 or 1\n",
        ("return-value", 1),
    ),
    "xdp-project/xdp-tutorial#269": (
        "libbpf: load bpf program failed: Permission denied\nlibbpf: -- BEGIN DUMP LOG ---\nlibbpf: \n"
        "btf_vmlinux is malformed\nR1 type=ctx expected=fp\n"
        "; int  xdp_parser_func(struct xdp_md *ctx)\n0: (bf) r6 = r1\n"
        "7: (71) r3 = *(u8 *)(r2 +12)\ninvalid access to packet, off=12 size=1, R2(id=0,off=12,r=1)\n"
        "R2 offset is outside of the packet\nprocessed 8 insns (limit 1000000)\n\nlibbpf: -- END LOG --\n"
        "libbpf: failed to load program 'xdp_packet_parser'\nERR: loading file: xdp_prog_kern.o\n",
        ("packet-out-of-bounds", 7),
    ),
    "aquasecurity/tracee#1091": (
        "970: (73) *(u8 *)(r2 +0) = r1\n R0=inv0 R1_w=inv1 R2_w=map_value(id=0,off=0,ks=4,vs=32768) R10=fp0\n"
        "R2 unbounded memory access, make sure to bounds check any such access\nprocessed 743 insns (limit 1000000)\n\n"
        "libbpf: -- END LOG --\nlibbpf: failed to load program 'trace_switch_task_namespaces'\n",
        ("unbounded-access", 970),
    ),
    "sched-ext/scx#810": (
        "    395: (85) call bpf_cpumask_and#65708\n"
        "    invalid access to map value, value_size=1320 off=1280 size=1024\n"
        "    R3 max value is outside of the allowed memory range\n    processed 365 insns (limit 1000000)\n",
        ("map-value-out-of-bounds", 395),
    ),
    "sched-ext/scx#916": (
        "  1073: (95) exit\n  bpf_rcu_read_unlock is missing\n  processed 10663 insns (limit 1000000)\n",
        ("section", 1073),
    ),
    "sched-ext/scx#2947": (
        "15: <invalid kfunc call>\nkfunc 'scx_bpf_events' is referenced but wasn't resolved\nprocessed 16 insns\n",
        ("kfunc-not-allowed", 15),
    ),
    "parttimenerd/ebpf-verifier-errors#8": (
        "libbpf: prog 'simple_exit': -- BEGIN PROG LOAD LOG --\n"
        "Global function simple_exit() doesn't return scalar. Only those are supported.\n"
        "0: (79) r6 = *(u64 *)(r1 +0)\nfunc 'exit' arg0 has btf_id 24956 type STRUCT 'scx_exit_info'\n"
        "1: R1=ctx() R6_w=trusted_ptr_scx_exit_info()\n8: (85) call bpf_probe_read_str#45\n"
        "program of this type cannot use helper bpf_probe_read_str#45\nprocessed 7 insns (limit 1000000)\n"
        "-- END PROG LOAD LOG --\nlibbpf: prog 'simple_exit': failed to load: -EINVAL\n",
        ("helper-not-allowed", 8),
    ),
    "bpftrace/bpftrace#2279": (
        "11: (79) r1 = *(u64 *)(r6 +0)\nfunc 'vfs_open' arg0 has btf_id 627 type STRUCT 'path'\n"
        "15: (85) call bpf_d_path#147\nhelper call is not allowed in probe\nprocessed 16 insns (limit 1000000)\n\n"
        "ERROR: Error loading program: kfunc:vfs_open\n",
        ("helper-not-allowed", 15),
    ),
    "bpftrace/bpftrace#2403": (
        "24: (85) call unknown#111\ninvalid func unknown#111\n\n"
        "ERROR: Error loading program: kprobe:napi_gro_receive\n",
        ("unknown-helper", 24),
    ),
    "kunai-project/kunai#179": (
        "Error: the BPF_PROG_LOAD syscall failed. Verifier output: R1 type=ctx expected=fp\n"
        "reg type unsupported for arg#0 function is_iter_type#258\n"
        "math between map_value pointer and register with unbounded min value is not allowed\n"
        "verification time 20319 usec\nstack depth 200+0+9\nprocessed 1039 insns (limit 1000000)\n\n\nCaused by:\n"
        "    1: Invalid argument (os error 22)\n",
        ("pointer-out-of-range", -1),
    ),
    "aya-rs/aya#1056": (
        "Error: the BPF_PROG_LOAD syscall failed. Verifier output: last insn is not an exit or jmp\n"
        "processed 0 insns\n",
        ("falls-off-end", -1),
    ),
    "anakryiko/retsnoop#79": (
        "261: (61) r2 = *(u32 *)(r6 +3040)\ninfinite loop detected at insn 262\ncur state: frame2: R0=0 R1_w=scalar()\n"
        "old state: frame2: R0=0 R1=scalar()\nprocessed 3000 insns (limit 1000000)\n",
        ("endless-loop", 262),
    ),
    "cilium/tetragon#164": (
        "2400: (b7) r2 = 8\nBPF program is too large. Processed 1000001 insn\n"
        "processed 1000001 insns (limit 1000000)\n",
        ("too-many-instructions", 2400),
    ),
    "loxilb-io/loxilb#666": (
        "Prog section 'tc_packet_hook0' rejected: Permission denied (13)!\n - Instructions: 1119 (0 over limit)\n\n"
        "Verifier analysis:\n\nfunc#0 @0\n5: (85) call bpf_map_lookup_elem#1\nR1 type=scalar expected=map_ptr\n\n"
        "Error fetching program/map!\nUnable to load program\n",
        ("argument-type", 5),
    ),
    "google/buzzer#72": (
        "Verifier log: \nfunc#0 @0\nfd 0 is not pointing to valid bpf_map\nprocessed 0 insns (limit 1000000)\n"
        "could not load bpf program: Invalid argument\n",
        ("bad-map", -1),
    ),
    "gojue/ecapture#694": (
        "couldn't init manager xxx verifier error:load program: permission denied:\n"
        "\t11: (85) call bpf_perf_event_output#25\n\tinvalid indirect read from stack R4 off -64+0 size 64\n"
        "\tprocessed 10 insns (limit 1000000)\n",
        ("stack-uninitialized", 11),
    ),
    "cilium/ebpf#1106": (
        "loading objects: field UretprobeBashReadline: program uretprobe_bash_readline: load "
        "program: permission denied: "
        "invalid indirect read from stack off -92+0 size 80 (13 line(s) omitted)",
        ("stack-uninitialized", -1),
    ),
    "cilium/ebpf#2111, before": (
        "load program: permission denied: 0: (95) exit: R0 !read_ok (2 line(s) omitted)",
        ("uninitialized-register", 0),
    ),
    "cilium/ebpf#2111, after": (
        "load program: permission denied: R0 has never been initialized on this path, so the verifier cannot use it as "
        "an input (Initialize R0 on every path before this instruction)",
        ("uninitialized-register", -1),
    ),
    "lockc-project/lockc#177": (
        "Error: the BPF_PROG_LOAD syscall failed. Verifier output: func#0 @0\n"
        "number of funcs in func_info doesn't match number of subprogs\nverification time 13 usec\nstack depth 0\n"
        "processed 0 insns (limit 1000000)\n",
        ("unsupported", -1),
    ),
    "loxilb-io/loxilb#953": (
        "8116: (85) call bpf_spin_lock#93\nmap 'polx_map' has to have BTF in order to use bpf_spin_lock\n"
        "processed 757 insns (limit 1000000)\n-- END PROG LOAD LOG --\n"
        "libbpf: failed to load program 'tc_packet_func'\n13:12:12 ERROR common_libbpf.c:183: tc: obj load failed\n",
        ("lock", 8116),
    ),
    "falcosecurity/libs#317": (
        "313: (79) r5 = *(u64 *)(r2 +0)\ndereference of modified ctx ptr R2 off=16 disallowed\nprocessed 8486 insns\n"
        "-- END PROG LOAD LOG --\nlibscap: bpf_load_program() err=13 event=filler/sys_autofill\n",
        ("context-modified", 313),
    ),
    "microsoft/OMS-Auditd-Plugin#54": (
        "7124: (85) call bpf_probe_read_str#45\nR2 min value is negative, either use unsigned or 'var &= const'\n",
        ("argument-size", 7124),
    ),
    "sched-ext/scx#2668": (
        "21:15:35 [WARN] libbpf: prog 'wd40_setup': -- BEGIN PROG LOAD LOG --\n"
        "Func#9 ('scx_static_alloc_internal') is safe for any args that match its prototype\n"
        "Validating scx_stk_alloc() func#11...\n1182: R1=mem_or_null(id=2877,sz=80) R10=fp0\n"
        "1182: (55) if r1 != 0x0 goto pc+6 1189: R1=mem(sz=80) R10=fp0\n1200: (85) call pc+77\n"
        "global function calls are not allowed with preemption disabled,\nuse static function instead\n"
        "processed 9 insns (limit 1000000)\n",
        ("global-function", 1200),
    ),
    "libbpf, a relocation": (
        "3: <invalid CO-RE relocation>\nfailed to resolve CO-RE relocation <byte_off> [11] struct task_struct.state\n",
        ("unknown-helper", 3),
    ),
    "libbpf, names full of words": (
        "9: (95) exit\nUnreleased reference id=2 alloc_insn=5\n-- END PROG LOAD LOG --\n"
        "libbpf: prog 'attach_map_iter': failed to load: -EINVAL\n"
        "libbpf: failed to load BPF skeleton 'struct_btf_hook'\n",
        ("reference-leak", 9),
    ),
    "a helper's name says nothing": (
        "4: (85) call bpf_spin_lock#93\nprogram of this type cannot use helper bpf_spin_lock#93\n",
        ("helper-not-allowed", 4),
    ),
    "a region by the line before": (
        "5: (61) r0 = *(u32 *)(r1 -5)\ninvalid access to packet, off=3 size=4, R1(id=0,off=3,r=0)\n"
        "R1 min value is outside of the allowed memory range\nprocessed 9 insns\n",
        ("packet-out-of-bounds", 5),
    ),
    "a call by the line before": (
        "24: (85) call pc+2\ndereference of modified ctx ptr R2 off=192 disallowed\n"
        "Caller passes invalid args into func#3 ('f3')\nprocessed 9 insns\n",
        ("context-modified", 24),
    ),
    "of several logs the one that fails": (
        f"0: (95) exit\nprocessed 1 insns\n-- BEGIN PROG LOAD LOG --\n{LOOKUP}0: (b7) r0 = 0\n"
        f"1: (95) exit\nprocessed 2 insns\n",
        ("null-dereference", 4),
    ),
}


@pytest.mark.parametrize(("log", "expected"), REPORTS.values(), ids=REPORTS)
def test_report_is_understood(log: str, expected: tuple[str, int]) -> None:
    found = parse_kernel_log(log)
    assert found is not None
    assert (found.id, found.slot) == expected


STRUCTURED = """
Verification failed: Register Type Safety: Invalid dereference

Reason:
  R6 may be NULL here (a nullable map value pointer). The program could dereference NULL on this path, so
  the verifier cannot prove this access is safe.

At:
  filter @ branches.bpf.c:20:9
  Source context:
      19 | if (seldom(bpf_ktime_get_ns() == 7))
  >>> 20 |   return *count;
         |   ^-- error: invalid dereference of R6 (a nullable map value pointer)
  Instruction context:
        9 | (55) if r0 != 0x7 goto pc+1
  >>>  10 | (79) r0 = *(u64 *)(r6 +0)
       11 | (95) exit

Causal path:
  filter @ branches.bpf.c:19:6
  Instruction context:
  >>>   9 | (55) if r0 != 0x7 goto pc+1

Suggestion:
  Add a NULL check before the access and dereference the pointer only on the non-NULL path.

processed 11 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""
"""As Linux 7.3 writes it where the program has lines of source."""


@pytest.mark.parametrize(
    "log",
    [
        STRUCTURED,
        "".join(f"\t{line}\n" for line in STRUCTURED.splitlines()),
        "9: (55) if r0 != 0x7 goto pc+1\n" + STRUCTURED,
    ],
    ids=["alone", "tabs", "after other lines"],
)
def test_a_structured_report_with_source_names_the_instruction(log: str) -> None:
    found = parse_kernel_log(log)
    assert found is not None
    assert (found.id, found.slot, found.processed) == ("null-dereference", 10, 11)
    assert found.suggestion.startswith("Add a NULL check before the access")


@pytest.mark.parametrize(
    ("reason", "id_"),
    [
        ("R1 is an integer scalar here, not a pointer to memory.", "not-a-pointer"),
        ("R1 has offset 8 here, but this pointer type must be dereferenced in its original form.", "context-modified"),
        ("R1 has type map_ptr here, which is not valid for this memory access.", "memory-access"),
        ("R3 is not readable here. A previous operation invalidated this register, so ...", "uninitialized-register"),
        (
            "The verifier cannot prove offset + access_size <= object_size. Here, x. R0 is "
            "map_value; offset is unbounded;",
            "map-value-out-of-bounds",
        ),
        (
            "Owned resource (id=2) was acquired at instruction 5 and still needs to be released before ...",
            "reference-leak",
        ),
        ("The first argument to bpf_x does not satisfy the verifier contract: got a scalar.", "argument-type"),
        (
            "The operation bpf_x cannot be used in RCU read lock region because RCU read-side "
            "critical sections cannot call "
            "operations that may sleep.",
            "sleeping",
        ),
        ("The operation exit cannot be used while this path is still inside an active lock region (depth 1).", "lock"),
        (
            "The operation bpf_rcu_read_unlock tries to leave RCU read lock region, but this path has no active one.",
            "section",
        ),
    ],
)
def test_reasons_of_linux_7_3_are_known_where_they_stand_alone(reason: str, id_: str) -> None:
    found = parse_kernel_log(f"Verification failed: Category: Title\n\nReason:\n  {reason}\n")
    assert found is not None
    assert found.id == id_


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What struct is in this map, and which iterator may attach to the hook?\n",
        "0: R1=ctx() R10=fp0\n0: (b7) r0 = 0\n1: (95) exit\nprocessed 2 insns (limit 1000000) max_states_per_insn 0\n",
        "libbpf: prog 'map_iter_hook': failed to load: -22\nlibbpf: failed to load object 'struct_bpf'\n",
    ],
    ids=["empty", "prose", "accepted", "libbpf alone"],
)
def test_what_is_no_refusal_is_none(text: str) -> None:
    assert parse_kernel_log(text) is None


def test_a_log_says_where_in_the_source_it_happened() -> None:
    found = parse_kernel_log("; return *count; @ branches.bpf.c:20\n" + LOOKUP)
    assert found is not None
    assert found.source == "return *count; @ branches.bpf.c:20"
