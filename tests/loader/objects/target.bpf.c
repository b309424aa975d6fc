/* Not a program: the types of a kernel that never was, which programs are linked for in the tests. */
#include "bpf.h"

enum fruit { APPLE = 5, PEAR = 6, PLUM = 900 };
enum wide { WIDE = 0x123456789abcdef0ULL };

struct inner {
	u64 padding;
	int deep;
};

struct moved {
	u64 in_front;
	union {
		u64 overlay;
		struct {
			u32 first;
			int number;
		};
	};
	u64 grown;
	long long signed_grown;
	struct moved *next;
	u64 gap : 7;
	u64 bits : 9;
	s64 signed_bits : 12;
	struct inner many[4];
	char renamed_type[8];
	int flexible[];
};

struct twin___a {
	int x;
	int same;
};

struct twin___b {
	int y;
	int x;
};

struct matching {
	int a;
	u32 b;
	struct moved *c;
	int more;
};

typedef int number_t;
typedef int (*callback_t)(struct moved *, int);

struct moved a_variable;
int a_number;

NOINLINE int a_function(struct moved *it, int y)
{
	return y;
}

typedef void (*btf_trace_an_event)(void *data, struct moved *it);

/* Keeps what nothing else uses in the types. */
struct {
	enum fruit fruit;
	enum wide wide;
	struct twin___a twin_a;
	struct twin___b twin_b;
	struct matching matching;
	number_t number;
	callback_t callback;
	btf_trace_an_event trace;
} all_types;
