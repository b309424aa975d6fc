"""
Programs: loaded from a `Program` whose symbols are resolved, and asked about.

A program is loaded without a log first, because writing the log makes the kernel's verifier several
times slower; only a refused one is loaded again, with room for the log.
"""

from __future__ import annotations

import ctypes
import errno
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from actplane.asm.encoding import encode
from actplane.asm.insn import Insn, Kfunc, MapFd, MapValue, Unresolved
from actplane.asm.program import Program
from actplane.asm.uapi import AttachType, ProgType
from actplane.errors import InternalError, KernelError, RejectedByKernel
from actplane.loader.attributes import ProgInfo, ProgLoad, ProgTestRun
from actplane.loader.btf import Btf, TypeNotFound
from actplane.loader.btf_types import Kind
from actplane.loader.btf_write import load_btf
from actplane.loader.debug_info import FUNC_INFO_BYTES, LINE_INFO_BYTES, debug_info, has_debug_info
from actplane.loader.maps import Map
from actplane.loader.syscall import RUNNING_KERNEL, Handle, Kernel, bpf, object_name
from actplane.source import Span

BPF_F_SLEEPABLE = 1 << 4

_LOG_BYTES_FIRST = 1 << 16
_LOG_BYTES_MOST = (1 << 24) - 1
"""Kernels before 5.13 refuse a log of 16 MiB or more."""

_TARGETS: dict[tuple[ProgType, AttachType], tuple[Kind, str, str]] = {
    (ProgType.BPF_PROG_TYPE_LSM, AttachType.BPF_LSM_MAC): (Kind.BTF_KIND_FUNC, "bpf_lsm_", "LSM hook"),
    (ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_TRACE_RAW_TP): (Kind.BTF_KIND_TYPEDEF, "btf_trace_", "tracepoint"),
    (ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_TRACE_ITER): (Kind.BTF_KIND_FUNC, "bpf_iter_", "iterator"),
    (ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_TRACE_FENTRY): (Kind.BTF_KIND_FUNC, "", "function"),
    (ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_TRACE_FEXIT): (Kind.BTF_KIND_FUNC, "", "function"),
    (ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_MODIFY_RETURN): (Kind.BTF_KIND_FUNC, "", "function"),
}
"""Programs that name their hook by a BTF id when they are loaded: its kind, the prefix of its name, the noun."""

_LOG_INSN = re.compile(r"^(\d+): ?\(|\binsn (\d+)\b", re.MULTILINE)
"""An instruction in the kernel's log: "12: (79) r1 = ...", or, in the reports since 7.3, "insn 12"."""


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """
    What the kernel tells of a loaded program.

    Units:  sizes are bytes, times nanoseconds. run_time_ns and run_count stay 0 unless statistics are
            on; recursion_misses counts runs that were skipped because the program was already
            running on that CPU (since 5.12); verified_insns since 5.16. Older kernels say 0.
    """

    id: int
    tag: str
    name: str
    xlated_bytes: int
    jited_bytes: int
    map_ids: tuple[int, ...]
    run_time_ns: int
    run_count: int
    recursion_misses: int
    verified_insns: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """The result of a program run by BPF_PROG_TEST_RUN."""

    __test__ = False

    retval: int
    data_out: bytes
    ctx_out: bytes
    duration_ns: int


