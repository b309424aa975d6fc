"""What is known of one call of a helper or kernel function while it is checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actplane.verifier.domains.maps import MapFacts
from actplane.verifier.paths.values import Pointer


@dataclass(slots=True)
class Call:
    """What the arguments of one call have said so far."""

    helper: int
    name: str
    slot: int
    map: MapFacts | None = None
    map_uid: int = 0
    map_reg: int = 0
    written: tuple[int, Pointer, int] | None = None
    """Memory that the helper fills: register, pointer, bytes."""
    max_size: int = 0
    ref: int = 0
    """The reference of an argument."""
    release: int = 0
    """The register whose reference the helper takes back."""
    callback: int = -1
    """The first slot of the function passed as a callback."""
    pointer: Pointer | None = None
    alloc_size: int = 0
    dynptr: Any = None
    kptr: Any = None
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
