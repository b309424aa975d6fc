"""
The prototypes of helpers: what each takes and returns.

One line a helper: its name without `bpf_`, what it returns, its arguments. A `?` means that the
pointer may be null; `mem`, `wmem` and `umem` are memory that is read, read and written, or only
written, with its length in the argument after it (`size`, or `size0` where 0 will do);
`mem:N`, `wmem:N` and `umem:N` have N bytes; `btf:NAME` is a pointer to a kernel struct. `any` is
not looked at. Source: documentation of the helpers in include/uapi/linux/bpf.h.
"""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

from actplane.asm.uapi import HelperId

PROTOTYPES: Final = """
map_lookup_elem          map_value?     map key
map_update_elem          int            map key value any
map_delete_elem          int            map key
probe_read               int            umem size0 any
ktime_get_ns             int
trace_printk             int            mem size
get_prandom_u32          int
get_smp_processor_id     int
skb_store_bytes          int            ctx any mem size any
l3_csum_replace          int            ctx any any any any
l4_csum_replace          int            ctx any any any any
tail_call                void           ctx map any
clone_redirect           int            ctx any any
get_current_pid_tgid     int
get_current_uid_gid      int
get_current_comm         int            umem size
get_cgroup_classid       int            ctx
skb_vlan_push            int            ctx any any
skb_vlan_pop             int            ctx
skb_get_tunnel_key       int            ctx umem size any
skb_set_tunnel_key       int            ctx mem size any
perf_event_read          int            map any
redirect                 int            any any
get_route_realm          int            ctx
perf_event_output        int            ctx map any mem size0
skb_load_bytes           int            ctx any umem size
get_stackid              int            ctx map any
csum_diff                int            mem? size0 mem? size0 any
skb_get_tunnel_opt       int            ctx umem size
skb_set_tunnel_opt       int            ctx mem size
skb_change_proto         int            ctx any any
skb_change_type          int            ctx any
skb_under_cgroup         int            ctx map any
get_hash_recalc          int            ctx
get_current_task         int
probe_write_user         int            any mem size
current_task_under_cgroup int           map any
skb_change_tail          int            ctx any any
skb_pull_data            int            ctx any
csum_update              int            ctx any
set_hash_invalid         int            ctx
get_numa_node_id         int
skb_change_head          int            ctx any any
xdp_adjust_head          int            ctx any
probe_read_str           int            umem size0 any
get_socket_cookie        int            ctx
get_socket_uid           int            ctx
set_hash                 int            ctx any
setsockopt               int            ctx any any mem size
skb_adjust_room          int            ctx any any any
redirect_map             int            map any any
sk_redirect_map          int            ctx map any any
sock_map_update          int            ctx map key any
xdp_adjust_meta          int            ctx any
perf_event_read_value    int            map any umem size
perf_prog_read_value     int            ctx umem size
getsockopt               int            ctx any any umem size
override_return          int            ctx any
sock_ops_cb_flags_set    int            ctx any
msg_redirect_map         int            ctx map any any
msg_apply_bytes          int            ctx any
msg_cork_bytes           int            ctx any
msg_pull_data            int            ctx any any any
bind                     int            ctx mem size
xdp_adjust_tail          int            ctx any
skb_get_xfrm_state       int            ctx any umem size any
get_stack                int            ctx umem size0 any
skb_load_bytes_relative  int            ctx any umem size any
fib_lookup               int            ctx wmem size any
sock_hash_update         int            ctx map key any
msg_redirect_hash        int            ctx map key any
sk_redirect_hash         int            ctx map key any
lwt_push_encap           int            ctx any mem size
lwt_seg6_store_bytes     int            ctx any mem size
lwt_seg6_adjust_srh      int            ctx any any
lwt_seg6_action          int            ctx any mem size
rc_repeat                int            ctx
rc_keydown               int            ctx any any any
skb_cgroup_id            int            ctx
get_current_cgroup_id    int
get_local_storage        map_value      map any
sk_select_reuseport      int            ctx map key any
skb_ancestor_cgroup_id   int            ctx any
sk_lookup_tcp            sock?          ctx mem size any any
sk_lookup_udp            sock?          ctx mem size any any
sk_release               int            sk
map_push_elem            int            map value any
map_pop_elem             int            map uvalue
map_peek_elem            int            map uvalue
msg_push_data            int            ctx any any any
msg_pop_data             int            ctx any any any
rc_pointer_rel           int            ctx any any
spin_lock                void           lock
spin_unlock              void           lock
sk_fullsock              sock?          sock_common
tcp_sock                 tcp_sock?      sock_common
skb_ecn_set_ce           int            ctx
get_listener_sock        sock?          sock_common
skc_lookup_tcp           sock_common?   ctx mem size any any
tcp_check_syncookie      int            sk mem size mem size
sysctl_get_name          int            ctx umem size any
sysctl_get_current_value int            ctx umem size
sysctl_get_new_value     int            ctx umem size
sysctl_set_new_value     int            ctx mem size
strtol                   int            mem size any umem:8
strtoul                  int            mem size any umem:8
sk_storage_get           map_value?     map sk value? any
sk_storage_delete        int            map sk
send_signal              int            any
tcp_gen_syncookie        int            sk mem size mem size
skb_output               int            btf:sk_buff map any mem size0
probe_read_user          int            umem size0 any
probe_read_kernel        int            umem size0 any
probe_read_user_str      int            umem size0 any
probe_read_kernel_str    int            umem size0 any
tcp_send_ack             int            btf:tcp_sock any
send_signal_thread       int            any
jiffies64                int
read_branch_records      int            ctx umem? size0 any
get_ns_current_pid_tgid  int            any any umem size
xdp_output               int            btf:xdp_buff map any mem size0
get_netns_cookie         int            ctx?
get_current_ancestor_cgroup_id int      any
sk_assign                int            ctx sk any
ktime_get_boot_ns        int
seq_printf               int            btf:seq_file mem size mem? size0
seq_write                int            btf:seq_file mem size0
sk_cgroup_id             int            sk
sk_ancestor_cgroup_id    int            sk any
ringbuf_output           int            map mem size0 any
ringbuf_reserve          record?        map alloc_size any
ringbuf_submit           void           record any
ringbuf_discard          void           record any
ringbuf_query            int            map any
csum_level               int            ctx any
skc_to_tcp6_sock         btf:tcp6_sock?         sk
skc_to_tcp_sock          btf:tcp_sock?          sk
skc_to_tcp_timewait_sock btf:tcp_timewait_sock? sk
skc_to_tcp_request_sock  btf:tcp_request_sock?  sk
skc_to_udp6_sock         btf:udp6_sock?         sk
get_task_stack           int            btf:task_struct umem size0 any
load_hdr_opt             int            ctx wmem size any
store_hdr_opt            int            ctx mem size any
reserve_hdr_opt          int            ctx any any
inode_storage_get        map_value?     map btf:inode? value? any
inode_storage_delete     int            map btf:inode?
d_path                   int            btf:path umem size0
copy_from_user           int            umem size0 any
snprintf_btf             int            umem size mem size any
seq_printf_btf           int            btf:seq_file mem size0 any
skb_cgroup_classid       int            ctx
redirect_neigh           int            any mem? size0 any
per_cpu_ptr              percpu?        percpu any
this_cpu_ptr             percpu         percpu
redirect_peer            int            any any
task_storage_get         map_value?     map btf:task_struct? value? any
task_storage_delete      int            map btf:task_struct?
get_current_task_btf     btf:task_struct
bprm_opts_set            int            btf:linux_binprm any
ktime_get_coarse_ns      int
ima_inode_hash           int            btf:inode umem size
sock_from_file           btf:socket?    btf:file
check_mtu                int            ctx any wmem:4 any any
for_each_map_elem        int            map func stack? any
snprintf                 int            umem? size0 str mem? size0
sys_bpf                  int            any mem size
btf_find_by_name_kind    int            mem size any any
sys_close                int            any
timer_init               int            timer map any
timer_set_callback       int            timer func
timer_start              int            timer any any
timer_cancel             int            timer
get_func_ip              int            ctx
get_attach_cookie        int            ctx
task_pt_regs             btf:pt_regs    btf:task_struct
get_branch_snapshot      int            umem size0 any
trace_vprintk            int            mem size mem? size0
skc_to_unix_sock         btf:unix_sock? sk
kallsyms_lookup_name     int            mem size0 any umem:8
find_vma                 int            btf:task_struct any func stack? any
loop                     int            any func stack? any
strncmp                  int            mem size str
get_func_arg             int            ctx any umem:8
get_func_ret             int            ctx umem:8
get_func_arg_cnt         int            ctx
get_retval               int
set_retval               int            any
xdp_get_buff_len         int            ctx
xdp_load_bytes           int            ctx any umem size
xdp_store_bytes          int            ctx any mem size
copy_from_user_task      int            umem size0 any btf:task_struct any
skb_set_tstamp           int            ctx any any
ima_file_hash            int            btf:file umem size
kptr_xchg                kptr?          kptr object?
map_lookup_percpu_elem   map_value?     map key any
skc_to_mptcp_sock        btf:mptcp_sock? sk
dynptr_from_mem          int            umem size0 any dynptr_new:local
ringbuf_reserve_dynptr   int            map any any dynptr_new:ringbuf
ringbuf_submit_dynptr    void           dynptr_end:ringbuf any
ringbuf_discard_dynptr   void           dynptr_end:ringbuf any
dynptr_read              int            umem size0 dynptr any any
dynptr_write             int            dynptr any mem size0 any
dynptr_data              dynptr_data?   dynptr any alloc_size
tcp_raw_gen_syncookie_ipv4   int        wmem:20 mem size
tcp_raw_gen_syncookie_ipv6   int        wmem:40 mem size
tcp_raw_check_syncookie_ipv4 int        mem:20 mem:20
tcp_raw_check_syncookie_ipv6 int        mem:40 mem:20
ktime_get_tai_ns         int
user_ringbuf_drain       int            map func stack? any
cgrp_storage_get         map_value?     map btf:cgroup? value? any
cgrp_storage_delete      int            map btf:cgroup?
"""


