/* Every kind of CO-RE relocation, on types of the kernel that stay. */
#include "bpf.h"

struct list_head {
	struct list_head *next;
} CORE;

struct mm_struct;

struct task_struct {
	int pid;
	int tgid;
	char comm[16];
	struct task_struct *real_parent;
	struct mm_struct *mm;
	unsigned sched_reset_on_fork : 1;
	u64 start_time;
} CORE;

/* A flavour: another view of the same type of the kernel. */
struct task_struct___other {
	int not_in_any_kernel;
	int pid;
} CORE;

struct not_in_any_kernel {
	int field;
} CORE;

enum pid_type {
	PIDTYPE_TGID = 77,
	PIDTYPE_MAX = 99,
	PIDTYPE_NOT_THERE = 100,
};

typedef int not_a_typedef;

struct qstr {
	const unsigned char *name;
} CORE;

struct dentry {
	struct qstr d_name;
	struct dentry *d_parent;
} CORE;

struct sk_buff {
	u32 len;
	u8 pkt_type : 3;
	u16 protocol;
} CORE;

u64 results[32];

SEC("raw_tp/sched_process_exec")
int fields(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct task_struct___other *other = (void *)task;
	struct sk_buff *skb = 0;
	int pid = 0;

	probe_read_kernel(&pid, sizeof(pid), &task->pid);
	results[0] = pid;
	results[1] = field_info(task->pid, FIELD_OFFSET);
	results[2] = field_info(task->comm[3], FIELD_OFFSET);
	results[3] = field_info(task->comm, FIELD_SIZE);
	results[4] = field_info(task->pid, FIELD_EXISTS);
	results[5] = field_info(other->not_in_any_kernel, FIELD_EXISTS);
	results[6] = field_info(other->pid, FIELD_OFFSET);
	results[7] = field_info(task->pid, FIELD_SIGNED);
	results[8] = field_info(task->start_time, FIELD_SIGNED);
	results[9] = field_info(skb->pkt_type, FIELD_OFFSET);
	results[10] = field_info(skb->pkt_type, FIELD_SIZE);
	results[11] = field_info(skb->pkt_type, FIELD_LSHIFT);
	results[12] = field_info(skb->pkt_type, FIELD_RSHIFT);
	results[13] = field_info(task[1].tgid, FIELD_OFFSET);
	return 0;
}

SEC("raw_tp/sched_process_exit")
int types(u64 *ctx)
{
	results[0] = type_exists(struct task_struct);
	results[1] = type_exists(struct not_in_any_kernel);
	results[2] = type_size(struct task_struct);
	results[3] = type_id_kernel(struct task_struct);
	results[4] = type_id_local(struct task_struct);
	results[5] = type_matches(struct list_head);
	results[6] = type_matches(struct task_struct);
	results[7] = type_exists(struct task_struct___other);
	results[8] = type_size(struct not_in_any_kernel);
	return 0;
}

SEC("raw_tp/sched_process_fork")
int enums(u64 *ctx)
{
	results[0] = __builtin_preserve_enum_value(*(enum pid_type *)PIDTYPE_TGID, 0);
	results[1] = __builtin_preserve_enum_value(*(enum pid_type *)PIDTYPE_TGID, 1);
	results[2] = __builtin_preserve_enum_value(*(enum pid_type *)PIDTYPE_NOT_THERE, 0);
	return 0;
}

SEC("raw_tp/sched_switch")
int guarded(u64 *ctx)
{
	struct task_struct___other *other = (void *)ctx[1];
	int value = 0;

	if (field_info(other->not_in_any_kernel, FIELD_EXISTS))
		probe_read_kernel(&value, sizeof(value), &other->not_in_any_kernel);
	return value;
}

SEC("raw_tp/sched_wakeup")
int unguarded(u64 *ctx)
{
	struct task_struct___other *other = (void *)ctx[0];
	int value = 0;

	probe_read_kernel(&value, sizeof(value), &other->not_in_any_kernel);
	return value;
}

SEC("tp_btf/sched_process_exec")
int direct(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];

	return task->real_parent->tgid + (task->mm != 0);
}

SEC("lsm/file_open")
int hook(u64 *ctx)
{
	return 0;
}

char _license[] SEC("license") = "GPL";
