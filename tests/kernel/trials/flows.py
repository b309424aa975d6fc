"""
Carrying bytes of a secret from process to process in every way there is.

A trial comes to EPERM if its last process holds the label, and to 0 if it does not: that process executes
a program which whoever holds the label may not execute.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import pty
import shutil
import socket
import threading
import time
from collections.abc import Callable

from tests.kernel.trials.runner import Trials, apart, execute, told_by_shell, work

trial = Trials()
SYS_EXIT = 60


def path(name: str) -> str:
    return f"{work()}/{name}"


def ask() -> int:
    """Say whether this process holds the label."""
    return execute(path("bin/guarded"))


def read(name: str) -> None:
    with open(path(name), "rb", buffering=0) as file:
        file.read()


def write(name: str, data: bytes = b"secret") -> None:
    with open(path(name), "wb", buffering=0) as file:
        file.write(data)


def spill(name: str) -> None:
    """In a process of its own: read the secret, and write a file."""

    def go() -> None:
        read("secret/key")
        write(name)

    if apart(go) != 0:
        raise AssertionError("the secret could not be written on")


def in_background(action: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return pid


# Processes


@trial
def nothing_read() -> int:
    return ask()


@trial
def secret_read() -> int:
    read("secret/key")
    return ask()


@trial
def neighbour_read() -> int:
    read("free/file")
    return ask()


@trial
def read_by_a_child() -> int:
    apart(lambda: read("secret/key"))
    return ask()


@trial
def read_before_the_fork() -> int:
    read("secret/key")
    return apart(ask)


@trial
def read_after_the_fork() -> int:
    pid = os.fork()
    if pid == 0:
        while not os.path.exists(path("free/after-the-fork")):
            time.sleep(0.01)
        os._exit(ask())
    open(path("free/after-the-fork"), "w").close()
    read("secret/key")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@trial
def read_by_another_thread() -> int:
    thread = threading.Thread(target=read, args=("secret/key",))
    thread.start()
    thread.join()
    return ask()


@trial
def read_while_a_thread_waits_to_fork() -> int:
    """The thread that forks was there before the label came, and did not bring it itself."""
    go, results = threading.Event(), []

    def worker() -> None:
        go.wait()
        results.append(ask())

    thread = threading.Thread(target=worker)
    thread.start()
    read("secret/key")
    go.set()
    thread.join()
    return results[0]


@trial
def read_by_a_thread_whose_leader_has_ended() -> int:
    """The thread takes the leader's place when it executes, and gets nothing handed over."""

    def go() -> None:
        def worker() -> None:
            while not is_zombie():
                time.sleep(0.01)
            read("secret/key")
            os.execv("/bin/sh", ["sh", "-c", f"{path('bin/guarded')}; exit $?"])

        threading.Thread(target=worker).start()
        ctypes.CDLL(None).syscall(SYS_EXIT, 0)

    def is_zombie() -> bool:
        with open("/proc/self/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"

    return told_by_shell(apart(go))


@trial
def kept_by_exec() -> int:
    read("secret/key")
    return told_by_shell(execute("/bin/sh", "-c", f"{path('bin/guarded')}; exit $?"))


@trial
def declassified() -> int:
    read("secret/key")
    return told_by_shell(execute(path("bin/cleaner"), "-c", f"{path('bin/guarded')}; exit $?"))


# Files


@trial
def through_a_file() -> int:
    spill("free/one")
    read("free/one")
    return ask()


@trial
def through_two_files() -> int:
    spill("free/two")

    def middle() -> None:
        read("free/two")
        write("free/three")

    apart(middle)
    read("free/three")
    return ask()


@trial
def through_a_file_that_is_renamed() -> int:
    spill("free/four")
    os.rename(path("free/four"), path("free/five"))
    read("free/five")
    return ask()


@trial
def through_a_copy_by_another_program() -> int:
    os.spawnv(os.P_WAIT, shutil.which("cp"), ["cp", path("secret/key"), path("free/copy")])
    read("free/copy")
    return ask()


@trial
def secret_under_a_hard_link() -> int:
    os.link(path("secret/linked"), path("free/linked"))
    read("free/linked")
    return ask()


@trial
def secret_renamed() -> int:
    os.rename(path("secret/renamed"), path("free/renamed"))
    read("free/renamed")
    return ask()


@trial
def secret_through_a_symlink() -> int:
    read("free/to-secret")
    return ask()


@trial
def opened_before_it_was_written() -> int:
    write("free/six", b"")
    with open(path("free/six"), "rb", buffering=0) as file:
        spill("free/six")
        file.read()
        return ask()


@trial
def opened_before_it_was_written_and_not_read() -> int:
    write("free/seven", b"")
    with open(path("free/seven"), "rb"):
        spill("free/seven")
        return ask()


@trial
def written_through_an_older_descriptor() -> int:
    def go() -> None:
        with open(path("free/eight"), "wb", buffering=0) as file:
            read("secret/key")
            file.write(b"secret")

    apart(go)
    read("free/eight")
    return ask()


@trial
def inherited_descriptor_written() -> int:
    with open(path("free/nine"), "wb", buffering=0) as file:

        def go() -> None:
            read("secret/key")
            file.write(b"secret")

        apart(go)
    read("free/nine")
    return ask()


@trial
def mapped_for_reading() -> int:
    spill("free/ten")
    fd = os.open(path("free/ten"), os.O_RDONLY)
    mmap.mmap(fd, 4, mmap.MAP_SHARED, mmap.PROT_READ).read(4)
    return ask()


@trial
def mapped_for_writing() -> int:
    write("free/eleven", b"x" * 8)

    def go() -> None:
        fd = os.open(path("free/eleven"), os.O_RDWR)
        read("secret/key")
        mmap.mmap(fd, 8, mmap.MAP_SHARED)[0:6] = b"secret"

    apart(go)
    read("free/eleven")
    return ask()


@trial
def copied_in_the_kernel() -> int:
    def go() -> None:
        source, to = os.open(path("secret/key"), os.O_RDONLY), os.open(path("free/twelve"), os.O_WRONLY | os.O_CREAT)
        os.copy_file_range(source, to, 6)

    apart(go)
    read("free/twelve")
    return ask()


@trial
def sent_to_a_file() -> int:
    def go() -> None:
        source, to = os.open(path("secret/key"), os.O_RDONLY), os.open(path("free/thirteen"), os.O_WRONLY | os.O_CREAT)
        os.sendfile(to, source, 0, 6)

    apart(go)
    read("free/thirteen")
    return ask()


@trial
def executed() -> int:
    """A file that holds the secret gives it to the program it becomes."""
    spill("free/program")
    write_program = f"#!/bin/sh\n{path('bin/guarded')}; exit $?\n".encode()

    def go() -> None:
        read("secret/key")
        write("free/program", write_program)
        os.chmod(path("free/program"), 0o755)

    apart(go)
    return told_by_shell(execute(path("free/program")))


@trial
def denied_read_gives_nothing() -> int:
    try:
        read("secret/locked")
    except PermissionError:
        return ask()
    return 101


# Pipes and sockets


@trial
def through_a_pipe() -> int:
    reader, writer = os.pipe()

    def go() -> None:
        read("secret/key")
        os.write(writer, b"secret")

    apart(go)
    os.read(reader, 6)
    return ask()


@trial
def through_a_pipe_of_a_shell() -> int:
    return told_by_shell(
        execute("/bin/sh", "-c", f"cat {path('secret/key')} | sh -c 'read line; {path('bin/guarded')}; exit $?'")
    )


@trial
def through_a_pipe_whose_reader_waits() -> int:
    reader, writer = os.pipe()

    def go() -> None:
        time.sleep(1)
        read("secret/key")
        os.write(writer, b"secret")

    pid = in_background(go)
    os.read(reader, 6)
    result = ask()
    os.waitpid(pid, 0)
    return result


@trial
def pipe_not_read() -> int:
    _, writer = os.pipe()

    def go() -> None:
        read("secret/key")
        os.write(writer, b"secret")

    apart(go)
    return ask()


@trial
def through_a_fifo() -> int:
    os.mkfifo(path("free/fifo"))

    def go() -> None:
        read("secret/key")
        write("free/fifo")

    pid = in_background(go)
    read("free/fifo")
    result = ask()
    os.waitpid(pid, 0)
    return result


def through_a_pair(kind: int) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)

    def go() -> None:
        read("secret/key")
        theirs.send(b"secret")

    apart(go)
    ours.recv(6)
    return ask()


