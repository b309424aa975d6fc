"""
Links: what ties a program to its hook. Closing an unpinned link unties it, so a supervisor that dies
takes its programs along.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from actplane.asm.uapi import ProgType
from actplane.errors import InternalError, KernelError
from actplane.loader.attributes import LinkCreate, LinkDetach, LinkInfo, LinkUpdate, RawTracepointOpen
from actplane.loader.programs import LoadedProgram, describe
from actplane.loader.syscall import Handle, bpf

_HOOKED_AT_LOAD = (ProgType.BPF_PROG_TYPE_LSM, ProgType.BPF_PROG_TYPE_TRACING)
_OF_A_CGROUP = (
    ProgType.BPF_PROG_TYPE_CGROUP_SKB,
    ProgType.BPF_PROG_TYPE_CGROUP_SOCK,
    ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
    ProgType.BPF_PROG_TYPE_CGROUP_SOCKOPT,
    ProgType.BPF_PROG_TYPE_CGROUP_DEVICE,
    ProgType.BPF_PROG_TYPE_CGROUP_SYSCTL,
)


@dataclass(frozen=True, slots=True)
class LinkInformation:
    """Ids of a link and of the program it holds now. `type` is a BPF_LINK_TYPE_* number."""

    type: int
    id: int
    program_id: int


class Link(Handle):
    """A program at its hook."""

    def info(self) -> LinkInformation:
        """Return the ids of the link and of its program. Raises KernelError. Since: 5.8."""
        info = LinkInfo()
        self.info_into(info)
        return LinkInformation(info.type, info.id, info.prog_id)

    def update(self, program: LoadedProgram) -> None:
        """
        Put another program in the place of the one the link holds, at once.

        Raises: KernelError: EINVAL for links of LSM and tracing programs, which cannot be updated.
        Since:  5.7.
        """
        bpf(LinkUpdate(link_fd=self.fd, new_prog_fd=program.fd), self.kernel)

    def detach(self) -> None:
        """
        Untie the program now, even if the link is pinned or open elsewhere.

        Raises: KernelError: EOPNOTSUPP for links of LSM and tracing programs, which only closing unties.
        Since:  5.9.
        """
        bpf(LinkDetach(link_fd=self.fd), self.kernel)


def attach(program: LoadedProgram, cgroup_fd: int | None = None) -> Link:
    """
    Tie a program to the hook its spec names.

    Shape:  programs of a control group need cgroup_fd, a descriptor of its directory; LSM and tracing
            programs named their hook when they were loaded.
    Raises: KernelError.
    Since:  4.17 raw tracepoints, 5.5 tracing, 5.7 LSM and control groups.
    """
    spec = program.program
    kernel = program.kernel
    try:
        if spec.prog_type is ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT:
            if spec.attach_to is None:
                raise InternalError("a raw tracepoint program names no tracepoint", program=spec.name)
            attr = RawTracepointOpen(prog_fd=program.fd, name=spec.attach_to.encode() + b"\0")
            return Link(bpf(attr, kernel), kernel)
        if spec.prog_type in _HOOKED_AT_LOAD:
            return Link(_attach_hooked(program), kernel)
        if spec.prog_type in _OF_A_CGROUP:
            if cgroup_fd is None:
                raise InternalError("a program of a control group needs its descriptor", program=spec.name)
            attr_ = LinkCreate(prog_fd=program.fd, target_fd=cgroup_fd, attach_type=spec.attach_type)
            return Link(bpf(attr_, kernel), kernel)
    except KernelError as error:
        raise KernelError(f"{error.call} of {describe(spec)}", error.errno, error.hint) from error
    raise InternalError("there is no way to attach programs of this type", type=spec.prog_type.name)


def _attach_hooked(program: LoadedProgram) -> int:
    try:
        attr = LinkCreate(prog_fd=program.fd, attach_type=program.program.attach_type)
        return bpf(attr, program.kernel)
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
    # Kernels before 5.19 link these programs through the older command, which takes no name here.
    return bpf(RawTracepointOpen(prog_fd=program.fd), program.kernel)
