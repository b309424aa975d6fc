"""
What happened, as data: one event for every clause that matched, ready to be written as JSON.

File names, arguments and addresses come from the processes that are judged. They are bytes, may be anything, and are
treated as such: in JSON, what is not UTF-8 is written with `\\xNN` and repeated in full as hexadecimal.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from actplane.codegen import layout
from actplane.codegen.layout import Record
from actplane.codegen.tier import Tier
from actplane.errors import InternalError
from actplane.ir.endpoint import readable
from actplane.ir.policy import Clause, Policy

_ACTIONS = {
    layout.ACTION_NOTIFIED: "notified",
    layout.ACTION_BLOCKED: "blocked",
    layout.ACTION_KILLED: "killed",
}

_CAUSES = {
    layout.CAUSE_NO_PATH: "the path is longer than can be judged, or the mount is attached nowhere, so it was refused",
    layout.CAUSE_ARGUMENTS_UNREADABLE: "the arguments could not be read, so the exec was refused",
    layout.CAUSE_NO_MEMORY: "the kernel had no memory left to judge this, so it was refused",
    layout.CAUSE_NAMES_PLACES: "a mount gives files other names than those that the policy knows them by",
    layout.CAUSE_OUTSIDE: "the process is not in the session, and what it would be made to do would not be judged",
    layout.CAUSE_TYPES: "whoever reads what is typed into this terminal may not be in the session",
}
"""Why an event was stopped although no clause matched: what cannot be judged does not happen."""

_OPERATIONS = {
    layout.EVENT_EXEC: "exec",
    layout.EVENT_EXEC_COMMITTED: "exec",
    layout.EVENT_CONNECT: "connect",
    layout.EVENT_RECV: "recv",
    layout.EVENT_FORK: "fork",
    layout.EVENT_MOUNT: "mount",
    layout.EVENT_PTRACE: "ptrace",
    layout.EVENT_IOCTL: "ioctl",
}

_ADDRESSED = (layout.EVENT_CONNECT, layout.EVENT_RECV)
"""Events whose target is the text of a socket address."""

_ACCESS = (
    (layout.ACCESS_UNLINK, "unlink"),
    (layout.ACCESS_WRITE, "write"),
    (layout.ACCESS_READ, "read"),
)


@dataclass(frozen=True, slots=True)
class Event:
    """
    One clause that matched, and what was done about the event.

    `effect` is the clause's own; `action` is what happened, which is the strongest of all clauses that
    matched the same event. `rule`, `effect`, `clause` and `where` are None if the event was stopped
    because it could not be judged; `reason` then says why.

    Units:  `time_ns` is CLOCK_MONOTONIC, as the kernel stamped it; `wall_ns` the same instant in
            nanoseconds since 1970 by the clock of when the record was read.
    """

    session: str
    tier: Tier
    time_ns: int
    wall_ns: int
    rule: str | None
    effect: str | None
    action: str
    op: str
    target: bytes
    pid: int
    tid: int
    ppid: int
    uid: int
    exe: bytes
    argv: tuple[bytes, ...]
    argv_is_cut: bool
    labels: tuple[str, ...]
    reason: str
    instead: str
    clause: str | None = None
    where: str | None = None
    groups_with: int = field(default=0, compare=False)
    """Events of one record carry the same number."""

    def as_json(self) -> dict[str, Any]:
        """Return the event as plain data; keys are documented in docs/events.md and only ever added to."""
        value: dict[str, Any] = {
            "time": wall_time(self.wall_ns),
            "time_ns": self.time_ns,
            "session": self.session,
            "tier": self.tier.value,
            "rule": self.rule,
            "effect": self.effect,
            "action": self.action,
            "op": self.op,
            "target": text(self.target),
            "pid": self.pid,
            "tid": self.tid,
            "ppid": self.ppid,
            "uid": self.uid,
            "exe": text(self.exe),
            "argv": [text(argument) for argument in self.argv],
            "argv_is_cut": self.argv_is_cut,
            "labels": list(self.labels),
            "reason": self.reason,
            "instead": self.instead,
            "clause": self.clause,
            "where": self.where,
        }
        hexadecimal = {
            "target": None if is_text(self.target) else self.target.hex(),
            "exe": None if is_text(self.exe) else self.exe.hex(),
            "argv": None if all(map(is_text, self.argv)) else [argument.hex() for argument in self.argv],
        }
        raw = {name: value for name, value in hexadecimal.items() if value is not None}
        if raw:
            value["hex"] = raw
        return value


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def text(data: bytes) -> str:
    r"""
    Return bytes as text; bytes that are not UTF-8 become `\xNN`.

    >>> text(b"caf\xc3\xa9 \xff")
    'café \\xff'
    """
    return data.decode(errors="backslashreplace")


def wall_time(ns: int) -> str:
    """
    Return an instant as ISO 8601 in UTC with microseconds.

    >>> wall_time(1_700_000_000_123_456_789)
    '2023-11-14T22:13:20.123456Z'
    """
    seconds, rest = divmod(ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class EventReader:
    """Turns the records of one session into events."""

    def __init__(self, policy: Policy, tier: Tier, session: str) -> None:
        self._policy = policy
        self._tier = tier
        self._session = session
        self._count = 0

    def events(self, data: bytes) -> list[Event]:
        """
        Return the events of a record: one for each clause that matched, the strongest effect first.

        Raises: InternalError if the record is not one of ours.
        """
        try:
            record = layout.unpack_record(data)
            clauses = [self._policy.clauses[index] for index in record.clauses]
            labels = tuple(self._policy.labels[label] for label in sorted(record.labels))
            action = _ACTIONS[record.action]
        except (ValueError, IndexError, KeyError) as error:
            raise InternalError("a record of the kernel cannot be read", why=error, record=data[:64]) from error
        self._count += 1
        wall_ns = record.time_ns + time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        clauses.sort(key=lambda clause: -clause.effect.rank)
        judged: list[Clause | None] = [*clauses] or [None]
        return [self._event(record, clause, action, labels, wall_ns) for clause in judged]

    def _event(
        self, record: Record, clause: Clause | None, action: str, labels: tuple[str, ...], wall_ns: int
    ) -> Event:
        rule = self._policy.rules[clause.rule] if clause else None
        # A clause that could not be judged because of the event's own trouble says so beside its reason.
        trouble = _CAUSES.get(record.cause, "")
        reason = "; ".join(filter(None, (rule.because if rule else "", trouble)))
        return Event(
            session=self._session,
            tier=self._tier,
            time_ns=record.time_ns,
            wall_ns=wall_ns,
            rule=rule.name if rule else None,
            effect=clause.effect.value if clause else None,
            action=action,
            op=clause.operation.value if clause else operation_of(record),
            target=readable(record.target) if record.event in _ADDRESSED else record.target,
            pid=record.pid,
            tid=record.tid,
            ppid=record.ppid,
            uid=record.uid,
            exe=record.exe,
            argv=record.argv,
            argv_is_cut=record.argv_is_cut,
            labels=labels,
            reason=reason,
            instead=rule.instead if rule else "",
            clause=clause.text if clause else None,
            where=str(clause.span) if clause else None,
            groups_with=self._count,
        )


def operation_of(record: Record) -> str:
    """Return what a record is about, in the words of the policy language."""
    if record.event in _OPERATIONS:
        return _OPERATIONS[record.event]
    return next((name for bit, name in _ACCESS if record.access & bit), "open")


def rule_names(events: Sequence[Event]) -> str:
    """Return the rules of several events, each once, in their order."""
    return ", ".join(dict.fromkeys(event.rule for event in events if event.rule is not None))
