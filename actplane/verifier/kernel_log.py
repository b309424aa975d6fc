"""
The kernel's own words, mapped to the mirror's refusal ids: the last lines of a verifier log, in the
form used up to Linux 7.2 and in the structured report of Linux 7.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from actplane.verifier.refusals import CATALOGUE


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
    (r"prohibited for !root|tail_call abusing map_ptr", "speculation"),
    (r"allowed for CAP_BPF", "privileged-only"),
    (r"irq flag|restore irq state out of order", "irq-flag"),
    (r"exception (cb|callback)|cannot be called from callback subprog", "exception"),
    (r"(spin_lock|bpf_spin_lock) at off=\d+ must be held|held lock and object are not in the same", "graph"),
    (r"(list_head|list_node|rb_root|rb_node) (not found at offset|has to be at)|not allowed in rbtree cb", "graph"),
    (r"operation on (bpf_list_head|bpf_rb_root|list_head|rb_root) expects|non-owning or refcounted", "graph"),
    (r"arg#1 offset=\d+, but expected|expected pointer to map value or allocated object", "graph"),
    (r"allocated object|neither owning or non-owning|bpf_refcount field|obj_new type|obj_drop\(\)", "allocated-object"),
    (r"R\d+ !read_ok", "uninitialized-register"),
    (r"invalid mem access '\w*_or_null_?\w*'", "null-dereference"),
    (r"invalid mem access 'scalar'", "not-a-pointer"),
    (r"invalid mem access '(untrusted|user|percpu)_", "untrusted-pointer"),
    (r"invalid mem access '", "memory-access"),
    (r"invalid bpf_context access|invalid \w+ access off=", "context-access"),
    (r"dereference of modified ctx|negative offset ctx|variable ctx access", "context-modified"),
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
    (r"At (program exit|callback return|subprogram exit)|should have been in|R0 leaks", "return-value"),
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
    (r"unknown opcode|reserved fields|R\d+ is invalid|bpf_ld_imm64 insn", "bad-instruction"),
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
    (r"dynptr", "dynptr"),
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
_PROCESSED: Final = re.compile(r"^processed (\d+) insns")
_STRUCTURED: Final = re.compile(r"^\s*(Reason|At|Suggestion):\s*(.*)$")


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
    if "Verification failed" in log:
        return _parse_structured(log)
    slot, processed = -1, 0
    messages: list[str] = []
    for line in log.splitlines():
        found = _INSN.match(line)
        counted = _PROCESSED.match(line)
        if found is not None:
            slot = int(found[1])
            messages.clear()
        elif counted is not None:
            processed = int(counted[1])
        elif line.strip() and not re.match(r"^(from \d+ to|\d+: R|;|func#|Func#|last_idx|mark_precise|arg#\d)", line):
            messages.append(line.strip())
    return _named(messages, slot, processed, "")


def _parse_structured(log: str) -> KernelRefusal | None:
    fields = {match[1]: match[2].strip() for line in log.splitlines() if (match := _STRUCTURED.match(line))}
    at = re.search(r"insn (\d+)|^(\d+):", fields.get("At", ""))
    slot = int(at[1] or at[2]) if at else -1
    return _named([fields.get("Reason", "")], slot, 0, fields.get("Suggestion", ""))


def _named(messages: list[str], slot: int, processed: int, suggestion: str) -> KernelRefusal | None:
    for message in reversed(messages):
        id_ = id_of_message(message)
        if id_ is not None:
            assert id_ in CATALOGUE
            return KernelRefusal(id_, slot, message, processed, suggestion)
    return None