@trial
def through_a_stream_pair() -> int:
    return through_a_pair(socket.SOCK_STREAM)


@trial
def through_a_datagram_pair() -> int:
    return through_a_pair(socket.SOCK_DGRAM)


@trial
def through_a_pair_as_files() -> int:
    ours, theirs = socket.socketpair()

    def go() -> None:
        read("secret/key")
        os.write(theirs.fileno(), b"secret")

    apart(go)
    os.read(ours.fileno(), 6)
    return ask()


@trial
def through_a_pair_whose_reader_waits() -> int:
    ours, theirs = socket.socketpair()

    def go() -> None:
        time.sleep(1)
        read("secret/key")
        theirs.send(b"secret")

    pid = in_background(go)
    ours.recv(6)
    result = ask()
    os.waitpid(pid, 0)
    return result


def splice(source: int, to: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.splice(source, None, to, None, 6, 0) != 6:
        raise OSError(ctypes.get_errno(), "splice")


@trial
def spliced_out_of_a_socket() -> int:
    ours, theirs = socket.socketpair()

    def go() -> None:
        read("secret/key")
        theirs.send(b"secret")

    apart(go)
    splice(ours.fileno(), os.pipe()[1])
    return ask()


@trial
def sent_into_a_socket_by_the_kernel() -> int:
    ours, theirs = socket.socketpair()

    def go() -> None:
        os.sendfile(theirs.fileno(), os.open(path("secret/key"), os.O_RDONLY), 0, 6)

    apart(go)
    ours.recv(6)
    return ask()


@trial
def through_a_unix_server() -> int:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path("s"))
    server.listen()

    def go() -> None:
        read("secret/key")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path("s"))
            client.send(b"secret")

    apart(go)
    server.accept()[0].recv(6)
    return ask()


