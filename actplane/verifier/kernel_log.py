"""
The kernel's own words, mapped to the mirror's refusal ids: the last lines of a verifier log, in the
form used up to Linux 7.2 and in the structured report of Linux 7.3, which follows the old lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from actplane.verifier.tables.refusals import CATALOGUE


@dataclass(frozen=True, slots=True)
class KernelRefusal:
    """What a log says: the id of the reason, the slot (-1 if it names none), and the kernel's message."""

    id: str
    slot: int
    message: str
    processed: int = 0
    suggestion: str = ""


# The first pattern that matches a message decides.
_PATTERNS: Final[tuple[tuple[str, str], ...]] = (
    (r"variable stack access prohibited for !root", "stack-variable-offset"),
    (r"prohibited for !root", "speculation"),
    (r"allowed for CAP_BPF", "privileged-only"),
    (r"irq flag|restore irq state out of order", "irq-flag"),
    (r"exception (cb|callback)|cannot be called from callback subprog", "exception"),
    (r"(spin_lock|bpf_spin_lock) at off=\d+ must be held|held lock and object are not in the same", "graph"),
    (r"(list_head|list_node|rb_root|rb_node) (not found at offset|has to be at)|not allowed in rbtree cb", "graph"),
    (r"operation on (bpf_list_head|bpf_rb_root|list_head|rb_root) expects|non-owning or refcounted", "graph"),
    (r"arg#1 offset=\d+, but expected|expected pointer to map value or allocated object", "graph"),
    (r"allocated object|neither owning or non-owning|bpf_refcount field|obj_new type|obj_drop\(\)", "allocated-object"),
    (r"verifier bug|verifier internal error|misconfigured", "unsupported"),
    (r"sign extending loads from arena", "arena-not-modelled"),
    (r"R\d+ !read_ok|Unreadable register", "uninitialized-register"),
    (r"pointer \S+= pointer prohibited|sign-extension part of pointer", "pointer-arithmetic"),
    (r"Caller passes invalid args into func|size cannot be determined|expects pointer to ctx", "global-function"),
    (r"reference type\(.*\) has no matches", "global-function"),
    (r"func_info", "unreachable"),
    (r"R6 != pointer to skb", "context-modified"),
    (r"metadata kfuncs require", "kfunc-not-allowed"),
    (r"is allowed only to CAP_PERFMON", "privileged-only"),
    (r"is bpf_array invalid negative access|in struct bpf_map ", "map-pointer-access"),
    (r"invalid negative access|no write support to|direct access to bpf_\w+ is disallowed", "struct-access"),
    (r"(rdwr|rdonly) buffer (access|offset)", "memory-out-of-bounds"),
    (r"may write into memory pointed by", "read-only"),
    (r"failed to find the address for kernel symbol", "bad-map"),
    (r"more than one arg with ref_obj_id", "reference-release"),
    (r"BPF_\w+ stores into R\d+ \w+ is not allowed", "atomic-access"),
    (r"must be a rcu pointer", "untrusted-pointer"),
    (r"reference has not been acquired before", "reference-release"),
    (r"unbounded size, use", "argument-size"),
    (r"bpf_preempt_enable(\(s\) are| is) missing", "section"),
    (r"is not a known constant|doesn't support non-zero flags", "argument-constant"),
    (r"must point to scalar|pointer type .* not to stack|expected for bpf_\w+\(\)", "argument-type"),
    (r"is not modifiable|__noreturn function|The address of function", "attach"),
    (r"invalid mem access '\w*_or_null_?\w*'", "null-dereference"),
    (r"invalid mem access 'scalar'", "not-a-pointer"),
    (r"invalid mem access '(untrusted|user|percpu)_", "untrusted-pointer"),
    (r"invalid mem access '", "memory-access"),
    (r"invalid bpf_context access|invalid \w+ access off=", "context-access"),
    (r"dereference of modified ctx|negative offset ctx|variable ctx access", "context-modified"),
    (r"dereference of modified \w+ ptr|negative offset \w+ ptr", "argument-type"),
    (r"variable \S* ?access var_off", "struct-access"),
    (r"offset is outside of the packet", "packet-out-of-bounds"),
    (r"helper access to the packet|does not allow writes to packet|cannot write into packet", "packet-write"),
    (r"(min|max) value is outside of the allowed memory range|invalid access to map value", "map-value-out-of-bounds"),
    (r"invalid access to (memory|map key|packet)", "memory-out-of-bounds"),
    (r"invalid (read|write|indirect read)? ?(from|to) stack .*off|invalid indirect .*stack", "stack-uninitialized"),
    (r"invalid (unbounded )?variable-offset", "stack-variable-offset"),
    (r"invalid (read|write) (from|to) stack R|invalid stack|stack pointer .* is out of", "stack-out-of-bounds"),
    (r"frame pointer is read only", "frame-pointer-write"),
    (r"min value is negative, either use unsigned or", "argument-size"),
    (r"min value is negative", "negative-offset"),
    (r"unbounded memory access, use|invalid zero-sized read", "argument-size"),
    (r"unbounded memory access", "unbounded-access"),
    (r"misaligned", "misaligned"),
    (r"div by zero", "division-by-zero"),
    (r"invalid shift", "shift-out-of-range"),
    (r"null-check it first", "pointer-null-arithmetic"),
    (r"math between .* pointer|pointer offset -?\d+ is not allowed|makes .* pointer be out", "pointer-out-of-range"),
    (r"pointer arithmetic|bitwise operator .* on pointer|pointer [-+]= pointer|partial copy", "pointer-arithmetic"),
    (r"tried to subtract pointer|subtraction from stack pointer", "pointer-arithmetic"),
    (r"pointer comparison", "pointer-comparison"),
    (r"leaks addr|cannot (spill|return) .*stack|leak", "pointer-leak"),
    (r"invalid size of register (fill|spill)|corrupt spilled pointer", "stack-pointer-corruption"),
    (r"Unreleased reference|would lead to reference leak|reference leak", "reference-leak"),
    (
        r"release .*(reference|unowned|unreferenced)|must be referenced|unacquired reference|zero offset when passed",
        "reference-release",
    ),
    (r"spin_(un)?lock|lock-ed region|holding a lock|deadlock", "lock"),
    (r"_rcu_read_(un)?lock|rcu_read_lock|preempt_disable|IRQ|irq", "section"),
    (
        r"At (program exit|callback return|subprogram exit)|should have been in|R0 leaks|R0 not a scalar value",
        "return-value",
    ),
    (r"infinite loop detected", "endless-loop"),
    (r"BPF program is too large|processed \d+ insn.*too large", "too-many-instructions"),
    (r"sequence of \d+ jumps is too complex", "too-complex"),
    (r"combined stack size|tail_calls are not allowed when call stack|stack size \d+ is too large", "stack-too-deep"),
    (r"call stack of \d+ frames is too deep", "too-many-frames"),
    (r"recursive call|recursion", "recursion"),
    (r"unreachable insn", "unreachable"),
    (r"back-edge", "loop-not-allowed"),
    (r"jump out of range|jump into the middle", "bad-jump"),
    (r"call to invalid destination|invalid destination", "bad-call-target"),
    (r"last insn is not an exit", "falls-off-end"),
    (
        r"unknown opcode|reserved fields|R\d+ is invalid|bpf_ld_imm64 insn|BPF_LD_IMM insn|invalid may_goto",
        "bad-instruction",
    ),
    (r"unknown func|invalid func unknown", "unknown-helper"),
    (r"from non-GPL compatible|cannot call GPL", "gpl-required"),
    (r"cannot use helper|helper call is not allowed|not supported for program type", "helper-not-allowed"),
    (r"cannot pass map_type", "map-helper-mismatch"),
    (
        r"tracing progs cannot use|filter progs cannot use|Sleepable programs can only use|map.*not allowed",
        "map-not-allowed",
    ),
    (r"(write into|read from) map forbidden|kptr cannot be accessed|cannot be accessed directly", "map-value-access"),
    (r"kptr", "kptr-access"),
    (r"cannot write into|only read", "read-only"),
    (r"BPF_ATOMIC", "atomic-access"),
    (r"same insn cannot be used with different pointers", "mixed-pointers"),
    (r"Possibly NULL pointer|type=\w*_or_null_? expected", "argument-null"),
    (r"must be a known constant|is not a const|not a readonly map", "argument-constant"),
    (r"type=.* expected=|expected pointer to|is of type .* but|is not a scalar|expects", "argument-type"),
    (r"sleepable|might sleep", "sleeping"),
    (r"dynptr|DYNPTR", "dynptr"),
    (r"iter", "iterator"),
    (r"tail_call", "tail-call"),
    (r"[Gg]lobal func", "global-function"),
    (r"calling kernel function|kernel function", "kfunc-not-allowed"),
    (r"callback", "callback"),
    (r"attach|btf_id|hook|Cannot (replace|extend)", "attach"),
    (r"access beyond|cannot access ptr member|struct|btf", "struct-access"),
    (r"direct value|map", "bad-map"),
)

