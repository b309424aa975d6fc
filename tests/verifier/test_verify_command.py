"""`actplane verify`, the plugin, SARIF, and what kernel logs are read as."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actplane.asm.assembler import assemble_object
from actplane.cli import main
from actplane.cli.exits import Exit
from actplane.pytest_plugin import AssertVerifies, assert_verifies
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


def test_unknown_kernel_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", write(tmp_path, GOOD), "--type", "xdp", "--kernel", "banana"]) == Exit.FAILURE
    assert "banana" in capsys.readouterr().err


def test_plugin_judges(assert_verifies: AssertVerifies) -> None:
    good = assemble_object(".prog main xdp\n" + GOOD, name="good").programs[0]
    bad = assemble_object(".prog main xdp\n" + BAD, name="bad").programs[0]
    assert_verifies(good, kernels=("5.10", "6.1", "7.2"))
    assert_verifies(bad, refusal="uninitialized-register")
    with pytest.raises(pytest.fail.Exception):
        assert_verifies(bad)


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
