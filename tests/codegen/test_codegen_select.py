"""Instruction selection: random functions give what the IR means, and the awkward cases one by one."""

import random
import time

import pytest

from actplane import asm
from actplane.asm import R0, R1, R2, R3, R4, HelperId, Insn, MapSpec, MapType, Reg
from actplane.asm.machine import Machine
from actplane.codegen.branches import REACH_SLOTS, bridge_far_jumps
from actplane.codegen.flow import Flow, loop_depths, thread_jumps
from actplane.codegen.registers import FrameTooLarge, Recomputed, StackPlace, allocate
from actplane.codegen.select import select
from actplane.codegen.shape import Shaped
from actplane.errors import InternalError
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder
from actplane.source import Source

MASK = (1 << 64) - 1


# The meaning of the IR, as directly as can be.


def signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def calculate(operator: str, a: int, b: int, width: int) -> int:
    mask = (1 << width) - 1
    a, b = a & mask, b & mask
    count = b & (width - 1)
    results = {
        "+": lambda: a + b,
        "-": lambda: a - b,
        "*": lambda: a * b,
        "/": lambda: a // b if b else 0,
        "%": lambda: a % b if b else a,
        "&": lambda: a & b,
        "|": lambda: a | b,
        "^": lambda: a ^ b,
        "<<": lambda: a << count,
        ">>": lambda: a >> count,
        "s>>": lambda: signed(a, width) >> count,
    }
    return results[operator]() & mask


def holds(relation: str, a: int, b: int, width: int) -> bool:
    mask = (1 << width) - 1
    a, b = a & mask, b & mask
    if relation.startswith("s"):
        a, b, relation = signed(a, width), signed(b, width), relation[1:]
    return {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "&": a & b != 0}[relation]


class Evaluator:
    """Runs IR functions. The frame is bytes by (slot, offset); addresses are (slot, offset) pairs."""

    def __init__(self, functions: list[bc.Function]) -> None:
        self.functions = {function.name: function for function in functions}

    def call(self, name: str, arguments: list[int]) -> int:
        function = self.functions[name]
        values: dict[bc.Value, object] = dict(zip(function.parameters, arguments, strict=True))
        memory = {slot.name: bytearray(slot.size_bytes) for slot in function.frame}
        blocks = {block.name: block for block in function.blocks}
        block = function.blocks[0]

        def get(operand: bc.Operand) -> int:
            return operand & MASK if isinstance(operand, int) else values[operand]

        while True:
            for op in block.operations:
                if isinstance(op, bc.Move):
                    values[op.dst] = get(op.a) & (1 << op.width) - 1 if isinstance(get(op.a), int) else get(op.a)
                elif isinstance(op, bc.Binary):
                    values[op.dst] = calculate(op.operator, get(op.a), get(op.b), op.width)
                elif isinstance(op, bc.ToBigEndian):
                    size = op.bits // 8
                    low = get(op.a) & (1 << op.bits) - 1
                    values[op.dst] = int.from_bytes(low.to_bytes(size, "little"), "big")
                elif isinstance(op, bc.FrameAddress):
                    values[op.dst] = op.slot.name
                elif isinstance(op, bc.Load):
                    data = memory[values[op.base]]
                    values[op.dst] = int.from_bytes(data[op.offset_bytes : op.offset_bytes + op.size], "little")
                elif isinstance(op, bc.Store):
                    low = get(op.value) & (1 << 8 * op.size) - 1
                    data = memory[values[op.base]]
                    data[op.offset_bytes : op.offset_bytes + op.size] = low.to_bytes(op.size, "little")
                elif isinstance(op, bc.Atomic):
                    data = memory[values[op.base]]
                    place = slice(op.offset_bytes, op.offset_bytes + op.size)
                    old = int.from_bytes(data[place], "little")
                    data[place] = calculate(op.operator, old, get(op.value), 8 * op.size).to_bytes(op.size, "little")
                    if op.dst is not None:
                        values[op.dst] = old
                else:
                    assert isinstance(op, bc.CallFunction)
                    result = self.call(op.function, [get(argument) for argument in op.arguments])
                    if op.dst is not None:
                        values[op.dst] = result
            end = block.terminator
            if isinstance(end, bc.Return):
                return get(end.value) & MASK
            if isinstance(end, bc.Jump):
                block = blocks[end.block]
            else:
                is_then = holds(end.relation, get(end.a), get(end.b), end.width)
                block = blocks[end.then if is_then else end.otherwise]


