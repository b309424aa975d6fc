"""
A compiled policy in the kernel: its maps, its programs, the hooks they are tied to.

On every hook sits a dispatcher that knows no policy; it finds the task's mark and tail-calls the
policy's program by its slot. An empty slot denies, so every slot is filled before anything is attached.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import TracebackType

from actplane.asm.program import MapSpec, Object, Program
from actplane.codegen import layout
from actplane.codegen.compile import Compiled, Hook
from actplane.errors import InternalError
from actplane.loader.btf import Btf, TypeNotFound
from actplane.loader.collection import Collection
from actplane.loader.programs import hook_id
from actplane.loader.ringbuf import RingBuffer
from actplane.runtime.verdicts import Verdicts

SLOT = 0
"""The slot of a session's programs: sessions do not share dispatchers yet."""

_U32 = struct.Struct("<I")
_PIDFD = struct.Struct("<i")
_U64 = struct.Struct("<Q")

Judge = Callable[[Program, Mapping[str, MapSpec]], None]


def mirror(btf: Btf) -> Judge:
    """
    Return a judge that lets a program pass only if the mirror accepts it, now or before.

    The judge raises VerifyError.
    """
    verdicts = Verdicts()

    def judge(program: Program, maps: Mapping[str, MapSpec]) -> None:
        if verdicts.is_accepted(program, maps):
            return
        from actplane.verifier import verify

        verify(program, maps, btf).require()
        verdicts.accept(program, maps)

    return judge


def available_hooks(compiled: Compiled, btf: Btf) -> tuple[Hook, ...]:
    """Return the hooks of a policy without the optional ones that this kernel lacks."""
    programs = {program.name: program for program in compiled.object.programs}

    def is_there(hook: Hook) -> bool:
        try:
            hook_id(programs[hook.dispatcher], btf)
        except TypeNotFound:
            return False
        return True

    return tuple(hook for hook in compiled.hooks if not hook.is_optional or is_there(hook))


def _needed(compiled: Compiled, hooks: tuple[Hook, ...]) -> Object:
    """Return the object without what only left-out hooks need."""
    left_out = [hook for hook in compiled.hooks if hook not in hooks]
    names = {name for hook in left_out for name in (hook.dispatcher, hook.program, hook.prog_array)}
    maps = tuple(spec for spec in compiled.object.maps if spec.name not in names)
    return Object(maps, tuple(program for program in compiled.object.programs if program.name not in names))


class Engine:
    """Loaded, then attached; closes with its `with` block, links first."""

    def __init__(self, hooks: tuple[Hook, ...], seed: int | None, collection: Collection) -> None:
        self._hooks = hooks
        self._seed = seed
        self._collection = collection
        self.reports = RingBuffer(collection.maps["events"])

    @classmethod
    def load(cls, compiled: Compiled, btf: Btf, judge: Judge | None) -> Engine:
        """
        Judge and load everything, and put the policy's programs into their slots.

        Raises: VerifyError if the mirror refuses a program, RejectedByKernel if the kernel does, KernelError.
        Since:  5.11 (task storage).
        """
        hooks = available_hooks(compiled, btf)
        collection = Collection.load(_needed(compiled, hooks), btf, judge=judge)
        try:
            for hook in hooks:
                if hook.prog_array is not None and hook.program is not None:
                    target = collection.programs[hook.program]
                    collection.maps[hook.prog_array].update(_U32.pack(SLOT), _U32.pack(target.fd))
            engine = cls(hooks, compiled.policy.seed, collection)
        except BaseException:
            collection.close()
            raise
        return engine

    def attach(self, cgroup_fd: int) -> None:
        """
        Tie every dispatcher to its hook; those of control groups to the session's own.

        From here on the kernel asks them. Whoever is not marked is not judged.
        Raises: KernelError.
        """
        for hook in self._hooks:
            self._collection.attach(hook.dispatcher, cgroup_fd if hook.kind == "cgroup" else None)

    def mark(self, pidfd: int) -> None:
        """
        Make a process the first of the session: it and all it starts are judged from now on.

        Raises: InternalError if the policy has no label for it, KernelError.
        """
        if self._seed is None:
            raise InternalError("a session needs a policy that names COMMAND or AGENT")
        state = layout.pack_state(SLOT, frozenset({self._seed}))
        self._collection.maps["tasks"].update(_PIDFD.pack(pidfd), state)

    def is_marked(self, pidfd: int) -> bool:
        """Say whether a process is one of the session. Raises KernelError."""
        return self._collection.maps["tasks"].lookup(_PIDFD.pack(pidfd)) is not None

    def dropped_events(self) -> int:
        """Return how many events found no room in the ring buffer. Raises KernelError."""
        return self._counted(layout.SESSION_DROPS)

    def unmarked_tasks(self) -> int:
        """Return how many tasks the kernel made and had no memory to mark. Raises KernelError."""
        return self._counted(layout.SESSION_UNMARKED)

    def _counted(self, counter: int) -> int:
        value = self._collection.maps["session"].lookup(_U32.pack(0))
        if value is None:
            raise InternalError("the session map has no element")
        count: int = _U64.unpack_from(value, counter)[0]
        return count

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
