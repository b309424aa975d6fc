"""
Text to programs. All problems are found at once, each with its line, column and expectation.

The text may be written by a person, with labels, comments and the directives of `directives`, or be
pasted from LLVM's disassembler, from a verifier log or from bpftool. In a verifier log or bpftool
dump, where every instruction stands behind its slot and its code (`7: (b7) r0 = 0`), all other
lines are what the kernel says about them, and skipped; instructions the log shows more than once
must agree, and none may be missing. Where bpftool prints the bytes of each instruction below it (`opcodes`),
they count: its text is that of the kernel it was made for, which may not know the instruction.
"""

from __future__ import annotations

import re

from actplane.asm.build import call_sub, ld_map_fd
from actplane.asm.directives import (
    DATA,
    Arguments,
    DirectiveError,
    MapHeader,
    ProgramHeader,
    read_bytes,
    read_data,
    read_jump_table,
    read_map,
    read_prog,
    read_section,
)
from actplane.asm.insn import FunctionAddress, Insn, Label, Subprogram, form_of, place
from actplane.asm.isa import EXIT, LD_IMM64, Kind
from actplane.asm.jump_tables import jump_table
from actplane.asm.labels import FunctionHere, Item, LabelHere, label_slots, try_resolve
from actplane.asm.listing import (
    ADDRESSED,
    BYTES_BELOW,
    CODED,
    LLVM_BLOCK,
    LLVM_DIRECTIVES,
    LLVM_FORMAT,
    LLVM_SECTION,
    LLVM_SYMBOL,
    OPCODES,
    RELOCATION,
    SUMMARY,
    decoded,
    has_name,
    with_map,
    without_annotation,
    without_state,
)
from actplane.asm.operands import Reg
from actplane.asm.program import MapSpec, Object, Program
from actplane.asm.reading import Operands, StatementError, evaluate
from actplane.asm.syntax import explain, shape_of, table
from actplane.asm.uapi import HelperId, ProgType
from actplane.errors import AssembleError
from actplane.source import Diagnostic, Source, Span

_LABEL = re.compile(r"\s*(?P<name>[A-Za-z_.$][\w.$]*)\s*:(?![:\w])\s*")
_DIRECTIVE = re.compile(r"(?P<name>\.[A-Za-z]\w*)(?=\s|\Z)\s*")
# The code of a line: up to a comment. A # directly behind a word is no comment (`call name#1`).
_CODE = re.compile(r"""(?:[^;#/"']+|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'|(?<=\S)\#(?=[\w-])|/(?!/))*""")


def assemble(text: str | Source, *, name: str = "<asm>", prog_type: ProgType | None = None) -> Program:
    """
    Return the one program of a text.

    Shape:  without `.prog` or `.section` the program is called "main", and its type is `prog_type`.
    Raises: AssembleError with every problem of the text.

    >>> [str(insn) for insn in assemble("r0 = 0\\nif r1 == 0 goto out\\nr0 = 1\\nout: exit").insns]
    ['r0 = 0', 'if r1 == 0 goto +1', 'r0 = 1', 'exit']
    """
    source = text if isinstance(text, Source) else Source(name, text)
    assembler = _Assembler(source, prog_type)
    found = assembler.run()
    if len(found.programs) != 1:
        at = assembler.headers[1] if len(assembler.headers) > 1 else source.span(0)
        message = f"expected one program, got {len(found.programs)}"
        raise AssembleError([Diagnostic(at, message, "assemble_object reads maps and any number of programs")])
    return found.programs[0]


def assemble_object(text: str | Source, *, name: str = "<asm>", prog_type: ProgType | None = None) -> Object:
    """
    Return all maps and programs of a text.

    Raises: AssembleError with every problem of the text.
    """
    source = text if isinstance(text, Source) else Source(name, text)
    return _Assembler(source, prog_type).run()


