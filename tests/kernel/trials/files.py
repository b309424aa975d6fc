"""Touching files in every way there is."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat

from tests.kernel.trials.runner import FAILED, Trials, apart, work

trial = Trials()
LIBC = ctypes.CDLL(None, use_errno=True)
RENAME_EXCHANGE = 2
AT_FDCWD = -100


def path(name: str) -> str:
    return f"{work()}/{name}"


def opened(name: str, flags: int) -> None:
    os.close(os.open(path(name), flags, 0o644))


# Writing


@trial
def write_existing() -> None:
    opened("protected/file", os.O_WRONLY)


@trial
def write_and_read_existing() -> None:
    opened("protected/file", os.O_RDWR)


@trial
def append() -> None:
    opened("protected/file", os.O_WRONLY | os.O_APPEND)


@trial
def create() -> None:
    opened("protected/new", os.O_WRONLY | os.O_CREAT)


@trial
def create_deep() -> None:
    opened("protected/folder/new", os.O_WRONLY | os.O_CREAT)


@trial
def create_in_a_nameless_way() -> None:
    """O_TMPFILE makes a file without a name; its name comes by a link."""
    fd = os.open(path("protected"), os.O_TMPFILE | os.O_WRONLY, 0o644)
    os.link(f"/proc/self/fd/{fd}", path("protected/new"), follow_symlinks=True)


@trial
def truncate_by_opening_for_reading() -> None:
    opened("protected/file", os.O_RDONLY | os.O_TRUNC)


@trial
def truncate() -> None:
    os.truncate(path("protected/file"), 0)


@trial
def rename_away() -> None:
    os.rename(path("protected/file"), path("elsewhere"))


@trial
def rename_into() -> None:
    os.rename(path("free/file"), path("protected/new"))


def exchanged(one: str, other: str) -> None:
    if LIBC.renameat2(AT_FDCWD, path(one).encode(), AT_FDCWD, path(other).encode(), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), "")


@trial
def exchange() -> None:
    exchanged("free/file", "protected/file")


@trial
def rename_the_folder() -> None:
    os.rename(path("protected"), path("elsewhere"))


@trial
def rename_a_folder_above() -> None:
    os.rename(os.path.realpath(path(".")), path("../elsewhere"))


@trial
def rename_a_folder_to_it() -> None:
    os.rename(path("free/deep"), path("protected"))


@trial
def rename_a_folder_that_lies_anywhere() -> None:
    os.rename(path("free/.git"), path("free/elsewhere"))


@trial
def exchange_the_folder_for_a_file() -> None:
    exchanged("free/file", "protected")


@trial
def rename_another_folder() -> None:
    os.mkdir(path("free/folder"))
    os.rename(path("free/folder"), path("protected-neither"))


@trial
def link_away() -> None:
    os.link(path("protected/file"), path("free/link"))


@trial
def link_into() -> None:
    os.link(path("free/file"), path("protected/new"))


@trial
def symlink_into() -> None:
    os.symlink("x", path("protected/new"))


@trial
def mkdir() -> None:
    os.mkdir(path("protected/new"))


@trial
def mknod() -> None:
    os.mknod(path("protected/new"), stat.S_IFIFO | 0o600)


@trial
def mknod_of_a_file() -> None:
    os.mknod(path("protected/new"), stat.S_IFREG | 0o600)


@trial
def unlink_is_a_write() -> None:
    os.unlink(path("protected/file"))


@trial
def rmdir_is_a_write() -> None:
    os.rmdir(path("protected/empty"))


@trial
def through_a_symlink() -> None:
    opened("free/to-protected", os.O_WRONLY)


@trial
def through_a_symlinked_folder() -> None:
    opened("free/folder-to-protected/file", os.O_WRONLY)


@trial
def relative() -> None:
    os.chdir(path("free"))
    os.close(os.open("../protected/./file", os.O_WRONLY))


@trial
def below_a_descriptor() -> None:
    folder = os.open(path("protected"), os.O_PATH)
    os.close(os.open("file", os.O_WRONLY, dir_fd=folder))


@trial
def through_proc_self_root() -> None:
    os.close(os.open(f"/proc/self/root{path('protected/file')}", os.O_WRONLY))


@trial
def reopened_from_a_descriptor() -> None:
    fd = os.open(path("protected/file"), os.O_RDONLY)
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY))


@trial
def in_a_chroot() -> None:
    os.chroot(path("protected"))
    os.close(os.open("/file", os.O_WRONLY))


@trial
def names_with_odd_bytes() -> int:
    for name in (b"new\nline", b"\xff\xfe", b"\x1b[2J", "f\u00e4hre".encode(), b"*", b"a" * 255):
        try:
            os.close(os.open(os.fsencode(path("protected/")) + name, os.O_WRONLY | os.O_CREAT))
        except PermissionError:
            continue
        return FAILED
    return errno.EPERM


@trial
def without_the_exemption() -> None:
    opened("free/x.lock", os.O_WRONLY | os.O_CREAT)


@trial
def killed_before_it_writes() -> int:
    return apart(lambda: opened("free/deadly", os.O_WRONLY | os.O_CREAT))


# Reading, opening, removing


@trial
def read_secret() -> None:
    opened("secret/file", os.O_RDONLY)


@trial
def read_and_write_secret() -> None:
    opened("secret/file", os.O_RDWR)


@trial
def execute_secret() -> None:
    """To execute a file is to read it."""
    os.execv(path("secret/program"), ["x"])


@trial
def read_secret_in_a_folder_that_is_read() -> None:
    os.scandir(path("secret/folder")).close()


@trial
def open_for_reading() -> None:
    opened("closed/file", os.O_RDONLY)


@trial
def open_for_writing() -> None:
    opened("closed/file", os.O_WRONLY)


@trial
def remove() -> None:
    os.unlink(path("kept/file"))


@trial
def remove_folder() -> None:
    os.rmdir(path("kept/empty"))


# What no clause forbids


@trial
def read_protected() -> None:
    opened("protected/file", os.O_RDONLY)


@trial
def map_protected_privately() -> None:
    fd = os.open(path("protected/file"), os.O_RDONLY)
    mmap.mmap(fd, 4, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE).close()


@trial
def write_secret() -> None:
    opened("secret/file", os.O_WRONLY)


@trial
def look_without_opening() -> None:
    os.close(os.open(path("closed/file"), os.O_PATH))
    os.stat(path("closed/file"))


@trial
def write_beside() -> None:
    opened("protected-not/new", os.O_WRONLY | os.O_CREAT)


@trial
def with_the_exemption() -> None:
    opened("exempt/x.lock", os.O_WRONLY | os.O_CREAT)


@trial
def rename_is_no_removal() -> None:
    os.rename(path("kept/other"), path("kept/renamed"))


@trial
def truncate_by_descriptor_elsewhere() -> None:
    with open(path("free/file"), "r+") as file:
        os.ftruncate(file.fileno(), 3)


@trial
def dev_null() -> None:
    os.close(os.open("/dev/null", os.O_RDWR))


@trial
def noticed() -> None:
    opened("free/seen", os.O_RDONLY)


@trial
def noticed_with_an_odd_name() -> None:
    os.close(os.open(os.fsencode(path("free/")) + b"seen\n\xff", os.O_WRONLY | os.O_CREAT))


# Paths that are longer than a path can be


def deep(levels: int) -> None:
    """Go down into folders until their path is too long for a system call to name it."""
    name = "d" * 250
    for _ in range(levels):
        if not os.path.exists(name):
            os.mkdir(name)
        os.chdir(name)


@trial
def long_but_possible() -> None:
    os.chdir(path("free"))
    deep(14)
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT))


@trial
def longer_than_can_be_judged() -> None:
    os.chdir(path("free/deep"))
    while os.path.exists("d" * 250):
        os.chdir("d" * 250)
    os.close(os.open("file", os.O_RDONLY))


if __name__ == "__main__":
    trial.run()
