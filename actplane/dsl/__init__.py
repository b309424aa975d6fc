"""
The policy language: text to tokens, tree and policy IR.

`actplane.dsl.files` reads policy files; it is not imported here, because it needs YAML.
"""

from actplane.dsl.compiler import Compilation, compile_policy, compile_sources, compile_text, require_seed
from actplane.dsl.hosts import Resolve, resolve_host
from actplane.dsl.texts import PolicyText, find_policy_file, inline_policy

__all__ = [
    "Compilation",
    "PolicyText",
    "Resolve",
    "compile_policy",
    "compile_sources",
    "compile_text",
    "find_policy_file",
    "inline_policy",
    "require_seed",
    "resolve_host",
]
