"""From a policy to programs: the same each time, no more than needed, and honest about what a tier cannot do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actplane import dsl
from actplane.asm.insn import MapFd, MapValue
from actplane.asm.uapi import AttachType, MapType, ProgType
from actplane.codegen import layout
from actplane.codegen.compile import Compiled, compile_policy, weaknesses
from actplane.codegen.tier import Tier
from actplane.errors import PolicyError
from actplane.ir.policy import Policy

EVERYTHING = """
source SECRET = file "/secret/**"
source NET = endpoint "10."
source TOOL = exec "curl"
declassify SECRET by exec "redact"
rule all:
  block exec "git" "push" if AGENT unless after exec "pytest" exits 0 since write "/src/**"
  kill exec "rm" if SECRET or TOOL unless target "/usr/bin/rm"
  notify open file "/etc/**" if NET
  block write file "/protected/**" if AGENT
  block unlink file "/kept/**" if AGENT unless lineage-includes exec "make"
  block connect endpoint "*" if SECRET
  block recv endpoint "10.0.0.1" if AGENT
"""


def policy_of(text: str) -> Policy:
    return dsl.compile_policy(text, root="/work", resolve=None)


def compiled(text: str, tier: Tier = Tier.LSM) -> Compiled:
    return compile_policy(policy_of(text), tier)


def hooks(text: str, tier: Tier = Tier.LSM) -> set[str]:
    return {hook.program or hook.dispatcher for hook in compiled(text, tier).hooks}


@pytest.mark.parametrize("tier", list(Tier))
def test_the_same_policy_gives_the_same_programs(tier: Tier) -> None:
    one, other = compiled(EVERYTHING, tier), compiled(EVERYTHING, tier)
    assert one.object == other.object
    assert one.hooks == other.hooks


@pytest.mark.parametrize("tier", list(Tier))
def test_whatever_is_referred_to_is_there(tier: Tier) -> None:
    result = compiled(EVERYTHING, tier)
    programs = {program.name: program for program in result.object.programs}
    maps = {spec.name: spec for spec in result.object.maps}
    assert len(programs) == len(result.object.programs)
    used = {name for hook in result.hooks for name in (hook.dispatcher, hook.program) if name is not None}
    assert used == set(programs) == set(result.functions)
    for hook in result.hooks:
        if hook.prog_array is not None:
            assert maps[hook.prog_array].type is MapType.BPF_MAP_TYPE_PROG_ARRAY
            assert hook.program in programs
            assert programs[hook.dispatcher].attach_to == programs[hook.program].attach_to
    named = {
        insn.symbol.name
        for program in result.object.programs
        for insn in program.insns
        if isinstance(insn.symbol, (MapFd, MapValue))
    }
    assert named <= set(maps)
    assert {"tasks", "events", "session"} <= set(maps)


def test_only_the_hooks_that_a_policy_needs() -> None:
    always = {"task_alloc", "sched_process_exit", "ptrace_access_check", "file_ioctl", "file_ioctl_compat"}
    placed = always | {"sb_mount", "move_mount", "sb_pivotroot"}
    execs = always | {"bprm_check_security", "sched_process_exec"}
    assert hooks('rule r: kill exec "git" if AGENT') == execs
    assert hooks('rule r: block read file "/x" if AGENT') == placed | {"file_open"}
    assert hooks('rule r: block read file "**/.env" if AGENT') == placed | {"file_open"}
    assert hooks('rule r: block read file "**" if AGENT') == always | {"file_open"}
    assert hooks('rule r: kill exec "/usr/bin/git" if AGENT') == execs | placed
    writing = hooks('rule r: block write file "/x" if AGENT')
    assert {"file_open", "path_rename", "path_link", "path_unlink", "path_mkdir", "file_truncate"} <= writing
    assert "file_permission" not in writing
    connecting = hooks('rule r: block connect endpoint "10." if AGENT')
    assert {"socket_connect", "unix_stream_connect", "unix_may_send", "socket_sendmsg"} <= connecting
    assert "socket_recvmsg" not in connecting
    assert "socket_recvmsg" in hooks('rule r: block recv endpoint "10." if AGENT')
    flowing = hooks('source S = file "/s/**"\nrule r: block exec "x" if S and AGENT')
    assert {"file_permission", "mmap_file", "socket_sendmsg", "socket_recvmsg", "path_rename"} <= flowing


def test_the_tiers_attach_the_same_programs_otherwise() -> None:
    text = 'rule r:\n block exec "git" if AGENT\n block connect endpoint "10." if AGENT\n'
    lsm = {p.name: p for p in compiled(text, Tier.LSM).object.programs}
    fmod_ret = {p.name: p for p in compiled(text, Tier.FMOD_RET).object.programs}
    assert lsm["bprm_check_security"].prog_type is ProgType.BPF_PROG_TYPE_LSM
    assert fmod_ret["bprm_check_security"].attach_type is AttachType.BPF_MODIFY_RETURN
    assert fmod_ret["bprm_check_security"].attach_to == "security_bprm_check"
    assert fmod_ret["socket_connect"].attach_to == "security_socket_connect"
    trace = compiled(text, Tier.TRACE)
    assert {hook.kind for hook in trace.hooks} == {"tp_btf", "cgroup"}


def test_nothing_is_weak_on_the_lsm_tier() -> None:
    assert weaknesses(policy_of(EVERYTHING), Tier.LSM) == ()


def test_each_clause_that_a_tier_cannot_enforce_is_named_with_what_is_in_force() -> None:
    weak = {w.clause.text.split('"')[0].strip(): w for w in weaknesses(policy_of(EVERYTHING), Tier.TRACE)}
    assert set(weak) == {
        *("block exec", "kill exec", "notify open file", "block write file", "block unlink file"),
        *("block connect endpoint", "block recv endpoint"),
    }
    assert weak["block write file"].in_force == ""
    assert weak["block recv endpoint"].in_force == ""
    assert "SECRET cannot be followed" in weak["kill exec"].problem
    only_block = weaknesses(policy_of('rule r: block exec "git" if AGENT'), Tier.TRACE)
    assert [w.in_force for w in only_block] == ["kill, before the program's first instruction"]


def test_without_lsm_labels_do_not_travel_in_files() -> None:
    weak = weaknesses(policy_of(EVERYTHING), Tier.FMOD_RET)
    assert {w.in_force for w in weak} == {"only the reader has it"}
    assert weaknesses(policy_of('rule r: block write file "/x" if AGENT'), Tier.FMOD_RET) == ()


def test_what_a_tier_cannot_do_is_left_out_of_its_policy() -> None:
    result = compiled(EVERYTHING, Tier.TRACE)
    kept = {clause.operation.value for clause in result.policy.clauses}
    assert kept == {"exec"}
    assert {source.kind.value for source in result.policy.sources} == {"exec"}


def test_a_policy_that_is_too_large_is_refused_before_it_is_compiled() -> None:
    policy = policy_of('rule r: kill exec "git" if AGENT')
    with pytest.raises(PolicyError, match=f"too many clauses: got {layout.MAX_CLAUSES + 1}"):
        compile_policy(replace(policy, clauses=policy.clauses * (layout.MAX_CLAUSES + 1)), Tier.LSM)


def test_too_many_gates_are_refused() -> None:
    text = "rule r:\n" + "".join(f'  kill exec "x" if AGENT unless after exec "g{n}"\n' for n in range(257))
    with pytest.raises(PolicyError, match="too many gates: got 257, expected at most 256"):
        compiled(text)


def test_what_is_executed_to_no_avail_does_not_grow_with_rules() -> None:
    """The programs grow, but the way through them of an event that concerns no rule is the test of one summary."""
    few = compiled('rule r: kill exec "git" if AGENT')
    many = compiled("rule r:\n" + "".join(f'  kill exec "g{n}" if AGENT\n' for n in range(500)))
    by_name = {program.name: len(program.insns) for program in few.object.programs}
    for program in many.object.programs:
        if program.name.startswith("enter_") or program.name in ("task_alloc", "sched_process_exit"):
            assert len(program.insns) == by_name[program.name]
