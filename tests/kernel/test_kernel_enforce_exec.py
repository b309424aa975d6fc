"""Executing programs under a policy: which execs are stopped, whatever way they are made, and what is said of them."""

from __future__ import annotations

import errno
import os

import pytest

from actplane.codegen.tier import Tier
from tests.kernel.enforcing import ALLOWED, KILLED, Outcome, binary, enforce, require_tier, words

pytestmark = pytest.mark.fmod_ret

POLICY = """
source MARKED = exec "marker"
source CHOSEN = exec "chooser"
declassify MARKED by exec "cleaner"
endorse BLESSED by exec "blesser"

rule names:
  block exec "deny" if AGENT
  block exec "{work}/bin/fixed" if AGENT
  block exec "{work}/static/fixed" if AGENT
  block exec "memfd:hidden" if AGENT
  block exec "deploy" if AGENT
  block exec "{work}/bin/fixed-script" if AGENT

rule arguments:
  block exec "tool" "push" if AGENT
  block exec "tool" "begin*end" if AGENT
  block exec "compare" "push" if AGENT

rule labels:
  block exec "needs-no-mark" if MARKED
  block exec "needs-blessing" if not BLESSED
  block exec "needs-not-both" if BLESSED and MARKED or not AGENT or CHOSEN

rule conditions:
  block exec "multi-*" unless target "multi-ok"
  block exec "inverse-*" unless target not "{work}/other/*"
  block exec "needs-wrapper" unless lineage-includes exec "wrapper"
  block exec "own-wrapper" unless lineage-includes exec "own-wrapper"

rule first: notify exec "thrice"
  because "it is noted"
rule second: block exec "thrice" "now" if AGENT
  because "it is forbidden"
rule third: kill exec "thrice" if AGENT
  because "it is deadly" instead "do nothing"
rule deadly: kill exec "killme" if AGENT
rule noticed: notify exec "seen" if AGENT
rule noticed-long: notify exec "seen-long"
rule noticed-odd: notify exec "seen-odd"
"""

COPIES = (
    *("bin/deny", "bin/fixed", "other/fixed", "bin/innocent", "bin/copy-of-deny", "doomed/deny", "bin/tool"),
    *("bin/needs-no-mark", "bin/needs-blessing", "bin/needs-not-both", "bin/multi-bad", "bin/multi-ok"),
    *("bin/inverse-a", "other/inverse-b", "bin/needs-wrapper", "bin/own-wrapper", "bin/thrice", "bin/killme"),
    *("bin/seen", "bin/seen-long", "bin/seen-odd"),
)
SHELLS = ("marker", "chooser", "cleaner", "blesser", "wrapper")

STOPPED = words("""by_name by_path through_a_relative_path symlink_to_a_denied_program symlink_with_a_denied_name
    denied_name_as_argv0 denied_path_as_argv0 another_name_as_argv0 hard_linked_under_a_denied_name
    through_proc_self_root in_a_chroot by_descriptor by_descriptor_path_only unlinked_before_it_runs from_memory
    script_by_name script_with_a_denied_interpreter argument argument_later argument_beyond_128_bytes
    argument_beyond_4_kib argument_after_5000_others argument_that_is_long_itself empty_argv from_a_thread
    after_a_thread_has_executed vforked label_inherited_by_fork forked_by_a_thread
    spawned in_a_session_of_its_own orphaned made_a_sibling label_of_the_executed
    label_kept_by_exec declassified_by_a_child declassified_by_argv0 not_endorsed both_labels the_alternative
    not_exempt exempt_by_argv0 caught_inside outside_the_lineage lineage_by_argv0 lineage_of_a_sibling""")

PASSES = words("""allowed same_name_elsewhere copied_under_another_name from_allowed_memory other_arguments
    argument_of_another_program argument_as_argv0 arguments_as_long_as_a_piece without_the_label
    label_not_given_to_the_parent label_by_argv0 declassified endorsed one_of_both_labels exempt
    only_exempt_outside in_the_lineage in_its_own_lineage noticed noticed_with_odd_bytes
    noticed_with_many_arguments""")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    require_tier()
    folder = tmp_path_factory.mktemp("execs")
    work = folder / "work"
    for name in COPIES:
        binary(work / name)
    for name in SHELLS:
        binary(work / "bin" / name, "sh")
    binary(work / "bin/compare", "test")
    binary(work / "static/fixed", "busybox")
    for name, to in (
        ("bin/link-to-deny", "deny"),
        ("links/deny", "../bin/innocent"),
        ("bin/link-to-deploy", "deploy"),
    ):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).symlink_to(to)
    (work / "hard").mkdir()
    os.link(work / "bin/innocent", work / "hard/deny")
    for name, interpreter in (("deploy", "/bin/sh"), ("fixed-script", "/bin/sh"), ("needs-deny", work / "bin/deny")):
        (work / "bin" / name).write_text(f"#!{interpreter}\nexit 0\n")
        (work / "bin" / name).chmod(0o755)
    (work / "data").mkdir()
    (work / "data/innocent").write_text("no program")
    (work / "data/innocent").chmod(0o755)
    return enforce(folder, POLICY.replace("{work}", str(work)), "execs")


