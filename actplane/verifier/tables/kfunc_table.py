"""
Kernel functions that programs call, and what BTF does not say of them.

One line each: the name, the first kernel that has it, who may call it, and flags: `acquire` returns
a reference, `release` takes the one of an argument back, `null` may return null, `rcu` returns a
pointer valid under RCU, `trusted` wants trusted pointers, `rcuarg` is content with ones under RCU,
`sleep` may sleep, `new`, `next`, `destroy` are those of iterators, `section` works within an RCU
section, `packet` may move the packet, `device` is for programs bound to a network device, `cast`,
`throw` and `dynptr` are rules of their own, `callback` keeps a function for later. Who: `all`; `any` is
tracing, XDP, traffic control, cgroup, syscall and struct_ops programs; `trace` tracing, syscall and
struct_ops; `net` XDP and traffic control, `packet` also its actions; the others are in `_CALLERS`.
Source: the sets of kernel functions that the kernel registers (BTF_ID_FLAGS).
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

KFUNCS: Final = """
bpf_iter_num_new             6.4  all    new
bpf_iter_num_next            6.4  all    next null
bpf_iter_num_destroy         6.4  all    destroy
bpf_iter_bits_new            6.11 all    new
bpf_iter_bits_next           6.11 all    next null
bpf_iter_bits_destroy        6.11 all    destroy
bpf_iter_task_vma_new        6.7  all    new rcuarg
bpf_iter_task_vma_next       6.7  all    next null
bpf_iter_task_vma_destroy    6.7  all    destroy
bpf_iter_css_task_new        6.7  all    new trusted
bpf_iter_css_task_next       6.7  all    next null
bpf_iter_css_task_destroy    6.7  all    destroy
bpf_iter_css_new             6.7  all    new trusted section
bpf_iter_css_next            6.7  all    next null
bpf_iter_css_destroy         6.7  all    destroy
bpf_iter_task_new            6.7  all    new trusted section
bpf_iter_task_next           6.7  all    next null
bpf_iter_task_destroy        6.7  all    destroy
bpf_iter_kmem_cache_new      6.13 all    new sleep
bpf_iter_kmem_cache_next     6.13 all    next null sleep
bpf_iter_kmem_cache_destroy  6.13 all    destroy sleep
bpf_iter_dmabuf_new          6.16 all    new sleep
bpf_iter_dmabuf_next         6.16 all    next null sleep
bpf_iter_dmabuf_destroy      6.16 all    destroy sleep
bpf_rcu_read_lock            6.2  all
bpf_rcu_read_unlock          6.2  all
bpf_preempt_disable          6.10 all
bpf_preempt_enable           6.10 all
bpf_local_irq_save           6.14 all
bpf_local_irq_restore        6.14 all
bpf_res_spin_lock            6.15 all
bpf_res_spin_unlock          6.15 all
bpf_res_spin_lock_irqsave    6.15 all
bpf_res_spin_unlock_irqrestore 6.15 all
bpf_cast_to_kern_ctx         6.2  all    cast
bpf_rdonly_cast              6.2  all    cast
bpf_copy_from_user_str       6.12 all    sleep
bpf_copy_from_user_task_str  6.15 all    sleep
bpf_copy_from_user_dynptr    6.16 all    sleep dynptr
bpf_copy_from_user_str_dynptr 6.16 all   sleep dynptr
bpf_copy_from_user_task_dynptr 6.16 all  sleep trusted dynptr
bpf_copy_from_user_task_str_dynptr 6.16 all sleep trusted dynptr
bpf_probe_read_kernel_dynptr 6.16 all    dynptr
bpf_probe_read_kernel_str_dynptr 6.16 all dynptr
bpf_probe_read_user_dynptr   6.16 all    dynptr
bpf_probe_read_user_str_dynptr 6.16 all  dynptr
bpf_map_sum_elem_count       6.6  all    trusted
bpf_get_kmem_cache           6.13 all    null
bpf_strcmp                   6.17 all
bpf_strcasecmp               6.18 all
bpf_strchr                   6.17 all
bpf_strchrnul                6.17 all
bpf_strnchr                  6.17 all
bpf_strrchr                  6.17 all
bpf_strlen                   6.17 all
bpf_strnlen                  6.17 all
bpf_strspn                   6.17 all
bpf_strcspn                  6.17 all
bpf_strstr                   6.17 all
bpf_strnstr                  6.17 all
bpf_stream_vprintk_impl      6.17 all
bpf_wq_init                  6.10 all
bpf_wq_set_callback_impl     6.10 all    callback
bpf_wq_start                 6.10 all
bpf_task_work_schedule_signal_impl 6.18 all trusted callback
bpf_task_work_schedule_resume_impl 6.18 all trusted callback
bpf_modify_return_test_tp    6.11 all
bpf_arena_alloc_pages        6.9  all    sleep
bpf_arena_free_pages         6.9  all    sleep
bpf_arena_reserve_pages      6.17 all    sleep
bpf_obj_new_impl             6.2  any    acquire null
bpf_obj_drop_impl            6.2  any    release
bpf_percpu_obj_new_impl      6.7  any    acquire null
bpf_percpu_obj_drop_impl     6.7  any    release
bpf_refcount_acquire_impl    6.4  any    acquire null rcuarg
bpf_list_push_front_impl     6.2  any
bpf_list_push_back_impl      6.2  any
bpf_list_pop_front           6.2  any    acquire null
bpf_list_pop_back            6.2  any    acquire null
bpf_list_front               6.16 any    null
bpf_list_back                6.16 any    null
bpf_rbtree_add_impl          6.3  any
bpf_rbtree_remove            6.3  any    acquire null
bpf_rbtree_first             6.3  any    null
bpf_rbtree_root              6.16 any    null
bpf_rbtree_left              6.16 any    null
bpf_rbtree_right             6.16 any    null
bpf_task_acquire             6.2  any    acquire rcuarg null
bpf_task_release             6.2  any    release
bpf_task_from_pid            6.2  any    acquire null
bpf_task_from_vpid           6.14 any    acquire null
bpf_task_under_cgroup        6.5  any    rcuarg
bpf_task_get_cgroup1         6.8  any    acquire rcuarg null
bpf_cgroup_acquire           6.2  any    acquire rcuarg null
bpf_cgroup_release           6.2  any    release
bpf_cgroup_ancestor          6.2  any    acquire rcuarg null
bpf_cgroup_from_id           6.4  any    acquire null
bpf_send_signal_task         6.13 any    trusted
bpf_throw                    6.7  any    throw
bpf_cpumask_create           6.3  trace  acquire null
bpf_cpumask_release          6.3  trace  release
bpf_cpumask_acquire          6.3  trace  acquire trusted
bpf_cpumask_first            6.3  trace  rcuarg
bpf_cpumask_first_zero       6.3  trace  rcuarg
bpf_cpumask_first_and        6.6  trace  rcuarg
bpf_cpumask_set_cpu          6.3  trace  rcuarg
bpf_cpumask_clear_cpu        6.3  trace  rcuarg
bpf_cpumask_test_cpu         6.3  trace  rcuarg
bpf_cpumask_test_and_set_cpu 6.3  trace  rcuarg
bpf_cpumask_test_and_clear_cpu 6.3 trace rcuarg
bpf_cpumask_setall           6.3  trace  rcuarg
bpf_cpumask_clear            6.3  trace  rcuarg
bpf_cpumask_and              6.3  trace  rcuarg
bpf_cpumask_or               6.3  trace  rcuarg
bpf_cpumask_xor              6.3  trace  rcuarg
bpf_cpumask_equal            6.3  trace  rcuarg
bpf_cpumask_intersects       6.3  trace  rcuarg
bpf_cpumask_subset           6.3  trace  rcuarg
bpf_cpumask_empty            6.3  trace  rcuarg
bpf_cpumask_full             6.3  trace  rcuarg
bpf_cpumask_copy             6.3  trace  rcuarg
bpf_cpumask_any_distribute   6.5  trace  rcuarg
bpf_cpumask_any_and_distribute 6.5 trace rcuarg
bpf_cpumask_weight           6.8  trace  rcuarg
bpf_cpumask_populate         6.15 trace  rcuarg
bpf_get_task_exe_file        6.12 lsm    acquire trusted null
bpf_put_file                 6.12 lsm    release
bpf_path_d_path              6.12 lsm    trusted
bpf_get_dentry_xattr         6.12 lsm    sleep trusted
bpf_get_file_xattr           6.8  lsm    sleep trusted
bpf_set_dentry_xattr         6.15 lsm    sleep trusted
bpf_remove_dentry_xattr      6.15 lsm    sleep trusted
bpf_cgroup_read_xattr        6.17 all    rcuarg
bpf_lookup_user_key          6.1  trace  acquire null sleep
bpf_lookup_system_key        6.1  trace  acquire null
bpf_key_put                  6.1  trace  release
bpf_verify_pkcs7_signature   6.1  trace  sleep
bpf_sock_destroy             6.5  trace  trusted
bpf_crypto_ctx_create        6.10 sys    acquire null sleep
bpf_crypto_ctx_acquire       6.10 sys    acquire rcuarg null
bpf_crypto_ctx_release       6.10 sys    release
bpf_crypto_encrypt           6.10 packet rcuarg
bpf_crypto_decrypt           6.10 packet rcuarg
bpf_skb_ct_lookup            5.18 net    acquire null
bpf_skb_ct_alloc             6.0  net    acquire null
bpf_xdp_ct_lookup            5.18 net    acquire null
bpf_xdp_ct_alloc             6.0  net    acquire null
bpf_ct_insert_entry          6.0  net    acquire null release
bpf_ct_release               5.18 net    release
bpf_ct_set_nat_info          6.1  net    trusted
bpf_ct_set_timeout           6.0  net    trusted
bpf_ct_change_timeout        6.0  net    trusted
bpf_ct_set_status            6.0  net    trusted
bpf_ct_change_status         6.0  net    trusted
bpf_sk_assign_tcp_reqsk      6.9  tc     trusted
bpf_xdp_get_xfrm_state       6.8  xdp    acquire null
bpf_xdp_xfrm_state_release   6.8  xdp    release
bpf_xdp_metadata_rx_hash     6.3  xdp    trusted device
bpf_xdp_metadata_rx_timestamp 6.3 xdp    trusted device
bpf_xdp_metadata_rx_vlan_tag 6.8  xdp    trusted device
bpf_xdp_pull_data            6.18 xdp    packet
bpf_sock_addr_set_sun_path   6.7  addr
bpf_sock_ops_enable_tx_tstamp 6.15 sockops trusted
bpf_session_is_return        6.10 kprobe
bpf_session_cookie           6.10 kprobe
bpf_dynptr_from_skb          6.4  skb    dynptr trusted
bpf_dynptr_from_skb_meta     6.18 cls    dynptr trusted
bpf_dynptr_from_xdp          6.4  xdp    dynptr
bpf_dynptr_slice             6.4  all    dynptr null
bpf_dynptr_slice_rdwr        6.4  all    dynptr null
bpf_dynptr_clone             6.5  all    dynptr
bpf_dynptr_adjust            6.5  all    dynptr
bpf_dynptr_is_null           6.5  all    dynptr
bpf_dynptr_is_rdonly         6.5  all    dynptr
bpf_dynptr_size              6.5  all    dynptr
bpf_dynptr_copy              6.16 all    dynptr
bpf_dynptr_memset            6.17 all    dynptr
bpf_kfunc_call_test_release  5.18 test   release
bpf_kfunc_call_memb_release  5.18 test   release
css_rstat_updated            6.1  hooks
css_rstat_flush              6.1  hooks  sleep
tcp_reno_ssthresh            5.13 ops
tcp_reno_cong_avoid          5.13 ops
tcp_reno_undo_cwnd           5.13 ops
tcp_slow_start               5.13 ops
tcp_cong_avoid_ai            5.13 ops
cubictcp_init                5.13 ops
cubictcp_recalc_ssthresh     5.13 ops
cubictcp_cong_avoid          5.13 ops
cubictcp_state               5.13 ops
cubictcp_cwnd_event          5.13 ops
cubictcp_acked               5.13 ops
bbr_init                     5.13 ops
bbr_main                     5.13 ops
bbr_sndbuf_expand            5.13 ops
bbr_undo_cwnd                5.13 ops
bbr_cwnd_event               5.13 ops
bbr_ssthresh                 5.13 ops
bbr_min_tso_segs             5.13 ops
bbr_set_state                5.13 ops
"""

_WITHOUT_IMPL: Final = frozenset(
    """bpf_obj_new bpf_obj_drop bpf_percpu_obj_new bpf_percpu_obj_drop bpf_refcount_acquire bpf_list_push_front
    bpf_list_push_back bpf_rbtree_add bpf_wq_set_callback bpf_stream_vprintk
    bpf_task_work_schedule_signal bpf_task_work_schedule_resume""".split()  # noqa: SIM905
)
"""Since Linux 7.1 these go by their plain names, too."""


class KernelFunction(NamedTuple):
    """One line of the table."""

    name: str
    since: tuple[int, int]
    who: str
    flags: frozenset[str]


@cache
def _table() -> dict[str, KernelFunction]:
    table = {}
    for line in KFUNCS.strip().splitlines():
        name, since, who, *flags = line.split()
        major, _, minor = since.partition(".")
        table[name] = KernelFunction(name, (int(major), int(minor)), who, frozenset(flags))
    return table


def find_function(name: str) -> KernelFunction | None:
    """
    Return what is known of a kernel function, None if it is not in the table.

    >>> find_function("bpf_obj_new").name
    'bpf_obj_new_impl'
    """
    return _table().get(f"{name}_impl" if name in _WITHOUT_IMPL else name)


_TRACING: Final = frozenset({"TRACING", "LSM", "TRACEPOINT", "PERF_EVENT"})
_CGROUP: Final = frozenset(
    {
        "CGROUP_SKB",
        "CGROUP_SOCK",
        "CGROUP_DEVICE",
        "CGROUP_SOCK_ADDR",
        "CGROUP_SOCKOPT",
        "CGROUP_SYSCTL",
        "SOCK_OPS",
    }
)
_PACKET: Final = frozenset({"SCHED_CLS", "SCHED_ACT", "SOCKET_FILTER", "SK_SKB", "NETFILTER"})
_TUNNEL: Final = frozenset({"LWT_IN", "LWT_OUT", "LWT_XMIT", "LWT_SEG6LOCAL"})
_CALLERS: Final = {
    "any": _TRACING | _CGROUP | {"XDP", "SCHED_CLS", "SYSCALL", "STRUCT_OPS"},
    "trace": _TRACING | {"SYSCALL", "STRUCT_OPS"},
    "test": _TRACING | {"SYSCALL", "SCHED_CLS"},
    "lsm": frozenset({"LSM"}),
    "net": frozenset({"XDP", "SCHED_CLS"}),
    "packet": frozenset({"XDP", "SCHED_CLS", "SCHED_ACT"}),
    "hooks": _TRACING,
    "sys": frozenset({"SYSCALL"}),
    "tc": frozenset({"SCHED_CLS"}),
    "cls": frozenset({"SCHED_CLS", "SCHED_ACT"}),
    "xdp": frozenset({"XDP"}),
    "skb": _PACKET | _TUNNEL | _TRACING | _CGROUP,
    "addr": frozenset({"CGROUP_SOCK_ADDR"}),
    "sockops": frozenset({"SOCK_OPS"}),
    "kprobe": frozenset({"KPROBE"}),
    "ops": frozenset({"STRUCT_OPS"}),
}


def may_call(function: KernelFunction, prog_type: str) -> bool:
    """Whether a kind of program, named without its prefix, may call a function."""
    return function.who == "all" or prog_type in _CALLERS[function.who]
