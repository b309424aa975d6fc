"""Bad input and kernels that cannot do it: each has a message, a status, and the command does not run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from actplane.asm.uapi import MapType, ProgType
from actplane.cli import main
from actplane.cli.exits import Exit, exit_of
from actplane.errors import KernelError, PolicyError, RejectedByKernel, VerifyError
from actplane.loader import btf as btf_module
from actplane.loader import features, syscall
from actplane.runtime import privileges, session, tiers
from actplane.runtime.cgroup import NoCgroup, own_directory
from actplane.runtime.launch import CommandError
from tests.fake.kernel import FakeKernel
from tests.fake.types import small_kernel

RULE = 'rule r: kill exec "id" if AGENT because "why"'
BLOCK = 'rule r: block exec "id" if AGENT because "why"'


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run `actplane run ... touch FILE` as if privileged; return status and standard error. No file may appear."""
    monkeypatch.setattr(session, "require_privileges", lambda: None)

    def run_it(*words: str, rule: str = RULE) -> tuple[int, str]:
        ran = tmp_path / "ran"
        status = main(["run", "--no-mirror", *words, "--rule", rule, "--", "touch", str(ran)])
        assert not ran.exists()
        return status, capsys.readouterr().err

    return run_it


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """A kernel that does whatever it is asked for, with a few types of its own."""
    fake = FakeKernel()
    monkeypatch.setattr(syscall.RUNNING_KERNEL, "bpf", fake.bpf)
    monkeypatch.setattr(session, "kernel_types", small_kernel)
    return fake


def test_not_root(monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str]]) -> None:
    monkeypatch.setattr(session, "require_privileges", privileges.require_privileges)
    monkeypatch.setattr(privileges, "missing_capabilities", lambda: ["CAP_PERFMON", "CAP_BPF"])
    status, said = run()
    assert status == Exit.NOT_PRIVILEGED
    assert "actplane: not enough privileges: got effective user id" in said
    assert "without CAP_PERFMON, CAP_BPF, expected root" in said
    assert "hint: run it through sudo" in said