@pytest.mark.parametrize("trial", STOPPED)
def test_an_exec_that_a_clause_names_does_not_happen(session: Outcome, trial: str) -> None:
    assert session.results[trial] == session.blocked_exec


@pytest.mark.parametrize("trial", PASSES)
def test_an_exec_that_no_clause_names_happens(session: Outcome, trial: str) -> None:
    assert session.results[trial] == ALLOWED


OTHERS = words("""script_through_a_symlink script_by_relative_path argv_changed_by_a_thread that_does_not_exist
    that_is_no_program all_three_effects killed""")


def test_every_trial_is_looked_at(session: Outcome) -> None:
    assert sorted(session.results) == sorted([*STOPPED, *PASSES, *OTHERS])


def test_a_script_is_known_by_its_own_path_where_its_exec_is_seen_before_the_interpreter(session: Outcome) -> None:
    """When an exec has committed its file is the interpreter; of the script only the name as called is left."""
    expected = ALLOWED if session.tier is Tier.TRACE else session.blocked_exec
    assert session.results["script_through_a_symlink"] == expected
    assert session.results["script_by_relative_path"] == expected


def test_a_thread_that_rewrites_arguments_does_not_get_a_forbidden_one_executed(session: Outcome) -> None:
    assert session.results["argv_changed_by_a_thread"] == 0


def test_an_exec_that_fails_anyway_fails_as_it_would(session: Outcome) -> None:
    assert session.results["that_does_not_exist"] == errno.ENOENT
    assert session.results["that_is_no_program"] == errno.ENOEXEC
    assert not [event for event in session.events if "nowhere" in str(event["target"])]


def test_the_strongest_effect_wins_and_all_are_reported(session: Outcome) -> None:
    assert session.results["killed"] == session.results["all_three_effects"] == KILLED
    events = [event for event in session.events if str(event["target"]).endswith("/thrice")]
    assert [(e["rule"], e["effect"], e["action"], e["reason"]) for e in events] == [
        ("third", "kill", "killed", "it is deadly"),
        ("second", "block", "killed", "it is forbidden"),
        ("first", "notify", "killed", "it is noted"),
    ]
    assert events[0]["instead"] == "do nothing"


def test_what_is_only_noticed_is_said_once_with_all_its_arguments(session: Outcome) -> None:
    [event] = session.of_rule("noticed")
    assert event["action"] == "notified"
    assert event["argv"][1:] == ["--flag", "caf\u00e9", "a b", ""]
    assert event["exe"] == event["target"] == event["argv"][0]
    assert event["labels"] == ["AGENT"]
    assert not event["argv_is_cut"]
    [long] = session.of_rule("noticed-long")
    assert long["argv_is_cut"]
    assert long["argv"][1:60] == [f"argument-{n}" for n in range(59)]
    [odd] = session.of_rule("noticed-odd")
    assert odd["argv"][:2] == ["\\xff\n", "\x1b[2J"]
    assert bytes.fromhex(odd["hex"]["argv"][0]) == b"\xff\n"
    assert "\x1b[2J" not in session.stderr


def test_events_name_the_process_and_its_parent(session: Outcome) -> None:
    [event] = session.of_rule("noticed")
    others = session.of_rule("noticed-long") + session.of_rule("noticed-odd")
    assert all(other["pid"] != event["pid"] != other["ppid"] for other in others)
    assert event["tid"] == event["pid"]
    assert event["ppid"] not in (0, 1, event["pid"])
    labels = {tuple(event["labels"]) for event in session.of_rule("labels")}
    assert ("MARKED", "AGENT") in labels
    assert ("MARKED", "BLESSED", "AGENT") in labels
    assert ("CHOSEN", "AGENT") in labels


def test_nothing_was_stopped_because_it_could_not_be_judged(session: Outcome) -> None:
    assert [event for event in session.events if event["rule"] is None] == []
