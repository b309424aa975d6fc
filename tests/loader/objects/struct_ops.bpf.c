/* Programs that implement members of a struct of the kernel, and one that says of which only by its section. */
#include "bpf.h"

struct sock;

struct tcp_congestion_ops___ours {
	u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, u32 ack, u32 acked);
	u32 (*undo_cwnd)(struct sock *sk);
	char name[16];
};

SEC("struct_ops/any_name")
u32 constant(u64 *ctx)
{
	return 10;
}

SEC("struct_ops")
int nothing(u64 *ctx)
{
	return 0;
}

SEC("struct_ops/alone")
int alone(u64 *ctx)
{
	return 0;
}

SEC(".struct_ops")
struct tcp_congestion_ops___ours first = {
	.ssthresh = (void *)constant,
	.cong_avoid = (void *)nothing,
	.name = "first",
};

SEC(".struct_ops.link")
struct tcp_congestion_ops___ours second = {
	.cong_avoid = (void *)nothing,
	.name = "second",
};

char _license[] SEC("license") = "GPL";
