"""The interpreter: the reference meaning of every instruction, and enough of a kernel to run programs in."""

from actplane.asm.machine import helpers_dynptr, helpers_kernel, helpers_maps, helpers_packet
from actplane.asm.machine.execution import Execution, Outcome, Step
from actplane.asm.machine.faults import Fault, InstructionLimit, LoadError
from actplane.asm.machine.machine import DEFAULT_LIMIT, LoadedProgram, Machine
from actplane.asm.machine.maps import JumpTableMap, LpmTrieMap, Map, MapOfMaps, PerCpuMap, ProgArrayMap
from actplane.asm.machine.memory import Memory, Region
from actplane.asm.machine.registry import Callback, CallbackHelper
from actplane.asm.machine.storage import LocalStorageMap
from actplane.asm.machine.streams import PerfEventArrayMap, QueueMap, RingBufferMap
from actplane.asm.machine.tasks import Task

_BUILT_IN = (helpers_maps, helpers_kernel, helpers_packet, helpers_dynptr)
"""Importing these modules is what fills the tables of `registry`."""

__all__ = [
    "DEFAULT_LIMIT",
    "Callback",
    "CallbackHelper",
    "Execution",
    "Fault",
    "InstructionLimit",
    "JumpTableMap",
    "LoadError",
    "LoadedProgram",
    "LocalStorageMap",
    "LpmTrieMap",
    "Machine",
    "Map",
    "MapOfMaps",
    "Memory",
    "Outcome",
    "PerCpuMap",
    "PerfEventArrayMap",
    "ProgArrayMap",
    "QueueMap",
    "Region",
    "RingBufferMap",
    "Step",
    "Task",
]
