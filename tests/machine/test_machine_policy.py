"""
Whole policies in the machine: dispatcher, tail call, automaton, verdict and report, with no kernel.

The programs are those a session would load, with offsets from the running kernel's BTF; only the
structures they walk are made up: a task, a socket address, a file with its dentries and mount.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import re
import socket
import stat
import struct
from pathlib import Path

import pytest

from actplane import dsl
from actplane.asm.machine import LocalStorageMap, Machine, Outcome, RingBufferMap, Task
from actplane.codegen import layout
from actplane.codegen.compile import compile_policy
from actplane.codegen.tier import Tier
from actplane.loader.btf import Btf
from actplane.loader.btf_types import Kind
from actplane.loader.relocate import relocate

CONNECT = """
source COMMAND = exec "**"
rule no-inside:
  block connect endpoint "10.0.0.0/8:443" if COMMAND
  block connect endpoint "192.168.7.0/24" if COMMAND
  block connect endpoint "*:22" if COMMAND
  because "the inside is not for agents"
"""
WRITE = """
source COMMAND = exec "**"
rule hands-off:
  block write file "/protected/**" if COMMAND
  block write file "/srv/*/key" if COMMAND
  block write file "**/*.pem" if COMMAND
  because "these are not the agent's"
"""
SOCK_ADDR_BYTES = 72
FMODE_READ, FMODE_WRITE = 1, 2

pytestmark = pytest.mark.skipif(
    not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel does not describe its types (no BTF)"
)


def is_forbidden(address: str, port: int) -> bool:
    """The policy above, said in Python."""
    where = ipaddress.ip_address(address)
    if where in ipaddress.ip_network("10.0.0.0/8") and port == 443:
        return True
    return where in ipaddress.ip_network("192.168.7.0/24") or port == 22


def is_protected(path: str) -> bool:
    return re.fullmatch(r"/protected/.*|/srv/[^/]*/key|(.*/)?[^/]*\.pem", path) is not None


class Session:
    """The programs of a policy, as a session puts them into a kernel; one task that may be marked."""

    def __init__(self, policy: str, tier: Tier) -> None:
        self.btf = Btf.vmlinux()
        compiled = compile_policy(dsl.compile_text(dsl.inline_policy(policy)).policy, tier)
        self.machine = Machine(compiled.object.maps, has_zero_reads=True)
        self.programs = {
            program.name: self.machine.load(relocate(program, self.btf)) for program in compiled.object.programs
        }
        for hook in compiled.hooks:
            if hook.prog_array is not None and hook.program is not None:
                self.machine.maps[hook.prog_array].put(0, self.programs[hook.program])
        task = self.new("task_struct")
        self.set(task, "task_struct", "group_leader", task)
        self.machine.task = Task(pid=5, tgid=5, comm="agent", address=task)

    def new(self, struct_name: str) -> int:
        """Map a kernel structure of zeros and return its address."""
        size = self.btf.size_of(self.btf.find(Kind.BTF_KIND_STRUCT, struct_name))
        return self.machine.memory.add(struct_name, size).address

    def set(self, address: int, struct_name: str, field: str, value: int, size: int = 8) -> None:
        self.machine.memory.write_int(address + self.btf.field_offset(struct_name, field), value, size)

    def mark(self, labels: frozenset[int]) -> None:
        self.machine.maps["tasks"][self.machine.task.address] = layout.pack_state(0, labels)

    def reports(self) -> list[bytes]:
        events = self.machine.maps["events"]
        assert isinstance(events, RingBufferMap)
        return events.consume()


class Connections(Session):
    def connect(self, address: str, port: int) -> Outcome:
        context = bytearray(SOCK_ADDR_BYTES)
        # user_family, user_ip4 and user_port (in network order), family, type, protocol
        struct.pack_into("<I", context, 0, socket.AF_INET)
        context[4:8] = socket.inet_aton(address)
        context[24:26] = struct.pack(">H", port)
        struct.pack_into("<III", context, 28, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        return self.programs["enter_connect4"].run(bytes(context))


class Files(Session):
    """Files below a root that is its own parent, on one mount."""

    def __init__(self, policy: str) -> None:
        super().__init__(policy, Tier.LSM)
        self.root = self.dentry("/", None)
        mount, namespace, namespaces = self.new("mount"), self.new("mnt_namespace"), self.new("nsproxy")
        self.set(mount, "mount", "mnt_parent", mount)
        self.set(mount, "mount", "mnt_mountpoint", self.root)
        self.set(mount, "mount", "mnt.mnt_root", self.root)
        self.set(mount, "mount", "mnt_ns", namespace)
        self.set(namespace, "mnt_namespace", "root", mount)
        self.set(namespaces, "nsproxy", "mnt_ns", namespace)
        self.set(self.machine.task.address, "task_struct", "nsproxy", namespaces)
        self.namespace = namespace
        self.mount = mount + self.btf.field_offset("mount", "mnt")

    def dentry(self, name: str, parent: int | None) -> int:
        address = self.new("dentry")
        text = self.machine.memory.add("name", name.encode() + b"\0").address
        self.set(address, "dentry", "d_parent", address if parent is None else parent)
        self.set(address, "dentry", "d_name.name", text)
        self.set(address, "dentry", "d_name.len", len(name), 4)
        return address

    def open(self, path: str, mode: int) -> Outcome:
        at = self.root
        for part in path.strip("/").split("/"):
            at = self.dentry(part, at)
        inode, file = self.new("inode"), self.new("file")
        self.set(inode, "inode", "i_mode", stat.S_IFREG | 0o644, 2)
        self.set(file, "file", "f_inode", inode)
        self.set(file, "file", "f_mode", mode, 4)
        self.set(file, "file", "f_flags", os.O_WRONLY if mode & FMODE_WRITE else os.O_RDONLY, 4)
        self.set(file, "file", "f_path.dentry", at)
        self.set(file, "file", "f_path.mnt", self.mount)
        return self.programs["enter_file_open"].run(arguments=[file])


@pytest.fixture(scope="module")
def session() -> Connections:
    return Connections(CONNECT, Tier.TRACE)


@pytest.fixture(scope="module")
def files() -> Files:
    return Files(WRITE)


def test_a_task_outside_every_session_is_let_through(session: Connections) -> None:
    assert session.connect("10.1.2.3", 443).value == 1
    assert session.reports() == []


def test_a_marked_task_is_denied_what_the_policy_says_and_nothing_else(session: Connections) -> None:
    session.mark(frozenset({0}))
    rng = random.Random(7)
    seen = {True: 0, False: 0}
    for _ in range(300):
        address = rng.choice(("10.{}.{}.{}", "192.168.7.{3}", "192.168.{2}.{1}", "{}.{}.{}.{}"))
        address = address.format(*(rng.randrange(1, 255) for _ in range(4)))
        port = rng.choice((22, 80, 443, rng.randrange(1, 65536)))
        expected = is_forbidden(address, port)
        outcome = session.connect(address, port)
        assert outcome.value == (0 if expected else 1), f"{address}:{port}"
        assert bool(session.reports()) == expected, "a denial is reported, and only a denial"
        seen[expected] += 1
    assert min(seen.values()) > 50


def test_without_the_label_nothing_is_denied(session: Connections) -> None:
    session.mark(frozenset())
    assert session.connect("10.1.2.3", 443).value == 1


def test_a_session_that_lost_its_program_denies(session: Connections) -> None:
    session.mark(frozenset({0}))
    slots = session.machine.maps["connect4_slots"]
    program = slots.programs.pop(0)
    try:
        assert session.connect("8.8.8.8", 80).value == 0
    finally:
        slots.put(0, program)


def test_opening_to_write_is_denied_where_the_policy_says_so(files: Files) -> None:
    files.mark(frozenset({0}))
    rng = random.Random(11)
    seen = {True: 0, False: 0}
    for _ in range(300):
        parts = [rng.choice(("protected", "srv", "key", "a", "b.pem", "c.pem.txt", "key2")) for _ in range(4)]
        path = "/" + "/".join(parts[: rng.randrange(1, 5)])
        mode = rng.choice((FMODE_READ, FMODE_WRITE, FMODE_READ | FMODE_WRITE))
        expected = is_protected(path) and bool(mode & FMODE_WRITE)
        outcome = files.open(path, mode)
        assert outcome.signed == (-errno.EPERM if expected else 0), (path, mode)
        reports = files.reports()
        assert bool(reports) == expected
        assert not reports or path.encode() in reports[0]
        seen[expected] += 1
    assert min(seen.values()) > 30


def test_a_file_of_a_mount_that_is_attached_nowhere_is_denied() -> None:
    files = Files(WRITE)
    files.mark(frozenset({0}))
    assert files.open("/a/b", FMODE_WRITE).signed == 0
    elsewhere = files.new("mount")
    files.set(elsewhere, "mount", "mnt.mnt_root", files.dentry("/", None))
    files.set(files.namespace, "mnt_namespace", "root", elsewhere)
    assert files.open("/a/b", FMODE_WRITE).signed == -errno.EPERM


def test_an_unmarked_task_may_write_everywhere(files: Files) -> None:
    files.mark(frozenset({0}))
    del files.machine.maps["tasks"][files.machine.task.address]
    assert files.open("/protected/x", FMODE_WRITE).signed == 0


def test_a_child_that_cannot_be_marked_is_counted_and_reported(
    session: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.mark(frozenset({0}))
    session.reports()
    child = session.new("task_struct")
    tasks = session.machine.maps["tasks"]
    found = type(tasks).get
    is_short = True

    def get(self: LocalStorageMap, owner: int, initial: bytes | None, flags: int) -> int:
        return 0 if is_short and owner == child else found(self, owner, initial, flags)

    monkeypatch.setattr(type(tasks), "get", get)
    session.programs["task_newtask"].run(arguments=[child, 0])
    (report,) = map(layout.unpack_record, session.reports())
    assert (report.event, report.action, report.cause) == (
        layout.EVENT_FORK,
        layout.ACTION_KILLED,
        layout.CAUSE_NO_MEMORY,
    )
    assert report.clauses == ()
    counters = session.machine.maps["session"][0]
    assert struct.unpack_from("<QQ", counters) == (0, 1), "no report was lost, one task is not marked"

    is_short = False
    session.programs["task_newtask"].run(arguments=[child, 0])
    assert session.reports() == []
    assert child in [int.from_bytes(key, "little") for key in tasks.keys()]  # noqa: SIM118
