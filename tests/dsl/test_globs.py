"""Globs and endpoint patterns against examples; the languages are matched by Python's `re`."""

from __future__ import annotations

import re
import socket

import pytest

from actplane.dsl import endpoints, globs, paths
from actplane.ir.endpoint import endpoint_text
from actplane.ir.printer import print_regex


def matches(regex, text):
    return re.fullmatch(print_regex(regex).encode("latin-1"), text, re.DOTALL) is not None


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("**", "/", True),
        ("*", "/a/b", True),
        (".env", "/.env", True),
        (".env", "/work/deep/down/.env", True),
        (".env", "/work/prod.env", False),
        ("**/.env", "/.env", True),
        ("**/.env", "/work/prod.env", False),
        ("*.env", "/work/prod.env", True),
        ("/a/**", "/a/b", True),
        ("/a/**", "/a/b/c", True),
        ("/a/**", "/a", False),
        ("/a/**", "/ab", False),
        ("/a/*", "/a/b/c", False),
        ("/a/**/b", "/a/b", True),
        ("/a/**/b", "/a/x/y/b", True),
        ("/a/**/b", "/a/xb", False),
        ("/a/**/**/b", "/a/b", True),
        ("/a/**/**/b", "/a/x/b", True),
        ("**/M/**", "/x/M/y", True),
        ("**/M/**", "/M/y", True),
        ("**/M/**", "/x/M", False),
        ("/a**", "/abc/d", True),
        ("/a/?", "/a/é", True),
        ("/a/?", "/a/ab", False),
        ("/a/?b", "/a//b", False),
        ("/a/[!b]", "/a/é", True),
        ("/a/[!b]", "/a/b", False),
        ("/a[!b]c", "/a/c", False),
        ("/a/[]x]", "/a/]", True),
        ("/a/[a-]", "/a/-", True),
        ("/a/[\\]\\-]", "/a/-", True),
        ("/a/[à-é]", "/a/è", True),
        ("/a/[à-é]", "/a/ê", False),
        ("/a/{b,c{d,e}}", "/a/ce", True),
        ("/a/{b,c{d,e}}", "/a/c", False),
        ("/a/{b,}", "/a/", True),
        ("/a/{b}", "/a/{b}", True),
        ("/a/\\*", "/a/*", True),
        ("/a/\\*", "/a/b", False),
        ("src/**", "/root/src/x", True),
        ("src/**", "/src/x", False),
        ("./x", "/root/x", True),
        ("../x/y", "/x/y", True),
        (".", "/root", True),
        ("..", "/", True),
        ("/a//b", "/a/b", True),
        ("/a/./b/../c", "/a/c", True),
        ("/..", "/", True),
        ("/.", "/", True),
        ("**foo/bar", "/x/foo/bar", True),
        ("{/a,b,c/d}", "/x/b", True),
        ("{/a,b,c/d}", "/root/c/d", True),
        ("{/a,b,c/d}", "/c/d", False),
        ("", "/", False),
    ],
)
def test_paths(pattern, path, expected):
    assert matches(paths.path_regex(pattern, paths.Place("/root")), path.encode()) is expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("--force*", "--force-with-lease", True),
        ("*", "a/b\nc", True),
        ("?", "/", True),
        ("?", "", False),
        ("origin/?ain", "origin/main", True),
        ("stash@{0}", "stash@{0}", True),
        ("{}", "{}", True),
        ("[!a]", "/", True),
        ("**", "", True),
    ],
)
def test_arguments(pattern, text, expected):
    assert matches(globs.text_regex(pattern), text.encode()) is expected


@pytest.mark.parametrize(
    ("pattern", "message", "place"),
    [
        ("/a[b", "a '[' without its ']'", (2, 3)),
        ("/a[]", "a '[' without its ']'", (2, 3)),
        ("/a[b-", "a '[' without its ']'", (2, 3)),
        ("/{a,{b,c}", "a '{' without its '}'", (1, 2)),
        ("/a\\", "a backslash quotes nothing", (2, 3)),
        ("/[z-a]", "the range z-a runs backwards", (2, 5)),
        ("/\0", "a NUL is in no path, name or argument", (1, 2)),
        ("{a,b}" * 11, "the braces multiply to more than 1024 alternatives", (0, 55)),
        ("{a," * 40 + "b" + "}" * 40, "braces stand in each other more than 32 deep", (96, 97)),
        ("/*/../b", "'..' behind a wildcard names no folder", (0, 7)),
    ],
)
def test_mistakes_in_globs(pattern, message, place):
    with pytest.raises(globs.GlobError) as caught:
        paths.path_regex(pattern, paths.Place("/"))
    assert (str(caught.value), (caught.value.start, caught.value.end)) == (message, place)


def endpoint(pattern):
    return endpoints.endpoint_regex(pattern, "/root", lambda name: ["192.0.2.7", "2001:db8::7"])


INET, INET6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX


