"""
The machine's maps and helpers against the kernel's: the same programs, the same calls, the same answers.

Programs take what they work on from the packet, so one program serves for any number of cases.
"""

from __future__ import annotations

import os
import random
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from actplane.asm import MapSpec, MapType, Object, ProgType, assemble_object
from actplane.asm.machine import LoadedProgram as Interpreted
from actplane.asm.machine import Machine
from actplane.errors import KernelError, RejectedByKernel
from actplane.loader.maps import Map
from actplane.loader.programs import LoadedProgram, load
from actplane.loader.ringbuf import RingBuffer

MAP_CASES = 50 if "ACTPLANE_GUEST" in os.environ else 400
# How kernels before 5.13 to 5.17 refuse helpers and callbacks that they do not know.
LACKS = re.compile(r"(?:unknown|invalid) func .*|program of this type cannot use .*|number of funcs in func_info .*")
CASES = 20 if "ACTPLANE_GUEST" in os.environ else 200


class Both:
    """One object, loaded into the kernel and into a machine."""

    def __init__(self, found: Object, stack: ExitStack) -> None:
        self.machine = Machine(found.maps)
        self.maps = {spec.name: stack.enter_context(Map.create(spec)) for spec in found.maps}
        self.kernel: dict[str, LoadedProgram] = {}
        self.interpreted: dict[str, Interpreted] = {}
        for program in found.programs:
            self.kernel[program.name] = stack.enter_context(load(program, self.maps))
            self.interpreted[program.name] = self.machine.load(program)

    def run(self, packet: bytes, name: str = "main") -> tuple[tuple[int, bytes], tuple[int, bytes]]:
        """Return what the kernel and what the machine answer: r0 in 32 bits, and the packet afterwards."""
        outcome = self.interpreted[name].run(packet=packet)
        kernel = self.kernel[name].test_run(packet, data_out_bytes=4096)
        assert outcome.packet is not None
        return (kernel.retval, kernel.data_out), (outcome.value & 0xFFFFFFFF, outcome.packet)


@pytest.fixture
def both() -> Iterator:
    with ExitStack() as stack:

        def build(text: str, prog_type: str = "XDP", maps: tuple[MapSpec, ...] = ()) -> Both:
            found = assemble_object(text, prog_type=ProgType[f"BPF_PROG_TYPE_{prog_type}"])
            try:
                return Both(Object((*maps, *found.maps), found.programs), stack)
            except RejectedByKernel as error:
                reason = LACKS.search(error.log)
                if reason:
                    pytest.skip(f"this kernel lacks what the program needs: {reason[0]}")
                raise
            except KernelError as error:
                if error.errno == 1:
                    pytest.skip("loading programs is not permitted here")
                raise

        yield build


def with_packet(size: int, body: str, registers: str = "r6") -> str:
    """A program whose r6 points to `size` bytes of packet, and which returns 0xdead if there are fewer."""
    return f"""
    r7 = r1
    {registers} = *(u32 *)(r1 +0)
    r3 = *(u32 *)(r1 +4)
    r0 = 0xdead
    r4 = r6
    r4 += {size}
    if r4 > r3 goto out
{body}
out:
    exit
"""


# Maps: one operation after the other on the same map, chosen by the packet.

OPERATE = with_packet(
    40,
    """
    r8 = *(u32 *)(r6 +0)              // 0 lookup, 1 update, 2 delete
    r1 = *(u64 *)(r6 +16)
    *(u64 *)(r10 -16) = r1            // the key
    r1 = *(u64 *)(r6 +24)
    *(u64 *)(r10 -8) = r1             // the value
    r1 = map[m]
    r2 = r10
    r2 += -16
    if r8 == 1 goto update
    if r8 == 2 goto delete
    call bpf_map_lookup_elem
    if r0 == 0 goto nothing
    r1 = *(u64 *)(r0 +0)
    *(u64 *)(r6 +32) = r1
    r0 = 1
    goto out
nothing:
    r0 = 0
    goto out
update:
    r3 = r10
    r3 += -8
    r4 = *(u64 *)(r6 +8)              // flags
    call bpf_map_update_elem
    goto out
delete:
    call bpf_map_delete_elem
""",
)


