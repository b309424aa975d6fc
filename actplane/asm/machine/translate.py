"""
Instructions as Python source: what each one means, one statement each.

A program becomes one Python function for each basic block (`fast`), or for each instruction
(`single`, for stepping). A function takes the registers `r` (a list; index 11 counts instructions,
index 12 is their limit) and the execution `x`, and returns the function that runs next, or None when
the program has ended. `mem` maps the upper half of an address to the bytes there.

    # r0 = *(u64 *)(r1 +8); r0 += 5; if r0 > 7 goto +1
    def u0(r, x):
        r[11] += 3
        if r[11] > r[12]: x.stop()
        r[0] = load64(mem[(a := (r[1] + 8) & 0xffffffffffffffff) >> 32], a & 0xffffffff)[0]
        r[0] = (r[0] + 0x5) & 0xffffffffffffffff
        return u4 if r[0] > 0x7 else u3

A bad access raises KeyError or struct.error on its line, and the line says which instruction it was;
so a load that works costs nothing for being checked.

Source: RFC 9669, sections 4 and 5; kernel/bpf/core.c of Linux 6.18 where the RFC is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from actplane.asm.cfg import Graph
from actplane.asm.cfg_effects import ARGUMENTS, R0_BIT, R10_BIT, ArgumentCount, Effects, effects, registers_in
from actplane.asm.insn import Insn
from actplane.asm.isa import Form, Kind
from actplane.asm.machine.registry import Helper
from actplane.asm.uapi import HelperId

COUNT, LIMIT = 11, 12
"""Where the list of registers keeps the number of instructions run, and how many may be."""

M64, M32 = "0xffffffffffffffff", "0xffffffff"
_MASKS = {64: M64, 32: M32}
_SIGNS = {64: "0x8000000000000000", 32: "0x80000000"}
_DESTROY = "; r[1] = r[2] = r[3] = r[4] = r[5] = None"

_COMPARISONS = {"jeq": "==", "jne": "!=", "jgt": ">", "jge": ">=", "jlt": "<", "jle": "<="}
_SIGNED_COMPARISONS = {"jsgt": ">", "jsge": ">=", "jslt": "<", "jsle": "<="}
_WRAPPING = {"add": "+", "sub": "-", "mul": "*"}
_BITWISE = {"or": "|", "and": "&", "xor": "^"}
_CAST_TO_KERNEL = 1

TAIL_CALL_ARGUMENTS = 3
"""bpf_tail_call is the one helper that is no function of the machine: it does not return."""

_ENDS_UNIT = frozenset({Kind.CALL_SUBPROGRAM, Kind.CALLX})
_LEAVES_UNIT = frozenset({Kind.JUMP, Kind.JA, Kind.GOTOL, Kind.GOTOX, Kind.MAY_GOTO, Kind.EXIT})


@dataclass(slots=True)
class Linkage:
    """What the source refers to besides registers and memory."""

    constants: Mapping[int, int]
    """Index of an ld_imm64 to what it loads."""
    helpers: Mapping[int, Helper]
    """Index of a call of a helper or kfunc to what it calls."""
    pointer_fields: Mapping[int, str]
    """Offsets in the context where a load of 4 bytes gives a pointer."""
    jumps: Mapping[int, Mapping[int, int]] = field(default_factory=dict[int, Mapping[int, int]])
    """Index of an indirect jump to what it may lead to: address to index of the instruction."""
    has_zero_reads: bool = False
    """Whether loads from where nothing is mapped give 0 (see `Machine`)."""


@dataclass(slots=True)
class Source:
    """Generated Python: its lines, and the instruction that each line belongs to."""

    lines: list[str] = field(default_factory=list)
    insn_of_line: list[int] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    """The index of the first instruction of each unit; its function is called `u` + the index."""

    def add(self, insn_index: int, text: str) -> None:
        self.lines.append(text)
        self.insn_of_line.append(insn_index)

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def translate(graph: Graph, linkage: Linkage, *, is_single: bool = False) -> Source:
    """Return the Python source of a program, one function per block, or per instruction if `is_single`."""
    translator = _Translator(graph, linkage)
    source = Source()
    for block in graph.blocks:
        cuts = [block.start]
        for index in range(block.start + 1, block.end):
            if is_single or translator.ends_unit(index - 1):
                cuts.append(index)
        for start, end in zip(cuts, [*cuts[1:], block.end], strict=True):
            translator.emit_unit(source, start, end)
    return source


class _Translator:
    def __init__(self, graph: Graph, linkage: Linkage) -> None:
        self.graph = graph
        self.linkage = linkage
        self.defined = defined_registers(graph, self._argument_count_at)

    def _argument_count_at(self, index: int) -> ArgumentCount:
        helper = self.linkage.helpers.get(index)
        arguments = helper.arguments if helper else TAIL_CALL_ARGUMENTS
        return lambda call: arguments

    def ends_unit(self, index: int) -> bool:
        """Say whether control may leave the block's function at an instruction in the middle of a block."""
        form = self.graph.forms[index]
        if form.kind in _ENDS_UNIT:
            return True
        if form.kind is Kind.CALL_HELPER and self.graph.insns[index].imm == HelperId.bpf_tail_call:
            return True
        helper = self.linkage.helpers.get(index)
        return helper is not None and helper.calls_back

    def emit_unit(self, source: Source, start: int, end: int) -> None:
        source.units.append(start)
        source.add(start, f"def u{start}(r, x):")
        source.add(start, f"    r[{COUNT}] += {end - start}")
        source.add(start, f"    if r[{COUNT}] > r[{LIMIT}]: x.stop()")
        for index in range(start, end):
            insn, form = self.graph.insns[index], self.graph.forms[index]
            effect = effects(insn, form, self._argument_count_at(index))
            for register in registers_in(_checked_reads(insn, form, effect) & ~self.defined[index]):
                source.add(index, f"    if r[{register}] is None: x.undefined({register})")
            for line in self.statement(index, insn, form).split("\n"):
                source.add(index, "    " + line)
        last = self.graph.forms[end - 1].kind
        if end < len(self.graph.insns) and not self._returns(end - 1, last):
            source.add(end - 1, f"    return u{end}")

    def _returns(self, index: int, kind: Kind) -> bool:
        return kind in _LEAVES_UNIT or self.ends_unit(index)

    def statement(self, index: int, insn: Insn, form: Form) -> str:
        """Return the meaning of one instruction."""
        dst = f"r[{insn.dst}]"
        match form.kind:
            case Kind.ALU:
                return f"{dst} = {_alu(insn, form)}"
            case Kind.NEG:
                return f"{dst} = -{dst} & {_MASKS[form.width]}"
            case Kind.END:
                if form.operation == "le":
                    return f"{dst} &= {(1 << form.bits) - 1:#x}"
                return f"{dst} = byte_swap({dst}, {form.bits})"
            case Kind.MOVSX:
                sign = 1 << (form.bits - 1)
                low = f"r[{insn.src}] & {(1 << form.bits) - 1:#x}"
                return f"{dst} = ((({low}) ^ {sign:#x}) - {sign:#x}) & {_MASKS[form.width]}"
            case Kind.ADDR_SPACE_CAST:
                cast = "to_kernel" if insn.imm == _CAST_TO_KERNEL else "to_user"
                return f"{dst} = machine.cast_{cast}(r[{insn.src}])"
            case Kind.LD_IMM64:
                return f"{dst} = {self.linkage.constants[index]:#x}"
            case Kind.LD_ABS | Kind.LD_IND:
                return self._load_packet(insn, form)
            case Kind.JA | Kind.GOTOL:
                return f"return u{self.graph.targets[index]}"
            case Kind.GOTOX:
                return f"return x.jump({index}, {dst})"
            case Kind.MAY_GOTO:
                return f"return u{index + 1} if x.may_go_on() else u{self.graph.targets[index]}"
            case Kind.JUMP:
                return f"return u{self.graph.targets[index]} if {_condition(insn, form)} else u{index + 1}"
            case Kind.EXIT:
                return "return x.leave()"
            case Kind.CALL_SUBPROGRAM:
                return f"return x.enter({self.graph.targets[index]}, {index + 1})"
            case Kind.CALLX:
                return f"return x.enter_address({dst}, {index + 1})"
            case Kind.CALL_HELPER | Kind.CALL_KFUNC:
                return self._call(index, insn, form)
            case _:
                return self._memory(insn, form)

    def _call(self, index: int, insn: Insn, form: Form) -> str:
        if form.kind is Kind.CALL_HELPER and insn.imm == HelperId.bpf_tail_call:
            return f"return x.tail_call() or u{index + 1}"
        helper = self.linkage.helpers[index]
        arguments = "".join(f", r[{number}]" for number in range(1, helper.arguments + 1))
        call = f"h{index}(machine{arguments})"
        if helper.calls_back:
            return f"return x.enter_helper({call}, {index + 1})"
        return f"r[0] = {call} & {M64}{_DESTROY}"

    def _memory(self, insn: Insn, form: Form) -> str:
        assert form.size is not None
        bits = form.size.bits
        is_load = form.kind in (Kind.LDX, Kind.LDXSX, Kind.LOAD_ACQUIRE)
        where = _place(insn.src if is_load else insn.dst, insn.off)
        match form.kind:
            case Kind.LDX | Kind.LOAD_ACQUIRE:
                if bits == 32 and insn.off in self.linkage.pointer_fields:
                    return f"r[{insn.dst}] = x.load_context({_address(insn.src, insn.off)})"
                if self.linkage.has_zero_reads:
                    return f"r[{insn.dst}] = load_or_zero({_address(insn.src, insn.off)}, {bits // 8})"
                return f"r[{insn.dst}] = load{bits}({where})[0]"
            case Kind.LDXSX:
                if self.linkage.has_zero_reads:
                    load = f"load_or_zero({_address(insn.src, insn.off)}, {bits // 8})"
                    return f"r[{insn.dst}] = sign_extend({load}, {bits}, 64)"
                return f"r[{insn.dst}] = load_signed{bits}({where})[0] & {M64}"
            case Kind.ST:
                return f"store{bits}({where}, {insn.imm & ((1 << bits) - 1):#x})"
            case Kind.STX | Kind.STORE_RELEASE:
                return f"store{bits}({where}, {_low(f'r[{insn.src}]', bits)})"
            case _:
                return _atomic(insn, form, bits)

    def _load_packet(self, insn: Insn, form: Form) -> str:
        assert form.size is not None
        offset = f"{insn.imm}" if form.kind is Kind.LD_ABS else f"{insn.imm} + (r[{insn.src}] & {M32})"
        load = f"r[0] = x.load_packet({offset}, {form.size.value}){_DESTROY}"
        # Outside the packet the program ends with 0, as classic BPF has it.
        return f"{load}\nif r[0] is None: r[0] = 0; return x.leave()"


