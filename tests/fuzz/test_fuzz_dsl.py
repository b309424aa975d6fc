"""Properties of the policy language: globs against a matcher of their own, texts that are noise, formatting."""

from __future__ import annotations

import ipaddress
import re
import socket
import string

from hypothesis import assume, example, given, reject, settings
from hypothesis import strategies as st

from actplane.dsl import compile_sources, endpoints, globs, paths
from actplane.dsl.formatter import format_policy
from actplane.dsl.parser import parse
from actplane.errors import PolicyError
from actplane.ir import endpoint
from actplane.ir.automaton import AutomatonTooLarge, compile_automaton
from actplane.ir.printer import print_policy, print_regex
from actplane.source import Source

ALPHABET = "ab/é-"
SPECIAL = ((globs.SLASH, globs.SLASH), (globs.SLASH, globs.DEEP))


# -- globs ----------------------------------------------------------------------------------------
#
# The reference walks pattern and text side by side, character by character, and knows nothing of
# languages, bytes or braces multiplied out.


def glob_parts():
    sets = st.tuples(st.sampled_from(["", "!"]), st.text("abé", min_size=1, max_size=2)).map(
        lambda each: ("set", each[0] == "!", each[1])
    )
    simple = st.one_of(
        st.sampled_from(ALPHABET).map(lambda char: ("char", char)),
        st.sampled_from([("one",), ("star",), ("deep",)]),
        sets,
    )
    return st.recursive(
        st.lists(simple, max_size=4),
        lambda inner: st.lists(st.one_of(simple, st.lists(inner, min_size=2, max_size=3).map(_braces)), max_size=4),
        max_leaves=6,
    )


def _braces(options):
    return ("braces", options)


def written(parts):
    """Return the glob that a person would write for parts."""
    text = ""
    for part in parts:
        if part[0] == "char":
            text += part[1]
        elif part[0] == "set":
            text += f"[{'!' if part[1] else ''}{part[2]}]"
        elif part[0] == "braces":
            text += "{" + ",".join(map(written, part[1])) + "}"
        else:
            # Stars side by side would be another wildcard: an empty alternative keeps them apart.
            star = {"one": "?", "star": "*", "deep": "**"}[part[0]]
            text += "{,}" + star if star[0] == "*" else star
    return text


def reference(parts, text, slashes):
    """Tell whether parts match a whole text; `slashes`: only `**` matches a slash."""
    if not parts:
        return not text
    part, rest = parts[0], parts[1:]
    if part[0] == "braces":
        return any(reference([*option, *rest], text, slashes) for option in part[1])
    if part[0] in ("star", "deep"):
        may_pass = part[0] == "deep" or not slashes
        length = len(text) if may_pass else len(text.split("/", 1)[0])
        return any(reference(rest, text[count:], slashes) for count in range(length + 1))
    if not text:
        return False
    head = text[0]
    if part[0] == "char":
        is_fit = head == part[1]
    elif head == "/" and slashes:
        is_fit = False
    else:
        is_fit = part[0] == "one" or (head in part[2]) != part[1]
    return is_fit and reference(rest, text[1:], slashes)


def language(regex):
    return re.compile(print_regex(regex).encode("latin-1"), re.DOTALL)


