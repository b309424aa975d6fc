"""The pages of docs/verifier, one for each refusal, which are installed with the package."""

from __future__ import annotations

from importlib.resources import files


def page_of(id_: str) -> str:
    """
    Return the page of a refusal, as Markdown: what it means, a smallest example and its repair.

    Raises: FileNotFoundError if there is no such id.

    >>> page_of("null-dereference").splitlines()[0]
    '# `null-dereference`: a pointer that may be null'
    """
    return (files("actplane.verifier") / "docs" / f"{id_}.md").read_text(encoding="utf-8")
