"""
Labels that arrive while a reader waits.

The hooks of a read run before it: a process that waits at an empty pipe or socket has been judged
when the bytes arrive. So a reader leaves its number at the object, a writer whose labels are new
to the object puts them into the inbox of every number it finds there, and before anything else
that is judged, a process takes what lies in its inbox.

The reader writes its number and then looks at the labels; the writer writes the labels and then
looks for numbers. Both with a full barrier in between, so at least one sees the other.
"""

from __future__ import annotations

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType
from actplane.codegen import layout
from actplane.ir import bytecode as bc
from actplane.ir.build import FunctionBuilder

INBOX = MapSpec("inbox", MapType.BPF_MAP_TYPE_HASH, 4, layout.LABEL_BYTES, 1 << 16, flags=1)
"""Labels by process number. An entry is made for a process that waited and whose wait was ended by labels."""

EVERYBODY = 1
"""The number in place of two that collided; number 1 itself is never in a session."""
_BPF_NOEXIST = 1


def wait(f: FunctionBuilder, state: bc.Value, channel: bc.Value) -> None:
    """Emit: the current process may wait for bytes from the object whose storage is `channel`."""
    process = _process(f)
    at = f.op(process, "&", layout.OBJECT_READERS - 1, "at")
    f.update(at, "<<", 3)
    f.update(at, "+", channel)
    had = f.load(at, layout.OBJECT_READER, name="had")
    done, other, fresh = f.new_block("waiting"), f.new_block("other"), f.new_block("fresh")
    f.branch(had, "==", process, done, other)
    f.start(other)
    with f.when(had, "!=", 0):
        f.assign(process, EVERYBODY)
    f.jump(fresh)
    f.start(fresh)
    f.store(at, layout.OBJECT_READER, process)
    f.start(done)
    f.atomic("+", at, layout.OBJECT_READER, f.let(0, "nothing"))  # The barrier.
    f.store(state, layout.STATE_FLAGS, layout.STATE_WAITS, 4)


def notify_readers(f: FunctionBuilder, channel: bc.Value, denied: bc.Operand) -> None:
    """Emit: whoever waits at an object will find its labels; return `denied` if there is no room for them."""
    for index in range(layout.OBJECT_READERS):
        reader = f.load(channel, layout.OBJECT_READER + 8 * index, name="reader")
        with f.when(reader, "!=", 0):
            failed = f.call("deliver", channel, reader, result="failed")
            with f.when(failed, "!=", 0):
                f.ret(denied)


def absorb(f: FunctionBuilder, state: bc.Value, label_words: int) -> None:
    """Emit: the current process takes what lies in its inbox."""
    flags = f.load(state, layout.STATE_FLAGS, 4, "flags")
    with f.when(flags, "&", layout.STATE_WAITS):
        key = f.frame_address(f.slot("inbox_key", 8))
        for number in (_process(f), f.let(EVERYBODY, "everybody")):
            f.store(key, 0, number, 4)
            labels = f.helper("bpf_map_lookup_elem", f.map_address("inbox"), key, result="labels")
            with f.when(labels, "!=", 0):
                for pair in range(label_words // 2):
                    f.atomic("|", state, layout.STATE_LABELS + 8 * pair, f.load(labels, 8 * pair))


def forget(f: FunctionBuilder) -> None:
    """Emit: the inbox of the current process, which ends, is gone."""
    key = f.frame_address(f.slot("inbox_key", 8))
    f.store(key, 0, _process(f), 4)
    f.helper("bpf_map_delete_elem", f.map_address("inbox"), key)


def deliver() -> bc.Function:
    """Return `deliver(channel, reader)`: put an object's labels into an inbox; 1 if there is no room."""
    f = FunctionBuilder("deliver", ["channel", "reader"])
    channel, reader = f.parameters
    key = f.frame_address(f.slot("key", 8))
    f.store(key, 0, reader)
    inbox = f.map_address("inbox")
    labels = f.helper("bpf_map_lookup_elem", inbox, key, result="labels")
    with f.when(labels, "==", 0):
        value = f.frame_address(f.slot("value", layout.LABEL_BYTES))
        for offset in range(0, layout.LABEL_BYTES, 8):
            f.store(value, offset, 0)
        f.helper("bpf_map_update_elem", inbox, key, value, _BPF_NOEXIST)
        f.assign(labels, f.helper("bpf_map_lookup_elem", inbox, key))
        with f.when(labels, "==", 0):
            f.ret(1)
    for offset in range(0, layout.LABEL_BYTES, 8):
        f.atomic("|", labels, offset, f.load(channel, offset))
    f.ret(0)
    return f.finish()


def _process(f: FunctionBuilder) -> bc.Value:
    number = f.helper("bpf_get_current_pid_tgid", result="process")
    f.update(number, ">>", 32)
    return number
