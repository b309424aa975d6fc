"""Probes answer yes, no, or unknown with a reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from actplane.asm.program import Program
from actplane.asm.uapi import AttachType, Command, HelperId, MapType, ProgType
from actplane.errors import UnsupportedFeature
from actplane.loader import features as features_module
from actplane.loader.attributes import ProgLoad
from actplane.loader.btf import Btf
from actplane.loader.features import Answer, Feature, Features
from tests.fake.kernel import FakeKernel, Verdict
from tests.fake.types import small_kernel

LSM, TRACING = ProgType.BPF_PROG_TYPE_LSM, ProgType.BPF_PROG_TYPE_TRACING
RAW_TRACEPOINT = ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT
LIKE = Program("like", TRACING, (), AttachType.BPF_TRACE_RAW_TP, "sched_process_exec")
PROOFS = {Feature.LSM_FIRES, Feature.FMOD_RET_FIRES}


def refusing(*types: ProgType, error: int = errno.EPERM, log: str = "") -> Features:
    def verifier(attr: ProgLoad) -> Verdict:
        return (error, log) if attr.prog_type in types else (0, "")

    return Features(FakeKernel(verifier), small_kernel)


def test_a_kernel_that_loads_everything_has_everything_but_proof() -> None:
    features = refusing()
    found = {feature: features.probe(feature) for feature in Feature}
    assert {feature for feature, finding in found.items() if finding} == set(Feature) - PROOFS
    # The canaries were attached, and the fake runs no programs; that is what is said.
    for feature in PROOFS:
        assert found[feature].answer is Answer.NO
        assert "attached, and not obeyed" in found[feature].reason


def test_a_canary_that_bites_is_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()

    def getpgid(pid: int) -> int:
        is_marked = any(made.elements for made in kernel.maps.values())
        if pid == os.getpid() and kernel.links and is_marked:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return 0

    monkeypatch.setattr(os, "getpgid", getpgid)
    assert Features(kernel, small_kernel).lsm_hook_fires()


def test_a_list_without_bpf_explains_why_nothing_fires(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    modules = tmp_path / "lsm"
    modules.write_text("lockdown,capability,landlock")
    monkeypatch.setattr(features_module, "LSM_LIST", modules)
    assert "(lockdown,capability,landlock) has no bpf" in refusing().lsm_hook_fires().reason
    modules.write_text("lockdown,capability,bpf")
    assert "has no bpf" not in refusing().lsm_hook_fires().reason


def test_what_this_kernel_refuses_while_others_load_is_no() -> None:
    finding = refusing(LSM).probe(Feature.LSM)
    assert finding.answer is Answer.NO
    assert finding.reason.endswith("EPERM: Operation not permitted; this kernel refuses it, while other programs load")


def test_what_nobody_may_load_is_unknown() -> None:
    finding = refusing(LSM, RAW_TRACEPOINT).probe(Feature.LSM)
    assert finding.answer is Answer.UNKNOWN
    assert "run as root" in finding.reason
    assert not finding


@pytest.mark.parametrize(
    ("error", "log", "answer"),
    [
        (errno.EINVAL, "", Answer.NO),
        (errno.EACCES, "bpf_lsm_bprm_check_security is not sleepable\nprocessed 0 insns\n", Answer.NO),
        (errno.ENOMEM, "", Answer.UNKNOWN),
        (errno.EBUSY, "", Answer.UNKNOWN),
    ],
)
def test_errors_are_told_apart(error: int, log: str, answer: Answer) -> None:
    finding = refusing(LSM, error=error, log=log).probe(Feature.LSM_SLEEPABLE)
    assert finding.answer is answer
    assert not log or finding.reason == "the verifier says: bpf_lsm_bprm_check_security is not sleepable"


def test_only_yes_and_no_are_remembered() -> None:
    kernel = FakeKernel()
    features = Features(kernel, small_kernel)
    for at in range(2):
        kernel.fail(Command.BPF_PROG_LOAD, errno.ENOMEM, at)
    assert features.probe(Feature.LSM).answer is Answer.UNKNOWN
    assert features.probe(Feature.LSM).answer is Answer.YES
    calls = len(kernel.calls)
    assert features.probe(Feature.LSM).answer is Answer.YES
    assert len(kernel.calls) == calls


def test_a_kernel_without_task_storage_cannot_be_proven() -> None:
    kernel = FakeKernel()
    kernel.unknown_map_types.add(MapType.BPF_MAP_TYPE_TASK_STORAGE)
    features = Features(kernel, small_kernel)
    storage = features.probe(Feature.TASK_STORAGE)
    assert storage.answer is Answer.NO
    assert "BPF_MAP_TYPE_TASK_STORAGE (Linux 5.11 or newer)" in storage.reason
    finding = features.lsm_hook_fires()
    assert finding.answer is Answer.UNKNOWN
    assert "the canary needs task storage" in finding.reason
    assert features.probe(Feature.CGROUP_TASK_STORAGE).answer is Answer.NO
    assert features.probe(Feature.LSM).answer is Answer.YES


def test_a_kernel_without_its_types_has_no_hooks() -> None:
    def read_btf() -> Btf:
        raise UnsupportedFeature("the kernel's own types (BTF)", "5.4")

    finding = Features(FakeKernel(), read_btf).probe(Feature.TP_BTF)
    assert finding.answer is Answer.NO
    assert "BTF" in finding.reason


@pytest.mark.parametrize(
    ("log", "answer"),
    [
        ("0: (85) call bpf_d_path#147\nR1 !read_ok\nprocessed 1 insns\n", Answer.YES),
        ("R1 type=ctx expected=scalar\n", Answer.YES),
        ("arg#0 expected pointer to stack\n", Answer.YES),
        ("unknown func bpf_d_path#147\nprocessed 1 insns\n", Answer.NO),
        ("program of this type cannot use helper bpf_d_path#147\n", Answer.NO),
        ("invalid func unknown#147\n", Answer.NO),
        ("helper call is not allowed in probe\n", Answer.NO),
    ],
)
def test_a_helper_is_known_by_how_its_call_is_refused(log: str, answer: Answer) -> None:
    finding = refusing(TRACING, error=errno.EINVAL, log=log).helper(HelperId.bpf_d_path, LIKE)
    assert finding.answer is answer


def test_a_helper_that_takes_no_arguments_just_loads() -> None:
    assert refusing().helper(HelperId.bpf_ktime_get_ns, LIKE)
