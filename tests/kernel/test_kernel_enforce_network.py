"""Connections and messages under a policy, and what is received."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from actplane.codegen.tier import Tier
from tests.kernel.enforcing import ALLOWED, DENIED, KILLED, Outcome, binary, enforce, require_tier, words

pytestmark = pytest.mark.fmod_ret

POLICY = """
source FOREIGN = endpoint "127.0.0.1:{talker}"
source FOREIGN = endpoint "unix:{work}/sock/talker"
rule out:
  block connect endpoint "127.0.0.2" if AGENT
  block connect endpoint "127.3." if AGENT
  block connect endpoint "127.0.1.0/24" if AGENT
  block connect endpoint "127.0.0.0/16:{denied}" if AGENT
  block connect endpoint "127.0.0.4:1000-65535" if AGENT
  block connect endpoint "127.0.6." unless target "127.0.6.6"
  block connect endpoint "[::1]:{denied}" if AGENT
  because "it stays here"
rule local:
  block connect endpoint "unix:{work}/sock/denied*" if AGENT
  block connect endpoint "unix:@denied-*" if AGENT
rule deadly: kill connect endpoint "127.0.0.9" if AGENT
rule noticed: notify connect endpoint "127.0.7.7:{free}" if AGENT
rule in:
  block recv endpoint "127.0.0.1:{mute}" if AGENT
  block recv endpoint "unix:{work}/sock/mute" if AGENT
rule guard: block exec "guarded" if FOREIGN
"""

DENIED_TRIALS = words("""denied_address denied_prefix denied_block denied_port denied_port_elsewhere denied_range
    not_exempt_address denied_mapped denied_v6 denied_no_address denied_udp_connect denied_udp_send
    denied_udp_send_mapped denied_udp_sendmsg denied_udp_send_on_a_connected_socket denied_fast_open""")
PASSES = words("""allowed_address beside_the_block exempt_address allowed_mapped allowed_v6 allowed_udp
    connection_taken_back noticed unix_allowed unix_pair receive_allowed guarded_before
    guarded_after_receiving_from_elsewhere guarded_after_receiving_locally_from_elsewhere""")
DENIED_BY_HOOKS = words("""unix_stream unix_datagram unix_datagram_sent unix_relative unix_through_a_symlink
    unix_abstract receive_denied read_denied splice_denied receive_locally_denied""")
OTHERS = words("killed guarded_after_receiving guarded_after_receiving_locally")


def listen(stack: ExitStack, address: tuple[str, int], family: int = socket.AF_INET) -> int:
    """Let anybody connect; return the port."""
    sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(address)
    sock.listen(100)
    return sock.getsockname()[1]


def talk(stack: ExitStack, server: socket.socket) -> None:
    """Send one byte to whoever connects."""
    stack.enter_context(server)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"!")

    thread = threading.Thread(target=serve)
    thread.start()
    stack.callback(thread.join)
    stack.callback(server.shutdown, socket.SHUT_RDWR)


def local_server(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def bind_unix(stack: ExitStack, address: str | bytes, kind: int) -> None:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen(100)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    require_tier()
    # Names of unix sockets are short.
    folder = tmp_path_factory.mktemp("n")
    work = folder / "work"
    (work / "sock").mkdir(parents=True)
    (work / "to-sock").symlink_to("sock")
    binary(work / "bin/guarded")
    with ExitStack() as stack:
        ports = {name: listen(stack, ("0.0.0.0", 0)) for name in ("free", "denied")}
        for port in ports.values():
            listen(stack, ("::1", port), socket.AF_INET6)
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(("0.0.0.0", 0))
        ports["udp"] = datagrams.getsockname()[1]
        for name in ("mute", "talker", "harmless"):
            server = socket.create_server(("0.0.0.0", 0))
            talk(stack, server)
            ports[name] = server.getsockname()[1]
            talk(stack, local_server(work / "sock" / name))
        bind_unix(stack, str(work / "sock/denied-stream"), socket.SOCK_STREAM)
        bind_unix(stack, str(work / "sock/free-stream"), socket.SOCK_STREAM)
        bind_unix(stack, str(work / "sock/denied-datagram"), socket.SOCK_DGRAM)
        bind_unix(stack, b"\0denied-" + folder.name.encode(), socket.SOCK_STREAM)
        policy = POLICY.replace("{work}", str(work))
        for name, port in ports.items():
            policy = policy.replace(f"{{{name}}}", str(port))
        yield enforce(folder, policy, "network", outside={"TRIAL_PORTS": json.dumps(ports)})


def test_every_trial_is_looked_at(session: Outcome) -> None:
    assert sorted(session.results) == sorted([*DENIED_TRIALS, *PASSES, *DENIED_BY_HOOKS, *OTHERS])


@pytest.mark.parametrize("trial", DENIED_TRIALS)
def test_what_a_clause_names_is_not_reached_on_any_tier(session: Outcome, trial: str) -> None:
    assert session.results[trial] == DENIED


@pytest.mark.parametrize("trial", PASSES)
def test_what_no_clause_names_is_reached(session: Outcome, trial: str) -> None:
    assert session.results[trial] == ALLOWED


@pytest.mark.parametrize("trial", DENIED_BY_HOOKS)
def test_unix_sockets_and_receiving_need_hooks(session: Outcome, trial: str) -> None:
    require_tier(Tier.LSM, Tier.FMOD_RET)
    assert session.results[trial] == DENIED


def test_who_receives_from_a_source_gains_its_label(session: Outcome) -> None:
    require_tier(Tier.LSM, Tier.FMOD_RET)
    assert session.results["guarded_after_receiving"] == DENIED
    assert session.results["guarded_after_receiving_locally"] == DENIED


def test_a_kill_ends_the_process_before_it_connects(session: Outcome) -> None:
    assert session.results["killed"] == KILLED
    assert [event["action"] for event in session.of_rule("deadly")] == ["killed"]


def test_events_name_endpoints_as_policies_do(session: Outcome) -> None:
    first = session.of_rule("out")[0]
    assert (first["op"], first["action"], first["reason"]) == ("connect", "blocked", "it stays here")
    targets = {str(event["target"]).rpartition(":")[0] for event in session.of_rule("out")}
    assert {"127.0.0.2", "127.3.4.5", "[::1]"} <= targets
    [noticed] = session.of_rule("noticed")
    assert str(noticed["target"]).startswith("127.0.7.7:")


def test_names_of_unix_sockets_in_events(session: Outcome) -> None:
    require_tier(Tier.LSM, Tier.FMOD_RET)
    targets = [str(event["target"]) for event in session.of_rule("local")]
    assert any(target.endswith("/sock/denied-stream") for target in targets)
    assert Path(targets[0].removeprefix("unix:")).parent.name == "sock"
    assert any(target.startswith("unix:@denied-") for target in targets)