class Arg(NamedTuple):
    """
    One argument: its kind, whether null will do, and what follows a colon (a struct, bytes).

    The pieces are those of `PROTOTYPES`.
    """

    kind: str
    is_nullable: bool
    detail: str


PRIVILEGED: Final = frozenset(
    HelperId[f"bpf_{name}"]
    for name in """spin_lock spin_unlock jiffies64 per_cpu_ptr this_cpu_ptr timer_init timer_set_callback timer_start
    timer_cancel kptr_xchg for_each_map_elem loop user_ringbuf_drain ringbuf_reserve_dynptr ringbuf_submit_dynptr
    ringbuf_discard_dynptr dynptr_from_mem dynptr_read dynptr_write dynptr_data cgrp_storage_get cgrp_storage_delete
    trace_printk get_current_task get_current_task_btf probe_read_user probe_read_kernel probe_read_user_str
    probe_read_kernel_str task_pt_regs snprintf_btf snprintf trace_vprintk current_task_under_cgroup
    get_cgroup_classid task_storage_get task_storage_delete get_current_cgroup_id get_current_ancestor_cgroup_id
    get_current_comm perf_event_read perf_event_read_value
    send_signal send_signal_thread get_task_stack copy_from_user copy_from_user_task get_branch_snapshot find_vma
    skc_to_tcp6_sock skc_to_tcp_sock skc_to_tcp_timewait_sock skc_to_tcp_request_sock skc_to_udp6_sock
    skc_to_unix_sock skc_to_mptcp_sock""".split()  # noqa: SIM905
)
"""Helpers of all kinds of programs that need CAP_BPF or CAP_PERFMON."""


