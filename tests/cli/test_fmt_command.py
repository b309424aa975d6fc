"""`actplane fmt`: printing, writing, checking."""

from __future__ import annotations

import pytest

from actplane.cli import main

UNTIDY = 'policy: |\n  rule r : kill   exec "x"\n'
TIDY = 'policy: |\n  rule r:\n    kill exec "x"\n'


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "actplane.yaml"
    path.write_text(UNTIDY)
    return path


def test_the_canonical_form_is_printed_and_the_file_left(file, capsys):
    assert main(["fmt"]) == 0
    assert capsys.readouterr().out == TIDY
    assert file.read_text() == UNTIDY


def test_it_is_written_on_demand(file, capsys):
    assert main(["fmt", "--write"]) == 0
    assert (file.read_text(), capsys.readouterr().out) == (TIDY, "")


def test_the_exit_status_says_whether_anything_would_change(file, capsys):
    assert main(["fmt", "--check"]) == 1
    file.write_text(TIDY)
    assert main(["fmt", "--check"]) == 0
    assert capsys.readouterr().out == ""


def test_text_on_the_command_line_is_formatted(capsys):
    assert main(["fmt", "--rule", 'rule r : kill exec "x"']) == 0
    assert capsys.readouterr().out == 'rule r:\n  kill exec "x"\n'


def test_a_policy_with_mistakes_is_refused(capsys):
    assert main(["fmt", "--rule", 'rule r: kil exec "x"']) != 0
    assert "did you mean 'kill'?" in capsys.readouterr().err
