"""
What the mirror knows of a map: its shape, and the special fields that the BTF of its value names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actplane.asm.jump_tables import ADDRESS_BYTES, slots_in
from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.verifier.domains.btf_walk import bare, pointee, size_of, strip, type_tags
from actplane.verifier.domains.types import BtfKind, OwnTypes, TypeProvider

BPF_F_RDONLY_PROG: Final = 1 << 7
BPF_F_WRONLY_PROG: Final = 1 << 8

# Structs in a value that a program may touch only through their helpers, and their sizes.
SPECIAL_STRUCTS: Final = {
    "bpf_spin_lock": "spin_lock",
    "bpf_res_spin_lock": "res_spin_lock",
    "bpf_timer": "timer",
    "bpf_wq": "workqueue",
    "bpf_task_work": "task_work",
    "bpf_list_head": "list_head",
    "bpf_list_node": "list_node",
    "bpf_rb_root": "rb_root",
    "bpf_rb_node": "rb_node",
    "bpf_refcount": "refcount",
}

_KPTR_TAGS: Final = {
    "kptr": "kptr",
    "kptr_ref": "kptr",
    "kptr_untrusted": "kptr_untrusted",
    "percpu_kptr": "percpu_kptr",
    "uptr": "uptr",
}


@dataclass(frozen=True, slots=True)
class SpecialField:
    """
    A field that is not plain memory.

    Units:  `off` and `size` are bytes. `type_id` is the struct that a kptr points at, or the element
            type of a list head or tree root; `node` the name of the node member in that struct.
    """

    what: str
    off: int
    size: int
    type_id: int = 0
    node: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class MapFacts:
    """A map, its special fields and, for maps of maps, the map inside."""

    spec: MapSpec
    fields: tuple[SpecialField, ...] = ()
    types: TypeProvider | None = None
    value_type: int = 0
    inner: MapFacts | None = None

    @property
    def is_jump_table(self) -> bool:
        return self.spec.type is MapType.BPF_MAP_TYPE_INSN_ARRAY

    @property
    def memory_bytes(self) -> int:
        """
        How many bytes a pointer at the start of a value reaches. A jump table shows programs the addresses
        of its places, one behind the other.
        """
        return ADDRESS_BYTES * self.spec.max_entries if self.is_jump_table else self.spec.value_size

    def field_of(self, what: str) -> SpecialField | None:
        """Return the special field of a kind, if the value has one."""
        return next((item for item in self.fields if item.what == what), None)

    def fields_touched(self, low: int, high: int) -> list[SpecialField]:
        """Return the special fields that the bytes [low, high) of the value overlap."""
        return [item for item in self.fields if low < item.off + item.size and item.off < high]

    def can_read(self) -> bool:
        return not self.spec.flags & BPF_F_WRONLY_PROG

    def can_write(self) -> bool:
        return not self.spec.flags & BPF_F_RDONLY_PROG and not self.is_jump_table

    def places_between(self, first: int, last: int) -> list[int]:
        """
        Return the slots in the elements `first` to `last` of a jump table, each once, ascending. Those of which
        the contents are not given hold 0.
        """
        places = slots_in(self.spec.contents or b"")[: self.spec.max_entries]
        found = set(places[first : last + 1])
        if last >= len(places):
            found.add(0)
        return sorted(found)


def map_facts(name: str, spec: MapSpec, own: OwnTypes | None) -> MapFacts:
    """Return what is known of a map, and of the maps in it."""
    inner_spec = own.inner_maps.get(name) if own is not None else None
    inner = map_facts(inner_spec.name, inner_spec, own) if inner_spec is not None else None
    value = own.map_values.get(name) if own is not None else None
    if value is None or not value.type_id:
        return MapFacts(spec, inner=inner)
    return MapFacts(spec, tuple(special_fields(value.types, value.type_id)), value.types, value.type_id, inner)


def special_fields(types: TypeProvider, type_id: int) -> list[SpecialField]:
    """Return the special fields of a struct or a section, nested ones and those in arrays included."""
    found: list[SpecialField] = []
    _collect(types, type_id, 0, found, 0)
    return sorted(found, key=lambda item: item.off)


def _collect(types: TypeProvider, type_id: int, base: int, found: list[SpecialField], depth: int) -> None:
    container = bare(types, type_id)
    if container is None or depth > 4:
        return
    container_id = strip(types, type_id)
    if container.kind == BtfKind.DATASEC:
        for variable in container.members:
            target = types.type_at(variable.type_id).target
            _collect_member(types, target, base + variable.offset_bits // 8, found, depth, variable.type_id, -1)
        return
    if container.kind not in (BtfKind.STRUCT, BtfKind.UNION):
        return
    for index, member in enumerate(container.members):
        at = base + member.offset_bits // 8
        _collect_member(types, member.type_id, at, found, depth, container_id, index)


def _collect_member(
    types: TypeProvider, type_id: int, at: int, found: list[SpecialField], depth: int, owner: int, index: int
) -> None:
    inner = bare(types, type_id)
    count = 1
    while inner is not None and inner.kind == BtfKind.ARRAY:
        count *= inner.count
        type_id = inner.target
        inner = bare(types, type_id)
    if inner is None:
        return
    if inner.kind == BtfKind.PTR:
        for tag in type_tags(types, type_id):
            if tag in _KPTR_TAGS:
                target = pointee(types, type_id) or 0
                found.extend(SpecialField(_KPTR_TAGS[tag], at + 8 * i, 8, target) for i in range(min(count, 64)))
        return
    if inner.kind != BtfKind.STRUCT:
        return
    size = size_of(types, type_id) or 0
    what = SPECIAL_STRUCTS.get(inner.name)
    if what is None:
        for i in range(min(count, 64)):
            _collect(types, type_id, at + i * size, found, depth + 1)
        return
    element, node = _contained(types, owner, index) if what in ("list_head", "rb_root") else (0, "")
    found.extend(SpecialField(what, at + i * size, size, element, node) for i in range(min(count, 64)))


def _contained(types: TypeProvider, owner: int, index: int) -> tuple[int, str]:
    """Return what a `contains:TYPE:MEMBER` declaration tag says about a list head or tree root."""
    for text, component in types.tags_of(owner):
        if component == index and text.startswith("contains:"):
            _, name, node = text.split(":", 2)
            return types.id_of(BtfKind.STRUCT, name) or 0, node
    return 0, ""