class Prototype(NamedTuple):
    """A helper's prototype."""

    name: str
    returns: Arg
    args: tuple[Arg, ...]


def parse_argument(text: str) -> Arg:
    """Return an argument from the notation of `PROTOTYPES`, such as `btf:task_struct?`."""
    kind, _, detail = text.rstrip("?").partition(":")
    return Arg(kind, text.endswith("?"), detail)


@cache
def prototypes() -> dict[int, Prototype]:
    """Return the prototypes of all helpers by number."""
    table = {}
    for line in PROTOTYPES.strip().splitlines():
        name, returns, *args = line.split()
        table[int(HelperId[f"bpf_{name}"])] = Prototype(
            f"bpf_{name}", parse_argument(returns), tuple(map(parse_argument, args))
        )
    return table


def numbers_of(names: str) -> frozenset[int]:
    """Return the numbers of helpers by their names without `bpf_`."""
    return frozenset(int(HelperId[f"bpf_{name}"]) for name in names.split())


READS_PACKET: Final = numbers_of(
    "map_lookup_elem map_update_elem map_delete_elem map_push_elem map_lookup_percpu_elem "
    "csum_diff sk_lookup_tcp sk_lookup_udp skc_lookup_tcp tcp_check_syncookie tcp_gen_syncookie "
    "tcp_raw_gen_syncookie_ipv4 tcp_raw_gen_syncookie_ipv6 tcp_raw_check_syncookie_ipv4 tcp_raw_check_syncookie_ipv6"
)
"""Helpers that take pointers into the packet."""