ALL_FLAGS = (0, 0, 0, 1, 2, 3, 8)


def operation(rng: random.Random, key: bytes, all_flags: tuple[int, ...] = ALL_FLAGS) -> bytes:
    what = rng.choice((0, 0, 1, 1, 1, 2))
    flags = rng.choice(all_flags)
    return struct.pack("<IIQ", what, 0, flags) + key.ljust(8, b"\0") + rng.randbytes(8) + bytes(8)


@pytest.mark.parametrize("kind", ["HASH", "ARRAY", "PERCPU_HASH", "PERCPU_ARRAY", "LRU_HASH"])
def test_map_operations(both, kind: str) -> None:
    entries = 64 if kind == "LRU_HASH" else 5  # what an LRU map evicts is the kernel's own affair: never full here
    spec = MapSpec("m", MapType[f"BPF_MAP_TYPE_{kind}"], 4, 8, entries)
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    try:
        pair = both(OPERATE, maps=(spec,))
        rng = random.Random(kind)
        for _ in range(MAP_CASES):
            packet = operation(rng, rng.randrange(8).to_bytes(4, "little"))
            kernel, machine = pair.run(packet)
            assert machine == kernel, packet.hex()
    finally:
        os.sched_setaffinity(0, affinity)


def test_lpm_trie_operations(both) -> None:
    spec = MapSpec("m", MapType.BPF_MAP_TYPE_LPM_TRIE, 8, 8, 6, flags=1)
    pair = both(OPERATE, maps=(spec,))
    # Before 6.13 (and some 6.12) tries ignored BPF_NOEXIST and BPF_EXIST; the machine does as later ones do.
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    flags = ALL_FLAGS if release >= (6, 13) else (0, 3, 8)
    rng = random.Random("lpm")
    for _ in range(MAP_CASES):
        length = rng.choice((0, 1, 7, 8, 9, 15, 16, 24, 31, 32, 33))
        address = bytes(rng.choice((0, 1, 0x80, 0xFF)) for _ in range(4))
        packet = operation(rng, length.to_bytes(4, "little") + address, flags)
        kernel, machine = pair.run(packet)
        assert machine == kernel, packet.hex()


QUEUE = with_packet(
    24,
    """
    r8 = *(u32 *)(r6 +0)              // 0 push, 1 pop, 2 peek
    r1 = *(u64 *)(r6 +16)
    *(u64 *)(r10 -8) = r1
    r1 = map[m]
    r2 = r10
    r2 += -8
    if r8 == 1 goto pop
    if r8 == 2 goto peek
    r3 = *(u64 *)(r6 +8)
    call bpf_map_push_elem
    goto out
pop:
    call bpf_map_pop_elem
    goto show
peek:
    call bpf_map_peek_elem
show:
    r1 = *(u64 *)(r10 -8)
    *(u64 *)(r6 +16) = r1
""",
)


@pytest.mark.parametrize("kind", ["QUEUE", "STACK"])
def test_queue_operations(both, kind: str) -> None:
    pair = both(QUEUE, maps=(MapSpec("m", MapType[f"BPF_MAP_TYPE_{kind}"], 0, 8, 4),))
    rng = random.Random(kind)
    for _ in range(MAP_CASES):
        packet = struct.pack("<IIQ", rng.choice((0, 0, 1, 2)), 0, rng.choice((0, 0, 2, 1, 4))) + rng.randbytes(8)
        kernel, machine = pair.run(packet)
        assert machine == kernel, packet.hex()


# Helpers that compute.


def test_csum_diff(both) -> None:
    program = """
    r1 = r6
    r1 += 16
    r2 = 8
    r3 = r6
    r3 += 24
    r4 = 12
    r5 = *(u32 *)(r6 +36)
    call bpf_csum_diff
out:
    exit
"""
    pair = both(SKB_POINTERS + program, "SCHED_CLS")
    rng = random.Random("csum")
    for _ in range(CASES):
        packet = rng.randbytes(64)
        (kernel, _), (machine, _) = pair.run(packet)
        # The kernel may or may not fold: the same checksum has several 32-bit forms.
        assert fold(machine) == fold(kernel), packet.hex()


def fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total % 0xFFFF