@pytest.mark.parametrize(
    ("pattern", "address", "expected"),
    [
        ("*", (INET, "1.2.3.4", 5), True),
        ("*", (UNIX, b"\0x", 0), True),
        ("*", (socket.AF_NETLINK, "", 0), True),
        ("*:443", (INET6, "::1", 443), True),
        ("*:443", (INET, "1.2.3.4", 444), False),
        ("*:443", (UNIX, "/x", 0), False),
        ("10.", (INET, "10.255.0.1", 1), True),
        ("10.", (INET, "100.0.0.1", 1), False),
        ("10.0", (INET, "10.0.9.9", 1), True),
        ("10.0.0.5", (INET, "10.0.0.5", 0), True),
        ("10.0.0.5", (INET, "10.0.0.50", 0), False),
        ("10.0.0.5", (INET6, "::ffff:10.0.0.5", 0), True),
        ("10.0.0.0/13", (INET, "10.7.255.255", 0), True),
        ("10.0.0.0/13", (INET, "10.8.0.0", 0), False),
        ("0.0.0.0/0", (INET6, "::1", 0), False),
        ("10.1.2.3:8000-8080", (INET, "10.1.2.3", 8000), True),
        ("10.1.2.3:8000-8080", (INET, "10.1.2.3", 8080), True),
        ("10.1.2.3:8000-8080", (INET, "10.1.2.3", 8081), False),
        ("10.1.2.3:8000-8080", (INET, "10.1.2.3", 7999), False),
        ("*:ssh", (INET, "10.1.2.3", 22), True),
        ("[::1]:22", (INET6, "::1", 22), True),
        ("::1", (INET6, "::1", 22), True),
        ("[2001:db8::]/32:22", (INET6, "2001:db8:ffff::", 22), True),
        ("2001:db8::/32", (INET6, "2001:db9::", 22), False),
        ("::/0", (INET6, "::ffff:1.2.3.4", 22), False),
        ("[::ffff:0:0]/96", (INET, "1.2.3.4", 22), True),
        ("host.example.com:443", (INET, "192.0.2.7", 443), True),
        ("host.example.com:443", (INET6, "2001:db8::7", 443), True),
        ("host.example.com:443", (INET6, "2001:db8::7", 80), False),
        ("unix:/run/*.sock", (UNIX, "/run/x.sock", 0), True),
        ("unix:/run/*.sock", (UNIX, "/run/x/y.sock", 0), False),
        ("unix:x.sock", (UNIX, "/run/x.sock", 0), True),
        ("unix:x.sock", (UNIX, "x.sock", 0), True),
        ("unix:run/x", (UNIX, "/root/run/x", 0), True),
        ("unix:run/x", (UNIX, "run/x", 0), True),
        ("unix:@bus/*", (UNIX, b"\0bus/a/b", 0), True),
        ("unix:@bus", (UNIX, "/bus", 0), False),
        ("unix:*", (UNIX, b"\0bus", 0), True),
        ("unix:*", (INET, "1.2.3.4", 0), False),
        ("", (INET, "0.0.0.0", 0), False),
    ],
)
def test_endpoints(pattern, address, expected):
    assert matches(endpoint(pattern), endpoint_text(*address)) is expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ((INET, "1.2.3.4", 80), b"4abacadaeaafa"),
        ((INET6, "::ffff:1.2.3.4", 80), b"4abacadaeaafa"),
        ((INET6, "2001:db8::1", 443), b"6caabanli" + b"a" * 23 + b"b" + b"abll"),
        ((UNIX, "/run/x", 0), b"u/run/x"),
        ((UNIX, b"\0bus", 0), b"u@bus"),
        ((UNIX, b"", 0), b"u"),
        ((16, "", 0), b"xaaba"),
    ],
)
def test_the_canonical_text_of_an_address(address, expected):
    assert endpoint_text(*address) == expected


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_has_no_text(port):
    with pytest.raises(ValueError, match="expected 0 to 65535"):
        endpoint_text(INET, "1.2.3.4", port)


def test_without_a_resolver_host_names_are_errors():
    with pytest.raises(globs.GlobError, match="has to be looked up"):
        endpoints.endpoint_regex("host.example.com", "/", None)


def test_a_host_without_addresses_is_an_error():
    with pytest.raises(globs.GlobError, match="has no address"):
        endpoints.endpoint_regex("host.example.com", "/", lambda name: [])


LINKS = {"/bin": "/usr/bin", "/bin/sh": "/usr/bin/dash", "/root/data": "/mnt/data"}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/bin/sh", "(?:/bin/sh|/usr/bin/dash)"),
        ("/bin/*", "(?:/bin/[^/]*|/usr/bin/[^/]*)"),
        ("/bin*/x", "/bin[^/]*/x"),
        ("data/**", "(?:/root/data/.*|/mnt/data/.*)"),
        ("/*", "/[^/]*"),
        ("**/sh", ".*/sh"),
    ],
)
def test_patterns_stand_for_what_links_lead_to(pattern, expected):
    place = paths.Place("/root", lambda path: LINKS.get(path, path))
    assert print_regex(paths.path_regex(pattern, place)) == expected


def test_exemptions_are_not_widened_and_that_is_said():
    notes = []
    place = paths.Place("/root", lambda path: LINKS.get(path, path))
    regex = paths.path_regex("/bin/*", place, lambda *note: notes.append(note), may_widen=False)
    assert print_regex(regex) == "/bin/[^/]*"
    assert notes == [("/bin is /usr/bin behind its links, and an exemption is not widened to that", "write /usr/bin")]
