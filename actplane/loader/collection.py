"""
Maps and programs that belong together, loaded as one and closed as one.

    with Collection.load(object, btf) as collection:
        collection.attach("file_open")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType

from actplane.asm.program import MapSpec, Object, Program
from actplane.errors import InternalError
from actplane.loader.btf import Btf
from actplane.loader.links import Link, attach
from actplane.loader.maps import Map
from actplane.loader.programs import LoadedProgram, load
from actplane.loader.relocate import relocate
from actplane.loader.syscall import RUNNING_KERNEL, Kernel

Judge = Callable[[Program, Mapping[str, MapSpec]], None]
"""Looks at a relocated program before it is loaded, and raises if it must not be."""


class Collection:
    """Loaded maps, programs and links. Everything closes with the `with` block, links first."""

    def __init__(self, kernel: Kernel = RUNNING_KERNEL) -> None:
        self.maps: dict[str, Map] = {}
        self.programs: dict[str, LoadedProgram] = {}
        self.links: dict[str, Link] = {}
        self._kernel = kernel
        self._stack = ExitStack()

    @classmethod
    def load(
        cls,
        object_: Object,
        btf: Btf,
        *,
        shared_maps: Mapping[str, Map] | None = None,
        judge: Judge | None = None,
        kernel: Kernel = RUNNING_KERNEL,
    ) -> Collection:
        """
        Relocate, judge and load everything of an object: maps first, then programs.

        Shape:  a map of the object whose name is in `shared_maps` is not created: the shared one takes
                its place, and stays open when the collection closes. `judge` sees every program before
                anything is created in the kernel.
        Raises: what relocating, judging, creating maps and loading raise; then nothing stays open.
        """
        shared = dict(shared_maps or {})
        specs = {name: one.spec for name, one in shared.items()} | {spec.name: spec for spec in object_.maps}
        programs = [relocate(program, btf) for program in object_.programs]
        if judge is not None:
            for program in programs:
                judge(program, specs)
        collection = cls(kernel)
        try:
            for spec in object_.maps:
                if spec.name in shared:
                    _check_same(spec, shared[spec.name].spec)
                elif spec.name in collection.maps:
                    raise InternalError("two maps of one name", name=spec.name)
                else:
                    collection.maps[spec.name] = collection._stack.enter_context(Map.create(spec, kernel))
            for program in programs:
                if program.name in collection.programs:
                    raise InternalError("two programs of one name", name=program.name)
                loaded = load(program, shared | collection.maps, btf, kernel=kernel)
                collection.programs[program.name] = collection._stack.enter_context(loaded)
        except BaseException:
            collection.close()
            raise
        return collection

    def attach(self, name: str, cgroup_fd: int | None = None) -> Link:
        """Tie a program to its hook until the collection closes. Raises KernelError."""
        link = attach(self.programs[name], cgroup_fd)
        self.links[name] = self._stack.enter_context(link)
        return link

    def close(self) -> None:
        """Close links, programs and maps, the last opened first. Doing so again has no effect."""
        self._stack.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_same(wanted: MapSpec, shared: MapSpec) -> None:
    ours = (wanted.type, wanted.key_size, wanted.value_size, wanted.max_entries)
    theirs = (shared.type, shared.key_size, shared.value_size, shared.max_entries)
    if ours != theirs:
        raise InternalError("a shared map has another shape", name=wanted.name, got=theirs, expected=ours)
