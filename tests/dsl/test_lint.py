"""The lint that looks at files; the others have cases."""

from __future__ import annotations

import pytest

from actplane.dsl import tree_lint
from actplane.dsl.parser import parse
from actplane.source import Source


def unmatched(text, root):
    tree, problems = parse(Source("p", text))
    assert problems == []
    return [item.span.text for item in tree_lint.lint_tree([tree], root)]


@pytest.fixture
def tree(tmp_path):
    for name in ("src/a.py", "docs/deep/b.md", ".git/objects/c"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_patterns_that_match_nothing_are_named_where_they_stand(tree):
    text = """
    source A = file "src/**"
    source B = file "scr/**"
    source C = exec "nothing"
    rule r:
      block write file "**/*.md" unless target "*.rst"
      block write file "/nowhere/**"
      block read file "{docs,doc}/**" unless after exec "x" since write "lib/*" or read "a.py" or exec "none"
      block connect endpoint "10."
    """
    assert unmatched(text, tree) == ['"scr/**"', '"*.rst"', '"lib/*"']


def test_what_git_keeps_is_not_searched(tree):
    assert unmatched('source A = file "objects"', tree) == ['"objects"']


def test_nothing_is_said_about_a_tree_too_large_to_search(tree, monkeypatch):
    monkeypatch.setattr(tree_lint, "MAX_PATHS", 2)
    assert unmatched('source A = file "none"', tree) == []
