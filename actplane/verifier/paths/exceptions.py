"""
The function that a program names for the case that it ends with bpf_throw: by a declaration tag
`exception_callback:NAME` on its main function. Nothing in the program calls it.
"""

from __future__ import annotations

from typing import Final

from actplane.verifier.domains.types import BtfKind, OwnTypes, TypeProvider
from actplane.verifier.tables.profiles import KernelProfile
from actplane.verifier.tables.refusals import refuse

_TAG: Final = "exception_callback:"
_GLOBAL: Final = 1


def find_callback(own: OwnTypes | None, profile: KernelProfile) -> int | None:
    """Return the first slot of the function, None if the program names none. Refuses bad names."""
    if own is None or own.types is None or not profile.at_least(6, 7):
        return None
    main = own.functions.get(0)
    if main is None:
        return None
    tags = [text.removeprefix(_TAG) for text, part in own.types.tags_of(main) if part == -1 and text.startswith(_TAG)]
    if not tags:
        return None
    if len(tags) > 1:
        refuse("exception", -1, f"the program names {len(tags)} functions for exceptions, one is allowed")
    return _start_of(own, own.types, tags[0])


def _start_of(own: OwnTypes, types: TypeProvider, name: str) -> int:
    type_id = types.id_of(BtfKind.FUNC, name)
    if type_id is None or types.type_at(type_id).linkage != _GLOBAL:
        refuse("exception", -1, f"the program has no global function {name}, which it names for exceptions")
    start = next((slot for slot, found in own.functions.items() if found == type_id), None)
    if start is None:
        refuse("exception", -1, f"the program does not hold the function {name}, which it names for exceptions")
    return start
