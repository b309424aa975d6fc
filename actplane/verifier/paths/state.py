"""
The state of one path: the frames of the call stack with their registers and stack slots, the
references and locks held, and how the path came here.

Values are shared between states; a frame's registers and slots are copied when a path forks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

from actplane.verifier.domains.kinds import Kind
from actplane.verifier.paths.values import Pointer, Value, needs_no_ids

# What a byte of the stack holds, in the letters of the kernel's log.
INVALID: Final = ord("?")
SPILL: Final = ord("r")
MISC: Final = ord("m")
NOUGHT: Final = ord("0")
DYNPTR: Final = ord("d")
ITER: Final = ord("i")
IRQ: Final = ord("f")

ALL_SPILL: Final = bytes([SPILL]) * 8
ALL_MISC: Final = bytes([MISC]) * 8
ALL_DYNPTR: Final = bytes([DYNPTR]) * 8
ALL_ITER: Final = bytes([ITER]) * 8
ALL_IRQ: Final = bytes([IRQ]) * 8


class Slot:
    """
    Eight bytes of stack: what each byte holds, lowest address first, and the value spilled there.

    A spilled value of fewer than 8 bytes lies at the low end; `value` is also what describes a
    dynptr, an iterator or a saved interrupt state. A slot that `needs_no_ids` stands for itself in
    another state, whatever ids stand for there.
    """

    __slots__ = ("kinds", "needs_no_ids", "value")

    def __init__(self, kinds: bytes, value: Any = None) -> None:
        self.kinds = kinds
        self.value = value
        self.needs_no_ids = value is None or (kinds[0] == SPILL and needs_no_ids(value))

    def __repr__(self) -> str:
        return f"Slot({self.kinds.decode()}, {self.value})"


class DynptrSlot(NamedTuple):
    """The first (lower-numbered address last) or second half of a dynptr on the stack."""

    kind: str
    is_first: bool
    id: int
    ref: int
    is_readonly: bool = False


class IterSlot(NamedTuple):
    """An open-coded iterator on the stack. Only the first slot of several carries the reference."""

    kind: str
    is_first: bool
    is_drained: bool
    depth: int
    ref: int
    flags: int = 0
    size: int = 8


class IrqSlot(NamedTuple):
    """A saved interrupt state."""

    ref: int
    is_native: bool


class Ref(NamedTuple):
    """Something that must be given back: what, its id, the slot it was taken at, and for a lock which."""

    what: str
    id: int
    slot: int
    lock: Any = None


class Frame:
    """One function on the call stack. `stack` maps i to the slot of bytes [-8 * (i + 1), -8 * i)."""

    __slots__ = (
        "call_slot",
        "callback",
        "callback_depth",
        "callback_range",
        "index",
        "is_async",
        "is_shared",
        "regs",
        "stack",
        "subprogram",
    )

    def __init__(self, index: int, subprogram: int, call_slot: int) -> None:
        self.index = index
        self.subprogram = subprogram
        self.call_slot = call_slot
        self.regs: list[Value | None] = [None] * 11
        self.regs[10] = Pointer(Kind.STACK, frame=index)
        self.stack: dict[int, Slot] = {}
        self.is_shared = False
        self.callback: Any = None
        """Why this frame runs, if a helper calls it: the callback's facts."""
        self.callback_range: tuple[int, int] | None = None
        self.callback_depth = 0
        self.is_async = False

    def copy(self) -> Frame:
        """Return a frame that can change apart from this one. Both share the stack until one writes."""
        twin = Frame.__new__(Frame)
        twin.index = self.index
        twin.subprogram = self.subprogram
        twin.call_slot = self.call_slot
        twin.regs = self.regs[:]
        twin.stack = self.stack
        twin.is_shared = self.is_shared = True
        twin.callback = self.callback
        twin.callback_range = self.callback_range
        twin.callback_depth = self.callback_depth
        twin.is_async = self.is_async
        return twin

    def put(self, index: int, slot: Slot) -> None:
        """Replace one stack slot."""
        if self.is_shared:
            self.stack = dict(self.stack)
            self.is_shared = False
        self.stack[index] = slot

    def remove(self, index: int) -> None:
        """Make one stack slot uninitialised."""
        if index in self.stack:
            if self.is_shared:
                self.stack = dict(self.stack)
                self.is_shared = False
            del self.stack[index]


Trace = tuple[int, Any, Any]
"""A step of a path: the slot executed, what else it touched (see precision), and the step before."""


class StackStep(NamedTuple):
    """What a step touched that loaded or stored a stack slot as a whole: the frame, and the slot as a bit."""

    frame: int
    bit: int


@cache
def stack_step(frame: int, index: int) -> StackStep:
    """Return the step of a frame's stack slot."""
    return StackStep(frame, 1 << index)


Followed = dict[int, tuple[Trace, int, int, int]]
"""
What was followed back already, since the last checkpoint: by the identity of a step the step itself, and
the frame, registers and stack slots (as bits) that were wanted behind it.
"""


class State:
    """A path at an instruction. `parent` is the last checkpoint passed; `trace` leads back to it."""

    __slots__ = (
        "callback_unroll",
        "followed",
        "frames",
        "history",
        "in_sleepable",
        "irq_id",
        "locks",
        "may_goto",
        "parent",
        "preempt_off",
        "rcu_depth",
        "refs",
        "slot",
        "speculative",
        "steps",
        "trace",
        "written",
    )

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.refs: tuple[Ref, ...] = ()
        self.locks = 0
        """How many of `refs` are locks."""
        self.rcu_depth = 0
        self.preempt_off = 0
        self.irq_id = 0
        self.in_sleepable = False
        self.callback_unroll = 0
        self.may_goto = 0
        self.slot = 0
        self.parent: Any = None
        self.trace: Trace | None = None
        self.followed: Followed = {}
        self.history = 0
        """How many steps since the last checkpoint backtracking needs more than the slot of."""
        self.steps: Any = None
        """The branches taken since the start, newest first: (slot, text, older)."""
        self.speculative = False
        """Whether the processor would come here only before it knows better."""
        self.written: list[int] = []
        """Stack slots written in full since the last checkpoint: one mask of bits for each frame."""

    def copy(self) -> State:
        twin = State.__new__(State)
        twin.frames = [frame.copy() for frame in self.frames]
        twin.refs = self.refs
        twin.locks = self.locks
        twin.rcu_depth = self.rcu_depth
        twin.preempt_off = self.preempt_off
        twin.irq_id = self.irq_id
        twin.in_sleepable = self.in_sleepable
        twin.callback_unroll = self.callback_unroll
        twin.may_goto = self.may_goto
        twin.slot = self.slot
        twin.parent = self.parent
        twin.trace = self.trace
        twin.followed = self.followed
        twin.history = self.history
        twin.steps = self.steps
        twin.speculative = self.speculative
        twin.written = self.written[:]
        return twin

    @property
    def frame(self) -> Frame:
        return self.frames[-1]


def replace_pointers(state: State, is_meant: Callable[[Pointer], bool], change: Callable[[Pointer], Value]) -> None:
    """Replace every pointer, in registers and on the stack, for which `is_meant` holds."""
    for frame in state.frames:
        for reg in range(10):
            value = frame.regs[reg]
            if value.__class__ is Pointer and is_meant(value):
                frame.regs[reg] = change(value)
        for i, slot in list(frame.stack.items()):
            if slot.value.__class__ is Pointer and slot.kinds[0] == SPILL and is_meant(slot.value):
                frame.put(i, Slot(slot.kinds, change(slot.value)))
