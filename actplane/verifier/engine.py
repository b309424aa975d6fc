"""
The walk over a program's paths: one instruction after the other, branches kept for later, states
kept at checkpoints, until every path has ended or one is refused.

What an instruction does is in the modules beside this one; each compiles an instruction once into a
function from the state to the next slot.
"""

from __future__ import annotations

from typing import Final

from actplane.asm.isa import CLASS_MASK, JMP, JMP32
from actplane.verifier import precision
from actplane.verifier.checkpoint import Checkpoint, mark_all_read
from actplane.verifier.dispatch import compile_insn
from actplane.verifier.flow import CALLER_SAVED
from actplane.verifier.log import logged
from actplane.verifier.pruning import ALL_FRAMES, EXACT, NOT_EXACT, RANGE_WITHIN, states_equal
from actplane.verifier.refusals import refuse
from actplane.verifier.speculation import guarded
from actplane.verifier.state import ITER, NOT_MARKED, State
from actplane.verifier.values import Scalar
from actplane.verifier.verification import END, Handler, Verification

_MAX_ROUNDS: Final = 64
_MAX_HISTORY: Final = 40


class Engine:
    """The walk of one verification. `run` walks one function."""

    def __init__(self, v: Verification) -> None:
        self.v = v
        self.code = v.code
        self.processed = 0
        self.jumps = 0
        self.states_kept = 0
        self.peak_states = 0
        self.max_states_per_insn = 0
        self.state = State()
        """The path that is walked."""
        self._handlers: list[Handler | None] = [None] * v.code.size
        self._is_jump = bytearray(insn is not None and insn.code & CLASS_MASK in (JMP, JMP32) for insn in v.code.at)
        self._kept: dict[tuple[int, int], list[Checkpoint]] = {}
        """Checkpoints by slot and the call that the current frame returns to, the newest first."""
        self._forgotten = 0
        self._open_loops: list[Checkpoint] = []
        self._back_edges: list[tuple[Checkpoint, State]] = []
        self._jumps_at_checkpoint = 0
        self._insns_at_checkpoint = 0

    def run(self, initial: State) -> None:
        """Walk every path from a state. Raises Refused."""
        self.state = state = initial
        self._kept.clear()
        self._open_loops.clear()
        self._back_edges.clear()
        code, handlers = self.code, self._handlers
        prune, is_jump, limit = code.prune, self._is_jump, self.v.options.max_insns
        while True:
            slot = state.slot
            if slot >= code.size:
                refuse("falls-off-end", slot, "control runs past the last instruction")
            self.processed += 1
            if self.processed > limit:
                refuse("too-many-instructions", slot, f"{limit} instructions processed, and paths are left")
            if slot in prune and self._is_covered(state):
                following = self._end_path(state)
                if following is None:
                    return
                self.state = state = following
                continue
            if is_jump[slot]:
                self.jumps += 1
            handler = handlers[slot]
            if handler is None:
                handler = handlers[slot] = self._compile(slot)
            state.trace = (slot, None, state.trace)
            state.slot = handler(state)
            if state.slot == END:
                following = self._end_path(state)
                if following is None:
                    return
                self.state = state = following

    def _compile(self, slot: int) -> Handler:
        handler = guarded(self.v, slot, compile_insn(self.v, slot))
        return logged(self.v, slot, handler) if self.v.options.wants_log else handler

    def _end_path(self, state: State) -> State | None:
        checkpoint = state.parent
        while checkpoint is not None:
            checkpoint.branches -= 1
            if checkpoint.branches:
                break
            checkpoint = checkpoint.parent
        if self._back_edges:
            self._close_loops()
        return self.v.pending.pop() if self.v.pending else None

    def _is_covered(self, state: State) -> bool:
        """Whether a checkpoint covers this state; if not, perhaps keep the state as one."""
        slot = state.slot
        code = self.code
        is_forced = self.v.options.keeps_all_states or slot in code.checkpoint or state.history > _MAX_HISTORY
        wants_new = is_forced or (
            self.jumps - self._jumps_at_checkpoint >= 2 and self.processed - self._insns_at_checkpoint >= 8
        )
        key = slot, state.frames[-1].call_slot
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = []
        index = 0
        while index < len(kept):
            old = kept[index]
            if old.branches:
                outcome = self._compare_with_ancestor(old, state, slot)
                if outcome is True:
                    return self._accept_cover(old, state)
                if outcome is None and not is_forced and self._is_recent():
                    wants_new = False
            else:
                # What frames of an open loop need is not complete; a callback's own frame is gone by then.
                depth = self._open_loop_depth(old)
                if states_equal(old, state, *self._strictness(depth)):
                    if depth:
                        self._back_edges.append((old, state.copy()))
                    return self._accept_cover(old, state)
            if wants_new:
                old.misses += 1
            patience = 64 if slot in code.checkpoint and old.branches else 3
            if old.misses > old.hits * patience + patience:
                # Not worth comparing with any longer; paths that started here still lead back to it.
                del kept[index]
                self._forgotten += 1
                continue
            index += 1
        if wants_new:
            self._keep(state, kept)
        if slot in code.jump_points:
            state.history += 1
        return False

    def _strictness(self, depth: int) -> tuple[int, int]:
        """Return how, and for how many frames, a state must be like a checkpoint in `depth` frames of open loops."""
        if depth:
            return RANGE_WITHIN, depth
        return (EXACT, ALL_FRAMES) if self.v.masks_ranges else (NOT_EXACT, 0)

    def _is_recent(self) -> bool:
        """Whether the last checkpoint is so near that a loop should not keep another."""
        return self.jumps - self._jumps_at_checkpoint < 20 and self.processed - self._insns_at_checkpoint < 100

    def _compare_with_ancestor(self, old: Checkpoint, state: State, slot: int) -> bool | None:
        """
        Compare with a checkpoint that has open paths. True: covered. None: an ordinary ancestor in a
        loop. Raises Refused for a loop that comes back to the same state.
        """
        code = self.code
        if slot in code.iter_next:
            if states_equal(old, state, RANGE_WITHIN) and _iterator_advanced(old.state, state):
                self._enter_loop(old, state)
                return True
            return False
        if slot in code.checkpoint and slot in code.may_gotos:
            if old.state.may_goto != state.may_goto and states_equal(old, state, RANGE_WITHIN):
                self._enter_loop(old, state)
                return True
        elif slot in code.callback_calls:
            if states_equal(old, state, RANGE_WITHIN):
                self._enter_loop(old, state)
                return True
            return False
        if any(one.is_async for one in state.frames) and not old.state.frames[-1].is_async:
            return False
        if _maybe_looping(old, state) and states_equal(old, state, EXACT):
            depths_differ = _iterator_advanced(old.state, state) or old.state.may_goto != state.may_goto
            if not depths_differ and old.state.callback_unroll == state.callback_unroll:
                refuse("endless-loop", slot, f"the path comes back to slot {slot} with the same state")
        return None

    def _accept_cover(self, old: Checkpoint, state: State) -> bool:
        old.hits += 1
        self._propagate(old, state)
        return True

    def _propagate(self, old: Checkpoint, state: State) -> bool:
        """What mattered after a checkpoint matters to the path that it covers. True if that is news."""
        has_changed = False
        for frame, slots in enumerate(old.read):
            if slots:
                has_changed |= mark_all_read(state, state.written, frame, slots)
        if self.v.tracks_precision:
            has_changed |= precision.propagate(self.code, old, state)
        return has_changed

    def _first_open_loop(self) -> int:
        """
        The number of the oldest checkpoint that a loop came back to and that still has open paths. What
        checkpoints after it have collected is not complete yet.
        """
        loops = self._open_loops
        while loops and not loops[0].branches:
            loops.pop(0)
        return loops[0].number if loops else self.states_kept + 1

    def _open_loop_depth(self, old: Checkpoint) -> int:
        """How many frames belong to loops that are open and began before a checkpoint; 0 if there are none."""
        if old.number < self._first_open_loop():
            return 0
        open_loops = (one for one in self._open_loops if one.branches and one.number <= old.number)
        return max((len(one.state.frames) for one in open_loops), default=0)

    def _enter_loop(self, entry: Checkpoint, state: State) -> None:
        """Note that a loop came back to an ancestor, and is at rest."""
        if entry not in self._open_loops:
            self._open_loops.append(entry)
            self._open_loops.sort(key=lambda checkpoint: checkpoint.number)
        self._back_edges.append((entry, state.copy()))

    def _close_loops(self) -> None:
        """All paths of the outermost loop are walked: carry what mattered around its back edges."""
        if self._back_edges and self._first_open_loop() > self.states_kept:
            for _ in range(_MAX_ROUNDS):
                changes = [self._propagate(entry, state) for entry, state in self._back_edges]
                if not any(changes):
                    break
            self._back_edges.clear()

    def _keep(self, state: State, kept: list[Checkpoint]) -> None:
        slot = state.slot
        live = []
        for index in range(len(state.frames)):
            if index == len(state.frames) - 1:
                live.append(self.code.live[slot])
            else:
                # The caller goes on after its call; what the call clobbers is not needed.
                after = state.frames[index + 1].call_slot + 1
                live.append(self.code.live[after] & ~CALLER_SAVED if after < self.code.size else 0)
        checkpoint = Checkpoint(state.copy(), live, state.written[:])
        checkpoint.reads_unwritten = self.v.allows_uninitialized_stack
        if not self.v.tracks_precision:
            # Without privileges every number matters.
            checkpoint.precise_regs = [-1] * len(state.frames)
            checkpoint.precise_slots = [-1] * len(state.frames)
        self.states_kept += 1
        checkpoint.number = self.states_kept
        kept.insert(0, checkpoint)
        self.peak_states = max(self.peak_states, self.states_kept - self._forgotten)
        self.max_states_per_insn = max(self.max_states_per_insn, len(kept))
        self._jumps_at_checkpoint = self.jumps
        self._insns_at_checkpoint = self.processed
        state.parent = checkpoint
        state.trace = None
        state.marked = NOT_MARKED
        state.history = 0
        state.written = [0] * len(state.frames)


def _maybe_looping(old: Checkpoint, state: State) -> bool:
    """Whether the registers of the current frame look the same: the full comparison costs more."""
    if len(old.state.frames) != len(state.frames):
        return False
    live = old.live[-1]
    for reg, (mine, theirs) in enumerate(zip(old.state.frames[-1].regs, state.frames[-1].regs, strict=True)):
        if mine is theirs or not live >> reg & 1:
            continue
        if mine.__class__ is not theirs.__class__:
            return False
        if isinstance(mine, Scalar) and isinstance(theirs, Scalar) and mine.range is not theirs.range:
            return False
    return True


def _iterator_advanced(old: State, state: State) -> bool:
    """Whether some iterator on the stack has made progress since the old state."""
    for frame, other in zip(old.frames, state.frames, strict=True):
        for index, slot in frame.stack.items():
            if slot.kinds[0] != ITER:
                continue
            twin = other.stack.get(index)
            if twin is None or twin.kinds[0] != ITER:
                continue
            if slot.value.is_first and not twin.value.is_drained and slot.value.depth != twin.value.depth:
                return True
    return False
