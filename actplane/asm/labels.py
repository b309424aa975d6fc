"""Names of places to distances: labels, subprograms and addresses of functions become slot offsets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from actplane.asm.insn import FunctionAddress, Insn, Label, Subprogram
from actplane.asm.isa import BY_CODE, Kind, find_form, why_invalid
from actplane.errors import EncodeError
from actplane.source import Span


@dataclass(frozen=True, slots=True)
class LabelHere:
    """In a stream of instructions: the next one carries this label."""

    name: str
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FunctionHere:
    """In a stream of instructions: the next one starts this subprogram."""

    name: str
    span: Span | None = field(default=None, compare=False)


Item = Insn | LabelHere | FunctionHere


@dataclass(frozen=True, slots=True)
class Problem:
    """What keeps a stream from being resolved, and the item it is about."""

    item: Item
    index: int | None
    message: str


def resolve(stream: Iterable[Item]) -> tuple[list[Insn], dict[int, str]]:
    """
    Return the instructions with every label and function resolved to a slot offset.

    Shape:  the second result maps the index of the first instruction of every subprogram to its
            name, as `Program.functions` has it. Labels are local to the function they stand in;
            a label that is called starts a function too.
    Raises: EncodeError, with all problems, if a name is defined twice or not at all, or lies too far.

    >>> from actplane.asm.build import ja, exit_
    >>> resolve([ja("out"), exit_(), LabelHere("out"), exit_()])[0][0].off
    1
    """
    insns, functions, problems = try_resolve(stream)
    if problems:
        raise EncodeError("\n".join(p.message if p.index is None else f"insn {p.index}: {p.message}" for p in problems))
    return insns, functions


def try_resolve(stream: Iterable[Item]) -> tuple[list[Insn], dict[int, str], list[Problem]]:
    """Return what `resolve` returns, and the problems instead of raising the first of them."""
    items = list(stream)
    places = _Places(items)
    insns: list[Insn] = []
    slot, scope = 0, ""
    for item in items:
        if isinstance(item, Insn):
            insns.append(item if item.symbol is None else places.resolve(item, len(insns), slot, scope))
            slot += item.slots
        elif isinstance(item, FunctionHere):
            scope = item.name
    return insns, places.functions, places.problems


def label_slots(stream: Iterable[Item]) -> dict[tuple[str, str], int]:
    """Return the slot of every label by the function that it stands in ("" for the first) and its name."""
    return _Places(list(stream)).label_slots


# Whose distance is in `off`, and whose in `imm`; every call has the code of a helper's.
_NEAR = (Kind.JA, Kind.JUMP, Kind.MAY_GOTO)
_FAR = (Kind.GOTOL, Kind.CALL_HELPER, Kind.LD_IMM64)


def _leads_somewhere(insn: Insn) -> bool:
    forms = BY_CODE.get(insn.code, ())
    return bool(forms) and forms[0].kind in (*_NEAR, *_FAR)


class _Places:
    """Where every name of a stream stands."""

    def __init__(self, items: list[Item]) -> None:
        self.functions: dict[int, str] = {}
        self.problems: list[Problem] = []
        self._function_slots: dict[str, int] = {}
        self.label_slots: dict[tuple[str, str], int] = {}
        called = {
            item.symbol.name
            for item in items
            if isinstance(item, Insn) and item.symbol and isinstance(item.symbol, (Subprogram, FunctionAddress))
        }
        declared = {item.name for item in items if isinstance(item, FunctionHere)}
        slot, index, scope = 0, 0, ""
        empty: FunctionHere | None = None
        for item in items:
            if isinstance(item, Insn):
                slot, index, empty = slot + item.slots, index + 1, None
                continue
            if isinstance(item, FunctionHere) or (item.name in called and item.name not in declared):
                self._define_function(item, index, slot)
            if isinstance(item, FunctionHere):
                self._refuse_empty(empty)
                scope, empty = item.name, item
            else:
                self._define_label(item, scope, slot)
        self._refuse_empty(empty)
        self._end = slot

    def _refuse_empty(self, item: FunctionHere | None) -> None:
        if item is not None:
            self.problems.append(Problem(item, None, f"function {item.name!r} has no instruction"))

    def _define_function(self, item: LabelHere | FunctionHere, index: int, slot: int) -> None:
        if item.name in self._function_slots:
            self.problems.append(Problem(item, None, f"function {item.name!r} is defined twice"))
        self._function_slots[item.name] = slot
        self.functions[index] = item.name

    def _define_label(self, item: LabelHere, scope: str, slot: int) -> None:
        is_known = bool(self.problems) and self.problems[-1].item is item
        if (scope, item.name) in self.label_slots and not is_known:
            where = f" in {scope!r}" if scope else ""
            self.problems.append(Problem(item, None, f"label {item.name!r} is defined twice{where}"))
        self.label_slots[scope, item.name] = slot

    def resolve(self, insn: Insn, index: int, slot: int, scope: str) -> Insn:
        if isinstance(insn.symbol, Label):
            place, what = self.label_slots.get((scope, insn.symbol.name)), "label"
        elif isinstance(insn.symbol, (Subprogram, FunctionAddress)):
            place, what = self._function_slots.get(insn.symbol.name), "function"
        else:
            return insn
        if not _leads_somewhere(insn):
            message = f"{what} {insn.symbol.name!r} on what is no jump, call or ld_imm64"
            self.problems.append(Problem(insn, index, message))
            return replace(insn, symbol=None)
        if place is None:
            self.problems.append(Problem(insn, index, f"{what} {insn.symbol.name!r} is not defined"))
            return replace(insn, symbol=None)
        if place == self._end:
            message = f"{what} {insn.symbol.name!r} stands behind the last instruction"
            self.problems.append(Problem(insn, index, message))
            return replace(insn, symbol=None)
        # All count from the slot after the first one, even ld_imm64 with its two.
        distance = place - slot - 1
        if BY_CODE[insn.code][0].kind in _FAR:
            resolved = replace(insn, symbol=None, imm=distance)
        else:
            resolved = replace(insn, symbol=None, off=distance)
        if find_form(resolved.code, resolved.dst, resolved.src, resolved.off, resolved.imm) is None:
            reason = why_invalid(resolved.code, resolved.dst, resolved.src, resolved.off, resolved.imm)
            self.problems.append(Problem(insn, index, f"{insn.symbol.name!r} is too far: {reason}"))
        return resolved
