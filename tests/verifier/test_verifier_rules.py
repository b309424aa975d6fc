"""The mirror on small programs about one rule each: the same list that kernels are asked about."""

from __future__ import annotations

import pytest

from actplane.asm.assembler import assemble_object
from actplane.loader.btf import Btf
from actplane.loader.btf_types import BtfType, Kind, Linkage, Member
from actplane.loader.btf_write import BtfWriter
from actplane.verifier import Options, OwnTypes, TypeRef, verify
from actplane.verifier.tables.profiles import PROFILES
from tests.verifier.small_programs import PROGRAMS_ABOUT_RULES, SmallProgram


@pytest.mark.parametrize(
    "small", [pytest.param(one, id=one.name) for one in PROGRAMS_ABOUT_RULES if not one.needs_types]
)
def test_rule(small: SmallProgram) -> None:
    program, maps = small.program()
    declared = small.types(program)
    own = OwnTypes(Btf(declared[0]), declared[1]) if declared is not None else None
    refusal = verify(program, maps, own=own, profile=PROFILES["6.18"]).refusal
    assert (refusal.id if refusal is not None else "") == small.id, refusal


def test_names_tell_the_programs_apart() -> None:
    assert len({one.name for one in PROGRAMS_ABOUT_RULES}) == len(PROGRAMS_ABOUT_RULES)


def kernel_with(*takes: int, returns: int = 4) -> Btf:
    """Return a kernel with one function, whose arguments have these sizes: 8 a pointer, from 16 on structs, 0 `...`."""
    writer = BtfWriter()
    u32, u64 = writer.integer("u32", 4), writer.integer("u64", 8)

    def kind(size: int) -> int:
        if size in (0, 4):
            return u32 if size else 0
        struct = BtfType(Kind.BTF_KIND_STRUCT, f"of{size}", size, members=(Member("a", u64),))
        return writer.once(BtfType(Kind.BTF_KIND_PTR, target=writer.once(struct)) if size == 8 else struct)

    params = tuple(Member(f"a{index}" if size else "", kind(size)) for index, size in enumerate(takes))
    writer.func("traced", writer.func_proto(kind(returns), params), Linkage.BTF_FUNC_STATIC)
    return Btf(writer.encode())


@pytest.mark.parametrize(
    ("takes", "returns", "off", "id_"),
    [
        ((4, 16, 8), 4, 8, "not-a-pointer"),
        ((4, 16, 8), 4, 16, "not-a-pointer"),
        ((4, 16, 8), 4, 24, ""),
        ((4, 16, 8), 4, 32, "context-access"),
        ((4, 24, 8), 4, 0, "attach"),
        ((8,), 16, 0, "attach"),
        ((8,) * 12, 4, 88, ""),
        ((8,) * 13, 4, 0, "attach"),
        ((8, 0), 4, 0, "attach"),
    ],
)
def test_arguments_of_traced_functions(takes: tuple[int, ...], returns: int, off: int, id_: str) -> None:
    head = ".prog main tracing attach_type=BPF_TRACE_FENTRY attach_to=traced\n"
    text = f"{head}r2 = *(u64 *)(r1 +{off})\nr0 = *(u32 *)(r2 +0)\nr0 = 0\nexit"
    found = assemble_object(text, name="test").programs[0]
    refusal = verify(found, types=kernel_with(*takes, returns=returns), profile=PROFILES["6.18"]).refusal
    assert (refusal.id if refusal is not None else "") == id_, refusal


def test_lsm_programs_have_a_license() -> None:
    text = ".prog main lsm attach_type=BPF_LSM_MAC attach_to=file_open license=Proprietary\nr0 = 0\nexit"
    refusal = verify(assemble_object(text, name="test").programs[0], types=kernel_with()).refusal
    assert refusal is not None
    assert refusal.id == "gpl-required"


@pytest.mark.parametrize("helper", ["bpf_get_current_comm", "bpf_get_current_cgroup_id", "bpf_send_signal"])
def test_helpers_for_users_with_privileges(helper: str) -> None:
    program = assemble_object(f".prog main socket_filter\nr1 = 0\ncall {helper}\nexit", name="test").programs[0]
    refusal = verify(program, options=Options(is_privileged=False)).refusal
    assert refusal is not None
    assert refusal.id == "privileged-only"


def work_queues() -> tuple[Btf, Btf, int]:
    """Return a kernel that calls functions of programs back later, a program's types, and its struct with a queue."""
    kernel, own = BtfWriter(), BtfWriter()
    types = []
    for writer in (kernel, own):
        u64 = writer.integer("u64", 8)
        members = (Member("a", u64), Member("b", u64, 64))
        types.append(writer.add(BtfType(Kind.BTF_KIND_STRUCT, "bpf_wq", 16, members=members)))
    value = own.add(BtfType(Kind.BTF_KIND_STRUCT, "value", 16, members=(Member("queue", types[1]),)))
    number = kernel.integer("int", 4)
    params = (
        Member("wq", kernel.add(BtfType(Kind.BTF_KIND_PTR, target=types[0]))),
        Member("callback_fn", kernel.add(BtfType(Kind.BTF_KIND_PTR, target=kernel.func_proto(number)))),
        Member("flags", number),
        Member("aux__ign", kernel.add(BtfType(Kind.BTF_KIND_PTR))),
    )
    kernel.func("bpf_wq_set_callback_impl", kernel.func_proto(number, params), Linkage.BTF_FUNC_GLOBAL)
    return Btf(kernel.encode()), Btf(own.encode()), value


@pytest.mark.parametrize(
    ("prepare", "id_"),
    [("r2 = subprog[f]\nr3 = 0\nr4 = 0\ncall bpf_wq_set_callback_impl#kfunc", ""), ("call f", "sleeping")],
)
def test_callbacks_of_work_queues_may_sleep(prepare: str, id_: str) -> None:
    kernel, own, value = work_queues()
    sleeping = "r1 = r10\nr1 += -8\nr2 = 8\nr3 = 0\ncall bpf_copy_from_user\nr0 = 0\nexit"
    text = f"r1 = map[v][0]+0\n{prepare}\nr0 = 0\nexit\nf:\n{sleeping}"
    found = assemble_object(f".map v array key=4 value=16 max_entries=1\n.prog main sched_cls\n{text}", name="test")
    types = OwnTypes(own, {}, {"v": TypeRef(own, value)})
    refusal = verify(found.programs[0], found.maps, kernel, own=types, profile=PROFILES["6.18"]).refusal
    assert (refusal.id if refusal is not None else "") == id_, refusal


@pytest.mark.parametrize("atomic", ["lock *(u64 *)(r10 -8) += r2", "r2 = atomic64_fetch_or((u64 *)(r10 -8), r2)"])
def test_atomics_do_not_make_numbers_of_spilled_pointers_without_privileges(atomic: str) -> None:
    text = f".prog main socket_filter\n*(u64 *)(r10 -8) = r1\nr2 = 8\n{atomic}\nr0 = 0\nexit"
    program = assemble_object(text, name="test").programs[0]
    assert verify(program).is_accepted
    refusal = verify(program, options=Options(is_privileged=False)).refusal
    assert refusal is not None
    assert (refusal.id, refusal.slot) == ("pointer-leak", 2)
