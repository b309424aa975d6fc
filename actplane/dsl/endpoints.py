"""
Endpoint patterns to languages over the canonical text of addresses (`actplane.ir.endpoint`).

    *                         every address of every family
    10.  10.0.0.  10.0.0.5    IPv4 addresses that start so, octet by octet
    10.0.0.0/8  2001:db8::/32 networks;  [2001:db8::/32] or [2001:db8::]/32 where a port follows
    [::1]                     one IPv6 address
    api.github.com            every address the name has when the policy is compiled
    unix:GLOB  unix:@GLOB     unix sockets by path, or by abstract name; unix:* is all of them
    all but unix: with :PORT, :PORT-PORT or :NAME behind
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from actplane.dsl import globs, paths
from actplane.dsl.globs import GlobError
from actplane.dsl.hosts import Resolve
from actplane.ir import endpoint
from actplane.ir.regex import Regex

PORTS = {
    "ftp": 21,
    "ssh": 22,
    "telnet": 23,
    "smtp": 25,
    "domain": 53,
    "dns": 53,
    "http": 80,
    "pop3": 110,
    "ntp": 123,
    "imap": 143,
    "ldap": 389,
    "https": 443,
    "git": 9418,
    "mysql": 3306,
    "postgresql": 5432,
    "redis": 6379,
}
"""Names every machine agrees on. Others are looked up in the services of this machine."""

_HOST_NAME = re.compile(r"(?=.{1,253}\.?$)([\w]([\w-]{0,61}[\w])?)(\.[\w]([\w-]{0,61}[\w])?)*\.?$", re.ASCII)
_OCTETS = re.compile(r"\d+(\.\d+){0,3}\.?$", re.ASCII)


def endpoint_regex(text: str, root: str, resolve: Resolve | None, note: paths.Note | None = None) -> Regex:
    """
    Return the language of an endpoint pattern.

    Shape:  `root` is the folder that relative paths of unix sockets start from; without `resolve`
            host names are errors.
    Raises: GlobError.
    """
    if not text:
        return globs.NOTHING
    if text in ("*", "**"):
        return endpoint.ANY_ENDPOINT
    if text.startswith("unix:"):
        return _unix(text, root, note)
    host, ports = _split_ports(text)
    if host in ("*", "**"):
        return endpoint.any_internet(ports.first, ports.last)
    networks = _networks(host, len(text), resolve)
    return globs.union(endpoint.network(each, ports.first, ports.last) for each in networks)


@dataclass(frozen=True, slots=True)
class _Ports:
    first: int
    last: int


_ALL_PORTS = _Ports(0, endpoint.MAX_PORT)


def _split_ports(text: str) -> tuple[str, _Ports]:
    """Cut the port, range or service name off an endpoint."""
    head, colon, tail = text.rpartition(":")
    if not colon or (text.startswith("[") and "]" in tail):
        return text, _ALL_PORTS
    if ":" in head and not head.startswith("["):
        # A bare IPv6 address: its last colon starts no port.
        return text, _ALL_PORTS
    return head, _ports(tail, len(head) + 1, len(text))


def _ports(text: str, start: int, end: int) -> _Ports:
    first, dash, last = text.partition("-")
    if first.isdecimal() and (last.isdecimal() or not dash):
        ports = _Ports(int(first), int(last) if dash else int(first))
        if ports.last > endpoint.MAX_PORT:
            raise GlobError(f"port {ports.last}: expected 0 to {endpoint.MAX_PORT}", start, end)
        if ports.last < ports.first:
            raise GlobError(f"the ports {text} run backwards", start, end, f"write {last}-{first}")
        return ports
    if text in PORTS:
        return _Ports(PORTS[text], PORTS[text])
    for protocol in ("tcp", "udp"):
        try:
            port = socket.getservbyname(text, protocol)
        except OSError:
            continue
        return _Ports(port, port)
    raise GlobError(f"unknown service '{text}': expected a port, a range or a name", start, end, "write the number")


def _networks(host: str, end: int, resolve: Resolve | None) -> list[endpoint.Network]:
    if host.startswith("["):
        return [_bracketed(host, end)]
    if _OCTETS.match(host):
        return [_octets(host, end)]
    if ":" in host or "/" in host:
        return [_network(host, end)]
    if any(char in host for char in "*?[{"):
        raise GlobError(
            f"a host pattern ('{host}') cannot be decided by address: the kernel sees addresses, not names",
            0,
            end,
            "name each host exactly, or give its network as CIDR",
        )
    if not _HOST_NAME.match(host):
        raise GlobError(f"unknown endpoint '{host}': expected '*', an address, a network, a host or unix:PATH", 0, end)
    return _resolved(host, end, resolve)


def _octets(host: str, end: int) -> endpoint.Network:
    octets = host.rstrip(".").split(".")
    for octet in octets:
        if int(octet) > 255:
            raise GlobError(f"octet {octet}: expected 0 to 255", 0, end)
    padded = ".".join([str(int(octet)) for octet in octets] + ["0"] * (4 - len(octets)))
    return ipaddress.ip_network(f"{padded}/{8 * len(octets)}")


def _bracketed(host: str, end: int) -> endpoint.Network:
    inner, closed, rest = host[1:].partition("]")
    if not closed:
        raise GlobError("a '[' without its ']'", 0, 1)
    if rest and not rest.startswith("/"):
        raise GlobError(f"unexpected '{rest}' behind ']'", len(inner) + 2, end, "write [ADDRESS]:PORT")
    net = _network(inner + rest, end)
    if net.version != 6:
        raise GlobError("brackets hold IPv6 addresses", 0, end, f"write {inner}")
    return net


def _network(text: str, end: int) -> endpoint.Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        try:
            loose = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise GlobError(f"'{text}' is no address or network: {error}", 0, end) from None
        raise GlobError(f"'{text}' has bits set behind its prefix", 0, end, f"write {loose}") from None


def _resolved(host: str, end: int, resolve: Resolve | None) -> list[endpoint.Network]:
    if resolve is None:
        raise GlobError(
            f"host '{host}' has to be looked up, and here no names are", 0, end, "give its addresses or networks"
        )
    try:
        addresses = [ipaddress.ip_address(each) for each in resolve(host)]
    except OSError as error:
        raise GlobError(f"host '{host}' cannot be looked up: {error.strerror or error}", 0, end) from None
    if not addresses:
        raise GlobError(f"host '{host}' has no address", 0, end)
    return [ipaddress.ip_network(each) for each in sorted(addresses, key=lambda each: (each.version, int(each)))]


def _unix(text: str, root: str, note: paths.Note | None) -> Regex:
    name = text.removeprefix("unix:")
    shift = len(text) - len(name)
    try:
        if name.startswith("@"):
            return endpoint.unix_abstract(globs.text_regex(name[1:]))
        return endpoint.unix_path(_unix_path(name, root, note))
    except GlobError as error:
        shift += name.startswith("@")
        raise GlobError(str(error), error.start + shift, error.end + shift, error.hint) from None


def _unix_path(name: str, root: str, note: paths.Note | None) -> Regex:
    """
    Return the language of the paths a unix socket can be called by.

    The kernel knows the path as the process gave it: a relative pattern also stands for itself, and
    a bare name for one without a folder.
    """
    options = [paths.path_regex(name, paths.Place(root), note)]
    for items in globs.expand(name):
        plain = globs.name_of(items)
        if plain is not None:
            options.append(globs.items_regex(plain, is_path=True))
        elif items and items[0] not in (globs.SLASH, globs.DEEP):
            options.append(globs.items_regex(items, is_path=True))
    return globs.union(options)
