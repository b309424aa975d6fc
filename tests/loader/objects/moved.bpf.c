/* Relocations against target.bpf.c, whose types differ from those here; a program for each case. */
#include "bpf.h"

enum fruit { APPLE = 1, PLUM = 2, CHERRY = 3 };
enum fruit___flavoured { PEAR___other = 10 };
enum wide { WIDE = 1ULL << 40 };

struct inner {
	int deep;
} CORE;

struct moved {
	int number;
	u32 grown;
	int signed_grown;
	struct moved *next;
	u32 bits : 3;
	s32 signed_bits : 5;
	struct inner many[2];
	int renamed_type;
	int gone;
	int flexible[];
} CORE;

struct twin {
	int x;
	int same;
} CORE;

struct matching {
	int a;
	struct moved *c;
} CORE;

struct matching___not {
	u64 a;
} CORE;

struct nowhere {
	int field;
} CORE;

typedef int number_t;
typedef u64 another_t;
typedef int (*callback_t)(struct moved *, int);

extern struct moved a_variable KSYM;
extern int a_function(struct moved *it, int y) KSYM;

#define PROGRAM(name) \
	SEC("tp_btf/an_event") \
	u64 name(u64 *ctx)
#define IT ((struct moved *)ctx[0])

PROGRAM(number) { return IT->number; }
PROGRAM(grown) { return IT->grown; }
PROGRAM(signed_grown) { return IT->signed_grown; }
PROGRAM(store) { *(volatile int *)&IT->number = 7; return 0; }
PROGRAM(element) { return IT->many[1].deep; }
PROGRAM(next) { return IT->next->number; }
PROGRAM(flexible) { return IT->flexible[5]; }
PROGRAM(gone) { return IT->gone; }
PROGRAM(renamed) { return IT->renamed_type; }
PROGRAM(second) { return field_info(IT[2].number, FIELD_OFFSET); }
PROGRAM(bits_offset) { return field_info(IT->bits, FIELD_OFFSET); }
PROGRAM(bits_size) { return field_info(IT->bits, FIELD_SIZE); }
PROGRAM(bits_left) { return field_info(IT->bits, FIELD_LSHIFT); }
PROGRAM(bits_right) { return field_info(IT->bits, FIELD_RSHIFT); }
PROGRAM(bits_signed) { return field_info(IT->signed_bits, FIELD_SIGNED); }
PROGRAM(number_signed) { return field_info(IT->grown, FIELD_SIGNED); }
PROGRAM(there) { return field_info(IT->number, FIELD_EXISTS); }
PROGRAM(not_there) { return field_info(IT->gone, FIELD_EXISTS); }
PROGRAM(exists) { return type_exists(struct moved); }
PROGRAM(exists_not) { return type_exists(struct nowhere); }
PROGRAM(typedef_exists) { return type_exists(number_t); }
PROGRAM(typedef_exists_not) { return type_exists(another_t); }
PROGRAM(callback_exists) { return type_exists(callback_t); }
PROGRAM(size) { return type_size(struct moved); }
PROGRAM(matches) { return type_matches(struct matching); }
PROGRAM(matches_not) { return type_matches(struct matching___not); }
PROGRAM(local_id) { return type_id_local(struct moved); }
PROGRAM(target_id) { return type_id_kernel(struct moved); }
PROGRAM(apple) { return __builtin_preserve_enum_value(*(enum fruit *)APPLE, 1); }
PROGRAM(plum) { return __builtin_preserve_enum_value(*(enum fruit *)PLUM, 1); }
PROGRAM(cherry) { return __builtin_preserve_enum_value(*(enum fruit *)CHERRY, 0); }
PROGRAM(cherry_value) { return __builtin_preserve_enum_value(*(enum fruit *)CHERRY, 1); }
PROGRAM(pear) { return __builtin_preserve_enum_value(*(enum fruit___flavoured *)PEAR___other, 1); }
PROGRAM(wide) { return __builtin_preserve_enum_value(*(enum wide *)WIDE, 1); }
PROGRAM(twins) { return field_info(((struct twin *)ctx[0])->x, FIELD_OFFSET); }
PROGRAM(one_twin) { return field_info(((struct twin *)ctx[0])->same, FIELD_OFFSET); }
PROGRAM(variable) { return a_variable.number; }
PROGRAM(function) { return a_function(IT, 2); }

char _license[] SEC("license") = "GPL";
