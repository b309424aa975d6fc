"""The mirror's profile of the running kernel."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

from actplane.loader.features import Answer, Feature, Features
from actplane.verifier import KernelProfile, profile_of

LOCKDOWN = Path("/sys/kernel/security/lockdown")


def host_profile() -> KernelProfile:
    """
    Return the profile of the running kernel: its release, and what was found out by looking.

    Who may not load programs cannot find out all; then the release says it.
    Raises: ActplaneError if the kernel is older than any that the mirror knows.
    """
    release = platform.release()
    is_locked_down = LOCKDOWN.exists() and "[none]" not in LOCKDOWN.read_text()
    profile = replace(profile_of(release), name=release, is_lockdown=is_locked_down)
    writes = Features().probe(Feature.REGISTER_WRITES).answer
    return profile if writes is Answer.UNKNOWN else replace(profile, writes_registers=writes is Answer.YES)
