"""
The catalogue of refusals: a stable id for each reason, its title, and what to do about it.

Every id has a page docs/verifier/ID.md with the smallest example that is refused for it and the
repair; the tests run both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn


class Refused(Exception):
    """Raised where an instruction's claim does not hold; the engine turns it into a Refusal."""

    def __init__(self, id_: str, slot: int, claim: str, regs: tuple[int, ...] = ()) -> None:
        super().__init__(f"{slot}: {claim} [{id_}]")
        self.id = id_
        self.slot = slot
        self.claim = claim
        self.regs = regs


def in_bytes(size: int) -> str:
    """
    Return a number of bytes in words.

    >>> in_bytes(1), in_bytes(8)
    ('1 byte', '8 bytes')
    """
    return "1 byte" if size == 1 else f"{size} bytes"


def refuse(id_: str, slot: int, claim: str, *regs: int) -> NoReturn:
    """Refuse the program. `regs` are the registers whose state the reader should see."""
    assert id_ in CATALOGUE, id_
    raise Refused(id_, slot, claim, regs)


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason for refusing a program."""

    id: str
    title: str
    hint: str


def _catalogue(*reasons: Reason) -> dict[str, Reason]:
    return {reason.id: reason for reason in reasons}


CATALOGUE: Final[dict[str, Reason]] = _catalogue(
    # The shape of the program.
    Reason(
        "bad-instruction", "An instruction that does not exist", "use only opcodes and fields that the kernel knows"
    ),
    Reason("bad-jump", "A jump to nowhere", "let the jump end at an instruction of the same function"),
    Reason(
        "jump-table",
        "An indirect jump that no jump table serves",
        "load all 8 bytes of a place from a jump table of this function, and jump by them as they are",
    ),
    Reason("bad-call-target", "A call to nowhere", "let the call end at the first instruction of a function"),
    Reason("falls-off-end", "Control runs past the end", "end every function with an exit or a jump"),
    Reason("unreachable", "Code that no path reaches", "remove the code, or jump to it"),
    Reason(
        "loop-not-allowed", "A loop that is not allowed", "unroll the loop; before Linux 6.7 begin it with its test"
    ),
    Reason("endless-loop", "A loop that makes no progress", "let some register or stack slot change towards the exit"),
    Reason("too-many-instructions", "Too much to verify", "split the program, or write loops as bpf_loop callbacks"),
    Reason("program-too-large", "Too many instructions", "split the program and use tail calls"),
    Reason(
        "budget-exhausted",
        "The time or work allowed is used up",
        "allow more with --budget-seconds or --budget-insns, or ask a kernel: this is no verdict",
    ),
    Reason("too-complex", "Too many branches pending", "simplify the branches, or split the program"),
    Reason("stack-too-deep", "More than 512 bytes of stack", "keep large data in a map value"),
    Reason("too-many-frames", "Too many nested calls", "inline a function, or use a tail call"),
    Reason("recursion", "A function that calls itself", "write the recursion as a loop"),
    # Registers and numbers.
    Reason(
        "uninitialized-register",
        "A register read before it is set",
        "set the register on every path; calls destroy r1 to r5",
    ),
    Reason("frame-pointer-write", "r10 is read only", "copy r10 into another register and change that"),
    Reason("division-by-zero", "A division by the constant 0", "divide by something else"),
    Reason(
        "shift-out-of-range", "A shift by the whole width or more", "shift by less than 64, or 32 for 32-bit operations"
    ),
    Reason("pointer-arithmetic", "Arithmetic that this pointer does not allow", "add or subtract 64-bit numbers only"),
    Reason("pointer-null-arithmetic", "Arithmetic on a pointer that may be null", "compare it with 0 first"),
    Reason(
        "pointer-out-of-range", "An offset without sensible bounds", "bound the offset before adding it to the pointer"
    ),
    Reason(
        "pointer-comparison", "A comparison that leaks a pointer", "compare pointers only with pointers of their kind"
    ),
    Reason("pointer-leak", "A pointer that would become visible", "store numbers, not pointers"),
    # Memory.
    Reason(
        "not-a-pointer",
        "A number used as an address",
        "keep the pointer in its register; a 32-bit operation turns it into a number",
    ),
    Reason(
        "null-dereference", "A pointer that may be null", "compare it with 0 and use it on the branch where it is not"
    ),
    Reason("stack-out-of-bounds", "A stack access outside of the frame", "stay between r10 - 512 and r10"),
    Reason("stack-uninitialized", "Stack bytes read before they are written", "write every byte on every path first"),
    Reason("stack-variable-offset", "A stack access at an unknown offset", "bound the offset from both sides"),
    Reason(
        "stack-pointer-corruption", "A spilled pointer used in part", "load and store spilled pointers as whole 8 bytes"
    ),
    Reason(
        "map-value-out-of-bounds", "A map value access outside of the value", "bound the offset below the value's size"
    ),
    Reason(
        "map-value-access",
        "A map value that may not be read or written so",
        "respect the map's flags and special fields",
    ),
    Reason("map-pointer-access", "An access to the map itself", "use the helpers for maps"),
    Reason(
        "packet-out-of-bounds",
        "A packet access beyond what was checked",
        "compare pointer + length with data_end first",
    ),
    Reason(
        "packet-write",
        "This program may not write to packets",
        "change packets with a helper, and give helpers copies of their bytes",
    ),
    Reason(
        "memory-out-of-bounds", "An access outside of a memory region", "stay inside of the size that the helper gave"
    ),
    Reason(
        "memory-access", "A kind of pointer that is not accessed so", "use the kind of access that this pointer allows"
    ),
    Reason("read-only", "A write to read-only memory", "write to a copy"),
    Reason("unbounded-access", "An index without an upper bound", "bound it with a comparison or a mask"),
    Reason("negative-offset", "An index that may be negative", "use an unsigned comparison, or check for >= 0"),
    Reason("misaligned", "An access that is not aligned", "align the offset to the size of the access"),
    Reason(
        "context-access",
        "A field of the context that is not accessible so",
        "use the offset and size of a field of this program type",
    ),
    Reason("context-modified", "A context pointer that was changed", "use the context with constant offsets only"),
    Reason(
        "struct-access", "A kernel struct member that is not accessible so", "follow the members that BTF describes"
    ),
    Reason(
        "untrusted-pointer",
        "A pointer that may be stale",
        "take a reference, or read the memory with bpf_probe_read_kernel",
    ),
    Reason("atomic-access", "An atomic operation where none is allowed", "use atomics on the stack and on map values"),
    Reason("kptr-access", "A kernel pointer in a map used wrongly", "load and exchange kptrs as whole, typed fields"),
    Reason("mixed-pointers", "One instruction, pointers of two kinds", "give each kind of pointer its own instruction"),
    # Calls.
    Reason("unknown-helper", "A helper that does not exist", "check the number of the helper and the kernel's version"),
    Reason(
        "helper-not-allowed", "A helper that this program may not call", "use another program type or another helper"
    ),
    Reason("gpl-required", "A helper for GPL programs only", "declare a GPL-compatible license"),
    Reason("argument-type", "An argument of the wrong kind", "pass the kind of value that the prototype names"),
    Reason("argument-null", "An argument that may be null", "compare it with 0 first"),
    Reason("argument-constant", "An argument that must be a constant", "pass a number that is known at load"),
    Reason("argument-size", "A length that may be zero or too large", "bound the length from both sides"),
    Reason("map-helper-mismatch", "A helper that does not work on this map", "use the helpers of this map type"),
    Reason("map-not-allowed", "A map that this program may not use", "use another kind of map"),
    Reason(
        "bad-map", "A map reference that cannot be resolved", "name a map that exists, with an offset inside its value"
    ),
    Reason(
        "kfunc-not-allowed",
        "A kernel function that cannot be called",
        "check its name, the program type and the kernel",
    ),
    Reason("sleeping", "Sleeping where it is not allowed", "make the program sleepable, or leave the section first"),
    Reason(
        "global-function",
        "A global function that does not verify alone",
        "make it static, or declare its arguments' types",
    ),
    Reason("callback", "A callback used wrongly", "pass a static function with the arguments the helper gives"),
    Reason(
        "tail-call",
        "A tail call where none is allowed",
        "name one map of programs, from a function that returns a number",
    ),
    Reason("dynptr", "A dynptr used wrongly", "initialise it, keep it whole on the stack, and release it"),
    Reason("iterator", "An iterator used wrongly", "create, advance and destroy it on the stack"),
    Reason(
        "allocated-object",
        "An object that the program allocated used wrongly",
        "allocate a struct of the program's BTF, and drop or give away what the program owns",
    ),
    Reason(
        "graph",
        "A list or tree used wrongly",
        "hold the lock beside it, and pass the node that its `contains` tag names, of an object that is owned",
    ),
    Reason(
        "exception",
        "An exception or its callback used wrongly",
        "throw outside of callbacks and with nothing held; name one global function that takes a number",
    ),
    Reason("irq-flag", "A saved interrupt state used wrongly", "restore what was saved, the last one first"),
    # What is held and how a program ends.
    Reason("reference-leak", "A reference that is never released", "release it on every path to the exit"),
    Reason("reference-release", "A release of something not held", "release exactly what was acquired, once"),
    Reason("lock", "A lock used wrongly", "take one lock, do little, and release it before anything else"),
    Reason("section", "A section left open or closed twice", "pair the calls that enter and leave it on every path"),
    Reason("return-value", "A return value that is not allowed", "set r0 to a value in the range of this hook"),
    Reason("attach", "This program cannot attach there", "check the attach type, the target and the kernel's version"),
    Reason(
        "speculation",
        "A pointer that speculation could lead out of its memory",
        "mask or compare the number before it moves the pointer, alike on all paths; or load with privileges",
    ),
    Reason(
        "privileged-only",
        "Something that only privileged programs may do",
        "load the program with CAP_BPF, or do without it",
    ),
    Reason(
        "target-not-modelled",
        "A program whose target this mirror does not model",
        "ask a kernel; of a struct_ops program name the member, as STRUCT.MEMBER",
    ),
    Reason(
        "arena-not-modelled", "An arena, which this mirror does not model", "ask a kernel; the mirror knows no arenas"
    ),
    Reason("unsupported", "Beyond this mirror", "ask a kernel; the mirror does not model this"),
)
