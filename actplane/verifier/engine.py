"""
The walk over a program's paths: one instruction after the other, branches kept for later, states
kept at checkpoints, until every path has ended or one is refused.

What an instruction does is in the modules beside this one; each compiles an instruction once into a
function from the state to the next slot.
"""

from __future__ import annotations

import time
from typing import Any, Final

from actplane.verifier.domains.bits import bits_of
from actplane.verifier.domains.scalar import Range
from actplane.verifier.log import logged
from actplane.verifier.paths import precision
from actplane.verifier.paths.checkpoint import Checkpoint, LoopVisit, Place, mark_all_read
from actplane.verifier.paths.flow import CALLER_SAVED
from actplane.verifier.paths.liveness import Liveness
from actplane.verifier.paths.loops import find_loops, find_traps
from actplane.verifier.paths.pruning import EXACT, NOT_EXACT, RANGE_WITHIN, number_at, states_equal
from actplane.verifier.paths.speculation import guarded
from actplane.verifier.paths.state import ITER, State
from actplane.verifier.paths.values import Scalar, Value
from actplane.verifier.paths.verification import END, Handler, Verification
from actplane.verifier.rules.dispatch import PLACELESS, compile_insn
from actplane.verifier.tables.refusals import refuse

# What is to be done at a slot beside its instruction: look for a checkpoint, count a jump, refuse.
_PRUNE: Final = 1
_JUMP: Final = 2
_TRAP: Final = 4

_INSNS_BETWEEN_LOOKS: Final = 1000
"""How many instructions are processed between two looks at the clock."""

