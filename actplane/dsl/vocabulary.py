"""
The words of the policy language, the groups the grammar knows them by, and words people try instead.

Words of one group behave alike in the grammar, which keeps its tables small. No word is reserved:
where only a name can stand, a keyword is a name.
"""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "SOURCE": ("source",),
    "RULE": ("rule",),
    "TRANSFORM": ("declassify", "endorse"),
    "BY": ("by",),
    "EFFECT": ("block", "kill", "notify"),
    "EXEC": ("exec",),
    "ACCESS": ("read", "write"),
    "OPERATION": ("open", "unlink", "connect", "recv"),
    "KIND": ("file", "endpoint"),
    "IF": ("if",),
    "UNLESS": ("unless",),
    "BECAUSE": ("because",),
    "INSTEAD": ("instead",),
    "NOT": ("not",),
    "AND": ("and",),
    "OR": ("or",),
    "TRUE": ("true",),
    "TARGET": ("target",),
    "LINEAGE": ("lineage-includes",),
    "AFTER": ("after",),
    "EXITS": ("exits",),
    "SINCE": ("since",),
}
"""Token type to the words that are tokens of that type."""

PUNCTUATION = {"COLON": ":", "EQUALS": "=", "LPAREN": "(", "RPAREN": ")"}

KEYWORDS = {word: group for group, words in GROUPS.items() for word in words}

TOKENS = ("WORD", "STRING", *GROUPS, *PUNCTUATION, "END")

REMOVED = {"label": "source", "reason": "because"}
"""Words of an older language: each has exactly one replacement."""

SYNONYMS = {
    "allow": ("unless",),
    "deny": ("block",),
    "forbid": ("block",),
    "prevent": ("block",),
    "terminate": ("kill",),
    "warn": ("notify",),
    "report": ("notify",),
    "log": ("notify",),
    "ask": ("block",),
    "execute": ("exec",),
    "run": ("exec",),
    "spawn": ("exec",),
    "delete": ("unlink",),
    "remove": ("unlink",),
    "create": ("write",),
    "modify": ("write",),
    "rename": ("write",),
    "send": ("connect",),
    "receive": ("recv",),
    "network": ("endpoint", "connect"),
    "host": ("endpoint",),
    "path": ("file",),
    "process": ("exec",),
    "command": ("exec",),
    "except": ("unless",),
    "when": ("if",),
    "remedy": ("instead",),
    "remediation": ("instead",),
    "why": ("because",),
    "message": ("because",),
    "&&": ("and",),
    "||": ("or",),
}
"""Words people try, and the known words that say it; the first one that fits the place is proposed."""

DESCRIPTIONS = {
    "WORD": "a name",
    "STRING": "a string in double quotes",
    "END": "the end of the policy",
    "AND": "'and'",
    "OR": "'or'",
}


def spell(token_type: str) -> list[str]:
    """
    Return what a person would write for a token of a type.

    >>> spell("EFFECT"), spell("COLON")
    (['block', 'kill', 'notify'], ["':'"])
    """
    if token_type in PUNCTUATION:
        return [f"'{PUNCTUATION[token_type]}'"]
    if token_type in DESCRIPTIONS:
        return [DESCRIPTIONS[token_type]]
    return list(GROUPS[token_type])
