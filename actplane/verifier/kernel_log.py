"""
Why a kernel refused a program, by its verifier log: in the form used up to Linux 7.2 and in the structured
report of Linux 7.3, which follows the old lines; as the kernel wrote it, or as it comes out of loaders,
loggers and terminals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from actplane.verifier.tables.kernel_messages import id_of_sentence, id_of_words
from actplane.verifier.tables.refusals import CATALOGUE


@dataclass(frozen=True, slots=True)
class KernelRefusal:
    """
    What a log says: the id of the reason, the slot (-1 if it names none), and the kernel's message.

    `insn_text` is the instruction at that slot and `source` the line of source before it, as the log has
    them, or ""; `suggestion` is that of Linux 7.3.
    """

    id: str
    slot: int
    message: str
    processed: int = 0
    suggestion: str = ""
    insn_text: str = ""
    source: str = ""


def id_of_message(message: str) -> str | None:
    """
    Return the refusal id that a message of the kernel stands for, None if it is not known.

    >>> id_of_message("R0 invalid mem access 'map_value_or_null'")
    'null-dereference'
    """
    return id_of_sentence(message) or id_of_words(message)


def parse_kernel_log(log: str) -> KernelRefusal | None:
    """
    Return why a kernel refused a program, by its log of either form; None if the log names no reason.

    Shape:  libbpf, bpftool, bcc, aya, cilium/ebpf, `dmesg` or a logger may have put their own around it,
            its beginning may be missing, and it may be one line that sums it up. Of several logs the last
            one counts that ends in a refusal.

    >>> parse_kernel_log("4: (79) r1 = *(u64 *)(r0 +0)\\nR0 invalid mem access 'map_value_or_null'\\n").slot
    4
    """
    parts = list(_parts(_lines(log)))
    # What follows the last count is what a loader says of it, unless nothing else tells.
    if len(parts) > 1 and parts[-1].slot < 0 and not parts[-1].report:
        parts.insert(0, parts.pop())
    return next(filter(None, map(_refusal, reversed(parts))), None)


# What terminals and loggers put around each line.
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\x00]")
_QUOTED: Final = re.compile(r'\b(?:msg|message|error|err)="((?:[^"\\]|\\.)*)"')
_PREFIX: Final = re.compile(
    r"^(?:"
    r"\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])?\s?|"  # dmesg
    r"\[[A-Z][a-z]{2} [A-Z][a-z]{2} [^]]*\]\s?|"  # dmesg -T
    r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ [^\s:]+: |"  # a journal
    r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d[\d.,]*(?:Z|[+-]\d\d:?\d\d)?\s|"
    r"\d\d:\d\d:\d\d(?:\.\d+)? |"
    r"[A-Z]{4,5}\[\d+\] |"
    r"\[?(?:TRACE|DEBUG|INFO|WARN|WARNING|ERROR|FATAL|DBG|INF|WRN|ERR)(?:\]|\b)\s+|"
    r"\[\d{4}-\d\d-\d\dT\S+ +[A-Z]+ +\S*\] |"  # Rust's env_logger
    r">(?!>) ?"  # quoted in mail or Markdown
    r")"
)
_LOADER: Final = re.compile(r"^.*\b(?:load(?:ing)? program: [a-z ]+|[Vv]erifier output): ")
_OMITTED: Final = re.compile(r" ?\((?:truncated(?:, )?)?(?:\d+ lines?(?:\(s\))? omitted)?\)\.?$")
_SUMMED_UP: Final = re.compile(r"^(\d+: \([0-9a-f]{2}\) .*?|func '.*?): (?=R\d|invalid bpf_context)")


def _lines(log: str) -> Iterator[str]:
    """Yield the lines that the kernel wrote, without what came to stand around them."""
    for line in _ESCAPE.sub("", log).split("\n"):
        quoted = max(_QUOTED.findall(line), key=len, default=None)
        text = _unescaped(quoted) if quoted is not None else line
        for part in text.split("\n"):
            stripped = part
            while (shorter := _PREFIX.sub("", stripped, count=1)) != stripped:
                stripped = shorter
            yield from _summed_up(stripped)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), text)


def _summed_up(line: str) -> Iterator[str]:
    """Yield the lines that a loader made one of: the last, the one before it, and how many are left out."""
    bare = _LOADER.sub("", line)
    if bare == line:
        yield line
        return
    bare = _OMITTED.sub("", bare)
    both = _SUMMED_UP.match(bare)
    yield from (bare,) if both is None else (both[1], bare[both.end() :])


@dataclass
class _Part:
    """One log among several: the last instruction, what was said after it, and the report that follows."""

    slot: int = -1
    insn_text: str = ""
    source: str = ""
    messages: list[str] = field(default_factory=list[str])
    report: list[str] = field(default_factory=list[str])
    processed: int = 0
    is_whole: bool = False
    """Whether the kernel's count of instructions ends it."""
    has_ended: bool = False
    """Whether what follows is a loader's."""

    @property
    def is_log(self) -> bool:
        return self.slot >= 0 or self.is_whole