def test_no_btf(monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    monkeypatch.setattr(btf_module, "VMLINUX_PATH", tmp_path / "vmlinux")
    btf_module.Btf.vmlinux.cache_clear()  # Another test may have read it.
    status, said = run()
    assert status == Exit.NO_BTF
    assert "actplane: no BTF: " in said
    assert "CONFIG_DEBUG_INFO_BTF" in said


def test_a_kernel_without_task_storage(kernel: FakeKernel, run: Callable[..., tuple[int, str]]) -> None:
    """Linux 5.10, say."""
    kernel.unknown_map_types = {MapType.BPF_MAP_TYPE_TASK_STORAGE}
    status, said = run()
    assert status == Exit.KERNEL_TOO_OLD
    assert "actplane: task storage (Linux 5.11 or newer)" in said
    assert "sessions need a newer kernel" in said


def test_a_module_list_without_bpf(
    kernel: FakeKernel, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """LSM programs load and attach there, and nobody asks them: the fake runs no program either."""
    listed = tmp_path / "lsm"
    listed.write_text("lockdown,capability,landlock\n")
    for module in (features, tiers):
        monkeypatch.setattr(module, "LSM_LIST", listed)
    status, said = run("--tier", "lsm")
    assert status == Exit.TIER_NOT_OFFERED
    assert "actplane: tier lsm: this kernel does not offer it" in said
    assert "no bpf" in said
    assert "hint: boot with `bpf` in the list of security modules" in said


def test_a_kernel_that_offers_no_tier(kernel: FakeKernel, run: Callable[..., tuple[int, str]]) -> None:
    kernel.verifier = lambda attr: (0, "") if attr.prog_type == ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT else (1, "")
    status, said = run()
    assert status == Exit.TIER_NOT_OFFERED
    assert "tier trace: this kernel does not offer it" in said


def test_a_clause_that_the_tier_cannot_enforce(
    kernel: FakeKernel, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "probe", lambda tier, features: features_yes())
    status, said = run("--tier", "trace", rule=BLOCK)
    assert status == Exit.NOT_ENFORCEABLE
    assert said.startswith('--rule:1:9: `block exec "id" if AGENT`: tier trace cannot enforce this')
    assert "--allow-degraded" in said


def features_yes() -> features.Finding:
    return features.Finding(features.Answer.YES)


def test_a_load_that_the_kernel_refuses(
    kernel: FakeKernel, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not btf_module.VMLINUX_PATH.exists():
        pytest.skip("needs this kernel's BTF: a policy's programs name its fields")
    monkeypatch.setattr(session, "kernel_types", btf_module.Btf.vmlinux)
    monkeypatch.setattr(tiers, "probe", lambda tier, features: features_yes())
    kernel.verifier = lambda attr: (errno.EACCES, "R1 invalid mem access 'scalar'\nprocessed 3 insns")
    status, said = run("--tier", "trace")
    assert status == Exit.LOAD_REFUSED
    assert "actplane: bpf(BPF_PROG_LOAD)" in said
    assert "R1 invalid mem access 'scalar'" in said


def test_a_program_that_the_mirror_refuses(
    kernel: FakeKernel, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise VerifyError(12, "r1 may be null", rule="pointer-null")

    monkeypatch.setattr(tiers, "probe", lambda tier, features: features_yes())
    monkeypatch.setattr(session.Engine, "load", refuse)
    status, said = run("--tier", "trace")
    assert status == Exit.MIRROR_REFUSED
    assert "actplane: insn 12: r1 may be null [pointer-null]" in said


def test_no_cgroup2(kernel: FakeKernel, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        def __enter__(self) -> Loaded:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def is_marked(self, pidfd: int) -> bool:
            return False

    monkeypatch.setattr(tiers, "probe", lambda tier, features: features_yes())
    monkeypatch.setattr(session.Engine, "load", lambda *arguments: Loaded())
    monkeypatch.setattr(session.SessionCgroup, "create", lambda name: own_directory("", "0::/"))
    status, said = run("--tier", "trace")
    assert status == Exit.NO_CGROUP
    assert "actplane: cgroup2 is not mounted" in said


@pytest.mark.parametrize(
    ("rule", "places"),
    [
        ('rule r: blok exec "x" if AGENT', ["--rule:1:9"]),
        ('rule r: kill exec "x" if (AGENT\nrule s: kill exce "y"', ["--rule:2:", "--rule:2:14"]),
        ('rule r: kill exec "x"', ["COMMAND"]),
        ("", ["COMMAND"]),
    ],
)
def test_policy_errors(run: Callable[..., tuple[int, str]], rule: str, places: list[str]) -> None:
    status, said = run(rule=rule)
    assert status == Exit.POLICY
    for place in places:
        assert place in said


def test_a_policy_file_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "--policy", str(tmp_path / "none.yaml"), "true"]) == Exit.POLICY
    assert "none.yaml: cannot read the policy file: No such file or directory" in capsys.readouterr().err


def test_sudo_variables_that_are_no_numbers(
    kernel: FakeKernel, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "1000; rm")
    status, said = run()
    assert status == Exit.FAILURE
    assert "SUDO_UID, SUDO_GID: got '1000; rm', None" in said


def test_the_status_of_every_kind_of_error() -> None:
    assert exit_of(CommandError("x", errno.ENOENT)) == Exit.NOT_FOUND
    assert exit_of(CommandError("x/y", errno.ENOTDIR)) == Exit.NOT_FOUND
    assert exit_of(CommandError("x", errno.EACCES)) == Exit.NOT_EXECUTABLE
    assert exit_of(CommandError("x", errno.EPERM)) == Exit.NOT_EXECUTABLE
    assert exit_of(PolicyError.at(None, "x")) == Exit.POLICY
    assert exit_of(KernelError("bpf(BPF_LINK_CREATE)", errno.EBUSY)) == Exit.LOAD_REFUSED
    assert exit_of(RejectedByKernel("bpf(BPF_PROG_LOAD)", errno.EINVAL, "log")) == Exit.LOAD_REFUSED
    assert exit_of(NoCgroup("x")) == Exit.NO_CGROUP


def test_what_cannot_be_executed_is_said_in_words() -> None:
    assert str(CommandError("gti", errno.ENOENT)) == "command not found: gti: no directory of PATH has it"
    assert str(CommandError("./x", errno.ENOENT)) == "command not found: ./x: No such file or directory"
    assert str(CommandError("/etc", errno.EACCES)) == "command not executable: /etc: Permission denied"
