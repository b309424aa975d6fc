/* What is left to the kernel: options of its configuration, its variables and its functions. */
#include "bpf.h"

enum libbpf_tristate { TRI_NO = 0, TRI_YES = 1, TRI_MODULE = 2 };

extern int LINUX_KERNEL_VERSION KCONFIG;
extern u64 CONFIG_HZ KCONFIG;
extern _Bool CONFIG_BPF KCONFIG;
extern enum libbpf_tristate CONFIG_BTRFS_FS KCONFIG WEAK;
extern char CONFIG_DEFAULT_HOSTNAME[16] KCONFIG WEAK;
extern int CONFIG_THERE_IS_NONE KCONFIG WEAK;

struct task_struct {
	int pid;
} CORE;

struct rq {
	unsigned int nr_running;
} CORE;

extern const struct rq runqueues KSYM;
extern const int not_a_variable KSYM WEAK;
extern const void init_task KSYM WEAK;

extern struct task_struct *bpf_task_from_pid(s32 pid) KSYM;
extern void bpf_task_release(struct task_struct *task) KSYM;
extern void bpf_rcu_read_lock(void) KSYM;
extern void bpf_rcu_read_unlock(void) KSYM;
extern void not_a_function(int x) KSYM WEAK;

u64 results[8];

SEC("tp_btf/sched_process_exec")
int options(u64 *ctx)
{
	results[0] = LINUX_KERNEL_VERSION;
	results[1] = CONFIG_HZ;
	results[2] = CONFIG_BPF;
	results[3] = CONFIG_BTRFS_FS;
	results[4] = CONFIG_DEFAULT_HOSTNAME[1];
	results[5] = CONFIG_THERE_IS_NONE;
	if (CONFIG_THERE_IS_NONE)
		not_a_function(1);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int variables(u64 *ctx)
{
	struct rq *own = this_cpu_ptr(&runqueues);
	struct rq *other = per_cpu_ptr(&runqueues, 1);

	results[0] = own->nr_running;
	if (other)
		results[1] = other->nr_running;
	results[2] = (u64)&init_task;
	if (&not_a_variable)
		results[3] = not_a_variable;
	return 0;
}

SEC("tp_btf/sched_process_fork")
int functions(u64 *ctx)
{
	bpf_rcu_read_lock();
	struct task_struct *task = bpf_task_from_pid(1);
	if (task) {
		results[0] = task->pid;
		bpf_task_release(task);
	}
	bpf_rcu_read_unlock();
	if (not_a_function)
		not_a_function(2);
	return 0;
}

SEC("tp_btf/sched_switch")
int leaks(u64 *ctx)
{
	struct task_struct *task = bpf_task_from_pid(1);

	return task ? task->pid : 0;
}

SEC("tp_btf/sched_wakeup")
int missing(u64 *ctx)
{
	not_a_function(3);
	return 0;
}

char _license[] SEC("license") = "GPL";