class LoadedProgram(Handle):
    """A program in the kernel. `program` is what it was made from."""

    def __init__(self, fd: int, program: Program, kernel: Kernel = RUNNING_KERNEL) -> None:
        super().__init__(fd, kernel)
        self.program = program

    def info(self) -> ProgramInfo:
        """Return what the kernel tells about the program. Raises KernelError. Since: 4.13."""
        # The number of maps is asked for first, to make room for their ids.
        head = self._raw_info()
        map_ids = (ctypes.c_uint32 * max(head.nr_map_ids, 1))()
        info = self._raw_info(nr_map_ids=head.nr_map_ids, map_ids=map_ids)
        return ProgramInfo(
            id=info.id,
            tag=bytes(info.tag).hex(),
            name=info.name.decode(errors="replace"),
            xlated_bytes=info.xlated_prog_len,
            jited_bytes=info.jited_prog_len,
            map_ids=tuple(map_ids[: info.nr_map_ids]),
            run_time_ns=info.run_time_ns,
            run_count=info.run_cnt,
            recursion_misses=info.recursion_misses,
            verified_insns=info.verified_insns,
        )

    def xlated(self) -> bytes:
        """Return the instructions as the kernel rewrote them. Raises KernelError. Since: 4.13."""
        code = ctypes.create_string_buffer(max(self._raw_info().xlated_prog_len, 1))
        info = self._raw_info(xlated_prog_len=len(code), xlated_prog_insns=code)
        return code.raw[: info.xlated_prog_len]

    def test_run(
        self, data: bytes = b"", ctx: bytes = b"", *, repeat: int = 0, data_out_bytes: int = 0, ctx_out_bytes: int = 0
    ) -> TestRun:
        """
        Run the program once, or `repeat` times, on data and context.

        Units:  duration_ns is the mean of one run.
        Raises: KernelError (ENOTSUPP, 524, for types that cannot be run this way).
        Since:  4.12; raw tracepoints 5.10, syscall programs 5.14.
        """
        attr = ProgTestRun(prog_fd=self.fd, repeat=repeat)
        data_out = ctypes.create_string_buffer(max(data_out_bytes, 1))
        ctx_out = ctypes.create_string_buffer(max(ctx_out_bytes, 1))
        # The kernel refuses attributes that mean nothing to the type of the program, so only what is given is set.
        if data:
            attr.set("data_in", data)
            attr.set("data_size_in", len(data))
        if ctx:
            attr.set("ctx_in", ctx)
            attr.set("ctx_size_in", len(ctx))
        if data_out_bytes:
            attr.set("data_out", data_out)
            attr.set("data_size_out", data_out_bytes)
        if ctx_out_bytes:
            attr.set("ctx_out", ctx_out)
            attr.set("ctx_size_out", ctx_out_bytes)
        try:
            bpf(attr, self.kernel)
        except KernelError as error:
            raise KernelError(f"{error.call} of {describe(self.program)}", error.errno, error.hint) from error
        return TestRun(attr.retval, data_out.raw[: attr.data_size_out], ctx_out.raw[: attr.ctx_size_out], attr.duration)

    def _raw_info(self, **fields: object) -> ProgInfo:
        info = ProgInfo(**fields)
        self.info_into(info)
        return info


