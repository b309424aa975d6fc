"""
What kernels say of a program that they refuse, and the refusal ids that it stands for.

Source: kernel/bpf/verifier.c of Linux 4.9 to 7.3, kernel/bpf/diagnostics.c of 7.3, and what libbpf puts
        in place of instructions that it could not relocate.
"""

from __future__ import annotations

import re
from typing import Final

# The first pattern that matches a message decides. Sentences that quote a name come first: a helper, a map
# or a struct may be called anything, a word of the patterns below included.
_SENTENCES: Final[tuple[tuple[str, str], ...]] = (
    (r"helper bpf_unspec#", "unknown-helper"),
    (r"program of this type cannot use helper|helper call is not allowed in probe", "helper-not-allowed"),
    (r"invalid func \S+#-?\d+|unknown func unknown#|failed to resolve CO-RE relocation", "unknown-helper"),
    (r"unknown func ", "helper-not-allowed"),
    (r"calling kernel function|kernel function call|kfunc '.*' is referenced", "kfunc-not-allowed"),
    (r"metadata kfuncs require", "kfunc-not-allowed"),
    (r"map '.*' is referenced but|not pointing to valid bpf_map|direct value|isn't KIND_VAR", "bad-map"),
    (r"invalid access to map value pointer|find the address for kernel symbol|invalid btf_id", "bad-map"),
    (
        r"(access beyond|cannot access ptr member).* in struct bpf_map |struct bpf_map doesn't have",
        "map-pointer-access",
    ),
    (r"is bpf_\w+ invalid negative access|only read from bpf_\w+ is supported", "map-pointer-access"),
    (r"expected PTR_TO_INSN|points to outside of jump table|point to any offset in map|insn[_ ]array$", "jump-table"),
    (r"no jump tables? (was )?found|jump table for ins\w+ \d+ points outside|indirect jump out of range", "jump-table"),
    (r"No jump table was found|can jump indirectly to instruction", "jump-table"),
    (r"cannot be used as const string", "argument-constant"),
    (r"callback function not allowed for map", "map-helper-mismatch"),
    (r"access beyond|cannot access ptr member|doesn't have field at offset", "struct-access"),
    (r"direct access to bpf_\w+ is disallowed|cannot be accessed directly", "map-value-access"),
    (r"prog(ram)?s cannot use bpf_|prog(ram)?s can only use", "map-not-allowed"),
    (r"type ID argument must be of a struct or void|rdonly_cast type ID argument", "argument-type"),
    (r"release (helper|kfunc|kernel function) .* expects", "reference-release"),
    (
        r"is not modifiable|^Attaching |The address of function|Cannot (replace|extend)|attach to (invalid|uns)",
        "attach",
    ),
    (r"must provide btf_id|attach_btf_id \d+ (is not|points to)", "attach"),
    (r"has no valid kptr|kptr isn't referenced|stor(e|ing) to (referenced )?kptr", "kptr-access"),
    (r"expected (an |un)initialized iter_", "iterator"),
    (r"unowned const bpf_dynptr|initialized dynptr|overwrite referenced dynptr|write to dynptr", "dynptr"),
    (r"tail_call abusing", "tail-call"),
    (r"Global function \S+ doesn't return scalar", "global-function"),
    (r"from non-GPL compatible|cannot call GPL|must have a GPL compatible", "gpl-required"),
    (r"leaks addr", "pointer-leak"),
    (r"would lead to reference leak|Unreleased reference|reference leak", "reference-leak"),
    (r"variable stack access prohibited for !root", "stack-variable-offset"),
    (r"prohibited for !root", "speculation"),
    (r"allowed for CAP_BPF|is allowed only to CAP_PERFMON", "privileged-only"),
    (r"irq flag|restore irq state out of order", "irq-flag"),
    (r"exception (cb|callback)|cannot be called from callback subprog", "exception"),
    (r"(spin_lock|bpf_spin_lock) at off=\d+ must be held|held lock and object are not in the same", "graph"),
    (r"(list_head|list_node|rb_root|rb_node) (not found at offset|has to be at)|not allowed in rbtree cb", "graph"),
    (r"operation on (bpf_list_head|bpf_rb_root|list_head|rb_root) expects|non-owning or refcounted", "graph"),
    (r"arg#1 offset=\d+, but expected|expected pointer to map value or allocated object", "graph"),
    (r"allocated object|neither owning or non-owning|bpf_refcount field|obj_new type|obj_drop", "allocated-object"),
    (r"verifier bug|verifier internal error|misconfigured", "unsupported"),
    (r"sign extending loads from arena", "arena-not-modelled"),
    (r"R\d+ !read_ok|Unreadable register", "uninitialized-register"),
    (r"pointer \S+= pointer prohibited|sign-extension part of pointer", "pointer-arithmetic"),
    (r"size cannot be determined|reference type\(.*\) has no matches", "global-function"),
    (r"func_info|line_info", "unsupported"),
    (r"R6 != pointer to skb", "context-modified"),
    (r"invalid negative access", "struct-access"),
    (r"(rdwr|rdonly) buffer (access|offset)", "memory-out-of-bounds"),
    (
        r"may write into memory pointed by|R\d+ cannot write into (?!packet)|only read is supported|no write support",
        "read-only",
    ),
    (r"more than one arg with ref_obj_id", "reference-release"),
    (r"BPF_\w+ stores into R\d+ \w+ is not allowed", "atomic-access"),
    (r"must be a rcu pointer|must be referenced or trusted", "untrusted-pointer"),
    (r"reference has not been acquired before", "reference-release"),
    (r"unbounded size, use", "argument-size"),
    (r"bpf_preempt_enable(\(s\) are| is) missing", "section"),
    (r"is not a known constant|doesn't support non-zero flags|readonly map|Invalid format", "argument-constant"),
    (r"expected pointer to an iterator", "iterator"),
    (r"(modified|negative offset) dynptr_ptr ptr", "dynptr"),
    (r"map_uid=|isn't map pointer", "argument-type"),
    (r"must point to scalar|pointer type .* not to stack|expected for bpf_\w+\(\)", "argument-type"),
    (r"expected prog array map for tail call|cannot pass map_type", "map-helper-mismatch"),
    (r"kptr access misaligned|invalid kptr access", "kptr-access"),
    (r"invalid mem access '\w*_or_null_?\w*'", "null-dereference"),
    (r"invalid mem access '(scalar|inv|imm)'", "not-a-pointer"),
    (r"invalid mem access '(untrusted|user|percpu)_", "untrusted-pointer"),
    (r"invalid mem access '", "memory-access"),
    (r"invalid bpf_context access|invalid \w+ access off=", "context-access"),
    (r"dereference of modified ctx|negative offset ctx|variable ctx access", "context-modified"),
    (r"dereference of modified \w+ ptr|negative offset \w+ ptr", "argument-type"),
    (r"variable \S* ?access var_off", "struct-access"),
    (r"offset is outside of the packet|invalid access to packet", "packet-out-of-bounds"),
    (r"helper access to the packet|does not allow writes to packet|cannot write into packet", "packet-write"),
    (r"invalid access to (memory|map key)", "memory-out-of-bounds"),
    (
        r"(min|max) value is outside of the (allowed memory|array) range|invalid access to map value",
        "map-value-out-of-bounds",
    ),
    (r"invalid (read|indirect read) from stack .*off|invalid indirect .*stack", "stack-uninitialized"),
    (r"invalid (unbounded )?variable-offset|variable stack read|variable stack access", "stack-variable-offset"),
    (r"invalid (read|write) (from|to) stack R|invalid stack|stack pointer .* is out of", "stack-out-of-bounds"),
    (r"frame pointer is read only", "frame-pointer-write"),
    (r"min value is negative, either use unsigned or", "argument-size"),
    (r"min value is negative", "negative-offset"),
    (r"unbounded memory access, use|invalid zero-sized read", "argument-size"),
    (r"unbounded memory access", "unbounded-access"),
    (r"misaligned", "misaligned"),
    (r"div by zero", "division-by-zero"),
    (r"invalid shift", "shift-out-of-range"),
    (r"null-check it first|pointer arithmetic on \w+_or_null", "pointer-null-arithmetic"),
    (r"math between .* pointer|pointer offset -?\d+ is not allowed|makes .* pointer be out", "pointer-out-of-range"),
    (r"pointer arithmetic|bitwise operator .* on pointer|pointer [-+]= pointer|partial copy", "pointer-arithmetic"),
    (r"tried to subtract pointer|subtraction from stack pointer", "pointer-arithmetic"),
    (r"pointer comparison", "pointer-comparison"),
    (r"cannot (spill|return) .*stack|leaking pointer", "pointer-leak"),
    (r"invalid size of register (fill|spill)|corrupt spilled pointer", "stack-pointer-corruption"),
    (
        r"release .*(reference|unowned|unreferenced)|must be referenced|unacquired reference|zero offset when passed",
        "reference-release",
    ),
    (r"rcu_read_(un)?lock|preempt_disable|IRQ disabled", "section"),
    (r"spin_(un)?lock|lock-ed region|holding a lock|deadlock", "lock"),
    (
        r"At (program exit|callback return|subprogram exit)|should have been (in|0)|R0 not a scalar value",
        "return-value",
    ),
    (r"infinite loop detected", "endless-loop"),
    (r"too many subprograms", "program-too-large"),
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
    (r"LD_ABS is only|ABS.IND\] instructions", "bad-instruction"),
    (r"read from map forbidden|write into map forbidden", "map-value-access"),
    (r"BPF_ATOMIC", "atomic-access"),
    (r"same insn cannot be used with different pointers", "mixed-pointers"),
    (r"Possibly NULL pointer|type=\w*_or_null_? expected", "argument-null"),
    (r"must be a known constant|is not a const", "argument-constant"),
    (r"type=.* expected=|expected pointer to|expects pointer to ctx|is of type .* but", "argument-type"),
    (r"not sleepable|might sleep|sleepable (helper|kfunc|global)|can be sleepable|non-sleepable", "sleeping"),
    # The reasons of Linux 7.3, where they stand alone.
    (r"may be NULL here", "null-dereference"),
    (r"is an integer scalar here, not a pointer", "not-a-pointer"),
    (r"must be dereferenced in its original form", "context-modified"),
    (r"is not valid for this memory access", "memory-access"),
    (r"has never been initialized|is not readable here|is not initialized at this call", "uninitialized-register"),
    (r"offset \+ access_size <= object_size.* is a? ?(nullable )?map[ _]value", "map-value-out-of-bounds"),
    (r"offset \+ access_size <= object_size.* is a? ?(stack|fp)\b", "stack-out-of-bounds"),
    (r"offset \+ access_size <= object_size.* is a? ?(packet|pkt)\b", "packet-out-of-bounds"),
    (r"offset \+ access_size <= object_size", "memory-out-of-bounds"),
    (r"Owned resource .* needs to be released", "reference-leak"),
    (r"does not satisfy the verifier contract: .*(NULL|null)", "argument-null"),
    (r"does not satisfy the verifier contract", "argument-type"),
    (r"operations that may sleep|cannot be used in non-sleepable program", "sleeping"),
    (r"(still inside|requires|leave) an? .*IRQ-disabled region|leave IRQ-disabled region", "irq-flag"),
    (r"(still inside|requires|leave) .*lock region", "lock"),
    (r"still inside an active|requires an active|tries to leave", "section"),
    (r"The helper .* is not allowed:", "helper-not-allowed"),
    (r"The kfunc .* is not allowed:", "kfunc-not-allowed"),
)

