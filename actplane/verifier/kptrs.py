"""Kernel pointers in map values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actplane.verifier.refusals import refuse
from actplane.verifier.state import State
from actplane.verifier.values import Pointer, Value

if TYPE_CHECKING:
    from actplane.verifier.arguments import Call
    from actplane.verifier.engine import Engine


def access(
    v: Engine,
    state: State,
    slot: int,
    reg: int,
    base: Pointer,
    field: Any,
    off: int,
    size: int,
    *,
    is_write: bool,
    value: Value | None,
    is_atomic: bool,
) -> Value:
    refuse("unsupported", slot, "kptrs")


def check_exchange(v: Engine, state: State, call: Call, reg: int, value: Value) -> None:
    refuse("unsupported", call.slot, "kptrs")


def check_new_object(v: Engine, state: State, call: Call, reg: int, value: Value) -> None:
    refuse("unsupported", call.slot, "kptrs")


def finish_exchange(v: Engine, state: State, call: Call) -> None:
    refuse("unsupported", call.slot, "kptrs")
