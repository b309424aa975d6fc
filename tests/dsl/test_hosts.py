"""Looking up host names."""

from __future__ import annotations

import socket

import pytest

from actplane.dsl import resolve_host


def test_addresses_are_numeric_sorted_and_without_scope(monkeypatch):
    def getaddrinfo(name, port, type):
        assert (name, port, type) == ("host.example.com", None, socket.SOCK_STREAM)
        entries = [("fe80::1%eth0", 0, 0, 2), ("192.0.2.7", 0), ("192.0.2.7", 0)]
        return [(socket.AF_INET, type, 6, "", entry) for entry in entries]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert resolve_host("host.example.com") == ["192.0.2.7", "fe80::1"]


def test_a_number_is_its_own_address():
    assert resolve_host("127.0.0.1") == ["127.0.0.1"]


def test_a_name_without_address_is_an_error():
    with pytest.raises(OSError, match=r"."):
        resolve_host("nowhere.invalid")
