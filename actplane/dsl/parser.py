"""
Tokens to the syntax tree, with every mistake of a text found in one go.

After a mistake the parser tries, in this order: to read the token as the known word that was
probably meant; to go on as if a missing token stood there; to skip to the next word that starts a
clause or a declaration. Only the first mistake of what it skips is reported.
"""

from __future__ import annotations

import copy

from actplane.dsl import ast, grammar, vocabulary
from actplane.dsl.lexer import Token, tokenize
from actplane.errors import InternalError
from actplane.source import Diagnostic, Source

_DECLARATION_STARTS = frozenset({"SOURCE", "RULE", "TRANSFORM", "END"})
_ITEM_STARTS = frozenset({"EFFECT", "BECAUSE", "INSTEAD"})
_INSERTABLE = ("EXEC", "COLON", "EQUALS", "BY", "RPAREN")
"""Tokens that say nothing of their own: where one is missing, the rest can be read without it."""
_LIKENESS = 0.6
"""How like a known word another must be, as difflib measures it, to be taken for it."""
MAX_DEPTH = 64
"""Parentheses that may stand in each other."""

_PLACES = {
    "OPERATION": "operation",
    "LINEAGE": "condition",
    "KIND": "kind",
    "IF": "",
    "UNLESS": "",
    "EFFECT": "effect",
    "SOURCE": "declaration",
}
"""What a word was meant to be, by a token type that can stand in its place; the first that can."""


def parse(source: Source) -> tuple[ast.Policy, list[Diagnostic]]:
    """
    Parse one policy text.

    Returns the tree of everything that could be read, and all problems in the order of the text.
    Raises: ActplaneError under `python -OO`.

    >>> policy, problems = parse(Source("demo", 'rule r: kill exec "git" "push" if AGENT'))
    >>> policy.rules[0].clauses[0].when, problems
    (Label(name=Word(text='AGENT')), [])
    """
    tokens, problems = tokenize(source)
    tokens = _flattened(tokens, problems)
    found = _Parse(tokens)
    policy = found.run()
    return policy, sorted([*problems, *found.problems], key=lambda item: item.span.start if item.span else 0)


def _flattened(tokens: list[Token], problems: list[Diagnostic]) -> list[Token]:
    """Leave out, and report once, the parentheses that stand deeper than MAX_DEPTH in others."""
    kept: list[Token] = []
    depth = 0
    is_reported = False
    for token in tokens:
        depth += token.type == "LPAREN"
        if depth <= MAX_DEPTH or token.type not in ("LPAREN", "RPAREN"):
            kept.append(token)
        elif not is_reported:
            is_reported = True
            message = f"parentheses stand in each other more than {MAX_DEPTH} deep"
            problems.append(Diagnostic(token.span, message, "write several clauses"))
        depth -= token.type == "RPAREN" and depth > 0
    return kept


