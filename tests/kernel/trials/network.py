"""
Connecting, sending and receiving in every way there is.

TRIAL_PORTS in the environment are the ports of servers outside the session, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import time

from tests.kernel.trials.runner import Trials, execute, work

trial = Trials()
PORTS: dict[str, int] = json.loads(os.environ.get("TRIAL_PORTS", "{}"))
MSG_FASTOPEN = 0x20000000
FREE, DENIED = "free", "denied"


def tcp(host: str, port: str = FREE, family: int = socket.AF_INET) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect((host, PORTS[port]))


def udp(host: str, family: int = socket.AF_INET) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (host, PORTS["udp"]))


def unix(address: str | bytes, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(address)


# IPv4 and IPv6


@trial
def allowed_address() -> None:
    tcp("127.0.0.1")


@trial
def denied_address() -> None:
    tcp("127.0.0.2")


@trial
def denied_prefix() -> None:
    tcp("127.3.4.5")


@trial
def denied_block() -> None:
    tcp("127.0.1.77")


@trial
def beside_the_block() -> None:
    tcp("127.0.2.77")


@trial
def denied_port() -> None:
    tcp("127.0.0.1", DENIED)


@trial
def denied_port_elsewhere() -> None:
    tcp("127.0.5.5", DENIED)


@trial
def denied_range() -> None:
    tcp("127.0.0.4")


@trial
def exempt_address() -> None:
    tcp("127.0.6.6")


@trial
def not_exempt_address() -> None:
    tcp("127.0.6.7")


@trial
def denied_mapped() -> None:
    tcp("::ffff:127.0.0.2", family=socket.AF_INET6)


@trial
def allowed_mapped() -> None:
    tcp("::ffff:127.0.0.1", family=socket.AF_INET6)


@trial
def denied_v6() -> None:
    tcp("::1", DENIED, family=socket.AF_INET6)


@trial
def allowed_v6() -> None:
    tcp("::1", family=socket.AF_INET6)


@trial
def denied_no_address() -> None:
    """To connect to 0.0.0.0 is to connect to this host."""
    tcp("0.0.0.0", DENIED)


@trial
def denied_udp_connect() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.2", PORTS["udp"]))


@trial
def denied_udp_send() -> None:
    udp("127.0.0.2")


@trial
def denied_udp_send_mapped() -> None:
    udp("::ffff:127.0.0.2", family=socket.AF_INET6)


@trial
def denied_udp_sendmsg() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendmsg([b"x"], [], 0, ("127.0.0.2", PORTS["udp"]))


@trial
def denied_udp_send_on_a_connected_socket() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", PORTS["udp"]))
        sock.sendto(b"x", ("127.0.0.2", PORTS["udp"]))


@trial
def allowed_udp() -> None:
    udp("127.0.0.1")


@trial
def denied_fast_open() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.sendto(b"x", MSG_FASTOPEN, ("127.0.0.2", PORTS[FREE]))


@trial
def connection_taken_back() -> int:
    """A connect to AF_UNSPEC dissolves an association; it goes nowhere."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", PORTS["udp"]))
        return ctypes.get_errno() if libc.connect(sock.fileno(), b"\0" * 16, 16) else 0


@trial
def killed() -> int:
    tcp("127.0.0.9")
    return 0


@trial
def noticed() -> None:
    tcp("127.0.7.7")


# Unix sockets


@trial
def unix_stream() -> None:
    unix(f"{work()}/sock/denied-stream")


@trial
def unix_datagram() -> None:
    unix(f"{work()}/sock/denied-datagram", socket.SOCK_DGRAM)


@trial
def unix_datagram_sent() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", f"{work()}/sock/denied-datagram")


@trial
def unix_relative() -> None:
    os.chdir(f"{work()}/sock")
    unix("denied-stream")


@trial
def unix_through_a_symlink() -> None:
    unix(f"{work()}/to-sock/denied-stream")


@trial
def unix_abstract() -> None:
    unix(b"\0denied-" + os.fsencode(os.path.basename(os.path.dirname(work()))))


@trial
def unix_allowed() -> None:
    unix(f"{work()}/sock/free-stream")


@trial
def unix_pair() -> None:
    one, other = socket.socketpair()
    one.send(b"x")
    assert other.recv(1) == b"x"


# Receiving: the servers at these ports send one byte to whoever connects.


def receive(port: str, host: str = "127.0.0.1") -> None:
    with socket.create_connection((host, PORTS[port]), timeout=20) as sock:
        assert sock.recv(1) == b"!"


@trial
def receive_denied() -> None:
    receive("mute")


@trial
def read_denied() -> None:
    with socket.create_connection(("127.0.0.1", PORTS["mute"]), timeout=20) as sock:
        os.read(sock.fileno(), 1)


@trial
def splice_denied() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.create_connection(("127.0.0.1", PORTS["mute"]), timeout=20) as sock:
        sock.setblocking(True)
        return ctypes.get_errno() if libc.splice(sock.fileno(), None, os.pipe()[1], None, 1, 0) < 0 else 0


def receive_locally(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{work()}/sock/{name}")
        time.sleep(0.3)
        # The server has closed by now, and its name is all that is left of it.
        assert sock.recv(1) == b"!"


@trial
def receive_locally_denied() -> None:
    receive_locally("mute")


@trial
def guarded_after_receiving_locally() -> int:
    receive_locally("talker")
    return execute(f"{work()}/bin/guarded")


@trial
def guarded_after_receiving_locally_from_elsewhere() -> int:
    receive_locally("harmless")
    return execute(f"{work()}/bin/guarded")


@trial
def receive_allowed() -> None:
    receive("talker")


@trial
def guarded_before() -> int:
    return execute(f"{work()}/bin/guarded")


@trial
def guarded_after_receiving() -> int:
    receive("talker")
    return execute(f"{work()}/bin/guarded")


@trial
def guarded_after_receiving_from_elsewhere() -> int:
    receive("harmless")
    return execute(f"{work()}/bin/guarded")


if __name__ == "__main__":
    trial.run()
