"""Every refusal id has a page; the example on it is refused for that reason, and its repair is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from actplane.asm.assembler import assemble_object
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.verifier import Options, Report, verify
from actplane.verifier.refusals import CATALOGUE

PAGES = Path(__file__).parents[2] / "docs" / "verifier"
_BLOCK = re.compile(r"## (Refused|Repaired)\n+(.*?)```bpf\n(.*?)```", re.S)


def examples(id_: str) -> dict[str, str]:
    return {title: text for title, _, text in _BLOCK.findall((PAGES / f"{id_}.md").read_text())}


WITH_EXAMPLE = [id_ for id_ in CATALOGUE if examples(id_)]


def judge(id_: str, title: str) -> Report:
    page = (PAGES / f"{id_}.md").read_text()
    types = None
    if "With the types of a kernel" in page:
        try:
            types = Btf.vmlinux()
        except ActplaneError as error:
            pytest.skip(f"needs the types of a kernel: {error}")
    found = assemble_object(examples(id_)[title], name=f"{id_}.md")
    options = Options(
        is_privileged="without privileges" not in page,
        max_insns=20_000 if "limit of 20,000" in page else 1_000_000,
    )
    maps = {spec.name: spec for spec in found.maps}
    return verify(found.programs[0], maps, types, options=options)


def test_pages_and_ids_are_the_same() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} - {"index", "agreement"} == set(CATALOGUE)


@pytest.mark.parametrize("id_", CATALOGUE)
def test_page_has_title_and_hint(id_: str) -> None:
    page = (PAGES / f"{id_}.md").read_text()
    assert page.startswith(f"# `{id_}`: ")
    assert CATALOGUE[id_].hint in page


@pytest.mark.parametrize("id_", WITH_EXAMPLE)
def test_example_is_refused(id_: str) -> None:
    report = judge(id_, "Refused")
    assert report.refusal is not None
    assert report.refusal.id == id_, str(report)


@pytest.mark.parametrize("id_", WITH_EXAMPLE)
def test_repair_is_accepted(id_: str) -> None:
    report = judge(id_, "Repaired")
    assert report.is_accepted, str(report)
