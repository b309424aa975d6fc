"""
Kernels that differ: what a version knows, as data. A profile is picked by name or made for the
running kernel; rules elsewhere ask it, never the host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from actplane.errors import ActplaneError
from actplane.verifier.tables import access_tables


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the kernel's that went into older versions too: where it began, and from which stable releases on."""

    since: tuple[int, int]
    backports: Mapping[tuple[int, int], int]


# Source: the announcements of Linux 6.18.16, 6.18.17, 6.18.33, 6.19.6 and 6.19.7; what 6.12.95 accepts.
FORKS_ON_SIGN: Final = Change((7, 0), {(6, 12): 95, (6, 18): 16, (6, 19): 6})
"""A mask of a spread sign is walked for both signs."""
TRACKS_SWAPS: Final = Change((7, 0), {(6, 18): 17, (6, 19): 7})
"""What is known of a number's bits stays known when its bytes are swapped."""
FINDS_SINGLES: Final = Change((7, 0), {(6, 18): 17, (6, 19): 7})
"""A number of which the bounds and the known bits leave one value has that value."""
LINKS_DIFFERENCES: Final = Change((7, 0), {(6, 18): 33})
"""Numbers stay linked when a negative constant is added, one is subtracted, or their low halves move."""
# Source: what releases said of programs: Debian's 6.1.0-55, 6.12.95, 6.18.15 and this project's 6.18.44.
COMPARES_SIGNS: Final = Change((6, 17), {(6, 12): 0})
"""Unsigned bounds narrow signed ones that lie on both sides of 0, and the other way round."""
RETURNS_AT_LOADS: Final = Change((6, 18), {(6, 1): 0})
"""A function returns where LD_ABS and LD_IND find the packet too short."""
KEEPS_IDS: Final = Change((7, 0), {(6, 18): 15, (6, 19): 5})
"""A number that was refined by way of another, which lies at a known distance, can still be copied."""


@dataclass(frozen=True, slots=True)
class KernelProfile:
    """
    One kernel's version and limits.

    Units:  max_insns is instructions processed on all paths; max_program_slots the size of a program
            of a privileged user.
    `patch` is the stable release of the version: see `Change`.
    """

    name: str
    version: tuple[int, int]
    patch: int = 0
    max_insns: int = 1_000_000
    max_program_slots: int = 1_000_000
    max_cpus: int = 8192
    is_lockdown: bool = False
    """Lockdown in integrity mode forbids bpf_probe_write_user."""
    writes_registers: bool = True
    """Whether uprobe programs may write registers: stock kernels since 6.18 let them, some builds do not."""

    def at_least(self, major: int, minor: int) -> bool:
        return self.version >= (major, minor)

    @property
    def max_frames(self) -> int:
        """How many functions may be on the stack at once. Source: 7.2.13 says it of the 17th."""
        return 16 if self.at_least(7, 2) else 8

    def has(self, change: Change) -> bool:
        """Whether a change is in this kernel, from its version or by way of a stable release."""
        backported = change.backports.get(self.version)
        return self.version >= change.since or (backported is not None and self.patch >= backported)

    def common_helpers(self) -> frozenset[int]:
        """Return the helpers that every kind of program may call."""
        return access_tables.common_helpers(self.version)

    def helpers(self, prog_type: str, attach_type: str) -> frozenset[int] | None:
        """Return the helpers that a kind of program may call, None if this kernel lacks the kind."""
        found = access_tables.allowed_helpers(prog_type, attach_type, self.version)
        return found - {36} if found is not None and self.is_lockdown else found


PROFILES: Final = {
    "5.10": KernelProfile("5.10", (5, 10)),
    "6.1": KernelProfile("6.1", (6, 1)),
    "6.12": KernelProfile("6.12", (6, 12), 107),
    "6.18": KernelProfile("6.18", (6, 18), 44),
    "7.2": KernelProfile("7.2", (7, 2)),
}

DEFAULT: Final = PROFILES["6.18"]


def profile_of(release: str) -> KernelProfile:
    """
    Return the profile of a kernel by its name or release string; a version between two listed ones
    is treated as itself, with the helpers of the older one. A listed name is its newest stable release
    that was measured.

    Raises: ActplaneError if the string has no version in it, or one older than 5.10.

    >>> profile = profile_of("6.12.95+deb12-cloud-amd64")
    >>> profile.version, profile.patch
    ((6, 12), 95)
    """
    known = PROFILES.get(release)
    if known is not None:
        return known
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if match is None:
        raise ActplaneError(f"kernel {release!r}: got no version, expected one of {', '.join(PROFILES)}")
    version = int(match[1]), int(match[2])
    if version < (5, 10):
        raise ActplaneError(f"kernel {release!r}: too old, expected 5.10 or newer")
    return KernelProfile(match[0], version, int(match[3] or 0))
