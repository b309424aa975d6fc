"""Calls of kernel functions by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actplane.asm.insn import Insn
from actplane.verifier.refusals import refuse
from actplane.verifier.state import State

if TYPE_CHECKING:
    from actplane.verifier.engine import Engine, Handler


def prepare(v: Engine) -> None:
    """Note which calls run callbacks or advance iterators."""


def compile_kfunc_call(v: Engine, slot: int, insn: Insn) -> Handler:
    def call(state: State) -> int:
        refuse("unsupported", slot, "kernel functions are not modelled yet")

    return call