# Random functions.

NUMBERS = [0, 1, -1, 2, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 31, -(1 << 31), 1 << 32, 0x123456789ABCDEF, MASK]
OPERATORS = ["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>", "s>>"]
RELATIONS = ["==", "!=", "<", "<=", ">", ">=", "s<", "s<=", "s>", "s>=", "&"]


class Writer:
    """Writes one random function over a set of variables that are all assigned first."""

    def __init__(
        self, rng: random.Random, name: str, parameters: int, callees: list[bc.Function], variables: int
    ) -> None:
        self.rng = rng
        self.callees = callees
        self.f = FunctionBuilder(name, [f"p{i}" for i in range(parameters)])
        self.slots = [self.f.slot(f"slot{i}", 8 * rng.randint(1, 3)) for i in range(2)]
        for slot in self.slots:
            for at in range(0, slot.size_bytes, 8):
                self.f.store(self.f.frame_address(slot), at, rng.choice(NUMBERS))
        self.kept_address = self.f.frame_address(self.slots[0])
        self.variables = list(self.f.parameters)
        self.variables += [self.f.let(rng.choice(NUMBERS), f"v{i}") for i in range(variables)]

    def write(self, size: int) -> bc.Function:
        self.statements(size, 0)
        total = self.f.let(0, "total")
        for value in self.variables:
            self.f.update(total, "*", 31)
            self.f.update(total, "^", value)
        for slot in self.slots:
            self.f.update(total, "+", self.f.load(self.f.frame_address(slot), 0, 8))
        self.f.ret(total)
        return self.f.finish()

    def variable(self) -> bc.Value:
        return self.rng.choice(self.variables)

    def operand(self) -> bc.Operand:
        return self.rng.choice(NUMBERS) if self.rng.random() < 0.35 else self.variable()

    def place(self) -> tuple[bc.Value, int, int]:
        slot = self.rng.choice(self.slots)
        size = self.rng.choice([1, 2, 4, 8])
        base = self.f.frame_address(slot)
        if slot is self.slots[0] and self.rng.random() < 0.5:
            base = self.kept_address
        return base, self.rng.randrange(0, slot.size_bytes, size), size

    def statements(self, count: int, depth: int) -> None:
        for _ in range(count):
            self.statement(depth)

    def statement(self, depth: int) -> None:
        rng, f = self.rng, self.f
        width = rng.choice([32, 64])
        kind = rng.random()
        if kind < 0.35:
            operator = rng.choice(OPERATORS)
            if operator in ("<<", ">>", "s>>"):
                b: bc.Operand = rng.randrange(width) if rng.random() < 0.7 else self.variable()
            else:
                b = self.operand()
                if operator in "/%" and b == 0:
                    b = 3
                elif operator in "/%" and isinstance(b, int) and width == 32 and b & 0xFFFFFFFF == 0:
                    b = 5
            f.emit(bc.Binary(self.variable(), operator, self.variable(), b, width))
        elif kind < 0.5:
            f.assign(self.variable(), self.operand(), width)
        elif kind < 0.55:
            f.emit(bc.ToBigEndian(self.variable(), self.variable(), rng.choice([16, 32, 64])))
        elif kind < 0.62:
            base, offset, size = self.place()
            f.emit(bc.Load(self.variable(), base, offset, size))
        elif kind < 0.7:
            base, offset, size = self.place()
            f.store(base, offset, self.operand(), size)
        elif kind < 0.74:
            base, offset, _ = self.place()
            offset = offset // 8 * 8
            dst = self.variable() if rng.random() < 0.5 else None
            f.emit(bc.Atomic(dst, rng.choice(["+", "&", "|", "^"]), base, offset, self.variable(), rng.choice([4, 8])))
        elif kind < 0.82 and self.callees:
            callee = rng.choice(self.callees)
            arguments = tuple(self.operand() for _ in callee.parameters)
            dst = self.variable() if rng.random() < 0.8 else None
            f.emit(bc.CallFunction(dst, callee.name, arguments))
        elif kind < 0.85:
            self.variables[rng.randrange(len(self.variables))] = f.let(self.variable(), "copy")
        elif depth < 3 and kind < 0.93:
            before = list(self.variables)
            with f.choice(self.variable(), rng.choice(RELATIONS), self.operand(), width) as otherwise:
                self.statements(rng.randint(0, 4), depth + 1)
                self.variables = list(before)
                otherwise()
                self.statements(rng.randint(0, 4), depth + 1)
            self.variables = before
        elif depth < 3:
            before = list(self.variables)
            counter = f.let(rng.randint(1, 4), "counter")
            head, body, after = f.new_block("head"), f.new_block("body"), f.new_block("after")
            f.start(head)
            f.branch(counter, "==", 0, after, body)
            f.start(body)
            self.statements(rng.randint(0, 4), depth + 1)
            f.update(counter, "-", 1)
            f.jump(head)
            f.start(after)
            self.variables = before


