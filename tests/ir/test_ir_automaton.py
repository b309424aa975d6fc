"""Pattern automata against the meaning of regexes and Python's `re`, and what they must never do."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actplane.errors import ActplaneError
from actplane.ir.automaton import EMITS, Automaton, AutomatonTooLarge, compile_automaton
from actplane.ir.regex import ANY, ANY_MASK, ANYTHING, EMPTY, Chars, Concat, Regex, Star, Union, literal

SEGMENT_BYTE = Chars(ANY_MASK & ~(1 << ord("/")))


def glob(text: str) -> Regex:
    """A plain reading of globs, enough for tests: `**`, `*`, `?`, `[ab]`."""
    parts: list[Regex] = []
    for token in re.findall(r"\*\*|\*|\?|\[[^]]*\]|.", text):
        if token == "**":
            parts.append(ANYTHING)
        elif token == "*":
            parts.append(Star(SEGMENT_BYTE))
        elif token == "?":
            parts.append(SEGMENT_BYTE)
        elif token[0] == "[":
            parts.append(Chars(sum(1 << ord(char) for char in token[1:-1])))
        else:
            parts.append(literal(token.encode()))
    return Concat(tuple(parts))


def ends(regex: Regex, data: bytes, starts: set[int]) -> set[int]:
    """Where matches of a regex that begin at one of `starts` end: its meaning, word for word."""
    if isinstance(regex, Chars):
        return {at + 1 for at in starts if at < len(data) and regex.mask >> data[at] & 1}
    if isinstance(regex, Concat):
        for part in regex.parts:
            starts = ends(part, data, starts)
        return starts
    if isinstance(regex, Union):
        return set().union(*(ends(option, data, starts) for option in regex.options))
    found: set[int] = set()
    while starts - found:
        found |= starts
        starts = ends(regex.body, data, starts)
    return found


def expected(languages: list[Regex], data: bytes) -> frozenset[int]:
    return frozenset(index for index, regex in enumerate(languages) if len(data) in ends(regex, data, {0}))


def as_re(pattern: str) -> bytes:
    """A glob of `glob` for Python's `re`."""
    words = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*|\*|\?|\[[^]]*\]|.", pattern)
    return "".join(words.get(token, token) for token in tokens).encode()


LETTERS = b"ab/"
chars = st.one_of(
    st.sampled_from([Chars(1 << byte) for byte in LETTERS]),
    st.sampled_from([ANY, SEGMENT_BYTE, Chars(0), Chars(1 << ord("a") | 1 << ord("b")), Chars(1 << 0 | 1 << 97)]),
)
regexes = st.recursive(
    st.one_of(chars, st.just(EMPTY), st.just(ANYTHING), st.just(Star(SEGMENT_BYTE)), st.just(Union(()))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda parts: Concat(tuple(parts))),
        st.lists(inner, max_size=3).map(lambda options: Union(tuple(options))),
        inner.map(Star),
    ),
    max_leaves=8,
)
strings = st.lists(st.sampled_from(LETTERS + b"\xff"), max_size=9).map(bytes)


@settings(max_examples=400, deadline=None)
@given(st.lists(regexes, min_size=1, max_size=6), st.lists(strings, min_size=1, max_size=8), st.booleans())
def test_agrees_with_the_meaning_of_regexes(languages: list[Regex], texts: list[bytes], restarts: bool) -> None:
    automaton = compile_automaton(languages, restarts=restarts)
    for text in texts:
        assert automaton.matches(text) == expected(languages, text)


globs = st.lists(st.sampled_from(["**", "*", "?", "[ab]", "a", "b", "/"]), max_size=5).map("".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(globs, min_size=1, max_size=6), st.lists(strings, min_size=1, max_size=8))
def test_globs_agree_with_re(patterns: list[str], texts: list[bytes]) -> None:
    automaton = compile_automaton([glob(pattern) for pattern in patterns], restarts=False)
    compiled = [re.compile(as_re(pattern), re.DOTALL) for pattern in patterns]
    for text in texts:
        assert automaton.matches(text) == {i for i, each in enumerate(compiled) if each.fullmatch(text)}