_COMPILED: Final = tuple((re.compile(pattern), id_) for pattern, id_ in _PATTERNS)
_INSN: Final = re.compile(r"^(\d+): \([0-9a-f]{2}\)")
_SAID_BEHIND: Final = re.compile(r"(BPF program is too large\..*|infinite loop detected.*)$")
"""Messages that the kernel writes behind an instruction, on its line."""
_PROCESSED: Final = re.compile(r"^processed (\d+) insns")
_NOISE: Final = re.compile(
    r"^(from \d+ to|\d+: (R|frame|safe)|;|func#|Func#|last_idx|mark_precise|regs=|old state|cur state|\(\d+\) |"
    r"SCC |Live regs|frame \d+: propagating|propagating|parent |\s+(\d+ )?\s*\d+: )"
)
"""Lines about the walk, which say nothing about why it ended."""

_REPORT: Final = re.compile(r"^Verification failed(?:: *(?P<category>[^:\n]*): *(?P<title>.*))?$", re.M)
_SECTION: Final = re.compile(r"^\s*(Reason|At|Causal path|Suggestion):[ \t]*(.*)$")
_AT: Final = re.compile(r"\binsn (\d+)|^\s*(\d+):")


def id_of_message(message: str) -> str | None:
    """
    Return the refusal id that a message of the kernel stands for, None if it is not known.

    >>> id_of_message("R0 invalid mem access 'map_value_or_null'")
    'null-dereference'
    """
    return next((id_ for pattern, id_ in _COMPILED if pattern.search(message)), None)


