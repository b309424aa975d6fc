"""
What a program is attached to, for the kinds that name a function, a tracepoint or a hook: its
arguments and what it returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actplane.asm.program import Program
from actplane.asm.uapi import AttachType, ProgType
from actplane.verifier.domains.btf_walk import bare, is_number, is_struct, pointee, type_tags
from actplane.verifier.domains.kinds import Flag, Kind
from actplane.verifier.domains.scalar import between_signed
from actplane.verifier.domains.types import BtfKind, Type, TypeProvider
from actplane.verifier.paths.values import UNKNOWN_SCALAR, Pointer, Scalar, scalar
from actplane.verifier.paths.verification import GPL_COMPATIBLE
from actplane.verifier.tables.profiles import KernelProfile
from actplane.verifier.tables.refusals import refuse

MAX_ARGS: Final = 12

BTF_ATTACHED: Final = frozenset({ProgType.BPF_PROG_TYPE_TRACING, ProgType.BPF_PROG_TYPE_LSM})

# LSM hooks whose objects are being made or torn down: their pointers are not trusted.
_UNTRUSTED_HOOKS: Final = frozenset(
    {
        "bpf_map_free",
        "bpf_prog_free",
        "file_alloc_security",
        "file_free_security",
        "sk_alloc_security",
        "sk_free_security",
        "task_free",
        "bpf_prog_alloc_security",
        "bpf_map_alloc_security",
    }
)

# LSM hooks that run where sleeping is allowed.
_SLEEPABLE: Final = """
bpf bpf_map bpf_map_create bpf_map_free bpf_prog bpf_prog_free bpf_prog_load bpf_token_capable bpf_token_cmd
bpf_token_create bpf_token_free bprm_check_security bprm_committed_creds bprm_committing_creds
bprm_creds_for_exec bprm_creds_from_file capget capset cred_prepare current_getsecid_subj d_instantiate d_path
file_ioctl file_ioctl_compat file_lock file_open file_post_open file_receive file_truncate inode_create
inode_free_security inode_get_acl inode_getattr inode_getxattr inode_mknod inode_need_killpriv
inode_post_removexattr inode_post_set_acl inode_post_setattr inode_post_setxattr inode_readlink inode_remove_acl
inode_removexattr inode_rename inode_rmdir inode_set_acl inode_setattr inode_setxattr inode_symlink inode_unlink
kernel_load_data kernel_module_request kernel_read_file kernfs_init_security key_free key_permission mmap_file
netlink_send path_notify path_truncate release_secctx sb_alloc_security sb_eat_lsm_opts sb_kern_mount sb_mount
sb_remount sb_set_mnt_opts sb_show_options sb_statfs sb_umount settime socket_accept socket_bind socket_connect
socket_create socket_getpeername socket_getpeersec_dgram socket_getsockname socket_getsockopt socket_listen
socket_post_create socket_recvmsg socket_sendmsg socket_shutdown socket_socketpair syslog task_alloc
task_fix_setgid task_fix_setuid task_getsecid_obj task_prctl task_setscheduler task_to_inode userns_create
"""
SLEEPABLE_HOOKS: Final = frozenset(_SLEEPABLE.split())

# LSM hooks that answer with 0 or 1 instead of an error number.
_BOOLEAN_HOOKS: Final = frozenset({"inode_need_killpriv", "xfrm_state_pol_flow_match", "audit_rule_known"})

# LSM hooks that a program may not attach to, and since when.
_DISABLED: Final = """
getprocattr getselfattr inode_copy_up inode_copy_up_xattr inode_getsecurity inode_listsecurity
inode_need_killpriv ismaclabel key_getsecurity secid_to_secctx setprocattr vm_enough_memory
"""
DISABLED_HOOKS: Final = dict.fromkeys(_DISABLED.split(), (6, 1)) | {"file_alloc_security": (7, 1)}

# Arguments of tracepoints that may be null although most callers pass a pointer, and that may be an error
# number in place of one: which argument, and the tracepoints. Source: raw_tp_null_args in kernel/bpf/btf.c.
_MAY_BE_NULL: Final = {
    0: """
        afs_protocol_error amdgpu_vm_bo_map amdgpu_vm_bo_unmap cachefiles_io_error cachefiles_lookup
        cachefiles_mark_active cachefiles_mark_failed cachefiles_mark_inactive cachefiles_ondemand_open
        cachefiles_prep_read cachefiles_rename cachefiles_unlink cachefiles_vfs_error
        mm_collapse_huge_page_isolate mm_page_alloc mm_page_alloc_zone_locked mm_page_pcpu_drain netfs_folioq
        rxrpc_client rxrpc_recvdata tcp_send_reset tmigr_update_events xs_stream_read_data""",
    1: """
        afs_flock_ev afs_make_fs_call afs_make_fs_call1 afs_make_fs_call2 afs_make_fs_calli break_lease_block
        break_lease_noblock break_lease_unblock device_pm_callback_start ext4_mballoc_discard ext4_mballoc_free
        fcntl_setlk flock_lock_inode folio_wait_writeback generic_delete_lease locks_remove_posix
        mm_khugepaged_collapse_file mm_khugepaged_scan_file mm_khugepaged_scan_pmd netfs_failure posix_lock_inode
        rxrpc_resend rxrpc_tq sched_pi_setprio tcp_send_reset time_out_leases writeback_dirty_folio
        xprt_get_cong xprt_put_cong xprt_release_cong xprt_reserve_cong""",
    2: """
        fib_table_lookup sched_stick_numa sched_swap_numa tcp_sendmsg_locked tegra_dma_tx_status
        xfs_btree_overlapped_query_range xfs_btree_updkeys""",
    3: "kfree_skb qdisc_dequeue",
    4: "host1x_cdma_push_gather xfs_map_blocks_alloc xfs_map_blocks_found",
}
_MAY_BE_ERROR: Final = {2: "cachefiles_lookup", 3: "mr_integ_alloc"}


def _pairs(table: dict[int, str]) -> frozenset[tuple[str, int]]:
    return frozenset((name, index) for index, names in table.items() for name in names.split())


_NULLABLE_TRACEPOINT_ARGS: Final = _pairs(_MAY_BE_NULL)
_ERROR_TRACEPOINT_ARGS: Final = _pairs(_MAY_BE_ERROR)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of an attach point: the value that a load of it yields, or why it is refused."""

    value: Scalar | Pointer | None
    problem: str = ""
    is_pointer: bool = False
    """Whether the kernel's type is a pointer, even if what it points at is not known."""


