"""
How deep calls nest and how much stack they share. What is expected is what Linux 6.18.44 and 7.2.13 said of the
same programs.
"""

from __future__ import annotations

import pytest

from actplane.asm import assemble_object
from actplane.errors import ActplaneError
from actplane.loader.btf import Btf
from actplane.loader.btf_types import Linkage
from actplane.loader.btf_write import BtfWriter
from actplane.verifier import OwnTypes, profile_of, verify

SAFE = ""


def judge(kinds: str, kernel: str, stack: int = 0) -> str:
    """
    Return the id that a chain of calls is refused for: one function for each letter, static or global (`s`, `g`),
    each of which uses some bytes of stack.
    """
    use = f"*(u64 *)(r10 -{stack}) = 0\n" if stack else ""
    lines = [".prog f0 socket_filter\n"]
    for index in range(len(kinds)):
        name = f".func f{index}\n" if index else ""
        lines.append(f"{name}{use}{f'call f{index + 1}' if index + 1 < len(kinds) else ''}\nr0 = 0\nexit\n")
    (program,) = assemble_object("".join(lines), name="frames").programs
    writer = BtfWriter()
    prototype = writer.func_proto(writer.integer("int", 4, is_signed=True))
    # No instruction here has two slots.
    starts = [0, *sorted(program.functions)]
    functions = {
        start: writer.func(f"f{index}", prototype, linkage)
        for index, start in enumerate(starts)
        for linkage in [Linkage.BTF_FUNC_GLOBAL if kinds[index] == "g" else Linkage.BTF_FUNC_STATIC]
    }
    report = verify(program, {}, own=OwnTypes(Btf(writer.encode()), functions), profile=profile_of(kernel))
    return report.refusal.id if report.refusal is not None else SAFE


@pytest.mark.parametrize(
    ("kernel", "kinds", "id_"),
    [
        ("6.18", "s" * 8, SAFE),
        ("6.18", "s" * 9, "too-many-frames"),
        ("7.2", "s" * 16, SAFE),
        ("7.2", "s" * 17, "too-many-frames"),
        ("7.2.13+deb14-amd64", "s" * 16, SAFE),
        ("7.2", "s" + "g" * 39, SAFE),
        ("7.2", "s" * 16 + "g" + "s" * 15, SAFE),
        ("7.2", "s" * 16 + "g" + "s" * 16, "too-many-frames"),
    ],
)
def test_calls_nest_as_deep_as_the_kernel_lets_them(kernel: str, kinds: str, id_: str) -> None:
    assert judge(kinds, kernel) == id_


@pytest.mark.parametrize(
    ("kernel", "kinds", "stack", "id_"),
    [
        ("7.2", "s" * 16, 32, SAFE),
        ("7.2", "s" * 16, 40, "stack-too-deep"),
        ("7.2", "s" * 9, 56, "stack-too-deep"),
        ("7.2", "s" + "g" * 19, 24, "stack-too-deep"),
        ("6.18", "s" * 8, 64, SAFE),
        ("6.18", "s" * 2, 264, "stack-too-deep"),
    ],
)
def test_calls_share_512_bytes_of_stack_however_deep(kernel: str, kinds: str, stack: int, id_: str) -> None:
    assert judge(kinds, kernel, stack) == id_


@pytest.mark.parametrize(("kernel", "id_"), [("6.1", "stack-too-deep"), ("6.18", SAFE), ("7.2", SAFE)])
def test_a_function_without_stack_needs_none(kernel: str, id_: str) -> None:
    text = ".prog p socket_filter\n*(u64 *)(r10 -512) = 0\ncall f\nr0 = 0\nexit\n.func f\nr0 = 0\nexit\n"
    report = verify(assemble_object(text, name="frames").programs[0], {}, profile=profile_of(kernel))
    assert (report.refusal.id if report.refusal is not None else SAFE) == id_


@pytest.mark.parametrize(
    ("kind", "id_"),
    [
        ("kprobe", SAFE),
        ("tracing attach_type=BPF_TRACE_RAW_TP attach_to=sched_process_exec", SAFE),
        ("tracing attach_type=BPF_TRACE_ITER attach_to=task", "stack-too-deep"),
        ("raw_tracepoint_writable", "stack-too-deep"),
        ("xdp", "stack-too-deep"),
    ],
)
def test_some_programs_have_a_stack_of_their_own_for_each_function(kind: str, id_: str) -> None:
    try:
        types = Btf.vmlinux()
    except ActplaneError as error:
        pytest.skip(f"needs the types of a kernel: {error}")
    text = (
        f".prog p {kind}\n*(u64 *)(r10 -512) = 0\ncall f\nr0 = 0\nexit\n.func f\n*(u64 *)(r10 -128) = 0\nr0 = 0\nexit\n"
    )
    report = verify(assemble_object(text, name="frames").programs[0], {}, types, profile=profile_of("6.18"))
    assert (report.refusal.id if report.refusal is not None else SAFE) == id_
