"""
Widening: a loop that may go on for ever comes to a rest when numbers on which nothing depends are
forgotten from round to round.
"""

from __future__ import annotations

from actplane.verifier.paths.checkpoint import Checkpoint
from actplane.verifier.paths.state import SPILL, Slot, State
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Scalar


def widen_imprecise(old: Checkpoint, state: State) -> None:
    """Make numbers unknown that differ from an older round and on which nothing depended."""
    for index, frame in enumerate(state.frames):
        kept = old.state.frames[index]
        precise = old.precise_regs[index]
        for reg in range(10):
            one, two = kept.regs[reg], frame.regs[reg]
            if precise >> reg & 1 or not isinstance(one, Scalar) or not isinstance(two, Scalar):
                continue
            if one.range is not two.range or one.delta != two.delta:
                frame.regs[reg] = UNKNOWN_SCALAR
        precise = old.precise_slots[index]
        for i, slot in list(frame.stack.items()):
            twin = kept.stack.get(i)
            if twin is None or slot.kinds[0] != SPILL or twin.kinds[0] != SPILL or precise >> i & 1:
                continue
            is_number = isinstance(slot.value, Scalar) and isinstance(twin.value, Scalar)
            if is_number and slot.value.range is not twin.value.range:
                frame.put(i, Slot(slot.kinds, UNKNOWN_SCALAR))
