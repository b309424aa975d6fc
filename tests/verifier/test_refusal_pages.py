"""Every refusal id has a page; the example on it is refused for that reason, and its repair is not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from actplane.asm.assembler import assemble_object
from actplane.asm.program import Program
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.loader.btf_types import BtfType, Kind, Linkage, Member
from actplane.loader.btf_write import BtfWriter
from actplane.loader.relocate import relocate
from actplane.verifier import DEFAULT, Options, OwnTypes, Report, TypeRef, verify
from actplane.verifier.tables.profiles import PROFILES
from actplane.verifier.tables.refusals import CATALOGUE

PAGES = Path(__file__).parents[2] / "docs" / "verifier"
_BLOCK = re.compile(r"## (Refused|Repaired)\n+(.*?)```bpf\n(.*?)```", re.S)


def examples(id_: str) -> dict[str, str]:
    return {title: text for title, _, text in _BLOCK.findall((PAGES / f"{id_}.md").read_text())}


def judge(id_: str, title: str) -> Report:
    page = (PAGES / f"{id_}.md").read_text()
    types = None
    if "With the types of a kernel" in page:
        try:
            types = Btf.vmlinux()
        except ActplaneError as error:
            pytest.skip(f"needs the types of a kernel: {error}")
    found = assemble_object(examples(id_)[title], name=f"{id_}.md")
    program = relocate(found.programs[0], types) if types is not None else found.programs[0]
    options = Options(
        is_privileged="For a user without privileges" not in page,
        max_insns=20_000 if "limit of 20,000" in page else 1_000_000,
        budget_insns=5_000 if "budget of 5,000" in page else None,
    )
    profile = PROFILES["7.2"] if "On Linux 7.2:" in page else DEFAULT
    profile = replace(profile, max_program_slots=4) if "limit of 4 instructions" in page else profile
    maps = {spec.name: spec for spec in found.maps}
    own = own_types(page, examples(id_)[title], program)
    return verify(program, maps, types, own=own, profile=profile, options=options)


VALUE = """struct value {
    struct bpf_spin_lock lock;
    struct task_struct __kptr *task;
};
"""


def own_types(page: str, text: str, program: Program) -> OwnTypes | None:
    """Return what a page says of the map `m` or of the function `f` in C, as the BTF that a compiler would write."""
    writer = BtfWriter()
    number = writer.integer("long", 8, is_signed=True)
    if VALUE in page:
        lock = writer.add(BtfType(Kind.BTF_KIND_STRUCT, "bpf_spin_lock", 4))
        task = writer.add(BtfType(Kind.BTF_KIND_FWD, "task_struct"))
        tagged = writer.add(BtfType(Kind.BTF_KIND_TYPE_TAG, "kptr", target=task))
        pointer = writer.add(BtfType(Kind.BTF_KIND_PTR, target=tagged))
        members = (Member("lock", lock, 0), Member("task", pointer, 64))
        value = writer.add(BtfType(Kind.BTF_KIND_STRUCT, "value", 16, members=members))
        return OwnTypes(map_values={"m": TypeRef(Btf(writer.encode()), value)})
    declared = re.search(r"// int f\((struct pair|long) value\)", text)
    if declared is None:
        return None
    pair = writer.add(BtfType(Kind.BTF_KIND_STRUCT, "pair", 16, members=(Member("a", number), Member("b", number, 64))))
    parameter = Member("value", pair if declared[1] == "struct pair" else number)
    main = writer.func("main", writer.func_proto(number))
    f = writer.func("f", writer.func_proto(number, (parameter,)), Linkage.BTF_FUNC_GLOBAL)
    index = next(index for index, name in program.functions.items() if name == "f")
    slot = sum(insn.slots for insn in program.insns[:index])
    return OwnTypes(Btf(writer.encode()), {0: main, slot: f})


def test_pages_and_ids_are_the_same() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} - {"index", "agreement"} == set(CATALOGUE)


@pytest.mark.parametrize("id_", CATALOGUE)
def test_page_has_title_and_hint(id_: str) -> None:
    page = (PAGES / f"{id_}.md").read_text()
    assert page.startswith(f"# `{id_}`: ")
    assert CATALOGUE[id_].hint in page


@pytest.mark.parametrize("id_", CATALOGUE)
def test_example_is_refused(id_: str) -> None:
    report = judge(id_, "Refused")
    assert report.refusal is not None
    assert report.refusal.id == id_, str(report)


@pytest.mark.parametrize("id_", CATALOGUE)
def test_repair_is_accepted(id_: str) -> None:
    report = judge(id_, "Repaired")
    assert report.is_accepted, str(report)