SKB_POINTERS = """
    r7 = r1
    r6 = *(u32 *)(r1 +76)
    r3 = *(u32 *)(r1 +80)
    r0 = 0xdead
    r4 = r6
    r4 += 40
    if r4 > r3 goto out
"""


@pytest.mark.parametrize(
    ("helper", "flags"), [("bpf_l3_csum_replace", (0, 2, 4)), ("bpf_l4_csum_replace", (0, 2, 4, 0x24, 0x64, 0x104, 3))]
)
def test_checksum_replacement(both, helper: str, flags: tuple[int, ...]) -> None:
    rng = random.Random(helper)
    for flag in flags:
        text = (
            SKB_POINTERS
            + f"""
    r3 = *(u32 *)(r6 +16)
    r4 = *(u32 *)(r6 +20)
    r1 = r7
    r2 = 24
    r5 = {flag}
    call {helper}
out:
    exit
"""
        )
        pair = both(text, "SCHED_CLS")
        for _ in range(CASES // 4):
            packet = bytearray(rng.randbytes(64))
            if flag in (0, 2):
                packet[18:20] = packet[22:24] = bytes(2)
            if flag & 15 == 0 and rng.random() < 0.8:
                packet[16:20] = bytes(4)
            if rng.random() < 0.2:
                packet[24:26] = bytes(2)
            kernel, machine = pair.run(bytes(packet))
            assert machine == kernel, (flag, packet.hex())


def test_loading_and_storing_bytes_of_packets(both) -> None:
    text = (
        SKB_POINTERS
        + """
    r8 = *(u32 *)(r6 +16)             // where from
    r9 = *(u32 *)(r6 +20)             // where to
    *(u64 *)(r10 -8) = 0
    r1 = r7
    r2 = r8
    r3 = r10
    r3 += -8
    r4 = 8
    call bpf_skb_load_bytes
    r8 = r0
    r1 = r7
    r2 = r9
    r3 = r10
    r3 += -8
    r4 = 8
    r5 = 0
    call bpf_skb_store_bytes
    r0 <<= 8
    r0 ^= r8
out:
    exit
"""
    )
    pair = both(text, "SCHED_CLS")
    rng = random.Random("bytes")
    for _ in range(CASES):
        packet = bytearray(rng.randbytes(64))
        offsets = [rng.choice((0, 14, 55, 56, 57, 64, 70000, 0xFFFFFFFF)) for _ in range(2)]
        packet[16:24] = struct.pack("<II", *offsets)
        kernel, machine = pair.run(bytes(packet))
        assert machine == kernel, offsets


def test_ld_abs_and_ld_ind(both) -> None:
    """On XDP's sibling that has them: socket filters, whose packets begin behind the link layer header."""
    for size, kind in ((1, "u8"), (2, "u16"), (4, "u32")):
        text = f"""
    r6 = r1
    r0 = *(u32 *)skb[0]
    r7 = r0
    r7 &= 63
    r0 = *({kind} *)skb[r7 + 4]
    exit
"""
        pair = both(text, "SOCKET_FILTER")
        rng = random.Random(size)
        for _ in range(CASES // 4):
            packet = rng.randbytes(64)
            kernel = pair.kernel["main"].test_run(packet).retval
            assert pair.interpreted["main"].run(packet=packet[14:]).value & 0xFFFFFFFF == kernel


def test_moving_head_and_tail_of_packets(both) -> None:
    text = with_packet(
        16,
        """
    r8 = *(u32 *)(r6 +0)
    r9 = *(u32 *)(r6 +4)
    r1 = r7
    r2 = r8
    call bpf_xdp_adjust_head
    r8 = r0
    r1 = r7
    r2 = r9
    call bpf_xdp_adjust_tail
    r0 <<= 8
    r0 ^= r8
""",
    )
    pair = both(text)
    rng = random.Random("adjust")
    for _ in range(CASES):
        deltas = [rng.choice((0, 1, 4, -4, 16, -16, -30, 100, -300)) for _ in range(2)]
        packet = struct.pack("<ii", *deltas) + rng.randbytes(56)
        kernel, machine = pair.run(packet)
        # What lies in new room is not defined: the kernel leaves it as it was, the machine has zeros there.
        assert machine[0] == kernel[0], deltas
        assert len(machine[1]) == len(kernel[1]), deltas


def test_parsing_numbers(both) -> None:
    text = with_packet(
        16,
        """
    r1 = *(u64 *)(r6 +0)
    *(u64 *)(r10 -8) = r1
    *(u64 *)(r10 -16) = 0
    r1 = r10
    r1 += -8
    r2 = 8
    r3 = *(u8 *)(r6 +8)
    r4 = r10
    r4 += -16
    call bpf_{name}
    r1 = *(u64 *)(r10 -16)
    *(u64 *)(r6 +8) = r1
""",
    )
    for name in ("strtol", "strtoul"):
        pair = both(text.replace("{name}", name))
        rng = random.Random(name)
        for _ in range(CASES):
            digits = "".join(rng.choice("0123456789abcdefxX- \t.") for _ in range(rng.randrange(1, 8)))
            number = rng.choice((digits, digits, f"-{rng.randrange(999)}", f" 0x{rng.getrandbits(20):x}", "077", "0"))
            packet = number.encode()[:8].ljust(8, b"\0") + bytes([rng.choice((0, 8, 10, 16, 7))]) + bytes(7)
            kernel, machine = pair.run(packet)
            assert machine == kernel, packet


def test_comparing_strings(both) -> None:
    text = """
.rodata wanted
    .asciz "hello"
    .zero 2
.prog main xdp
""" + with_packet(
        16,
        """
    r1 = *(u64 *)(r6 +0)
    *(u64 *)(r10 -8) = r1
    r1 = r10
    r1 += -8
    r2 = 8
    r3 = map[wanted][0]
    call bpf_strncmp
""",
    )
    pair = both(text)
    for word in (b"hello", b"hellp", b"hell", b"helloo", b"", b"zebra", b"hello\0xy"):
        kernel, machine = pair.run(word.ljust(16, b"\0"))
        assert (machine[0] == 0) == (kernel[0] == 0)
        assert machine == kernel, word


# Calls.


def test_subprograms_callbacks_and_tail_calls(both) -> None:
    text = (
        """
.map programs prog_array key=4 value=4 max_entries=4
.prog main xdp
"""
        + with_packet(
            16,
            """
    r1 = *(u32 *)(r6 +0)
    r2 = *(u32 *)(r6 +4)
    call mix
    *(u64 *)(r10 -8) = r0
    r1 = *(u8 *)(r6 +8)
    r2 = subprog[each]
    r3 = r10
    r3 += -8
    r4 = 0
    call bpf_loop
    r1 = *(u64 *)(r10 -8)
    r0 ^= r1
    *(u32 *)(r6 +12) = r0
    r1 = r7
    r2 = map[programs]
    r3 = 0
    call bpf_tail_call
    r0 = 77
    exit
""",
        )
        + """
.func mix
    r0 = r1
    r0 *= 31
    r0 ^= r2
    exit
.func each
    r0 = *(u64 *)(r2 +0)
    r0 *= 17
    r0 += r1
    *(u64 *)(r2 +0) = r0
    r0 &= 64
    r0 >>= 6
    exit
"""
    )
    pair = both(text)
    rng = random.Random("calls")
    for _ in range(CASES):
        packet = rng.randbytes(12) + bytes(52)
        kernel, machine = pair.run(packet)
        assert machine == kernel, packet.hex()


def test_may_goto_goes_round_as_long_as_it_likes(both) -> None:
    text = "r0 = 0\nr1 = 1000\nagain:\nmay_goto out\nr0 += r1\nr1 -= 1\nif r1 != 0 goto again\nout:\nexit\n"
    try:
        pair = both(text)
    except RejectedByKernel as error:
        if "opcode e5" not in error.log and "BPF_JMP uses reserved fields" not in error.log:
            raise
        pytest.skip("this kernel does not know may_goto (Linux 6.9 or newer)")
    kernel, machine = pair.run(bytes(64))
    assert machine[0] == kernel[0] == sum(range(1001))


def test_callbacks_over_the_elements_of_a_map(both) -> None:
    text = (
        """
.map m array key=4 value=8 max_entries=6
.prog main xdp
"""
        + with_packet(
            16,
            """
    r1 = *(u64 *)(r6 +0)
    *(u64 *)(r10 -16) = r1
    *(u32 *)(r10 -20) = 2
    r1 = map[m]
    r2 = r10
    r2 += -20
    r3 = r10
    r3 += -16
    r4 = 0
    call bpf_map_update_elem
    *(u64 *)(r10 -8) = 1
    r1 = map[m]
    r2 = subprog[each]
    r3 = r10
    r3 += -8
    r4 = 0
    call bpf_for_each_map_elem
    r1 = *(u64 *)(r10 -8)
    *(u64 *)(r6 +8) = r1
""",
        )
        + """
.func each
    r5 = *(u32 *)(r2 +0)
    r0 = *(u64 *)(r4 +0)
    r0 *= 31
    r0 += r5
    r1 = *(u64 *)(r3 +0)
    r0 ^= r1
    *(u64 *)(r4 +0) = r0
    r0 = 0
    if r1 & 1 goto stop
    exit
stop:
    r0 = 1
    exit
"""
    )
    pair = both(text)
    rng = random.Random("each")
    for _ in range(CASES):
        kernel, machine = pair.run(rng.randbytes(8) + bytes(56))
        assert machine == kernel


def test_dynptrs(both) -> None:
    text = """
.map m array key=4 value=32 max_entries=1
.prog main xdp
""" + with_packet(
        32,
        """
    r8 = *(u32 *)(r6 +0)              // size
    r9 = *(u32 *)(r6 +4)              // offset
    r1 = map[m][0]
    r2 = 32
    r3 = *(u64 *)(r6 +8)              // flags
    r4 = r10
    r4 += -16
    call bpf_dynptr_from_mem
    *(u32 *)(r6 +24) = r0
    r1 = *(u64 *)(r6 +16)
    *(u64 *)(r10 -24) = r1
    r1 = r10
    r1 += -16
    r2 = r9
    r3 = r10
    r3 += -24
    r4 = 8
    r5 = 0
    call bpf_dynptr_write
    *(u32 *)(r6 +28) = r0
    *(u64 *)(r10 -24) = 0
    r1 = r10
    r1 += -24
    r2 = 8
    r3 = r10
    r3 += -16
    r4 = r8
    r5 = 0
    call bpf_dynptr_read
    r1 = *(u64 *)(r10 -24)
    *(u64 *)(r6 +16) = r1
""",
    )
    pair = both(text)
    rng = random.Random("dynptr")
    for _ in range(CASES):
        offsets = [rng.choice((0, 1, 8, 23, 24, 25, 32, 0xFFFFFFFF)) for _ in range(2)]
        packet = struct.pack("<IIQ", *offsets, rng.choice((0, 0, 0, 1))) + rng.randbytes(8) + bytes(40)
        kernel, machine = pair.run(packet)
        assert machine == kernel, packet.hex()


def test_ring_buffers(both) -> None:
    text = """
.map m ringbuf key=0 value=0 max_entries=4096
.prog main xdp
""" + with_packet(
        24,
        """
    r8 = *(u32 *)(r6 +0)              // what to do
    r9 = *(u64 *)(r6 +8)
    if r8 == 1 goto output
    r1 = map[m]
    r2 = 200
    r3 = 0
    call bpf_ringbuf_reserve
    if r0 == 0 goto full
    *(u64 *)(r0 +0) = r9
    *(u64 *)(r0 +192) = r9
    r1 = r0
    r2 = 0
    if r8 == 2 goto discard
    call bpf_ringbuf_submit
    r0 = 1
    goto out
discard:
    call bpf_ringbuf_discard
    r0 = 2
    goto out
full:
    r0 = 3
    goto out
output:
    *(u64 *)(r10 -16) = r9
    *(u64 *)(r10 -8) = r9
    r1 = map[m]
    r2 = r10
    r2 += -16
    r3 = 13
    r4 = 0
    call bpf_ringbuf_output
""",
    )
    pair = both(text)
    rng = random.Random("ring")
    simulated = pair.machine.maps["m"]
    with RingBuffer(pair.maps["m"]) as ring:
        for number in range(CASES):
            packet = struct.pack("<IIQ", rng.randrange(3), 0, rng.getrandbits(64)) + rng.randbytes(48)
            kernel, machine = pair.run(packet)
            assert machine[0] == kernel[0]
            if number % 40 == 39:
                expected, got = list(ring.consume()), simulated.consume()
                # A reserved record holds what was in the ring before wherever the program did not write.
                assert [edges(record) for record in got] == [edges(record) for record in expected]


def edges(record: bytes) -> tuple[int, bytes, bytes]:
    return len(record), record[:8], record[-8:]


# Tracing helpers: raw tracepoint programs can be run on arguments of one's own.

OUT = ".map out array key=4 value=64 max_entries=1\n"


def run_traced(pair: Both, *arguments: int) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
    """Run on 64-bit arguments; return r0 and the content of the map `out`, of the kernel and of the machine."""
    zero = bytes(64)
    pair.maps["out"].update(bytes(4), zero)
    pair.machine.maps["out"][0] = zero
    kernel = pair.kernel["main"].test_run(ctx=struct.pack(f"<{len(arguments)}Q", *arguments)).retval
    machine = pair.interpreted["main"].run(arguments=list(arguments)).value & 0xFFFFFFFF
    written = pair.maps["out"].lookup(bytes(4))
    assert written is not None
    return (kernel, written), (machine, pair.machine.maps["out"][0])


@pytest.mark.parametrize("helper", ["bpf_probe_read_kernel", "bpf_probe_read_kernel_str"])
def test_reading_kernel_memory(both, helper: str) -> None:
    """From the program's own stack, which is kernel memory as good as any; and from an address where nothing is."""
    text = f"""
{OUT}
.prog main raw_tracepoint attach_to=sys_enter
    r6 = r1
    r2 = *(u64 *)(r6 +0)
    *(u64 *)(r10 -24) = r2
    r2 = *(u64 *)(r6 +8)
    *(u64 *)(r10 -16) = r2
    *(u64 *)(r10 -8) = 0             // whatever is read as a string ends here
    r1 = map[out][0]
    r2 = *(u64 *)(r6 +16)
    r2 &= 31
    r3 = r10
    r3 += -24
    r4 = *(u64 *)(r6 +24)
    if r4 == 0 goto read
    r3 = r4
read:
    call {helper}
    exit
"""
    pair = both(text)
    rng = random.Random(helper)
    for _ in range(CASES):
        content = bytes(rng.choice(b"abc\0\xff") if rng.random() < 0.3 else rng.randrange(1, 256) for _ in range(16))
        size = rng.randrange(0, 25)
        kernel, machine = run_traced(pair, *struct.unpack("<QQ", content), size, rng.choice((0, 0, 0, 0, 16, 1 << 63)))
        assert machine == kernel, (content, size)


@pytest.mark.parametrize(
    "template",
    [
        "%d|%u|%x",
        "%5d|%-5d|%05d",
        "%lld|%llu|%llx",
        "%c%c%c",
        "%X|%08x|%4x",
        "%i %ld %lu",
        "100%% %d",
        "% d|%+d|%-3x",
        "%px|%d|%i",
    ],
)
def test_formatting_numbers(both, template: str) -> None:
    text = f"""
{OUT}
.rodata template
    .asciz "{template}"
.prog main raw_tracepoint attach_to=sys_enter
    r2 = *(u64 *)(r1 +0)
    *(u64 *)(r10 -24) = r2
    r2 = *(u64 *)(r1 +8)
    *(u64 *)(r10 -16) = r2
    r2 = *(u64 *)(r1 +16)
    *(u64 *)(r10 -8) = r2
    r1 = map[out][0]
    r2 = 64
    r3 = map[template][0]
    r4 = r10
    r4 += -24
    r5 = {8 * template.replace("%%", "").count("%")}
    call bpf_snprintf
    exit
"""
    pair = both(text)
    rng = random.Random(template)
    numbers = (0, 1, 65, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)
    for _ in range(CASES // 4):
        values = [rng.choice((*numbers, rng.getrandbits(64))) for _ in range(3)]
        if "c" in template:
            values = [rng.randrange(32, 127) for _ in range(3)]
        kernel, machine = run_traced(pair, *values)
        assert machine == kernel, values
