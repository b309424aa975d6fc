"""
Kernel functions that programs call, and what BTF does not say of them.

One line each: the name, who may call it, and flags: `acquire` returns a reference, `release` takes
its first argument's back, `null` may return null, `rcu` returns a pointer valid under RCU, `trusted`
wants trusted pointers, `rcuarg` is content with ones under RCU, `sleep` may sleep, `new`, `next`,
`destroy` are those of iterators, `mem` returns memory whose size is an argument `*__szk` or
`rdonly_buf_size`. Who: `all`; `any` is tracing, XDP, traffic control, cgroup skb, syscall and
struct_ops programs; `trace` tracing, syscall and struct_ops; `lsm`; `net` XDP and traffic control;
`tc`, `xdp`, `addr` for one type.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

KFUNCS: Final = """
bpf_iter_num_new             all    new
bpf_iter_num_next            all    next null
bpf_iter_num_destroy         all    destroy
bpf_iter_bits_new            all    new
bpf_iter_bits_next           all    next null
bpf_iter_bits_destroy        all    destroy
bpf_iter_task_vma_new        all    new rcuarg
bpf_iter_task_vma_next       all    next null
bpf_iter_task_vma_destroy    all    destroy
bpf_iter_css_task_new        all    new trusted
bpf_iter_css_task_next       all    next null
bpf_iter_css_task_destroy    all    destroy
bpf_iter_css_new             all    new trusted section
bpf_iter_css_next            all    next null
bpf_iter_css_destroy         all    destroy
bpf_iter_task_new            all    new trusted section
bpf_iter_task_next           all    next null
bpf_iter_task_destroy        all    destroy
bpf_iter_kmem_cache_new      all    new sleep
bpf_iter_kmem_cache_next     all    next null sleep
bpf_iter_kmem_cache_destroy  all    destroy sleep
bpf_rcu_read_lock            all
bpf_rcu_read_unlock          all
bpf_preempt_disable          all
bpf_preempt_enable           all
bpf_cast_to_kern_ctx         all    cast
bpf_rdonly_cast              all    cast
bpf_copy_from_user_str       all    sleep
bpf_copy_from_user_task_str  all    sleep
bpf_map_sum_elem_count       all    trusted
bpf_get_kmem_cache           all    null
bpf_strnstr                  all
bpf_strlen                   all
bpf_strcmp                   all
bpf_strstr                   all
bpf_strchr                   all
bpf_task_acquire             any    acquire rcuarg null
bpf_task_release             any    release
bpf_task_from_pid            any    acquire null
bpf_task_from_vpid           any    acquire null
bpf_task_under_cgroup        any    rcuarg
bpf_task_get_cgroup1         any    acquire rcuarg null
bpf_cgroup_acquire           any    acquire rcuarg null
bpf_cgroup_release           any    release
bpf_cgroup_ancestor          any    acquire rcuarg null
bpf_cgroup_from_id           any    acquire null
bpf_cpumask_create           trace  acquire null
bpf_cpumask_release          trace  release
bpf_cpumask_acquire          trace  acquire trusted
bpf_cpumask_first            trace  rcuarg
bpf_cpumask_first_zero       trace  rcuarg
bpf_cpumask_first_and        trace  rcuarg
bpf_cpumask_set_cpu          trace  rcuarg
bpf_cpumask_clear_cpu        trace  rcuarg
bpf_cpumask_test_cpu         trace  rcuarg
bpf_cpumask_test_and_set_cpu trace  rcuarg
bpf_cpumask_test_and_clear_cpu trace rcuarg
bpf_cpumask_setall           trace  rcuarg
bpf_cpumask_clear            trace  rcuarg
bpf_cpumask_and              trace  rcuarg
bpf_cpumask_or               trace  rcuarg
bpf_cpumask_xor              trace  rcuarg
bpf_cpumask_equal            trace  rcuarg
bpf_cpumask_intersects       trace  rcuarg
bpf_cpumask_subset           trace  rcuarg
bpf_cpumask_empty            trace  rcuarg
bpf_cpumask_full             trace  rcuarg
bpf_cpumask_copy             trace  rcuarg
bpf_cpumask_any_distribute   trace  rcuarg
bpf_cpumask_any_and_distribute trace rcuarg
bpf_cpumask_weight           trace  rcuarg
bpf_get_task_exe_file        lsm    acquire trusted null
bpf_put_file                 lsm    release
bpf_path_d_path              lsm    trusted
bpf_lookup_user_key          trace  acquire null sleep
bpf_lookup_system_key        trace  acquire null
bpf_key_put                  trace  release
bpf_sock_destroy             trace  trusted
bpf_xdp_ct_lookup            xdp    acquire null
bpf_skb_ct_lookup            tc     acquire null
bpf_ct_release               net    release
bpf_ct_set_timeout           net    trusted
bpf_ct_change_timeout        net    trusted
bpf_ct_set_status            net    trusted
bpf_ct_change_status         net    trusted
bpf_sock_addr_set_sun_path   addr
bpf_get_dentry_xattr         lsm    sleep trusted
bpf_get_file_xattr           lsm    sleep trusted
bpf_set_dentry_xattr         lsm    sleep trusted
bpf_remove_dentry_xattr      lsm    sleep trusted
bpf_crypto_ctx_create        trace  acquire null sleep
bpf_crypto_ctx_acquire       trace  acquire rcuarg null
bpf_crypto_ctx_release       trace  release
bpf_crypto_encrypt           net    rcuarg
bpf_crypto_decrypt           net    rcuarg
bpf_verify_pkcs7_signature   trace  sleep
bpf_cpumask_populate         trace  rcuarg
bpf_throw                    any    throw
bpf_dynptr_from_skb          skb    dynptr
bpf_dynptr_from_xdp          xdp    dynptr
bpf_dynptr_slice             all    dynptr null
bpf_dynptr_slice_rdwr        all    dynptr null
bpf_dynptr_clone             all    dynptr
bpf_dynptr_adjust            all    dynptr
bpf_dynptr_is_null           all    dynptr
bpf_dynptr_is_rdonly         all    dynptr
bpf_dynptr_size              all    dynptr
"""


class KernelFunction(NamedTuple):
    """One line of the table."""

    name: str
    who: str
    flags: frozenset[str]


@cache
def kernel_functions() -> dict[str, KernelFunction]:
    """Return the table by name."""
    table = {}
    for line in KFUNCS.strip().splitlines():
        name, who, *flags = line.split()
        table[name] = KernelFunction(name, who, frozenset(flags))
    return table


_TRACING: Final = frozenset({"TRACING", "LSM", "TRACEPOINT", "PERF_EVENT", "SYSCALL", "STRUCT_OPS"})
_CALLERS: Final = {
    "any": _TRACING | {"XDP", "SCHED_CLS", "CGROUP_SKB"},
    "trace": _TRACING,
    "lsm": frozenset({"LSM"}),
    "net": frozenset({"XDP", "SCHED_CLS"}),
    "tc": frozenset({"SCHED_CLS"}),
    "xdp": frozenset({"XDP"}),
    "skb": frozenset({"SCHED_CLS", "SCHED_ACT", "CGROUP_SKB", "SOCKET_FILTER", "NETFILTER", "TRACING"}),
    "addr": frozenset({"CGROUP_SOCK_ADDR"}),
}


def may_call(function: KernelFunction, prog_type: str) -> bool:
    """Whether a kind of program, named without its prefix, may call a function."""
    return function.who == "all" or prog_type in _CALLERS[function.who]
