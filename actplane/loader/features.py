"""
What the running kernel can do, found out by doing it.

Version numbers and lists of names prove nothing: kernels carry patches, and refuse what they list. So
a probe loads a small program or creates a small map, and where that is not enough a canary is
attached to see whether it bites. An answer is yes, no, or unknown with the reason; only yes and no
are remembered.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from actplane.asm.build import call, exit_, ld_map_fd, mov64, stx
from actplane.asm.insn import Insn
from actplane.asm.operands import Reg, Size
from actplane.asm.program import MapSpec, Object, Program
from actplane.asm.uapi import AttachType, HelperId, MapType, ProgType
from actplane.errors import KernelError, RejectedByKernel, UnsupportedFeature
from actplane.loader.btf import Btf, TypeNotFound
from actplane.loader.canary import does_canary_bite
from actplane.loader.collection import Collection
from actplane.loader.maps import SINCE, is_map_type_supported
from actplane.loader.syscall import RUNNING_KERNEL, Kernel

LSM_LIST = Path("/sys/kernel/security/lsm")

_ENOTSUPP = 524
"""An error number of the kernel's own, which it should not show and does."""

_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT, errno.ESRCH, _ENOTSUPP)
_NOT_PERMITTED = (errno.EPERM, errno.EACCES)


_ARGUMENT_FAULT = re.compile(r"R\d+ |.*\barg#\d")