@trial
def through_the_network() -> int:
    """Over TCP to this host itself."""
    server = socket.create_server(("127.0.0.1", 0))

    def go() -> None:
        read("secret/key")
        with socket.create_connection(server.getsockname()) as client:
            client.send(b"secret")

    apart(go)
    server.accept()[0].recv(6)
    return ask()


@trial
def descriptor_passed_on() -> int:
    """SCM_RIGHTS: who reads through a descriptor gains what the file holds."""
    spill("free/passed")
    ours, theirs = socket.socketpair()

    def go() -> None:
        fd = os.open(path("free/passed"), os.O_RDONLY)
        theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])

    apart(go)
    _, [(_, _, passed)], _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    os.read(array.array("i", passed)[0], 6)
    return ask()


# Where no hook sees the bytes go


@trial
def mapped_before_the_label() -> int:
    write("free/mapped-before", b"x" * 8)

    def go() -> None:
        fd = os.open(path("free/mapped-before"), os.O_RDWR)
        memory = mmap.mmap(fd, 8, mmap.MAP_SHARED)
        os.close(fd)
        read("secret/key")
        memory[0:6] = b"secret"

    apart(go)
    read("free/mapped-before")
    return ask()


@trial
def memory_shared_by_a_fork() -> int:
    memory = mmap.mmap(-1, 8)

    def go() -> None:
        read("secret/key")
        memory[0:6] = b"secret"

    apart(go)
    return ask() if memory[0:6] == b"secret" else 101


@trial
def spliced_into_a_pipe() -> int:
    reader, writer = os.pipe()

    if apart(lambda: splice(os.open(path("secret/key"), os.O_RDONLY), writer)) != 0:
        return 102
    os.read(reader, 6)
    return ask()


@trial
def through_a_terminal() -> int:
    ours, theirs = pty.openpty()

    def go() -> None:
        read("secret/key")
        os.write(theirs, b"secret\n")

    apart(go)
    os.read(ours, 6)
    return ask()


@trial
def through_a_message_queue() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.msgget(0, 0o1600)
    message = ctypes.create_string_buffer(b"\1" + b"\0" * 7 + b"secret")

    def go() -> None:
        read("secret/key")
        libc.msgsnd(queue, message, 6, 0)

    apart(go)
    received = libc.msgrcv(queue, message, 6, 0, 0)
    libc.msgctl(queue, 0, None)
    return ask() if received == 6 else 101


# What carries nothing


@trial
def an_event_descriptor() -> int:
    """All of them share one inode, so what one process does to its own would concern everybody's."""

    def count() -> None:
        os.eventfd_read(os.eventfd(1))

    def go() -> None:
        read("secret/key")
        os.eventfd_write(os.eventfd(0), 1)

    apart(go)
    count()
    return ask()


@trial
def dev_null() -> int:
    def go() -> None:
        read("secret/key")
        with open("/dev/null", "wb", buffering=0) as null:
            null.write(b"secret")

    apart(go)
    with open("/dev/null", "r+b", buffering=0) as null:
        null.read()
        null.write(b"x")
    return ask()


@trial
def a_terminal() -> int:
    _controller, theirs = pty.openpty()

    def go() -> None:
        read("secret/key")
        os.write(theirs, b"x\n")

    apart(go)
    os.write(theirs, b"y\n")
    return ask()


@trial
def a_folder() -> int:
    spill("free/in-a-folder")
    os.listdir(path("free"))
    return ask()


if __name__ == "__main__":
    trial.run()