@given(glob_parts(), st.lists(st.text(ALPHABET, max_size=6), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_text_globs_match_as_written(parts, texts):
    found = language(globs.text_regex(written(parts)))
    for text in texts:
        assert (found.fullmatch(text.encode()) is not None) == reference(parts, text, slashes=False)


@given(glob_parts(), st.lists(st.text(ALPHABET, max_size=6), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_path_globs_match_as_written(parts, texts):
    # `/**/` and doubled slashes mean more in a path than their characters do: examples cover those.
    glob = "/x" + written(parts)
    alternatives = globs.expand(glob)
    assume(not any(items[index : index + 2] in SPECIAL for items in alternatives for index in range(len(items))))
    found = language(paths.path_regex(glob, paths.Place("/root")))
    for text in texts:
        path = "/x" + text
        assert (found.fullmatch(path.encode()) is not None) == reference(parts, text, slashes=True)


@given(st.lists(glob_parts(), min_size=1, max_size=4), st.lists(st.text(ALPHABET, max_size=6), min_size=1, max_size=10))
@settings(max_examples=150, deadline=None)
def test_globs_in_one_automaton_match_as_each_alone(globs_parts, texts):
    regexes = [globs.text_regex(written(parts)) for parts in globs_parts]
    try:
        automaton = compile_automaton(regexes, restarts=False, max_table_bytes=1 << 18)
    except AutomatonTooLarge:
        reject()
    for text in texts:
        expected = {index for index, parts in enumerate(globs_parts) if reference(parts, text, slashes=False)}
        assert automaton.matches(text.encode()) == expected


@given(st.text(st.sampled_from("ab/*?[]{},!\\-.~é"), max_size=12))
@settings(max_examples=500, deadline=None)
@example("..")
def test_any_text_is_a_glob_or_an_error_with_a_place(text):
    error = None
    try:
        re.compile(print_regex(paths.path_regex(text, paths.Place("/root"))).encode("latin-1"))
    except globs.GlobError as caught:
        error = caught
    assert error is None or 0 <= error.start < error.end <= len(text)


@given(
    st.lists(st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF)), max_size=3), st.characters(codec="utf-8")
)
@settings(max_examples=300, deadline=None)
@example([(0, 0)], "0")
def test_characters_are_matched_in_utf8(pairs, char):
    ranges = [(min(pair), max(pair)) for pair in pairs]
    is_inside = any(low <= ord(char) <= high for low, high in ranges) and char != "\0"
    assert (language(globs.characters(ranges)).fullmatch(char.encode()) is not None) == is_inside


# -- endpoints ------------------------------------------------------------------------------------


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses(), st.integers(0, 2**16 - 1), st.data())
@settings(max_examples=300, deadline=None)
def test_networks_and_ports_match_by_arithmetic(base, length, address, port, data):
    net = ipaddress.ip_network((base, min(length, base.max_prefixlen)), strict=False)
    if data.draw(st.booleans()) and address.version == net.version:
        # A far address is rarely inside: draw one that is.
        address = net[data.draw(st.integers(0, net.num_addresses - 1))]
    low, high = sorted(data.draw(st.tuples(st.integers(0, 65535), st.integers(0, 65535))))
    shown = f"[{net.network_address}]/{net.prefixlen}" if net.version == 6 else str(net)
    regex = endpoints.endpoint_regex(f"{shown}:{low}-{high}", "/", None)
    net, address = endpoint.normalise_network(net), endpoint.normalise(address)
    expected = address.version == net.version and address in net and low <= port <= high
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    text = endpoint.endpoint_text(family, str(address), port)
    assert (language(regex).fullmatch(text) is not None) == expected


# -- whole texts ----------------------------------------------------------------------------------

WORDS = [
    "source", "rule", "declassify", "endorse", "by", "block", "kill", "notify", "exec", "read", "write", "open",
    "unlink", "connect", "recv", "file", "endpoint", "if", "unless", "because", "instead", "not", "and", "or", "true",
    "target", "lineage-includes", "after", "exits", "since", "0", "A", "B", ":", "=", "(", ")", '"x"', '"/a/**"', "\n",
    "# note\n", "label", "reason", "blok", '"', "@",
]  # fmt: skip


@example('source = "x"')
@example('rule source block "x"')
@example('rule r: kill exec "a" unless after exec "b" since "c"')
@given(st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join))
@settings(max_examples=500, deadline=None)
def test_noise_is_a_policy_or_errors_with_places(text):
    diagnostics = ()
    try:
        compile_sources([Source("noise", text)], root="/", resolve=None)
    except PolicyError as error:
        diagnostics = error.diagnostics
    assert len({(item.span.start, item.message) for item in diagnostics}) == len(diagnostics)
    for item in diagnostics:
        assert set(item.render().splitlines()[2].strip()) == {"^"}


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
@example("0")
def test_any_text_is_a_policy_or_errors(text):
    tree, problems = parse(Source("noise", text))
    assert problems or isinstance(tree.declarations, tuple)


names = st.text(string.ascii_letters + string.digits + "-_./", min_size=1, max_size=6)
strings = st.sampled_from(['"git"', '"/a/**"', '"x y"', '"a\\"b"', '"**/*.py"'])


def expressions(leaf):
    label = st.builds(
        "{}{}".format, st.sampled_from(["", "not "]), names.filter(lambda name: name not in ("not", "true"))
    )
    return st.recursive(
        label | st.just("true"),
        lambda inner: st.one_of(
            inner.map("({})".format),
            st.builds("{} {} {}".format, inner, st.sampled_from(["and", "or"]), inner),
        ),
        max_leaves=leaf,
    )


conditions = st.one_of(
    st.builds("target {}{}".format, st.sampled_from(["", "not "]), strings),
    st.builds("lineage-includes exec {}".format, strings),
    st.builds(
        "after exec {}{}{}".format,
        strings,
        st.sampled_from(["", " exits 0", " exits nonzero"]),
        st.sampled_from(["", ' since write "a"', ' since read "a" or exec "b"']),
    ),
)
targets = st.one_of(
    st.builds("exec {}".format, strings),
    st.builds("exec exec {} {}".format, strings, strings),
    st.builds("{} file {}".format, st.sampled_from(["open", "read", "write", "unlink"]), strings),
    st.builds('{} endpoint "10."'.format, st.sampled_from(["connect", "recv"])),
)
clauses = st.builds(
    "{} {}{}{}".format,
    st.sampled_from(["block", "kill", "notify"]),
    targets,
    st.just("") | expressions(6).map(" if {}".format),
    st.just("") | conditions.map(" unless {}".format),
)
items = clauses | st.builds("{} {}".format, st.sampled_from(["because", "instead"]), strings)
declarations = st.one_of(
    st.builds("source {} = {} {}".format, names, st.sampled_from(["file", "exec"]), strings),
    st.builds("{} {} by exec {}".format, st.sampled_from(["declassify", "endorse"]), names, strings),
    st.builds("rule {} : {}".format, names, st.lists(items, max_size=3).map(" ".join)),
)
blanks = st.sampled_from([" ", "\n", " # note\n", "\n\n# alone\n"])


@st.composite
def policies(draw):
    return "".join(draw(declarations) + draw(blanks) for _ in range(draw(st.integers(0, 4))))


@given(policies())
@settings(max_examples=300, deadline=None)
def test_formatting_keeps_the_tree_and_the_comments_and_settles_at_once(text):
    source = Source("p", text)
    tree, problems = parse(source)
    assert problems == []
    once = format_policy(source)
    assert parse(Source("p", once))[0] == tree
    assert format_policy(Source("p", once)) == once
    assert once.count("#") == text.count("#")


@given(policies())
@settings(max_examples=200, deadline=None)
def test_the_same_policy_always_prints_the_same(text):
    def printed():
        try:
            return print_policy(compile_sources([Source("p", text)], root="/work", resolve=None).policy)
        except PolicyError as error:
            return str(error)

    assert printed() == printed()