def random_program(seed: int, variables: int, size: int) -> list[bc.Function]:
    rng = random.Random(seed)
    leaf = Writer(rng, "leaf", rng.randint(0, 5), [], rng.randint(1, variables)).write(size)
    middle = Writer(rng, "middle", rng.randint(0, 5), [leaf], rng.randint(1, variables)).write(size)
    main = Writer(rng, "main", 1, [leaf, middle], variables).write(size)
    return [main, middle, leaf]


def run(functions: list[bc.Function], argument: int = 0, maps: tuple[MapSpec, ...] = ()) -> int:
    insns, names = select(functions)
    assert [names[at] for at in sorted(names)] == [function.name for function in functions[1:]]
    program = asm.Program("test", asm.ProgType.BPF_PROG_TYPE_SOCKET_FILTER, insns, functions=names)
    loaded = Machine(maps).load(program)
    execution = loaded.start(argument)
    execution.run()
    return execution.outcome().value & MASK


@pytest.mark.parametrize(("variables", "size"), [(3, 12), (8, 20), (20, 25)])
@pytest.mark.parametrize("block", range(5))
def test_random_programs(variables: int, size: int, block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        functions = random_program(seed * 1000 + variables, variables, size)
        argument = seed * 0x9E3779B97F4A7C15 & MASK
        expected = Evaluator(functions).call("main", [argument])
        assert run(functions, argument) == expected, seed


# Registers and the stack.


def places(function: bc.Function) -> dict[str, object]:
    return {value.name: place for value, place in allocate(Flow(thread_jumps(function))).places.items()}


def test_values_needed_across_a_call_are_in_registers_that_calls_keep() -> None:
    f = FunctionBuilder("main", ["context"])
    kept = [f.load(f.parameters[0], 4 * i, 4, f"kept{i}") for i in range(3)]
    f.emit(bc.CallHelper(None, "bpf_ktime_get_ns", ()))
    total = f.op(kept[0], "+", kept[1], "total")
    f.update(total, "+", kept[2])
    f.ret(total)
    found = places(f.finish())
    assert {found[f"kept{i}"] for i in range(3)} <= {Reg.R6, Reg.R7, Reg.R8, Reg.R9}
    assert found["context"] in (R2, R3, R4, Reg.R5, Reg.R6, Reg.R7, Reg.R8, Reg.R9)


def many_values(count: int, *, with_call: bool) -> bc.Function:
    """A function that needs `count` values at once."""
    f = FunctionBuilder("main", ["context"])
    values = [f.op(f.parameters[0], "^", 3 * i + 1, f"v{i}") for i in range(count)]
    if with_call:
        f.emit(bc.CallFunction(None, "other", ()))
    total = f.let(0, "total")
    for value in values:
        f.update(total, "*", 3)
        f.update(total, "-", value)
    f.ret(total)
    return f.finish()


def other() -> bc.Function:
    f = FunctionBuilder("other")
    f.ret(0)
    return f.finish()


@pytest.mark.parametrize("with_call", [False, True])
@pytest.mark.parametrize("count", [2, 6, 8, 9, 20, 60])
def test_more_values_than_registers_go_to_the_stack(count: int, with_call: bool) -> None:
    function = many_values(count, with_call=with_call)
    functions = [function, other()] if with_call else [function]
    assert run(functions, 12345) == Evaluator(functions).call("main", [12345])
    on_stack = [place for place in places(function).values() if isinstance(place, StackPlace)]
    assert len(set(on_stack)) == len(on_stack)
    # Without the call, one of the eight registers holds the total.
    assert len(on_stack) == max(0, count - (4 if with_call else 7))


def test_a_frame_over_512_bytes_is_refused() -> None:
    with pytest.raises(FrameTooLarge, match="function main: stack frame: got 0 bytes of slots and 568 of spilled"):
        select([many_values(75, with_call=True), other()])
    f = FunctionBuilder("large")
    f.store(f.frame_address(f.slot("buffer", 513)), 0, 1)
    f.ret(0)
    with pytest.raises(FrameTooLarge, match="function large: stack frame: got 520 bytes of slots and 0 of spilled"):
        select([f.finish()])


def test_values_on_the_stack_share_room_when_they_never_meet() -> None:
    f = FunctionBuilder("main", ["context"])
    for part in range(4):
        values = [f.op(f.parameters[0], "^", i + part, f"v{part}.{i}") for i in range(20)]
        total = f.let(0, f"total{part}")
        for value in values:
            f.update(total, "-", value)
        f.store(f.frame_address(f.slot(f"out{part}", 8)), 0, total)
    f.ret(0)
    assert allocate(Flow(f.finish())).frame_bytes <= 4 * 8 + 16 * 8


def test_slots_that_look_alike_are_not_one() -> None:
    f = FunctionBuilder("main")
    one, two = f.slot("same", 8), f.slot("same", 8)
    assert one == two
    f.store(f.frame_address(one), 0, 1)
    f.store(f.frame_address(two), 0, 2)
    f.ret(f.load(f.frame_address(one)))
    assert run([f.finish()]) == 1


def test_constants_and_addresses_take_no_register() -> None:
    f = FunctionBuilder("main")
    f.slot("slot", 8)
    slot = f.slot("other", 8)
    address, number = f.frame_address(slot), f.let(7, "number")
    f.store(address, 0, number, 4)
    f.ret(0)
    found = places(f.finish())
    assert isinstance(found["other"], Recomputed)
    assert isinstance(found["number"], Recomputed)


def test_reading_what_was_never_written_is_a_bug() -> None:
    f = FunctionBuilder("main", ["context"])
    late = f.value("late")
    with f.when(f.parameters[0], "==", 0):
        f.assign(late, 1)
    f.ret(late)
    with pytest.raises(InternalError, match="may be read before they are written"):
        select([f.finish()])


@pytest.mark.parametrize("order", [(1, 0, 2, 3, 4), (1, 2, 0, 4, 3), (4, 3, 2, 1, 0), (0, 0, 1, 1, 2), (1, 2, 3, 4, 0)])
def test_arguments_change_places_at_once(order: tuple[int, ...]) -> None:
    """Parameters passed on in another order: every cycle of moves there is."""
    inner = FunctionBuilder("inner", ["a", "b", "c", "d", "e"])
    total = inner.let(0)
    for parameter in inner.parameters:
        inner.update(total, "*", 11)
        inner.update(total, "+", parameter)
    inner.ret(total)
    middle = FunctionBuilder("middle", ["a", "b", "c", "d", "e"])
    middle.ret(middle.call("inner", *(middle.parameters[i] for i in order)))
    main = FunctionBuilder("main")
    main.ret(main.call("middle", 1, 2, 3, 4, 5))
    functions = [main.finish(), middle.finish(), inner.finish()]
    assert run(functions) == Evaluator(functions).call("main", [])


# Which instructions.


def body(f: FunctionBuilder) -> list[Insn]:
    return list(select([f.finish()])[0])


def test_constants_are_as_short_as_they_can_be() -> None:
    for number, insn in [
        (-1, asm.mov64(R0, -1)),
        (MASK, asm.mov64(R0, -1)),
        (0x7FFFFFFF, asm.mov64(R0, 0x7FFFFFFF)),
        (0x80000000, asm.mov32(R0, -0x80000000)),
        (1 << 32, asm.ld_imm64(R0, 1 << 32)),
        (-(1 << 31) - 1, asm.ld_imm64(R0, -(1 << 31) - 1)),
    ]:
        f = FunctionBuilder("main")
        f.ret(number)
        assert body(f) == [insn, asm.exit_()]


def test_a_mask_of_32_bits_is_a_move() -> None:
    f = FunctionBuilder("main", ["context"])
    f.ret(f.op(f.load(f.parameters[0], 0, 8, "x"), "&", 0xFFFFFFFF))
    assert [insn.code for insn in body(f)[-3:]] == [asm.mov32(R2, R2).code, asm.mov64(R0, R2).code, asm.exit_().code]


def test_comparisons_of_32_bits_and_falling_through() -> None:
    f = FunctionBuilder("main", ["context"])
    x = f.load(f.parameters[0], 0, 4, "x")
    with f.when(x, "s<", -1, width=32):
        f.ret(1)
    f.ret(0)
    insns = body(f)
    assert [insn.code for insn in insns[-5:]] == [
        asm.jmp("jsge", R2, -1, 0, 32).code,
        asm.mov64(R0, 1).code,
        asm.exit_().code,
        asm.mov64(R0, 0).code,
        asm.exit_().code,
    ]
    assert insns[-5].off == 2


def test_a_jump_if_bits_are_shared_cannot_be_turned_round() -> None:
    f = FunctionBuilder("main", ["context"])
    with f.when(f.load(f.parameters[0], 0, 4, "x"), "&", 6):
        f.ret(1)
    f.ret(0)
    codes = [insn.code for insn in body(f)]
    assert codes[-6:-4] == [asm.jmp("jset", R2, 6, 0).code, asm.ja(0).code]


def test_operations_without_use_are_left_out() -> None:
    f = FunctionBuilder("main", ["context"])
    f.op(f.load(f.parameters[0]), "+", 1)
    f.emit(bc.CallHelper(f.value("unused"), "bpf_ktime_get_ns", ()))
    f.ret(0)
    assert body(f) == [asm.call(HelperId.bpf_ktime_get_ns), asm.mov64(R0, 0), asm.exit_()]


def test_jumps_to_jumps_and_unreachable_blocks_vanish() -> None:
    f = FunctionBuilder("main", ["context"])
    with f.when(f.parameters[0], "==", 0), f.when(f.parameters[0], "==", 1), f.when(f.parameters[0], "==", 2):
        f.emit(bc.CallHelper(None, "bpf_ktime_get_ns", ()))
    f.ret(0)
    codes = [insn.code for insn in body(f)]
    assert asm.ja(0).code not in codes
    assert len([code for code in codes if code == asm.jmp("jne", R1, 0, 0).code]) == 3


def test_no_register_is_moved_to_itself() -> None:
    for seed in range(20):
        for insn in select(random_program(seed, 8, 20))[0]:
            assert not (insn.code == asm.mov64(R1, R2).code and insn.dst == insn.src)


def test_symbols_for_the_loader() -> None:
    field = bc.KernelField("task_struct", "cred.uid", (("task_struct", "real_cred.uid"),))
    f = FunctionBuilder("main", ["context"])
    x = f.load(f.parameters[0], 8, 4, "x", field)
    y = f.field_address(f.load(f.parameters[0], 0, 8, "p"), field)
    f.update(x, "+", f.enum_constant("bpf_hit", "HIT"))
    f.update(x, "+", f.load(f.map_value("values", 24)))
    f.emit(bc.CallHelper(None, "bpf_map_delete_elem", (f.map_address("hits"), y)))
    f.emit(bc.CallHelper(None, "bpf_loop", (1, f.function("step"), 0, 0)))
    f.ret(x)
    step = FunctionBuilder("step", ["index", "context"])
    step.ret(0)
    insns, functions = select([f.finish(), step.finish()])
    symbols = [insn.symbol for insn in insns if insn.symbol is not None]
    expected = asm.Field("task_struct", "cred.uid", (("task_struct", "real_cred.uid"),))
    assert symbols == [
        expected,
        expected,
        asm.EnumValue("bpf_hit", "HIT"),
        asm.MapValue("values", 24),
        asm.MapFd("hits"),
    ]
    (start,) = functions
    (reference,) = [at for at, insn in enumerate(insns) if insn.code == 0x18 and insn.src == 4]
    assert insns[reference].imm == sum(insn.slots for insn in insns[reference:start]) - 1
    (value,) = [insn for insn in insns if isinstance(insn.symbol, asm.MapValue)]
    assert value.imm == 24 << 32


def test_spans_reach_the_instructions() -> None:
    source = Source("demo", "one two")
    f = FunctionBuilder("main", ["context"])
    with f.at(source.span(4, 7)):
        x = f.load(f.parameters[0], 0, 4)
        f.update(x, "*", 1 << 40)
    f.ret(x)
    spans = [insn.span.text if insn.span else None for insn in body(f)]
    assert spans == [None, "two", "two", "two", None, None]


@pytest.mark.parametrize("operation", [("<<", 64, 64), (">>", 32, 32), ("/", 0, 64), ("%", 1 << 32, 32)])
def test_immediates_that_the_kernel_refuses_are_bugs(operation: tuple[str, int, int]) -> None:
    operator, number, width = operation
    f = FunctionBuilder("main", ["context"])
    f.ret(f.op(f.load(f.parameters[0]), operator, number, width=width))
    with pytest.raises(InternalError, match="immediate out of range"):
        select([f.finish()])


def test_far_offsets_are_added_first() -> None:
    f = FunctionBuilder("main")
    base = f.map_value("values")
    f.store(base, 40_000, 77)
    f.ret(f.load(base, 40_000))
    assert run([f.finish()], maps=(MapSpec("values", MapType.BPF_MAP_TYPE_ARRAY, 4, 1 << 16, 1),)) == 77


def small(number: int, *, swap: bool = False, place: int = 0) -> bc.Function:
    f = FunctionBuilder("small", ["a", "b"])
    a, b = f.parameters
    slot = (f.slot("slot", 8), f.slot("slot", 8))[place]
    f.store(f.frame_address(slot), 0, f.op(b if swap else a, "+", number))
    f.ret(f.load(f.frame_address(slot)))
    return f.finish()


def test_functions_of_one_shape_are_selected_once() -> None:
    assert Shaped(small(1)) == Shaped(small(1))
    assert hash(Shaped(small(1))) == hash(Shaped(small(1)))
    assert select([small(1)])[0] == select([small(1)])[0]
    for unlike in (small(2), small(1, swap=True), small(1, place=1)):
        assert Shaped(small(1)) != Shaped(unlike)
        assert select([small(1)])[0] != select([unlike])[0]


def test_a_value_is_no_constant_of_its_number() -> None:
    functions = []
    for is_constant in (False, True):
        f = FunctionBuilder("main", ["context"])
        f.ret(0 if is_constant else f.parameters[0])
        functions.append(f.finish())
    assert Shaped(functions[0]) != Shaped(functions[1])


# Long ways.


def long_function(*, blocks: int, size: int) -> bc.Function:
    """
    Many blocks, each of which can leave to the very end or go back to the very start: on odd rounds
    the blocks do nothing, so that only the jumps count.
    """
    f = FunctionBuilder("main", ["context"])
    total, rounds = f.let(f.parameters[0], "total"), f.let(0, "rounds")
    head, end = f.new_block("head"), f.new_block("end")
    f.start(head)
    f.update(rounds, "+", 1)
    skip, work = f.new_block("skip"), f.new_block("work")
    f.branch(rounds, ">", 3, end, work)
    f.start(work)
    for number in range(blocks):
        following = f.new_block("following")
        for step in range(size):
            f.update(total, "+" if step % 2 else "^", number + step)
        f.branch(total, "==", number, end, following)
        f.start(following)
    f.branch(total, "&", 1, head, skip)
    f.start(skip)
    f.update(total, "*", 3)
    f.jump(head)
    f.start(end)
    f.update(total, "+", 1)
    f.ret(total)
    return f.finish()


@pytest.mark.no_cover  # a sweep: several times as long when measured
def test_jumps_over_more_than_16_bits() -> None:
    function = long_function(blocks=40, size=1000)
    started = time.perf_counter()
    insns, _ = select([function])
    assert time.perf_counter() - started < 60  # About 2 s on an idle machine.
    assert len(insns) > 40_000
    assert all(abs(insn.off) < 1 << 15 for insn in insns)
    assert asm.gotol(0).code not in {insn.code for insn in insns}
    loaded = Machine().load(insns)
    execution = loaded.start(5)
    execution.run()
    assert execution.outcome().value & MASK == Evaluator([function]).call("main", [5])


def test_near_jumps_are_left_alone() -> None:
    items = [asm.jmp("jeq", R1, 0, "end"), *[asm.mov64(R0, 0)] * (REACH_SLOTS - 1), asm.LabelHere("end"), asm.exit_()]
    assert bridge_far_jumps(items) == items


def test_loop_depths() -> None:
    f = FunctionBuilder("main", ["context"])
    outer, inner, after, end = (f.new_block(name) for name in ("outer", "inner", "after", "end"))
    x = f.let(f.parameters[0])
    f.start(outer)
    f.update(x, "-", 1)
    f.start(inner)
    f.update(x, "-", 2)
    f.branch(x, ">", 7, inner, after)
    f.start(after)
    f.branch(x, ">", 3, outer, end)
    f.start(end)
    f.ret(x)
    depths = loop_depths(f.finish())
    assert [depths[name] for name in ("entry", outer, inner, after, end)] == [0, 1, 2, 1, 0]
