"""
Pins: names in a BPF file system that keep maps, programs and links alive without a process.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.errors import KernelError
from actplane.loader.attributes import MapInfo, ObjGet, ObjPin
from actplane.loader.links import Link
from actplane.loader.maps import Map
from actplane.loader.syscall import RUNNING_KERNEL, Handle, Kernel, bpf

BPFFS = Path("/sys/fs/bpf")

_MOUNTINFO = Path("/proc/self/mountinfo")
_MODE_DIRECTORY = 0o700


def ensure_bpffs(where: Path = BPFFS) -> Path:
    """
    Return the mount point of a BPF file system, mounting one there if there is none.

    Raises: KernelError if it cannot be mounted.
    Since:  4.4.
    """
    if not is_bpffs(where):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"bpf", os.fsencode(where), b"bpf", 0, b"mode=0700") != 0:
            error = ctypes.get_errno()
            raise KernelError(
                f"mount of a BPF file system on {where}", error, "it needs CAP_SYS_ADMIN and the directory"
            )
    return where


def is_bpffs(where: Path) -> bool:
    """Say whether a BPF file system is mounted exactly there."""
    for line in _MOUNTINFO.read_text().splitlines():
        # Source: proc_pid_mountinfo(5): the fifth field is the mount point, the type follows the lone dash.
        fields = line.split(" ")
        if _unescape(fields[4]) == str(where) and fields[fields.index("-") + 1] == "bpf":
            return True
    return False


def pin(handle: Handle, path: Path) -> None:
    """
    Give a map, program or link a name that keeps it alive. Missing directories are made for root alone.

    Raises: KernelError: EEXIST if the name is taken.
    Since:  4.4; links 5.7.
    """
    path.parent.mkdir(mode=_MODE_DIRECTORY, parents=True, exist_ok=True)
    bpf(ObjPin(pathname=_name(path), bpf_fd=handle.fd), handle.kernel)


def unpin(path: Path) -> bool:
    """Remove a name; return whether it was there. What nobody else holds ends with it."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def open_map(path: Path, kernel: Kernel = RUNNING_KERNEL) -> Map:
    """Open a pinned map; its spec is what the kernel says of it. Raises KernelError (ENOENT: no such pin)."""
    with Handle(_open(path, kernel), kernel) as handle:
        info = MapInfo()
        handle.info_into(info)
        spec = MapSpec(path.name, MapType(info.type), info.key_size, info.value_size, info.max_entries, info.map_flags)
        return Map(os.dup(handle.fd), spec, kernel)


def open_link(path: Path, kernel: Kernel = RUNNING_KERNEL) -> Link:
    """Open a pinned link. Raises KernelError (ENOENT: no such pin)."""
    return Link(_open(path, kernel), kernel)


def _open(path: Path, kernel: Kernel) -> int:
    try:
        return bpf(ObjGet(pathname=_name(path)), kernel)
    except KernelError as error:
        raise KernelError(f"{error.call} of {path}", error.errno, error.hint) from error


def _name(path: Path) -> bytes:
    return os.fsencode(path) + b"\0"


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
