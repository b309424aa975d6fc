"""Gates: what opens them, what does not, and what closes them again."""

from __future__ import annotations

import pytest

from actplane.codegen.tier import Tier
from tests.kernel.enforcing import ALLOWED, Outcome, binary, enforce, require_tier, words

pytestmark = pytest.mark.fmod_ret

POLICY = """
rule gates:
  block exec "plain" if AGENT unless target not "{work}/denied/*"
  block exec "after-plain" if AGENT unless after exec "plain"
  block exec "plain-itself" if AGENT unless after exec "plain-itself"
  block exec "after-zero" if AGENT unless after exec "zero" exits 0
  block exec "after-became" if AGENT unless after exec "became" exits 0
  block exec "after-seven" if AGENT unless after exec "seven" exits 7
  block exec "after-nonzero" if AGENT unless after exec "nonzero" exits nonzero
  block exec "after-signalled" if AGENT unless after exec "signalled" exits nonzero
  block exec "after-threaded" if AGENT unless after exec "threaded" exits 0
  block exec "after-spawned" if AGENT unless after exec "spawned" exits 0
  block exec "after-checked" if AGENT unless after exec "checked" since exec "changer"
  block exec "after-selfish" if AGENT unless after exec "selfish" since exec "selfish"
  block exec "after-circle" if AGENT unless after exec "circle" since exec "after-circle"
  block exec "after-tested" if AGENT unless after exec "tested" since write "{work}/src/**"
  block exec "after-reviewed" if AGENT unless after exec "reviewed" since read "{work}/inbox/**" or exec "never"
rule locked: block write file "**/locked" if AGENT
"""

GATES = words("plain zero became seven nonzero signalled threaded spawned checked selfish circle tested reviewed")
SHELLS = words("zero became seven nonzero signalled threaded spawned")

STOPPED = words("""plain_before plain_by_argv0 plain_that_does_not_exist plain_that_was_denied zero_before
    zero_with_another_status zero_by_a_signal zero_of_a_child_only zero_while_it_runs seven_with_zero
    nonzero_with_zero stale_by_exec stale_by_itself stale_by_the_guarded""")

PASSES = words("""plain_after plain_ever_after plain_itself zero_after_becoming_another zero_after seven_after
    nonzero_after nonzero_by_a_signal zero_executed_by_a_thread zero_in_another_process_group
    stale_by_exec_fresh stale_by_exec_again_fresh stale_by_exec_that_fails""")

STALE_BY_FILES = words("""stale_by_write stale_by_create stale_by_rename
    stale_by_rename_of_the_folder stale_by_unlink stale_by_truncate stale_by_read
    stale_by_write_through_an_open_file""")
FRESH_WITH_FILES = words("""stale_by_write_fresh not_stale_by_read not_stale_by_another_file
    not_stale_by_a_denied_write""")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    require_tier()
    folder = tmp_path_factory.mktemp("gates")
    work = folder / "work"
    for gate in GATES:
        binary(work / "bin" / gate, "sh" if gate in SHELLS else "true")
        binary(work / "bin" / f"after-{gate}")
    for name in ("bin/plain-itself", "bin/other", "bin/changer", "denied/plain"):
        binary(work / name)
    for name in ("data/plain", "src/code", "src/locked", "inbox/mail"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text("text")
    (work / "data/plain").chmod(0o755)
    return enforce(folder, POLICY.replace("{work}", str(work)), "gates")


@pytest.mark.parametrize("trial", STOPPED)
def test_a_gate_that_is_not_passed_stops(session: Outcome, trial: str) -> None:
    assert session.results[trial] == session.blocked_exec


@pytest.mark.parametrize("trial", PASSES)
def test_a_gate_that_is_passed_lets_pass(session: Outcome, trial: str) -> None:
    assert session.results[trial] == ALLOWED


@pytest.mark.parametrize("trial", STALE_BY_FILES)
def test_an_access_to_a_file_closes_a_gate(session: Outcome, trial: str) -> None:
    require_tier(Tier.LSM, Tier.FMOD_RET)
    assert session.results[trial] == session.blocked_exec


@pytest.mark.parametrize("trial", FRESH_WITH_FILES)
def test_other_accesses_leave_a_gate_open(session: Outcome, trial: str) -> None:
    require_tier(Tier.LSM, Tier.FMOD_RET)
    assert session.results[trial] == ALLOWED


def test_every_trial_is_looked_at(session: Outcome) -> None:
    mine = [*STOPPED, *PASSES, *STALE_BY_FILES, *FRESH_WITH_FILES]
    assert sorted(session.results) == sorted(mine)