def _checked_reads(insn: Insn, form: Form, effect: Effects) -> int:
    """
    Return the registers that must have a value for an instruction to run.

    A subprogram may leave its arguments and its result undefined, as long as nobody reads them.
    """
    if form.kind is Kind.CALLX:
        return 1 << insn.dst
    return 0 if form.kind in (Kind.EXIT, Kind.CALL_SUBPROGRAM) else effect.reads


def _low(value: str, bits: int) -> str:
    return value if bits == 64 else f"{value} & {(1 << bits) - 1:#x}"


def _address(register: int, offset: int) -> str:
    return f"(r[{register}] + {offset}) & {M64}" if offset else f"r[{register}]"


def _place(register: int, offset: int) -> str:
    """Return the two arguments of a load or store: the bytes of the region, and the offset in them."""
    if offset:
        return f"mem[(a := {_address(register, offset)}) >> 32], a & {M32}"
    return f"mem[r[{register}] >> 32], r[{register}] & {M32}"


def _operand(insn: Insn, form: Form) -> str:
    """Return the second operand: a register, or the immediate extended to the width of the operation."""
    if form.has_register_source:
        return f"r[{insn.src}]"
    return f"{insn.imm & ((1 << form.width) - 1):#x}"


def _alu(insn: Insn, form: Form) -> str:
    width, operation = form.width, form.operation
    mask, sign = _MASKS[width], _SIGNS[width]
    dst, operand = f"r[{insn.dst}]", _operand(insn, form)
    if operation == "mov":
        return _low(operand, width) if form.has_register_source else operand
    if operation in _WRAPPING:
        return f"({dst} {_WRAPPING[operation]} {operand}) & {mask}"
    if operation in _BITWISE:
        return _low(f"({dst} {_BITWISE[operation]} {operand})", width)
    dividend = _low(dst, width)
    if operation == "div":
        return f"({dividend}) // b if (b := {_low(operand, width)}) else 0"
    if operation == "mod":
        return f"({dividend}) % b if (b := {_low(operand, width)}) else {dividend}"
    if operation in ("sdiv", "smod"):
        return f"{operation}({dst}, {operand}, {width})"
    # Shifts: only the low 5 or 6 bits of the distance count.
    distance = f"({operand} & {width - 1})" if form.has_register_source else f"{insn.imm & (width - 1)}"
    if operation == "lsh":
        return f"({dst} << {distance}) & {mask}"
    if operation == "rsh":
        return f"({dividend}) >> {distance}"
    return f"((({dividend}) ^ {sign}) - {sign}) >> {distance} & {mask}"


