"""`actplane asm`, `disasm`, `explain`, `cfg` and `step`: the tools for those who read and write programs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from actplane.cli.asm_input import STDIN, InputError, add_program_argument, chosen_program, chosen_programs, read_object
from actplane.cli.exits import Exit

DIALECTS = ("kernel", "verifier", "llvm", "ubpf")


def add_parsers(subparsers: Any) -> None:
    """Add all five commands."""
    assemble = _add(subparsers, "asm", run_asm, "turn assembler text into instructions")
    assemble.add_argument("-o", "--output", metavar="FILE", help="where to write (default: stdout)")
    assemble.add_argument("--hex", action="store_true", help="write hex digits, an instruction a line, not bytes")

    disassemble = _add(subparsers, "disasm", run_disasm, "turn instructions into text that assembles to them again")
    disassemble.add_argument("--dialect", choices=DIALECTS, default="kernel", help="whose syntax (default: kernel)")

    _add(subparsers, "explain", run_explain, "say in words what each instruction and each of its fields means")

    graph = _add(subparsers, "cfg", run_cfg, "draw the control flow: blocks, edges, loops, live registers")
    graph.add_argument("--svg", action="store_true", help="draw SVG, not text")
    graph.add_argument("-o", "--output", metavar="FILE", help="where to write (default: stdout; .svg means --svg)")

    step = _add(subparsers, "step", run_step, "run a program one instruction at a time, looking at everything")
    step.add_argument("--context", metavar="HEX", type=bytes.fromhex, help="what r1 points to")
    step.add_argument("--packet", metavar="HEX", type=bytes.fromhex, help="the packet of a network program")
    step.add_argument(
        "--arg", metavar="N", type=_number, action="append", default=[], help="an argument of a tracing or LSM hook"
    )
    step.add_argument(
        "--zero-reads", action="store_true", help="reading through a pointer to nowhere gives 0, as in tracing and LSM"
    )
    step.add_argument("--limit", metavar="N", type=int, default=1_000_000, help="instructions at most (1000000)")
    step.add_argument("--trace", action="store_true", help="do not ask: show every step to the end")
    step.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="highlight what changed")


def _number(text: str) -> int:
    return int(text, 0)


def _add(subparsers: Any, name: str, handler: Any, description: str) -> Any:
    parser = subparsers.add_parser(
        name, help=description, description=description[0].upper() + description[1:] + ".", allow_abbrev=False
    )
    add_program_argument(parser, has_choice=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(handler=handler)
    return parser


def run_asm(options: argparse.Namespace) -> int:
    from actplane.asm.encoding import encode, encode_one

    found = read_object(options)
    if options.json:
        _write(json.dumps(_object_facts(found)) + "\n", options.output)
        return Exit.OK
    program = chosen_program(found, options)
    if options.hex:
        lines = [encode_one(insn, allow_symbols=True).hex() for insn in program.insns]
        _write("\n".join(lines) + "\n", options.output)
    else:
        _write(encode(program.insns, allow_symbols=True), options.output)
    named = [str(index) for index, insn in enumerate(program.insns) if insn.symbol is not None]
    if named:
        verb = "refers" if len(named) == 1 else "refer"
        print(f"actplane: insn {', '.join(named)} {verb} to names that bytes cannot hold; see --json", file=sys.stderr)
    return Exit.OK


def _object_facts(found: Any) -> dict[str, Any]:
    return {
        "maps": [
            {
                "name": spec.name,
                "type": spec.type.name,
                "key_size": spec.key_size,
                "value_size": spec.value_size,
                "max_entries": spec.max_entries,
                "flags": spec.flags,
                "contents": None if spec.contents is None else spec.contents.hex(),
            }
            for spec in found.maps
        ],
        "programs": [
            {
                "name": program.name,
                "type": program.prog_type.name,
                "attach_to": program.attach_to,
                "license": program.license,
                "slots": program.slots,
                "functions": {name: index for index, name in program.functions.items()},
                "insns": [_insn_facts(insn) for insn in program.insns],
            }
            for program in found.programs
        ],
    }


def _insn_facts(insn: Any) -> dict[str, Any]:
    from actplane.asm.disasm import format_insn
    from actplane.asm.encoding import encode_one

    facts: dict[str, Any] = {"hex": encode_one(insn, allow_symbols=True).hex(), "text": format_insn(insn)}
    facts |= {name: getattr(insn, name) for name in ("code", "dst", "src", "off", "imm")}
    if insn.symbol is not None:
        facts["symbol"] = {"kind": type(insn.symbol).__name__, "text": str(insn.symbol)}
    if insn.span is not None:
        facts["line"] = insn.span.line
    return facts


def run_disasm(options: argparse.Namespace) -> int:
    from actplane.asm.printer import disassemble

    found = read_object(options)
    if options.json:
        print(json.dumps(_object_facts(found)))
        return Exit.OK
    # Bytes have no names: one unnamed program is printed without a heading, whatever else with all it has.
    is_bare = not found.maps and options.program is None and len(found.programs) == 1
    if is_bare or options.program is not None:
        program = chosen_program(found, options)
        print(disassemble(program.insns if is_bare and not program.functions else program, options.dialect))
    else:
        if not found.maps:  # Maps alone are an object too.
            chosen_programs(found, None)
        print(disassemble(found, options.dialect))
    return Exit.OK


def run_explain(options: argparse.Namespace) -> int:
    from actplane.asm.explain import LAYOUT, explain

    found = explain(chosen_program(read_object(options), options))
    if options.json:
        facts = [
            {
                "index": each.index,
                "slot": each.slot,
                "hex": each.data.hex(),
                "text": each.text,
                "words": each.words,
                "fields": [{"name": f.name, "value": f.value, "meaning": f.meaning} for f in each.fields],
            }
            for each in found
        ]
        print(json.dumps(facts))
        return Exit.OK
    print(LAYOUT)
    for each in found:
        print(each.render())
    return Exit.OK


def run_cfg(options: argparse.Namespace) -> int:
    from actplane.asm.cfg import build_graph
    from actplane.asm.cfg_draw import draw_svg, draw_text
    from actplane.asm.jump_tables import jump_slots

    found = read_object(options)
    program = chosen_program(found, options)
    graph = build_graph(program, jump_slots=jump_slots(program, found.maps))
    if options.json:
        text = json.dumps(_graph_facts(graph)) + "\n"
    elif options.svg or (options.output or "").endswith(".svg"):
        text = draw_svg(graph, argument_count=_argument_count)
    else:
        text = draw_text(graph, argument_count=_argument_count)
    _write(text, options.output)
    return Exit.OK


def _argument_count(call: Any) -> int:
    """How many arguments a call takes, as far as the machine's helpers tell."""
    from actplane.asm.insn import Kfunc
    from actplane.asm.machine.registry import HELPERS, KFUNCS

    if isinstance(call.symbol, Kfunc):
        kfunc = KFUNCS.get(call.symbol.name)
        return kfunc.arguments if kfunc else 5
    helper = HELPERS.get(call.imm)
    return helper.arguments if helper and not call.src else 5


