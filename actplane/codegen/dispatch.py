"""
What is attached to a hook: a program that knows no policy.

It looks for the mark on the task and jumps to the program of that session by the slot in the mark.
A task without a mark is none of our business. A slot without a program means that a session has
lost its policy, so what its processes do is denied.
"""

from __future__ import annotations

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.codegen import kernel, layout
from actplane.codegen.frame import current_state
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder

MAX_SESSIONS = 64
SLOT = 0
"""The slot of a session that has the programs to itself."""


def slots(name: str) -> MapSpec:
    """Return the map of a hook's programs by slot."""
    return MapSpec(name, MapType.BPF_MAP_TYPE_PROG_ARRAY, 4, 4, MAX_SESSIONS)


def dispatcher(name: str, prog_array: str, *, unmarked: int, empty: int, kills: bool = False) -> bc.Function:
    """
    Return the program for a hook: `unmarked` is its result for a task outside every session.

    `empty` is its result where the slot has no program; with `kills` the process is killed as well.
    """
    f = FunctionBuilder(name, ["context"])
    (context,) = f.parameters
    _, state = current_state(f, unmarked)
    slot = f.load(state, layout.STATE_SLOT, 4, "slot")
    f.helper("bpf_tail_call", context, f.map_address(prog_array), slot)
    if kills:
        f.helper("bpf_send_signal", kernel.SIGKILL)
    f.ret(empty)
    return f.finish()
