/* Functions: static, global, weak and hidden ones, callbacks, several programs in a section. */
#include "bpf.h"

struct {
	NUMBER(type, ARRAY_MAP);
	NUMBER(max_entries, 8);
	TYPE(key, u32);
	TYPE(value, u64);
} numbers SEC(".maps");

u64 total;

static NOINLINE int twice(int x)
{
	return x * 2 + (int)ktime_get_ns();
}

NOINLINE int add(int a, int b)
{
	return twice(a) + b;
}

WEAK NOINLINE int weak_one(int a)
{
	return a + 1;
}

HIDDEN NOINLINE int hidden_one(u64 *where)
{
	return *where + 3;
}

static long each_number(void *map, u32 *key, u64 *value, void *ctx)
{
	total += *value;
	return 0;
}

static long step(u32 index, void *ctx)
{
	*(u64 *)ctx += index;
	return 0;
}

SEC("xdp")
int first(void *ctx)
{
	u64 local = 5;
	return (add(1, 2) + hidden_one(&local)) & 3;
}

SEC("xdp")
int second(void *ctx)
{
	u64 sum = 0;
	for_each_map_elem(&numbers, each_number, 0, 0);
	loop(10, step, &sum, 0);
	return sum ? 2 : weak_one(1) & 1;
}

SEC("?tc")
int third(void *ctx)
{
	return twice(7) & 1;
}

SEC("my_section")
int unknown(void *ctx)
{
	return 0;
}

char _license[] SEC("license") = "GPL";
