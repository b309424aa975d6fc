"""Names of places to distances: labels, subprograms and addresses of functions become slot offsets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from actplane.asm.insn import FunctionAddress, Insn, Label, Subprogram
from actplane.asm.isa import LD_IMM64, Kind, form_of
from actplane.errors import EncodeError


@dataclass(frozen=True, slots=True)
class LabelHere:
    """In a stream of instructions: the next one carries this label."""

    name: str


@dataclass(frozen=True, slots=True)
class FunctionHere:
    """In a stream of instructions: the next one starts this subprogram."""

    name: str


Item = Insn | LabelHere | FunctionHere


def resolve(stream: Iterable[Item]) -> tuple[list[Insn], dict[int, str]]:
    """
    Return the instructions with every label and function resolved to a slot offset.

    Shape:  the second result maps the index of the first instruction of every subprogram to its
            name, as `Program.functions` has it. Labels are local to the function they stand in.
    Raises: EncodeError if a name is defined twice or not at all, or lies too far away.

    >>> from actplane.asm.build import ja, exit_
    >>> resolve([ja("out"), exit_(), LabelHere("out"), exit_()])[0][0].off
    1
    """
    insns: list[Insn] = []
    functions: dict[int, str] = {}
    function_slots: dict[str, int] = {}
    labels: dict[tuple[str, str], int] = {}
    scopes: list[str] = []
    scope, slot = "", 0
    for item in stream:
        if isinstance(item, Insn):
            insns.append(item)
            scopes.append(scope)
            slot += item.slots
        elif isinstance(item, FunctionHere):
            if item.name in function_slots:
                raise EncodeError(f"function {item.name!r} is defined twice")
            scope, function_slots[item.name], functions[len(insns)] = item.name, slot, item.name
        else:
            if (scope, item.name) in labels:
                raise EncodeError(f"label {item.name!r} is defined twice" + (f" in {scope!r}" if scope else ""))
            labels[scope, item.name] = slot
    resolved: list[Insn] = []
    slot = 0
    for index, (insn, scope) in enumerate(zip(insns, scopes, strict=True)):
        if isinstance(insn.symbol, Label):
            place = labels.get((scope, insn.symbol.name))
            insn = with_distance(insn, _distance(index, insn, insn.symbol.name, place, slot), index)
        elif isinstance(insn.symbol, (Subprogram, FunctionAddress)):
            place = function_slots.get(insn.symbol.name)
            insn = with_distance(insn, _distance(index, insn, insn.symbol.name, place, slot), index)
        resolved.append(insn)
        slot += insn.slots
    return resolved, functions


def link_labels(stream: Iterable[Item]) -> list[Insn]:
    """Return the instructions of `resolve` alone."""
    return resolve(stream)[0]


def _distance(index: int, insn: Insn, name: str, place: int | None, slot: int) -> int:
    if place is None:
        what = "label" if isinstance(insn.symbol, Label) else "function"
        raise EncodeError(f"insn {index}: {what} {name!r} is not defined")
    # All three count from the slot after the first, also ld_imm64 with its two.
    return place - slot - 1


def with_distance(insn: Insn, slots: int, index: int = 0) -> Insn:
    """
    Return a jump, call or address of a function that goes `slots` further than its next slot.

    Raises: EncodeError if its field cannot hold the distance.
    """
    resolved = replace(insn, off=0, imm=slots, symbol=None) if is_far(insn) else replace(insn, off=slots, symbol=None)
    try:
        form_of(resolved)
    except EncodeError as problem:
        raise EncodeError(f"insn {index}: target is too far: {problem}") from None
    return resolved


def is_far(insn: Insn) -> bool:
    """Whether the distance of a jump, call or address of a function is in `imm`, not in `off`."""
    if insn.code == LD_IMM64:
        return True
    return form_of(replace(insn, off=0)).kind in (Kind.GOTOL, Kind.CALL_SUBPROGRAM)


def distance_of(insn: Insn) -> int:
    """Return by how many slots a resolved jump, call or address of a function goes on."""
    return insn.imm if is_far(insn) else insn.off


def offsets(insns: Iterable[Insn]) -> Mapping[int, int]:
    """Return the index of the instruction that starts at each slot."""
    starts: dict[int, int] = {}
    slot = 0
    for index, insn in enumerate(insns):
        starts[slot] = index
        slot += insn.slots
    return starts
