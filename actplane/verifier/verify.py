"""The door of the mirror: a program, its maps and types in; a report out."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from actplane.asm.insn import Insn
from actplane.asm.isa import CALL, PSEUDO_CALL, PSEUDO_FUNC, PSEUDO_KFUNC_CALL
from actplane.asm.program import MapSpec, Program
from actplane.asm.uapi import AttachType, ProgType
from actplane.verifier.domains import scalar
from actplane.verifier.domains.maps import map_facts
from actplane.verifier.domains.types import OwnTypes, TypeProvider
from actplane.verifier.engine import Engine
from actplane.verifier.log import insn_text, state_text
from actplane.verifier.paths import attach, exceptions, struct_ops
from actplane.verifier.paths.flow import NAMES_FUNCTION, Code, Layout, Loops
from actplane.verifier.paths.jump_tables import places_of_tables
from actplane.verifier.paths.state import State
from actplane.verifier.paths.verification import Options, Subject, Verification
from actplane.verifier.report import Refusal, Report, Statistics, Step
from actplane.verifier.rules import global_functions, kernel_symbols, kfuncs, map_rules, stack_depth
from actplane.verifier.rules.global_functions import GlobalFunction
from actplane.verifier.rules.subprograms import entry_state
from actplane.verifier.tables.instruction_versions import fields_of, refusable_unseen, why_refused_unseen
from actplane.verifier.tables.number_versions import deductions_of
from actplane.verifier.tables.profiles import DEFAULT, KernelProfile
from actplane.verifier.tables.refusals import CATALOGUE, Refused, refuse

scalar.settle()  # the modules above hold ranges

UNPRIVILEGED_SLOTS: Final = 4096
MAX_FUNCTIONS: Final = 256
_PATH_STEPS: Final = 40


def verify(
    program: Program,
    maps: Mapping[str, MapSpec] | Iterable[MapSpec] = (),
    types: TypeProvider | None = None,
    *,
    own: OwnTypes | None = None,
    profile: KernelProfile | None = None,
    options: Options | None = None,
) -> Report:
    """
    Judge a program as a kernel's verifier would.

    Shape:  `program.insns` with jumps and calls resolved to numbers, maps as symbols that name those in
            `maps`; `types` is the kernel's BTF, which programs that attach to kernel functions need;
            `own` is the program's own BTF, where it has any (without it the mirror takes for granted that
            the loader describes the functions, each with a result, as kernels want it); `profile` is
            the kernel, by default `DEFAULT`, else one of `PROFILES` or what `profile_of` makes of a
            release; `options` are privileges, budgets, and whether a log is wanted.
    Raises: nothing about the program: that is in the report. TypeError for an argument that is
            something else, InternalError for our own bugs.

    >>> from actplane.asm.assembler import assemble_object
    >>> from actplane.verifier import profile_of
    >>> text = ".prog demo xdp\\nr0 = *(u32 *)(r3 +0)\\nexit\\n"
    >>> source = assemble_object(text, name="demo.s")
    >>> report = verify(source.programs[0], source.maps, profile=profile_of("6.1"))
    >>> report.is_accepted, report.refusal.id, report.refusal.slot
    (False, 'uninitialized-register', 0)
    """
    profile = profile or DEFAULT
    options = options or Options()
    _expect("program", program, Program, "verify each of the `programs` of an Object")
    _expect("profile", profile, KernelProfile, "profile_of() makes one of a name")
    _expect("options", options, Options, "as in Options(is_privileged=False)")
    maps = maps if isinstance(maps, Mapping) else {spec.name: spec for spec in maps}
    started = time.perf_counter()
    with _paused_collector():
        scalar.use(deductions_of(profile))
        report = _judge(Subject(program, {}, types, own), maps, profile, options)
        scalar.forget()
    return replace(report, statistics=replace(report.statistics, seconds=time.perf_counter() - started))


def _expect(name: str, got: object, kind: type, hint: str) -> None:
    if not isinstance(got, kind):
        raise TypeError(f"{name}: got {type(got).__name__}, expected {kind.__name__}: {hint}")


@contextmanager
def _paused_collector() -> Iterator[None]:
    """
    Pause Python's cycle collector. What a verification makes is freed by reference counts, and there is
    so much of it that the collector would look at every state again and again, for half of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _judge(subject: Subject, maps: Mapping[str, MapSpec], profile: KernelProfile, options: Options) -> Report:
    engine: Engine | None = None
    refusal: Refusal | None = None
    program, own = subject.program, subject.own
    try:
        subject.maps.update((name, map_facts(name, spec, own)) for name, spec in maps.items())
        layout = Layout(program.insns)
        _check_program(program, layout, profile, options)
        thrown = exceptions.find_callback(own, profile)
        subject.notes["exception_callback"] = thrown
        roots = () if thrown is None else (thrown,)
        _check_unseen(layout, profile)
        tables = places_of_tables(layout, subject.maps, is_privileged=options.is_privileged)
        code = Code(layout, loops=_loops(profile, options), roots=roots, tables=tables)
        if len(code.starts) > MAX_FUNCTIONS:
            claim = f"{len(code.starts)} functions, {MAX_FUNCTIONS} are allowed"
            refuse("program-too-large", code.starts[MAX_FUNCTIONS], claim)
        is_operation = program.prog_type is ProgType.BPF_PROG_TYPE_STRUCT_OPS
        subject.attach = (struct_ops if is_operation else attach).find(program, subject.types, profile)
        v = Verification(subject, code, profile, options)
        kfuncs.prepare(v)
        engine = Engine(v)
        map_rules.check_maps(v)
        kernel_symbols.check_addresses(v)
        _walk(engine)
    except Refused as refused:
        refusal = _refusal(engine, program, refused)
    log = tuple(engine.v.log) if engine is not None else ()
    return Report(program.name, profile.name, refusal, _statistics(engine), log)


