"""
Where events go: one JSON object a line to the events file, the short form to standard error and to
the policy's feedback file.

A place that cannot be written to is said once and given up; it never ends the session, which the
kernel goes on policing in any case.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from actplane.errors import ActplaneError
from actplane.runtime.events import Event, EventReader
from actplane.runtime.feedback import Feedback
from actplane.runtime.privileges import User, acting_as


def say(line: str) -> None:
    """Print a line of ours on standard error; a closed standard error is no reason to fail."""
    # Without one, Python would print to standard output instead.
    if sys.stderr is None:
        return
    with suppress(OSError, ValueError):
        # Not print(), which writes the end of the line apart: a shell that says "Killed" could come between.
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class _Sink:
    """A file that lines are added to, each written at once and whole."""

    def __init__(self, path: Path, user: User | None, *, makes_folder: bool = False) -> None:
        self._path = path
        try:
            with acting_as(user):
                if makes_folder:
                    path.parent.mkdir(parents=True, exist_ok=True)
                self._file: TextIO | None = path.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ActplaneError(f"{path}: cannot be written: {error.strerror}") from error

    def write(self, text: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(text)
        except OSError as error:
            say(f"actplane: {self._path}: {os.strerror(error.errno or 0)}; nothing more is written to it")
            self.close()

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()


class Reporter:
    """
    Writes the events of one session.

    The files are opened as `user`, so that a link put in their place leads nowhere they may not write,
    and emptied first.
    """

    def __init__(self, events: Path | None, feedback: Path | None, user: User | None) -> None:
        self._stack = ExitStack()
        self._events = self._open(events, user) if events else None
        try:
            self._feedback_file = self._open(feedback, user, makes_folder=True) if feedback else None
        except BaseException:
            self._stack.close()
            raise
        self._feedback = Feedback()
        self._reader: EventReader | None = None

    def _open(self, path: Path, user: User | None, *, makes_folder: bool = False) -> _Sink:
        sink = _Sink(path, user, makes_folder=makes_folder)
        self._stack.callback(sink.close)
        return sink

    def start(self, reader: EventReader) -> None:
        """Say whose records will come."""
        self._reader = reader

    def report(self, record: bytes) -> None:
        """Report one record. Raises InternalError if it is not one of ours."""
        if self._reader is not None:
            self.report_events(self._reader.events(record))

    def report_events(self, events: Sequence[Event]) -> None:
        """Report the events of one record, the strongest first."""
        if self._events is not None:
            for event in events:
                self._events.write(json.dumps(event.as_json()) + "\n")
        lines = self._feedback.lines(events)
        if lines:
            say("\n".join(lines))
            if self._feedback_file is not None:
                self._feedback_file.write("\n".join(lines) + "\n")

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
