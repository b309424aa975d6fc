"""
Checkpoints: states kept at places where paths meet, and what later paths said about them.
"""

from __future__ import annotations

from functools import cache

from actplane.verifier.domains.scalar import Range
from actplane.verifier.paths.state import State
from actplane.verifier.paths.values import Scalar, Value

Place = tuple[int, bool, int]
"""Where a state holds a value: in which frame, whether on its stack, and in which slot or register."""


@cache
def place(frame: int, is_slot: bool, which: int) -> Place:
    """Return a place. Equal places are one object."""
    return frame, is_slot, which


class LoopVisit:
    """
    A loop as it is walked: the first checkpoint in it, and where a path was found covered by one whose
    own paths were not all walked then, so that what mattered must be carried there later. `depth` is
    the number of frames up to the loop's.
    """

    __slots__ = ("depth", "edges", "entry")

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.entry: Checkpoint | None = None
        self.edges: list[tuple[Checkpoint, State]] = []


class Checkpoint:
    """
    A state kept at `slot`, and what later paths said about it.

    `live` is, for each frame, the registers still needed; `read` the stack slots that were read
    later, `written` those fully written on the way here from `parent`; `trace` is that way.
    `branches` counts the paths from here that are not finished.
    """

    __slots__ = (
        "branches",
        "followed",
        "hits",
        "live",
        "loop",
        "misses",
        "number",
        "numbers",
        "parent",
        "precise_regs",
        "precise_slots",
        "read",
        "reads_unwritten",
        "slot",
        "state",
        "suspect",
        "trace",
        "unlike",
        "watched",
        "written",
    )

    def __init__(self, state: State, live: list[int], written: list[int]) -> None:
        self.state = state
        self.slot = state.slot
        self.live = live
        self.branches = 1
        self.parent: Checkpoint | None = state.parent
        self.trace = state.trace
        self.followed = state.followed
        self.written = written
        depth = len(state.frames)
        self.read = [0] * depth
        self.reads_unwritten = True
        """Whether the program may read stack that it never wrote."""
        self.precise_regs = [0] * depth
        self.precise_slots = [0] * depth
        self.numbers = [numbers_in(frame.regs) for frame in state.frames]
        """The registers of each frame that hold numbers, as bits."""
        self.hits = 0
        self.misses = 0
        self.number = 0
        """How many checkpoints were kept before this one, and one more."""
        self.loop: LoopVisit | None = None
        self.unlike = -1
        """The register in which the last state that came round a loop differed; -1: not known."""
        self.suspect: Place | None = None
        """Where the last state that was not covered differed."""
        self.watched: tuple[Place, Range] | None = None
        """The same place and the range of the number there, if no comparison passes it over."""


def numbers_in(regs: list[Value | None]) -> int:
    """Return which registers hold numbers, as bits."""
    numbers = 0
    for reg in range(10):
        if regs[reg].__class__ is Scalar:
            numbers |= 1 << reg
    return numbers


def is_at(checkpoint: Checkpoint, slot: int, state: State) -> bool:
    """Whether a checkpoint was kept at a slot, by way of the same calls that the state came by."""
    frames, others = checkpoint.state.frames, state.frames
    return (
        checkpoint.slot == slot
        and len(frames) == len(others)
        and all(one.call_slot == two.call_slot for one, two in zip(frames, others, strict=True))
    )


def mark_read(state: State, written: list[int], frame: int, index: int) -> bool:
    """
    Note that a stack slot was read, in every checkpoint back to where it was last written. True if any
    of them did not know.
    """
    return mark_all_read(state, written, frame, 1 << index)


def mark_all_read(state: State, written: list[int], frame: int, slots: int) -> bool:
    """Do what `mark_read` does for several stack slots of a frame, given as bits."""
    slots &= ~written[frame]
    is_news = False
    checkpoint = state.parent
    while slots and checkpoint is not None and frame < len(checkpoint.read):
        slots &= ~checkpoint.read[frame]
        if slots:
            is_news = True
            checkpoint.read[frame] |= slots
            slots &= ~checkpoint.written[frame]
        checkpoint = checkpoint.parent
    return is_news