def parse_kernel_log(log: str) -> KernelRefusal | None:
    """
    Return why a kernel refused a program, by its log of either form; None if the log names no reason.

    >>> parse_kernel_log("4: (79) r1 = *(u64 *)(r0 +0)\\nR0 invalid mem access 'map_value_or_null'\\n").slot
    4
    """
    report = _REPORT.search(log)
    slot, messages = _plain(log[: report.start()] if report is not None else log)
    counted = [int(match[1]) for match in map(_PROCESSED.match, log.splitlines()) if match is not None]
    processed = counted[-1] if counted else 0
    if report is None:
        return _named(messages, slot, processed, "")
    sections = _sections(log[report.end() :])
    at = _AT.search(sections.get("At", ""))
    slot = int(at[1] or at[2]) if at is not None else slot
    said = [sections.get("Reason", ""), report["title"] or "", *messages]
    return _named(said, slot, processed, sections.get("Suggestion", ""))


def _plain(log: str) -> tuple[int, list[str]]:
    """Return the last instruction of a log of the old form, and the messages after it."""
    slot = -1
    messages: list[str] = []
    for line in log.splitlines():
        found = _INSN.match(line)
        if found is not None:
            slot = int(found[1])
            behind = _SAID_BEHIND.search(line)
            messages = [behind[1]] if behind is not None else []
        elif line.strip() and not _PROCESSED.match(line) and not _NOISE.match(line):
            messages.append(line.strip())
    return slot, messages


def _sections(report: str) -> dict[str, str]:
    """Return the sections of a structured report by their headings, each as one line of text."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in report.splitlines():
        heading = _SECTION.match(line)
        if heading is not None:
            current = sections.setdefault(heading[1], [])
        text = heading[2] if heading is not None else line.strip()
        if text and not _PROCESSED.match(text):
            current.append(text)
    return {name: " ".join(lines) for name, lines in sections.items()}


def _named(messages: list[str], slot: int, processed: int, suggestion: str) -> KernelRefusal | None:
    for message in reversed(messages):
        id_ = id_of_message(message)
        if id_ is not None:
            assert id_ in CATALOGUE
            return KernelRefusal(id_, slot, message, processed, suggestion)
    return None
