"""What the exit statuses of actplane mean. This is the one place that says so."""

from __future__ import annotations

from enum import IntEnum

from actplane.errors import ActplaneError, KernelError, PolicyError, UnsupportedFeature, VerifyError


class Exit(IntEnum):
    """
    Exit statuses of actplane's own. `actplane run` otherwise ends as the command did, by the same signal if
    one ended it. Below 128, above what programs use for themselves, and 125 to 127 as in env(1).
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_PRIVILEGED = 110
    NO_BTF = 111
    KERNEL_TOO_OLD = 112
    TIER_NOT_OFFERED = 113
    NOT_ENFORCEABLE = 114
    LOAD_REFUSED = 115
    MIRROR_REFUSED = 116
    NO_CGROUP = 117
    POLICY = 118
    FAILURE = 125
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127


MEANINGS = {
    Exit.OK: "all is well",
    Exit.FAILED: "check or doctor found something wrong",
    Exit.USAGE: "the arguments make no sense",
    Exit.NOT_PRIVILEGED: "not enough privileges to load programs",
    Exit.NO_BTF: "the kernel does not describe its own types (no BTF)",
    Exit.KERNEL_TOO_OLD: "the kernel is too old: it lacks something every session needs",
    Exit.TIER_NOT_OFFERED: "the kernel does not offer the tier that was asked for, or any",
    Exit.NOT_ENFORCEABLE: "a clause cannot be enforced as written on this tier",
    Exit.LOAD_REFUSED: "the kernel refused something: a map, a program, an attachment",
    Exit.MIRROR_REFUSED: "the mirror refused a program before the kernel saw it",
    Exit.NO_CGROUP: "there is no place for the session's cgroup",
    Exit.POLICY: "the policy has errors, or there is none",
    Exit.FAILURE: "anything else: a file that cannot be read, something wrong in actplane itself",
    Exit.NOT_EXECUTABLE: "the command was found and cannot be executed",
    Exit.NOT_FOUND: "the command was not found",
}


def table() -> str:
    """Return the statuses as lines for a help text."""
    lines = [f"  {status.value:>3}  {meaning}" for status, meaning in MEANINGS.items()]
    return "exit status:\n" + "\n".join(lines) + "\n  else the command's own"


def exit_of(error: ActplaneError) -> Exit:
    """Return the exit status that says what kind of error this is."""
    from actplane.runtime.cgroup import NoCgroup
    from actplane.runtime.launch import CommandError
    from actplane.runtime.privileges import NotPrivileged
    from actplane.runtime.session import NoBtf
    from actplane.runtime.tiers import NotEnforceable, TierNotOffered

    if isinstance(error, CommandError):
        return Exit.NOT_FOUND if error.is_not_found else Exit.NOT_EXECUTABLE
    # From the special to the general: the first that fits.
    kinds: tuple[tuple[type[ActplaneError], Exit], ...] = (
        (NotPrivileged, Exit.NOT_PRIVILEGED),
        (NoBtf, Exit.NO_BTF),
        (TierNotOffered, Exit.TIER_NOT_OFFERED),
        (NotEnforceable, Exit.NOT_ENFORCEABLE),
        (PolicyError, Exit.POLICY),
        (NoCgroup, Exit.NO_CGROUP),
        (VerifyError, Exit.MIRROR_REFUSED),
        (UnsupportedFeature, Exit.KERNEL_TOO_OLD),
        (KernelError, Exit.LOAD_REFUSED),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), Exit.FAILURE)
