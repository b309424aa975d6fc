"""Instructions generated from the table: for hypothesis, and by the thousand from a seed."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from actplane.asm.insn import Insn
from actplane.asm.isa import FORMS, Form, Rule


def values(rule: Rule) -> st.SearchStrategy[int]:
    return st.sampled_from(rule.values) if rule.values else st.integers(rule.low, rule.high)


@st.composite
def instructions(draw: st.DrawFn, forms: tuple[Form, ...] = FORMS) -> Insn:
    form = draw(st.sampled_from(forms))
    return Insn(form.code, *(draw(values(rule)) for rule in (form.dst, form.src, form.off, form.imm)))


def some_value(rule: Rule, chance: random.Random) -> int:
    """A value of a field: an edge of its range half of the time."""
    if rule.values:
        return chance.choice(rule.values)
    edges = [edge for edge in (rule.low, rule.high, 0, 1, -1, 0x7F, 0x80, 0xFFFF, 0x7FFFFFFF) if edge in rule]
    return chance.choice(edges) if chance.random() < 0.5 else chance.randint(rule.low, rule.high)


def some_instructions(seed: int, count: int, forms: tuple[Form, ...] = FORMS) -> list[Insn]:
    chance = random.Random(seed)
    found: list[Insn] = []
    for form in chance.choices(forms, k=count):
        found.append(Insn(form.code, *(some_value(rule, chance) for rule in (form.dst, form.src, form.off, form.imm))))
    return found