@dataclass(frozen=True, slots=True)
class AttachPoint:
    """A function or tracepoint with its arguments; `returns` is that of the function, None for void."""

    name: str
    args: tuple[Argument, ...]
    returns: Argument | None
    has_return_arg: bool
    """Whether the context holds the return value after the arguments (fexit, fmod_ret)."""


_SINCE: Final = {
    "BPF_PROG_TYPE_SYSCALL": (5, 14),
    "BPF_PROG_TYPE_NETFILTER": (6, 4),
    "BPF_LSM_CGROUP": (6, 0),
    "BPF_CGROUP_UNIX_CONNECT": (6, 7),
    "BPF_CGROUP_UNIX_SENDMSG": (6, 7),
    "BPF_CGROUP_UNIX_RECVMSG": (6, 7),
    "BPF_CGROUP_UNIX_GETPEERNAME": (6, 7),
    "BPF_CGROUP_UNIX_GETSOCKNAME": (6, 7),
}
"""Program and attach types that not every kernel knows."""


_ADDRESS_POINTS: Final = """
    INET4_BIND INET6_BIND INET4_CONNECT INET6_CONNECT UNIX_CONNECT UDP4_SENDMSG UDP6_SENDMSG UNIX_SENDMSG
    UDP4_RECVMSG UDP6_RECVMSG UNIX_RECVMSG INET4_GETPEERNAME INET6_GETPEERNAME UNIX_GETPEERNAME
    INET4_GETSOCKNAME INET6_GETSOCKNAME UNIX_GETSOCKNAME"""


def _points(names: str) -> frozenset[AttachType]:
    return frozenset(AttachType[f"BPF_{name}"] for name in names.split())