class _Assembler:
    """One text on its way to an Object."""

    def __init__(self, source: Source, prog_type: ProgType | None) -> None:
        self.source = source
        self.problems: list[Diagnostic] = []
        self.headers: list[Span] = []
        self._header = ProgramHeader("main", prog_type or ProgType.BPF_PROG_TYPE_UNSPEC)
        self._items: list[Item] = []
        self._programs: list[Program] = []
        self._maps: list[MapSpec] = []
        self._map: MapHeader | None = None
        self._jump_tables: list[tuple[str, str, list[Span]]] = []
        """Of the program so far: name, function, and where the labels stand in the text."""
        self._constants: dict[str, int] = {}
        self._known: dict[str, Insn] = {}
        self._known_codes: dict[str, Insn] = {}
        self._is_listing = CODED.search(source.text) is not None
        self._by_slot: dict[int, Insn] = {}
        self._has_unread = False
        self._unlinked: dict[int, Span] = {}
        """Of the items so far, the calls that an object leaves to a relocation."""
        has_bytes = self._is_listing and BYTES_BELOW.search(source.text) is not None
        lines = OPCODES.finditer(source.text) if has_bytes else ()
        self._bytes_below = {found.start(): found["bytes"] for found in lines}
        self._tables = (table(True), table(False))

    def run(self) -> Object:
        at = 0
        for line in self.source.text.split("\n"):
            known = self._known.get(line)
            if known is not None:
                self._items.append(self._again(known, at + len(line) - len(line.lstrip())))
            elif line and not line.isspace():
                self._line(line, at)
            at += len(line) + 1
        self._end_program()
        self._end_map()
        if self.problems:
            raise AssembleError(sorted(self.problems, key=lambda problem: problem.span.start if problem.span else 0))
        return Object(tuple(self._maps), tuple(self._programs))

    def _again(self, insn: Insn, start: int) -> Insn:
        """What stood before in the same words: the same instruction in another place."""
        length = 0 if insn.span is None else insn.span.end - insn.span.start
        span = Span(self.source, start, start + length)
        return Insn(insn.code, insn.dst, insn.src, insn.off, insn.imm, insn.symbol, span)

    def _error(self, start: int, end: int, message: str, hint: str = "") -> None:
        self.problems.append(Diagnostic(self.source.span(start, max(end, start + 1)), message, hint))

    def _line(self, line: str, at: int) -> None:
        try:
            if self._is_listing and (found := CODED.match(line)) is not None:
                self._listed(found, line, at)
            elif not self._is_listing or line.lstrip().startswith("."):
                self._written(line, at)
        except (StatementError, DirectiveError) as problem:
            self._error(at + problem.start, at + problem.end, problem.message, problem.hint)

    def _written(self, line: str, at: int) -> None:
        """A line of a person's, or of LLVM's disassembler."""
        code, start = _without_comment(line), 0
        if ":" in code:
            if LLVM_FORMAT.match(code) or LLVM_SECTION.match(code):
                self._section(code)
                return
            if (symbol := LLVM_SYMBOL.match(code)) is not None:
                if self._items and not LLVM_BLOCK.fullmatch(symbol["name"]):
                    self._items.append(FunctionHere(symbol["name"], Span(self.source, at, at + len(code))))
                return
            if (relocation := RELOCATION.match(code)) is not None:
                self._relocate(relocation)
                return
            while (label := _LABEL.match(code, start)) is not None:
                self._label(label["name"], at + label.start("name"), at + label.end("name"))
                start = label.end()
        text = code[start:].lstrip()
        if not text:
            return
        if text[0] == ".":
            self._directive(code, len(code) - len(text), at)
        elif text[0].isdigit():
            self._addressed(code, at)
        else:
            insn, first, last = self._statement(code, start, None)
            insn = self._placed(insn, at + first, at + last)
            if start == 0:
                self._known[line] = insn
            self._items.append(insn)

    def _placed(self, insn: Insn, start: int, end: int) -> Insn:
        return place(insn, Span(self.source, start, end))

    def _statement(self, code: str, start: int, number: int | None) -> tuple[Insn, int, int]:
        """Return the instruction of a statement, and its first and last column."""
        body = code[start:]
        text = body.lstrip()
        first = start + len(body) - len(text)
        if not text:
            raise StatementError("got the end of the line, expected an instruction", first, first + 1)
        shape = shape_of(text)
        for rows in self._tables:
            for matcher, build in rows.get(shape, ()):
                found = matcher(text)
                if found is not None:
                    try:
                        return build(Operands(found, self._constants, number)), first, first + len(text)
                    except StatementError as problem:
                        problem.start, problem.end = problem.start + first, problem.end + first
                        raise
        mismatch = explain(text)
        rest = text[mismatch.column :]
        word = re.match(r"[\w%.]+|\S", rest)
        got = repr(word[0]) if word else "the end of the line"
        width = len(word[0]) if word else 1
        where = first + mismatch.column
        if SUMMARY.match(text):
            hint = "a log of level 2 shows every instruction, one of level 1 only those of a refused program"
            raise StatementError("a verifier log without instructions", first, first + len(text), hint)
        if mismatch.column == 0:
            raise StatementError(f"unknown statement {got}", where, where + width, "a statement begins like `r0 = 1`")
        raise StatementError(f"got {got}, expected {_either(mismatch.expected)}", where, where + width)

    def _addressed(self, code: str, at: int) -> None:
        """A line of llvm-objdump: what its bytes say counts, its text must not contradict them."""
        found = ADDRESSED.match(code)
        if found is None:
            raise StatementError("unknown line", 0, len(code), "a statement begins like `r0 = 1`")
        text = without_annotation(code)
        if found["bytes"] is None:
            insn, first, last = self._statement(text, found.end(), None)
            self._items.append(self._placed(insn, at + first, at + last))
            return
        insn = decoded(found["bytes"], *found.span("bytes"))
        if insn == _UNLINKED:
            self._unlinked[len(self._items)] = Span(self.source, at + found.start("bytes"), at + len(code))
        if found.end() < len(text):
            said, first, last = self._statement(text, found.end(), insn.code)
            # LLVM writes every call `call N`, whatever N counts, and leaves the source of ld_imm64 out.
            is_ambiguous = insn.src != 0 and form_of(insn).kind in _AMBIGUOUS
            if said != insn and not is_ambiguous:
                raise StatementError(f"the bytes beside it say `{insn}`", first, last)
        self._items.append(self._placed(insn, at + found.start("bytes"), at + len(code)))

    def _section(self, code: str) -> None:
        """A heading of llvm-objdump. Jumps and calls count within their section, so there can be one only."""
        if self._items:
            hint = "take them one by one: llvm-objdump -dr --section NAME"
            raise StatementError("a second section, where the slots begin anew", 0, len(code), hint)

    def _relocate(self, found: re.Match[str]) -> None:
        """A line of llvm-objdump -r: the instruction before it is about a map or a function of that name."""
        before = self._items[-1] if self._items else None
        name, is_address = found["name"], found["kind"] == "64"
        if name.startswith("."):
            hint = "assemble it from a dump of the linked program, as bpftool shows it"
            raise StatementError(f"relocation against section {name}", *found.span("name"), hint)
        if isinstance(before, Insn) and before.code == (LD_IMM64 if is_address else call_sub(0).code):
            self._unlinked.pop(len(self._items) - 1, None)
            symbolic = ld_map_fd(Reg(before.dst), name) if is_address else call_sub(name)
            self._items[-1] = symbolic if before.span is None else place(symbolic, before.span)
        else:
            what = "a 64-bit immediate" if is_address else "a call"
            raise StatementError(f"relocation of what is not {what}", *found.span("name"))

    def _listed(self, found: re.Match[str], line: str, at: int) -> None:
        """A line of a verifier log or of bpftool."""
        slot, words = int(found["slot"]), line[found.end("slot") :]
        if self._bytes_below:
            words += self._bytes_below.get(at, "")
        known = self._known_codes.get(words)
        if known is not None:
            insn = self._again(known, at + found.end())
        else:
            try:
                insn = self._known_codes[words] = self._coded(found, line, at)
            except StatementError:
                self._has_unread = True
                raise
        before = self._by_slot.setdefault(slot, insn)
        if before is not insn and before != insn:
            raise StatementError(f"slot {slot} was `{before}` before", found.end(), len(line))

    def _coded(self, found: re.Match[str], line: str, at: int) -> Insn:
        below = self._bytes_below.get(at)
        if below is not None and not has_name(below):
            return self._placed(decoded(below, found.end(), len(line)), at + found.end(), at + len(line))
        if found["code"] is None:
            hint = "take `bpftool prog dump xlated ... opcodes`, whose bytes say it"
            raise StatementError("bpftool did not know this instruction", found.end("slot") + 2, len(line), hint)
        number = int(found["code"], 16)
        text = without_annotation(without_state(line.partition(";")[0].rstrip()))
        insn, first, last = self._statement(text, found.end(), number)
        if number == LD_IMM64:
            insn = with_map(insn, line[last:])
        if insn.code != number:
            raise StatementError(f"the code beside it is {number:#04x}: `{insn}` has {insn.code:#04x}", first, last)
        return self._placed(insn, at + first, at + last)

    def _end_listing(self) -> None:
        expected = 0
        for slot in sorted(self._by_slot):
            insn = self._by_slot[slot]
            # A line that could not be read is no gap.
            if slot != expected and insn.span is not None and not self._has_unread:
                last = slot - 1
                missing = f"slot {expected}" if last == expected else f"slots {expected} to {last}"
                if slot < expected:
                    missing = f"the first half of slot {slot}"
                hint = "a verifier log shows only what the verifier visited; take bpftool's dump"
                self._error(insn.span.start, insn.span.end, f"{missing} missing before this line", hint)
            expected = slot + insn.slots
            self._items.append(insn)
        self._by_slot.clear()

    def _label(self, name: str, start: int, end: int) -> None:
        if self._map is not None and self._map.contents is not None:
            self._constant(name, len(self._map.contents), start, end)
        else:
            self._items.append(LabelHere(name, Span(self.source, start, end)))

    def _constant(self, name: str, value: int, start: int, end: int) -> None:
        if self._constants.get(name, value) != value:
            self._error(start, end, f"constant {name!r} is already {self._constants[name]}")
        self._constants[name] = value

    def _directive(self, code: str, first: int, at: int) -> None:
        directive = _DIRECTIVE.match(code, first)
        if directive is None:
            raise DirectiveError("unknown directive", first, len(code), _DIRECTIVES_HINT)
        name = directive["name"]
        here = Span(self.source, at + first, at + len(code))
        arguments = Arguments(name, code, directive.end(), self._constants)
        if name in DATA:
            self._data(arguments, here)
            return
        match name:
            case ".equ" | ".set":
                self._equ(code, directive.end(), at)
            case ".prog":
                self._begin_program(read_prog(arguments), here)
            case ".section":
                self._begin_program(read_section(arguments), here)
            case ".func":
                self._end_map()
                word = arguments.name("the function")
                arguments.finish()
                if word.text in HelperId.__members__:
                    raise word.error(f"{word.text} is the name of a helper")
                self._items.append(FunctionHere(word.text, here))
            case ".jumptable":
                self._end_map()
                word, labels = read_jump_table(arguments)
                self._check_map_name(word.text, here)
                function = next((item.name for item in reversed(self._items) if isinstance(item, FunctionHere)), "")
                places = [Span(self.source, at + label.start, at + label.end) for label in labels]
                self._jump_tables.append((word.text, function, places))
            case ".map":
                self._begin_map(read_map(arguments), here)
            case ".data" | ".rodata":
                self._begin_map(read_data(arguments), here)
            case _ if name not in LLVM_DIRECTIVES:
                raise DirectiveError(f"unknown directive {name}", first, first + len(name), _DIRECTIVES_HINT)

    def _equ(self, code: str, start: int, at: int) -> None:
        found = re.compile(r"([A-Za-z_]\w*)\s*[, =]\s*(.+)").fullmatch(code, start)
        if found is None:
            raise DirectiveError(".equ: expected NAME, NUMBER", start, len(code))
        if re.fullmatch(r"[rw](?:10|\d)", found[1]):
            raise DirectiveError(f"{found[1]} is a register", *found.span(1))
        try:
            value = evaluate(found[2], self._constants)
        except ValueError as problem:
            raise DirectiveError(str(problem), *found.span(2)) from None
        self._constant(found[1], value, at + found.start(1), at + found.end(1))

    def _begin_program(self, header: ProgramHeader, here: Span) -> None:
        self._end_map()
        self._end_program()
        self.headers.append(here)
        self._header = header
        if any(program.name == header.name for program in self._programs):
            self._error(here.start, here.end, f"program {header.name!r} is defined twice")

    def _end_program(self) -> None:
        self._end_listing()
        for call in self._unlinked.values():
            self._error(call.start, call.end, "a call that a relocation leads: it is not here", "take llvm-objdump -dr")
        self._unlinked.clear()
        items, self._items = self._items, []
        if not items and not self.headers:
            return
        insns, functions, problems = try_resolve(_with_exit_label(items))
        for problem in problems:
            span = problem.item.span
            self.problems.append(Diagnostic(_name_span(span, problem.item), problem.message))
        self._end_jump_tables(items)
        if not insns and self.headers:
            span = self.headers[-1]
            self._error(span.start, span.end, f"program {self._header.name!r} has no instruction")
        header = self._header
        self._programs.append(
            Program(
                header.name,
                header.prog_type,
                tuple(insns),
                header.attach_type,
                header.attach_to,
                header.is_sleepable,
                header.license,
                functions,
            )
        )

    def _end_jump_tables(self, items: list[Item]) -> None:
        tables, self._jump_tables = self._jump_tables, []
        slots = label_slots(items) if tables else {}
        for name, function, labels in tables:
            for label in labels:
                if (function, label.text) not in slots:
                    self._error(label.start, label.end, f"label {label.text!r} is not defined")
            self._maps.append(jump_table(name, (slots.get((function, label.text), 0) for label in labels)))

    def _begin_map(self, header: MapHeader, here: Span) -> None:
        self._end_map()
        self._check_map_name(header.name, here)
        self._map = header

    def _check_map_name(self, name: str, here: Span) -> None:
        if any(
            known == name for known in (*(spec.name for spec in self._maps), *(row[0] for row in self._jump_tables))
        ):
            self._error(here.start, here.end, f"map {name!r} is defined twice")

    def _data(self, arguments: Arguments, here: Span) -> None:
        if self._map is None:
            raise DirectiveError(f"{arguments.directive}: expected .map, .data or .rodata before it", 0, arguments.end)
        if self._map.contents is None:
            self._map.contents = bytearray()
        self._map.contents += read_bytes(arguments, len(self._map.contents))
        size = self._map.value_size
        if size is not None and len(self._map.contents) > size * self._map.max_entries:
            room = size * self._map.max_entries
            message = f"map {self._map.name!r} holds {room} bytes: got {len(self._map.contents)}"
            self._error(here.start, here.end, message)

    def _end_map(self) -> None:
        header, self._map = self._map, None
        if header is None:
            return
        contents = None if header.contents is None else bytes(header.contents)
        value_size = len(contents or b"") if header.value_size is None else header.value_size
        sizes = (header.key_size, value_size, header.max_entries)
        self._maps.append(MapSpec(header.name, header.type, *sizes, header.flags, contents, header.is_frozen))


