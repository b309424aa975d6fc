"""
Memory that programs and supervisor share, byte by byte. Everything is little-endian.

Four kinds of it:

    task state     one per process, on the thread-group leader: which session, which labels
    scratch        one per thread that had an event: what the judging of that event needs
    session        one per policy: when each gate was passed and invalidated, counters
    record         what a program says of an event, through the ring buffer
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from actplane.ir.policy import MAX_LABELS

LABEL_WORDS = MAX_LABELS // 32
"""Label sets are eight 32-bit words, so that masks fit the immediate of an instruction."""
LABEL_BYTES = 4 * LABEL_WORDS

# Task state (BPF_MAP_TYPE_TASK_STORAGE "tasks").
STATE_SLOT = 0
"""u32: the index of the session's programs in every prog array."""
STATE_FLAGS = 4
"""u32: STATE_WAITS."""
STATE_WAITS = 1
"""The process has read from a pipe or socket, where labels may arrive while it waits."""
STATE_LABELS = 8
STATE_LINEAGE = STATE_LABELS + LABEL_BYTES
STATE_PENDING = STATE_LINEAGE + LABEL_BYTES
"""Gates with `exits` that this process's end may pass. Not inherited."""
STATE_BYTES = STATE_PENDING + LABEL_BYTES


def pack_state(slot: int, labels: frozenset[int] = frozenset()) -> bytes:
    """
    Return the task state of a session's first process.

    >>> len(pack_state(0)) == STATE_BYTES
    True
    """
    words = [0] * LABEL_WORDS
    for label in labels:
        words[label // 32] |= 1 << (label % 32)
    return struct.pack(f"<II{LABEL_WORDS}I", slot, 0, *words).ljust(STATE_BYTES, b"\0")


# A file, socket or address (inode storage, socket storage, "endpoints"): labels, then who waits there.
OBJECT_READER = LABEL_BYTES
OBJECT_READERS = 4
"""Places for the numbers of processes, by their low bits."""
OBJECT_BYTES = LABEL_BYTES + 8 * OBJECT_READERS

# Scratch (BPF_MAP_TYPE_TASK_STORAGE "scratch").
FACT_WORDS = 64
"""32-bit words of pattern bits of one kind: 2,048 patterns."""
FACT_BYTES = 8 + 4 * FACT_WORDS
"""A summary (bit w: word w is not zero), then the words."""
KINDS = ("exec", "file", "argument", "endpoint")
"""The automata. `exec` takes paths and names of executed files, `file` paths of opened ones."""
FACT_REGIONS = (*KINDS, "identity")
"""`identity` holds the exec facts before argv[0] was looked at, which a caller may choose freely."""

MAX_CLAUSES = 8192

SCRATCH_FACTS = 0
SCRATCH_VERDICT = SCRATCH_FACTS + len(FACT_REGIONS) * FACT_BYTES
"""u64: one bit an effect, see VERDICT_*."""
SCRATCH_LABELS = SCRATCH_VERDICT + 8
"""The labels the subject will have if the event is allowed."""
SCRATCH_NOW = SCRATCH_LABELS + LABEL_BYTES
SCRATCH_ACCESS = SCRATCH_NOW + 8
SCRATCH_FLAGS = SCRATCH_ACCESS + 8
SCRATCH_AT = SCRATCH_FLAGS + 8
"""Offset in TEXT of the next byte an automaton reads."""
SCRATCH_AUTOMATON = SCRATCH_AT + 8
SCRATCH_TARGET = SCRATCH_AUTOMATON + 8
"""Offset in TEXT and length of the target's name."""
SCRATCH_TARGET_BYTES = SCRATCH_TARGET + 8
SCRATCH_DENTRY = SCRATCH_TARGET_BYTES + 8
SCRATCH_MOUNT = SCRATCH_DENTRY + 8
SCRATCH_MOUNT_ROOT = SCRATCH_MOUNT + 8
SCRATCH_POSITION = SCRATCH_MOUNT_ROOT + 8
SCRATCH_STATUS = SCRATCH_POSITION + 8
SCRATCH_VECTOR = SCRATCH_STATUS + 8
"""Arguments: address of the next argv pointer (0: the strings lie one after the other)."""
SCRATCH_STRING = SCRATCH_VECTOR + 8
SCRATCH_STRINGS_LEFT = SCRATCH_STRING + 8
SCRATCH_ENDED = SCRATCH_STRINGS_LEFT + 8
SCRATCH_RECORD_AT = SCRATCH_ENDED + 8
SCRATCH_ACTION = SCRATCH_RECORD_AT + 8
SCRATCH_CAUSE = SCRATCH_ACTION + 8
SCRATCH_KERNEL = SCRATCH_CAUSE + 8
"""Room for what is read of kernel memory: a dentry, a socket address."""
KERNEL_BYTES = 136
SCRATCH_MATCHED = SCRATCH_KERNEL + KERNEL_BYTES
"""One bit a clause that matched."""
SCRATCH_TEXT = SCRATCH_MATCHED + MAX_CLAUSES // 8
TEXT_PATH_END = 4096
"""Paths are written backwards from here; what follows stays zero and ends them."""
TEXT_CHUNK = TEXT_PATH_END + 8
"""Where other strings are read to, in pieces: an argument, an address."""
TEXT_CHUNK_BYTES = 1176
TEXT_BYTES = TEXT_CHUNK + TEXT_CHUNK_BYTES + 8
TEXT_MASK = 8191
"""For addresses that are only read through a helper, which checks them itself."""
SCRATCH_BYTES = SCRATCH_TEXT + TEXT_BYTES

MAX_STORAGE_BYTES = 8000
"""Since 7.0 the kernel takes local storage from kmalloc_nolock, which has 8,192 bytes at most."""

VERDICT_NOTIFY = 1
VERDICT_BLOCK = 2
VERDICT_KILL = 4

ACCESS_OPEN = 1
ACCESS_READ = 2
ACCESS_WRITE = 4
ACCESS_UNLINK = 8
ACCESS_GAIN = 16
"""The process gains the object's labels."""
ACCESS_GIVE = 32
"""The object gains the process's labels."""
ACCESS_STAMP = 64
"""The object keeps the labels of the sources its old name matches."""
ACCESS_FOLDER = 128
"""The name is a folder's, and all below it gets or loses its name."""

FLAG_UNREADABLE = 1
"""An argument could not be read."""

# Session (BPF_MAP_TYPE_ARRAY "session", one element).
SESSION_DROPS = 0
"""u64: events that found no room in the ring buffer."""
SESSION_UNMARKED = 8
"""u64: tasks that were made although they could not be marked, so that the session must end."""
SESSION_BYTES_HEADER = 64


def session_gate(gate: int) -> int:
    """Return the offset of when a gate was last passed (ns, 0: never)."""
    return SESSION_BYTES_HEADER + 8 * gate


def session_invalidated(gates: int, invalidator: int) -> int:
    """Return the offset of when an invalidating event last happened."""
    return SESSION_BYTES_HEADER + 8 * (gates + invalidator)


def session_bytes(gates: int, invalidators: int) -> int:
    return SESSION_BYTES_HEADER + 8 * (gates + invalidators)


# Record: header, bits of the clauses that matched, then three strings.
RECORD_HEADER = struct.Struct("<QIIIIBBBBHHHHI32s")
"""time_ns, pid, tid, ppid, uid, event, action, cause, flags, clause words, target, exe, argv, error."""
RECORD_BITS = RECORD_HEADER.size
RECORD_TARGET_MAX = 4096
RECORD_EXE_MAX = 1024
RECORD_ARGV_MAX = 1024
RECORD_BYTES = RECORD_BITS + MAX_CLAUSES // 8 + RECORD_TARGET_MAX + RECORD_EXE_MAX + RECORD_ARGV_MAX

EVENT_EXEC = 1
EVENT_EXEC_COMMITTED = 2
EVENT_FILE = 3
EVENT_CONNECT = 4
EVENT_RECV = 5
EVENT_FORK = 6
EVENT_MOUNT = 7
EVENT_PTRACE = 8
EVENT_IOCTL = 9

ACTION_NOTIFIED = 1
ACTION_BLOCKED = 2
ACTION_KILLED = 3

CAUSE_CLAUSES = 0
CAUSE_NO_PATH = 1
CAUSE_ARGUMENTS_UNREADABLE = 2
CAUSE_NO_MEMORY = 3
CAUSE_NAMES_PLACES = 4
CAUSE_OUTSIDE = 5
CAUSE_TYPES = 6


@dataclass(frozen=True, slots=True)
class Record:
    """
    One event as the kernel reported it.

    `access` holds ACCESS_* bits of a file event. `argv` are arguments as bytes, `argv_is_cut` says
    that more followed.
    """

    time_ns: int
    pid: int
    tid: int
    ppid: int
    uid: int
    event: int
    action: int
    cause: int
    access: int
    labels: frozenset[int]
    clauses: tuple[int, ...]
    target: bytes
    exe: bytes
    argv: tuple[bytes, ...]
    argv_is_cut: bool


def _bits(words: bytes) -> tuple[int, ...]:
    value = int.from_bytes(words, "little")
    found: list[int] = []
    while value:
        lowest = value & -value
        found.append(lowest.bit_length() - 1)
        value ^= lowest
    return tuple(found)


def unpack_record(data: bytes) -> Record:
    """
    Read a record.

    Raises: ValueError if the lengths in the header do not fit `data`.
    """
    if len(data) < RECORD_BITS:
        raise ValueError(f"record of {len(data)} bytes, expected at least {RECORD_BITS}")
    (
        time_ns,
        pid,
        tid,
        ppid,
        uid,
        event,
        action,
        cause,
        access,
        clause_bytes,
        target_bytes,
        exe_bytes,
        argv_bytes,
        _,
        labels,
    ) = RECORD_HEADER.unpack_from(data)
    if RECORD_BITS + clause_bytes + target_bytes + exe_bytes + argv_bytes > len(data):
        raise ValueError(f"record of {len(data)} bytes is shorter than its header says")
    at = RECORD_BITS
    clauses, at = data[at : at + clause_bytes], at + clause_bytes
    target, at = data[at : at + target_bytes], at + target_bytes
    exe, at = data[at : at + exe_bytes], at + exe_bytes
    argv = data[at : at + argv_bytes]
    parts = argv.split(b"\0")
    is_cut = bool(argv) and not argv.endswith(b"\0")
    return Record(
        time_ns,
        pid,
        tid,
        ppid,
        uid,
        event,
        action,
        cause,
        access,
        frozenset(_bits(labels)),
        _bits(clauses),
        target.rstrip(b"\0"),
        exe.rstrip(b"\0"),
        tuple(parts if is_cut else parts[:-1]),
        is_cut,
    )
