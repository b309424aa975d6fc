"""Verdicts are kept for exactly what was judged, and believed only in a folder of our own."""

from dataclasses import replace
from pathlib import Path

from actplane import asm
from actplane.asm.program import MapSpec, Program
from actplane.asm.uapi import MapType, ProgType
from actplane.runtime.verdicts import Verdicts

MAPS = {"m": MapSpec("m", MapType.BPF_MAP_TYPE_ARRAY, 4, 8, 1)}
INSNS = (asm.ld_map_value(asm.R1, asm.MapValue("m", 0)), asm.mov64(asm.R0, 0), asm.exit_())
PROGRAM = Program("p", ProgType.BPF_PROG_TYPE_SOCKET_FILTER, INSNS)


def test_only_what_was_accepted_is_known(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path / "v")
    assert not verdicts.is_accepted(PROGRAM, MAPS)
    verdicts.accept(PROGRAM, MAPS)
    assert verdicts.is_accepted(PROGRAM, MAPS)
    assert Verdicts(tmp_path / "v").is_accepted(PROGRAM, MAPS)


def test_another_instruction_type_or_map_is_another_program(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path / "v")
    verdicts.accept(PROGRAM, MAPS)
    other = replace(PROGRAM, insns=(*INSNS[:1], asm.mov64(asm.R0, 1), asm.exit_()))
    assert not verdicts.is_accepted(other, MAPS)
    assert not verdicts.is_accepted(replace(PROGRAM, prog_type=ProgType.BPF_PROG_TYPE_XDP), MAPS)
    assert not verdicts.is_accepted(PROGRAM, {"m": replace(MAPS["m"], value_size=16)})
    assert not verdicts.is_accepted(PROGRAM, {"m": replace(MAPS["m"], is_frozen=True, contents=b"\1")})


def test_a_folder_that_others_can_write_to_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    Verdicts(folder).accept(PROGRAM, MAPS)
    folder.chmod(0o777)
    assert not Verdicts(folder).is_accepted(PROGRAM, MAPS)


def test_where_nothing_can_be_kept_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    verdicts = Verdicts(tmp_path / "file" / "v")
    verdicts.accept(PROGRAM, MAPS)
    assert not verdicts.is_accepted(PROGRAM, MAPS)
