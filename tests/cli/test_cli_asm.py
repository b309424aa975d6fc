"""The commands asm, disasm, explain, cfg and step: over pipes, as JSON, and in a real terminal."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from actplane.asm.encoding import decode
from actplane.cli import asm_commands
from actplane.cli.asm_input import InputError
from actplane.errors import AssembleError, DecodeError

COUNT = """\
.map hits array key=4 value=8 max_entries=4
.prog count xdp
    r6 = 3
    r0 = 0
loop:
    r0 += r6
    *(u64 *)(r10 -8) = r0
    r6 -= 1
    if r6 != 0 goto loop
    r1 = r0
    call double
    exit
.func double
    r0 = r1
    r0 += r1
    exit
"""
SEVEN = bytes.fromhex("b700000007000000") + bytes.fromhex("9500000000000000")


class Piped(io.TextIOWrapper):
    """Standard input or output that is a pipe: text with bytes underneath."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", write_through=True)

    @property
    def written(self) -> bytes:
        self.flush()
        return self.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a command; returns (status, what it wrote, what it complained about)."""

    def run_command(*argv: str, stdin: str | bytes = b"") -> tuple[int, bytes, str]:
        parser = argparse.ArgumentParser()
        asm_commands.add_parsers(parser.add_subparsers(required=True))
        options = parser.parse_args(argv)
        out, complaints = Piped(), io.StringIO()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "stdin", Piped(stdin.encode() if isinstance(stdin, str) else stdin))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", complaints)
            status = options.handler(options)
        return status, out.written, complaints.getvalue()

    (tmp_path / "count.s").write_text(COUNT)
    return run_command


# asm and disasm.


def test_asm_writes_bytes_and_disasm_reads_them_back(run) -> None:
    status, code, _ = run("asm", stdin="r0 = 7\nexit\n")
    assert (status, code) == (0, SEVEN)
    assert run("disasm", stdin=code)[1] == b"r0 = 7\nexit\n"
    assert run("disasm", stdin=code.hex())[1] == b"r0 = 7\nexit\n"


def test_asm_writes_hex_and_files(run, tmp_path: Path) -> None:
    assert run("asm", "--hex", stdin="r0 = 7\nexit\n")[1] == b"b700000007000000\n9500000000000000\n"
    run("asm", "-o", "out.bin", "count.s")
    assert len(decode((tmp_path / "out.bin").read_bytes())) == 12


def test_asm_as_json_has_maps_symbols_and_lines(run) -> None:
    facts = json.loads(run("asm", "--json", stdin=COUNT.replace("r6 = 3", "r6 = 3\n    r5 = map[hits]"))[1])
    assert facts["maps"][0]["name"] == "hits"
    program = facts["programs"][0]
    assert program["functions"] == {"double": 10}
    assert program["insns"][1]["symbol"] == {"kind": "MapFd", "text": "MapFd(name='hits')"}
    assert program["insns"][1]["line"] == 4


def test_asm_says_that_bytes_hold_no_names(run) -> None:
    status, _, complaint = run("asm", stdin=".map m array key=4 value=8 max_entries=1\nr1 = map[m]\nr0 = 0\nexit\n")
    assert status == 0
    assert "insn 0 refers to names" in complaint


def test_a_byte_order_mark_is_no_text(run) -> None:
    assert run("disasm", stdin=b"\xef\xbb\xbfr0 = 1\r\nexit\r\n")[1] == b"r0 = 1\nexit\n"


def test_disasm_knows_dialects(run) -> None:
    assert run("disasm", "--dialect", "ubpf", stdin=SEVEN)[1] == b"mov %r0, 7\nexit\n"
    assert run("disasm", "--dialect", "verifier", stdin=SEVEN)[1].startswith(b"0: (b7) r0 = 7\n")


def test_disasm_of_text_keeps_maps_and_functions(run) -> None:
    text = run("disasm", "count.s")[1].decode()
    assert ".map hits array" in text
    assert ".func double" in text
    assert run("disasm", stdin=text)[1].decode() == text


@pytest.mark.parametrize(
    ("argv", "stdin", "error", "message"),
    [
        (["asm"], "r0 = \nexit\nr11 = 1\n", AssembleError, "<stdin>:1:"),
        (["disasm"], b"\xff" + bytes(7), DecodeError, "byte 0: unknown opcode 0xff"),
        (["disasm", "absent.s"], b"", InputError, "absent.s: cannot be read: No such file"),
        (["asm", "-o", "absent/out"], "exit", InputError, "absent/out: cannot be written: No such file"),
        (["cfg", "--program", "other"], COUNT, InputError, "no program 'other': expected one of count"),
        *(([verb], "", InputError, "no program: the input has no instructions") for verb in ("asm", "disasm", "cfg")),
        (["cfg"], ".prog a xdp\nexit\n.prog b xdp\nexit\n", InputError, "several programs: give --program NAME"),
    ],
)
def test_bad_input_is_refused_with_its_reason(run, argv, stdin, error, message) -> None:
    with pytest.raises(error, match=message):
        run(*argv, stdin=stdin)


# explain and cfg.


def test_explain_says_what_each_field_means(run) -> None:
    text = run("explain", stdin=SEVEN)[1].decode()
    assert "   0: b7 00 00 00 07 00 00 00    r0 = 7\n      Put 7 into r0.\n" in text
    assert "code b7 = BPF_ALU64 | BPF_MOV | BPF_K, dst 0 = r0, src 0, off 0, imm 7" in text


def test_explain_as_json(run) -> None:
    explained = json.loads(run("explain", "--json", "count.s")[1])
    assert explained[5]["words"] == "If r6 differs from 0, go on at instruction 2, else at 6."
    assert explained[7]["words"].startswith("Call double at instruction 9")
    assert [field["name"] for field in explained[0]["fields"]] == ["code", "dst", "src", "off", "imm"]


def test_cfg_draws_text(run) -> None:
    text = run("cfg", "count.s")[1].decode()
    assert "│ b1  in: r0 r6               │" in text
    assert "double:\n" in text
    assert text.count("▼") == 3


def test_cfg_draws_svg(run, tmp_path: Path) -> None:
    run("cfg", "-o", "graph.svg", "count.s")
    root = ElementTree.parse(tmp_path / "graph.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == space + "svg"
    assert len(root.findall(f".//{space}rect")) == 4
    assert len(root.findall(f".//{space}path[@class='back']")) == 1


def test_cfg_as_json_has_loops_dominators_and_live_registers(run) -> None:
    facts = json.loads(run("cfg", "--json", "count.s")[1])
    main = facts["functions"][0]
    assert main["loops"] == [{"header": 1, "latches": [1], "blocks": [1], "depth": 1}]
    assert [block["dominator"] for block in main["blocks"]] == [None, 0, 1]
    assert main["blocks"][1]["live_in"] == [0, 6]
    assert facts["dead_insns"] == []


# step.


def test_step_shows_the_source_line_and_what_changed(run) -> None:
    _, out, _ = run("step", "count.s", stdin="s\n\n")
    text = out.decode()
    assert " >    3      r6 = 3" in text
    assert " >    6      r0 += r6" in text
    assert "  * r6   3" in text
    assert "    r10  stack+512" in text


def test_step_obeys_commands(run) -> None:
    commands = "b 7\nc\nn\nback 1\nfinish\nset r0 99\nm r10-8 8\nr\nl\nmaps\nhelp\nc\n"
    status, out, _ = run("step", "count.s", stdin=commands)
    text = out.decode()
    assert status == 0
    assert "breakpoint set at 7: call pc+1" in text
    assert "-- step 15: count insn 7, line 11 --" in text  # stopped before the call
    assert text.count("-- step 19: count insn 8, line 12 --") == 2  # `n` stepped over it, `finish` out of it
    assert "-- step 18: count/double insn 11, line 16 --" in text  # and `back` is inside
    assert "stack+504  06 00 00 00 00 00 00 00" in text
    assert "-- ended after 20 steps: r0 = 99 (0x63) --" in text


def test_step_answers_nonsense(run) -> None:
    commands = f"fly\nb 99\nb x\nset r11 1\nset r0 {1 << 64}\nm r5\ns 0\ns 100\ns\n"
    text = run("step", "count.s", stdin=commands)[1].decode()
    assert "unknown command 'fly': `help` lists them" in text
    assert "no instruction 99: expected 0 to 11" in text
    assert "got 'x', expected a number" in text
    assert "expected a register, r0 to r10" in text
    assert "got 18446744073709551616, expected a number of 64 bits" in text
    assert "got 0, expected 1 step or more" in text
    assert "r5 has no value" in text
    assert "the program has ended: `back` or `restart` go on" in text


def test_step_shows_a_fault_and_can_go_back_before_it(run, tmp_path: Path) -> None:
    (tmp_path / "fault.s").write_text("r0 = 5\nr0 = *(u8 *)(r0 +0)\nexit\n")
    status, out, _ = run("step", "fault.s", stdin="c\nback 0\n")
    text = out.decode()
    assert "insn 1 (r0 = *(u8 *)(r0 +0)): read of 1 byte at 0x5: no pointer" in text
    assert text.endswith(
        "-- step 1: main insn 1, line 2 --\n      1  r0 = 5\n >    2  r0 = *(u8 *)(r0 +0)\n"
        "      3  exit\n    r0   5\n    r1   context+0\n    r10  stack+512\n"
    )
    assert status == 0
    assert run("step", "fault.s", stdin="c\n")[0] == 1


def test_step_over_a_pipe_traces_to_the_end(run) -> None:
    steps = [json.loads(line) for line in run("step", "--json", stdin=COUNT)[1].splitlines()]
    assert steps[0] == {"step": 1, "program": "count", "insn": 0, "text": "r6 = 3", "changed": {"r6": 3}}
    assert steps[-1] == {"steps": 20, "result": 12}


def test_step_gives_programs_their_packet_and_arguments(run) -> None:
    packet = "r2 = *(u32 *)(r1 +0)\nr0 = *(u8 *)(r2 +1)\nexit\n"
    last = json.loads(run("step", "--json", "--type", "xdp", "--packet", "0a0b", stdin=packet)[1].splitlines()[-1])
    assert last == {"steps": 3, "result": 0x0B}
    argument = "r0 = *(u64 *)(r1 +8)\nexit\n"
    last = json.loads(run("step", "--json", "--arg", "1", "--arg", "0x20", stdin=argument)[1].splitlines()[-1])
    assert last == {"steps": 2, "result": 0x20}


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel does not describe its types")
def test_step_fills_in_what_the_running_kernel_knows(run) -> None:
    text = "r0 = *(u32 *)(r1 +0 + field(task_struct.pid))\nr0 = sizeof(task_struct)\nexit\n"
    lines = run("step", "--json", "--zero-reads", stdin=text)[1].splitlines()
    assert json.loads(lines[-1])["result"] > 1000


def test_step_in_a_real_terminal_prompts_and_colours(tmp_path: Path) -> None:
    """Through a pseudo-terminal: the prompt comes, commands are read line by line, changes are coloured."""
    source = tmp_path / "count.s"
    source.write_text(COUNT)
    code = (
        "import argparse, sys; from actplane.cli import asm_commands as c; p = argparse.ArgumentParser(); "
        "c.add_parsers(p.add_subparsers()); o = p.parse_args(); sys.exit(o.handler(o))"
    )
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "step", str(source)], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        seen = read_until(master, "(step) ")
        os.write(master, b"s\n")
        seen += read_until(master, "(step) ")
        os.write(master, b"q\n")
        assert process.wait(timeout=60) == 0
    finally:
        os.close(master)
    assert "\x1b[1;33m  * r6   3\x1b[0m" in seen
    assert "\x1b[1;36m >    4      r0 = 0\x1b[0m" in seen


def read_until(fd: int, end: str) -> str:
    text = ""
    while not text.endswith(end):
        text += os.read(fd, 65536).decode()
    return text
