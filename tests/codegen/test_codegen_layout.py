"""The memory that programs and supervisor share: what one packs the other unpacks, and nothing overlaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actplane.codegen import layout
from actplane.codegen.network import ENDPOINTS, SOCKETS
from actplane.codegen.report import RECORDS
from actplane.ir.policy import MAX_LABELS

u32 = st.integers(0, (1 << 32) - 1)
byte = st.integers(0, 255)
text = st.binary(max_size=60).map(lambda data: data.replace(b"\0", b"x"))


def label_bytes(labels: frozenset[int]) -> bytes:
    return sum(1 << label for label in labels).to_bytes(layout.LABEL_BYTES, "little")


@given(
    st.integers(0, (1 << 64) - 1),
    st.tuples(u32, u32, u32, u32),
    st.tuples(byte, byte, byte, byte),
    st.frozensets(st.integers(0, MAX_LABELS - 1), max_size=5),
    st.frozensets(st.integers(0, 127), max_size=5),
    text,
    text,
    st.lists(text, max_size=5),
)
def test_a_record_is_read_as_it_was_written(
    time_ns: int,
    ids: tuple[int, int, int, int],
    kinds: tuple[int, int, int, int],
    labels: frozenset[int],
    clauses: frozenset[int],
    target: bytes,
    exe: bytes,
    argv: list[bytes],
) -> None:
    bits = sum(1 << clause for clause in clauses).to_bytes(16, "little")
    strings = b"".join(argument + b"\0" for argument in argv)
    header = layout.RECORD_HEADER.pack(
        time_ns, *ids, *kinds, len(bits), len(target), len(exe), len(strings), 0, label_bytes(labels)
    )
    record = layout.unpack_record(header + bits + target + exe + strings + b"trailing")
    assert (record.time_ns, record.pid, record.tid, record.ppid, record.uid) == (time_ns, *ids)
    assert (record.event, record.action, record.cause, record.access) == kinds
    assert record.labels == labels
    assert record.clauses == tuple(sorted(clauses))
    assert (record.target, record.exe) == (target, exe)
    assert record.argv == tuple(argv)
    assert not record.argv_is_cut


def test_arguments_without_their_nul_are_cut() -> None:
    header = layout.RECORD_HEADER.pack(1, 2, 3, 4, 5, 1, 1, 0, 0, 0, 0, 0, 5, 0, bytes(32))
    record = layout.unpack_record(header + b"ab\0cd")
    assert record.argv == (b"ab", b"cd")
    assert record.argv_is_cut


@given(st.binary(max_size=200))
def test_whatever_else_is_no_record(data: bytes) -> None:
    if len(data) < layout.RECORD_BITS:
        with pytest.raises(ValueError, match="expected at least"):
            layout.unpack_record(data)
    else:
        header = bytearray(data)
        header[30:32] = b"\xff\xff"  # A target longer than any record.
        with pytest.raises(ValueError, match="shorter than its header says"):
            layout.unpack_record(bytes(header))


@given(st.integers(0, 63), st.frozensets(st.integers(0, MAX_LABELS - 1)))
def test_the_state_of_a_first_process(slot: int, labels: frozenset[int]) -> None:
    state = layout.pack_state(slot, labels)
    assert len(state) == layout.STATE_BYTES
    assert state[layout.STATE_SLOT : layout.STATE_SLOT + 4] == slot.to_bytes(4, "little")
    assert state[layout.STATE_LABELS : layout.STATE_LABELS + layout.LABEL_BYTES] == label_bytes(labels)
    assert not any(state[layout.STATE_LINEAGE :])


def test_the_regions_of_the_scratch_lie_one_after_the_other() -> None:
    offsets = [value for name, value in vars(layout).items() if name.startswith("SCRATCH_") and name != "SCRATCH_BYTES"]
    assert offsets == sorted(offsets)
    assert len(set(offsets)) == len(offsets)
    assert layout.SCRATCH_TEXT + layout.TEXT_BYTES == layout.SCRATCH_BYTES
    assert layout.TEXT_BYTES <= layout.TEXT_MASK
    assert all(offset % 8 == 0 for offset in offsets)


def test_local_storage_is_small_enough_for_every_kernel() -> None:
    sizes = (layout.STATE_BYTES, layout.SCRATCH_BYTES, layout.OBJECT_BYTES, RECORDS.value_size, SOCKETS.value_size)
    assert max(sizes) <= layout.MAX_STORAGE_BYTES
    assert ENDPOINTS.value_size == layout.OBJECT_BYTES


def test_gates_and_invalidators_have_places_of_their_own() -> None:
    places = [layout.session_gate(n) for n in range(3)] + [layout.session_invalidated(3, n) for n in range(2)]
    assert places == list(range(layout.SESSION_BYTES_HEADER, layout.session_bytes(3, 2), 8))
    assert layout.SESSION_DROPS + 8 <= layout.SESSION_BYTES_HEADER
