"""What objects leave to the kernel: options of its configuration, its variables and functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from actplane.asm.insn import Unresolved
from actplane.loader.btf import Btf
from actplane.loader.elf.externs import UNKNOWN_ADDRESS, Target, read_config
from actplane.loader.elf.file import ElfError, section_bytes
from actplane.loader.elf.link import POISON_KFUNC_BASE
from actplane.loader.elf.objects import ElfObject, read_elf

OBJECTS = Path(__file__).parent / "objects"
CONFIG = {"CONFIG_HZ": "250", "CONFIG_BPF": "y", "CONFIG_BTRFS_FS": "m", "CONFIG_DEFAULT_HOSTNAME": '"(none)"'}


def read(name: str) -> ElfObject:
    return read_elf((OBJECTS / f"{name}.bpf.o").read_bytes(), f"{name}.bpf.o")


def target(config: Mapping[str, str] | None = None) -> Target:
    types = section_bytes((OBJECTS / "target.bpf.o").read_bytes(), "target.bpf.o", ".BTF")
    assert types is not None
    return Target(Btf(types), (6, 12, 9), config)


def options(config: Mapping[str, str]) -> bytes:
    """The contents of the array of options: by alignment, then size, then name, as libbpf lays them out."""
    (kconfig,) = [spec for spec in read("options").link(target(config)).object.maps if spec.name == ".kconfig"]
    assert (kconfig.is_frozen, kconfig.flags, kconfig.max_entries) == (True, 0x80, 1)
    assert kconfig.contents is not None
    assert len(kconfig.contents) == kconfig.value_size
    return kconfig.contents


def test_options_have_the_values_of_the_configuration():
    assert options({**CONFIG, "CONFIG_NEGATIVE": "-3", "CONFIG_MODULES": "y"}) == b"".join(
        (
            (250).to_bytes(8, "little"),  # CONFIG_HZ
            b"\x02\0\0\0",  # CONFIG_BTRFS_FS=m
            (-3).to_bytes(4, "little", signed=True),  # CONFIG_NEGATIVE
            (6 << 16 | 12 << 8 | 9).to_bytes(4, "little"),  # LINUX_KERNEL_VERSION
            b"\x01",  # CONFIG_BPF=y as a bool
            b"y",  # CONFIG_MODULES=y as a character
            b"(none)".ljust(16, b"\0"),
        )
    )


def test_instructions_load_the_options_from_their_places():
    (program,) = read("options").link(target(CONFIG)).object.programs
    places = {insn.symbol.offset_bytes for insn in program.insns if insn.symbol and insn.symbol.name == ".kconfig"}
    assert places == {0, 8, 12, 16, 20, 21, 22}


def test_weak_options_that_are_not_set_are_zero():
    contents = options({"CONFIG_HZ": "0xfa", "CONFIG_BPF": "n"})
    assert contents[:8] == (250).to_bytes(8, "little")
    assert contents[8:16] + contents[20:] == bytes(8 + 18)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("CONFIG_HZ", None, "is not set"),
        ("CONFIG_HZ", "m", "got m, expected a number"),
        ("CONFIG_HZ", '"250"', 'got the text "250", expected a number'),
        ("CONFIG_HZ", "many", "got 'many', expected a number"),
        ("CONFIG_HZ", "-1", "got -1, which 8 bytes cannot hold"),
        ("CONFIG_BPF", "m", "got m, expected y or n for a bool"),
        ("CONFIG_BTRFS_FS", "7", "got the number 7, expected another type"),
    ],
)
def test_options_that_do_not_fit(name: str, value: str | None, problem: str):
    config = {**CONFIG, name: value} if value is not None else {key: CONFIG[key] for key in CONFIG if key != name}
    with pytest.raises(ElfError, match=f"the kernel's option {name}") as caught:
        options(config)
    assert problem in str(caught.value)


def test_a_configuration_may_be_compressed():
    import gzip

    assert read_config(gzip.compress(b"# comment\nCONFIG_HZ=100\n")) == {"CONFIG_HZ": "100"}


def test_weak_names_that_the_kernel_lacks():
    whole = Target(target().btf, config=CONFIG, address_of={"init_task": 0x1234}.get)
    found = read("kernel")
    (missing,) = found.link(whole, only="missing").object.programs
    (call,) = [insn for insn in missing.insns if insn.symbol is not None]
    assert call.symbol == Unresolved("the kernel function not_a_function is not there")
    assert POISON_KFUNC_BASE < call.imm < POISON_KFUNC_BASE + 20


def test_names_that_the_kernel_must_have():
    whole = Target(target().btf, config=CONFIG)
    with pytest.raises(ElfError, match=r"kernel.bpf.c:\d+:\d+: function leaks, slot \d+: the kernel has no function"):
        read("kernel").link(whole, only="leaks")
    with pytest.raises(ElfError, match="the kernel has no variable 'runqueues'"):
        read("kernel").link(whole, only="variables")


def test_variables_without_a_type_have_the_address_of_their_symbol():
    assert Target(target().btf).address_of("anything") == UNKNOWN_ADDRESS
