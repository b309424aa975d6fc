/* A program that throws, and the function that its tag names to run then. */
#include "bpf.h"

extern void bpf_throw(u64 cookie) KSYM;

NOINLINE int caught(u64 cookie)
{
	return cookie & 1;
}

SEC("tc")
__attribute__((btf_decl_tag("exception_callback:caught")))
int throws(void *ctx)
{
	if (ktime_get_ns() & 1)
		bpf_throw(3);
	return 0;
}

SEC("tc")
int throws_alone(void *ctx)
{
	if (ktime_get_ns() & 1)
		bpf_throw(0);
	return 0;
}

char _license[] SEC("license") = "GPL";
