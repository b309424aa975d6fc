"""
Indirect jumps in the mirror: what may be loaded from a jump table and jumped by, and where that leads. What is
expected is what Linux 7.2.13 said of the same programs, but for jumps by the table of another function.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from actplane.asm import assemble_object
from actplane.asm.isa import GOTOX
from actplane.asm.jump_tables import jump_table
from actplane.verifier import Options, Report, profile_of, verify
from tests.verifier.jump_table_grammar import jumping_sentence

SAFE = ""
PLACES = "a: r0 = 1\nexit\nb: r0 = 2\nexit\nc: r0 = 3\nexit\nd: r0 = 4\nexit\n.jumptable t a, b, c, d\n"
LOAD = "r1 = map[t][0]+0\nr1 = *(u64 *)(r1 +0)\n"
RANDOM = "call bpf_get_prandom_u32\n"


def judge(text: str, tables: Mapping[str, list[int]] | None = None, *, kernel: str = "7.2", **options: bool) -> Report:
    found = assemble_object(text if text.startswith(".map") else f".prog p socket_filter\n{text}", name="p")
    maps = {spec.name: spec for spec in found.maps}
    maps |= {name: jump_table(name, slots) for name, slots in (tables or {}).items()}
    return verify(found.programs[0], maps, profile=profile_of(kernel), options=Options(**options))


def id_of(report: Report) -> str:
    return report.refusal.id if report.refusal is not None else SAFE


@pytest.mark.parametrize(
    ("load", "id_"),
    [
        ("r1 = map[t][0]+24\nr1 = *(u64 *)(r1 +0)", SAFE),
        ("r1 = map[t][0]+8\nr1 = *(u64 *)(r1 +16)", SAFE),
        ("r1 = map[t][0]+8\nr1 = *(u64 *)(r1 -8)", SAFE),
        ("r1 = map[t][0]+0\nr1 -= 24\nr1 += 32\nr1 = *(u64 *)(r1 +0)", SAFE),
        ("r1 = map[t][0]+0\nr1 = load_acquire((u64 *)(r1 +8))", SAFE),
        ("r1 = map[t][0]+4\nr1 = *(u64 *)(r1 +4)", "bad-map"),
        ("r1 = map[t][0]+32\nr1 = *(u64 *)(r1 -8)", "bad-map"),
        ("r1 = map[t][0]+8\nr1 = *(u64 *)(r1 +24)", "map-value-out-of-bounds"),
        ("r1 = map[t][0]+0\nr1 = *(u64 *)(r1 +4)", "misaligned"),
        ("r1 = map[t][0]+0\nr1 = *(u32 *)(r1 +0)", "jump-table"),
        ("r1 = map[t][0]+0\nr1 = *(s8 *)(r1 +0)", "jump-table"),
        ("r1 = map[t][0]+0\nr2 = 0\n*(u64 *)(r1 +0) = r2", "map-value-access"),
        ("r1 = map[t][0]+0\nr2 = 0\nlock *(u64 *)(r1 +0) += r2", "map-value-access"),
    ],
)
def test_places_are_loaded_whole_and_never_written(load: str, id_: str) -> None:
    assert id_of(judge(f"{load}\ngotox r1\n{PLACES}")) == id_


@pytest.mark.parametrize(
    ("index", "id_", "walked"),
    [
        ("r0 &= 3\nr0 <<= 3", SAFE, 4),
        ("r0 &= 16", SAFE, 3),
        ("if r0 > 2 goto a\nif r0 < 1 goto a\nr0 <<= 3", SAFE, 2),
        ("r0 = 16", SAFE, 1),
        ("r0 &= 7\nr0 <<= 3", "map-value-out-of-bounds", 0),
        ("if r0 > 4 goto a\nr0 <<= 3", "map-value-out-of-bounds", 0),
        ("r0 &= 3\nr0 <<= 2", "misaligned", 0),
        ("r0 <<= 3", "pointer-out-of-range", 0),
    ],
)
def test_an_index_leads_to_all_places_between_its_bounds(index: str, id_: str, walked: int) -> None:
    text = f"{RANDOM}{index}\nr1 = map[t][0]+0\nr1 += r0\nr1 = *(u64 *)(r1 +0)\ngotox r1\n{PLACES}"
    report = judge(text, wants_log=True)
    assert id_of(report) == id_
    if not id_:
        jump = next(int(line.split(":")[0]) for line in report.log if "gotox" in line)
        started = {int(line.split(":")[0]) for line in report.log if ") r0 = " in line}
        assert len({slot for slot in started if slot > jump}) - ("goto a" in index) == walked


def test_an_index_may_be_subtracted_from_a_later_place() -> None:
    text = f"{RANDOM}r0 &= 3\nr0 <<= 3\nr1 = map[t][0]+24\nr1 -= r0\nr1 = *(u64 *)(r1 +0)\ngotox r1\n{PLACES}"
    assert id_of(judge(text)) == SAFE


@pytest.mark.parametrize(
    ("use", "id_"),
    [
        ("r2 = r1\nr1 = r2", SAFE),
        ("if r1 == 0 goto a", SAFE),
        ("r6 = r1\ncall bpf_ktime_get_ns\nr1 = r6", SAFE),
        ("r1 += 8", "pointer-arithmetic"),
        ("r1 ^= 0", "pointer-arithmetic"),
        ("w1 = w1", "jump-table"),
        ("*(u64 *)(r10 -8) = r1\nr1 = *(u64 *)(r10 -8)", "jump-table"),
        ("r2 = *(u64 *)(r1 +0)", "memory-access"),
        ("*(u64 *)(r1 +0) = 0", "memory-access"),
        ("r2 = 0\nr3 = r10\nr3 += -8\nr4 = 8\ncall bpf_skb_load_bytes", "argument-type"),
        ("r1 = 42", "jump-table"),
        ("r1 = r10", "jump-table"),
        ("r1 = map[t][0]+0", "jump-table"),
        ("call bpf_ktime_get_ns", "jump-table"),
    ],
)
def test_an_address_is_used_as_it_was_loaded(use: str, id_: str) -> None:
    assert id_of(judge(f"{LOAD}{use}\ngotox r1\n{PLACES}")) == id_


@pytest.mark.parametrize(
    ("call", "id_"),
    [
        ("r1 = map[t]\ncall bpf_map_lookup_elem", "map-helper-mismatch"),
        ("r1 = map[t]\ncall bpf_map_update_elem", "map-value-access"),
        ("r1 = map[t]\ncall bpf_map_delete_elem", "map-value-access"),
        ("r1 = map[t][0]+0\nr2 = 32\ncall bpf_trace_printk", SAFE),
        ("r1 = map[t][0]+0\nr2 = 33\ncall bpf_trace_printk", "map-value-out-of-bounds"),
        ("r1 = r6\nr2 = 0\nr3 = map[t][0]+0\nr4 = 8\ncall bpf_skb_load_bytes", "map-value-access"),
        ("r1 = r10\nr1 += -16\nr2 = 8\nr3 = map[t][0]+0\ncall bpf_strncmp", "argument-constant"),
    ],
)
def test_helpers_read_the_addresses_and_nothing_else(call: str, id_: str) -> None:
    setup = "r6 = r1\n*(u64 *)(r10 -8) = 0\n*(u64 *)(r10 -16) = 0\nr2 = r10\nr2 += -8\nr3 = r10\nr3 += -16\nr4 = 0\n"
    assert id_of(judge(f"{setup}{call}\n{LOAD}gotox r1\n{PLACES}")) == id_


@pytest.mark.parametrize(
    ("slots", "id_"),
    [
        ([4, 6, 8, 10], SAFE),
        ([10, 8, 6, 4, 4, 4], SAFE),
        ([4, 6, 8], "unreachable"),
        ([4, 6, 8, 10, 1], "jump-table"),
        ([4, 6, 8, 10, 12], "jump-table"),
        ([4, 6, 8, 10, (1 << 32) - 1], "jump-table"),
        ([3], "unreachable"),
        ([3, 4, 6, 8, 10], "endless-loop"),
        ([2, 4, 6, 8, 10], "memory-access"),
    ],
)
def test_every_place_is_checked_and_reached(slots: list[int], id_: str) -> None:
    assert id_of(judge(f"{LOAD}gotox r1\n{PLACES}", {"t": slots})) == id_


def test_a_table_that_may_change_is_refused() -> None:
    found = assemble_object(f".prog p socket_filter\n{LOAD}gotox r1\n{PLACES}")
    for change, id_ in (({"is_frozen": False}, "jump-table"), ({"value_size": 8}, "bad-map")):
        report = verify(found.programs[0], {"t": replace(found.maps[0], **change)}, profile=profile_of("7.2"))
        assert id_of(report) == id_


def test_places_that_are_not_given_are_the_first_instruction() -> None:
    found = assemble_object(f".prog p socket_filter\n{LOAD}gotox r1\n{PLACES}")
    longer = replace(found.maps[0], max_entries=1 << 30)
    assert verify(found.programs[0], {"t": longer}, profile=profile_of("7.2")).is_accepted


FUNCTION = "call f\nexit\n.func f\nr1 = map[t][0]+8\nr1 = *(u64 *)(r1 +0)\ngotox r1\na: r0 = 1\nexit\nb: r0 = 2\nexit\n"
MAIN = "call f\nr1 = map[t][0]+0\nr1 = *(u64 *)(r1 +0)\nr2 = map[u][0]+0\ngotox r1\na: r0 = 1\nexit\n"
OTHER = ".func f\nr0 = 0\nexit\n"


@pytest.mark.parametrize(
    ("text", "tables", "id_"),
    [
        (f"{FUNCTION}.jumptable t a, b\n", None, SAFE),
        ("gotox r1\nr0 = 0\nexit\n", None, "jump-table"),
        ("r0 = 0\nif r0 == 0 goto +1\ngotox r1\nexit\n", None, "jump-table"),
        (f"r2 = map[t]\nr0 = 0\nif r0 == 0 goto a\ngotox r0\n{PLACES}", None, SAFE),
        (f"{MAIN}.jumptable t a\n.jumptable u a\n{OTHER}", {"u": [9, 10]}, SAFE),
        (f"{MAIN}.jumptable t a\n.jumptable u a\n{OTHER}", {"u": [7, 9]}, "jump-table"),
        (f"{MAIN}.jumptable t a\n.jumptable u a\n{OTHER}", {"t": [9], "u": [9]}, "jump-table"),
        (f"{MAIN}.jumptable t a\n.jumptable u a\n{OTHER}", {"t": [9], "u": [7]}, "jump-table"),
    ],
    ids=[
        "in a function",
        "none",
        "none, unreached",
        "only named",
        "one each",
        "one for both",
        "other's only",
        "by the other's",
    ],
)
def test_a_function_jumps_by_its_own_tables(text: str, tables: dict[str, list[int]] | None, id_: str) -> None:
    assert id_of(judge(text, tables)) == id_


def test_addresses_are_passed_and_returned_and_functions_end_with_jumps() -> None:
    places = "a: r0 = 1\nexit\nb: r0 = 2\nexit\n"
    end = f"{places}.jumptable t a, b\n"
    for text in (
        f"{LOAD}call f\nexit\n.func f\ngotox r1\n{end}",
        f"r1 = map[t][0]+0\ncall f\nexit\n.func f\nr1 = *(u64 *)(r1 +8)\ngotox r1\n{end}",
        f"call f\ngotox r0\n{end}.func f\nr1 = map[t][0]+0\nr0 = *(u64 *)(r1 +8)\nexit\n",
        f"goto c\n{places}c: {LOAD}gotox r1\n.jumptable t a, b\n",
    ):
        assert id_of(judge(text)) == SAFE, text


def test_paths_through_tables_are_pruned_only_where_they_lead_alike() -> None:
    text = (
        "call bpf_get_prandom_u32\nr2 = map[t][0]+0\nr2 = *(u64 *)(r2 +{})\nif r0 > 7 goto +3\nr2 = map[t][0]+0\n"
        "r2 = *(u64 *)(r2 +{})\nr0 = 0\ngotox r2\na: r0 = 1\nexit\nb: r0 = r9\nexit\n.jumptable t a, b\n"
    )
    ids = [id_of(judge(text.format(*offsets))) for offsets in ((0, 0), (0, 8), (8, 0))]
    assert ids == [SAFE, "uninitialized-register", "uninitialized-register"]


@pytest.mark.parametrize(("index", "id_"), [(15, SAFE), (16, "map-value-out-of-bounds")])
def test_numbers_are_followed_back_over_the_jump(index: int, id_: str) -> None:
    text = (
        ".map m array key=4 value=16 max_entries=1\n.prog p socket_filter\nr6 = {}\ncall bpf_get_prandom_u32\n"
        "if r0 > 7 goto +1\nr6 = {}\ncall bpf_get_prandom_u32\nr0 &= 8\nr2 = map[t][0]+0\nr2 += r0\n"
        "r2 = *(u64 *)(r2 +0)\ngotox r2\na: r1 = map[m][0]+0\n"
        "r1 += r6\nr0 = *(u8 *)(r1 +0)\nexit\nb: r0 = 0\nexit\n.jumptable t a, b\n"
    )
    assert id_of(judge(text.format(0, index))) == id_of(judge(text.format(index, 0))) == id_


@pytest.mark.parametrize(("rounds", "processed"), [(0, 5), (3, 23), (40, 245)])
def test_loops_through_tables_end_as_in_the_kernel(rounds: int, processed: int) -> None:
    text = (
        f"r6 = 0\nhead: r6 += 1\nif r6 > {rounds} goto done\n{LOAD}gotox r1\n"
        "done: r0 = 0\nexit\nbody: goto head\n.jumptable t body, done\n"
    )
    report = judge(text)
    assert report.is_accepted, str(report)
    assert report.statistics.insns_processed == processed


def test_a_jump_says_which_places_its_path_took() -> None:
    jump = f"{RANDOM}r0 &= 8\nr1 = map[t][0]+0\nr1 += r0\nr1 = *(u64 *)(r1 +0)\ngotox r1\n"
    report = judge(f"{jump}a: r0 = r9\nexit\nb: r0 = 0\nexit\n.jumptable t a, b\n", wants_log=True)
    assert report.refusal is not None
    assert [str(step).split("     ")[0] for step in report.refusal.path] == ["6: r1 leads to slot 7"]
    assert any(
        line.endswith("; R1=insn(smin=smin32=0,smax=umax=smax32=umax32=8,var_off=(0x0; 0x8))") for line in report.log
    )


@pytest.mark.parametrize("field", ["src", "off", "imm"])
@pytest.mark.parametrize("kernel", ["6.19", "7.2"])
def test_fields_that_a_jump_does_not_use_are_zero(field: str, kernel: str) -> None:
    found = assemble_object(f".prog p socket_filter\n{LOAD}gotox r1\n{PLACES}")
    insns = tuple(replace(insn, **{field: 1}) if insn.code == GOTOX else insn for insn in found.programs[0].insns)
    report = verify(replace(found.programs[0], insns=insns), {"t": found.maps[0]}, profile=profile_of(kernel))
    assert id_of(report) == "bad-instruction"


def test_older_kernels_and_other_users_have_no_indirect_jumps() -> None:
    assert id_of(judge(f"{LOAD}gotox r1\n{PLACES}", kernel="6.18")) == "bad-instruction"
    assert id_of(judge(f"{LOAD}gotox r1\n{PLACES}", kernel="6.19")) == SAFE
    assert id_of(judge(f"{LOAD}gotox r1\n{PLACES}", is_privileged=False)) == "privileged-only"


def test_generated_programs_are_of_both_kinds() -> None:
    ids: dict[str, int] = {}
    for seed in range(200):
        program, maps = jumping_sentence(random.Random(seed))
        id_ = id_of(verify(program, maps, profile=profile_of("7.2")))
        ids[id_] = ids.get(id_, 0) + 1
    assert ids[SAFE] > 40
    assert {"jump-table", "map-value-out-of-bounds", "unreachable", "endless-loop"} <= set(ids)
