"""What the probes answer, on whatever kernel runs, and on the guests, whose answers are known."""

from __future__ import annotations

import os

import pytest

from actplane.loader.features import LSM_LIST, Answer, Feature, Features

SERIES = os.environ.get("ACTPLANE_GUEST")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root: bpf() needs privileges")

# Measured. What is not named here is there.
_CGROUP_HELPER = {Feature.CGROUP_TASK_STORAGE: Answer.NO}
_REGISTERS = {Feature.REGISTER_WRITES: Answer.NO}
_SLEEPABLE_SLOTS = {Feature.LSM_SLEEPABLE_TAIL_CALL: Answer.NO}
MISSING = {
    "5.10": {
        Feature.TASK_STORAGE: Answer.NO,
        Feature.LSM_SLEEPABLE: Answer.NO,
        # The canary keeps its mark in task storage, so nothing can be said.
        Feature.LSM_FIRES: Answer.UNKNOWN,
        Feature.FMOD_RET_FIRES: Answer.UNKNOWN,
        **_CGROUP_HELPER,
        **_REGISTERS,
        **_SLEEPABLE_SLOTS,
    },
    "6.1": _CGROUP_HELPER | _REGISTERS | _SLEEPABLE_SLOTS,
    "6.12": _CGROUP_HELPER | _REGISTERS | _SLEEPABLE_SLOTS,
    "7.2": {},
}
# Inodes have room for storage only where the bpf LSM asked for it at boot.
_NEEDS_BPF_IN_LSM = {Feature.LSM_FIRES, Feature.INODE_STORAGE}


@pytest.fixture(scope="module")
def features() -> Features:
    return Features()


@pytest.mark.boot
@pytest.mark.parametrize("feature", Feature, ids=lambda feature: feature.name)
def test_what_is_not_yes_has_a_reason(features: Features, feature: Feature):
    found = features.probe(feature)
    assert bool(found.reason) == (found.answer is not Answer.YES)


@pytest.mark.boot
@pytest.mark.skipif(SERIES is None, reason="knows the answers of the guests only: see `make test-vm`")
@pytest.mark.parametrize("feature", Feature, ids=lambda feature: feature.name)
def test_the_answers_are_those_measured(features: Features, feature: Feature):
    expected = MISSING[SERIES].get(feature, Answer.YES)
    if feature in _NEEDS_BPF_IN_LSM and "bpf" not in LSM_LIST.read_text().split(","):
        expected = Answer.NO
    found = features.probe(feature)
    assert found.answer is expected, f"{feature.value}: {found.answer.value}: {found.reason}"
