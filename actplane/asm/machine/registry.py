"""
How helpers and kfuncs are written for the machine, and the table they register in.

A helper is a Python function `helper(machine, a, b, ...) -> int` of up to five unsigned 64-bit
arguments; its result is taken modulo 2**64, so a negative errno is returned as it is. One that calls
back into the program is a generator: it yields `Callback`s, is sent the r0 of each, and returns its
own result. So a callback can be stepped through like any other code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from actplane.asm.uapi import HelperId

U32 = 0xFFFFFFFF
U64 = 0xFFFFFFFFFFFFFFFF

HelperFunction = Callable[..., Any]
AnyHelper = TypeVar("AnyHelper", bound=HelperFunction)


@dataclass(frozen=True, slots=True)
class Callback:
    """A call of the program by a helper: the address of one of its functions, and r1 to r5."""

    function: int
    arguments: tuple[int, ...]


CallbackHelper = Generator[Callback, int, int]
"""What a helper returns that calls back."""


@dataclass(frozen=True, slots=True)
class Helper:
    """A registered helper: its function, how many registers it takes, whether it calls back."""

    function: HelperFunction
    arguments: int
    calls_back: bool

    @classmethod
    def of(cls, function: HelperFunction) -> Helper:
        """Read a helper's shape off its signature; the first parameter is the machine."""
        parameters = inspect.signature(function).parameters
        if not 1 <= len(parameters) <= 6:
            raise ValueError(f"helper {function.__name__}: got {len(parameters)} parameters, expected 1 to 6")
        return cls(function, len(parameters) - 1, inspect.isgeneratorfunction(function))


HELPERS: dict[int, Helper] = {}
"""The helpers every machine starts with."""
KFUNCS: dict[str, Helper] = {}
"""The kfuncs every machine starts with."""


def helper(*numbers: HelperId) -> Callable[[AnyHelper], AnyHelper]:
    """Register a function under the numbers of helpers that do the same."""

    def register(function: AnyHelper) -> AnyHelper:
        for number in numbers:
            HELPERS[int(number)] = Helper.of(function)
        return function

    return register


def kfunc(function: AnyHelper) -> AnyHelper:
    """Register a function under its own name as a kfunc."""
    KFUNCS[function.__name__] = Helper.of(function)
    return function