_POINTS: Final = {
    ProgType.BPF_PROG_TYPE_CGROUP_SOCK: _points(
        "CGROUP_INET_SOCK_CREATE CGROUP_INET_SOCK_RELEASE CGROUP_INET4_POST_BIND CGROUP_INET6_POST_BIND"
    ),
    ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR: frozenset(
        AttachType[f"BPF_CGROUP_{name}"] for name in _ADDRESS_POINTS.split()
    ),
    ProgType.BPF_PROG_TYPE_CGROUP_SKB: _points("CGROUP_INET_INGRESS CGROUP_INET_EGRESS"),
    ProgType.BPF_PROG_TYPE_CGROUP_SOCKOPT: _points("CGROUP_SETSOCKOPT CGROUP_GETSOCKOPT"),
    ProgType.BPF_PROG_TYPE_SK_LOOKUP: _points("SK_LOOKUP"),
    ProgType.BPF_PROG_TYPE_SK_REUSEPORT: _points("SK_REUSEPORT_SELECT SK_REUSEPORT_SELECT_OR_MIGRATE"),
    ProgType.BPF_PROG_TYPE_NETFILTER: _points("NETFILTER"),
    ProgType.BPF_PROG_TYPE_SYSCALL: frozenset[AttachType](),
}
"""Kinds of programs of which the kernel wants to know where they will be attached, and where they may be."""
_HAVE_FIRST_POINT: Final = frozenset(
    {
        ProgType.BPF_PROG_TYPE_CGROUP_SOCK,
        ProgType.BPF_PROG_TYPE_CGROUP_SKB,
        ProgType.BPF_PROG_TYPE_SK_REUSEPORT,
        ProgType.BPF_PROG_TYPE_SYSCALL,
    }
)
"""Those that need not say it."""


def _check_point(program: Program) -> None:
    """Refuse a kind of program where it cannot be attached. Source: bpf_prog_load_check_attach() of Linux 6.18."""
    allowed, point = _POINTS.get(program.prog_type), program.attach_type
    if allowed is None or point in allowed or (point is None and program.prog_type in _HAVE_FIRST_POINT):
        return
    kind = program.prog_type.name.removeprefix("BPF_PROG_TYPE_")
    if point is None:
        refuse("attach", -1, f"{kind} programs must say where they will be attached")
    refuse("attach", -1, f"{kind} programs are not attached at {point.name}")


def find(program: Program, types: TypeProvider | None, profile: KernelProfile) -> AttachPoint | None:
    """
    Return what a TRACING or LSM program is attached to; None for other kinds of program.

    Raises: Refused if the name is missing, not in BTF, or not one that this kind may attach to.
    """
    for kind in (program.prog_type, program.attach_type):
        major, minor = _SINCE.get(kind.name, (0, 0)) if kind is not None else (0, 0)
        if not profile.at_least(major, minor):
            refuse("attach", -1, f"kernels know such programs since Linux {major}.{minor}")
    _check_point(program)
    if program.prog_type not in BTF_ATTACHED:
        return None
    name = program.attach_to
    if not name:
        refuse("attach", -1, "a tracing or LSM program needs the name of what it attaches to")
    if types is None:
        refuse("attach", -1, f"no kernel types are given, so nothing is known of {name!r}")
    is_lsm = program.prog_type is ProgType.BPF_PROG_TYPE_LSM
    if is_lsm:
        if program.license not in GPL_COMPATIBLE:
            refuse("gpl-required", -1, "LSM programs must have a GPL-compatible license")
        if name in DISABLED_HOOKS and profile.at_least(*DISABLED_HOOKS[name]):
            refuse("attach", -1, f"the LSM hook {name} is closed to programs")
        function = f"bpf_lsm_{name}"
        if program.is_sleepable and not _may_sleep_in(name, profile):
            refuse("sleeping", -1, f"the LSM hook {name} does not run where sleeping is allowed")
    else:
        function = {
            AttachType.BPF_TRACE_RAW_TP: f"btf_trace_{name}",
            AttachType.BPF_TRACE_ITER: f"bpf_iter_{name}",
        }.get(program.attach_type or AttachType.BPF_TRACE_FENTRY, name)
    if not is_lsm:
        _check_function(program, name, profile)
    proto = _prototype(types, function, is_tracepoint=program.attach_type is AttachType.BPF_TRACE_RAW_TP)
    if proto is None:
        refuse("attach", -1, f"the kernel's BTF has no {function}")
    if program.attach_type is not AttachType.BPF_TRACE_RAW_TP:
        _check_prototype(types, name, proto, profile)
    return _point(program, types, name, proto, profile)


