"""
The corpus of real programs with real kernels' verdicts, which lies beside the repository: read from
there, never copied.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from actplane.asm.insn import Insn, Kfunc, MapFd, MapValue, Symbol
from actplane.asm.program import MapSpec, Program
from actplane.asm.uapi import AttachType, MapType, ProgType
from actplane.loader.btf import Btf
from actplane.verifier import BtfKind, KernelProfile, Options, OwnTypes, Report, TypeRef, profile_of, verify

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "verifier-cases.tar.xz"

OUR_TYPES = frozenset(
    """LSM TRACING RAW_TRACEPOINT RAW_TRACEPOINT_WRITABLE CGROUP_SKB CGROUP_SOCK CGROUP_SOCK_ADDR CGROUP_SOCKOPT
    CGROUP_DEVICE CGROUP_SYSCTL SCHED_CLS XDP SOCKET_FILTER SYSCALL""".split()  # noqa: SIM905
)
"""The types of programs that this project uses or may use."""


@dataclass
class Case:
    """One program of the corpus, ready for the mirror."""

    raw: dict[str, Any]
    program: Program | None = None
    maps: dict[str, MapSpec] = field(default_factory=dict)
    own: OwnTypes | None = None

    @property
    def id(self) -> str:
        return str(self.raw["id"])

    @property
    def tier(self) -> str:
        return str(self.raw["tier"])

    @property
    def kind(self) -> str:
        return str(self.raw["prog_type"])

    @property
    def processed(self) -> int:
        """The instructions that the kernels processed, at most."""
        return max((v.get("insns_processed") or 0 for v in self.raw["kernel"].values()), default=0)

    @property
    def lacks_contents(self) -> bool:
        """Whether the program reads a constant map whose contents the corpus does not have."""
        return any(
            entry.get("frozen") and any("value_blob" in update for update in entry.get("updates") or ())
            for entry in self.raw["maps"]
        )

    @property
    def truth(self) -> str:
        """What a 6.18 kernel said: accept or reject."""
        return str(self.raw["truth_6_18"])

    @property
    def is_host_truth(self) -> bool:
        """Whether the verdict is that of the machine's own kernel, which is locked down."""
        return "-fc-" in (self.raw.get("truth_source") or "")


@cache
def _members() -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(ARCHIVE.read_bytes()))) as archive:
        return {
            member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
            if member.isfile()
        }


def _blob(name: str) -> bytes:
    return gzip.decompress(_members()[f"cases/btf/{name}.gz"])


@cache
def _btf(name: str) -> Btf | None:
    return Btf(_blob(name)) if f"cases/btf/{name}.gz" in _members() else None


def cases() -> Iterator[Case]:
    """Yield every case whose program type this project knows."""
    for line in _members()["cases/cases.jsonl"].splitlines():
        raw = json.loads(line)
        if f"BPF_PROG_TYPE_{raw['prog_type']}" in ProgType.__members__:
            yield Case(raw)


class BadEncoding(Exception):
    """An ld_imm64 whose second slot is not what it must be: no `Insn` can say that."""


def prepare(case: Case) -> Case:
    """Fill in the program, its maps and its own types."""
    raw = case.raw
    own = _btf(raw["btf"]) if raw.get("btf") else None
    maps: dict[str, MapSpec] = {}
    values: dict[str, TypeRef] = {}
    inner: dict[str, MapSpec] = {}
    for index, entry in enumerate(raw["maps"]):
        name = f"m{index}"
        maps[name] = _map(name, entry)
        _note_value(values, name, entry)
        if entry.get("inner"):
            inner[name] = _map(f"{name}.inner", entry["inner"])
            _note_value(values, f"{name}.inner", entry["inner"])
    functions = {}
    if raw.get("func_info_hex"):
        data, step = bytes.fromhex(raw["func_info_hex"]), raw["func_info_rec_size"]
        functions = dict(struct.unpack_from("<II", data, at) for at in range(0, len(data), step))
    case.maps = maps
    case.own = OwnTypes(own, functions, values, inner)
    case.program = _program(raw)
    return case


def _map(name: str, entry: dict[str, Any]) -> MapSpec:
    kind = entry["type_id"]
    contents = next((u.get("value") for u in entry.get("updates") or () if u.get("key") == "00000000"), None)
    return MapSpec(
        name,
        MapType(kind) if kind in MapType._value2member_map_ else MapType.BPF_MAP_TYPE_HASH,
        entry["key_size"],
        entry["value_size"],
        entry["max_entries"],
        entry.get("flags", 0),
        bytes.fromhex(contents) if contents else None,
        bool(entry.get("frozen")),
    )


