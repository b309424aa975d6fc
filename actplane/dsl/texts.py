"""
The texts a policy is made of, and where policy files are found.

Apart from `files`, so that a policy given on the command line needs no YAML.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actplane.source import Source

if TYPE_CHECKING:
    from actplane.dsl.domains import Domain

FILE_NAMES = ("actplane.yaml", ".actplane/policy.yaml")
"""Where a folder keeps its policy, in the order they are looked for."""


@dataclass(frozen=True, slots=True)
class PolicyText:
    """
    The texts of one policy, ready to compile.

    `root` is the folder relative patterns start from. `domain` is None for what is no catalogue,
    `path` for what is no file, `feedback` where the file names no feedback file.
    """

    sources: tuple[Source, ...]
    root: Path
    path: Path | None = None
    domain: Domain | None = None
    feedback: Path | None = None


def inline_policy(text: str, root: str | os.PathLike[str] | None = None) -> PolicyText:
    """Return a policy given on the command line; relative patterns start from the working directory."""
    return PolicyText((Source("--rule", text),), Path(os.getcwd() if root is None else root))


def find_policy_file(start: str | os.PathLike[str]) -> Path | None:
    """Return the policy file of a folder, or of the nearest folder above it that has one."""
    folder = Path(os.path.abspath(start))
    for each in (folder, *folder.parents):
        for name in FILE_NAMES:
            if (each / name).is_file():
                return each / name
    return None
