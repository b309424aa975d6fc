"""Recovery from mistakes, and the limits of the language."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from actplane.dsl import ast, compile_policy, grammar
from actplane.dsl.parser import parse
from actplane.errors import PolicyError
from actplane.source import Source


def messages(text):
    return [f"{item.span.line}:{item.span.column}: {item.message}" for item in parse(Source("p", text))[1]]


def hints(text):
    return [item.hint for item in parse(Source("p", text))[1]]


DECLARATION = "source, rule, declassify, endorse or the end of the policy"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blok", [f"1:1: unknown declaration 'blok': expected {DECLARATION}"]),
        ('rule r: kill exec "x" if', ["1:25: the policy ends too early: expected a name or '('"]),
        (
            "rule r: kill",
            ["1:13: the policy ends too early: expected exec, read, write, open, unlink, connect or recv"],
        ),
        ('label A source A = file "x"', ["1:1: 'label' was removed from the language: write 'source'"]),
        ('label A = file "x"', ["1:1: 'label' was removed from the language: write 'source'"]),
        ('rule r: kill exec "x" reason "y"', ["1:23: 'reason' was removed from the language: write 'because'"]),
        (
            'rule r: deny exec "x"',
            ["1:9: unknown effect 'deny': expected block, kill, notify, because, instead or a new declaration"],
        ),
        ('source A file "x"', ["1:10: unexpected 'file': expected '='"]),
        ('rule r kill exec "x"', ["1:8: unexpected 'kill': expected ':'"]),
        ('rule r: kill exec "x" if (A or B', ["1:33: the policy ends too early: expected 'and', 'or' or ')'"]),
        ('endorse A by "x"', ["1:14: unexpected string: expected exec"]),
        ("@", ["1:1: unexpected character '@'"]),
        (
            "a\u00a0b",
            [
                f"1:1: unknown declaration 'a': expected {DECLARATION}",
                "1:2: unexpected character '\\xa0' (NO-BREAK SPACE, U+00A0)",
            ],
        ),
        ('rule r: kill exec "x', ["1:19: unterminated string"]),
    ],
)
def test_messages(text, expected):
    assert messages(text) == expected


def test_a_mistake_does_not_hide_the_next_one():
    text = "\n".join(f'rule r{index}: blok exec "x{index}" fi A' for index in range(50))
    assert len(messages(text)) == 100


def test_a_string_without_an_end_is_suspected():
    text = 'rule r:\n  kill exec "git\n  because "no"\nrule s: kill exec "x"'
    assert any("the string that starts in line 2 spans lines" in hint for hint in hints(text))


def test_what_can_be_read_is_read():
    tree, problems = parse(Source("p", 'rule r: kill exec git if A because "b"\n??\nsource B = file "x"'))
    assert len(problems) == 2
    assert [type(item) for item in tree.declarations] == [ast.Rule, ast.LabelSource]
    assert tree.rules[0].clauses[0].target.strings[0].raw == "git"


def test_every_name_can_be_a_keyword():
    for token in grammar.tokens:
        for word in grammar.vocabulary.GROUPS.get(token, ()):
            assert messages(f'source {word} = file "x" rule {word}: kill exec "x" if not {word}') == []


def test_the_grammar_has_one_known_conflict():
    # A mistake inside a rule belongs to the rule, not to the declarations around it.
    from ply import yacc

    lines = []

    class Log:
        def info(self, message, *arguments):
            lines.append(message % arguments)

        debug = warning = error = info

    yacc.yacc(module=grammar, debug=True, debuglog=Log(), errorlog=Log(), write_tables=False)
    conflicts = {line for line in lines if "/reduce conflict for" in line}
    assert len(conflicts) == 2, conflicts
    assert all("conflict for error" in line and "resolved as shift" in line for line in conflicts), conflicts


def test_policies_can_be_parsed_side_by_side():
    texts = [f'rule r{index}: kill exec "x{index}" if A{index}' for index in range(64)]
    with ThreadPoolExecutor(8) as pool:
        trees = list(pool.map(lambda text: parse(Source("p", text))[0], texts))
    assert [tree.rules[0].name.text for tree in trees] == [f"r{index}" for index in range(64)]


def errors(text):
    with pytest.raises(PolicyError) as caught:
        compile_policy(text, root="/", resolve=None)
    return [item.message for item in caught.value.diagnostics]


def test_256_labels_are_enough():
    labels = [f"L{index}" for index in range(256)]
    text = "rule r: kill exec 'x' if " + " or ".join(labels)
    assert len(compile_policy(text.replace("'", '"'), root="/").labels) == 256
    assert errors(text.replace("'", '"') + " or ONE_MORE") == [
        "too many labels: 'ONE_MORE' is number 257, expected 256 at most",
        "the expression multiplies to more than 256 alternatives",
    ]


@pytest.mark.parametrize("depth", [64, 65, 5000])
def test_parentheses_have_a_limit(depth):
    text = f'rule r: kill exec "x" if {"(" * depth}A{")" * depth}'
    if depth <= 64:
        assert compile_policy(text, root="/").clauses
    else:
        assert errors(text) == ["parentheses stand in each other more than 64 deep"]


def test_an_expression_that_explodes_is_an_error():
    text = 'rule r: kill exec "x" if ' + " and ".join(f"(A{index} or B{index})" for index in range(60))
    assert errors(text) == ["the expression multiplies to more than 256 alternatives"]
    mixed = (
        'rule r: kill exec "x" if '
        + "(A or B and C) or D and "
        + " and ".join(f"(A{index % 9} or B{index} and C{index})" for index in range(40))
    )
    assert errors(mixed) == ["the expression multiplies to more than 256 alternatives"]


def test_a_pattern_longer_than_any_path_is_an_error():
    assert errors(f'rule r: kill exec "{"x" * 4097}"') == ["a pattern of 4097 characters: expected 4096 at most"]


def test_without_docstrings_there_is_no_grammar_and_that_is_said():
    script = "from actplane import dsl; dsl.compile_policy('')"
    done = subprocess.run([sys.executable, "-OO", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run python without -OO" in done.stderr.splitlines()[-1]
