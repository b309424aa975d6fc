"""How long the door to the kernel takes: its types cold and warm, maps, programs, ring buffers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from actplane.asm import R0, R1, R2, R3, R4, R6, R10, Size
from actplane.asm.build import add64, call, exit_, ld_map_fd, ldx, mov64, st
from actplane.asm.insn import Field
from actplane.asm.program import MapSpec, Object, Program
from actplane.asm.uapi import HelperId, MapType, ProgType
from actplane.loader.btf import VMLINUX_PATH, Btf
from actplane.loader.btf_types import Kind
from actplane.loader.collection import Collection
from actplane.loader.features import Feature, Features
from actplane.loader.maps import Map
from actplane.loader.programs import load
from actplane.loader.ringbuf import RingBuffer

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="not root: bpf() needs privileges"),
    pytest.mark.skipif(not VMLINUX_PATH.exists(), reason="this kernel brings no types (BTF)"),
]

COLD_SECONDS = 0.150
FIELDS = (
    *(("file", path) for path in ("f_path.dentry", "f_path.mnt", "f_inode", "f_flags", "f_mode")),
    *(("dentry", path) for path in ("d_parent", "d_name.name", "d_inode", "d_name.len")),
    *(("task_struct", path) for path in ("group_leader", "real_parent", "tgid", "pid", "mm", "comm")),
    *(("sock", path) for path in ("__sk_common.skc_family", "__sk_common.skc_daddr", "__sk_common.skc_v6_daddr")),
    *(("linux_binprm", path) for path in ("file", "filename", "interp", "argc", "envc", "p")),
    *(("inode", path) for path in ("i_ino", "i_sb", "i_mode")),
    *(("mount", path) for path in ("mnt_parent", "mnt_mountpoint", "mnt")),
)
RETURN = (mov64(R0, 0), exit_())


def look_up(btf: Btf) -> None:
    for struct, path in FIELDS:
        btf.field_offset(struct, path)
    btf.find(Kind.BTF_KIND_FUNC, "bpf_lsm_file_open")
    btf.find(Kind.BTF_KIND_TYPEDEF, "btf_trace_sched_process_exec")


def test_btf_cold(benchmark) -> None:
    """Read the kernel's types and find what a policy needs of them: under 150 ms."""
    benchmark.pedantic(lambda: look_up(Btf(VMLINUX_PATH.read_bytes())), rounds=10, warmup_rounds=1)
    assert benchmark.stats["min"] < COLD_SECONDS


def test_btf_warm(benchmark) -> None:
    btf = Btf(VMLINUX_PATH.read_bytes())
    benchmark(look_up, btf)


def test_import_of_the_loader(benchmark) -> None:
    command = (sys.executable, "-c", "import actplane.loader.collection, actplane.loader.features")
    benchmark.pedantic(lambda: subprocess.run(command, check=True), rounds=5, warmup_rounds=1)


def straight_line(count: int) -> Program:
    insns = (mov64(R6, 0), *(add64(R6, number) for number in range(count)), *RETURN)
    return Program("bench", ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, insns, attach_to="sched_process_exec")


@pytest.mark.parametrize("count", [1, 1000, 10000])
def test_load_a_program(benchmark, count: int) -> None:
    program = straight_line(count)
    benchmark(lambda: load(program, {}).close())


def test_load_an_object(benchmark) -> None:
    """A map of each kind a policy uses, and a program that names kernel fields: types read already."""
    btf = Btf.vmlinux()
    maps = (
        MapSpec("tasks", MapType.BPF_MAP_TYPE_TASK_STORAGE, 4, 104, 0),
        MapSpec("table", MapType.BPF_MAP_TYPE_ARRAY, 4, 1 << 16, 1, contents=bytes(1 << 16), is_frozen=True),
        MapSpec("slots", MapType.BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 8),
        MapSpec("ring", MapType.BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 18),
    )
    insns = (
        call(HelperId.bpf_get_current_task_btf),
        replace(ldx(Size.DW, R1, R0), symbol=Field("task_struct", "group_leader")),
        *RETURN,
    )
    program = Program("bench", ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, insns, attach_to="sched_process_exec")
    benchmark(lambda: Collection.load(Object(maps, (program,)), btf).close())


def test_probe_every_feature(benchmark) -> None:
    Btf.vmlinux()

    def probe() -> None:
        features = Features()
        for feature in Feature:
            features.probe(feature)

    benchmark.pedantic(probe, rounds=3)


def test_map_lookup(benchmark) -> None:
    with Map.create(MapSpec("table", MapType.BPF_MAP_TYPE_HASH, 4, 8, 8)) as table:
        table.update(bytes(4), bytes(8))
        benchmark(table.lookup, bytes(4))


def test_read_a_full_ring(benchmark) -> None:
    """Fill a ring of 64 KiB by a program, and read its records: 2,047 of 24 bytes each."""
    insns = (
        ld_map_fd(R1, "ring"),
        *(st(Size.DW, R10, offset, 0) for offset in (-24, -16, -8)),
        mov64(R2, R10),
        add64(R2, -24),
        mov64(R3, 24),
        mov64(R4, 0),
        call(HelperId.bpf_ringbuf_output),
        exit_(),
    )
    program = Program("bench", ProgType.BPF_PROG_TYPE_XDP, insns)
    ring_spec = MapSpec("ring", MapType.BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 16)
    with Collection.load(Object((ring_spec,), (program,)), Btf.vmlinux()) as collection:
        loaded = collection.programs["bench"]

        def fill() -> None:
            loaded.test_run(bytes(64), repeat=3000)

        with RingBuffer(collection.maps["ring"]) as ring:
            benchmark.pedantic(
                lambda: list(ring.consume()),
                setup=fill,
                rounds=20,
            )
