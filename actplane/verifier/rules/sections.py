"""
Sections that a program enters and leaves: RCU, and those in which preemption is off.
"""

from __future__ import annotations

from actplane.verifier.domains.kinds import Flag
from actplane.verifier.paths.state import ITER, Slot, State, replace_pointers
from actplane.verifier.paths.verification import Verification
from actplane.verifier.tables.refusals import refuse


def apply(v: Verification, state: State, slot: int, name: str) -> None:
    """Enter or leave a section, if that is what the function `name` does."""
    if name == "bpf_rcu_read_lock":
        if state.rcu_depth and not v.profile.at_least(7, 0):
            refuse("section", slot, "an RCU section is open already")
        state.rcu_depth += 1
    elif name == "bpf_rcu_read_unlock":
        if not state.rcu_depth:
            refuse("section", slot, "no RCU section is open")
        state.rcu_depth -= 1
        if not state.rcu_depth:
            _end_rcu(state)
    elif name == "bpf_preempt_disable":
        state.preempt_off += 1
    elif name == "bpf_preempt_enable":
        if not state.preempt_off:
            refuse("section", slot, "preemption is not off")
        state.preempt_off -= 1


def _end_rcu(state: State) -> None:
    """Pointers and iterators under RCU are from now on not to be trusted."""
    replace_pointers(
        state,
        lambda p: bool(p.flags & Flag.RCU),
        lambda p: p.but(flags=(p.flags & ~(Flag.RCU | Flag.NULL)) | Flag.UNTRUSTED),
    )
    for frame in state.frames:
        for index, kept in list(frame.stack.items()):
            if kept.kinds[0] == ITER and kept.value.flags & Flag.RCU:
                frame.put(index, Slot(kept.kinds, kept.value._replace(flags=Flag.UNTRUSTED)))