def _condition(insn: Insn, form: Form) -> str:
    left, right = _low(f"r[{insn.dst}]", form.width), _operand(insn, form)
    if form.has_register_source:
        right = _low(right, form.width)
    if form.operation == "jset":
        return f"{left} & {right}"
    if form.operation in _COMPARISONS:
        return f"({left}) {_COMPARISONS[form.operation]} ({right})"
    # Flipping the sign bit turns the order of signed numbers into that of unsigned ones.
    sign = _SIGNS[form.width]
    return f"(({left}) ^ {sign}) {_SIGNED_COMPARISONS[form.operation]} (({right}) ^ {sign})"


def _atomic(insn: Insn, form: Form, bits: int) -> str:
    mask = f"{(1 << bits) - 1:#x}"
    operand = f"r[{insn.src}]"
    read = f"a = {_address(insn.dst, insn.off)}; m = mem[a >> 32]; old = load{bits}(m, a & {M32})[0]"
    operation = form.operation.removeprefix("fetch_")
    if operation == "cmpxchg":
        new = f"{operand} & {mask} if old == r[0] & {mask} else old"
        return f"{read}; store{bits}(m, a & {M32}, {new}); r[0] = old"
    new = operand if operation == "xchg" else f"old {'+' if operation == 'add' else _BITWISE[operation]} {operand}"
    write = f"store{bits}(m, a & {M32}, ({new}) & {mask})"
    return f"{read}; {write}" + (f"; {operand} = old" if form.is_fetch else "")


