"""
Reading a ring buffer (BPF_MAP_TYPE_RINGBUF) through shared memory.

The kernel and this process share two positions, in bytes, that only grow: the producer's, which the
kernel writes, and the consumer's, which this process writes. A record is a header of 8 bytes and its
data, rounded up to 8 bytes. The data area is mapped twice in a row, so a record that runs over its
end reads on without a seam.

Memory order, which Python has no words for:

- Positions and headers are aligned, and a memoryview reads or writes one of them with a single move.
- A record's data must not be read before its header says it is complete, nor its room given back
  before it was copied. On x86-64 loads stay in order, and stores stay behind loads, so plain moves do.
- The kernel wakes a reader only if the consumer's position is that of the record it has just
  completed. So after giving the position away one must look again before sleeping, and the store
  must be out before that look: the one order x86-64 does not keep by itself. A lock that nobody else
  holds is taken for it, since taking one is an atomic exchange, hence a full fence.

Other machines keep less order, and are refused until they are tested.

Source: kernel/bpf/ringbuf.c and Documentation/bpf/ringbuf.rst of Linux 6.18.
"""

from __future__ import annotations

import errno
import mmap
import platform
import select
import threading
from collections.abc import Iterator
from types import TracebackType

from actplane.asm.uapi import MapType
from actplane.errors import InternalError, KernelError, UnsupportedFeature
from actplane.loader.maps import Map

BPF_RINGBUF_BUSY_BIT = 1 << 31
BPF_RINGBUF_DISCARD_BIT = 1 << 30
BPF_RINGBUF_HDR_SZ = 8

_ORDERED_MACHINES = ("x86_64",)


class RingBuffer:
    """
    The one reader of a ring buffer map; two readers would each get some of the records.

    Raises: KernelError if the memory cannot be mapped.
    Since:  5.8.
    """

    def __init__(self, ring: Map) -> None:
        if ring.spec.type is not MapType.BPF_MAP_TYPE_RINGBUF:
            raise InternalError("not a ring buffer", map=ring.spec.name, type=ring.spec.type.name)
        if platform.machine() not in _ORDERED_MACHINES:
            raise UnsupportedFeature(f"reading a ring buffer on {platform.machine()}", "5.8", errno.ENOSYS)
        size = ring.spec.max_entries
        self._map = ring
        self._mask = size - 1
        self._fence = threading.Lock()
        page = mmap.PAGESIZE
        try:
            self._consumer_page = mmap.mmap(ring.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
            try:
                self._data_pages = mmap.mmap(ring.fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
            except BaseException:
                self._consumer_page.close()
                raise
        except OSError as error:
            raise KernelError(f"mmap of ring buffer {ring.spec.name!r}", error.errno or errno.EINVAL) from error
        self._consumer = memoryview(self._consumer_page)[:8].cast("Q")
        self._producer = memoryview(self._data_pages)[:8].cast("Q")
        self._data = memoryview(self._data_pages)[page:]
        self._headers = self._data.cast("I")

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when records wait (level-triggered)."""
        return self._map.fd

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait to be read, headers and incomplete records included."""
        return self._producer[0] - self._consumer[0]

    def poll(self, timeout_ms: int | None = None) -> Iterator[bytes]:
        """
        Wait until records are there, then iterate over them.

        Units:  timeout_ms is milliseconds; None waits for ever, 0 does not wait.
        """
        # poll(2) looks at the positions afresh each time, so no wake-up of before can be missed.
        waiter = select.poll()
        waiter.register(self._map.fd, select.POLLIN)
        waiter.poll(timeout_ms)
        return self.consume()

    def consume(self) -> Iterator[bytes]:
        """
        Iterate over the records that are complete, in their order, and give their room back.

        Never blocks; stops at the first record that a program has reserved and not yet submitted, for
        what follows it must wait for it. Discarded records are skipped.
        """
        is_fenced = False
        while True:
            position = self._consumer[0]
            header = self._headers[(position & self._mask) // 4] if position < self._producer[0] else None
            if header is None or header & BPF_RINGBUF_BUSY_BIT:
                if is_fenced:
                    return
                with self._fence:
                    is_fenced = True
                continue
            is_fenced = False
            length = header & ~BPF_RINGBUF_DISCARD_BIT
            start = (position & self._mask) + BPF_RINGBUF_HDR_SZ
            # Copied before its room is given back: from then on the kernel may write there.
            record = None if header & BPF_RINGBUF_DISCARD_BIT else bytes(self._data[start : start + length])
            self._consumer[0] = position + (BPF_RINGBUF_HDR_SZ + length + 7) // 8 * 8
            if record is not None:
                yield record

    def close(self) -> None:
        """Unmap the memory; the map stays open. Doing so again has no effect."""
        for view in (self._headers, self._data, self._producer, self._consumer):
            view.release()
        self._data_pages.close()
        self._consumer_page.close()

    def __enter__(self) -> RingBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
