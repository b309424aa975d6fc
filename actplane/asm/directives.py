"""
The directives of the text assembler: programs, functions, maps, data and constants.

    .equ     NAME, NUMBER              a constant
    .map     NAME TYPE key=4 value=8 max_entries=16 [flags=0] [frozen]
    .data    NAME                      an array map of one value, made of the data that follows
    .rodata  NAME                      the same, frozen and read-only to programs
    .byte .u16 .u32 .u64 NUMBER, ...   .ascii "text"  .asciz "text"  .zero COUNT  .align BYTES  .hex 00ff
    .prog    NAME TYPE [attach_type=...] [attach_to=...] [sleepable] [license="GPL"]
    .section "lsm/file_open"           a program by the name libbpf gives its section
    .func    NAME                      a subprogram of the program before it
    .jumptable NAME LABEL, ...         a map of places in the function before it, for gotox

A type is a name of the kernel's interface, with or without what all of them begin with:
`ringbuf` is BPF_MAP_TYPE_RINGBUF, `lsm` BPF_PROG_TYPE_LSM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from actplane.asm.reading import evaluate
from actplane.asm.uapi import AttachType, MapType, ProgType

_Enum = TypeVar("_Enum", bound=IntEnum)


class DirectiveError(Exception):
    """A directive is wrong; [start, end) are its columns in the line, counted from 0."""

    def __init__(self, message: str, start: int, end: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.start, self.end, self.hint = message, start, end, hint


@dataclass(frozen=True, slots=True)
class Word:
    """
    One argument of a directive: `text`, or `key=text`.

    A quoted text is unquoted; what its escapes make of it that is no UTF-8 is kept as surrogates.
    """

    text: str
    key: str
    start: int
    end: int
    is_quoted: bool = False

    def error(self, message: str, hint: str = "") -> DirectiveError:
        return DirectiveError(message, self.start, self.end, hint)


_WORD = re.compile(r"""\s*(?:(?P<key>[A-Za-z_]\w*)\s*=\s*)?(?P<text>"(?:\\.|[^"\\])*"(?=\s|\Z)|[^\s"]+(?!"))""")
_ESCAPE = re.compile(rb"\\(?:x(?P<hex>[0-9a-fA-F]{2})|(?P<octal>[0-7]{1,3})|(?P<char>.))", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_DATA_SIZES = {".byte": 1, ".u8": 1, ".u16": 2, ".u32": 4, ".u64": 8}
DATA = frozenset({*_DATA_SIZES, ".ascii", ".asciz", ".zero", ".align", ".hex"})


def words_of(text: str, start: int) -> list[Word]:
    """
    Split the arguments of a directive. Raises: DirectiveError where a text is not closed.

    >>> [(word.key, word.text) for word in words_of(r'data license="Dual BSD/GPL" "\\x41\\n"', 0)]
    [('', 'data'), ('license', 'Dual BSD/GPL'), ('', 'A\\n')]
    """
    words: list[Word] = []
    text = text.rstrip()
    while start < len(text):
        found = _WORD.match(text, start)
        if found is None:
            start += len(text[start:]) - len(text[start:].lstrip())
            raise DirectiveError(f"not a word or a closed text: got {text[start:]}", start, len(text))
        value, begin, start = found["text"], found.start("key") if found["key"] else found.start("text"), found.end()
        is_quoted = value.startswith('"')
        if is_quoted:
            value = _unquoted(value, found.start("text"))
        words.append(Word(value, found["key"] or "", begin, start, is_quoted))
    return words


def _unquoted(text: str, start: int) -> str:
    def unescaped(found: re.Match[bytes]) -> bytes:
        if found["hex"] or found["octal"]:
            number = int(found["hex"], 16) if found["hex"] else int(found["octal"], 8)
            if number < 256:
                return bytes([number])
        elif found["char"] in b"\\\"'":
            return found["char"]
        elif found["char"] in _ESCAPED:
            return _ESCAPED[found["char"]]
        raise DirectiveError(f"unknown escape: got {found[0].decode(errors='replace')}", start, start + len(text))

    return _ESCAPE.sub(unescaped, text[1:-1].encode()).decode(errors="surrogateescape")


class Arguments:
    """The arguments of one directive, taken one by one; what is left over is an error."""

    def __init__(self, directive: str, text: str, start: int, constants: Mapping[str, int]) -> None:
        self.directive = directive
        self.words = words_of(text, start)
        self.constants = constants
        self.end = len(text)
        self._known: list[str] = []

    def positional(self, what: str) -> Word:
        for index, word in enumerate(self.words):
            if not word.key:
                return self.words.pop(index)
        raise DirectiveError(f"{self.directive}: expected {what}", self.end, self.end + 1)

    def flag(self, name: str) -> bool:
        self._known.append(name)
        for index, word in enumerate(self.words):
            if not word.key and word.text == name:
                del self.words[index]
                return True
        return False

    def named(self, key: str) -> Word | None:
        self._known.append(f"{key}=")
        for index, word in enumerate(self.words):
            if word.key == key:
                return self.words.pop(index)
        return None

    def number(self, key: str, default: int | None = None) -> int:
        word = self.named(key)
        if word is None:
            if default is None:
                raise DirectiveError(f"{self.directive}: expected {key}=NUMBER", self.end, self.end + 1)
            return default
        try:
            value = evaluate(word.text, self.constants)
        except ValueError as problem:
            raise word.error(str(problem)) from None
        if not 0 <= value < 1 << 32:
            raise word.error(f"{key} out of range: got {value}, expected 0 to 4294967295")
        return value

    def name(self, what: str) -> Word:
        word = self.positional(f"the name of {what}")
        if not re.fullmatch(r"[\w.]+", word.text):
            raise word.error(f"not a name: got {word.text!r}, expected letters, digits, _ and .")
        return word

    def finish(self) -> None:
        if self.words:
            word = self.words[0]
            got = f"{word.key}={word.text}" if word.key else word.text
            known = f"one of {', '.join(self._known)}" if self._known else "the end of the line"
            raise word.error(f"{self.directive}: got {got!r}, expected {known}")


def member(enum: type[_Enum], prefix: str, word: Word) -> _Enum:
    """Return the member of an enumeration of the kernel's interface that a word names."""
    members = enum.__members__
    for name in (word.text, prefix + word.text.upper()):
        if name in members:
            return members[name]
    import difflib

    known = [name.removeprefix(prefix).lower() for name in members]
    near = difflib.get_close_matches(word.text.lower(), known, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(known)}"
    raise word.error(f"unknown {enum.__name__} {word.text!r}", hint)


# libbpf's names of sections: prefix, program type, attach type, whether the rest is what to attach to.
_SECTIONS: tuple[tuple[str, ProgType, AttachType | None], ...] = (
    ("socket", ProgType.BPF_PROG_TYPE_SOCKET_FILTER, None),
    ("xdp", ProgType.BPF_PROG_TYPE_XDP, AttachType.BPF_XDP),
    ("tc", ProgType.BPF_PROG_TYPE_SCHED_CLS, None),
    ("classifier", ProgType.BPF_PROG_TYPE_SCHED_CLS, None),
    ("action", ProgType.BPF_PROG_TYPE_SCHED_ACT, None),
    ("tracepoint", ProgType.BPF_PROG_TYPE_TRACEPOINT, None),
    ("tp", ProgType.BPF_PROG_TYPE_TRACEPOINT, None),
    ("raw_tracepoint", ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, None),
    ("raw_tp", ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT, None),
    ("tp_btf", ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_TRACE_RAW_TP),
    ("fentry", ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_TRACE_FENTRY),
    ("fexit", ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_TRACE_FEXIT),
    ("fmod_ret", ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_MODIFY_RETURN),
    ("lsm", ProgType.BPF_PROG_TYPE_LSM, AttachType.BPF_LSM_MAC),
    ("lsm_cgroup", ProgType.BPF_PROG_TYPE_LSM, AttachType.BPF_LSM_CGROUP),
    ("kprobe", ProgType.BPF_PROG_TYPE_KPROBE, None),
    ("uprobe", ProgType.BPF_PROG_TYPE_KPROBE, None),
    ("cgroup/connect4", ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, AttachType.BPF_CGROUP_INET4_CONNECT),
    ("cgroup/connect6", ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, AttachType.BPF_CGROUP_INET6_CONNECT),
    ("cgroup/sendmsg4", ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, AttachType.BPF_CGROUP_UDP4_SENDMSG),
    ("cgroup/sendmsg6", ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, AttachType.BPF_CGROUP_UDP6_SENDMSG),
    ("cgroup_skb/ingress", ProgType.BPF_PROG_TYPE_CGROUP_SKB, AttachType.BPF_CGROUP_INET_INGRESS),
    ("cgroup_skb/egress", ProgType.BPF_PROG_TYPE_CGROUP_SKB, AttachType.BPF_CGROUP_INET_EGRESS),
    ("syscall", ProgType.BPF_PROG_TYPE_SYSCALL, None),
)


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """What `.prog` or `.section` says about a program."""

    name: str
    prog_type: ProgType
    attach_type: AttachType | None = None
    attach_to: str | None = None
    is_sleepable: bool = False
    license: str = "GPL"


def read_prog(arguments: Arguments) -> ProgramHeader:
    """Read `.prog`."""
    name = arguments.name("the program")
    prog_type = member(ProgType, "BPF_PROG_TYPE_", arguments.positional("a program type, such as lsm or xdp"))
    attach_type, attach_to = arguments.named("attach_type"), arguments.named("attach_to")
    terms = arguments.named("license")
    header = ProgramHeader(
        name.text,
        prog_type,
        member(AttachType, "BPF_", attach_type) if attach_type else None,
        attach_to.text if attach_to else None,
        arguments.flag("sleepable"),
        terms.text if terms else "GPL",
    )
    arguments.finish()
    return header


def read_section(arguments: Arguments) -> ProgramHeader:
    """Read `.section`: the name of the program is that of what it is attached to."""
    word = arguments.positional("the name of a section, such as lsm/file_open")
    arguments.finish()
    for prefix, prog_type, attach_type in sorted(_SECTIONS, key=lambda row: -len(row[0])):
        for start, is_sleepable in ((prefix, False), (prefix + ".s", True)):
            if word.text == start or word.text.startswith(start + "/"):
                target = word.text[len(start) + 1 :]
                name = re.sub(r"\W", "_", target or start)
                return ProgramHeader(name, prog_type, attach_type, target or None, is_sleepable)
    raise word.error(f"unknown section {word.text!r}", f"one of {', '.join(row[0] for row in _SECTIONS)}")


@dataclass(slots=True)
class MapHeader:
    """What `.map`, `.data` or `.rodata` says about a map, and the data that follows it."""

    name: str
    type: MapType
    key_size: int
    value_size: int | None
    max_entries: int
    flags: int
    is_frozen: bool
    contents: bytearray | None = None


BPF_F_RDONLY_PROG = 1 << 7


def read_map(arguments: Arguments) -> MapHeader:
    """Read `.map`."""
    name = arguments.name("the map")
    type_ = member(MapType, "BPF_MAP_TYPE_", arguments.positional("a map type, such as hash or ringbuf"))
    header = MapHeader(
        name.text,
        type_,
        arguments.number("key", 0),
        arguments.number("value", 0),
        arguments.number("max_entries", 0),
        arguments.number("flags", 0),
        arguments.flag("frozen"),
    )
    arguments.finish()
    return header


def read_jump_table(arguments: Arguments) -> tuple[Word, list[Word]]:
    """Read `.jumptable`: its name, and the labels whose places it holds."""
    name, labels = arguments.name("the jump table"), arguments.words
    if not labels:
        raise DirectiveError(".jumptable: expected a label", arguments.end, arguments.end + 1)
    found = []
    for word in labels:
        for part in re.finditer(r"[^,]+", word.text):
            found.append(Word(part[0], "", word.start + part.start(), word.start + part.end()))
    return name, found


def read_data(arguments: Arguments) -> MapHeader:
    """Read `.data` or `.rodata`."""
    name = arguments.name("the data").text
    arguments.finish()
    is_constant = arguments.directive == ".rodata"
    flags = BPF_F_RDONLY_PROG if is_constant else 0
    return MapHeader(name, MapType.BPF_MAP_TYPE_ARRAY, 4, None, 1, flags, is_constant, bytearray())


def read_bytes(arguments: Arguments, at: int) -> bytes:
    """Read one data directive and return its bytes; `at` is the offset where they go."""
    directive, words = arguments.directive, arguments.words
    reader: Callable[[Word], bytes]
    if directive in _DATA_SIZES:
        size = _DATA_SIZES[directive]

        def reader(word: Word) -> bytes:
            return b"".join(
                _value(word, part, arguments.constants, size) for part in word.text.split(",") if part.strip()
            )
    elif directive == ".hex":

        def reader(word: Word) -> bytes:
            try:
                return bytes.fromhex(word.text)
            except ValueError:
                raise word.error(f"not hexadecimal bytes: got {word.text!r}") from None
    elif directive in (".ascii", ".asciz"):
        end = b"\x00" if directive == ".asciz" else b""

        def reader(word: Word) -> bytes:
            if not word.is_quoted:
                raise word.error(f'{directive}: got {word.text}, expected "{word.text}"')
            return word.text.encode(errors="surrogateescape") + end
    else:

        def reader(word: Word) -> bytes:
            count = int.from_bytes(_value(word, word.text, arguments.constants, 4), "little")
            if count > 1 << 24:
                raise word.error(f"{directive}: got {count}, expected at most {1 << 24}")
            if directive == ".align":
                return bytes(-at % max(count, 1))
            return bytes(count)

    if not words:
        raise DirectiveError(f"{directive}: expected a value", arguments.end, arguments.end + 1)
    return b"".join(map(reader, words))


def _value(word: Word, text: str, constants: Mapping[str, int], size: int) -> bytes:
    try:
        value = evaluate(text, constants)
    except ValueError as problem:
        raise word.error(str(problem)) from None
    if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
        raise word.error(f"number out of range: got {value}, expected {8 * size} bits")
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")
