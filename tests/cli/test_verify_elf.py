"""`actplane verify` and the tools for programs, given objects of a compiler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actplane.cli import main
from actplane.cli.exits import Exit

OBJECTS = Path(__file__).parents[1] / "loader" / "objects"
TARGET = ["--btf", str(OBJECTS / "target.bpf.o")]
"""The types of a kernel that never was, in the BTF of an object."""


def path(name: str) -> str:
    return str(OBJECTS / f"{name}.bpf.o")


def test_every_program_of_an_object_is_judged(capsys: pytest.CaptureFixture[str]):
    assert main(["verify", path("maps"), *TARGET]) == Exit.OK
    assert capsys.readouterr().out.startswith("entry: accepted for Linux 6.18: ")


def test_one_program_is_judged_alone(capsys: pytest.CaptureFixture[str]):
    assert main(["verify", path("calls"), "--program", "second", *TARGET]) == Exit.OK
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["second"]


def test_a_section_that_says_no_type_needs_one(capsys: pytest.CaptureFixture[str]):
    assert main(["verify", path("calls"), "--program", "unknown", *TARGET]) == Exit.FAILURE
    assert "program unknown: its type is not known: give --type TYPE" in capsys.readouterr().err
    assert main(["verify", path("calls"), "--program", "unknown", "--type", "xdp", *TARGET]) == Exit.OK


def test_type_changes_no_section_that_says_one(capsys: pytest.CaptureFixture[str]):
    assert main(["verify", path("calls"), "--program", "third", "--type", "lsm", *TARGET]) == Exit.OK


def test_relocations_are_applied_from_given_types(capsys: pytest.CaptureFixture[str]):
    assert main(["verify", path("moved"), "--program", "number", "--log", *TARGET]) == Exit.OK
    assert "r0 = *(u32 *)(r1 +12)" in capsys.readouterr().out


def test_a_refusal_names_the_line_of_c_and_what_was_not_found(capsys: pytest.CaptureFixture[str]):
    assert main(["verify", path("moved"), "--program", "gone", *TARGET]) == Exit.MIRROR_REFUSED
    first = capsys.readouterr().out.splitlines()[1]
    assert "the field byte offset of struct moved.gone is not there [unknown-helper]" in first
    assert first.endswith("[moved.bpf.c:62: PROGRAM(gone) { return IT->gone; }]")


def test_variables_of_the_kernel_have_their_types(capsys: pytest.CaptureFixture[str]):
    assert main(["verify", path("moved"), "--program", "variable", "--log", *TARGET]) == Exit.OK
    log = capsys.readouterr().out
    assert "R1=ptr_moved()" in log
    assert log.count("a_variable.number") == 1


def test_json_and_sarif_have_file_and_line(capsys: pytest.CaptureFixture[str]):
    arguments = ["verify", path("moved"), "--program", "gone", *TARGET]
    assert main([*arguments, "--json"]) == Exit.MIRROR_REFUSED
    assert json.loads(capsys.readouterr().out)[0]["refusal"]["where"].startswith("moved.bpf.c:62:")
    assert main([*arguments, "--sarif"]) == Exit.MIRROR_REFUSED
    (result,) = json.loads(capsys.readouterr().out)["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "moved.bpf.c"}
    assert place["region"]["startLine"] == 62


def test_options_of_the_kernel_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["verify", path("options"), "--program", "options", *TARGET]
    assert main(arguments) == Exit.FAILURE
    assert "option CONFIG_HZ is not set\n    hint: give the kernel's configuration with --kconfig" in (
        capsys.readouterr().err
    )
    config = tmp_path / "config"
    config.write_text("CONFIG_HZ=250\nCONFIG_BPF=y\n")
    assert main([*arguments, "--kconfig", str(config)]) == Exit.OK
    config.write_text("CONFIG_HZ=y\nCONFIG_BPF=y\n")
    assert main([*arguments, "--kconfig", str(config)]) == Exit.FAILURE
    assert "option CONFIG_HZ: got y, expected a number" in capsys.readouterr().err


def test_an_object_without_types_is_no_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", path("maps"), "--btf", str(tmp_path / "none")]) == Exit.FAILURE
    assert "cannot be read: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["maps", "calls", "core", "kernel", "moved"])
def test_what_is_disassembled_assembles_to_the_same(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["disasm", path(name), "--json"]) == Exit.OK
    known = json.loads(capsys.readouterr().out)
    assert main(["disasm", path(name)]) == Exit.OK
    text = tmp_path / "text.s"
    text.write_text(capsys.readouterr().out)
    assert main(["disasm", str(text), "--json"]) == Exit.OK
    again = json.loads(capsys.readouterr().out)
    assert again["maps"] == known["maps"]
    for ours, other in zip(again["programs"], known["programs"], strict=True):
        assert [insn["hex"] for insn in ours["insns"]] == [insn["hex"] for insn in other["insns"]]


@pytest.mark.parametrize("command", ["explain", "cfg"])
def test_the_other_tools_read_objects_too(command: str, capsys: pytest.CaptureFixture[str]):
    assert main([command, path("calls"), "--program", "second"]) == Exit.OK
    assert "call bpf_loop" in capsys.readouterr().out


def test_the_log_shows_lines_of_c_as_the_kernel_does(capsys: pytest.CaptureFixture[str]):
    main(["verify", path("branches"), "--log", *TARGET])
    log = capsys.readouterr().out.splitlines()
    assert "; int filter(void *ctx) @ branches.bpf.c:14" in log[:2]
    assert "; u32 key = 1; @ branches.bpf.c:16" in log
    assert log.count("; if (seldom(ktime_get_ns() == 7)) @ branches.bpf.c:19") == 1
    assert log.count("; return *count; @ branches.bpf.c:20") == 1


def test_the_path_to_a_refusal_has_lines_too(capsys: pytest.CaptureFixture[str]):
    arguments = ["verify", path("branches"), *TARGET]
    assert main(arguments) == Exit.MIRROR_REFUSED
    assert capsys.readouterr().out.endswith("    path:\n      9: r0 != 7 does not hold     [branches.bpf.c:19]\n")
    assert main([*arguments, "--json"]) == Exit.MIRROR_REFUSED
    (step,) = json.loads(capsys.readouterr().out)[0]["refusal"]["path"]
    assert step == {"insn": 9, "text": "r0 != 7 does not hold", "where": "branches.bpf.c:19:6"}
    assert main([*arguments, "--sarif"]) == Exit.MIRROR_REFUSED
    (result,) = json.loads(capsys.readouterr().out)["runs"][0]["results"]
    locations = result["codeFlows"][0]["threadFlows"][0]["locations"]
    assert [each["location"]["physicalLocation"]["region"]["startLine"] for each in locations] == [19, 20]
