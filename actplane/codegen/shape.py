"""
Functions as they differ: without the identity of their values.

The programs of a policy share most of their functions, but each hook builds its own. Functions of
the same shape have the same instructions, so one of them is enough to select.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter

from actplane.ir import bytecode as bc

_TYPES: tuple[type[bc.Operation | bc.Terminator], ...] = (
    *(bc.Move, bc.Binary, bc.ToBigEndian, bc.Load, bc.Store, bc.Atomic, bc.AddFieldOffset, bc.EnumConstant),
    *(bc.MapAddress, bc.MapValueAddress, bc.FrameAddress, bc.FunctionReference, bc.CallHelper, bc.CallFunction),
    *(bc.Jump, bc.Branch, bc.Return),
)

_CONTENTS: dict[type, Callable[[object], object]] = {
    each: attrgetter(*(field.name for field in fields(each))) for each in _TYPES
}


class Shaped:
    """A function that equals every other one that differs only in which values it uses for the same."""

    __slots__ = ("_key", "function")

    def __init__(self, function: bc.Function) -> None:
        self.function = function
        self._key = _shape(function)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shaped) and self._key == other._key


def _shape(function: bc.Function) -> tuple[object, ...]:
    numbers: dict[bc.Value, tuple[int]] = {}
    slots = {id(slot): (slot.size_bytes, number) for number, slot in enumerate(function.frame)}

    def shaped(part: object) -> object:
        if isinstance(part, bc.Value):
            # A tuple of one, so that no value is taken for a constant.
            return numbers.setdefault(part, (len(numbers),))
        if isinstance(part, bc.FrameSlot):
            return slots.get(id(part), id(part))
        if isinstance(part, tuple):
            return tuple([shaped(each) for each in part])
        return part

    return (
        function.name,
        shaped(function.parameters),
        tuple(slots.values()),
        *(
            (
                block.name,
                *((type(each), shaped(_CONTENTS[type(each)](each))) for each in block.operations),
                (type(block.terminator), shaped(_CONTENTS[type(block.terminator)](block.terminator))),
            )
            for block in function.blocks
        ),
    )
