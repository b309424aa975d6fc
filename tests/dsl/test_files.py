"""Policy files: discovery, both forms, domains, and every mistake with its place."""

from __future__ import annotations

import textwrap

import pytest

from actplane.dsl import compile_text, files, find_policy_file, inline_policy
from actplane.errors import PolicyError

CATALOGUE = """\
version: 1
rules:
  no-push:
    ifc: |
      rule no-push:
        kill exec "git" "push" if COMMAND
  tests-first: {policy: 'rule tests-first: block exec "git" if COMMAND unless after exec "pytest"'}
  read-only: {ifc: 'rule read-only: kill write file "/**" if COMMAND'}
domains:
  session: {bind: [{rule: no-push, mode: locked}, {rule: tests-first, mode: default}]}
  review:  {parent: session, disable: [tests-first], bind: [{rule: read-only, mode: locked}]}
  relaxed: {parent: session, bind: [{rule: no-push, mode: default}]}
"""


def written(folder, text, name="actplane.yaml"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def problems(path, domain=None):
    with pytest.raises(PolicyError) as caught:
        files.load_policy_file(path, domain)
    return str(caught.value)


def test_a_single_policy(tmp_path):
    path = written(tmp_path, 'policy: |\n  rule r: kill exec "x"\nfeedback: {path: out/last.txt}\n')
    text = files.load_policy_file(path)
    assert [source.text for source in text.sources] == ['rule r: kill exec "x"\n']
    assert text.root == tmp_path
    assert text.feedback == tmp_path / "out/last.txt"
    assert text.domain is None


@pytest.mark.parametrize(
    ("domain", "locked", "default"),
    [
        (None, ("no-push",), ("tests-first",)),
        ("review", ("no-push", "read-only"), ()),
        ("relaxed", ("no-push",), ("tests-first",)),
    ],
)
def test_domains_inherit_disable_and_bind(tmp_path, domain, locked, default):
    text = files.load_policy_file(written(tmp_path, CATALOGUE), domain)
    assert (text.domain.locked, text.domain.default) == (locked, default)
    policy = compile_text(text).policy
    assert tuple(rule.name for rule in policy.rules) == locked + default


def test_default_domain_wins_over_session(tmp_path):
    text = files.load_policy_file(written(tmp_path, "default_domain: review\n" + CATALOGUE))
    assert text.domain.name == "review"


def test_the_only_domain_is_meant(tmp_path):
    path = written(tmp_path, 'rules: {a: {ifc: "# a"}}\ndomains: {only: {bind: [{rule: a, mode: locked}]}}\n')
    assert files.load_policy_file(path).domain.name == "only"


def test_problems_inside_a_block_have_the_lines_of_the_file(tmp_path):
    path = written(tmp_path, CATALOGUE.replace("kill exec", "kil exec").replace("block exec", "blok exec"))
    text = files.load_policy_file(path)
    with pytest.raises(PolicyError) as caught:
        compile_text(text)
    places = [(item.span.line, item.span.column) for item in caught.value.diagnostics]
    assert places == [(6, 9), (7, 44)]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("policy: blok\n", "1:9"),
        ("policy: 'blok'\n", "1:10"),
        ("policy: |2\n    blok\n", "2:5"),
        ("policy: |\n\n  # x\n    blok\n", "4:5"),
        ('policy: "a\\tblok"\n', " (policy):1:1"),
        ("policy: # x\n  blok\n  blok\n", " (policy):1:1"),
    ],
)
def test_every_style_of_text_keeps_its_place(tmp_path, text, place):
    path = written(tmp_path, text)
    with pytest.raises(PolicyError) as caught:
        compile_text(files.load_policy_file(path))
    assert str(caught.value).startswith(f"{path}{place if place.startswith(' ') else ':' + place}: ")


