"""`actplane compile`: what a policy becomes, stage by stage, down to the bytes. It needs no kernel."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actplane.cli.exits import Exit
from actplane.cli.options import add_policy_options, add_tier_option, policy_of, tier_of
from actplane.errors import ActplaneError

if TYPE_CHECKING:
    from actplane.asm.insn import Symbol
    from actplane.asm.program import Program
    from actplane.codegen.compile import Compiled
    from actplane.dsl import Compilation
    from actplane.dsl.texts import PolicyText

STAGES = ("tokens", "ast", "ir", "asm", "bytes")


def add_parser(subparsers: Any, description: str) -> None:
    parser = subparsers.add_parser(
        "compile",
        help=description,
        description="Show what a policy becomes: tokens, syntax tree, IR, instructions, bytes.",
        epilog="What only the running kernel knows (map descriptors, field offsets) is still a name or zero here.",
        allow_abbrev=False,
    )
    add_policy_options(parser)
    add_tier_option(parser, "compile for this tier (default: lsm); this asks no kernel")
    parser.add_argument("--emit", choices=(*STAGES, "all"), default="asm", help="which stage to show (asm)")
    parser.add_argument("--program", metavar="NAME", help="only this program, in ir, asm and bytes")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output")
    parser.add_argument("--json", action="store_true", help="print one JSON object, a key for each stage")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    stages = STAGES if options.emit == "all" else (options.emit,)
    view = _View(policy_of(options), options)
    if options.json:
        result = json.dumps({stage: view.as_json(stage) for stage in stages}) + "\n"
    else:
        result = "".join(f"== {stage}\n" * (len(stages) > 1) + view.as_text(stage) for stage in stages)
    if options.output is None:
        sys.stdout.write(result)
        return Exit.OK
    try:
        options.output.write_text(result, encoding="utf-8")
    except OSError as error:
        raise ActplaneError(f"{options.output}: cannot be written: {error.strerror}") from error
    return Exit.OK


class _View:
    """One policy at every stage; a stage is computed when it is first looked at."""

    def __init__(self, text: PolicyText, options: argparse.Namespace) -> None:
        from actplane.codegen.tier import Tier

        self._text = text
        self._tier = tier_of(options) or Tier.LSM
        self._only: str | None = options.program
        self._compilation: Compilation | None = None
        self._compiled: Compiled | None = None

    def as_text(self, stage: str) -> str:
        printers: dict[str, Callable[[], str]] = {
            "tokens": self._tokens_text,
            "ast": self._ast_text,
            "ir": self._ir_text,
            "asm": self._asm_text,
            "bytes": self._bytes_text,
        }
        return printers[stage]()

    def as_json(self, stage: str) -> Any:
        builders: dict[str, Callable[[], Any]] = {
            "tokens": self._tokens_json,
            "ast": self._ast_json,
            "ir": self._ir_json,
            "asm": lambda: [self._program_json(program, self._insns(program)) for program in self.programs()],
            "bytes": lambda: [self._bytes_json(program) for program in self.programs()],
        }
        return builders[stage]()

    def compilation(self) -> Compilation:
        from actplane.dsl import compile_sources

        if self._compilation is None:
            self._compilation = compile_sources(self._text.sources, root=self._text.root)
        return self._compilation

    def compiled(self) -> Compiled:
        from actplane.codegen.compile import compile_policy

        if self._compiled is None:
            self._compiled = compile_policy(self.compilation().policy, self._tier)
        return self._compiled

    def programs(self) -> list[Program]:
        programs = self.compiled().object.programs
        chosen = [program for program in programs if self._only in (None, program.name)]
        if not chosen:
            names = ", ".join(program.name for program in programs)
            raise ActplaneError(f"--program: no program is called {self._only!r}: expected one of {names}")
        return chosen

    # Texts

    def _tokens_text(self) -> str:
        from actplane.dsl.lexer import tokenize
        from actplane.dsl.printer import print_tokens

        return "".join(print_tokens(tokenize(source)[0]) for source in self._text.sources)

    def _ast_text(self) -> str:
        from actplane.dsl.printer import print_tree

        return "".join(print_tree(tree) for tree in self.compilation().trees)

    def _ir_text(self) -> str:
        from actplane.ir.listing import print_function
        from actplane.ir.printer import print_policy

        parts = [print_policy(self.compilation().policy)] if self._only is None else []
        for program in self.programs():
            functions = self.compiled().functions[program.name]
            parts.append(f"\n{_heading(program)}\n" + "\n".join(map(print_function, functions)))
        return "".join(part.rstrip("\n") + "\n" for part in parts)

    def _asm_text(self) -> str:
        blocks = []
        for program in self.programs():
            lines = [_heading(program)]
            slot = 0
            for index, (insn, shown) in enumerate(zip(program.insns, self._insns(program), strict=True)):
                if index in program.functions:
                    lines.append(f"{program.functions[index]}:")
                lines.append(f"{slot:6}: {shown}")
                slot += insn.slots
            blocks.append("\n".join(lines) + "\n")
        return "\n".join(blocks)

    def _bytes_text(self) -> str:
        blocks = []
        for program in self.programs():
            code = self._bytes(program)
            names = dict(_symbols(program))
            rows = []
            for slot in range(len(code) // 8):
                note = f"  ; {names[slot]}" if slot in names else ""
                rows.append(f"{slot:6}: {code[8 * slot : 8 * slot + 8].hex(' ')}{note}")
            blocks.append("\n".join([_heading(program), *rows]) + "\n")
        return "\n".join(blocks)

    # Data

    def _tokens_json(self) -> Any:
        from actplane.dsl.lexer import tokenize
        from actplane.dsl.printer import tokens_to_json

        return [token for source in self._text.sources for token in tokens_to_json(tokenize(source)[0])]

    def _ast_json(self) -> Any:
        from actplane.dsl.printer import tree_to_json

        return [tree_to_json(tree) for tree in self.compilation().trees]

    def _ir_json(self) -> Any:
        from actplane.ir.listing import print_function
        from actplane.ir.printer import policy_to_json

        functions = self.compiled().functions
        return {
            "policy": policy_to_json(self.compilation().policy),
            "programs": {p.name: [print_function(function) for function in functions[p.name]] for p in self.programs()},
        }

    def _program_json(self, program: Program, content: Any) -> dict[str, Any]:
        return {
            "name": program.name,
            "type": program.prog_type.name,
            "attach_type": program.attach_type.name if program.attach_type is not None else None,
            "attach_to": program.attach_to,
            "slots": program.slots,
            "content": content,
        }

    def _bytes_json(self, program: Program) -> dict[str, Any]:
        symbols = [{"slot": slot, "symbol": symbol} for slot, symbol in _symbols(program)]
        return {**self._program_json(program, self._bytes(program).hex()), "symbols": symbols}

    def _insns(self, program: Program) -> list[str]:
        from actplane.asm.disasm import disassemble_insns

        return disassemble_insns(program.insns)

    def _bytes(self, program: Program) -> bytes:
        from actplane.asm.encoding import encode

        return encode(program.insns, allow_symbols=True)


def _symbols(program: Program) -> Iterator[tuple[int, str]]:
    """Yield the slots whose number only the loader knows, and what it stands for."""
    slot = 0
    for insn in program.insns:
        if insn.symbol is not None:
            yield slot, _name(insn.symbol)
        slot += insn.slots


def _name(symbol: Symbol) -> str:
    from actplane.asm.insn import Field, MapFd, MapValue

    if isinstance(symbol, Field):
        return f"offset of {symbol.struct}.{symbol.path}"
    if isinstance(symbol, (MapFd, MapValue)):
        return f"map {symbol.name}"
    return str(symbol)


def _heading(program: Program) -> str:
    hook = f" on {program.attach_to}" if program.attach_to else ""
    return f"; program {program.name}: {program.prog_type.name}{hook}, {program.slots} slots"
