"""Kernel structs as the programs see them, and the numbers that the kernel's headers fix."""

from __future__ import annotations

from actplane.ir.bytecode import KernelField

TASK_LEADER = KernelField("task_struct", "group_leader")
TASK_PARENT = KernelField("task_struct", "real_parent")
TASK_TGID = KernelField("task_struct", "tgid")
TASK_PID = KernelField("task_struct", "pid")
TASK_MM = KernelField("task_struct", "mm")
TASK_SIGNAL = KernelField("task_struct", "signal")
TASK_EXIT_CODE = KernelField("task_struct", "exit_code")
TASK_FLAGS = KernelField("task_struct", "flags")
TASK_NAMESPACES = KernelField("task_struct", "nsproxy")
TASK_STATUS = KernelField("task_struct", "thread_info.status")

SIGNAL_LIVE = KernelField("signal_struct", "live.counter")
SIGNAL_FLAGS = KernelField("signal_struct", "flags")
SIGNAL_GROUP_EXIT_CODE = KernelField("signal_struct", "group_exit_code")
SIGNAL_EXEC_TASK = KernelField("signal_struct", "group_exec_task", (("signal_struct", "group_exit_task"),))
SIGNAL_GROUP_EXIT = 4
"""signal_struct.flags: the whole process is ending (include/linux/sched/signal.h)."""

MM_ARG_START = KernelField("mm_struct", "arg_start")
MM_ARG_END = KernelField("mm_struct", "arg_end")
MM_EXE_FILE = KernelField("mm_struct", "exe_file")

BPRM_FILE = KernelField("linux_binprm", "file")
BPRM_INTERPRETER = KernelField("linux_binprm", "interp")
BPRM_FILENAME = KernelField("linux_binprm", "filename")
BPRM_ARGC = KernelField("linux_binprm", "argc")

FILE_DENTRY = KernelField("file", "f_path.dentry")
FILE_MOUNT = KernelField("file", "f_path.mnt")
FILE_INODE = KernelField("file", "f_inode")
FILE_MODE = KernelField("file", "f_mode")
FILE_FLAGS = KernelField("file", "f_flags")
FMODE_READ = 1
FMODE_WRITE = 2
FMODE_EXEC = 0x20
O_TRUNC = 0o1000
MAY_WRITE = 2
MAY_READ = 4
PROT_WRITE = 2
MAP_SHARED = 1

PATH_DENTRY = KernelField("path", "dentry")
PATH_MOUNT = KernelField("path", "mnt")
DENTRY_PARENT = KernelField("dentry", "d_parent")
DENTRY_NAME = KernelField("dentry", "d_name.name")
DENTRY_NAME_BYTES = KernelField("dentry", "d_name.len")
DENTRY_INODE = KernelField("dentry", "d_inode")
DENTRY_PREFIX_BYTES = 128
"""Every dentry has its parent and name in its first 128 bytes; the mirror checks the offsets."""
INODE_MODE = KernelField("inode", "i_mode")
INODE_SUPERBLOCK = KernelField("inode", "i_sb")
SUPERBLOCK_MAGIC = KernelField("super_block", "s_magic")
ANON_INODE_FS_MAGIC = 0x09041934
"""super_block.s_magic of what has no file at all: eventfd, epoll, timerfd (include/uapi/linux/magic.h)."""
S_IFMT = 0o170000
S_IFSOCK = 0o140000
S_IFCHR = 0o020000
S_IFDIR = 0o040000
S_IFREG = 0o100000
S_IFIFO = 0o010000

MOUNT_ROOT = KernelField("vfsmount", "mnt_root")
MOUNT_OF_VFSMOUNT = KernelField("mount", "mnt")
MOUNT_PARENT = KernelField("mount", "mnt_parent")
MOUNT_POINT = KernelField("mount", "mnt_mountpoint")
MOUNT_NAMESPACE = KernelField("mount", "mnt_ns")
MOUNT_TOP = KernelField("mount", "mnt.mnt_root")
NAMESPACES_MOUNTS = KernelField("nsproxy", "mnt_ns")
MOUNTS_ROOT = KernelField("mnt_namespace", "root")
MOUNT_FLAGS = KernelField("mount", "mnt.mnt_flags")
MNT_INTERNAL = 0x4000
"""vfsmount.mnt_flags: a mount of the kernel's own, such as that of message queues (include/linux/mount.h)."""
MAX_ERRNO = 4095
"""Pointers from -MAX_ERRNO on are errors (include/linux/err.h); private copies of mounts bear one."""
MS_REMOUNT = 1 << 5
MS_BIND = 1 << 12
MS_PROPAGATION = 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20
"""MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED."""
PTRACE_MODE_ATTACH = 2
TIOCLINUX = 0x541C
TIOCSTI = 0x5412

REGS_SYSCALL = KernelField("pt_regs", "orig_ax")
REGS_SI = KernelField("pt_regs", "si")
REGS_DX = KernelField("pt_regs", "dx")
REGS_CX = KernelField("pt_regs", "cx")
PF_IO_WORKER = 0x10
"""task_struct.flags: a thread that io_uring has made; its registers are those of whoever made it."""
SYSCALLS_READ_WRITE = (0, 1, 19, 20)
"""read, write, readv, writev."""
SYSCALL_EXECVE = 59
SYSCALL_EXECVEAT = 322
TS_COMPAT = 2
"""thread_info.status: in a 32-bit system call (arch/x86/include/asm/thread_info.h)."""

SOCKET_SK = KernelField("socket", "sk")
SOCK_FAMILY = KernelField("sock", "__sk_common.skc_family")
SOCK_DADDR = KernelField("sock", "__sk_common.skc_daddr")
SOCK_DPORT = KernelField("sock", "__sk_common.skc_dport")
SOCK_V6_DADDR = KernelField("sock", "__sk_common.skc_v6_daddr")
SOCK_NUMBER = KernelField("sock", "__sk_common.skc_num")
SOCK_OWN_ADDRESS = KernelField("sock", "__sk_common.skc_rcv_saddr")
SOCK_V6_OWN_ADDRESS = KernelField("sock", "__sk_common.skc_v6_rcv_saddr")
UNIX_PATH_DENTRY = KernelField("unix_sock", "path.dentry")
UNIX_PATH_MOUNT = KernelField("unix_sock", "path.mnt")
UNIX_PEER = KernelField("unix_sock", "peer")
UNIX_ADDRESS = KernelField("unix_sock", "addr")
UNIX_ADDRESS_BYTES = KernelField("unix_address", "len")
UNIX_ADDRESS_NAME = KernelField("unix_address", "name")
MSG_NAME = KernelField("msghdr", "msg_name")
MSG_NAME_BYTES = KernelField("msghdr", "msg_namelen")
AF_UNSPEC = 0
AF_UNIX = 1
AF_INET = 2
AF_INET6 = 10

CLONE_THREAD = 0x10000
SIGKILL = 9
EPERM = 1
ENOMEM = 12
STORAGE_CREATE = 1
"""BPF_LOCAL_STORAGE_GET_F_CREATE."""
