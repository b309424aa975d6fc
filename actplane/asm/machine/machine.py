"""
A kernel just large enough to run programs in: memory, maps, tasks, a clock, and the programs.

    machine = Machine(maps=[MapSpec("hits", MapType.BPF_MAP_TYPE_ARRAY, 4, 8, 1)])
    program = machine.load(assembled)
    outcome = program.run(packet=b"...")
    print(outcome.value, machine.maps["hits"][0])
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any

from actplane.asm.cfg import Graph
from actplane.asm.disasm import format_insn
from actplane.asm.insn import EnumValue, Field, Insn, TypeSize
from actplane.asm.machine.arithmetic import byte_swap, sdiv, sign_extend, smod
from actplane.asm.machine.execution import MAX_STACK_BYTES, Execution, Outcome, Unit
from actplane.asm.machine.faults import Fault, LoadError
from actplane.asm.machine.linker import Linker
from actplane.asm.machine.maps import KEYED_MAPS, ArenaMap, Map
from actplane.asm.machine.memory import ADDRESS_MASK, LOADERS, SIGNED_LOADERS, STORERS, Memory, Region
from actplane.asm.machine.packets import POINTER_FIELDS, Packet
from actplane.asm.machine.registry import HELPERS, KFUNCS, Helper, HelperFunction
from actplane.asm.machine.storage import STORAGE_MAPS
from actplane.asm.machine.streams import STREAM_MAPS, RingBufferMap
from actplane.asm.machine.tasks import Task
from actplane.asm.machine.translate import Linkage, Source, translate
from actplane.asm.program import MapSpec, Program
from actplane.asm.uapi import MapType, ProgType

DEFAULT_LIMIT = 1_000_000
"""Instructions a run may take: what the verifier explores at most (BPF_COMPLEXITY_LIMIT_INSNS)."""

MAP_TYPES: dict[MapType, type[Map]] = {**KEYED_MAPS, **STREAM_MAPS, **STORAGE_MAPS}


class Generated:
    """One translation of a program: its source, its functions, and which instruction each starts at."""

    def __init__(self, program: LoadedProgram, file_name: str, *, is_single: bool) -> None:
        self.program = program
        self.source: Source = translate(program.graph, program.linkage, is_single=is_single)
        namespace = program.namespace()
        exec(compile(self.source.text, file_name, "exec"), namespace)
        self.functions: dict[int, Unit] = {start: namespace[f"u{start}"] for start in self.source.units}
        self.positions: dict[Unit, int] = {function: start for start, function in self.functions.items()}


class LoadedProgram:
    """A program in a machine, linked to its maps and helpers, ready to run any number of times."""

    def __init__(self, machine: Machine, program: Program, linkage: Linkage, graph: Graph, number: int) -> None:
        self.machine = machine
        self.program = program
        self.linkage = linkage
        self.graph = graph
        self._number = number

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def prog_type(self) -> ProgType:
        return self.program.prog_type

    @cached_property
    def fast(self) -> Generated:
        """The translation that runs whole blocks."""
        return self._generate(is_single=False)

    @cached_property
    def single(self) -> Generated:
        """The translation that runs single instructions."""
        return self._generate(is_single=True)

    def _generate(self, *, is_single: bool) -> Generated:
        file_name = f"<{self.name}#{self._number}{' by instruction' if is_single else ''}>"
        generated = Generated(self, file_name, is_single=is_single)
        self.machine.generated[file_name] = generated
        return generated

    def position_of(self, unit: Unit) -> int:
        """Return the index of the instruction that a generated function starts at."""
        position = self.fast.positions.get(unit)
        return self.single.positions[unit] if position is None else position

    def insn_text(self, index: int) -> str:
        """Return one instruction as the kernel writes it."""
        return format_insn(self.program.insns[index])

    def namespace(self) -> dict[str, Any]:
        """Return the names that generated functions use."""
        names: dict[str, Any] = {
            "mem": self.machine.memory.buffers,
            "machine": self.machine,
            "sdiv": sdiv,
            "smod": smod,
            "byte_swap": byte_swap,
            "sign_extend": sign_extend,
            "load_or_zero": self.machine.memory.load_or_zero,
        }
        for size in (1, 2, 4, 8):
            names[f"load{8 * size}"] = LOADERS[size]
            names[f"load_signed{8 * size}"] = SIGNED_LOADERS[size]
            names[f"store{8 * size}"] = STORERS[size]
        names.update({f"h{index}": helper.function for index, helper in self.linkage.helpers.items()})
        return names

    def start(
        self,
        context: bytes | int | None = None,
        *,
        packet: bytes | None = None,
        arguments: Sequence[int] = (),
        limit: int = DEFAULT_LIMIT,
    ) -> Execution:
        """
        Begin a run and return it, standing at the first instruction.

        `context` becomes r1: bytes are mapped for this run, an int is an address (or any number).
        Without it, `arguments` are mapped as an array of u64, which is the context of tracing and LSM
        programs; with `packet`, the context is that of the program's kind, pointing to the packet. A run
        that is not taken to its end is closed, or it keeps its memory: `with program.start() as run`.
        """
        memory = self.machine.memory
        sent = Packet(memory, packet) if packet is not None else None
        if context is None:
            if arguments:
                context = struct.pack(f"<{len(arguments)}Q", *(value & ADDRESS_MASK for value in arguments))
            else:
                context = sent.default_context(self.prog_type) if sent else b""
        if isinstance(context, int):
            first, region = context & ADDRESS_MASK, None
        else:
            region = memory.add("context", context)
            first = region.address
        return Execution(self, limit, first, context=region, packet=sent, function_arguments=tuple(arguments))

    def run(
        self,
        context: bytes | int | None = None,
        *,
        packet: bytes | None = None,
        arguments: Sequence[int] = (),
        limit: int = DEFAULT_LIMIT,
    ) -> Outcome:
        """
        Run to the end.

        Raises: Fault where the program does what it may not; InstructionLimit.
        """
        with self.start(context, packet=packet, arguments=arguments, limit=limit) as execution:
            execution.run()
        return execution.outcome()

    def __repr__(self) -> str:
        return f"<{self.prog_type.name} {self.name}: {len(self.program.insns)} instructions>"


class Machine:
    """
    Everything programs share: memory, maps by name, the current task and CPU, a clock, helpers.

    Set `task`, `cpu`, `clock_ns` between runs to what the next run shall see. `helpers` and `kfuncs`
    may be given or registered later to add to the built-in ones or to replace them.

    The kernel gives 0 where a tracing or LSM program reads through a kernel pointer that leads nowhere.
    With `has_zero_reads` so does the machine, for all loads: the verifier sees to it that no others
    fail. Without it every bad load is a fault, which is better for finding mistakes.

    >>> from actplane.asm.insn import Insn
    >>> Machine().load([Insn(0xB7, 0, imm=7), Insn(0x95)]).run().value
    7
    """

    def __init__(
        self,
        maps: Iterable[MapSpec] = (),
        *,
        cpus: int = 1,
        seed: int = 0,
        clock_ns: int = 1_000_000_000,
        helpers: Mapping[int, HelperFunction] | None = None,
        kfuncs: Mapping[str, HelperFunction] | None = None,
        stack_fill: int = 0,
        has_zero_reads: bool = False,
    ) -> None:
        self.memory = Memory()
        self.maps: dict[str, Map] = {}
        self.cpus = cpus
        self.random = random.Random(seed)
        self.clock_ns = clock_ns
        """What the clock shows next; each reading moves it by `clock_step_ns`."""
        self.clock_step_ns = 0
        self.printed: list[str] = []
        """What bpf_trace_printk wrote, one string a call."""
        self.redirects: list[int] = []
        """The interfaces that bpf_redirect named."""
        self.paths: dict[int, bytes] = {}
        """Address of a struct path to what bpf_d_path gives for it."""
        self.variables: dict[int, int] = {}
        """BTF id of a kernel variable to its address, for ld_btf_id."""
        self.arena_user_base = 0x1_0000_0000
        """The upper half of what user space sees as addresses in an arena."""
        self.stack_content = bytes([stack_fill]) * MAX_STACK_BYTES
        """What a stack holds at first. A program whose result depends on it reads what it never wrote."""
        self.has_zero_reads = has_zero_reads
        self.generated: dict[str, Generated] = {}
        self.current_run: Execution | None = None
        self._cpu = 0
        self._helpers = dict(HELPERS)
        self._kfuncs = dict(KFUNCS)
        self._maps_by_address: dict[int, Map] = {}
        self._functions: dict[int, tuple[LoadedProgram, int]] = {}
        self._function_regions: dict[tuple[int, int], Region] = {}
        self._free_stacks: dict[int, list[Region]] = {}
        self._tasks: dict[int, Task] = {}
        self._numbers = count(1)
        self._task = self.add_task(Task())
        for number, function in (helpers or {}).items():
            self.register_helper(number, function)
        for name, function in (kfuncs or {}).items():
            self.register_kfunc(name, function)
        for spec in maps:
            self.add_map(spec)

    # What a person sets up.

    def add_map(self, spec: MapSpec) -> Map:
        """Create a map. Raises: LoadError for a kind of map the machine does not have, or a name it has."""
        if spec.name in self.maps:
            raise LoadError(f"map {spec.name}: the machine has one of this name")
        kind = MAP_TYPES.get(spec.type)
        if kind is None:
            raise LoadError(f"map {spec.name}: {spec.type.name} is not simulated")
        new = kind(spec, self.memory, self.cpus)
        new.cpu = self._cpu
        self.maps[spec.name] = new
        self._maps_by_address[new.address] = new
        return new

    def register_helper(self, number: int, function: HelperFunction) -> None:
        """Add or replace a helper; see `registry` for what one looks like."""
        self._helpers[int(number)] = Helper.of(function)

    def register_kfunc(self, name: str, function: HelperFunction) -> None:
        """Add or replace a kfunc."""
        self._kfuncs[name] = Helper.of(function)

    def add_task(self, task: Task) -> Task:
        """Make a task known, with an address of its own if it has none."""
        if not task.address:
            task.address = self.memory.add(f"task {task.pid}", 0).address
        self._tasks[task.address] = task
        return task

    @property
    def task(self) -> Task:
        """The task that runs now."""
        return self._task

    @task.setter
    def task(self, task: Task) -> None:
        self._task = self.add_task(task)

    @property
    def cpu(self) -> int:
        """The CPU that programs run on now."""
        return self._cpu

    @cpu.setter
    def cpu(self, number: int) -> None:
        if not 0 <= number < self.cpus:
            raise ValueError(f"CPU {number}: expected 0 to {self.cpus - 1}")
        self._cpu = number
        for each in self.maps.values():
            each.cpu = number

    def load(
        self,
        program: Program | Iterable[Insn],
        *,
        map_numbers: Mapping[int, str] | None = None,
        kfunc_numbers: Mapping[int, str] | None = None,
    ) -> LoadedProgram:
        """
        Link a program to the machine's maps and helpers.

        Maps and kfuncs are found by the names in symbols; where an instruction holds only a number
        (a map's descriptor, a kfunc's BTF id), the two mappings say what it stands for.

        Raises: LoadError for what the machine does not have; FlowError and EncodeError for code that is none.
        """
        if not isinstance(program, Program):
            program = Program("prog", ProgType.BPF_PROG_TYPE_UNSPEC, tuple(program))
        for index, insn in enumerate(program.insns):
            if isinstance(insn.symbol, Field | EnumValue | TypeSize):
                raise LoadError(f"{program.name}: insn {index}: {insn.symbol} is not resolved: relocate() does it")
        linker = Linker(self, program, map_numbers or {}, kfunc_numbers or {})
        fields = POINTER_FIELDS.get(program.prog_type, {})
        jumps = linker.jumps()
        linkage = Linkage(linker.constants(), linker.helpers(), fields, jumps, self.has_zero_reads)
        loaded = LoadedProgram(self, program, linkage, linker.graph, next(self._numbers))
        for entry, address in linker.functions.items():
            self._functions[address] = loaded, entry
        return loaded

    # What helpers and executions ask.

    @property
    def running(self) -> Execution:
        """The run that a helper is called from."""
        if self.current_run is None:
            raise Fault("no program runs")
        return self.current_run

    def map_at(self, address: int) -> Map:
        """Return the map that a handle names. Raises: Fault if it names none."""
        found = self._maps_by_address.get(address)
        if found is None:
            raise Fault(f"{self.memory.name_of(address)} is no map")
        return found

    def ring_of(self, record: int) -> RingBufferMap:
        """Return the ring buffer that a reserved record belongs to. Raises: Fault if it is none."""
        for each in self.maps.values():
            if isinstance(each, RingBufferMap) and each.is_reserved(record):
                return each
        raise Fault(f"{self.memory.name_of(record)} is no reserved record of a ring buffer")

    def task_at(self, address: int) -> Task:
        """Return the task at an address. Raises: Fault if there is none."""
        found = self._tasks.get(address)
        if found is None:
            raise Fault(f"{self.memory.name_of(address)} is no task")
        return found

    def function_at(self, address: int) -> tuple[LoadedProgram, int]:
        """Return the program and first instruction of a function by its address. Raises: Fault if it is none."""
        found = self._functions.get(address)
        if found is None:
            raise Fault(f"{self.memory.name_of(address)} is no function")
        return found

    def read_clock(self) -> int:
        """Return the time in nanoseconds and let the clock go on."""
        now = self.clock_ns
        self.clock_ns += self.clock_step_ns
        return now

    def take_stack(self, depth: int) -> Region:
        """Return a stack for a frame at a depth, with what stacks hold at first; it is the frame's until given back."""
        free = self._free_stacks.setdefault(depth, [])
        stack = (
            free.pop() if free else self.memory.add(f"stack of frame {depth}" if depth else "stack", MAX_STACK_BYTES)
        )
        memoryview(stack.buffer)[:] = self.stack_content
        return stack

    def give_stack(self, depth: int, stack: Region) -> None:
        """Take back the stack of a frame at a depth."""
        self._free_stacks[depth].append(stack)

    def helper(self, number: int) -> Helper | None:
        """Return a helper by number, None if there is none."""
        return self._helpers.get(number)

    def kfunc(self, name: str) -> Helper | None:
        """Return a kfunc by name, None if there is none."""
        return self._kfuncs.get(name)

    def cast_to_kernel(self, pointer: int) -> int:
        """addr_space_cast from the arena: what user space calls an address is one of the arena's region."""
        arena = next((each for each in self.maps.values() if isinstance(each, ArenaMap)), None)
        if arena is None:
            raise Fault("addr_space_cast needs an arena: the machine has none")
        return arena.region.address | pointer & 0xFFFFFFFF

    def cast_to_user(self, pointer: int) -> int:
        """addr_space_cast to the arena; null stays null."""
        low = pointer & 0xFFFFFFFF
        return self.arena_user_base | low if low else 0