class _Parse:
    """One run of the parser over the tokens of one text."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = [Token("BEGIN", "", tokens[0].span), *tokens]
        self.position = 0
        self.problems: list[Diagnostic] = []
        # PLY keeps the state of a run in the parser object: every run has its own.
        self.parser = copy.copy(grammar.tables())
        self.parser.errorfunc = self.on_error

    def run(self) -> ast.Policy:
        policy = self.parser.parse(lexer=self, tokenfunc=self.token)
        if not isinstance(policy, ast.Policy):
            raise InternalError("the parser returned no policy", problems=len(self.problems))
        return policy

    def input(self, text: str) -> None:
        """PLY would hand over text here; the tokens are there already."""

    def token(self) -> _Terminal | None:
        """Hand the next token to PLY, in the shape it expects; None behind END."""
        if self.position == len(self.tokens):
            return None
        token = self.tokens[self.position]
        self.position += 1
        return _Terminal(token)

    # -- mistakes ---------------------------------------------------------------------------------

    def on_error(self, terminal: _Terminal | None) -> _Terminal | None:
        """Report a token that cannot stand where it stands, and choose how to go on."""
        if terminal is None:
            raise InternalError("the grammar does not end with END")
        token = terminal.value
        states = self.states()
        expected = self.expected(states)
        meant = None if "WORD" in expected else _meant(token, expected)
        self.problems.append(self.describe(token, expected, meant))
        if self.is_bare_label(token):
            self.position += 2
            return self.resume(_Terminal(self.tokens[self.position - 1]))
        if meant is not None and token.type != "STRING":
            return self.resume(_Terminal(Token(vocabulary.KEYWORDS[meant], meant, token.span)))
        if self.is_unquoted(token, expected):
            return self.resume(_Terminal(Token("STRING", f'"{token.text}"', token.span)))
        for kind in _INSERTABLE:
            if kind in expected and self.can_follow(states, kind, token.type):
                self.position -= 1
                here = token.span.source.span(token.span.start)
                return self.resume(_Terminal(Token(kind, "", here)))
        self.skip(terminal)
        return None

    def resume(self, terminal: _Terminal) -> _Terminal:
        """Go on with another token in place of the bad one."""
        self.parser.errok()
        return terminal

    def skip(self, terminal: _Terminal) -> None:
        """
        Turn the bad token into the next one that starts something.

        PLY keeps the token it complained about as its next one and offers no way to replace it
        while it looks for an `error` production; so the token itself changes.
        """
        starts = _DECLARATION_STARTS
        if any(symbol.type == "items" for symbol in self.parser.symstack):
            starts = starts | _ITEM_STARTS
        token = terminal.value
        while token.type not in starts:
            token = self.tokens[self.position]
            self.position += 1
        terminal.set(token)

    # -- what the tables say ----------------------------------------------------------------------

    def states(self) -> list[int]:
        return list(self.parser.statestack)

    def shift(self, states: list[int], token_type: str) -> list[int] | None:
        """Return the states after a token, or None where it is a mistake."""
        states = list(states)
        while True:
            action = self.parser.action[states[-1]].get(token_type)
            if action is None:
                return None
            if action > 0:
                return [*states, action]
            if action == 0:
                return states
            production = self.parser.productions[-action]
            if production.len:
                del states[-production.len :]
            states.append(self.parser.goto[states[-1]][production.name])

    def expected(self, states: list[int]) -> frozenset[str]:
        """Return the types of token that can stand next."""
        return frozenset(kind for kind in vocabulary.TOKENS if self.shift(states, kind) is not None)

    def can_follow(self, states: list[int], inserted: str, token_type: str) -> bool:
        after = self.shift(states, inserted)
        return after is not None and self.shift(after, token_type) is not None

    # -- words ------------------------------------------------------------------------------------

    def describe(self, token: Token, expected: frozenset[str], meant: str | None) -> Diagnostic:
        """Say what is wrong with a token and what to write."""
        wanted = _wanted(expected)
        if token.type == "END":
            return Diagnostic(token.span, f"the policy ends too early: expected {wanted}", self.about_strings())
        if token.text in vocabulary.REMOVED and meant == vocabulary.REMOVED[token.text]:
            hint = "labels need no declaration of their own" if self.is_bare_label(token) else ""
            return Diagnostic(token.span, f"'{token.text}' was removed from the language: write '{meant}'", hint)
        shown = "string" if token.type == "STRING" else f"'{token.text}'"
        place = next((name for kind, name in _PLACES.items() if kind in expected), "")
        message = f"unknown {place} {shown}" if place and token.type == "WORD" else f"unexpected {shown}"
        return Diagnostic(token.span, f"{message}: expected {wanted}", self.hint(token, expected, meant))

    def hint(self, token: Token, expected: frozenset[str], meant: str | None) -> str:
        if meant is not None:
            return f"did you mean '{meant}'?"
        if self.is_unquoted(token, expected):
            return f'write "{token.text}" in double quotes'
        if token.type in ("IF", "UNLESS") and "EFFECT" in expected:
            return "a clause takes one 'if' and then one 'unless'; write a second clause for another condition"
        if token.type in _ITEM_STARTS and "RULE" in expected:
            return "clauses and reasons stand inside a rule: start one with `rule NAME:`"
        return self.about_strings()

    def is_bare_label(self, token: Token) -> bool:
        """Tell the removed `label NAME`, which nothing replaces, from `label NAME = ...`."""
        following = [each.type for each in self.tokens[self.position : self.position + 2]]
        return token.text == "label" and following[:1] == ["WORD"] and following[1:] != ["EQUALS"]

    def is_unquoted(self, token: Token, expected: frozenset[str]) -> bool:
        """Tell a string without its quotes: a word where a string can stand, in the line of what it belongs to."""
        if token.type != "WORD" or "STRING" not in expected or self.position < 3:
            return False
        return self.tokens[self.position - 2].span.line == token.span.line

    def about_strings(self) -> str:
        """Point at a string just before that spans lines: often its closing quote is missing."""
        for token in self.tokens[max(self.position - 4, 0) : self.position]:
            if token.type == "STRING" and "\n" in token.text:
                return f"the string that starts in line {token.span.line} spans lines: is its closing quote missing?"
        return ""


class _Terminal:
    """A token as PLY wants it: with a type, a value and a place in the text."""

    __slots__ = ("lexer", "lexpos", "lineno", "type", "value")

    def __init__(self, token: Token) -> None:
        self.lexer = None
        self.set(token)

    def set(self, token: Token) -> None:
        self.type = token.type
        self.value = token
        self.lineno = 0
        self.lexpos = token.span.start


def _wanted(expected: frozenset[str]) -> str:
    """Return the expected tokens as a list a person reads, in the order of the vocabulary."""
    groups = [kind for kind in vocabulary.TOKENS if kind in expected]
    if "WORD" in expected:
        # Every keyword can be a name; to list them all would say nothing.
        groups = [kind for kind in groups if kind not in vocabulary.GROUPS]
    if "SOURCE" in expected and "END" in expected and len(groups) > len(_DECLARATION_STARTS):
        groups = [kind for kind in groups if kind not in _DECLARATION_STARTS]
        words = [word for kind in groups for word in vocabulary.spell(kind)] + ["a new declaration"]
    else:
        words = [word for kind in groups for word in vocabulary.spell(kind)]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _meant(token: Token, expected: frozenset[str]) -> str | None:
    """Return the keyword that can stand here and was probably meant, or None."""
    if token.type not in ("WORD", *vocabulary.GROUPS):
        return None
    candidates = [word for kind in vocabulary.GROUPS if kind in expected for word in vocabulary.GROUPS[kind]]
    word = token.text.lower()
    proposals = (vocabulary.REMOVED.get(word, ""), *vocabulary.SYNONYMS.get(word, ()), word)
    for proposal in proposals:
        if proposal in candidates:
            return proposal
    if token.type != "WORD":
        return None
    import difflib  # Only mistakes need it.

    # Swapped letters make a short word unlike itself by difflib's measure.
    swapped = [each for each in candidates if sorted(each) == sorted(word)]
    close = swapped or difflib.get_close_matches(word, candidates, n=1, cutoff=_LIKENESS)
    return close[0] if close else None
