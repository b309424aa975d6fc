"""
A whole policy in the machine: dispatcher, tail call, automaton, verdict and report, with no kernel.

The programs are those a session would load for the hook `connect4`, with offsets from the running
kernel's BTF; only the task and the context are made up.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import struct
from pathlib import Path

import pytest

from actplane import dsl
from actplane.asm.machine import Machine, Outcome, RingBufferMap, Task
from actplane.codegen import layout
from actplane.codegen.compile import compile_policy
from actplane.codegen.tier import Tier
from actplane.loader.btf import Btf
from actplane.loader.btf_types import Kind
from actplane.loader.relocate import relocate

POLICY = """
source COMMAND = exec "**"
rule no-inside:
  block connect endpoint "10.0.0.0/8:443" if COMMAND
  block connect endpoint "192.168.7.0/24" if COMMAND
  block connect endpoint "*:22" if COMMAND
  because "the inside is not for agents"
"""
SOCK_ADDR_BYTES = 72

pytestmark = pytest.mark.skipif(
    not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel does not describe its types (no BTF)"
)


def is_forbidden(address: str, port: int) -> bool:
    """The policy above, said in Python."""
    where = ipaddress.ip_address(address)
    if where in ipaddress.ip_network("10.0.0.0/8") and port == 443:
        return True
    return where in ipaddress.ip_network("192.168.7.0/24") or port == 22


class Session:
    """The programs of the policy, as a session puts them into a kernel; one task that may be marked."""

    def __init__(self) -> None:
        btf = Btf.vmlinux()
        compiled = compile_policy(dsl.compile_text(dsl.inline_policy(POLICY)).policy, Tier.TRACE)
        self.machine = Machine(compiled.object.maps, has_zero_reads=True)
        self.programs = {
            program.name: self.machine.load(relocate(program, btf)) for program in compiled.object.programs
        }
        for hook in compiled.hooks:
            if hook.prog_array is not None and hook.program is not None:
                self.machine.maps[hook.prog_array].put(0, self.programs[hook.program])
        size = btf.size_of(btf.find(Kind.BTF_KIND_STRUCT, "task_struct"))
        struct_task = self.machine.memory.add("task_struct", size)
        leader = struct_task.address + btf.field_offset("task_struct", "group_leader")
        self.machine.memory.write_int(leader, struct_task.address, 8)
        self.machine.task = Task(pid=5, tgid=5, comm="agent", address=struct_task.address)

    def mark(self, labels: frozenset[int]) -> None:
        self.machine.maps["tasks"][self.machine.task.address] = layout.pack_state(0, labels)

    def connect(self, address: str, port: int) -> Outcome:
        context = bytearray(SOCK_ADDR_BYTES)
        # user_family, user_ip4 and user_port (in network order), family, type, protocol
        struct.pack_into("<I", context, 0, socket.AF_INET)
        context[4:8] = socket.inet_aton(address)
        context[24:26] = struct.pack(">H", port)
        struct.pack_into("<III", context, 28, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        return self.programs["enter_connect4"].run(bytes(context))

    def reports(self) -> list[bytes]:
        events = self.machine.maps["events"]
        assert isinstance(events, RingBufferMap)
        return events.consume()


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


def test_a_task_outside_every_session_is_let_through(session: Session) -> None:
    assert session.connect("10.1.2.3", 443).value == 1
    assert session.reports() == []


def test_a_marked_task_is_denied_what_the_policy_says_and_nothing_else(session: Session) -> None:
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


def test_without_the_label_nothing_is_denied(session: Session) -> None:
    session.mark(frozenset())
    assert session.connect("10.1.2.3", 443).value == 1


def test_a_session_that_lost_its_program_denies(session: Session) -> None:
    session.mark(frozenset({0}))
    slots = session.machine.maps["connect4_slots"]
    program = slots.programs.pop(0)
    try:
        assert session.connect("8.8.8.8", 80).value == 0
    finally:
        slots.put(0, program)