def _note_value(values: dict[str, TypeRef], name: str, entry: dict[str, Any]) -> None:
    types = _btf(entry["btf"]) if entry.get("btf") else None
    if types is not None:
        values[name] = TypeRef(types, entry.get("btf_value_type_id") or 0)


def _program(raw: dict[str, Any]) -> Program:
    data = bytes.fromhex(raw["insns_hex"]) if "insns_hex" in raw else _blob(raw["insns_blob"])
    references = {slot: index for slot, _, index in raw["map_refs"]}
    kfuncs = {entry[0]: entry[1] or "" for entry in raw.get("kfunc_refs") or ()}
    insns: list[Insn] = []
    slot, slots = 0, len(data) // 8
    while slot < slots:
        code, registers, off, imm = struct.unpack_from("<BBhi", data, slot * 8)
        source = registers >> 4
        symbol: Symbol | None = None
        if code == 0x18:
            if slot + 1 == slots:
                raise BadEncoding
            *rest, high = struct.unpack_from("<BBhi", data, slot * 8 + 8)
            if rest != [0, 0, 0] or (source == 1 and high):
                raise BadEncoding
            imm = (imm & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32
            if slot in references:
                name = f"m{references[slot]}"
                symbol = MapValue(name, high & 0xFFFFFFFF) if source in (2, 6) else MapFd(name)
        elif code == 0x85 and source == 2 and slot in kfuncs:
            symbol = Kfunc(kfuncs[slot])
        insns.append(Insn(code, registers & 15, source, off, imm, symbol=symbol))
        slot += insns[-1].slots
    prog_type = ProgType[f"BPF_PROG_TYPE_{raw['prog_type']}"]
    attach_name = f"BPF_{raw.get('expected_attach_type')}"
    attach = AttachType[attach_name] if attach_name in AttachType.__members__ else None
    hook = (raw.get("attach_btf") or {}).get("name")
    if hook is not None:
        prefix = {AttachType.BPF_TRACE_RAW_TP: "btf_trace_", AttachType.BPF_TRACE_ITER: "bpf_iter_"}.get(attach)
        if prog_type is ProgType.BPF_PROG_TYPE_LSM:
            prefix = "bpf_lsm_"
        hook = hook.removeprefix(prefix or "")
    is_sleepable = bool(raw["prog_flags"] & 16)
    return Program(str(raw["name"]), prog_type, tuple(insns), attach, hook, is_sleepable, raw["license"])


def profile_of_case(case: Case) -> KernelProfile:
    """Return the profile of the kernel whose verdict is the truth about a case."""
    is_host = case.is_host_truth
    return replace(profile_of("6.18"), is_lockdown=is_host, writes_registers=not is_host)


def _name_parts(case: Case, types: Btf) -> None:
    """Put what the corpus has by name (variables, functions) or by number (operations) into the program."""
    assert case.program is not None
    names = {slot: (kind, name) for slot, name, kind in case.raw.get("ksym_refs") or ()}
    insns, slot = [], 0
    for insn in case.program.insns:
        kind, name = names.get(slot, (0, ""))
        insns.append(replace(insn, imm=types.id_of(kind, name) or 0) if name else insn)
        slot += insn.slots
    hook = case.program.attach_to
    operation = re.fullmatch(r"struct_ops member #(\d+)", case.raw.get("expected_attach_type") or "")
    struct = types.id_of(BtfKind.STRUCT, hook) if operation is not None and hook is not None else None
    if operation is not None and struct is not None:
        names = [member.name for member in types.type_at(struct).members]
        hook = f"{hook}.{dict(enumerate(names)).get(int(operation[1]), 'none')}"
    case.program = replace(case.program, insns=tuple(insns), attach_to=hook)


def judge(
    case: Case,
    types: Btf,
    max_insns: int = 1_000_000,
    *,
    profile: KernelProfile | None = None,
    is_privileged: bool = True,
) -> Report | None:
    """Ask the mirror about a case; None if the program cannot even be written as instructions."""
    try:
        prepare(case)
    except BadEncoding:
        return None
    _name_parts(case, types)
    return judge_prepared(case, types, max_insns, profile=profile, is_privileged=is_privileged)


def judge_prepared(
    case: Case,
    types: Btf,
    max_insns: int = 1_000_000,
    *,
    profile: KernelProfile | None = None,
    is_privileged: bool = True,
) -> Report:
    """Ask the mirror about a case that was prepared."""
    assert case.program is not None
    flags = case.raw["prog_flags"]
    options = Options(
        is_privileged=is_privileged,
        is_strict=flags & 3 == 1,
        keeps_all_states=bool(flags & 8) and is_privileged,
        max_insns=max_insns,
    )
    profile = profile or profile_of_case(case)
    return verify(case.program, case.maps, types, own=case.own, profile=profile, options=options)
