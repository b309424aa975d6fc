"""
struct_ops programs: each implements one member of a kernel struct of function pointers. What the
member takes is in BTF; which members may be implemented, which helpers they may call and what they may write
to is data, for the structs listed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actplane.asm.program import Program
from actplane.asm.uapi import HelperId
from actplane.verifier.domains.btf_walk import bare, pointee
from actplane.verifier.domains.kinds import Flag
from actplane.verifier.domains.types import BtfKind, Member, Type, TypeProvider
from actplane.verifier.paths.attach import MAX_ARGS, Argument, AttachPoint, argument
from actplane.verifier.paths.values import Pointer
from actplane.verifier.paths.verification import GPL_COMPATIBLE
from actplane.verifier.tables.profiles import KernelProfile
from actplane.verifier.tables.refusals import refuse


@dataclass(frozen=True, slots=True)
class Operations:
    """
    A struct of operations.

    `closed` are members that programs may not implement, `sleepable` those that may sleep; `helpers`
    is what they may call beside what every program may, `not_in` members without one of these;
    `writable` the members of structs that they may write to (`*`: any), `promoted` the struct that a
    pointer to another one is taken for.
    """

    closed: frozenset[str] = frozenset()
    sleepable: frozenset[str] = frozenset()
    helpers: frozenset[int] = frozenset()
    not_in: tuple[tuple[str, int], ...] = ()
    writable: tuple[tuple[str, frozenset[str]], ...] = ()
    promoted: tuple[str, str] = ("", "")

    def may_write(self, struct: str, member: str) -> bool:
        return any(struct == name and (member in members or "*" in members) for name, members in self.writable)


_SOCK_MEMBERS: Final = frozenset({"sk_pacing_rate", "sk_pacing_status"})
_TCP_MEMBERS: Final = frozenset(
    """icsk_ca_priv pending snd_cwnd snd_cwnd_cnt snd_cwnd_stamp snd_ssthresh ecn_flags app_limited""".split()  # noqa: SIM905
)

KNOWN: Final = {
    "tcp_congestion_ops": Operations(
        closed=frozenset({"get_info", "name", "owner", "list", "key", "flags"}),
        helpers=frozenset(
            {
                HelperId.bpf_tcp_send_ack,
                HelperId.bpf_sk_storage_get,
                HelperId.bpf_sk_storage_delete,
                HelperId.bpf_setsockopt,
                HelperId.bpf_getsockopt,
                HelperId.bpf_ktime_get_coarse_ns,
            }
        ),
        not_in=(("release", HelperId.bpf_setsockopt),),
        writable=(("sock", _SOCK_MEMBERS), ("tcp_sock", _SOCK_MEMBERS | _TCP_MEMBERS)),
        promoted=("sock", "tcp_sock"),
    ),
    "bpf_dummy_ops": Operations(
        sleepable=frozenset({"test_sleepable"}), writable=(("bpf_dummy_ops_state", frozenset({"*"})),)
    ),
}


def operations_of(program: Program) -> tuple[Operations, str, str]:
    """
    Return what is known of the struct that a program implements a member of, and both names.

    Shape:  `program.attach_to` is STRUCT.MEMBER.
    Raises: Refused if the struct is not one of `KNOWN`, or not given.
    """
    struct, _, member = (program.attach_to or "").partition(".")
    known = KNOWN.get(struct)
    if known is None or not member:
        claim = f"a struct_ops program for {program.attach_to or 'a struct that is not given'}"
        refuse("target-not-modelled", -1, f"{claim}; known are members of {', '.join(KNOWN)}")
    return known, struct, member


def find(program: Program, types: TypeProvider | None, profile: KernelProfile) -> AttachPoint:
    """Return the member that a program implements. Refuses those that programs may not implement."""
    known, struct, name = operations_of(program)
    if program.license not in GPL_COMPATIBLE:
        refuse("gpl-required", -1, "struct_ops programs must have a GPL-compatible license")
    if types is None:
        refuse("attach", -1, f"no kernel types are given, so nothing is known of struct {struct}")
    type_id = types.id_of(BtfKind.STRUCT, struct)
    if type_id is None or types.id_of(BtfKind.STRUCT, f"bpf_struct_ops_{struct}") is None:
        refuse("attach", -1, f"the kernel takes no programs for struct {struct}")
    member = next((one for one in types.type_at(type_id).members if one.name == name), None)
    proto = _prototype(types, member) if member is not None else None
    if proto is None or name in known.closed:
        refuse("attach", -1, f"programs may not implement {name} of struct {struct}")
    if program.is_sleepable and name not in known.sleepable:
        refuse("sleeping", -1, f"{name} of struct {struct} does not run where sleeping is allowed")
    nullable = _nullable(types, f"{struct}__{name}")
    args = []
    for index, param in enumerate(proto.members[:MAX_ARGS]):
        flags = (Flag.TRUSTED if profile.at_least(6, 2) else 0) | (Flag.NULL if index in nullable else 0)
        args.append(_promoted(types, known, argument(types, param.type_id, flags, f"argument {index} of {name}")))
    returned = bare(types, proto.target)
    returns = argument(types, proto.target, 0, f"what {name} returns") if returned is not None else None
    return AttachPoint(f"{struct}.{name}", tuple(args), returns, has_return_arg=False)


def _prototype(types: TypeProvider, member: Member) -> Type | None:
    target = pointee(types, member.type_id)
    found = types.type_at(target) if target else None
    return found if found is not None and found.kind == BtfKind.FUNC_PROTO else None


def _nullable(types: TypeProvider, stub: str) -> set[int]:
    """Return which arguments may be null, by the names in the kernel's own stub of a member."""
    type_id = types.id_of(BtfKind.FUNC, stub)
    if type_id is None:
        return set()
    proto = types.type_at(types.type_at(type_id).target)
    return {index for index, param in enumerate(proto.members) if param.name.endswith("__nullable")}


def _promoted(types: TypeProvider, known: Operations, given: Argument) -> Argument:
    value = given.value
    wanted, better = known.promoted
    if not isinstance(value, Pointer) or not wanted or types.type_at(value.type_id).name != wanted:
        return given
    type_id = types.id_of(BtfKind.STRUCT, better)
    return given if type_id is None else Argument(value.but(type_id=type_id))


def may_write(program: Program, struct: str, member: str) -> bool:
    """Whether a program may write to a member of a kernel struct."""
    return operations_of(program)[0].may_write(struct, member)


def helpers(program: Program, base: frozenset[int]) -> frozenset[int]:
    """Return what a program may call, given what every program may."""
    known, _, member = operations_of(program)
    return (base | known.helpers) - {helper for name, helper in known.not_in if name == member}