_DIRECTIVES_HINT = (
    "one of .equ .map .data .rodata .prog .section .func .jumptable .byte .u16 .u32 .u64 .ascii .asciz .zero .align"
    " .hex"
)

_AMBIGUOUS = (Kind.LD_IMM64, Kind.CALL_HELPER, Kind.CALL_SUBPROGRAM, Kind.CALL_KFUNC)


def _without_comment(line: str) -> str:
    if ";" in line or "#" in line or "//" in line:
        found = _CODE.match(line)
        line = found[0] if found else line
    return line.rstrip()


def _either(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


_UNLINKED = call_sub(-1)
"""What a compiler writes for a call of a function in another section."""

_EXIT_LABEL = Label("exit")


def _with_exit_label(items: list[Item]) -> list[Item]:
    """In uBPF's syntax, `exit` as a target is the first exit, unless a label has that name."""
    is_used = any(isinstance(item, Insn) and item.symbol and item.symbol == _EXIT_LABEL for item in items)
    if not is_used or any(isinstance(item, LabelHere) and item.name == "exit" for item in items):
        return items
    for index, item in enumerate(items):
        if isinstance(item, Insn) and item.code == EXIT:
            return [*items[:index], LabelHere("exit"), *items[index:]]
    return items


def _name_span(span: Span | None, item: Item) -> Span | None:
    """The place of the name in a statement, for the caret."""
    if span is None or not isinstance(item, Insn) or not isinstance(item.symbol, Label | Subprogram | FunctionAddress):
        return span
    start = span.text.rfind(item.symbol.name)
    return span if start < 0 else Span(span.source, span.start + start, span.start + start + len(item.symbol.name))