CHANGES_PACKET: Final = numbers_of(
    "skb_vlan_push skb_vlan_pop skb_store_bytes skb_change_proto skb_change_head skb_change_tail skb_pull_data "
    "l3_csum_replace l4_csum_replace clone_redirect skb_adjust_room xdp_adjust_head xdp_adjust_meta xdp_adjust_tail "
    "msg_pull_data msg_push_data msg_pop_data lwt_push_encap lwt_seg6_store_bytes lwt_seg6_adjust_srh "
    "lwt_seg6_action store_hdr_opt tail_call"
)
"""Helpers after which no pointer into the packet is valid."""

SLEEPS: Final = numbers_of("copy_from_user copy_from_user_task ima_inode_hash ima_file_hash")

ACQUIRES: Final = numbers_of("sk_lookup_tcp sk_lookup_udp skc_lookup_tcp ringbuf_reserve kptr_xchg")

CASTS: Final = numbers_of(
    "tcp_sock sk_fullsock skc_to_tcp_sock skc_to_tcp6_sock skc_to_udp6_sock skc_to_mptcp_sock "
    "skc_to_tcp_timewait_sock skc_to_tcp_request_sock skc_to_unix_sock"
)
"""Helpers that return another view of their argument, with its reference."""

BOUNDED_RESULT: Final = numbers_of("get_stack get_task_stack probe_read_str probe_read_kernel_str probe_read_user_str")
"""Helpers that return at most the size they were given, or an error."""

# Which maps a helper works on, where it is not for all. A map type listed for some helper is refused by others
# that take a map, unless they are listed too.
MAPS_OF_HELPER: Final[dict[str, str]] = {
    "tail_call": "PROG_ARRAY",
    "perf_event_read": "PERF_EVENT_ARRAY",
    "perf_event_output": "PERF_EVENT_ARRAY",
    "perf_event_read_value": "PERF_EVENT_ARRAY",
    "skb_output": "PERF_EVENT_ARRAY",
    "xdp_output": "PERF_EVENT_ARRAY",
    "ringbuf_output": "RINGBUF",
    "ringbuf_reserve": "RINGBUF",
    "ringbuf_query": "RINGBUF",
    "ringbuf_reserve_dynptr": "RINGBUF",
    "user_ringbuf_drain": "USER_RINGBUF",
    "get_stackid": "STACK_TRACE",
    "current_task_under_cgroup": "CGROUP_ARRAY",
    "skb_under_cgroup": "CGROUP_ARRAY",
    "redirect_map": "DEVMAP DEVMAP_HASH CPUMAP XSKMAP",
    "sk_redirect_map": "SOCKMAP",
    "msg_redirect_map": "SOCKMAP",
    "sock_map_update": "SOCKMAP",
    "sk_redirect_hash": "SOCKHASH",
    "msg_redirect_hash": "SOCKHASH",
    "sock_hash_update": "SOCKHASH",
    "get_local_storage": "CGROUP_STORAGE PERCPU_CGROUP_STORAGE",
    "sk_select_reuseport": "REUSEPORT_SOCKARRAY SOCKMAP SOCKHASH",
    "map_pop_elem": "QUEUE STACK",
    "map_peek_elem": "QUEUE STACK BLOOM_FILTER",
    "map_push_elem": "QUEUE STACK BLOOM_FILTER",
    "map_lookup_percpu_elem": "PERCPU_ARRAY PERCPU_HASH LRU_PERCPU_HASH",
    "sk_storage_get": "SK_STORAGE",
    "sk_storage_delete": "SK_STORAGE",
    "inode_storage_get": "INODE_STORAGE",
    "inode_storage_delete": "INODE_STORAGE",
    "task_storage_get": "TASK_STORAGE",
    "task_storage_delete": "TASK_STORAGE",
    "cgrp_storage_get": "CGRP_STORAGE",
    "cgrp_storage_delete": "CGRP_STORAGE",
    "for_each_map_elem": "HASH PERCPU_HASH LRU_HASH LRU_PERCPU_HASH ARRAY PERCPU_ARRAY",
}

