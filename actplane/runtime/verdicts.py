"""
Programs that the mirror has passed before, so that a session need not judge the same ones again.

A verdict is an empty file named by the digest of everything it rests on: the mirror's own files, the
kernel, the program as it will be loaded, its maps. Only acceptance is kept. The folder belongs to
root alone; one that anybody else could write to is not believed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import actplane
from actplane.asm.program import MapSpec, Program

FOLDER = Path("/var/cache/actplane/verdicts")
_KERNEL_NOTES = Path("/sys/kernel/notes")


def _files_of(package: str) -> list[Path]:
    """Return the modules of a package. Folders that come and go, such as caches of bytecode, are passed over."""
    found: list[Path] = []
    for folder, subfolders, names in os.walk(Path(actplane.__file__).parent / package):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        found.extend(Path(folder, name) for name in names if name.endswith(".py"))
    return sorted(found)


def foundation() -> bytes:
    """Return the digest of what every verdict rests on: the mirror, the assembler and the kernel."""
    digest = hashlib.sha256()
    for package in ("asm", "verifier"):
        for path in _files_of(package):
            found = path.stat()
            digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    system = os.uname()
    digest.update(f"{system.release} {system.version} {system.machine}\n".encode())
    digest.update(_KERNEL_NOTES.read_bytes())
    return digest.digest()


class Verdicts:
    """What has been accepted, on disk. Where nothing can be kept, nothing is known."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._is_trusted = self._prepare()
        self._foundation = foundation() if self._is_trusted else b""

    def _prepare(self) -> bool:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._folder.lstat()
        except OSError:
            return False
        is_own = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return is_own and stat.S_ISDIR(found.st_mode)

    def _path(self, program: Program, maps: Mapping[str, MapSpec]) -> Path:
        digest = hashlib.sha256(self._foundation)
        digest.update(repr((program.prog_type, program.attach_type, program.attach_to)).encode())
        digest.update(repr((program.is_sleepable, program.license, sorted(program.functions.items()))).encode())
        used: set[str] = set()
        for insn in program.insns:
            digest.update(repr((insn.code, insn.dst, insn.src, insn.off, insn.imm, insn.symbol)).encode())
            name = getattr(insn.symbol, "name", None)
            if isinstance(name, str) and name in maps:
                used.add(name)
        for name in sorted(used):
            spec = maps[name]
            shape = (name, spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags, spec.is_frozen)
            digest.update(repr(shape).encode())
            if spec.is_frozen and spec.contents is not None:
                digest.update(spec.contents)
        return self._folder / digest.hexdigest()

    def is_accepted(self, program: Program, maps: Mapping[str, MapSpec]) -> bool:
        """Say whether the mirror has passed this very program on this kernel."""
        return self._is_trusted and self._path(program, maps).exists()

    def accept(self, program: Program, maps: Mapping[str, MapSpec]) -> None:
        """Remember that the mirror has passed a program."""
        if self._is_trusted:
            try:
                self._path(program, maps).touch(mode=0o600)
            except OSError:
                self._is_trusted = False  # A full or read-only disk: judge again the next time.
