"""
One run of a program: its registers, its frames, and what moves control between functions.

The generated functions of `translate` do everything inside a function; what calls, returns, tail
calls and callbacks do is here. The same state serves whole blocks at a time and single
instructions, so a run can be stepped, continued and stepped again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from actplane.asm.isa import Kind
from actplane.asm.machine.arithmetic import to_signed
from actplane.asm.machine.faults import Fault, InstructionLimit
from actplane.asm.machine.maps import ProgArrayMap
from actplane.asm.machine.memory import ADDRESS_MASK, Region
from actplane.asm.machine.packets import Packet
from actplane.asm.machine.registry import Callback
from actplane.asm.machine.translate import COUNT, LIMIT

if TYPE_CHECKING:
    from actplane.asm.machine.machine import LoadedProgram, Machine

MAX_STACK_BYTES = 512
MAX_CALL_FRAMES = 8
MAX_TAIL_CALLS = 33
MAX_MAY_GOTO = 8 << 20
"""How often a may_goto of one frame goes on before it jumps (BPF_MAX_LOOPS)."""

SKF_NET_OFF, SKF_LL_OFF = -0x100000, -0x200000
"""Negative offsets of ld_abs: relative to the network and to the link layer header (uapi filter.h)."""

Unit = Callable[[list[Any], "Execution"], Any]

_MEMORY_ERRORS = (KeyError, IndexError, struct.error, TypeError)


@dataclass(slots=True)
class Frame:
    """One function that runs: where it returns to, and what of the caller comes back then."""

    program: LoadedProgram
    entry: int
    return_to: int | None
    saved: list[int | None]
    stack: Region
    may_goto_left: int = MAX_MAY_GOTO


@dataclass(slots=True)
class HelperFrame:
    """A helper that calls back: it goes on when its callback returns."""

    program: LoadedProgram
    generator: Generator[Callback, int, int]
    return_to: int


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction that has run. `before` and `after` are r0 to r10; None is undefined."""

    program: LoadedProgram
    insn_index: int
    before: tuple[int | None, ...]
    after: tuple[int | None, ...]

    @property
    def changed(self) -> tuple[int, ...]:
        """The numbers of the registers whose value is another now."""
        return tuple(number for number in range(11) if self.before[number] != self.after[number])


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What a run left behind.

    Units:  `value` is r0, unsigned 64 bits.
    """

    value: int
    executed: int
    """How many instructions ran."""
    context: bytes
    """The context as the program left it."""
    packet: bytes | None
    """The packet as the program left it."""
    return_value: int
    """What bpf_set_retval set, 0 without it."""

    @property
    def signed(self) -> int:
        """r0 as a signed 32-bit number: how the kernel reads the result of most hooks."""
        return to_signed(self.value, 32)


class Execution:
    """
    A run of a program, made by `LoadedProgram.start`.

    `run` goes to the end or to the next breakpoint, `step` runs one instruction, `trace` yields a
    `Step` for each. Between calls everything may be looked at, and registers may be changed.
    """

    def __init__(
        self,
        program: LoadedProgram,
        limit: int,
        first_argument: int,
        *,
        context: Region | None = None,
        packet: Packet | None = None,
        function_arguments: tuple[int, ...] = (),
    ) -> None:
        self.machine: Machine = program.machine
        self.program = program
        self.registers: list[Any] = [None] * 11 + [0, limit]
        self.packet = packet
        self.context_address = first_argument
        self.function_arguments = function_arguments
        self.function_result = 0
        self.attach_cookie = 0
        self.return_value = 0
        self.tail_calls = 0
        self.breakpoints: set[int] = set()
        """Indexes of instructions of the program that was started."""
        self.frames: list[Frame | HelperFrame] = []
        self._context = context
        self._is_single = False
        self._has_ended = self._is_closed = False
        self._next: Unit | None = self._enter(program, 0, None, (first_argument,))

    # What a person asks.

    @property
    def is_finished(self) -> bool:
        return self._next is None

    @property
    def executed(self) -> int:
        """How many instructions have run."""
        return int(self.registers[COUNT])

    @property
    def frame(self) -> Frame:
        """The function that runs now."""
        return next(frame for frame in reversed(self.frames) if isinstance(frame, Frame))

    @property
    def position(self) -> tuple[LoadedProgram, int] | None:
        """The program and the index of the instruction that runs next, None at the end."""
        if self._next is None:
            return None
        program = self.frame.program
        return program, program.position_of(self._next)

    def outcome(self) -> Outcome:
        """Return what a finished run left behind. Raises: ValueError if it has not ended."""
        if not self._has_ended:
            raise ValueError(f"{self.program.name} has not ended")
        return Outcome(
            value=self.registers[0],
            executed=self.executed,
            context=b"" if self._context is None else bytes(self._context.buffer),
            packet=None if self.packet is None else self.packet.content,
            return_value=self.return_value,
        )

    def step(self) -> Step:
        """
        Run one instruction.

        Raises: Fault if it cannot be run; IndexError if the program has ended.
        """
        place = self.position
        if place is None or self._next is None:
            raise IndexError("the program has ended")
        self._switch(place, is_single=True)
        before = tuple(self.registers[:11])
        self._advance(1)
        return Step(place[0], place[1], before, tuple(self.registers[:11]))

    def trace(self) -> Iterator[Step]:
        """Run to the end and yield every instruction as it has run."""
        while not self.is_finished:
            yield self.step()

    def run(self) -> bool:
        """
        Run to the end (True) or to the next breakpoint (False).

        Raises: Fault, with the place; InstructionLimit if there are no instructions left, which is
                judged once for each block.
        """
        if self.is_finished:
            return True
        if self.breakpoints:
            return self._run_to_breakpoint(self.breakpoints)
        place = self.position
        if place is not None and self._is_single:
            # Blocks can only be entered at their start.
            while place is not None and place[1] not in place[0].fast.positions.values():
                self.step()
                place = self.position
            if place is None:
                return True
            self._switch(place, is_single=False)
        self._advance(None)
        return True

    def _run_to_breakpoint(self, breakpoints: Collection[int]) -> bool:
        while not self.is_finished:
            self.step()
            place = self.position
            if place is not None and place[0] is self.program and place[1] in breakpoints:
                return False
        return True

    def _switch(self, place: tuple[LoadedProgram, int], *, is_single: bool) -> None:
        """Go on with the same state in whole blocks or in single instructions."""
        if self._is_single != is_single:
            self._is_single = is_single
            self._next = self._unit(*place)

    def _unit(self, program: LoadedProgram, insn_index: int) -> Unit:
        return (program.single if self._is_single else program.fast).functions[insn_index]

    def _advance(self, steps: int | None) -> None:
        """Run units until the end, or one of them."""
        unit, registers = self._next, self.registers
        previous, self.machine.current_run = self.machine.current_run, self
        try:
            if steps is None:
                while unit is not None:
                    unit = unit(registers, self)
            elif unit is not None:
                unit = unit(registers, self)
            self._next = unit
        except Fault as fault:
            raise self._place(fault, fault.__traceback__) from None
        except _MEMORY_ERRORS as error:
            raise self._memory_fault(error) from None
        finally:
            self.machine.current_run = previous
        if unit is None:
            self._has_ended = True
            self.close()

    def __enter__(self) -> Execution:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the memory of the run: what its end does, or who gives it up before."""
        if self._is_closed:
            return
        self._is_closed = True
        self._next = None
        memory = self.machine.memory
        for depth, frame in enumerate(frame for frame in self.frames if isinstance(frame, Frame)):
            self.machine.give_stack(depth, frame.stack)
        self.frames.clear()
        if self._context is not None:
            memory.remove(self._context)
        if self.packet is not None:
            memory.remove(self.packet.region)
        memory.reclaim()

    # What generated functions call.

    def stop(self) -> None:
        raise InstructionLimit(
            f"more than {self.registers[LIMIT]} instructions", hint="give the run a higher limit, or end the loop"
        )

    def undefined(self, register: int) -> None:
        raise Fault(f"r{register} is read before it has a value")

    def may_go_on(self) -> bool:
        """may_goto: whether to go on, True MAX_MAY_GOTO times in a frame."""
        frame = self.frame
        frame.may_goto_left -= 1
        return frame.may_goto_left >= 0

    def load_context(self, address: int) -> int:
        """A load of 4 bytes which is that of a packet pointer if it is one from the context."""
        field = self.program.linkage.pointer_fields.get(address - self.context_address)
        if field is None or self.packet is None:
            return self.machine.memory.read_int(address, 4)
        return int(getattr(self.packet, field))

    def load_packet(self, offset: int, size: int) -> int | None:
        """ld_abs and ld_ind: bytes of the packet as a big-endian number, None if it is too short."""
        if self.packet is None:
            raise Fault("ld_abs needs a packet: the run was given none", hint="run(..., packet=b'...')")
        if offset < 0:
            offset = offset - SKF_LL_OFF if offset < SKF_NET_OFF else offset - SKF_NET_OFF + self.packet.network_offset
        data = self.packet.load(offset, size)
        return None if data is None else int.from_bytes(data, "big")

    def jump(self, insn_index: int, address: int) -> Unit:
        """gotox: go on at an address that the jump tables of the function hold."""
        program = self.frame.program
        target = program.linkage.jumps[insn_index].get(address)
        if target is None:
            raise Fault(f"{self.machine.memory.name_of(address)} is in no jump table of this function")
        return self._unit(program, target)

    def enter(self, entry: int, return_to: int) -> Unit:
        """Call a function of the running program."""
        return self._enter(self.frame.program, entry, return_to, tuple(self.registers[1:6]))

    def enter_address(self, address: int, return_to: int) -> Unit:
        """callx: call the function whose address a register holds."""
        program, entry = self.machine.function_at(address)
        return self._enter(program, entry, return_to, tuple(self.registers[1:6]))

    def enter_helper(self, generator: Generator[Callback, int, int], return_to: int) -> Unit:
        """Call a helper that may call back."""
        self.frames.append(HelperFrame(self.frame.program, generator, return_to))
        return self._resume(None)

    def leave(self) -> Unit | None:
        """exit: return to the caller, into the helper that called back, or end."""
        frame = self.frames.pop()
        assert isinstance(frame, Frame)
        registers = self.registers
        is_asked_for = not self.frames or isinstance(self.frames[-1], HelperFrame)
        if is_asked_for and registers[0] is None:
            self.frames.append(frame)
            raise Fault("r0 is read before it has a value")
        self.machine.give_stack(self._depth, frame.stack)
        if not self.frames:
            return None
        registers[1:6] = (None,) * 5
        registers[6:11] = frame.saved
        if isinstance(self.frames[-1], HelperFrame):
            return self._resume(registers[0])
        assert frame.return_to is not None
        return self._unit(self.frame.program, frame.return_to)

    def tail_call(self) -> Unit | None:
        """bpf_tail_call: become another program, or return None to go on if there is none."""
        context, array, index = self.registers[1:4]
        programs = self.machine.map_at(array)
        if not isinstance(programs, ProgArrayMap):
            raise Fault(f"tail call through {programs.spec.type.name} {programs.name}: expected a prog array")
        self.registers[0:6] = (None,) * 6
        target = programs.programs.get(index & 0xFFFFFFFF)
        if target is None or self.tail_calls >= MAX_TAIL_CALLS:
            return None
        self.tail_calls += 1
        frame = self.frame
        frame.program, frame.entry = target, 0
        frame.may_goto_left = MAX_MAY_GOTO
        memoryview(frame.stack.buffer)[:] = self.machine.stack_content
        self.registers[1] = context
        self.registers[6:10] = (None,) * 4
        return self._unit(target, 0)

    def _enter(
        self, program: LoadedProgram, entry: int, return_to: int | None, arguments: tuple[int | None, ...]
    ) -> Unit:
        depth = self._depth
        if depth >= MAX_CALL_FRAMES:
            raise Fault(f"the call stack of {MAX_CALL_FRAMES} frames is too deep")
        stack = self.machine.take_stack(depth)
        registers = self.registers
        self.frames.append(Frame(program, entry, return_to, registers[6:11], stack))
        registers[0:11] = (None,) * 11
        registers[1 : 1 + len(arguments)] = arguments
        registers[10] = stack.address + MAX_STACK_BYTES
        return self._unit(program, entry)

    @property
    def _depth(self) -> int:
        return sum(isinstance(frame, Frame) for frame in self.frames)

    def _resume(self, result: int | None) -> Unit:
        """Go on in the helper on top of the frames with the result of its callback."""
        helper = self.frames[-1]
        assert isinstance(helper, HelperFrame)
        try:
            callback = helper.generator.send(result)  # type: ignore[arg-type]
        except StopIteration as end:
            self.frames.pop()
            self.registers[0] = end.value & ADDRESS_MASK
            self.registers[1:6] = (None,) * 5
            return self._unit(helper.program, helper.return_to)
        program, entry = self.machine.function_at(callback.function)
        return self._enter(program, entry, None, callback.arguments)

    # Faults.

    def _place(self, fault: Fault, traceback: TracebackType | None) -> Fault:
        """Add to a fault which instruction it was."""
        found = self._insn_of(traceback)
        if found is None:
            return fault
        program, index, _ = found
        self._next = self._stay(program, index)
        return fault.at(program.name, index, program.insn_text(index), program.program.insns[index].span)

    def _memory_fault(self, error: Exception) -> Exception:
        """Turn the exception that a generated load or store raised into the fault that it means."""
        found = self._insn_of(error.__traceback__)
        if found is None or not found[2]:
            return error
        program, index, _ = found
        insn, form = program.program.insns[index], program.graph.forms[index]
        if form.size is None:
            return error
        is_load = form.kind in (Kind.LDX, Kind.LDXSX, Kind.LOAD_ACQUIRE)
        base = self.registers[insn.src if is_load else insn.dst]
        fault = self.machine.memory.fault((base + insn.off) & ADDRESS_MASK, form.size.value, is_write=not is_load)
        self._next = self._stay(program, index)
        return fault.at(program.name, index, program.insn_text(index), insn.span)

    def _stay(self, program: LoadedProgram, index: int) -> Unit:
        """After a fault the run stands at the instruction that faulted."""
        self._is_single = True
        return program.single.functions[index]

    def _insn_of(self, traceback: TracebackType | None) -> tuple[LoadedProgram, int, bool] | None:
        """Return the program and instruction that raised, and whether the generated code did so itself."""
        found = None
        while traceback is not None:
            generated = self.machine.generated.get(traceback.tb_frame.f_code.co_filename)
            if generated is not None:
                index = generated.source.insn_of_line[traceback.tb_lineno - 1]
                found = generated.program, index, traceback.tb_next is None
            traceback = traceback.tb_next
        return found
