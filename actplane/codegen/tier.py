"""
What a kernel lets us do, from best to least, and what each tier cannot do as a policy wrote it.

Which tier a kernel really offers is the runtime's to find out, by loading; this module only knows
what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from actplane.ir.policy import Clause


class Tier(Enum):
    """
    LSM       BPF-LSM: every operation is denied before it happens; labels live on files and sockets.
    FMOD_RET  the same hooks through fmod_ret; no storage on files, so labels do not travel in files.
    TRACE     exec is seen when it has committed, before the program's first instruction;
              cgroup programs deny connect and sendto before they happen.
    """

    LSM = "lsm"
    FMOD_RET = "fmod_ret"
    TRACE = "trace"


@dataclass(frozen=True, slots=True)
class Weakening:
    """A clause that a tier cannot enforce as written, and what would be in force in its place."""

    clause: Clause
    problem: str
    in_force: str
    """The weaker form, or an empty string if nothing would be in force."""