_INSN: Final = re.compile(r"^(\d+): (?:\([0-9a-f]{2}\) (.*)|<invalid .*)$")
_STATE_BEHIND: Final = re.compile(r"\s+; .*$|\s+\d+: (frame\d+: )?R\d+(_\w+)?=.*$")
_SAID_BEHIND: Final = re.compile(r"(BPF program is too large\..*|infinite loop detected.*)$")
"""Messages that the kernel writes behind an instruction, on its line."""
_SOURCE: Final = re.compile(r"^; (.*\S)")
_PROCESSED: Final = re.compile(r"processed (\d+) insns\b.*")
_NOISE: Final = re.compile(
    r"^(from \d+ to|\d+: (R\d|frame|safe|[.\d]{10} )|func#|Func#|last_idx|mark_precise|regs=|old state|cur state|"
    r"\(\d+\) |SCC |Live regs|frame \d+: propagating|propagating|parent |(frame\d+: ?)?R\d+(_\w+)?=|caller:|callee:|"
    r"returning from|to caller at|Validating |verification time|stack depth|func '.*' arg\d+ has btf_id|Note, |"
    r"use static|arg#\d+ .*not supported|Unrecognized arg#|reg type unsupported|btf_vmlinux is malformed|\[\d+\] [A-Z]|"
    r"libbpf:|-- BEGIN|-- END)"
)
"""Lines about the walk, which say nothing about why it ended, and those of libbpf."""
_AFTERWARDS: Final = re.compile(
    r"^(-- END|libbpf: (-- END|failed|prog '.*failed)|HINT|Traceback|Exception|Caused by|Prog section|"
    r"(ERR|ERROR|Error)\b|.*(Failed|failed|Unable) to load\b|bpf: )"
)
"""Lines of a loader about a log that is over."""
_REPORT: Final = re.compile(r"^Verification failed(?::|$)")
_MOST_MESSAGES: Final = 64
"""A kernel says its reason in a few lines; of a file that is no log at all, the end is looked at."""
_INSN_OF_MESSAGE: Final = re.compile(
    r"(?:infinite loop detected at|back-edge from|jump out of range from|unreachable|ldimm64|loop at) insn (\d+)"
)


def _parts(lines: Iterator[str]) -> Iterator[_Part]:
    """Yield what is in each log; a log ends where the kernel counts the instructions."""
    part = _Part()
    for raw in lines:
        line = raw.strip()
        counted = _PROCESSED.search(line)
        text = line[: counted.start()] if counted is not None else line
        if text:
            _read(part, text)
        if counted is not None:
            part.processed, part.is_whole = int(counted[1]), True
            yield part
            part = _Part()
    yield part


def _read(part: _Part, line: str) -> None:
    """Take in one line of a log."""
    if part.report or _REPORT.match(line):
        part.report.append(line)
        return
    insn = _INSN.match(line)
    if insn is not None:
        part.slot = int(insn[1])
        part.insn_text = _STATE_BEHIND.sub("", insn[2] or "")
        behind = _SAID_BEHIND.search(line)
        part.messages = [behind[1]] if behind is not None else []
        part.has_ended = False
        return
    source = _SOURCE.match(line)
    if source is not None:
        part.source = source[1]
    elif _AFTERWARDS.match(line):
        part.has_ended = bool(part.messages) or part.slot >= 0
    elif not (part.has_ended or line.startswith(";") or _NOISE.match(line)):
        part.messages.append(line)
        del part.messages[:-_MOST_MESSAGES]


_CATEGORY: Final = re.compile(r"^Verification failed: *[^:]*: *(.*)$")
_SECTION: Final = re.compile(r"^(Reason|At|Causal path|Active lock|Suggestion):[ \t]*(.*)$")
_AT: Final = re.compile(r"^insn (\d+)\b|>>> *(\d+) \| (?=\([0-9a-f]{2}\))")


def _sections(report: list[str]) -> dict[str, list[str]]:
    """Return the lines of a structured report by their headings."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in report:
        heading = _SECTION.match(line)
        if heading is not None:
            current = sections.setdefault(heading[1], [])
        text = heading[2] if heading is not None else line
        if text:
            current.append(text)
    return sections


_SUM_OF_REPORT: Final = re.compile(r"^(?P<reason>.*[a-z]) \((?P<suggestion>[A-Z][a-z]+ .*)\)$")
"""A reason of Linux 7.3 and its suggestion, as cilium/ebpf makes them one line."""


def _refusal(part: _Part) -> KernelRefusal | None:
    """Return why one log ends in a refusal, None if it does not."""
    sections = _sections(part.report)
    title = _CATEGORY.match(part.report[0]) if part.report else None
    said = [" ".join(sections.get("Reason", ())), title[1] if title is not None else "", *part.messages]
    # A word alone tells something only if this is a log.
    found = _reason(said, id_of_sentence) or (part.is_log and _reason(said, id_of_words))
    if not found:
        return None
    id_, message = found
    assert id_ in CATALOGUE
    suggestion = " ".join(sections.get("Suggestion", ()))
    summed_up = _SUM_OF_REPORT.match(message) if not suggestion else None
    if summed_up is not None:
        message, suggestion = summed_up["reason"], summed_up["suggestion"]
    at = next(filter(None, map(_AT.search, sections.get("At", ()))), None) or _INSN_OF_MESSAGE.search(message)
    slot = int(next(filter(None, at.groups()))) if at is not None else part.slot
    if slot != part.slot:
        return KernelRefusal(id_, slot, message, part.processed, suggestion)
    return KernelRefusal(id_, slot, message, part.processed, suggestion, part.insn_text, part.source)


def _reason(said: list[str], id_of: Callable[[str], str | None]) -> tuple[str, str] | None:
    """Return the id of the last thing said that has one, and what it was."""
    for index in range(len(said) - 1, -1, -1):
        id_ = _id_with_context(said, index, id_of(said[index]))
        if id_ is not None:
            return id_, said[index]
    return None


def _id_with_context(said: list[str], index: int, id_: str | None) -> str | None:
    """Return the id of a message that speaks of "the allowed memory range" by the line before, which says of what."""
    if id_ == "map-value-out-of-bounds" and index > 0 and "invalid access to " in said[index - 1]:
        return id_of_sentence(said[index - 1])
    return id_
