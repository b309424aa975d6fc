"""Files under a policy: what is denied does not happen at all, whatever way it is tried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actplane.codegen.tier import Tier
from tests.kernel.enforcing import ALLOWED, DENIED, KILLED, Outcome, binary, enforce, require_tier, words

pytestmark = pytest.mark.fmod_ret

POLICY = """
rule writing: block write file "{work}/protected/**" if AGENT
  because "it is protected"
rule reading: block read file "{work}/secret/**" if AGENT
rule opening: block open file "{work}/closed/**" if AGENT
rule removing: block unlink file "{work}/kept/**" if AGENT
rule locks: block write file "**/*.lock" unless target "{work}/exempt/**"
rule settings: block write file "**/.git/config" if AGENT
rule deadly: kill write file "**/deadly" if AGENT
rule noticed: notify open file "**/seen*" if AGENT
"""

DENIED_WRITES = words("""write_existing write_and_read_existing append create create_deep create_in_a_nameless_way
    truncate_by_opening_for_reading truncate rename_away rename_into exchange rename_the_folder rename_a_folder_above
    rename_a_folder_to_it rename_a_folder_that_lies_anywhere exchange_the_folder_for_a_file link_away
    link_into symlink_into mkdir mknod mknod_of_a_file unlink_is_a_write rmdir_is_a_write through_a_symlink
    through_a_symlinked_folder relative
    below_a_descriptor through_proc_self_root reopened_from_a_descriptor in_a_chroot names_with_odd_bytes
    without_the_exemption""")
DENIED_ELSE = words("""read_secret read_and_write_secret execute_secret open_for_reading open_for_writing remove
    remove_folder read_secret_in_a_folder_that_is_read longer_than_can_be_judged""")
PASSES = words("""read_protected map_protected_privately write_secret look_without_opening write_beside
    with_the_exemption rename_is_no_removal rename_another_folder truncate_by_descriptor_elsewhere dev_null noticed
    noticed_with_an_odd_name long_but_possible""")
LEVELS_TOO_DEEP = 20


def make_deep(folder: Path) -> None:
    """Make folders whose path no system call can name, with a file at the end."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(LEVELS_TOO_DEEP):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    require_tier(Tier.LSM, Tier.FMOD_RET)
    folder = tmp_path_factory.mktemp("files")
    work = folder / "work"
    for name in ("protected/folder", "protected/empty", "secret/folder", "closed", "kept/empty", "free/.git", "exempt"):
        (work / name).mkdir(parents=True)
    (work / "protected-not").mkdir()
    for name in ("protected/file", "secret/file", "closed/file", "kept/file", "kept/other", "free/file", "free/seen"):
        (work / name).write_text("as it was")
    (work / "free/to-protected").symlink_to("../protected/file")
    (work / "free/folder-to-protected").symlink_to("../protected")
    binary(work / "secret/program")
    (work / "free/deep").mkdir()
    make_deep(work / "free/deep")
    return enforce(folder, POLICY.replace("{work}", str(work)), "files"), work


def test_every_trial_is_looked_at(session: tuple[Outcome, Path]) -> None:
    assert sorted(session[0].results) == sorted([*DENIED_WRITES, *DENIED_ELSE, *PASSES, "killed_before_it_writes"])


@pytest.mark.parametrize("trial", [*DENIED_WRITES, *DENIED_ELSE])
def test_what_a_clause_names_is_denied(session: tuple[Outcome, Path], trial: str) -> None:
    assert session[0].results[trial] == DENIED


@pytest.mark.parametrize("trial", PASSES)
def test_what_no_clause_names_is_allowed(session: tuple[Outcome, Path], trial: str) -> None:
    assert session[0].results[trial] == ALLOWED


def test_nothing_has_changed_on_disk(session: tuple[Outcome, Path]) -> None:
    work = session[1]
    assert sorted(path.name for path in (work / "protected").iterdir()) == ["empty", "file", "folder"]
    assert list((work / "protected/folder").iterdir()) == []
    assert (work / "protected/file").read_text() == "as it was"
    assert (work / "protected/file").stat().st_nlink == 1
    assert (work / "kept/file").exists()
    assert (work / "kept/empty").exists()
    assert not (work / "free/deadly").exists()
    assert not (work / "free/x.lock").exists()
    assert not (work / "elsewhere").exists()
    assert (work / "free/file").read_text() == "as "


def test_a_kill_ends_the_process_before_it_writes(session: tuple[Outcome, Path]) -> None:
    assert session[0].results["killed_before_it_writes"] == KILLED
    assert [event["action"] for event in session[0].of_rule("deadly")] == ["killed"]


def test_an_event_says_what_was_tried(session: tuple[Outcome, Path]) -> None:
    outcome, work = session
    first = outcome.of_rule("writing")[0]
    assert (first["op"], first["effect"], first["action"]) == ("write", "block", "blocked")
    assert first["target"] == str(work / "protected/file")
    assert first["reason"] == "it is protected"
    assert Path(first["exe"]).name.startswith("python")
    assert "tests.kernel.trials.files" in first["argv"]
    targets = {event["target"] for event in outcome.of_rule("writing")}
    assert str(work / "protected/folder/new") in targets
    assert str(work / "protected/new\nline") in targets
    plain, odd = outcome.of_rule("noticed")
    assert plain["target"] == str(work / "free/seen")
    assert bytes.fromhex(odd["hex"]["target"]).endswith(b"/free/seen\n\xff")


def test_what_is_too_long_to_be_judged_is_refused_and_says_so(session: tuple[Outcome, Path]) -> None:
    [event] = [event for event in session[0].events if event["rule"] is None]
    assert event["action"] == "blocked"
    assert "longer than can be judged" in event["reason"]
