"""How deep the stack grows along calls, and how many functions it holds at once."""

from __future__ import annotations

from typing import Final

from actplane.asm.isa import CALL
from actplane.asm.uapi import AttachType, ProgType
from actplane.verifier.paths.verification import Verification
from actplane.verifier.tables.refusals import refuse

LIMIT: Final = 512
TAIL_CALL_LIMIT: Final = 256
PRIVATE_STACK_MINIMUM: Final = 64

_PRIVATE_STACK_TYPES: Final = frozenset(
    {
        ProgType.BPF_PROG_TYPE_KPROBE,
        ProgType.BPF_PROG_TYPE_TRACEPOINT,
        ProgType.BPF_PROG_TYPE_PERF_EVENT,
        ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT,
        ProgType.BPF_PROG_TYPE_TRACING,
    }
)


def check(v: Verification) -> None:
    """Refuse call chains that need more stack or more frames than there are."""
    code = v.code
    calls: dict[int, list[int]] = {start: [] for start in code.starts}
    tails = v.subject.notes.get("tail_calls", set())
    asynchronous = v.subject.notes.get("async_callbacks", set())
    for slot, target in code.called.items():
        if code.layout.opcodes[slot] == CALL or target not in asynchronous:
            calls[code.starts[code.function_of[slot]]].append(target)
    # Iterators have no private stacks: nothing keeps them from running inside of themselves.
    may_have_private = v.prog_type in _PRIVATE_STACK_TYPES and v.program.attach_type is not AttachType.BPF_TRACE_ITER
    has_private = v.profile.at_least(6, 13) and may_have_private and not tails
    for root in [0, *sorted(asynchronous)]:
        _descend(v, calls, root, 0, [], 1, {code.starts[i] for i in tails}, has_private)


def _size(v: Verification, start: int) -> int:
    used = v.stack_bytes.get(start, 0)
    # Kernels before counted as their interpreter does, which gives each function some.
    return -(-used // 16) * 16 if v.profile.at_least(6, 7) else -(-max(used, 1) // 32) * 32


def _descend(
    v: Verification,
    calls: dict[int, list[int]],
    start: int,
    depth: int,
    chain: list[int],
    frames: int,
    tails: set[int],
    has_private: bool,
) -> None:
    if start in chain:
        refuse("recursion", start, f"the function at slot {start} calls itself, directly or through others")
    chain = [*chain, start]
    size = _size(v, start)
    if has_private and size >= PRIVATE_STACK_MINIMUM:
        if size > LIMIT:
            refuse("stack-too-deep", start, f"a function uses {size} bytes of stack, {LIMIT} are allowed")
    else:
        if start in tails and depth >= TAIL_CALL_LIMIT and len(chain) > 1:
            claim = f"a tail call in a function whose callers use {depth} bytes of stack, {TAIL_CALL_LIMIT} are allowed"
            refuse("stack-too-deep", start, claim)
        depth += size
        if depth > LIMIT:
            refuse("stack-too-deep", start, f"the calls use {depth} bytes of stack, {LIMIT} are allowed")
    if frames > v.profile.max_frames:
        refuse("too-many-frames", start, f"{frames} functions deep, {v.profile.max_frames} are allowed")
    for target in dict.fromkeys(calls[start]):
        # Since 7.1 a global function, which is verified alone, starts to count anew.
        starts_anew = v.profile.at_least(7, 1) and target in v.subject.notes["globals"]
        _descend(v, calls, target, depth, chain, 1 if starts_anew else frames + 1, tails, has_private)