def load(
    program: Program,
    maps: Mapping[str, Map],
    btf: Btf | None = None,
    *,
    kernel: Kernel = RUNNING_KERNEL,
    has_lines: bool = True,
) -> LoadedProgram:
    """
    Load a program. Labels and kernel fields must be resolved already (`relocate`); maps, kernel
    functions and the hook are resolved here.

    Shape:  `maps` are looked up by name; `btf` is that of the running kernel, and needed only by a
            program that names something of it. `has_lines` sends function names and policy lines along.
    Raises: RejectedByKernel with the log and the policy line; TypeNotFound if this kernel has no such
            hook or kernel function; another KernelError if the load failed before the verifier.
    Since:  4.4; LSM 5.7, sleepable LSM 5.11, task storage 5.11.
    """
    insns = encode([_resolve(insn, program, maps, btf) for insn in program.insns])
    attr = ProgLoad(
        prog_type=program.prog_type,
        insns=insns,
        insn_cnt=len(insns) // 8,
        license=program.license.encode() + b"\0",
        prog_name=object_name(program.name),
        prog_flags=BPF_F_SLEEPABLE if program.is_sleepable else 0,
    )
    if program.attach_type is not None:
        attr.set("expected_attach_type", program.attach_type)
    hook = hook_id(program, btf)
    if hook is not None:
        attr.set("attach_btf_id", hook)
    with ExitStack() as stack:
        if has_lines and has_debug_info(program):
            own = debug_info(program)
            attr.set("prog_btf_fd", stack.enter_context(load_btf(own.btf, kernel)).fd)
            attr.set("func_info_rec_size", FUNC_INFO_BYTES)
            attr.set("func_info", own.func_info)
            attr.set("func_info_cnt", len(own.func_info) // FUNC_INFO_BYTES)
            attr.set("line_info_rec_size", LINE_INFO_BYTES)
            attr.set("line_info", own.line_info)
            attr.set("line_info_cnt", len(own.line_info) // LINE_INFO_BYTES)
        return LoadedProgram(_load_with_log(attr, program, kernel), program, kernel)


def hook_id(program: Program, btf: Btf | None) -> int | None:
    """
    Return the BTF id of the hook a program names, or None if its type names none when it is loaded.

    Raises: TypeNotFound if the running kernel has no such hook.
    """
    if program.attach_type is None or program.attach_to is None:
        return None
    target = _TARGETS.get((program.prog_type, program.attach_type))
    if target is None:
        return None
    kind, prefix, noun = target
    if btf is None:
        raise InternalError("a program that names a hook needs the kernel's BTF", program=program.name)
    found = btf.id_of(kind, prefix + program.attach_to)
    if found is None:
        raise TypeNotFound(f"program {program.name}: this kernel has no {noun} {program.attach_to!r}")
    return found


def describe(program: Program) -> str:
    """Return how a program is called in messages: its type, its name and its hook."""
    hook = f" on {program.attach_to}" if program.attach_to else ""
    return f"{program.prog_type.name} {program.name!r}{hook}"


def _resolve(insn: Insn, program: Program, maps: Mapping[str, Map], btf: Btf | None) -> Insn:
    match insn.symbol:
        case None:
            return insn
        case MapFd(name):
            return replace(insn, imm=_map(name, program, maps).fd, symbol=None)
        case MapValue(name, offset_bytes):
            return replace(insn, imm=offset_bytes << 32 | _map(name, program, maps).fd, symbol=None)
        case Kfunc(name):
            if btf is None:
                raise InternalError("a program that calls a kernel function needs the kernel's BTF", name=name)
            found = btf.id_of(Kind.BTF_KIND_FUNC, name)
            if found is None:
                raise TypeNotFound(f"program {program.name}: this kernel has no function {name!r}")
            return replace(insn, imm=found, symbol=None)
        case Unresolved():
            # The kernel refuses the call that stands in its place, should any path lead there.
            return replace(insn, symbol=None)
        case symbol:
            raise InternalError("a symbol is left that is resolved before load", program=program.name, symbol=symbol)


def _map(name: str, program: Program, maps: Mapping[str, Map]) -> Map:
    found = maps.get(name)
    if found is None:
        raise InternalError("a program names a map that is not there", program=program.name, map=name)
    return found


def _load_with_log(attr: ProgLoad, program: Program, kernel: Kernel) -> int:
    try:
        return bpf(attr, kernel)
    except KernelError as error:
        first = error
    log = b""
    size = _LOG_BYTES_FIRST
    attr.set("log_level", 1)
    while True:
        buffer = ctypes.create_string_buffer(size)
        attr.set("log_buf", buffer)
        attr.set("log_size", size)
        try:
            return bpf(attr, kernel)
        except KernelError as error:
            log = buffer.value
            if error.errno != errno.ENOSPC or size >= _LOG_BYTES_MOST:
                break
        size = min(size * 8, _LOG_BYTES_MOST)
    call = f"{first.call} of {describe(program)}"
    text = log.decode(errors="replace")
    if not text.strip():
        raise KernelError(call, first.errno, first.hint) from first
    raise RejectedByKernel(call, first.errno, text, span=_span(text, program)) from first


def _span(log: str, program: Program) -> Span | None:
    """Return the policy line of the last instruction that has one, of those the verifier looked at."""
    spans: dict[int, Span] = {}
    slot = 0
    for insn in program.insns:
        if insn.span is not None:
            spans[slot] = insn.span
        slot += insn.slots
    mentioned = [int(listed or named) for listed, named in _LOG_INSN.findall(log)]
    return next((spans[slot] for slot in reversed(mentioned) if slot in spans), None)