# Words that tell what a message is about, whatever it says of it. They are looked for last, and only where
# nothing else in the log is known: the output of a loader is full of them.
_WORDS: Final[tuple[tuple[str, str], ...]] = (
    (r"\bleak", "pointer-leak"),
    (r"\bIRQ|\birq", "section"),
    (r"kptr", "kptr-access"),
    (r"is not a scalar|expects", "argument-type"),
    (r"sleepable", "sleeping"),
    (r"dynptr|DYNPTR", "dynptr"),
    (r"iter(ator)?\b|\biter_", "iterator"),
    (r"tail_call", "tail-call"),
    (r"[Gg]lobal func|Caller passes invalid args into func", "global-function"),
    (r"kernel function", "kfunc-not-allowed"),
    (r"not supported for program type", "helper-not-allowed"),
    (r"map.*not allowed", "map-not-allowed"),
    (r"callback", "callback"),
    (r"\battach|btf_id|\bhook\b", "attach"),
    (r"\bstruct\b|\bbtf\b", "struct-access"),
    (r"\bbpf_map\b|\bmap\b", "bad-map"),
)

_STACK_ACCESS: Final = re.compile(
    r"invalid (?P<kind>\w+( \w+)?) (from|to) stack R\d+ off=(?P<off>-?\d+) size=(?P<size>\d+)"
)
_FRAME_BYTES: Final = 512

_COMPILED: Final = tuple(
    tuple((re.compile(pattern), id_) for pattern, id_ in patterns) for patterns in (_SENTENCES, _WORDS)
)


def id_of_sentence(message: str) -> str | None:
    """
    Return the refusal id that a whole sentence of the kernel stands for, None if it is not known.

    >>> id_of_sentence("R0 invalid mem access 'map_value_or_null'")
    'null-dereference'
    """
    stack = _STACK_ACCESS.search(message)
    if stack is not None:
        # To older kernels, reading what lies within the frame, and below all that was ever written, is
        # out of bounds too.
        low, size = int(stack["off"]), int(stack["size"])
        is_inside = -_FRAME_BYTES <= low <= -size and stack["kind"] != "write"
        return "stack-uninitialized" if is_inside else "stack-out-of-bounds"
    return next((id_ for pattern, id_ in _COMPILED[0] if pattern.search(message)), None)


def id_of_words(message: str) -> str | None:
    """Return the refusal id that some word of a message suggests, None if none does."""
    return next((id_ for pattern, id_ in _COMPILED[1] if pattern.search(message)), None)
