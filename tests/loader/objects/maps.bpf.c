/* Every kind of map and variable that an object can bring along. */
#include "bpf.h"

struct value {
	u64 count;
	u32 last;
};

struct {
	NUMBER(type, HASH);
	NUMBER(max_entries, 1024);
	TYPE(key, u32);
	TYPE(value, struct value);
	NUMBER(pinning, 1);
} counters SEC(".maps");

struct {
	NUMBER(type, RINGBUF);
	NUMBER(max_entries, 5000);
} events SEC(".maps");

struct inner {
	NUMBER(type, ARRAY_MAP);
	NUMBER(max_entries, 4);
	NUMBER(map_flags, 0x1000);
	TYPE(key, u32);
	TYPE(value, u64);
} inner SEC(".maps");

struct {
	NUMBER(type, ARRAY_OF_MAPS);
	NUMBER(max_entries, 2);
	TYPE(key, u32);
	ARRAY(values, struct inner);
} outer SEC(".maps") = {.values = {&inner}};

int entry(void *ctx);

struct {
	NUMBER(type, PROG_ARRAY);
	NUMBER(max_entries, 3);
	NUMBER(key_size, 4);
	ARRAY(values, int(void *));
} jumps SEC(".maps") = {.values = {[1] = (void *)&entry}};

struct lock {
	u32 word;
};

const volatile u32 limit = 10;
const char greeting[] = "hello";
u64 seen;
u32 start = 7;
static volatile u32 hidden_count = 3;
u32 apart SEC(".data.apart") = 9;

SEC("socket")
int entry(void *ctx)
{
	u32 key = limit;
	struct value *found = map_lookup_elem(&counters, &key);
	if (!found)
		return 0;
	found->count += start + hidden_count + apart;
	found->last = greeting[key & 3];
	seen++;

	u64 *event = ringbuf_reserve(&events, 8, 0);
	if (event) {
		*event = found->count;
		ringbuf_submit(event, 0);
	}
	u32 zero = 0;
	void *map = map_lookup_elem(&outer, &zero);
	if (map) {
		u64 *number = map_lookup_elem(map, &zero);
		if (number)
			*number += 1;
	}
	tail_call(ctx, &jumps, 1);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
