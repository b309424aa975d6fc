/* Options of a kernel's configuration, of every type that they can have. */
#include "bpf.h"

enum libbpf_tristate { TRI_NO = 0, TRI_YES = 1, TRI_MODULE = 2 };

extern int LINUX_KERNEL_VERSION KCONFIG;
extern u64 CONFIG_HZ KCONFIG;
extern _Bool CONFIG_BPF KCONFIG;
extern enum libbpf_tristate CONFIG_BTRFS_FS KCONFIG WEAK;
extern char CONFIG_DEFAULT_HOSTNAME[16] KCONFIG WEAK;
extern char CONFIG_MODULES KCONFIG WEAK;
extern s32 CONFIG_NEGATIVE KCONFIG WEAK;

u64 results[8];

SEC("socket")
int options(void *ctx)
{
	results[0] = LINUX_KERNEL_VERSION;
	results[1] = CONFIG_HZ;
	results[2] = CONFIG_BPF;
	results[3] = CONFIG_BTRFS_FS;
	results[4] = CONFIG_DEFAULT_HOSTNAME[1];
	results[5] = CONFIG_MODULES;
	results[6] = CONFIG_NEGATIVE;
	return 0;
}

char _license[] SEC("license") = "GPL";