# When the kernel gives up carrying marks around a loop, and when it keeps a state whatever else it thinks
# (kernel/bpf/verifier.c of Linux 6.18: propagate_backedges, is_state_visited).
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
        self._shared: dict[tuple[Any, ...], Handler] = {}
        """Handlers of instructions that do the same wherever they stand, by their fields."""
        self._started = time.perf_counter()
        self._kept: dict[tuple[int, int], list[Checkpoint]] = {}
        """Checkpoints by slot and the call that the current frame returns to, the newest first."""
        self._forgotten = 0
        self._live = Liveness(v.code, v.subject.types)
        self._loops = find_loops(v.code)
        # Before 6.9 a loop that changes nothing but numbers that do not matter (yet) was thought endless.
        self._exactness_of_loops = EXACT if v.profile.at_least(6, 9) else NOT_EXACT
        self._marks = self._find_marks()
        self._visits: dict[tuple[int, ...], LoopVisit] = {}
        """Loops by the calls that lead to them."""
        self._jumps_at_checkpoint = 0
        self._insns_at_checkpoint = 0

    def run(self, initial: State) -> None:
        """Walk every path from a state. Raises Refused."""
        self.state = state = initial
        self._kept.clear()
        self._visits.clear()
        marks, handlers = self._marks, self._handlers
        processed, jumps, bound = self.processed, self.jumps, 0
        slot = state.slot
        try:
            while True:
                processed += 1
                if processed > bound:
                    bound = self._next_bound(processed, slot)
                state.slot = slot
                mark = marks[slot]
                if mark:
                    if mark & _PRUNE:
                        self.processed, self.jumps = processed, jumps
                        if self._is_covered(state):
                            following = self._end_path(state)
                            if following is None:
                                return
                            self.state = state = following
                            slot = state.slot
                            continue
                    if mark & _JUMP:
                        jumps += 1
                    if mark & _TRAP:
                        refuse("endless-loop", slot, f"from slot {slot} on no path leads to an exit")
                handler = handlers[slot]
                if handler is None:
                    handler = handlers[slot] = self._compile(slot)
                state.trace = (slot, None, state.trace)
                slot = handler(state)
                if slot == END:
                    following = self._end_path(state)
                    if following is None:
                        return
                    self.state = state = following
                    slot = state.slot
        finally:
            self.processed, self.jumps = processed, jumps

    def _find_marks(self) -> bytearray:
        """Return, for each slot, what must be done there beside the instruction."""
        code = self.code
        marks = bytearray(code.size)
        for slot in code.jumps:
            marks[slot] = _JUMP
        for slot in code.prune:
            marks[slot] |= _PRUNE
        for slot in find_traps(code, self._loops):
            marks[slot] |= _TRAP
        return marks

    def _next_bound(self, processed: int, slot: int) -> int:
        """Refuse if the limit or the budget is used up; return when to look again, in instructions processed."""
        options = self.v.options
        if processed > options.max_insns:
            claim = f"{options.max_insns} instructions processed, and paths are left"
            refuse("too-many-instructions", slot, claim)
        if options.budget_insns is not None and processed > options.budget_insns:
            refuse("budget-exhausted", slot, f"{options.budget_insns} instructions were allowed, and paths are left")
        bound = min(options.max_insns, options.budget_insns or options.max_insns)
        if options.budget_seconds is None:
            return bound
        if time.perf_counter() - self._started > options.budget_seconds:
            refuse("budget-exhausted", slot, f"{options.budget_seconds:g} seconds were allowed, and paths are left")
        return min(bound, processed + _INSNS_BETWEEN_LOOKS)

    def _compile(self, slot: int) -> Handler:
        v, insn = self.v, self.code.at[slot]
        assert insn is not None
        if insn.code in PLACELESS:
            fields = insn.code, insn.dst, insn.src, insn.off, insn.imm, insn.symbol
            handler = self._shared.get(fields)
            if handler is None:
                handler = self._shared[fields] = compile_insn(v, slot, insn)
        else:
            handler = compile_insn(v, slot, insn)
        if not v.is_privileged:
            handler = guarded(v, slot, handler)
        return logged(v, slot, handler) if v.options.wants_log else handler

    def _end_path(self, state: State) -> State | None:
        checkpoint = state.parent
        while checkpoint is not None:
            checkpoint.branches -= 1
            if checkpoint.branches:
                break
            if checkpoint.loop is not None and checkpoint.loop.entry is checkpoint:
                self._close_loop(checkpoint.loop)
            checkpoint = checkpoint.parent
        return self.v.pending.pop() if self.v.pending else None

    def _is_covered(self, state: State) -> bool:
        """
        Whether a checkpoint covers this state; if not, perhaps keep the state as one.

        Source: is_state_visited() in kernel/bpf/verifier.c of Linux 6.18, so that counts are the kernel's.
        """
        slot, code, options = state.slot, self.code, self.v.options
        is_special = slot in code.checkpoint
        is_forced = is_special or state.history > _MAX_HISTORY or options.keeps_all_states
        jumps, insns = self.jumps - self._jumps_at_checkpoint, self.processed - self._insns_at_checkpoint
        wants_new = is_forced or (jumps >= 2 and insns >= 8)
        # The last checkpoint is so near that a loop should not keep another.
        is_recent = not is_forced and jumps < 20 and insns < 100
        exact = EXACT if self.v.masks_ranges else NOT_EXACT
        key = slot, state.frames[-1].call_slot
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = []
        place: Place | None = None
        held: Range | None = None
        for old in tuple(kept):
            if old.branches:
                compare = self._compare_at_loop if is_special else self._compare_with_ancestor
                outcome = compare(old, state, slot)
                if outcome:
                    return self._accept_cover(old, state)
                if outcome is None and is_recent:
                    wants_new = False
            elif old.loop is not None and old.loop.edges:
                # What frames of an open loop need is not complete; a callback's own frame is gone by then.
                if states_equal(old, state, RANGE_WITHIN, old.loop.depth):
                    old.loop.edges.append((old, state.copy()))
                    return self._accept_cover(old, state)
            else:
                is_other = False
                if old.watched is not None:
                    # Mostly the number that differed the last time differs again: that spares the comparison.
                    where, number = old.watched
                    if where is not place:
                        place, held = where, number_at(state, where)
                    is_other = held is not None and held is not number and not number.holds(held)
                if not is_other and states_equal(old, state, exact):
                    return self._accept_cover(old, state)
            if wants_new:
                old.misses += 1
                patience = 64 if is_special and old.branches else 3
                if old.misses > old.hits * patience + patience:
                    # Not worth comparing with any longer; paths that started here still lead back to it.
                    kept.remove(old)
                    self._forgotten += 1
        if wants_new:
            self._keep(state, kept)
        if slot in code.jump_points:
            state.history += 1
        return False

    def _compare_at_loop(self, old: Checkpoint, state: State, slot: int) -> bool | None:
        """Do what `_compare_with_ancestor` does, where loops of iterators, may_goto and callbacks come back."""
        code = self.code
        if slot in code.iter_next:
            if states_equal(old, state, RANGE_WITHIN) and _iterator_advanced(old.state, state):
                return self._enter_loop(old, state)
            return False
        if slot in code.may_gotos:
            if old.state.may_goto != state.may_goto and states_equal(old, state, RANGE_WITHIN):
                return self._enter_loop(old, state)
        elif slot in code.callback_calls:
            return states_equal(old, state, RANGE_WITHIN) and self._enter_loop(old, state)
        return self._compare_with_ancestor(old, state, slot)

    def _compare_with_ancestor(self, old: Checkpoint, state: State, slot: int) -> bool | None:
        """
        Compare with a checkpoint that has open paths. True: covered. None: an ordinary ancestor in a
        loop. Raises Refused for a loop that comes back to the same state.
        """
        if state.frames[0].is_async and not old.state.frames[-1].is_async:
            return False
        unlike = old.unlike
        if unlike >= 0:
            # Most often this is the number that counts the rounds, and it has changed again.
            one, two = old.state.frames[-1].regs[unlike], state.frames[-1].regs[unlike]
            if one.__class__ is Scalar and two.__class__ is Scalar and one.range is not two.range:
                return None
        if _maybe_looping(old, state) and states_equal(old, state, self._exactness_of_loops):
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

    def _enter_loop(self, entry: Checkpoint, state: State) -> bool:
        """Note that a loop came back to an ancestor, and is at rest. False if it is not known as a loop."""
        if entry.loop is None:
            return False
        entry.loop.edges.append((entry, state.copy()))
        return True

    def _close_loop(self, loop: LoopVisit) -> None:
        """All paths of a loop are walked: carry what mattered around its back edges."""
        loop.entry = None
        for _ in range(_MAX_ROUNDS):
            changes = [self._propagate(old, state) for old, state in loop.edges]
            if not any(changes):
                break
        else:
            for _, state in loop.edges:
                precision.mark_all(state.parent)
        loop.edges.clear()

    def _loop_around(self, state: State) -> LoopVisit | None:
        """Return the outermost loop that a state is in, for the calls that lead there; None if in none."""
        sites: list[int] = []
        frames = state.frames
        for index in range(len(frames)):
            slot = frames[index + 1].call_slot if index + 1 < len(frames) else state.slot
            loop = self._loops.get(slot)
            if loop is not None:
                key = (*sites, loop)
                found = self._visits.get(key)
                if found is None:
                    found = self._visits[key] = LoopVisit(index + 1)
                return found
            sites.append(slot)
        return None

    def _keep(self, state: State, kept: list[Checkpoint]) -> None:
        slot = state.slot
        live = []
        for index in range(len(state.frames)):
            if index == len(state.frames) - 1:
                live.append(self._live[slot])
            else:
                # The caller goes on after its call; what the call clobbers is not needed.
                after = state.frames[index + 1].call_slot + 1
                live.append(self._live[after] & ~CALLER_SAVED if after < self.code.size else 0)
        checkpoint = Checkpoint(state.copy(), live, state.written[:])
        if self._loops:
            checkpoint.loop = self._loop_around(state)
            if checkpoint.loop is not None and checkpoint.loop.entry is None:
                checkpoint.loop.entry = checkpoint
        checkpoint.reads_unwritten = self.v.allows_uninitialized_stack
        if not self.v.tracks_precision:
            # Without privileges every number matters.
            checkpoint.precise_regs = [-1] * len(state.frames)
            checkpoint.precise_slots = [-1] * len(state.frames)
        self.states_kept += 1
        checkpoint.number = self.states_kept
        if kept and len(kept[0].live) == len(live):
            checkpoint.suspect = kept[0].suspect
        kept.insert(0, checkpoint)
        self.peak_states = max(self.peak_states, self.states_kept - self._forgotten)
        self.max_states_per_insn = max(self.max_states_per_insn, len(kept))
        self._jumps_at_checkpoint = self.jumps
        self._insns_at_checkpoint = self.processed
        state.parent = checkpoint
        state.trace = None
        state.followed = {}
        state.history = 0
        state.written = [0] * len(state.frames)


def _maybe_looping(old: Checkpoint, state: State) -> bool:
    """Whether the registers of the current frame look the same: the full comparison costs more."""
    if len(old.state.frames) != len(state.frames):
        return False
    kept, regs = old.state.frames[-1].regs, state.frames[-1].regs
    for reg in bits_of(old.live[-1]):
        if kept[reg] is not regs[reg] and _differ(kept[reg], regs[reg]):
            old.unlike = reg
            return False
    return True


def _differ(one: Value | None, two: Value | None) -> bool:
    """Whether two values are of different classes, or numbers of different ranges."""
    if one.__class__ is Scalar and two.__class__ is Scalar:
        return one.range is not two.range
    return one.__class__ is not two.__class__


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
