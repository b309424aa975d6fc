"""The canonical form: comments, and policies inside YAML files."""

from __future__ import annotations

import pytest

from actplane.dsl.files import read_policy_file
from actplane.dsl.formatter import format_file, format_policy
from actplane.errors import PolicyError
from actplane.source import Source


def test_comments_stay_where_they_belong():
    text = """\
# first
source A = file "a"   # why A
   # before the rule

rule r: # about the rule
# about the clause
kill exec # inside
  "x" if A # behind
# last
"""
    assert (
        format_policy(Source("p", text))
        == """\
# first
source A = file "a"  # why A

# before the rule
rule r:  # about the rule
  # about the clause
  # inside
  kill exec "x" if A  # behind
# last
"""
    )


def test_a_wrong_policy_is_not_formatted():
    with pytest.raises(PolicyError, match="unknown effect 'blok'"):
        format_policy(Source("p", 'rule r: blok exec "x"'))


def test_blocks_of_a_file_are_formatted_and_the_rest_is_left(tmp_path):
    path = tmp_path / "actplane.yaml"
    path.write_text(
        """\
# kept
rules:
  a:
    ifc: |   # the text
      rule a : kill   exec "x"

      source S = file "a"
  b: {ifc: 'rule b :  kill exec "y"'}
  c:
      policy: |-
        rule c: because "z"
domains:
  d: {bind: [{rule: a, mode: locked}]}
"""
    )
    formatted = format_file(read_policy_file(path))
    assert (
        formatted
        == """\
# kept
rules:
  a:
    ifc: |   # the text
      rule a:
        kill exec "x"

      source S = file "a"
  b: {ifc: 'rule b :  kill exec "y"'}
  c:
      policy: |-
        rule c:
          because "z"
domains:
  d: {bind: [{rule: a, mode: locked}]}
"""
    )
    path.write_text(formatted)
    assert format_file(read_policy_file(path)) == formatted


def test_mistakes_in_a_file_are_all_reported(tmp_path):
    path = tmp_path / "actplane.yaml"
    path.write_text("rules:\n  a:\n    ifc: |\n      blok\n  b:\n    ifc: |\n      kil\ndomains: {d: {}}\n")
    with pytest.raises(PolicyError) as caught:
        format_file(read_policy_file(path))
    assert sorted(item.span.line for item in caught.value.diagnostics) == [4, 7]
