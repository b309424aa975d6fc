"""
One verification: what is verified and how, and what every module of instructions shares while it
runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from actplane.asm.program import Program
from actplane.asm.uapi import ProgType
from actplane.verifier.domains.maps import MapFacts
from actplane.verifier.domains.types import OwnTypes, TypeProvider
from actplane.verifier.paths import precision
from actplane.verifier.paths.flow import Code
from actplane.verifier.paths.state import Frame, State
from actplane.verifier.tables.profiles import KEEPS_IDS, KernelProfile
from actplane.verifier.tables.refusals import refuse

Handler = Callable[[State], int]
"""Takes a state before an instruction, changes it, returns the next slot, or -1 where a path ends."""

END: Final = -1

MAX_PENDING: Final = 8192

GPL_COMPATIBLE: Final = frozenset(
    {"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"}
)


def refusal(id_: str, claim: str) -> Handler:
    """Return the handler of an instruction that is refused wherever a path reaches it."""

    def handler(state: State) -> int:
        refuse(id_, state.slot, claim)

    return handler


@dataclass(frozen=True, slots=True)
class Options:
    """How a program is verified, beside what it is."""

    is_privileged: bool = True
    is_strict: bool = False
    keeps_all_states: bool = False
    max_insns: int = 1_000_000
    """The kernel's limit of instructions processed on all paths."""
    budget_insns: int | None = None
    budget_seconds: float | None = None
    """When to give up without a verdict, whatever the kernel would do: instructions, or seconds of real time."""
    wants_log: bool = False


@dataclass(slots=True)
class Subject:
    """What is verified: the program with the maps and types that it refers to, resolved."""

    program: Program
    maps: dict[str, MapFacts]
    types: TypeProvider | None
    own: OwnTypes | None
    attach: Any = None
    """What the program is attached to: see `attach`."""
    notes: dict[str, Any] = field(default_factory=dict[str, Any])


class Verification:
    """
    What the modules of instructions ask and tell: the subject, the kernel, ids that are new, branches
    to walk later. How the paths are walked is `engine`'s.
    """

    def __init__(self, subject: Subject, code: Code, profile: KernelProfile, options: Options) -> None:
        self.subject = subject
        self.program = subject.program
        self.code = code
        self.profile = profile
        self.options = options
        self.prog_type: ProgType = subject.program.prog_type
        self.is_sleepable = subject.program.is_sleepable
        self.is_privileged = options.is_privileged
        self.is_gpl = subject.program.license in GPL_COMPATIBLE
        self.tracks_precision = options.is_privileged
        # Since 6.3, and in the later stable releases of 5.10 and 6.1; but before 6.8 not below what was written.
        self.allows_uninitialized_stack = options.is_privileged
        self.grows_stack_on_reads = options.is_privileged and profile.at_least(6, 8)
        # Before 6.9 what is spilled is kept only if something is known of it, unlinked if it is narrow, and whole.
        self.follows_spills = profile.at_least(6, 9)
        self.keeps_ids = profile.has(KEEPS_IDS)
        self.log: list[str] = []
        self.stack_bytes: dict[int, int] = {}
        self.globals_called: list[int] = []
        """First slots of global functions and asynchronous callbacks that still need a walk of their own."""
        self.pointer_kinds: dict[int, Any] = {}
        """What kind of pointer each load or store was used with."""
        self.pending: list[State] = []
        """Branches that wait to be walked, the next one last."""
        self.masks: dict[int, Any] = {}
        """How numbers are masked for speculation, by slot: see `speculation`."""
        self.masks_ranges = False
        """Whether one of them is not a constant, so that no other state may stand for one with another range."""
        self.barriers: set[int] = set()
        """Slots that speculation does not reach, and those that it does not go on from."""
        self.barriers_behind: set[int] = set()
        self._ids = 0

    def new_id(self) -> int:
        self._ids += 1
        return self._ids

    def mark_precise(self, state: State, *regs: int) -> None:
        """Note that the numbers in some registers of the current frame matter."""
        if self.tracks_precision:
            precision.mark(self.code, state, *regs)

    def mark_precise_stack(self, state: State, frame: int, index: int) -> None:
        """Note that the number spilled in one stack slot matters."""
        if self.tracks_precision:
            precision.mark_stack(self.code, state, frame, index)

    def note_history(self, state: State, slot: int) -> None:
        """Note that backtracking needs more than the slot of this step. Long histories force a checkpoint."""
        if slot not in self.code.jump_points:
            state.history += 1

    def in_sleepable(self, state: State) -> bool:
        return self.is_sleepable or state.in_sleepable

    def in_rcu(self, state: State) -> bool:
        """Whether pointers under RCU stay valid here."""
        return bool(state.rcu_depth or state.locks or not self.in_sleepable(state))

    def push(self, state: State, slot: int, text: str, at: int) -> State:
        """Keep a copy of the state to go on from another slot later. Returns the copy."""
        other = state.copy()
        other.slot = slot
        other.steps = (at, text, other.steps)
        self.pending.append(other)
        if other.parent is not None:
            other.parent.branches += 1
        if len(self.pending) > MAX_PENDING:
            refuse("too-complex", at, f"more than {MAX_PENDING} branches are waiting to be walked")
        return other

    def note_stack(self, frame: Frame, depth: int) -> None:
        """Note how deep a function's stack is used, in bytes."""
        start = self.code.starts[frame.subprogram]
        if depth > self.stack_bytes.get(start, 0):
            self.stack_bytes[start] = depth
