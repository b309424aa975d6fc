"""The consumer of a ring buffer, against a producer in the same memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.errors import InternalError, KernelError, UnsupportedFeature
from actplane.loader import ringbuf
from actplane.loader.maps import Map
from actplane.loader.ringbuf import RingBuffer
from tests.fake.kernel import FakeKernel, FakeProducer

SIZE = 4096
SPEC = MapSpec("events", MapType.BPF_MAP_TYPE_RINGBUF, 0, 0, SIZE)


class Ring:
    def __init__(self) -> None:
        self.map = Map.create(SPEC, FakeKernel())
        self.producer = FakeProducer(self.map.fd, SIZE)
        self.consumer = RingBuffer(self.map)

    def put(self, data: bytes) -> None:
        at = self.producer.reserve(len(data))
        assert at is not None
        self.producer.submit(at, data)

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        self.consumer.close()
        self.producer.close()
        self.map.close()


@pytest.fixture
def ring() -> Iterator[Ring]:
    with Ring() as ring:
        yield ring


def test_records_come_in_order(ring: Ring) -> None:
    for data in (b"one", b"", b"three" * 100):
        ring.put(data)
    assert ring.consumer.waiting_bytes == 16 + 8 + 512
    assert list(ring.consumer.consume()) == [b"one", b"", b"three" * 100]
    assert list(ring.consumer.consume()) == []
    assert ring.consumer.waiting_bytes == 0


def test_an_incomplete_record_holds_back_what_follows(ring: Ring) -> None:
    ring.put(b"before")
    at = ring.producer.reserve(4)
    assert at is not None
    ring.put(b"after")
    assert list(ring.consumer.consume()) == [b"before"]
    ring.producer.submit(at, b"late")
    assert list(ring.consumer.consume()) == [b"late", b"after"]


def test_discarded_records_are_skipped(ring: Ring) -> None:
    at = ring.producer.reserve(100)
    assert at is not None
    ring.producer.discard(at, 100)
    ring.put(b"kept")
    assert list(ring.consumer.consume()) == [b"kept"]
    assert ring.consumer.waiting_bytes == 0


def test_a_record_may_run_over_the_end_of_the_area(ring: Ring) -> None:
    ring.put(bytes(3000))
    assert list(ring.consumer.consume()) == [bytes(3000)]
    data = bytes(index % 251 for index in range(2000))
    ring.put(data)
    assert list(ring.consumer.consume()) == [data]


def test_room_comes_back_only_when_a_record_was_read(ring: Ring) -> None:
    ring.put(bytes(2000))
    ring.put(bytes(2000))
    assert ring.producer.reserve(200) is None
    reader = ring.consumer.consume()
    next(reader)
    assert ring.producer.reserve(200) is not None
    reader.close()


def test_a_record_that_comes_while_reading_is_read_too(ring: Ring) -> None:
    ring.put(b"first")
    reader = ring.consumer.consume()
    assert next(reader) == b"first"
    ring.put(b"second")
    assert next(reader) == b"second"
    assert next(reader, None) is None


@settings(deadline=None)
@given(st.data())
def test_nothing_is_lost_or_twice(data: st.DataObject) -> None:
    with Ring() as ring:
        reserved: deque[tuple[int, bytes]] = deque()
        order: deque[int] = deque()
        done: dict[int, bytes | None] = {}
        read: list[bytes] = []
        wanted: list[bytes] = []
        steps = data.draw(st.lists(st.sampled_from(["reserve", "submit", "discard", "read"]), max_size=60))
        for number, step in enumerate([*steps, "read"]):
            if step == "reserve":
                content = bytes([number]) * data.draw(st.integers(0, 1500))
                at = ring.producer.reserve(len(content))
                if at is not None:
                    reserved.append((at, content))
                    order.append(at)
            elif step == "read":
                read += ring.consumer.consume()
                while order and order[0] in done:
                    found = done[order.popleft()]
                    if found is not None:
                        wanted.append(found)
                assert read == wanted
            elif reserved:
                # Producers on several CPUs complete their records in any order.
                reserved.rotate(data.draw(st.integers(0, 3)))
                at, content = reserved.popleft()
                if step == "submit":
                    ring.producer.submit(at, content)
                    done[at] = content
                else:
                    ring.producer.discard(at, len(content))
                    done[at] = None


def test_only_a_ring_buffer_is_read() -> None:
    spec = MapSpec("table", MapType.BPF_MAP_TYPE_HASH, 4, 4, 1)
    with Map.create(spec, FakeKernel()) as table, pytest.raises(InternalError, match="not a ring buffer"):
        RingBuffer(table)


def test_a_machine_of_weaker_memory_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ringbuf.platform, "machine", lambda: "aarch64")
    with Map.create(SPEC, FakeKernel()) as events, pytest.raises(UnsupportedFeature, match="aarch64"):
        RingBuffer(events)


def test_memory_that_cannot_be_mapped_is_an_error() -> None:
    with Map(os.open("/dev/null", os.O_RDWR), SPEC) as events, pytest.raises(KernelError, match="ring buffer 'events'"):
        RingBuffer(events)
