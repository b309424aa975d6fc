"""The policy language: text to tokens, tree and policy IR."""

from actplane.dsl.compiler import Compilation, compile_policy, compile_sources, require_seed
from actplane.dsl.endpoints import Resolve, resolve_host

__all__ = ["Compilation", "Resolve", "compile_policy", "compile_sources", "require_seed", "resolve_host"]