def _walk(engine: Engine) -> None:
    v = engine.v
    global_functions.prepare(v)
    engine.run(entry_state(v))
    v.globals_called += v.code.roots
    _walk_called(engine)
    stack_depth.check(v)


def _walk_called(engine: Engine) -> None:
    """Verify every global function that some path called, and those that these call."""
    v = engine.v
    found: dict[int, GlobalFunction] = v.subject.notes["globals"]
    done: set[int] = set()
    v.subject.notes["walking_global"] = True
    while True:
        waiting = [start for start in v.globals_called if start not in done]
        if not waiting:
            break
        start = waiting[0]
        done.add(start)
        engine.run(global_functions.entry_state(v, found[start]))
    v.subject.notes["walking_global"] = False


_SLEEPABLE_SINCE: Final = {
    ProgType.BPF_PROG_TYPE_TRACING: (5, 10),
    ProgType.BPF_PROG_TYPE_LSM: (5, 10),
    ProgType.BPF_PROG_TYPE_SYSCALL: (5, 14),
    ProgType.BPF_PROG_TYPE_KPROBE: (6, 0),
    ProgType.BPF_PROG_TYPE_STRUCT_OPS: (6, 3),
    ProgType.BPF_PROG_TYPE_TRACEPOINT: (7, 1),
    ProgType.BPF_PROG_TYPE_RAW_TRACEPOINT: (7, 1),
}
"""Kinds of programs that may sleep, and since which version."""


