"""Who started the session, and what this process may do."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actplane.errors import ActplaneError, InternalError

NEEDED_CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN", 38: "CAP_PERFMON", 39: "CAP_BPF"}
"""Loading needs BPF and PERFMON, BTF ids and cgroup directories SYS_ADMIN, cgroup programs NET_ADMIN."""


class NotPrivileged(ActplaneError):
    """This process may not load programs."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(
            f"not enough privileges: got effective user id {os.geteuid()} without {', '.join(missing)}, "
            "expected root\n    hint: run it through sudo; the command itself will run as you, not as root"
        )
        self.missing = missing


def missing_capabilities() -> list[str]:
    """Return the names of the capabilities that loading needs and this process lacks."""
    effective = 0
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    return [name for bit, name in NEEDED_CAPABILITIES.items() if not effective >> bit & 1]


def require_privileges() -> None:
    """Raise NotPrivileged if this process may not load programs."""
    missing = missing_capabilities()
    if missing:
        raise NotPrivileged(missing)


@dataclass(frozen=True, slots=True)
class User:
    """Whom the command runs as. `name` and `home` are empty if the user database does not know the id."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str = ""
    home: str = ""


def invoking_user(environment: Mapping[str, str]) -> User | None:
    """
    Return who called sudo, or None if nobody did.

    Raises: ActplaneError if the variables that sudo sets are there and are no numbers: running the
            command as root after all would be the wrong guess.
    """
    if os.geteuid() != 0 or "SUDO_UID" not in environment:
        return None
    try:
        uid, gid = int(environment["SUDO_UID"]), int(environment["SUDO_GID"])
    except (KeyError, ValueError):
        raise ActplaneError(
            f"SUDO_UID, SUDO_GID: got {environment['SUDO_UID']!r}, {environment.get('SUDO_GID')!r}, "
            "expected the numbers that sudo sets\n    hint: --run-as-root keeps the command as root"
        ) from None
    if uid == 0:
        return None
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return User(uid, gid, (gid,))
    return User(uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)), entry.pw_name, entry.pw_dir)


def home_variables(user: User, environment: Mapping[str, str]) -> dict[str, str]:
    """
    Return the variables that sudo turned to root's and that must name the user again.

    A git that runs as the user with HOME=/root fails on a configuration it may not read. What does
    not say root's name or home was chosen by somebody and is left alone.
    """
    root = pwd.getpwuid(0)
    wanted = {"HOME": (root.pw_dir, user.home), "USER": (root.pw_name, user.name), "LOGNAME": (root.pw_name, user.name)}
    return {name: new for name, (old, new) in wanted.items() if new and environment.get(name) == old}


def become(user: User) -> None:
    """
    Give up root for good: real, effective and saved ids, and root's supplementary groups.

    Raises: OSError, InternalError if root could still be had back.
    """
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid,) * 3:
        raise InternalError("privileges were not dropped", uids=os.getresuid(), gids=os.getresgid())


@contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """
    Touch files as the user: what root would open for them could be a link to somewhere they may not write.

    Only for a process with a single thread.
    """
    if user is None:
        yield
        return
    groups, gid, uid = os.getgroups(), os.getegid(), os.geteuid()
    os.setgroups(user.groups)
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


def describe(user: User) -> str:
    """Return a user as a person would name them: `alice (uid 1000, group staff)`."""
    try:
        group = grp.getgrgid(user.gid).gr_name
    except KeyError:
        group = str(user.gid)
    return f"{user.name or 'unknown'} (uid {user.uid}, group {group})"
