"""`actplane verify`, the plugin, SARIF, and what kernel logs are read as."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actplane.asm.assembler import assemble_object
from actplane.asm.uapi import ProgType
from actplane.cli import main
from actplane.cli.exits import Exit
from actplane.loader import btf as btf_module
from actplane.pytest_plugin import AssertVerifies, assert_verifies
from actplane.verifier import verify
from actplane.verifier.kernel_log import id_of_message, parse_kernel_log
from tests.verifier import corpus

__all__ = ["assert_verifies"]

BAD = "r0 = *(u8 *)(r3 +0)\nexit\n"
GOOD = "r0 = 0\nexit\n"


def vmlinux() -> str:
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        pytest.skip("needs the types of a kernel")
    return str(path)


def write(folder: Path, text: str) -> str:
    path = folder / "program.s"
    path.write_text(text)
    return str(path)


def test_accepted_program_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", write(tmp_path, GOOD), "--type", "socket_filter"]) == Exit.OK
    assert "accepted for Linux 6.18: 2 instructions processed" in capsys.readouterr().out


def test_refused_program_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", write(tmp_path, BAD), "--type", "xdp", "--json"]) == Exit.MIRROR_REFUSED
    report = json.loads(capsys.readouterr().out)[0]
    assert report["refusal"]["id"] == "uninitialized-register"
    assert report["refusal"]["insn"] == 0


def test_log_shows_the_state_after_each_instruction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", write(tmp_path, "r0 = 7\nr0 += 1\nexit\n"), "--type", "xdp", "--log"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "0: R1=ctx() R10=fp0",
        "0: (b7) r0 = 7                        ; R0=7",
        "1: (07) r0 += 1                       ; R0=8",
    ]


def test_sarif_names_the_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", write(tmp_path, BAD), "--type", "xdp", "--sarif"])
    log = json.loads(capsys.readouterr().out)
    assert log["version"] == "2.1.0"
    assert log["runs"][0]["results"][0]["ruleId"] == "uninitialized-register"


def test_sarif_names_a_file_by_its_uri(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a b#c.s"
    path.write_text(BAD)
    main(["verify", str(path), "--type", "xdp", "--sarif"])
    place = json.loads(capsys.readouterr().out)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == f"{tmp_path}/a%20b%23c.s"
    assert place["region"] == {"startLine": 1, "startColumn": 1}


def test_older_kernels_refuse_what_they_lack(tmp_path: Path) -> None:
    path = write(tmp_path, "call bpf_get_current_task_btf\nr0 = 0\nexit\n")
    for kernel, status in (("6.1", Exit.OK), ("5.10", Exit.MIRROR_REFUSED)):
        assert main(["verify", path, "--type", "raw_tracepoint", "--kernel", kernel, "--btf", vmlinux()]) == status


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--kernel", "banana"], "kernel 'banana': got no version, expected one of 5.10"),
        (["--kernel", "4.19"], "kernel '4.19': too old"),
        (["--attach-type", "trace_fenty"], "no attach type 'trace_fenty': expected BPF_TRACE_FENTRY"),
        (["--budget-insns", "0"], "got '0', expected a number above 0"),
        (["--budget-seconds", "nan"], "got 'nan', expected a number above 0"),
        (["--budget-seconds", "soon"], "got 'soon', expected a number above 0"),
        (["--json", "--sarif"], "not allowed with"),
        (["--type", "unspec"], "invalid choice"),
    ],
)
def test_arguments_that_make_no_sense_are_said(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["verify", "program.s", *words])
    assert raised.value.code == Exit.USAGE
    assert complaint in capsys.readouterr().err


def test_a_type_that_the_input_contradicts_is_named_as_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "typed.s"
    path.write_text(".prog main xdp\nr0 = 2\nexit\n")
    assert main(["verify", str(path), "--type", "xdp"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["verify", str(path), "--type", "lsm"]) == 0
    assert capsys.readouterr().err == "actplane: the input says of what type it is: --type lsm is not used\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--type", "lsm", "--attach", "file_opne"], "did you mean file_open"),
        (["--type", "lsm", "--attach", "bpf_lsm_file_open"], "did you mean file_open"),
        (
            ["--type", "tracing", "--attach-type", "trace_raw_tp", "--attach", "sched_swich"],
            "did you mean sched_switch",
        ),
        (["--type", "tracing", "--attach-type", "trace_fentry", "--attach", "vfs_raed"], "vfs_read"),
        (["--type", "tracing", "--attach-type", "trace_fentry", "--attach", "zzzzzzz"], "check the attach type"),
    ],
)
def test_a_hook_that_does_not_exist_has_neighbours(
    arguments: list[str], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", write(tmp_path, GOOD), *arguments, "--btf", vmlinux()]) == Exit.MIRROR_REFUSED
    assert hint in capsys.readouterr().out


def test_types_of_another_kernel_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = [write(tmp_path, GOOD), "--type", "lsm", "--attach", "file_open", "--kernel", "5.10"]
    assert main(["verify", *program, "--btf", vmlinux()]) == Exit.OK
    assert capsys.readouterr().err == ""
    assert main(["verify", *program]) == Exit.OK
    assert "the types are those of the running kernel" in capsys.readouterr().err


def test_a_kernel_newer_than_the_mirror_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", write(tmp_path, GOOD), "--type", "xdp", "--kernel", "99.9"]) == Exit.OK
    assert "99.9 is judged by that" in capsys.readouterr().err


def test_the_running_kernels_types_are_taken_without_being_named(tmp_path: Path) -> None:
    vmlinux()
    text = "call bpf_get_current_task_btf\nr0 = *(u32 *)(r0 +0)\nr0 = 0\nexit\n"
    assert main(["verify", write(tmp_path, text), "--type", "raw_tracepoint"]) == Exit.OK


def test_types_that_are_needed_and_missing_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(btf_module, "VMLINUX_PATH", tmp_path / "vmlinux")
    btf_module.Btf.vmlinux.cache_clear()
    path = write(tmp_path, GOOD)
    assert main(["verify", path, "--type", "xdp"]) == Exit.OK
    assert main(["verify", path, "--type", "lsm", "--attach", "file_open"]) == Exit.FAILURE
    assert "this needs a kernel's types: " in (said := capsys.readouterr().err)
    assert "hint: give them with --btf FILE" in said
    btf_module.Btf.vmlinux.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--type", "sk_lookup"], "say it with --attach-type"),
        (["--type", "syscall"], "give --sleepable"),
        (["--type", "sched_cls", "--sleepable"], "do without --sleepable"),
    ],
)
def test_options_that_are_missing_or_too_many_are_named(
    arguments: list[str], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", write(tmp_path, GOOD), *arguments]) == Exit.MIRROR_REFUSED
    assert hint in capsys.readouterr().out


def test_a_hook_that_is_not_named_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", write(tmp_path, GOOD), "--type", "lsm", "--btf", vmlinux()]) == Exit.MIRROR_REFUSED
    assert "hint: name it with --attach" in capsys.readouterr().out


def test_a_file_that_holds_no_types_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD)
    assert main(["verify", path, "--type", "xdp", "--btf", path]) == Exit.FAILURE
    assert f"actplane: {path}: these are not the types of a kernel: " in capsys.readouterr().err


def test_json_has_the_keys_that_its_page_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "verify.md").read_text()
    named = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    main(["verify", write(tmp_path, BAD), "--type", "xdp", "--json", "--log"])
    (report,) = json.loads(capsys.readouterr().out)
    assert report["log"][0] == "0: R1=ctx() R10=fp0"
    given = set(report)
    for part in ("refusal", "statistics"):
        given |= {f"{part}.{key}" for key in report[part]}
    assert given == named


def test_mistakes_in_a_text_have_their_places_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "r0 == 1\nfoo\nexit\n")
    assert main(["verify", path, "--type", "xdp", "--json"]) == Exit.FAILURE
    printed = capsys.readouterr()
    assert printed.out == ""
    places = [line.partition(": ")[0] for line in printed.err.splitlines() if not line.startswith(" ")]
    assert places == [f"{path}:1:5", f"{path}:2:1"]


def test_giving_up_is_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", write(tmp_path, GOOD), "--type", "xdp", "--budget-insns", "1"]
    assert main(arguments) == Exit.MIRROR_REFUSED
    assert capsys.readouterr().out.startswith("main: no verdict for Linux 6.18\n")
    assert main([*arguments, "--json"]) == Exit.MIRROR_REFUSED
    assert json.loads(capsys.readouterr().out)[0]["refusal"]["is_verdict"] is False
    assert main([*arguments, "--sarif"]) == Exit.MIRROR_REFUSED
    assert json.loads(capsys.readouterr().out)["runs"][0]["results"][0]["level"] == "warning"


def test_steps_that_repeat_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "r6 = 0\nagain:\ncall bpf_get_prandom_u32\nif r0 != 0 goto again\nexit\n"
    main(["verify", write(tmp_path, text), "--type", "xdp"])
    assert re.search(r"r0 != 0 holds .*\(\d times\)\n$", capsys.readouterr().out)


def test_plugin_judges(assert_verifies: AssertVerifies) -> None:
    good = assemble_object(".prog main xdp\n" + GOOD, name="good").programs[0]
    bad = assemble_object(".prog main xdp\n" + BAD, name="bad").programs[0]
    assert_verifies(good, kernels=("5.10", "6.1", "7.2"))
    assert_verifies(bad, refusal="uninitialized-register")
    assert_verifies(good, kernels="6.1")
    with pytest.raises(pytest.fail.Exception) as failed:
        assert_verifies(bad, kernels=("5.10", "7.2"))
    said = str(failed.value)
    assert said.startswith(
        "expected main to be accepted; for 2 of 2 kernels it is not:\nmain: refused for Linux 5.10\n"
    )
    assert "main: refused for Linux 7.2" in said
    with pytest.raises(ValueError, match="did you mean 'null-dereference'"):
        assert_verifies(bad, refusal="null-derefernce")


def test_plugin_is_found_in_another_project(tmp_path: Path) -> None:
    """With `-p`, which is also how pytest loads what an installed package names."""
    (tmp_path / "test_mine.py").write_text(
        "from actplane.asm.assembler import assemble_object\n"
        "def test_it(assert_verifies):\n"
        "    found = assemble_object('.prog main xdp\\nr0 = 2\\nexit\\n', name='mine.s')\n"
        "    assert_verifies(found.programs[0], found.maps, kernels=('5.10', '7.2'))\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "actplane.pytest_plugin", "-p", "no:cacheprovider", "."]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"program": b"\x95"}, "program: got bytes, expected Program"),
        ({"profile": "6.1"}, "profile: got str, expected KernelProfile: profile_of()"),
        ({"options": {"is_privileged": False}}, "options: got dict, expected Options"),
    ],
)
def test_the_door_says_what_it_takes(arguments: dict[str, Any], complaint: str) -> None:
    program = assemble_object(".prog main xdp\n" + GOOD, name="good").programs[0]
    with pytest.raises(TypeError, match=re.escape(complaint)):
        verify(**{"program": program, **arguments})


@pytest.mark.parametrize(
    ("text", "insn", "state"),
    [
        ("r0 = 1\nr0 = r5\nexit\n", "r0 = r5", "R0=1 R1=ctx() R10=fp0"),
        ("r0 = 0\nexit\nr0 = 1\nexit\n", "r0 = 1", ""),
        ("r0 = 0\ngoto +5\nexit\n", "goto +5", ""),
    ],
    ids=["an unset register", "unreachable", "before the walk"],
)
def test_a_refusal_shows_the_instruction_and_what_was_known(text: str, insn: str, state: str) -> None:
    refusal = verify(assemble_object(".prog main xdp\n" + text, name="bad").programs[0]).refusal
    assert refusal is not None
    assert (refusal.insn_text, refusal.state) == (insn, state)


def test_a_program_of_no_type_is_refused() -> None:
    program = assemble_object(GOOD, name="good", prog_type=ProgType.BPF_PROG_TYPE_UNSPEC).programs[0]
    report = verify(program)
    assert report.refusal is not None
    assert report.refusal.id == "attach"


@pytest.mark.parametrize(
    ("message", "id_"),
    [
        ("R1 !read_ok", "uninitialized-register"),
        ("R0 invalid mem access 'map_value_or_null'", "null-dereference"),
        ("R2 invalid mem access 'scalar'", "not-a-pointer"),
        ("invalid bpf_context access off=76 size=4", "context-access"),
        ("R4 min value is negative, either use unsigned or 'var &= const'", "argument-size"),
        ("At program exit the register R0 has smin=2 smax=2 should have been in [0, 1]", "return-value"),
        ("BPF program is too large. Processed 1000001 insn", "too-many-instructions"),
        ("combined stack size of 2 calls is 544. Too large", "stack-too-deep"),
    ],
)
def test_kernel_messages_have_ids(message: str, id_: str) -> None:
    assert id_of_message(message) == id_


def test_kernel_logs_of_both_forms() -> None:
    old = "0: R1=ctx() R10=fp0\n0: (71) r0 = *(u8 *)(r3 +0)\nR3 !read_ok\nprocessed 1 insns (limit 1000000)\n"
    found = parse_kernel_log(old)
    assert found is not None
    assert (found.id, found.slot, found.processed) == ("uninitialized-register", 0, 1)
    new = old.partition("processed")[0] + NEW_REPORT
    found = parse_kernel_log(new)
    assert found is not None
    assert (found.id, found.slot, found.processed) == ("uninitialized-register", 0, 1)
    assert found.suggestion == "Initialize R3 on every path before this instruction."
    # The report alone names the reason too.
    found = parse_kernel_log(NEW_REPORT.replace("insn 0", "insn 4"))
    assert found is not None
    assert (found.id, found.slot) == ("uninitialized-register", 4)


def test_every_refusal_of_the_corpus_has_an_id() -> None:
    if not corpus.ARCHIVE.exists():
        pytest.skip("needs the corpus of programs beside the repository")
    unknown, refusals = [], 0
    for case in corpus.cases():
        for release, answer in case.raw["kernel"].items():
            said = [line for line in answer.get("log_tail") or () if line and not line.startswith("processed")]
            if answer["verdict"] != "reject" or not said:
                continue
            refusals += 1
            if parse_kernel_log("\n".join(said)) is None:
                unknown.append((case.id, release, said[-1]))
    assert refusals > 5_000
    # Two logs of 5.10 were cut in the middle of a line, before the reason.
    assert len(unknown) <= 2, unknown


NEW_REPORT = """
Verification failed: Register Type Safety: Unreadable register

Reason:
  R3 has never been initialized on this path, so the verifier cannot use it as an input.

At:
  insn 0
        | ^-- error: R3 is not readable
  Instruction context:
  >>> 0 | (71) r0 = *(u8 *)(r3 +0)

Causal path:
  no retained diagnostic events on this path

Suggestion:
  Initialize R3 on every path before this instruction.

processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""
"""The form of Linux 7.3 (commit ce7c9f6c599b), as a report to cilium/ebpf shows it."""
