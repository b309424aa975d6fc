"""
Single stepping in a terminal: a line of commands in, the state of the program out.

The same session works over a pipe: without a terminal nothing is coloured or prompted, and changed
values carry a star.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from actplane.asm.disasm import format_insn
from actplane.asm.machine import Execution, Fault, LoadedProgram, Machine
from actplane.asm.machine.arithmetic import to_signed
from actplane.asm.program import Object, Program
from actplane.cli.exits import Exit

CHANGED, FAINT, MARKED, PLAIN = "\x1b[1;33m", "\x1b[2m", "\x1b[1;36m", "\x1b[0m"
WORD = 8
CONTEXT_LINES = 2
MOST_BYTES = 4096
SMALL = 1 << 20
"""Numbers below are shown in decimal; larger ones mean more in hexadecimal."""


class CommandProblem(Exception):
    """What the person typed makes no sense; the message says what was expected."""


class StepSession:
    """One program, run step by step; `interact` asks what to do, `trace` shows every step."""

    def __init__(
        self,
        found: Object,
        program: Program,
        *,
        context: bytes | None = None,
        packet: bytes | None = None,
        arguments: Sequence[int] = (),
        limit: int,
        has_zero_reads: bool = False,
        is_colored: bool,
        out: TextIO,
    ) -> None:
        self._found = found
        self._program = program
        self._start_with = {"context": context, "packet": packet, "arguments": tuple(arguments), "limit": limit}
        self._has_zero_reads = has_zero_reads
        self._is_colored = is_colored
        self._out = out
        self._breakpoints: set[int] = set()
        self._restart()
        self._before: tuple[int | None, ...] = tuple(self._execution.registers[:11])
        self._stack_before = self._stack_words()

    def _restart(self) -> None:
        """Begin again in a fresh machine: runs are deterministic, so this is also how to go back."""
        self._machine = Machine(self._found.maps, has_zero_reads=self._has_zero_reads)
        loaded = self._machine.load(self._program)
        self._execution: Execution = loaded.start(**self._start_with)  # type: ignore[arg-type]
        self._steps = 0
        self._touched: set[tuple[str, int]] = set()
        self._fault: Fault | None = None

    # The three ways to run.

    def interact(self, commands: TextIO) -> int:
        """Read commands until they end or one quits. Returns the exit status."""
        self._show()
        last = "step"
        while True:
            line = self._ask(commands)
            if line is None:
                return self._status()
            last = line.strip() or last
            name, *words = last.split()
            if name in ("q", "quit"):
                return self._status()
            try:
                self._command(name)(words)
            except CommandProblem as problem:
                self._print(f"{problem}")

    def trace(self) -> int:
        """Show every step to the end. Returns the exit status."""
        self._show()
        while self._can_go_on():
            self._step()
            self._show()
        return self._status()

    def trace_json(self) -> int:
        """Print one JSON object for each step and one for the end. Returns the exit status."""
        while self._can_go_on():
            place = self._execution.position
            assert place is not None
            before = tuple(self._execution.registers[:11])
            self._step()
            after = self._execution.registers
            changed = {f"r{n}": after[n] for n in range(11) if after[n] != before[n]}
            facts: dict[str, object] = {"step": self._steps, "program": place[0].name, "insn": place[1]}
            facts |= {"text": place[0].insn_text(place[1]), "changed": changed}
            if self._fault is None:
                self._print(json.dumps(facts))
        end: dict[str, object] = {"steps": self._steps}
        if self._fault is not None:
            end |= {"fault": self._fault.reason, "insn": self._fault.insn_index}
        else:
            end |= {"result": self._execution.outcome().value}
        self._print(json.dumps(end))
        return self._status()

    def _status(self) -> int:
        return Exit.FAILED if self._fault is not None else Exit.OK

    def _ask(self, commands: TextIO) -> str | None:
        if commands.isatty():
            if commands is sys.stdin:
                try:
                    return input("(step) ")
                except EOFError:
                    self._print("")
                    return None
            self._out.write("(step) ")
        self._out.flush()
        return commands.readline() or None

    # What commands do.

    def _command(self, name: str) -> Callable[[list[str]], None]:
        found = [command for command in COMMANDS if name in command[0]]
        if not found:
            raise CommandProblem(f"unknown command {name!r}: `help` lists them")
        command: Callable[[list[str]], None] = getattr(self, found[0][1])
        return command

    def _can_go_on(self) -> bool:
        return not self._execution.is_finished and self._fault is None

    def _step(self) -> None:
        """Run one instruction, and note the words of the stack that it changes."""
        before = self._stack_content()
        try:
            self._execution.step()
            self._steps += 1
        except Fault as fault:
            self._fault = fault
        # Most steps leave the stack as it is, and a run may have a million of them.
        if self._stack_content() != before:
            old, now = _words(*before), self._stack_words()
            self._touched.update(at for at, word in now.items() if word != old.get(at, word))

    def _go(self, until: Callable[[], bool]) -> None:
        """Step until a condition holds, a breakpoint is met, or there is nothing left to run."""
        if not self._can_go_on():
            raise CommandProblem("the program has ended: `back` or `restart` go on")
        while self._can_go_on():
            self._step()
            place = self._execution.position
            if until() or (place is not None and place[1] in self._breakpoints):
                break
        self._show()

    def do_step(self, words: list[str]) -> None:
        left = _number(words, 0, default=1)
        if left < 1:
            raise CommandProblem(f"got {left}, expected 1 step or more")

        def is_done() -> bool:
            nonlocal left
            left -= 1
            return left <= 0

        self._go(is_done)

    def do_next(self, words: list[str]) -> None:
        depth = len(self._execution.frames)
        self._go(lambda: len(self._execution.frames) <= depth)

    def do_finish(self, words: list[str]) -> None:
        depth = len(self._execution.frames)
        self._go(lambda: len(self._execution.frames) < depth)

    def do_continue(self, words: list[str]) -> None:
        self._go(lambda: False)

    def do_back(self, words: list[str]) -> None:
        goal = max(self._steps - _number(words, 0, default=1), 0)
        self._restart()
        while self._steps < goal:
            self._step()
        self._show()

    def do_restart(self, words: list[str]) -> None:
        self._restart()
        self._show()

    def do_break(self, words: list[str]) -> None:
        index = _number(words, 0)
        if not 0 <= index < len(self._program.insns):
            raise CommandProblem(f"no instruction {index}: expected 0 to {len(self._program.insns) - 1}")
        self._breakpoints ^= {index}
        state = "set" if index in self._breakpoints else "removed"
        self._print(f"breakpoint {state} at {index}: {format_insn(self._program.insns[index])}")

    def do_registers(self, words: list[str]) -> None:
        for number in range(11):
            self._print(self._register_line(number))

    def do_list(self, words: list[str]) -> None:
        place = self._execution.position
        for index, insn in enumerate(self._program.insns):
            here = place is not None and place[1] == index
            mark = ">" if here else "*" if index in self._breakpoints else " "
            self._print(self._paint(f" {mark} {index:>4}: {format_insn(insn)}", MARKED if here else ""))

    def do_memory(self, words: list[str]) -> None:
        address = self._address(words)
        size = _number(words, 1, default=64)
        if not 0 < size <= MOST_BYTES:
            raise CommandProblem(f"bad size: got {size}, expected 1 to {MOST_BYTES}")
        region = self._machine.memory.region_at(address)
        if region is None:
            raise CommandProblem(f"nothing is mapped at {self._machine.memory.name_of(address)}")
        data = self._machine.memory.read(address, min(size, region.size - (address - region.address)))
        for offset in range(0, len(data), 16):
            row = data[offset : offset + 16]
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            self._print(f"{self._machine.memory.name_of(address + offset):>16}  {row.hex(' '):<47}  {text}")

    def do_maps(self, words: list[str]) -> None:
        if not self._machine.maps:
            self._print("no maps")
        for each in self._machine.maps.values():
            self._print(repr(each))
            for key in each.keys()[:16]:
                element = each.element(key)
                if element is not None and any(element.buffer):
                    self._print(f"    {key.hex()}: {bytes(element.buffer).hex(' ')}")

    def do_set(self, words: list[str]) -> None:
        number, value = self._register(words), _number(words, 1)
        if not -(1 << 63) <= value < 1 << 64:
            raise CommandProblem(f"got {words[1]}, expected a number of 64 bits")
        self._execution.registers[number] = value & (1 << 64) - 1
        self._print(self._register_line(number))

    def do_help(self, words: list[str]) -> None:
        heads = [f"{', '.join(names)} {arguments}".rstrip() for names, _, arguments, _ in COMMANDS]
        for head, (*_, text) in zip(heads, COMMANDS, strict=True):
            self._print(f"  {head:<{max(map(len, heads))}}  {text}")

    def _register(self, words: list[str]) -> int:
        if not words or words[0] not in [f"r{number}" for number in range(11)]:
            raise CommandProblem("expected a register, r0 to r10")
        return int(words[0][1:])

    def _address(self, words: list[str]) -> int:
        if not words or not words[0].startswith("r"):
            return _number(words, 0)
        base, sign, offset = words[0].replace("-", "+-").partition("+")
        value = self._execution.registers[self._register([base])]
        if value is None:
            raise CommandProblem(f"{base} has no value")
        return int(value) + (_number([offset], 0) if sign else 0)

    # What is shown.

    def _show(self) -> None:
        execution = self._execution
        place = execution.position
        if self._fault is not None:
            self._print(self._paint(f"-- fault after {self._steps} steps --", CHANGED))
            self._print(str(self._fault))
        elif place is None:
            result = execution.registers[0]
            shown = f"r0 = {result} ({result:#x})"
            self._print(self._paint(f"-- ended after {self._steps} steps: {shown} --", MARKED))
        else:
            self._print(self._paint(f"-- step {self._steps}: {self._where(*place)} --", FAINT))
            self._show_code(*place)
        for number in range(11):
            if execution.registers[number] is not None:
                self._print(self._register_line(number))
        self._show_stack()
        if self._machine.printed:
            self._print(f"  printed: {self._machine.printed[-1]}")
        # What is highlighted next is what differs from what the person has just seen.
        self._before = tuple(self._execution.registers[:11])
        self._stack_before = self._stack_words()

    def _where(self, program: LoadedProgram, index: int) -> str:
        names = program.program.functions
        function = max((start for start in names if start <= index), default=None)
        name = program.name if function is None else f"{program.name}/{names[function]}"
        span = program.program.insns[index].span
        return f"{name} insn {index}" + (f", line {span.line}" if span is not None else "")

    def _show_code(self, program: LoadedProgram, index: int) -> None:
        insns = program.program.insns
        span = insns[index].span
        if span is None:
            low, high = max(index - CONTEXT_LINES, 0), min(index + CONTEXT_LINES + 1, len(insns))
            lines = {number: format_insn(insns[number]) for number in range(low, high)}
            here = index
        else:
            last = span.source.first_line + span.source.text.rstrip().count("\n")
            low = max(span.line - CONTEXT_LINES, span.source.first_line)
            lines = {n: span.source.line(n) for n in range(low, min(span.line + CONTEXT_LINES, last) + 1)}
            here = span.line
        for number, text in lines.items():
            is_here = number == here
            self._print(self._paint(f" {'>' if is_here else ' '} {number:>4}  {text}", MARKED if is_here else FAINT))

    def _register_line(self, number: int) -> str:
        value = self._execution.registers[number]
        has_changed = value != self._before[number]
        text = f"  {'*' if has_changed else ' '} r{number:<3} {self._value(value)}"
        return self._paint(text, CHANGED if has_changed else "")

    def _value(self, value: int | None) -> str:
        if value is None:
            return "-"
        if self._machine.memory.region_at(value) is not None:
            return self._machine.memory.name_of(value)
        signed = to_signed(value, 64)
        return f"{signed}" if abs(signed) < SMALL else f"{value:#x}"

    def _stack_words(self) -> dict[tuple[str, int], int]:
        """The words of the stack of the function that runs: (its name, distance from r10) to content."""
        return _words(*self._stack_content())

    def _stack_content(self) -> tuple[str, bytes]:
        """The stack of the function that runs: its name and its bytes; none at the end."""
        if self._execution.is_finished:
            return "", b""
        stack = self._execution.frame.stack
        return stack.name, bytes(stack.buffer)

    def _show_stack(self) -> None:
        now = self._stack_words()
        for at in sorted(now):
            if at not in self._touched:
                continue
            has_changed = now[at] != self._stack_before.get(at, now[at])
            raw = now[at].to_bytes(WORD, "little").hex(" ")
            text = f"  {'*' if has_changed else ' '} r10{at[1]:<5} {raw}  {self._value(now[at])}"
            self._print(self._paint(text, CHANGED if has_changed else ""))

    def _paint(self, text: str, color: str) -> str:
        return f"{color}{text}{PLAIN}" if self._is_colored and color else text

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")


def _words(name: str, data: bytes) -> dict[tuple[str, int], int]:
    return {(name, at - len(data)): int.from_bytes(data[at : at + WORD], "little") for at in range(0, len(data), WORD)}


def _number(words: list[str], position: int, default: int | None = None) -> int:
    if position >= len(words):
        if default is None:
            raise CommandProblem("expected a number")
        return default
    try:
        return int(words[position], 0)
    except ValueError:
        raise CommandProblem(f"got {words[position]!r}, expected a number") from None


COMMANDS = (
    (("s", "step"), "do_step", "[N]", "run one instruction, or N; an empty line repeats the last command"),
    (("n", "next"), "do_next", "", "run one instruction, and a called function to its end"),
    (("f", "finish"), "do_finish", "", "run until the function returns"),
    (("c", "continue"), "do_continue", "", "run to the next breakpoint or to the end"),
    (("back",), "do_back", "[N]", "go back one instruction, or N"),
    (("restart",), "do_restart", "", "begin again"),
    (("b", "break"), "do_break", "INSN", "set or remove a breakpoint at an instruction"),
    (("r", "registers"), "do_registers", "", "show all registers"),
    (("l", "list"), "do_list", "", "show all instructions"),
    (("m", "memory"), "do_memory", "rN[+-OFF]|ADDRESS [N]", "show N bytes of memory (64)"),
    (("maps",), "do_maps", "", "show the maps and their elements that are not zero"),
    (("set",), "do_set", "rN VALUE", "change a register"),
    (("h", "help", "?"), "do_help", "", "this list; `q` or the end of input leaves"),
)
"""Names, the method, its arguments, what it does."""