def _check_program(program: Program, layout: Layout, profile: KernelProfile, options: Options) -> None:
    if not program.insns:
        refuse("falls-off-end", -1, "the program has no instructions")
    limit = profile.max_program_slots if options.is_privileged else UNPRIVILEGED_SLOTS
    if not options.is_privileged:
        _check_unprivileged(program, layout)
    if layout.size > limit:
        refuse("program-too-large", -1, f"{layout.size} instructions, {limit} are allowed")
    kind, target = program.prog_type, program.attach_type
    if kind is ProgType.BPF_PROG_TYPE_UNSPEC:
        refuse("attach", -1, "the program has no type")
    if kind is ProgType.BPF_PROG_TYPE_EXT:
        refuse("target-not-modelled", -1, "an EXT program replaces a function of another program, which is not given")
    if program.is_sleepable:
        since = _SLEEPABLE_SINCE.get(kind)
        may_sleep = since is not None and profile.at_least(*since)
        if not may_sleep or target in (AttachType.BPF_TRACE_RAW_TP, AttachType.BPF_LSM_CGROUP):
            refuse("sleeping", -1, "only fentry, fexit, fmod_ret, lsm, iter, uprobe and struct_ops programs may sleep")
    if kind is ProgType.BPF_PROG_TYPE_SYSCALL and not program.is_sleepable:
        refuse("sleeping", -1, "a syscall program must be sleepable")


def _loops(profile: KernelProfile, options: Options) -> Loops:
    """Return which loops a kernel takes, if they end. Before 6.7 none may be entered but by its first instruction."""
    if not options.is_privileged:
        return Loops.NONE
    return Loops.ALLOWED if profile.at_least(6, 7) else Loops.BY_JUMPS


_UNPRIVILEGED_TYPES: Final = frozenset({ProgType.BPF_PROG_TYPE_SOCKET_FILTER, ProgType.BPF_PROG_TYPE_CGROUP_SKB})


def _check_unprivileged(program: Program, layout: Layout) -> None:
    """Refuse kinds of programs, and calls, that need CAP_BPF."""
    if program.prog_type not in _UNPRIVILEGED_TYPES:
        kind = program.prog_type.name.removeprefix("BPF_PROG_TYPE_")
        refuse("privileged-only", -1, f"{kind} programs are for privileged users only")
    for slot, insn in layout.insns_of(NAMES_FUNCTION):
        if insn.src in ((PSEUDO_CALL, PSEUDO_KFUNC_CALL) if insn.code == CALL else (PSEUDO_FUNC,)):
            refuse("privileged-only", slot, "functions, of the program or of the kernel, are for privileged users only")


def _check_unseen(layout: Layout, profile: KernelProfile) -> None:
    passed: set[tuple[Any, ...]] = set()
    for slot, insn in layout.insns_of(refusable_unseen(profile)):
        fields = fields_of(insn)
        if fields not in passed:
            why = why_refused_unseen(insn, profile)
            if why is not None:
                refuse(why[0], slot, why[1])
            passed.add(fields)


def _refusal(engine: Engine | None, program: Program, refused: Refused) -> Refusal:
    slot = refused.slot
    text = state = ""
    path: tuple[Step, ...] = ()
    insn = _insn_at(program, slot)
    if insn is not None:
        text = insn_text(insn)
        # What is refused before or after the walk, as calls too deep for the stack, was met in no state.
        if engine is not None and engine.processed and engine.state.slot == slot:
            # A register that is not set has no state: then those that are.
            state = state_text(engine.state, refused.regs) or state_text(engine.state, _ALL_REGISTERS)
            path = _path(engine.state, engine.code)
    return Refusal(
        refused.id,
        slot,
        refused.claim,
        text,
        state,
        path,
        program.span_at(slot) if slot >= 0 else None,
        CATALOGUE[refused.id].hint,
    )


_ALL_REGISTERS: Final = tuple(range(11))


def _insn_at(program: Program, slot: int) -> Insn | None:
    at = 0
    for insn in program.insns:
        if at == slot:
            return insn
        at += insn.slots
    return None


def _path(state: State, code: Code) -> tuple[Step, ...]:
    steps: list[Step] = []
    node = state.steps
    while node is not None and len(steps) < _PATH_STEPS:
        slot, text, node = node
        insn = code.at[slot]
        steps.append(Step(slot, text, insn.span if insn is not None else None))
    return tuple(reversed(steps))


def _statistics(engine: Engine | None) -> Statistics:
    if engine is None:
        return Statistics()
    return Statistics(
        engine.processed,
        engine.states_kept,
        engine.peak_states,
        engine.max_states_per_insn,
        dict(engine.v.stack_bytes),
    )
