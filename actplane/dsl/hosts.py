"""Host names to addresses, when a policy is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Resolve = Callable[[str], Iterable[str]]
"""Takes a host name, returns its numeric addresses; raises OSError if it has none."""


def resolve_host(name: str) -> list[str]:
    """
    Ask this machine for the addresses of a host.

    Raises: OSError if there are none.
    """
    import socket  # Only policies that name hosts pay for it.

    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return sorted({str(entry[4][0]).partition("%")[0] for entry in found})