def defined_registers(graph: Graph, argument_count_at: Callable[[int], ArgumentCount]) -> list[int]:
    """
    Return for every instruction the registers that surely have a value before it, whatever path led there.

    Where the answer is yes no check is needed at run time, so a program the verifier accepts runs
    almost without any.
    """
    everything = (1 << 11) - 1
    after: dict[int, int] = {}
    before = [everything] * len(graph.blocks)
    entries = {function.entry for function in graph.functions}
    for entry in entries | set(graph.dead):
        # r1 to r5 of a subprogram are defined if its callers have defined them: checked when read.
        before[entry] = R10_BIT
    waiting = sorted(entries | set(graph.dead), reverse=True)
    while waiting:
        block = graph.blocks[waiting.pop()]
        state = before[block.index]
        for index in range(block.start, block.end):
            state = _after(graph, index, state, argument_count_at(index))
        if after.get(block.index) == state:
            continue
        after[block.index] = state
        for target in block.successors:
            met = before[target] & state
            if met != before[target] or target not in after:
                before[target] = met
                waiting.append(target)
    defined = []
    for block in graph.blocks:
        state = before[block.index]
        for index in range(block.start, block.end):
            defined.append(state)
            state = _after(graph, index, state, argument_count_at(index))
    return defined


def _after(graph: Graph, index: int, state: int, argument_count: ArgumentCount) -> int:
    insn, form = graph.insns[index], graph.forms[index]
    effect = effects(insn, form, argument_count)
    # What has been read has been checked.
    state = (state | _checked_reads(insn, form, effect)) & ~effect.destroys | effect.writes
    returns_nothing = form.kind is Kind.CALL_HELPER and insn.imm == HelperId.bpf_tail_call
    if form.kind in (Kind.CALL_SUBPROGRAM, Kind.CALLX) or returns_nothing:
        state &= ~R0_BIT
    return state & ~ARGUMENTS if effect.destroys else state
