/* Maps as they were defined before BTF: in one section, or each in its own. */
#include "bpf.h"

struct map_definition {
	u32 type, key_size, value_size, max_entries, map_flags;
};

struct map_definition numbers SEC("maps") = {ARRAY_MAP, 4, 8, 16, 0};
struct map_definition names SEC("maps") = {HASH, 8, 32, 100, 1};
struct map_definition events SEC("maps/events") = {PERF_EVENTS, 4, 4, 0, 0};

SEC("socket/counter")
int counter(void *ctx)
{
	u32 key = 3;
	u64 other = 4;
	u64 *number = map_lookup_elem(&numbers, &key);

	if (number)
		*number += 1;
	return map_lookup_elem(&names, &other) && map_lookup_elem(&events, &key);
}

char _license[] SEC("license") = "GPL";