def _may_sleep_in(name: str, profile: KernelProfile) -> bool:
    if not profile.at_least(5, 11):
        return name == "bprm_committed_creds"
    return name in SLEEPABLE_HOOKS or (name == "bdev_alloc_security" and profile.at_least(7, 1))


# Arguments of iterators that are buffers of the element's size.
_ITER_BUFFERS: Final = {
    ("bpf_map_elem", 2): Flag.RDONLY | Flag.NULL,
    ("bpf_map_elem", 3): Flag.NULL,
    ("bpf_sk_storage_map", 3): Flag.NULL,
    ("sockmap", 2): Flag.RDONLY | Flag.NULL,
}
# Arguments of iterators, other than the first, that are never null.
_ITER_MAPS: Final = frozenset({("bpf_map_elem", 1), ("bpf_sk_storage_map", 1), ("sockmap", 1)})

# Functions that tracing programs may not attach to, since when, and those that never return.
_UNTRACEABLE: Final = {
    "migrate_disable": (5, 13),
    "migrate_enable": (5, 13),
    "rcu_read_unlock_strict": (5, 13),
    "__rcu_read_lock": (6, 4),
    "__rcu_read_unlock": (6, 4),
}
_NEVER_RETURN: Final = frozenset(
    {
        "do_exit",
        "do_group_exit",
        "kthread_complete_and_exit",
        "kthread_exit",
        "make_task_dead",
        "__module_put_and_kthread_exit",
    }
)


def _check_function(program: Program, name: str, profile: KernelProfile) -> None:
    """Refuse functions of the kernel that this way of attaching does not work for."""
    target = program.attach_type
    if target in (AttachType.BPF_TRACE_RAW_TP, AttachType.BPF_TRACE_ITER):
        return
    if name in _UNTRACEABLE and profile.at_least(*_UNTRACEABLE[name]):
        refuse("attach", -1, f"the kernel function {name} cannot be traced")
    is_last = target in (AttachType.BPF_TRACE_FEXIT, AttachType.BPF_MODIFY_RETURN)
    if is_last and name in _NEVER_RETURN and profile.at_least(6, 12):
        refuse("attach", -1, f"the kernel function {name} never returns")
    # Before 6.2 these needed a kernel built with error injection.
    is_test = profile.at_least(6, 2) and name.startswith(
        ("bpf_modify_return_test", "bpf_fentry_test", "update_socket_protocol")
    )
    # Since 7.1 system calls count as such places, however the kernel was built.
    is_test = is_test or (profile.at_least(7, 1) and name.startswith("__x64_sys_"))
    if target is AttachType.BPF_MODIFY_RETURN and not is_test and not name.startswith("security_"):
        refuse("attach", -1, f"the return value of the kernel function {name} cannot be modified")
    # Where the kernel is built with error injection, system calls may be traced by programs that sleep.
    if program.is_sleepable and not is_test:
        refuse("sleeping", -1, f"the kernel function {name} does not run where sleeping is allowed")


def _check_prototype(types: TypeProvider, name: str, proto: Type, profile: KernelProfile) -> None:
    """
    Refuse functions that a trampoline cannot call.

    Source: btf_distill_func_proto() in kernel/bpf/btf.c of Linux 6.18.
    """
    if len(proto.members) > MAX_ARGS:
        refuse("attach", -1, f"{name} has {len(proto.members)} arguments, programs are given {MAX_ARGS} at most")
    if is_struct(bare(types, proto.target)):
        refuse("attach", -1, f"{name} returns a struct")
    for index, param in enumerate(proto.members):
        found = bare(types, param.type_id)
        if found is None:
            refuse("attach", -1, f"{name} has a varying number of arguments")
        is_small = _is_words(found, profile) and found.size <= 16
        if not is_small and not is_number(found) and found.kind != BtfKind.PTR:
            refuse("attach", -1, f"argument {index} of {name} is of a kind that programs are not given")