@settings(max_examples=150, deadline=None)
@given(st.lists(regexes, min_size=1, max_size=5), st.lists(strings, min_size=1, max_size=5))
def test_restarting_reads_each_string_alone(languages: list[Regex], texts: list[bytes]) -> None:
    automaton = compile_automaton(languages, restarts=True)
    union = frozenset().union(*(expected(languages, text) for text in texts))
    assert automaton.walk(b"".join(text + b"\0" for text in texts)) == union


@settings(max_examples=150, deadline=None)
@given(st.lists(regexes, min_size=1, max_size=5), strings, strings)
def test_padding_after_the_string_says_nothing(languages: list[Regex], text: bytes, garbage: bytes) -> None:
    automaton = compile_automaton(languages, restarts=False)
    assert automaton.walk(text + b"\0\0\0" + garbage + b"\0") == expected(languages, text)


@pytest.mark.parametrize(
    ("pattern", "matching", "failing"),
    [
        ("/srv/data7/**", [b"/srv/data7/", b"/srv/data7/a/b"], [b"/srv/data7", b"/srv/data71/a", b""]),
        ("**/.env.17", [b"/.env.17", b"/a/b/.env.17"], [b".env.17", b"/.env.170", b"/.env.1"]),
        ("**/x13/**", [b"/x13/", b"/a/x13/b/c"], [b"/x13", b"/ax13/b", b"x13/b"]),
        ("/a/*/b.[ch]", [b"/a/q/b.c", b"/a//b.h"], [b"/a/q/r/b.c", b"/a/q/b.d", b"/a/q/b.cc"]),
        ("**", [b"", b"/", b"\xff\x01"], []),
        ("", [b""], [b"a"]),
    ],
)
def test_globs(pattern: str, matching: list[bytes], failing: list[bytes]) -> None:
    automaton = compile_automaton([glob(pattern)], restarts=False)
    assert [automaton.matches(text) for text in matching] == [{0}] * len(matching)
    assert [automaton.matches(text) for text in failing] == [frozenset()] * len(failing)


def test_decided_patterns_are_emitted_at_once_and_only_once() -> None:
    automaton = compile_automaton([glob("/a/**"), glob("/a/**/z")], restarts=False)
    assert automaton.walk(b"/a") == frozenset()
    assert automaton.walk(b"/a/") == {0}
    assert emissions(automaton, b"/a/b/c/z\0") == [(2, {0}), (8, {1})]


def test_a_pattern_that_matches_everything_is_emitted_with_the_first_byte() -> None:
    automaton = compile_automaton([ANYTHING, literal(b"ab")], restarts=True)
    assert emissions(automaton, b"ab\0c\0\0") == [(0, {0}), (2, {1}), (3, {0}), (5, {0})]


def test_a_loop_shared_with_a_longer_pattern_lives_on() -> None:
    """`**` is decided at the start, but what follows the same `**` in the other must still be entered."""
    languages = [ANYTHING, Concat((ANYTHING, Star(literal(b"bc")), literal(b"d")))]
    automaton = compile_automaton(languages, restarts=False)
    assert automaton.matches(b"aabcbcd") == {0, 1}
    assert automaton.matches(b"bcbc") == {0}


def emissions(automaton: Automaton, data: bytes) -> list[tuple[int, set[int]]]:
    """Where each set of patterns is emitted, byte by byte."""
    found: list[tuple[int, set[int]]] = []
    offset = automaton.start
    for position, byte in enumerate(data):
        at = offset + 4 * automaton.classes[byte]
        entry = int.from_bytes(automaton.table[at : at + 4], "little")
        offset = entry & ~EMITS
        if entry & EMITS:
            at = offset + 4 * automaton.class_count
            accept_set = int.from_bytes(automaton.table[at : at + 4], "little")
            found.append((position, set(automaton.accept_sets[accept_set])))
    return found


