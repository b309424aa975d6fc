"""Labels follow data: from a file into processes, files, pipes and sockets, and nowhere else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from actplane.codegen.tier import Tier
from tests.kernel.enforcing import ALLOWED, DENIED, Outcome, binary, enforce, require_tier, words

POLICY = """
source SECRET = file "{work}/secret/**"
declassify SECRET by exec "cleaner"
rule guard: block exec "guarded" if SECRET
rule locked: block read file "**/locked" if AGENT
rule out: block connect endpoint "10.0.0.1" if SECRET
"""

HOLDS = words("""secret_read read_before_the_fork read_by_another_thread read_while_a_thread_waits_to_fork
    kept_by_exec through_a_file through_two_files through_a_file_that_is_renamed through_a_copy_by_another_program
    secret_under_a_hard_link secret_renamed secret_through_a_symlink opened_before_it_was_written
    written_through_an_older_descriptor inherited_descriptor_written mapped_for_reading mapped_for_writing
    copied_in_the_kernel sent_to_a_file executed through_a_pipe through_a_pipe_of_a_shell
    through_a_pipe_whose_reader_waits through_a_fifo through_a_stream_pair through_a_datagram_pair
    through_a_pair_as_files read_by_a_thread_whose_leader_has_ended spliced_out_of_a_socket
    sent_into_a_socket_by_the_kernel through_a_pair_whose_reader_waits through_a_unix_server through_the_network
    descriptor_passed_on""")
DOES_NOT_HOLD = words("""nothing_read neighbour_read read_by_a_child read_after_the_fork declassified
    opened_before_it_was_written_and_not_read denied_read_gives_nothing pipe_not_read dev_null a_terminal a_folder
    an_event_descriptor""")

UNSEEN = words("""mapped_before_the_label memory_shared_by_a_fork spliced_into_a_pipe through_a_terminal
    through_a_message_queue""")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    require_tier(Tier.LSM)
    folder = tmp_path_factory.mktemp("f")
    work = folder / "work"
    for name in ("secret", "free"):
        (work / name).mkdir(parents=True)
    for name in ("secret/key", "secret/linked", "secret/renamed", "secret/locked", "free/file"):
        (work / name).write_text("secret")
    (work / "free/to-secret").symlink_to("../secret/key")
    binary(work / "bin/guarded")
    binary(work / "bin/cleaner", "sh")
    return enforce(folder, POLICY.replace("{work}", str(work)), "flows"), work


def test_every_trial_is_looked_at(session: tuple[Outcome, Path]) -> None:
    assert sorted(session[0].results) == sorted([*HOLDS, *DOES_NOT_HOLD, *UNSEEN])


@pytest.mark.parametrize("trial", HOLDS)
def test_the_label_has_followed_the_data(session: tuple[Outcome, Path], trial: str) -> None:
    assert session[0].results[trial] == DENIED


@pytest.mark.parametrize("trial", DOES_NOT_HOLD)
def test_the_label_is_not_where_the_data_is_not(session: tuple[Outcome, Path], trial: str) -> None:
    assert session[0].results[trial] == ALLOWED


@pytest.mark.parametrize("trial", UNSEEN)
def test_bytes_that_no_hook_sees_go_without_their_label(session: tuple[Outcome, Path], trial: str) -> None:
    """Known gaps. A test that fails here means that one of them has been closed: move the trial up."""
    assert session[0].results[trial] == ALLOWED


def test_the_label_is_in_the_events(session: tuple[Outcome, Path]) -> None:
    assert all(event["labels"] == ["SECRET", "AGENT"] for event in session[0].of_rule("guard"))


def test_a_process_outside_of_the_session_is_not_concerned(session: tuple[Outcome, Path]) -> None:
    work = session[1]
    assert (work / "secret/key").read_text() == (work / "free/one").read_text() == "secret"
    assert subprocess.run([work / "bin/guarded"]).returncode == 0
