"""Global functions: verified alone, called by their declared arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actplane.verifier.state import State

if TYPE_CHECKING:
    from actplane.verifier.engine import Engine


def prepare(v: Engine) -> None:
    pass


def check_call(v: Engine, state: State, slot: int, function: Any) -> None:
    pass


def walk_called(v: Engine) -> None:
    pass