# Map types that only some helpers work on.
HELPERS_OF_MAP: Final[dict[str, str]] = {
    "PROG_ARRAY": "tail_call",
    "PERF_EVENT_ARRAY": "perf_event_read perf_event_output skb_output perf_event_read_value xdp_output",
    "RINGBUF": "ringbuf_output ringbuf_reserve ringbuf_query ringbuf_reserve_dynptr",
    "USER_RINGBUF": "user_ringbuf_drain",
    "STACK_TRACE": "get_stackid",
    "CGROUP_ARRAY": "skb_under_cgroup current_task_under_cgroup",
    "CGROUP_STORAGE": "get_local_storage",
    "PERCPU_CGROUP_STORAGE": "get_local_storage",
    "DEVMAP": "redirect_map map_lookup_elem",
    "DEVMAP_HASH": "redirect_map map_lookup_elem",
    "CPUMAP": "redirect_map",
    "XSKMAP": "redirect_map map_lookup_elem",
    "ARRAY_OF_MAPS": "map_lookup_elem",
    "HASH_OF_MAPS": "map_lookup_elem",
    "SOCKMAP": (
        "sk_redirect_map sock_map_update map_delete_elem msg_redirect_map sk_select_reuseport map_lookup_elem "
        "map_update_elem"
    ),
    "SOCKHASH": (
        "sk_redirect_hash sock_hash_update map_delete_elem msg_redirect_hash sk_select_reuseport map_lookup_elem "
        "map_update_elem"
    ),
    "REUSEPORT_SOCKARRAY": "sk_select_reuseport",
    "QUEUE": "map_peek_elem map_pop_elem map_push_elem",
    "STACK": "map_peek_elem map_pop_elem map_push_elem",
    "SK_STORAGE": "sk_storage_get sk_storage_delete kptr_xchg",
    "INODE_STORAGE": "inode_storage_get inode_storage_delete kptr_xchg",
    "TASK_STORAGE": "task_storage_get task_storage_delete kptr_xchg",
    "CGRP_STORAGE": "cgrp_storage_get cgrp_storage_delete kptr_xchg",
    "BLOOM_FILTER": "map_peek_elem map_push_elem",
    "STRUCT_OPS": "",
    "ARENA": "",
    "INSN_ARRAY": "",
}


def works_on(helper: str, map_type: str) -> bool:
    """
    Whether a helper works on a map type, both named without their prefixes.

    >>> works_on("map_lookup_elem", "HASH"), works_on("map_lookup_elem", "RINGBUF")
    (True, False)
    """
    only_maps = MAPS_OF_HELPER.get(helper)
    if only_maps is not None and map_type not in only_maps.split():
        return False
    only_helpers = HELPERS_OF_MAP.get(map_type)
    return only_helpers is None or helper in only_helpers.split()