def _graph_facts(graph: Any) -> dict[str, Any]:
    from actplane.asm.cfg_effects import registers_in
    from actplane.asm.cfg_flow import dominators, liveness, natural_loops

    functions = []
    for function in graph.functions:
        tree = dominators(graph, function)
        live = liveness(graph, function, _argument_count)
        functions.append(
            {
                "name": function.name,
                "entry": function.entry,
                "loops": [
                    {"header": loop.header, "latches": loop.latches, "blocks": loop.blocks, "depth": loop.depth}
                    for loop in natural_loops(graph, function)
                ],
                "blocks": [
                    {
                        "index": number,
                        "start": graph.blocks[number].start,
                        "end": graph.blocks[number].end,
                        "edges": [{"to": edge.target, "kind": edge.kind.value} for edge in graph.blocks[number].edges],
                        "dominator": tree[number],
                        "live_in": registers_in(live[number].live_in),
                        "live_out": registers_in(live[number].live_out),
                    }
                    for number in function.blocks
                ],
            }
        )
    return {"functions": functions, "dead_insns": graph.dead_insns, "open_jumps": graph.open_jumps}


def run_step(options: argparse.Namespace) -> int:
    from actplane.cli.step_session import StepSession

    found = read_object(options)
    program = _relocated(chosen_program(found, options))
    is_colored = options.color == "always" or (options.color == "auto" and sys.stdout.isatty())
    session = StepSession(
        found,
        program,
        context=options.context,
        packet=options.packet,
        arguments=options.arg,
        limit=options.limit,
        has_zero_reads=options.zero_reads,
        is_colored=is_colored,
        out=sys.stdout,
    )
    # A program that came through the pipe has used it up: there is nobody left to ask.
    if options.json:
        return session.trace_json()
    if options.trace or options.file == STDIN:
        return session.trace()
    return session.interact(sys.stdin)


def _relocated(program: Any) -> Any:
    """Fill in what only the running kernel knows, if the program asks for any of it."""
    from actplane.asm.insn import EnumValue, Field, TypeSize

    if not any(isinstance(insn.symbol, Field | EnumValue | TypeSize) for insn in program.insns):
        return program
    from actplane.loader.btf import Btf
    from actplane.loader.relocate import relocate

    return relocate(program, Btf.vmlinux())


def _write(data: str | bytes, output: str | None) -> None:
    raw = data.encode() if isinstance(data, str) else data
    if output in (None, STDIN):
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
    else:
        try:
            Path(output or "").write_bytes(raw)
        except OSError as error:
            raise InputError(f"{output}: cannot be written: {error.strerror}") from error