def _is_words(found: Type | None, profile: KernelProfile) -> bool:
    """Whether an argument is a struct or union by value that programs see as words."""
    if found is None or not is_struct(found):
        return False
    return profile.at_least(6, 1) if found.kind == BtfKind.STRUCT else profile.at_least(6, 18)


def _prototype(types: TypeProvider, name: str, *, is_tracepoint: bool) -> Type | None:
    if is_tracepoint:
        type_id = types.id_of(BtfKind.TYPEDEF, name)
        if type_id is None:
            return None
        target = pointee(types, type_id)
        return types.type_at(target) if target else None
    type_id = types.id_of(BtfKind.FUNC, name)
    return types.type_at(types.type_at(type_id).target) if type_id is not None else None


def _point(program: Program, types: TypeProvider, name: str, proto: Type, profile: KernelProfile) -> AttachPoint:
    params = list(proto.members)
    is_tracepoint = program.attach_type is AttachType.BPF_TRACE_RAW_TP
    if is_tracepoint:
        params = params[1:]  # the first is the tracepoint's own data
    is_iter = program.attach_type is AttachType.BPF_TRACE_ITER
    flags = _trust(program, name, profile)
    knows_null = is_tracepoint and profile.at_least(6, 12)
    args: list[Argument] = []
    for index, param in enumerate(params[:MAX_ARGS]):
        if knows_null and (name, index) in _ERROR_TRACEPOINT_ARGS:
            args.append(Argument(UNKNOWN_SCALAR, is_pointer=True))
            continue
        extra = Flag.NULL if knows_null and (name, index) in _NULLABLE_TRACEPOINT_ARGS else 0
        if param.name.endswith("__nullable") or (is_iter and index and (name, index) not in _ITER_MAPS):
            extra = Flag.NULL
        if (name, index) in _ITER_BUFFERS and is_iter:
            args.append(Argument(Pointer(Kind.BUF, flags=_ITER_BUFFERS[name, index])))
            continue
        found = bare(types, param.type_id)
        if _is_words(found, profile):
            assert found is not None
            # A struct by value is as many words as it has.
            args += [Argument(UNKNOWN_SCALAR)] * -(-found.size // 8)
            continue
        args.append(argument(types, param.type_id, flags | extra, f"argument {index} of {name}"))
    returned = bare(types, proto.target)
    returns = argument(types, proto.target, 0, f"the return value of {name}") if returned is not None else None
    lsm_range = _lsm_range(program, None, profile) if program.prog_type is ProgType.BPF_PROG_TYPE_LSM else None
    if returns is not None and lsm_range is not None and program.attach_type is not AttachType.BPF_LSM_CGROUP:
        returns = Argument(scalar(between_signed(*lsm_range)))
    has_return = program.attach_type in (
        AttachType.BPF_TRACE_FEXIT,
        AttachType.BPF_MODIFY_RETURN,
    ) or (program.prog_type is ProgType.BPF_PROG_TYPE_LSM and returned is not None)
    return AttachPoint(name, tuple(args), returns, has_return)


def _trust(program: Program, name: str, profile: KernelProfile) -> int:
    if not profile.at_least(6, 2):
        return 0
    if program.prog_type is ProgType.BPF_PROG_TYPE_LSM:
        return 0 if name in _UNTRUSTED_HOOKS else Flag.TRUSTED
    if program.attach_type in (AttachType.BPF_TRACE_RAW_TP, AttachType.BPF_TRACE_ITER):
        return Flag.TRUSTED
    return 0


def argument(types: TypeProvider, type_id: int, flags: int, what: str) -> Argument:
    """Return the value of an argument of a kernel function by its type."""
    found = bare(types, type_id)
    if found is None or is_number(found):
        return Argument(UNKNOWN_SCALAR)
    if found.kind != BtfKind.PTR:
        return Argument(None, f"{what} is a struct by value, which cannot be read")
    target = pointee(types, type_id)
    inner = types.type_at(target) if target else None
    if inner is None or inner.kind in (BtfKind.INT, BtfKind.PTR, BtfKind.ARRAY):
        return Argument(UNKNOWN_SCALAR, is_pointer=True)
    if not is_struct(inner):
        return Argument(None, f"{what} points at something without a known layout")
    tags = type_tags(types, type_id)
    if "user" in tags:
        flags |= Flag.USER
    if "percpu" in tags:
        flags |= Flag.PERCPU
    return Argument(Pointer(Kind.BTF_ID, flags=flags, types=types, type_id=target or 0))


def return_range(program: Program, point: AttachPoint | None, profile: KernelProfile) -> tuple[int, int] | None:
    """Return the range that r0 must be in at the end of the program, None if any number will do."""
    kind, attach = program.prog_type, program.attach_type
    if kind is ProgType.BPF_PROG_TYPE_LSM:
        return _lsm_range(program, point, profile)
    if kind is ProgType.BPF_PROG_TYPE_TRACING:
        if attach in (AttachType.BPF_TRACE_FENTRY, AttachType.BPF_TRACE_FEXIT):
            return 0, 0
        return (0, 1) if attach is AttachType.BPF_TRACE_ITER else None
    if kind is ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR:
        name = attach.name if attach is not None else ""
        if name.endswith(("RECVMSG", "GETPEERNAME", "GETSOCKNAME")):
            return 1, 1
        is_bind = name in ("BPF_CGROUP_INET4_BIND", "BPF_CGROUP_INET6_BIND")
        return (0, 3) if is_bind and profile.at_least(5, 12) else (0, 1)
    if kind is ProgType.BPF_PROG_TYPE_CGROUP_SKB:
        return (0, 3) if attach is AttachType.BPF_CGROUP_INET_EGRESS else (0, 1)
    if kind is ProgType.BPF_PROG_TYPE_KPROBE and attach is AttachType.BPF_TRACE_KPROBE_SESSION:
        return (0, 1) if profile.at_least(6, 10) else None
    if kind is ProgType.BPF_PROG_TYPE_KPROBE and attach is AttachType.BPF_TRACE_UPROBE_SESSION:
        return (0, 1) if profile.at_least(6, 13) else None
    return (0, 1) if kind in _ZERO_OR_ONE else None


_ZERO_OR_ONE: Final = frozenset(
    {
        ProgType.BPF_PROG_TYPE_CGROUP_SOCK,
        ProgType.BPF_PROG_TYPE_SOCK_OPS,
        ProgType.BPF_PROG_TYPE_CGROUP_DEVICE,
        ProgType.BPF_PROG_TYPE_CGROUP_SYSCTL,
        ProgType.BPF_PROG_TYPE_CGROUP_SOCKOPT,
        ProgType.BPF_PROG_TYPE_SK_LOOKUP,
        ProgType.BPF_PROG_TYPE_NETFILTER,
    }
)


def _lsm_range(program: Program, point: AttachPoint | None, profile: KernelProfile) -> tuple[int, int] | None:
    is_void = point is not None and point.returns is None
    if program.attach_type is AttachType.BPF_LSM_CGROUP:
        return (1, 1) if is_void else (0, 1)
    if is_void or not profile.at_least(6, 12):
        return None
    if program.attach_to in _BOOLEAN_HOOKS:
        return 0, 1
    return -4095, 0


def takes_no_return_value(program: Program, point: AttachPoint | None) -> bool:
    """Whether r0 need not even be set at the end: an LSM hook or an operation that returns nothing."""
    if program.prog_type is ProgType.BPF_PROG_TYPE_STRUCT_OPS:
        return point is not None and point.returns is None
    is_lsm = program.prog_type is ProgType.BPF_PROG_TYPE_LSM and program.attach_type is not AttachType.BPF_LSM_CGROUP
    return is_lsm and point is not None and point.returns is None
