"""
What instruction selection makes of random functions, judged and run by the running kernel.

The kernel's verifier proves that no register or stack slot is read before it is written and that
nothing survives a call that must not; the result must be what the IR means.
"""

from __future__ import annotations

import errno
import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest

from actplane import asm
from actplane.codegen.select import select
from actplane.errors import KernelError
from actplane.ir import bytecode as bc
from actplane.loader.programs import load

PROGRAMS = 100


def load_random_functions() -> ModuleType:
    """The generator and the evaluator of the unprivileged tests."""
    path = Path(__file__).parents[1] / "codegen" / "test_codegen_select.py"
    spec = importlib.util.spec_from_file_location("random_functions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


random_functions = load_random_functions()


def program(functions: list[bc.Function]) -> asm.Program:
    insns, names = select(functions)
    return asm.Program("select", asm.ProgType.BPF_PROG_TYPE_SOCKET_FILTER, insns, functions=names)


@pytest.fixture(scope="module", autouse=True)
def needs_bpf() -> None:
    nothing = asm.Program("nothing", asm.ProgType.BPF_PROG_TYPE_SOCKET_FILTER, (asm.mov64(asm.R0, 0), asm.exit_()))
    try:
        load(nothing, {}).close()
    except KernelError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            pytest.skip(f"may not load programs here: {error}")
        raise


def random_program(seed: int) -> list[bc.Function]:
    """A random main without parameters (no arithmetic on its context), and what it calls."""
    rng = random.Random(seed)
    variables, size = rng.choice([3, 8, 20]), rng.choice([8, 12, 20])
    writer = random_functions.Writer
    leaf = writer(rng, "leaf", rng.randint(0, 5), [], rng.randint(1, variables)).write(size)
    middle = writer(rng, "middle", rng.randint(0, 5), [leaf], rng.randint(1, variables)).write(size)
    functions = [writer(rng, "main", 0, [leaf, middle], variables).write(size)]
    for function in (middle, leaf):
        # The kernel refuses functions that nobody calls.
        if any(function.name in called(caller) for caller in functions):
            functions.append(function)
    return functions


def called(function: bc.Function) -> set[str]:
    operations = [operation for block in function.blocks for operation in block.operations]
    return {operation.function for operation in operations if isinstance(operation, bc.CallFunction)}


def test_the_kernel_accepts_and_computes_what_the_ir_means() -> None:
    for seed in range(PROGRAMS):
        functions = random_program(seed)
        expected = random_functions.Evaluator(functions).call("main", [])
        with load(program(functions), {}) as loaded:
            assert loaded.test_run(bytes(64)).retval == expected & 0xFFFFFFFF, seed


@pytest.mark.no_cover  # a sweep: several times as long when measured
def test_the_kernel_accepts_stepping_stones() -> None:
    """Unrolled code of 60,000 instructions with a jump over all of it."""
    function = random_functions.long_function(blocks=60, size=1000)
    entry = bc.Block("start", (bc.Move(function.parameters[0], 5),), bc.Jump("entry"))
    function = bc.Function("main", (), (entry, *function.blocks))
    expected = random_functions.Evaluator([function]).call("main", [])
    with load(program([function]), {}) as loaded:
        assert loaded.test_run(bytes(64)).retval == expected & 0xFFFFFFFF