class Answer(Enum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer, and why it is not yes."""

    answer: Answer
    reason: str = ""

    def __bool__(self) -> bool:
        return self.answer is Answer.YES


YES = Finding(Answer.YES)


class Feature(Enum):
    """What can be asked for. The value says it in words."""

    LSM = "LSM programs load"
    LSM_SLEEPABLE = "sleepable LSM programs load"
    LSM_SLEEPABLE_TAIL_CALL = "sleepable LSM programs may tail-call"
    LSM_FIRES = "LSM programs are obeyed"
    FMOD_RET = "fmod_ret programs load"
    FMOD_RET_FIRES = "fmod_ret programs are obeyed"
    RAW_TRACEPOINT = "raw tracepoint programs load"
    TP_BTF = "tracepoint programs with BTF load"
    TP_BTF_SIGNAL = "tracepoint programs may send signals"
    CGROUP_CONNECT = "cgroup programs on connect load"
    CGROUP_TASK_STORAGE = "cgroup programs may read task storage"
    REGISTER_WRITES = "probe programs may write registers"
    TASK_STORAGE = "task storage"
    INODE_STORAGE = "inode storage"
    SK_STORAGE = "socket storage"
    RINGBUF = "ring buffers"


_MAP_TYPES = {
    Feature.TASK_STORAGE: MapType.BPF_MAP_TYPE_TASK_STORAGE,
    Feature.INODE_STORAGE: MapType.BPF_MAP_TYPE_INODE_STORAGE,
    Feature.SK_STORAGE: MapType.BPF_MAP_TYPE_SK_STORAGE,
    Feature.RINGBUF: MapType.BPF_MAP_TYPE_RINGBUF,
}

_CANARIES = {
    Feature.LSM_FIRES: ProgType.BPF_PROG_TYPE_LSM,
    Feature.FMOD_RET_FIRES: ProgType.BPF_PROG_TYPE_TRACING,
}


class Features:
    """
    The running kernel's answers, each found once.

    >>> sorted(feature.name for feature in Feature)[:2]
    ['CGROUP_CONNECT', 'CGROUP_TASK_STORAGE']
    """

    def __init__(self, kernel: Kernel = RUNNING_KERNEL, read_btf: Callable[[], Btf] = Btf.vmlinux) -> None:
        self._kernel = kernel
        self._read_btf = read_btf
        self._known: dict[object, Finding] = {}

    def probe(self, feature: Feature) -> Finding:
        """Say whether the kernel has a feature. Never raises a KernelError: what fails is the answer."""
        if feature in _MAP_TYPES:
            return self._remember(feature, lambda: self._create(_MAP_TYPES[feature]))
        if feature in _CANARIES:
            return self._remember(feature, lambda: self._attach(_CANARIES[feature]))
        return self._remember(feature, lambda: self._load(*_PROGRAMS[feature]))

    def helper(self, helper: HelperId, like: Program) -> Finding:
        """Say whether programs of the type and hook of another may call a helper."""

        def attempt() -> Finding:
            try:
                return self._load(replace(like, name="probe", insns=(call(helper), *_RETURN_0), functions={}))
            except RejectedByKernel as error:
                # The helper is known if the kernel got as far as its arguments, which nobody has set.
                if _ARGUMENT_FAULT.match(_last_line(error.log)):
                    return YES
                raise

        place = (like.prog_type, like.attach_type, like.attach_to, like.is_sleepable)
        return self._remember((helper, place), attempt)

    def lsm_hook_fires(self) -> Finding:
        """Say whether an LSM program is really obeyed, not only loaded: the canary tells."""
        return self.probe(Feature.LSM_FIRES)

    def _remember(self, key: object, attempt: Callable[[], Finding]) -> Finding:
        known = self._known.get(key)
        if known is None:
            known = self._find(attempt)
            if known.answer is not Answer.UNKNOWN:
                self._known[key] = known
        return known

    def _find(self, attempt: Callable[[], Finding]) -> Finding:
        try:
            return attempt()
        except (TypeNotFound, UnsupportedFeature) as error:
            return Finding(Answer.NO, _first_line(error))
        except RejectedByKernel as error:
            return Finding(Answer.NO, f"the verifier says: {_last_line(error.log)}")
        except KernelError as error:
            return self._judge(error)

    def _judge(self, error: KernelError) -> Finding:
        if error.errno in _REFUSALS:
            return Finding(Answer.NO, _first_line(error))
        if error.errno in _NOT_PERMITTED:
            # Is it this that is not permitted, or everything? A raw tracepoint program needs the same privileges.
            try:
                self._load(_plain(ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, None, None))
            except KernelError:
                return Finding(Answer.UNKNOWN, f"{_first_line(error)}; no program may be loaded here: run as root")
            return Finding(Answer.NO, f"{_first_line(error)}; this kernel refuses it, while other programs load")
        return Finding(Answer.UNKNOWN, _first_line(error))

    def _create(self, map_type: MapType) -> Finding:
        if is_map_type_supported(map_type, self._kernel):
            return YES
        return Finding(Answer.NO, f"the kernel knows no {map_type.name} (Linux {SINCE[map_type]} or newer)")

    def _attach(self, prog_type: ProgType) -> Finding:
        storage = self.probe(Feature.TASK_STORAGE)
        if not storage:
            return Finding(Answer.UNKNOWN, f"the canary needs task storage: {storage.reason}")
        if does_canary_bite(prog_type, self._read_btf(), self._kernel):
            return YES
        return Finding(Answer.NO, f"the program was attached, and not obeyed{_what_the_lsm_list_lacks()}")

    def _load(self, program: Program, maps: Sequence[MapSpec] = ()) -> Finding:
        with Collection.load(Object(tuple(maps), (program,)), self._read_btf(), kernel=self._kernel):
            return YES


def _plain(
    prog_type: ProgType,
    attach_type: AttachType | None,
    attach_to: str | None,
    insns: tuple[Insn, ...] = (mov64(Reg.R0, 0), exit_()),
    *,
    is_sleepable: bool = False,
) -> Program:
    return Program("probe", prog_type, insns, attach_type, attach_to, is_sleepable)


_RETURN_0 = (mov64(Reg.R0, 0), exit_())
_RETURN_1 = (mov64(Reg.R0, 1), exit_())

_MARKS = MapSpec("probe_marks", MapType.BPF_MAP_TYPE_TASK_STORAGE, 4, 8, 0)
_SLOTS = MapSpec("probe_slots", MapType.BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1)

_READ_MARK = (
    call(HelperId.bpf_get_current_task_btf),
    ld_map_fd(Reg.R1, _MARKS.name),
    mov64(Reg.R2, Reg.R0),
    mov64(Reg.R3, 0),
    mov64(Reg.R4, 0),
    call(HelperId.bpf_task_storage_get),
)
_TAIL_CALL = (ld_map_fd(Reg.R2, _SLOTS.name), mov64(Reg.R3, 0), call(HelperId.bpf_tail_call))
_SIGNAL = (mov64(Reg.R1, 9), call(HelperId.bpf_send_signal))

_LSM = (ProgType.BPF_PROG_TYPE_LSM, AttachType.BPF_LSM_MAC, "bprm_check_security")
_TP_BTF = (ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_TRACE_RAW_TP, "sched_process_exec")
_FMOD_RET = (ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_MODIFY_RETURN, "security_file_open")
_WRITE_REGISTER = (mov64(Reg.R2, 0), stx(Size.DW, Reg.R1, Reg.R2, 0))
_CONNECT = (ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, AttachType.BPF_CGROUP_INET4_CONNECT, None)

_PROGRAMS: dict[Feature, tuple[Program, tuple[MapSpec, ...]]] = {
    Feature.LSM: (_plain(*_LSM), ()),
    Feature.LSM_SLEEPABLE: (_plain(*_LSM, is_sleepable=True), ()),
    Feature.LSM_SLEEPABLE_TAIL_CALL: (_plain(*_LSM, (*_TAIL_CALL, *_RETURN_0), is_sleepable=True), (_SLOTS,)),
    Feature.FMOD_RET: (_plain(*_FMOD_RET), ()),
    Feature.RAW_TRACEPOINT: (_plain(ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, None, "sched_process_exec"), ()),
    Feature.TP_BTF: (_plain(*_TP_BTF), ()),
    Feature.TP_BTF_SIGNAL: (_plain(*_TP_BTF, (*_SIGNAL, *_RETURN_0)), ()),
    Feature.CGROUP_CONNECT: (_plain(*_CONNECT, _RETURN_1), ()),
    Feature.CGROUP_TASK_STORAGE: (_plain(*_CONNECT, (*_READ_MARK, *_RETURN_1)), (_MARKS,)),
    Feature.REGISTER_WRITES: (_plain(ProgType.BPF_PROG_TYPE_KPROBE, None, None, (*_WRITE_REGISTER, *_RETURN_0)), ()),
}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _last_line(log: str) -> str:
    """Return what the verifier's log says last, before its statistics."""
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("processed ")]
    return lines[-1].strip() if lines else ""


def _what_the_lsm_list_lacks() -> str:
    try:
        names = LSM_LIST.read_text().strip()
    except OSError:
        return ""
    return "" if "bpf" in names.split(",") else f"; the list of security modules ({names}) has no bpf"
