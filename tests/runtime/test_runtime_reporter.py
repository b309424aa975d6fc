"""What the supervisor says on standard error."""

from __future__ import annotations

import io
import sys

import pytest

from actplane.runtime.reporter import say


class _Writes(io.RawIOBase):
    """A file that keeps each write(2) apart."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.seen.append(bytes(data))  # type: ignore[call-overload]
        return len(self.seen[-1])


def test_what_is_said_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    # A shell of the session writes to the same terminal: its "Killed" must not come between our lines.
    raw = _Writes()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True))
    say("actplane: killed exec `git push`\nactplane:   instead: stop")
    assert raw.seen == [b"actplane: killed exec `git push`\nactplane:   instead: stop\n"]


@pytest.mark.parametrize("is_closed", [True, False])
def test_without_a_standard_error_nothing_is_said(monkeypatch: pytest.MonkeyPatch, is_closed: bool) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed if is_closed else None)
    say("nobody hears it")
