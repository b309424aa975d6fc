"""
A compiled policy in the kernel: its maps, its programs, the hooks they are tied to.

On every hook sits a dispatcher that knows no policy; it finds the task's mark and tail-calls the
policy's program by its slot. An empty slot denies, so every slot is filled before anything is attached.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from actplane.asm.program import MapSpec, Program
from actplane.codegen import layout
from actplane.codegen.compile import Compiled
from actplane.errors import InternalError
from actplane.loader.btf import Btf
from actplane.loader.collection import Collection
from actplane.loader.ringbuf import RingBuffer

SLOT = 0
"""The slot of a session's programs: sessions do not share dispatchers yet."""

_U32 = struct.Struct("<I")
_PIDFD = struct.Struct("<i")
_U64 = struct.Struct("<Q")

Judge = Callable[[Program, Mapping[str, MapSpec]], None]


def mirror(btf: Btf) -> Judge:
    """Return a judge that lets a program pass only if the mirror accepts it. The judge raises VerifyError."""
    from actplane.verifier import verify

    def judge(program: Program, maps: Mapping[str, MapSpec]) -> None:
        verify(program, maps, btf).require()

    return judge


class Engine:
    """Loaded, then attached; closes with its `with` block, links first."""

    def __init__(self, compiled: Compiled, collection: Collection) -> None:
        self.compiled = compiled
        self.load_seconds = 0.0
        self._collection = collection
        self.reports = RingBuffer(collection.maps["events"])

    @classmethod
    def load(cls, compiled: Compiled, btf: Btf, judge: Judge | None) -> Engine:
        """
        Judge and load everything, and put the policy's programs into their slots.

        Raises: VerifyError if the mirror refuses a program, RejectedByKernel if the kernel does, KernelError.
        Since:  5.11 (task storage).
        """
        started = time.perf_counter()
        collection = Collection.load(compiled.object, btf, judge=judge)
        try:
            for hook in compiled.hooks:
                if hook.prog_array is not None and hook.program is not None:
                    target = collection.programs[hook.program]
                    collection.maps[hook.prog_array].update(_U32.pack(SLOT), _U32.pack(target.fd))
            engine = cls(compiled, collection)
        except BaseException:
            collection.close()
            raise
        engine.load_seconds = time.perf_counter() - started
        return engine

    def attach(self, cgroup_fd: int) -> None:
        """
        Tie every dispatcher to its hook; those of control groups to the session's own.

        From here on the kernel asks them. Whoever is not marked is not judged.
        Raises: KernelError.
        """
        for hook in self.compiled.hooks:
            self._collection.attach(hook.dispatcher, cgroup_fd if hook.kind == "cgroup" else None)

    def mark(self, pidfd: int) -> None:
        """
        Make a process the first of the session: it and all it starts are judged from now on.

        Raises: InternalError if the policy has no label for it, KernelError.
        """
        seed = self.compiled.policy.seed
        if seed is None:
            raise InternalError("a session needs a policy that names COMMAND or AGENT")
        state = layout.pack_state(SLOT, frozenset({seed}))
        self._collection.maps["tasks"].update(_PIDFD.pack(pidfd), state)

    def dropped_events(self) -> int:
        """Return how many events found no room in the ring buffer. Raises KernelError."""
        value = self._collection.maps["session"].lookup(_U32.pack(0))
        if value is None:
            raise InternalError("the session map has no element")
        dropped: int = _U64.unpack_from(value, layout.SESSION_DROPS)[0]
        return dropped

    def recursion_misses(self) -> int:
        """
        Return how many events programs missed because one was already running on that CPU.

        LSM programs never miss any. Raises KernelError. Since: 5.12; 0 on older kernels.
        """
        return sum(program.info().recursion_misses for program in self._collection.programs.values())

    def close(self) -> None:
        """Untie and unload everything. Doing so again has no effect."""
        self.reports.close()
        self._collection.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