def test_folded_text_is_counted_from_its_own_start(tmp_path):
    path = written(tmp_path, 'policy: >\n  rule r:\n  kil exec "x"\n')
    text = files.load_policy_file(path)
    with pytest.raises(PolicyError, match=r"actplane.yaml \(policy\):1:9: unknown effect 'kil'"):
        compile_text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("polcy: x\n", "1:1: policy file: unknown key 'polcy'"),
        ("polcy: x\n", "did you mean 'policy'?"),
        ("version: 2\npolicy: x\n", "1:10: unknown version 2: expected 1"),
        ("version: one\npolicy: x\n", "1:10: version: expected a number, got 'one'"),
        ("policy: x\nrules: {}\n", "2:8: 'rules' beside 'policy'"),
        ("version: 1\n", "no 'rules' and no 'domains'"),
        ("rules: {a: {ifc: x}}\n", "no 'domains'"),
        ("policy: ''\n", "1:9: policy: empty"),
        ("policy: [x]\n", "1:9: policy: expected text, got a list"),
        ("policy: x\nfeedback: {file: x}\n", "2:12: feedback: unknown key 'file'"),
        ("policy: x\npolicy: y\n", "2:1: policy file: the key 'policy' is there already, in line 1"),
        ("policy: [\n", "not YAML"),
        ("a: b: c\n", ":1:5: not YAML"),
        ("", "an empty file"),
        ("? [a]\n: b\n", "1:3: policy file: expected a name as key, got a list"),
        ("policy: x\nfeedback: [x]\n", "2:11: feedback: expected a mapping of path, got a list"),
        (
            "rules: {a: {ifc: x}}\ndomains: {d: {parent: [x]}}\n",
            "2:23: domain 'd': parent: expected a name, got a list",
        ),
        ("rules: {a: {ifc: x}}\ndomains: {d: {bind: x}}\n", "2:21: domain 'd': bind: expected a list, got 'x'"),
        ("rules:\ndomains: {d: }\n", "rules: empty"),
        ("rules: {a: {ifc: x}}\ndomains:\n", "domains: empty"),
        ("policy: !!binary x\n", "1:9: policy: expected text"),
        ("policy: \x01\n", "1:9: not YAML: special characters are not allowed"),
        ("[" * 5000, "not a policy file: nested too deep"),
        ("[a]\n", "1:1: policy file: expected a mapping of default_domain, domains"),
        ("rules:\n  a: |\n    x\n    y\n", "2:6: rule 'a': expected a mapping of ifc or policy, got text of 2 lines"),
    ],
)
def test_mistakes_of_a_file(tmp_path, text, expected):
    assert expected in problems(written(tmp_path, text))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rule: read-only", "rule: readonly", "binds an unknown rule 'readonly'"),
        ("parent: session, disable", "parent: sesion, disable", "has an unknown parent 'sesion'"),
        ("  session: {bind", "  session: {parent: review, bind", "is its own ancestor: session -> review -> session"),
        ("disable: [tests-first]", "disable: [no-push]", "cannot disable 'no-push': it is locked by 'session'"),
        ("disable: [tests-first]", "disable: [read-only]", "it is no inherited default"),
        ("mode: default}]}\n  review", "mode: soft}]}\n  review", "unknown mode 'soft'"),
        ("{rule: read-only, mode: locked}", "{rule: read-only}", "bind: no 'mode'"),
        ("{ifc: 'rule read", "{ifc: '', policy: 'rule read", "has both 'ifc' and 'policy'"),
        ("{ifc: 'rule read-only: kill write file \"/**\" if COMMAND'}", "{}", "has no text"),
        ("{ifc: 'rule read-only: kill write file \"/**\" if COMMAND'}", "{ifc: }", "rule 'read-only': empty"),
        ("version: 1", "default_domain: nope", "default_domain: unknown domain 'nope'"),
    ],
)
def test_mistakes_of_a_catalogue(tmp_path, old, new, expected):
    assert old in CATALOGUE
    assert expected in problems(written(tmp_path, CATALOGUE.replace(old, new)))


def test_all_mistakes_are_reported_at_once(tmp_path):
    text = problems(written(tmp_path, "version: 7\nrules: {a: {}, b: 5}\ndomains: {d: {bond: []}}\n"))
    assert [line.split(":")[1] for line in text.splitlines() if line.startswith(str(tmp_path))] == ["1", "2", "2", "3"]


def test_an_ambiguous_domain_names_the_choices(tmp_path):
    path = written(tmp_path, CATALOGUE.replace("session", "base"))
    assert "expected base, review or relaxed" in problems(path)


def test_an_unknown_domain_names_the_choices(tmp_path):
    assert "unknown domain 'revew': expected session, review or relaxed" in problems(
        written(tmp_path, CATALOGUE), "revew"
    )


def test_a_domain_without_rules_cannot_be_chosen(tmp_path):
    path = written(tmp_path, "rules: {a: {ifc: '# a'}}\ndomains: {d: {}}\n")
    assert "domain 'd' has no rules" in problems(path)


def test_a_single_policy_has_no_domains(tmp_path):
    assert "the file is a single policy" in problems(written(tmp_path, "policy: '# x'\n"), "d")


def test_a_file_that_is_not_there(tmp_path):
    assert "cannot read the policy file: No such file" in problems(tmp_path / "none.yaml")


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "actplane.yaml"
    path.write_bytes(b"version: 1\npolicy: caf\xe9\n")
    assert f"{path}:2: not UTF-8: byte 0xe9" in problems(path)


def test_bare_policy_text_is_no_policy_file(tmp_path):
    assert "put the text under `policy: |`" in problems(written(tmp_path, "rule r:", "policy.dsl"))


def test_the_nearest_policy_is_found_walking_up(tmp_path):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    outer = written(tmp_path, "policy: '# outer'")
    assert find_policy_file(deep) == outer
    hidden = written(tmp_path, "policy: '# hidden'", "a/.actplane/policy.yaml")
    assert find_policy_file(deep) == hidden
    plain = written(tmp_path, "policy: '# plain'", "a/actplane.yaml")
    assert find_policy_file(deep) == plain


def test_patterns_of_a_hidden_policy_start_from_the_project(tmp_path):
    path = written(tmp_path, "policy: '# hidden'", ".actplane/policy.yaml")
    assert files.load_policy_file(path).root == tmp_path


def test_a_policy_from_the_command_line_starts_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = inline_policy('rule r: blok exec "x"')
    assert text.root == tmp_path
    with pytest.raises(PolicyError, match=r"^--rule:1:9: unknown effect"):
        compile_text(text)
