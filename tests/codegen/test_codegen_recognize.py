"""Recognisers, run in the machine: what the instructions find is what the patterns say, at a cost that stays flat."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from actplane import dsl
from actplane.asm.machine import Machine
from actplane.asm.program import MapSpec, Program
from actplane.asm.uapi import MapType, ProgType
from actplane.codegen import layout
from actplane.codegen.recognize import Recognizer, build_recognizer, facts_of
from actplane.codegen.select import select
from actplane.errors import PolicyError
from actplane.ir.build import FunctionBuilder
from actplane.ir.policy import Pattern

SCRATCH = MapSpec("scratch", MapType.BPF_MAP_TYPE_ARRAY, 4, layout.SCRATCH_BYTES, 1)

PATHS = ("/usr/bin/git", "**/.env", "/etc/**", "/home/*/x", "**/src/**/*.py", "/a/b", "**/[a-c]?{x,yz}", "/tmp/**/core")
TEXTS = (
    *(b"", b"/", b"/usr/bin/git", b"/usr/bin/gitk", b"/etc", b"/etc/passwd", b"/home/me/x", b"/home/me/you/x"),
    *(b"/.env", b"/x/.env", b"/src/a.py", b"/src/b/c.py", b"/a/b", b"/a/b/c", b"/q/axx", b"/q/c1yz", b"/tmp/core"),
    *(b"/tmp/1/2/core", b"/etc/\xff\n", b"/etc/" + b"x" * 3000, b"/tmp/" + b"y/" * 1500 + b"core"),
)


def patterns_of(texts: Sequence[str], target: str = "open file") -> tuple[Pattern, ...]:
    clauses = "".join(f'  notify {target} "{text}"\n' for text in texts)
    return dsl.compile_policy(f"rule r:\n{clauses}", root="/", resolve=None).patterns


class Walker:
    """A recogniser as a program of its own: `walk(text)` gives the patterns it finds, and what that cost."""

    def __init__(self, recognizer: Recognizer) -> None:
        f = FunctionBuilder("entry", ["context"])
        key = f.frame_address(f.slot("key", 8))
        f.store(key, 0, 0)
        scratch = f.helper("bpf_map_lookup_elem", f.map_address("scratch"), key, result="scratch")
        with f.when(scratch, "!=", 0):
            recognizer.clear(f, scratch)
            recognizer.begin(f, scratch)
            recognizer.walk(f, scratch, 0, f.load(scratch, layout.SCRATCH_TARGET_BYTES))
        f.ret(0)
        insns, starts = select((f.finish(), *recognizer.functions()))
        self._recognizer = recognizer
        self._machine = Machine(maps=[SCRATCH, recognizer.map_spec()])
        self._program = self._machine.load(Program("walk", ProgType.BPF_PROG_TYPE_XDP, insns, functions=starts))
        self.executed = 0

    def walk(self, text: bytes) -> frozenset[int]:
        scratch = self._machine.maps["scratch"]
        value = bytearray(scratch[0])
        at = layout.SCRATCH_TEXT
        value[at : at + layout.TEXT_PATH_END] = (text + b"\0").ljust(layout.TEXT_PATH_END, b"\0")
        value[layout.SCRATCH_TARGET_BYTES : layout.SCRATCH_TARGET_BYTES + 8] = (len(text) + 1).to_bytes(8, "little")
        scratch[0] = bytes(value)
        self.executed = self._program.run(packet=bytes(64)).executed
        return self._facts(scratch[0])

    def _facts(self, value: bytes) -> frozenset[int]:
        base = facts_of(self._recognizer.kind)
        summary = int.from_bytes(value[base : base + 8], "little")
        words = [int.from_bytes(value[base + 8 + 4 * index :][:4], "little") for index in range(self._recognizer.words)]
        assert summary == sum(1 << index for index, word in enumerate(words) if word)
        return frozenset(32 * index + bit for index, word in enumerate(words) for bit in range(32) if word >> bit & 1)


def test_the_instructions_find_what_the_automaton_finds() -> None:
    recognizer = build_recognizer("file", patterns_of(PATHS), range(len(PATHS)))
    walker = Walker(recognizer)
    for text in TEXTS:
        assert walker.walk(text) == recognizer.automaton.matches(text), text


def test_one_walk_forgets_the_one_before() -> None:
    walker = Walker(build_recognizer("file", patterns_of(PATHS), range(len(PATHS))))
    assert walker.walk(b"/etc/passwd") == {2}
    assert walker.walk(b"/nothing") == frozenset()


def test_random_paths_against_the_automaton() -> None:
    recognizer = build_recognizer("file", patterns_of(PATHS), range(len(PATHS)))
    walker = Walker(recognizer)
    chance = random.Random(7)
    parts = [b"etc", b"src", b"a", b"b", b".env", b"x.py", b"axx", b"home", b"tmp", b"core", b"usr", b"bin", b"git"]
    for _ in range(150):
        text = b"/" + b"/".join(chance.choices(parts, k=chance.randint(1, 6)))
        assert walker.walk(text) == recognizer.automaton.matches(text), text


def test_a_name_is_the_last_component_of_a_path() -> None:
    patterns = patterns_of(("git*", "sh"), "exec")
    walker = Walker(build_recognizer("exec", patterns, (0, 1)))
    assert walker.walk(b"/usr/bin/gitk") == {0}
    assert walker.walk(b"git") == {0}
    assert walker.walk(b"/git/sh") == {1}
    assert walker.walk(b"/gitx/bash") == frozenset()


def test_patterns_beyond_one_word_of_facts() -> None:
    texts = tuple(f"/d{n}/**" for n in range(200))
    walker = Walker(build_recognizer("file", patterns_of(texts), range(200)))
    assert walker.walk(b"/d199/x") == {199}
    assert walker.walk(b"/d31/x") == {31}
    assert walker.walk(b"/d32/x") == {32}
    assert walker.walk(b"/d200/x") == frozenset()


def test_a_walk_costs_the_same_with_1000_patterns_as_with_one() -> None:
    counts = []
    for number in (1, 10, 1000):
        texts = tuple(f"/work/d{n}/**" for n in range(number))
        walker = Walker(build_recognizer("file", patterns_of(texts), range(number)))
        assert walker.walk(b"/somewhere/else/that/no/pattern/names") == frozenset()
        counts.append(walker.executed)
    assert len(set(counts)) == 1
    # A byte costs a few instructions, whatever the patterns are.
    assert counts[0] < 20 * len(b"/somewhere/else/that/no/pattern/names") + 100


def test_too_many_patterns_are_refused() -> None:
    limit = 32 * layout.FACT_WORDS
    patterns = patterns_of(["/x"]) * (limit + 1)
    with pytest.raises(PolicyError, match=f"too many file patterns: got {limit + 1}, expected at most {limit}"):
        build_recognizer("file", patterns, range(limit + 1))


@pytest.mark.no_cover  # a sweep: several times as long when measured
def test_patterns_that_multiply_states_are_named() -> None:
    texts = tuple(f"**/{'?' * n}a{'?' * (18 - n)}x{n}" for n in range(12))
    with pytest.raises(PolicyError, match="need too large an automaton") as refused:
        build_recognizer("file", patterns_of(texts), range(len(texts)))
    assert '"**/' in str(refused.value)
