/* What the programs here need of the kernel's interface, in our own words. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define NOINLINE __attribute__((noinline))
#define HIDDEN __attribute__((visibility("hidden")))
#define WEAK __attribute__((weak))
#define KCONFIG __attribute__((section(".kconfig")))
#define KSYM __attribute__((section(".ksyms")))
#define CORE __attribute__((preserve_access_index))

/* The attributes of a map, as BTF-defined maps spell them. */
#define NUMBER(name, value) int(*name)[value]
#define TYPE(name, type) typeof(type) *name
#define ARRAY(name, type) typeof(type) *name[]

enum { HASH = 1, ARRAY_MAP = 2, PROG_ARRAY = 3, PERF_EVENTS = 4, ARRAY_OF_MAPS = 12, RINGBUF = 27, TASK_STORAGE = 29 };

/* Numbers of enum bpf_field_info_kind, bpf_type_info_kind and bpf_enum_value_kind. */
#define FIELD_OFFSET 0
#define FIELD_SIZE 1
#define FIELD_EXISTS 2
#define FIELD_SIGNED 3
#define FIELD_LSHIFT 4
#define FIELD_RSHIFT 5
#define field_info(field, what) __builtin_preserve_field_info(field, what)
#define type_exists(type) __builtin_preserve_type_info(*(typeof(type) *)0, 0)
#define type_size(type) __builtin_preserve_type_info(*(typeof(type) *)0, 1)
#define type_matches(type) __builtin_preserve_type_info(*(typeof(type) *)0, 2)
#define type_id_local(type) __builtin_btf_type_id(*(typeof(type) *)0, 0)
#define type_id_kernel(type) __builtin_btf_type_id(*(typeof(type) *)0, 1)

static void *(*map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static u64 (*get_current_pid_tgid)(void) = (void *)14;
static u64 (*ktime_get_ns)(void) = (void *)5;
static u64 (*get_current_task)(void) = (void *)35;
static void *(*get_current_task_btf)(void) = (void *)158;
static long (*tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static void *(*ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*ringbuf_submit)(void *data, u64 flags) = (void *)132;
static long (*for_each_map_elem)(void *map, void *callback, void *ctx, u64 flags) = (void *)164;
static long (*loop)(u32 count, void *callback, void *ctx, u64 flags) = (void *)181;
static void *(*per_cpu_ptr)(const void *pointer, u32 cpu) = (void *)153;
static void *(*this_cpu_ptr)(const void *pointer) = (void *)154;
static long (*spin_lock)(void *lock) = (void *)93;
static long (*spin_unlock)(void *lock) = (void *)94;
