"""What `compile --json` shows of tokens, trees and the IR."""

from __future__ import annotations

import json

from actplane import dsl
from actplane.dsl.lexer import tokenize
from actplane.dsl.parser import parse
from actplane.dsl.printer import tokens_to_json, tree_to_json
from actplane.ir.printer import policy_to_json
from actplane.source import Source

TEXT = """
source A = file "/a"
endorse B by exec "e"
rule r:
  kill exec "git" "push" if A and not B unless after exec "t" exits 0 since write "/s"
  block write file "/w" unless target not "/x"
  notify open file "/o" unless lineage-includes exec "l"
  because "why"
"""


def test_tokens():
    assert tokens_to_json(tokenize(Source("p", "rule r:"))[0]) == [
        {"type": "RULE", "text": "rule", "line": 1, "column": 1},
        {"type": "WORD", "text": "r", "line": 1, "column": 6},
        {"type": "COLON", "text": ":", "line": 1, "column": 7},
        {"type": "END", "text": "", "line": 1, "column": 8},
    ]


def test_the_tree_names_every_node_and_its_place():
    tree = json.loads(json.dumps(tree_to_json(parse(Source("p", TEXT))[0])))
    source, transform, rule = tree["declarations"]
    assert source["pattern"] == {"node": "String", "line": 2, "column": 17, "raw": "/a"}
    assert transform["verb"]["text"] == "endorse"
    assert [item["node"] for item in rule["items"]] == ["Clause", "Clause", "Clause", "Because"]
    assert rule["items"][0]["when"]["terms"][1]["name"]["text"] == "B"
    assert rule["items"][1]["unless"]["is_negated"] is True


def test_the_ir_is_plain_data_with_indexes():
    policy = json.loads(json.dumps(policy_to_json(dsl.compile_policy(TEXT, root="/", follow=None))))
    assert policy["labels"] == ["A", "B"]
    assert policy["seed"] is None
    assert policy["patterns"][0] == {"kind": "path", "text": "/a", "regex": "/a"}
    assert policy["sources"] == [{"label": 0, "kind": "file", "pattern": 0}]
    assert policy["transforms"] == [{"label": 1, "is_declassify": False, "pattern": 1}]
    assert policy["gates"] == [{"pattern": 4, "exits": {"status": 0, "is_negated": False}, "since": [0]}]
    assert policy["invalidators"] == [{"operation": "write", "pattern": 5}]
    assert policy["rules"] == [{"name": "r", "because": "why", "instead": ""}]
    first, second, third = policy["clauses"]
    assert first == {
        "rule": 0,
        "effect": "kill",
        "operation": "exec",
        "kind": "exec",
        "pattern": 2,
        "argument": 3,
        "when": [{"required": [0], "forbidden": [1]}],
        "unless": {"after": 0},
        "line": 5,
        "column": 3,
        "text": 'kill exec "git" "push" if A and not B unless after exec "t" exits 0 since write "/s"',
    }
    assert second["unless"] == {"target": 7, "is_negated": True}
    assert third["unless"] == {"lineage": 0}