@pytest.mark.parametrize("restarts", [False, True])
def test_layout(restarts: bool) -> None:
    automaton = compile_automaton([glob("/srv/**"), glob("**/.env"), glob("/a/*/b")], restarts=restarts)
    assert len(automaton.table) & automaton.table_mask == 0
    assert automaton.table_mask == len(automaton.table) - 1
    assert automaton.row_bytes == 4 * (automaton.class_count + 1)
    assert automaton.table[: automaton.row_bytes] == bytes(automaton.row_bytes)
    assert [byte for byte in range(256) if automaton.classes[byte] == 0] == [0]
    assert automaton.accept_sets[0] == frozenset()
    assert not any(automaton.table[automaton.row_count * automaton.row_bytes :])
    words = memoryview(automaton.table).cast("I")
    width = automaton.class_count + 1
    for row in range(automaton.row_count):
        for entry in words[row * width : row * width + automaton.class_count]:
            target = entry & ~EMITS
            assert target % automaton.row_bytes == 0
            assert target < automaton.row_count * automaton.row_bytes
            assert bool(entry & EMITS) == (words[target // 4 + automaton.class_count] != 0)


def test_describe_names_classes_and_ways() -> None:
    text = compile_automaton([glob("[0-9]-**")], restarts=False).describe()
    assert "emits {0}" in text
    assert "class 1:" in text
    assert "(start)" in text


def thousand_patterns() -> list[str]:
    return [
        pattern
        for i in range(250)
        for pattern in (
            f"/srv/data{i}/release/{i * 7}/**",
            f"**/.env.production.{i}",
            f"**/node_modules{i}/**",
            f"/home/user{i}/src/b.[ch]",
        )
    ]


def test_a_thousand_patterns_compile_quickly_and_still_match() -> None:
    patterns = thousand_patterns()
    started = time.perf_counter()
    automaton = compile_automaton([glob(pattern) for pattern in patterns], restarts=False)
    assert time.perf_counter() - started < 3.0  # About 0.1 s on an idle machine.
    assert len(automaton.table) <= 4 << 20
    found = automaton.matches(b"/srv/data3/release/21/node_modules17/.env.production.24")
    assert {patterns[index] for index in found} == {
        "/srv/data3/release/21/**",
        "**/node_modules17/**",
        "**/.env.production.24",
    }
    assert {patterns[index] for index in automaton.matches(b"/home/user9/src/b.h")} == {"/home/user9/src/b.[ch]"}


def test_a_thousand_sticky_patterns_do_not_multiply() -> None:
    automaton = compile_automaton([glob(f"**/x{i}/**") for i in range(1000)], restarts=False)
    assert automaton.row_count < 4000
    assert automaton.matches(b"/x1/x22/x333/x1") == {1, 22, 333}


def test_patterns_that_multiply_are_refused_by_index() -> None:
    patterns = [glob(f"/lit{i}/**") for i in range(20)] + [glob(f"**/a{i}/**/b{i}") for i in range(20)]
    with pytest.raises(AutomatonTooLarge, match="table too large: got more than") as caught:
        compile_automaton(patterns, restarts=False, max_table_bytes=1 << 19)
    assert isinstance(caught.value, ActplaneError)
    assert caught.value.patterns == tuple(range(20, 40))
    rest = compile_automaton(patterns[:20], restarts=False, max_table_bytes=1 << 19)
    assert rest.matches(b"/lit7/x") == {7}


def test_one_pattern_that_multiplies_alone_is_found() -> None:
    patterns = [glob(f"/lit{i}/**") for i in range(20)] + [glob("**a" + "?" * 20 + "b")]
    with pytest.raises(AutomatonTooLarge) as caught:
        compile_automaton(patterns, restarts=False, max_table_bytes=1 << 18)
    assert caught.value.patterns == (20,)


def test_sets_of_hundreds_are_refused_before_they_fill_the_memory() -> None:
    patterns = [glob("/lit"), glob("**" + "?" * 200 + "**" + "a?" * 200 + "b")]
    with pytest.raises(AutomatonTooLarge, match="positions in the patterns for all states together") as caught:
        compile_automaton(patterns, restarts=False)
    assert caught.value.patterns == (1,)
    assert caught.value.row_count < 50_000
