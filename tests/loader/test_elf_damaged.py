"""Objects that are none, are for other machines, or are damaged: an error that says so, and nothing else."""

from __future__ import annotations

import builtins
import random
import struct
from pathlib import Path

import pytest

from actplane.errors import ActplaneError, DecodeError
from actplane.loader.btf_types import BtfType, Kind, Linkage, Member
from actplane.loader.btf_write import BtfWriter
from actplane.loader.elf.file import ElfError, ElfFile
from actplane.loader.elf.objects import read_elf
from actplane.loader.elf.own_btf import read_object_btf

OBJECTS = Path(__file__).parent / "objects"
MAPS = (OBJECTS / "maps.bpf.o").read_bytes()
BIG_ENDIAN, LITTLE_ENDIAN = b"\x02", b"\x01"


def header(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def test_objects_for_big_endian_machines_are_refused():
    fields = struct.unpack_from("<HHIQQQIHHHHHH", MAPS, 16)
    big = header(MAPS, 5, BIG_ENDIAN)
    big = header(big, 16, struct.pack(">HHIQQQIHHHHHH", *fields))
    with pytest.raises(ElfError, match=r"(?s)got an object for big-endian.*hint: compile it with -target bpfel"):
        read_elf(big, "big.o")


def test_objects_for_other_machines_are_refused():
    with pytest.raises(ElfError, match=r"got ELF 64-bit EM_X86_64 ET_REL, expected 64-bit EM_BPF ET_REL"):
        read_elf(header(MAPS, 18, struct.pack("<H", 62)), "x86.o")


def test_a_file_that_is_cut_off():
    with pytest.raises(ElfError, match=r"cut.o: "):
        read_elf(MAPS[: len(MAPS) // 2], "cut.o")


def test_pyelftools_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("elftools"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ElfError, match=r"needs pyelftools(?s:.*)hint: pip install 'actplane\[elf\]'"):
        read_elf(MAPS, "maps.o")


def test_types_made_of_themselves_are_refused():
    writer = BtfWriter()
    writer.add(BtfType(Kind.BTF_KIND_TYPEDEF, "a", target=2))
    writer.add(BtfType(Kind.BTF_KIND_TYPEDEF, "b", target=1))
    with pytest.raises(DecodeError, match="is made of itself"):
        read_object_btf(writer.encode(), ElfFile("x.o"))


@pytest.mark.parametrize(
    "wrong",
    [
        BtfType(Kind.BTF_KIND_PTR, target=9),
        BtfType(Kind.BTF_KIND_STRUCT, "s", 4, members=(Member("m", 9),)),
        BtfType(Kind.BTF_KIND_FUNC, "f", target=9, linkage=Linkage.BTF_FUNC_GLOBAL),
    ],
)
def test_types_that_are_not_there_are_refused(wrong: BtfType):
    writer = BtfWriter()
    writer.add(wrong)
    with pytest.raises(DecodeError, match="got type 9, expected 1 or less"):
        read_object_btf(writer.encode(), ElfFile("x.o"))


@pytest.mark.parametrize("name", sorted(path.name for path in OBJECTS.glob("*.o")))
def test_damage_never_ends_in_another_kind_of_error(name: str):
    whole = (OBJECTS / name).read_bytes()
    chance = random.Random(name)
    unharmed = 0
    for _ in range(25):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8, 30))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            read_elf(bytes(data), name).link()
            unharmed += 1
        except ActplaneError:
            pass
    assert unharmed < 25
