"""
The canonical text of a socket address, and the regular languages of sets of addresses.

The kernel side writes this text for the address at hand; endpoint patterns are languages over it.

    IPv4       `4`, 8 letters of the address, 4 letters of the port
    IPv6       `6`, 32 letters of the address, 4 letters of the port
    unix       `u`, the path as given (pathname) or `@` and the name (abstract); nothing if unnamed
    others     `x`, 4 letters of the address family

A letter is a nibble, most significant first: 'a' is 0, 'p' is 15. An IPv4-mapped IPv6 address
(`::ffff:a.b.c.d`) is written as the IPv4 address it stands for.
"""

from __future__ import annotations

import ipaddress
import socket

from actplane.ir.ranges import digit_ranges
from actplane.ir.regex import ANY_MASK, ANYTHING, Chars, Concat, Regex, Union, literal

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_PORT = 65535

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_LETTER_A = ord("a")


def endpoint_text(family: int, address: str | bytes = b"", port: int = 0) -> bytes:
    """
    Return the canonical text of an address.

    Shape:  `address` is a numeric address for AF_INET and AF_INET6, and for AF_UNIX the path, or
            NUL and a name for an abstract one; other families have none.
    Units:  port is a number in host order.
    Raises: ValueError if the address is not one of the family, or the port is out of range.

    >>> endpoint_text(socket.AF_INET, "10.0.0.1", 443), endpoint_text(socket.AF_UNIX, b"\\0bus")
    (b'4akaaaaababll', b'u@bus')
    """
    if family in (socket.AF_INET, socket.AF_INET6):
        text = address.decode() if isinstance(address, bytes) else address
        parsed: Address = ipaddress.IPv4Address(text) if family == socket.AF_INET else ipaddress.IPv6Address(text)
        if not 0 <= port <= MAX_PORT:
            raise ValueError(f"port {port}: expected 0 to {MAX_PORT}")
        parsed = normalise(parsed)
        digits = _letters(int(parsed), parsed.max_prefixlen // 4)
        return str(parsed.version).encode() + digits + _letters(port, 4)
    if family == socket.AF_UNIX:
        name = address.encode() if isinstance(address, str) else address
        return b"u@" + name[1:] if name.startswith(b"\0") else b"u" + name
    return b"x" + _letters(family, 4)


def readable(text: bytes) -> bytes:
    """
    Return the text of an address as people and policies write it; what is no such text is left as it is.

    >>> readable(b"4akaaaaababll"), readable(b"u@bus"), readable(b"u/run/a"), readable(b"xaabb")
    (b'10.0.0.1:443', b'unix:@bus', b'unix:/run/a', b'address family 17')
    >>> readable(endpoint_text(socket.AF_INET6, "2001:db8::1", 22)), readable(b"4")
    (b'[2001:db8::1]:22', b'4')
    """
    family, rest = text[:1], text[1:]
    if family == b"u":
        return b"unix:" + rest
    digits = {b"4": 12, b"6": 36, b"x": 4}.get(family)
    if len(rest) != digits or not all(_LETTER_A <= letter < _LETTER_A + 16 for letter in rest):
        return text
    number = 0
    for letter in rest:
        number = number << 4 | letter - _LETTER_A
    if family == b"x":
        return f"address family {number}".encode()
    address, port = number >> 16, number & MAX_PORT
    shown = ipaddress.IPv4Address(address) if family == b"4" else f"[{ipaddress.IPv6Address(address)}]"
    return f"{shown}:{port}".encode()


def normalise(address: Address) -> Address:
    """Return the IPv4 address that an IPv4-mapped IPv6 address stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def normalise_network(network: Network) -> Network:
    """Return the IPv4 network that a network of IPv4-mapped addresses stands for, or the network itself."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        base = int(network.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((base, network.prefixlen - 96))
    return network


def network(net: Network, first_port: int = 0, last_port: int = MAX_PORT) -> Regex:
    """
    Return the language of every address of a network with a port from a range.

    An IPv6 network holds IPv6 addresses only: `::/0` does not match IPv4-mapped ones.
    """
    net = normalise_network(net)
    width = net.max_prefixlen // 4
    low, high = int(net.network_address), int(net.broadcast_address)
    return Concat((literal(str(net.version).encode()), _numbers(low, high, width), _numbers(first_port, last_port, 4)))


def any_internet(first_port: int = 0, last_port: int = MAX_PORT) -> Regex:
    """Return the language of every IPv4 and IPv6 address with a port from a range."""
    return Union(
        (
            network(ipaddress.IPv4Network("0.0.0.0/0"), first_port, last_port),
            network(ipaddress.IPv6Network("::/0"), first_port, last_port),
        )
    )


def unix_path(path: Regex) -> Regex:
    """Return the language of unix sockets whose pathname is in a language."""
    return Concat((literal(b"u"), path))


def unix_abstract(name: Regex) -> Regex:
    """Return the language of abstract unix sockets whose name is in a language."""
    return Concat((literal(b"u@"), name))


ANY_ENDPOINT = ANYTHING
"""Every address of every family."""


def _letters(number: int, width: int) -> bytes:
    return bytes(_LETTER_A + ((number >> (4 * index)) & 15) for index in reversed(range(width)))


def _numbers(low: int, high: int, width: int) -> Regex:
    """Return the language of the numbers from `low` to `high`, in letters."""
    options = tuple(
        Concat(tuple(_letter_range(first, last) for first, last in digits))
        for digits in digit_ranges(_nibbles(low, width), _nibbles(high, width), 0, 15)
    )
    return options[0] if len(options) == 1 else Union(options)


def _nibbles(number: int, width: int) -> list[int]:
    return [(number >> (4 * index)) & 15 for index in reversed(range(width))]


def _letter_range(first: int, last: int) -> Regex:
    mask = 0
    for nibble in range(first, last + 1):
        mask |= 1 << (_LETTER_A + nibble)
    return Chars(mask & ANY_MASK)
