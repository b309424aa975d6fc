"""Instruction selection: random functions give what the IR means, and the awkward cases one by one."""

import random

import pytest

from actplane import asm
from actplane.asm import MapSpec
from actplane.asm.machine import Machine
from actplane.codegen.select import select
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder

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
