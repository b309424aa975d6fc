/* A mistake behind a branch that is taken seldom. */
#include "bpf.h"

#define seldom(condition) __builtin_expect(!!(condition), 0)

struct {
	NUMBER(type, HASH);
	NUMBER(max_entries, 64);
	TYPE(key, u32);
	TYPE(value, u64);
} counters SEC(".maps");

SEC("socket")
int filter(void *ctx)
{
	u32 key = 1;
	u64 *count = map_lookup_elem(&counters, &key);

	if (seldom(ktime_get_ns() == 7))
		return *count;
	if (count)
		*count += 1;
	return 0;
}

char _license[] SEC("license") = "GPL";
