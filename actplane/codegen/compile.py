"""
A policy and a tier become maps and programs: those hooks, and only those, that the policy needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from actplane.asm.insn import Insn
from actplane.asm.program import MapSpec, Object, Program
from actplane.asm.uapi import AttachType, MapType, ProgType
from actplane.codegen import confine, execs, files, kernel, layout, lineage, network
from actplane.codegen.channels import INBOX
from actplane.codegen.clauses import KIND_OF_OPERATION, KIND_OF_SOURCE, Judge
from actplane.codegen.dispatch import dispatcher, slots
from actplane.codegen.frame import SCRATCH, TASKS
from actplane.codegen.recognize import Recognizer, build_recognizer
from actplane.codegen.report import EVENTS, RECORDS
from actplane.codegen.select import select
from actplane.codegen.tier import Tier, Weakening
from actplane.errors import PolicyError
from actplane.ir import bytecode as bc
from actplane.ir.policy import After, Clause, Effect, ObjectKind, Operation, Policy, TargetIs
from actplane.source import Diagnostic

HookKind = Literal["lsm", "fmod_ret", "tp_btf", "cgroup"]


@dataclass(frozen=True, slots=True)
class Hook:
    """
    One place in the kernel: attach `dispatcher`, after putting `program` into `prog_array`.

    `is_optional`: kernels without this hook do the same through another, so it is left out there.
    """

    dispatcher: str
    kind: HookKind
    program: str | None = None
    prog_array: str | None = None
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a policy comes to on a tier: plain data, the same each time."""

    policy: Policy
    tier: Tier
    object: Object
    hooks: tuple[Hook, ...]
    functions: Mapping[str, tuple[bc.Function, ...]]
    """The functions of each program in the bytecode IR."""


def weaknesses(policy: Policy, tier: Tier, *, sees_connect: bool = True) -> tuple[Weakening, ...]:
    """
    Return what a tier cannot enforce as written, clause by clause; nothing for Tier.LSM.

    `sees_connect`: on Tier.TRACE, whether the kernel's cgroup programs can tell whose connection it is.
    """
    found: list[Weakening] = []
    for clause in policy.clauses:
        problem = _problem(policy, tier, clause, sees_connect)
        if problem is not None:
            found.append(Weakening(clause, *problem))
    return tuple(found)


def _problem(policy: Policy, tier: Tier, clause: Clause, sees_connect: bool) -> tuple[str, str] | None:
    if tier is Tier.LSM:
        return None
    if tier is Tier.FMOD_RET:
        carried = _carried_labels(policy, clause)
        if carried:
            return f"without BPF-LSM, label {carried} does not travel in files and sockets", "only the reader has it"
        return None
    kind = KIND_OF_OPERATION[clause.operation]
    if kind == "file":
        return f"this kernel gives no hook that can judge {clause.operation.value}", ""
    if clause.operation is Operation.RECV:
        return "this kernel gives no hook that can judge recv", ""
    if clause.operation is Operation.CONNECT and not sees_connect:
        return "cgroup programs of this kernel may not read task storage, so no hook can judge connect", ""
    for label in sorted(label for test in clause.when for label in test.required | test.forbidden):
        if any(s.label == label and s.kind is not ObjectKind.EXEC for s in policy.sources):
            return f"label {policy.labels[label]} cannot be followed: no hook sees files read or data received", ""
    if isinstance(clause.unless, After):
        since = (policy.invalidators[index].operation for index in policy.gates[clause.unless.gate].since)
        unseen = sorted({operation.value for operation in since if operation is not Operation.EXEC})
        if unseen:
            return (
                f"no hook sees a {' or '.join(unseen)}, which should close its gate",
                "the gate stays open once passed",
            )
    if kind == "exec" and clause.effect is Effect.BLOCK:
        return "an exec is seen only when it has committed", "kill, before the program's first instruction"
    text = policy.patterns[clause.pattern].text
    if kind == "endpoint" and (text == "*" or text.startswith("unix:")):
        in_force = "" if text.startswith("unix:") else "the same for IPv4 and IPv6; unix and other sockets pass"
        return "cgroup hooks see IPv4 and IPv6 only", in_force
    return None


def _carried_labels(policy: Policy, clause: Clause) -> str:
    labels = {label for test in clause.when for label in test.required | test.forbidden}
    carried = {s.label for s in policy.sources if s.kind is not ObjectKind.EXEC}
    return ", ".join(policy.labels[label] for label in sorted(labels & carried))


def compile_policy(policy: Policy, tier: Tier, *, sees_connect: bool = True) -> Compiled:
    """
    Compile a policy for a tier. What `weaknesses` says cannot be enforced at all is left out.

    Raises: PolicyError if the policy is larger than the engine can hold.
    """
    _check_size(policy)
    if tier is Tier.TRACE:
        policy = _only_enforceable(policy, sees_connect)
    judge = Judge(policy, _recognizers(policy), carries=tier is Tier.LSM)
    return _Build(judge, tier).compiled()


def _check_size(policy: Policy) -> None:
    limits = (
        ("clauses", len(policy.clauses), layout.MAX_CLAUSES),
        ("gates", len(policy.gates), 32 * layout.LABEL_WORDS),
        ("lineage patterns", len(policy.lineages), 32 * layout.LABEL_WORDS),
    )
    problems = [
        Diagnostic(None, f"too many {n}: got {got}, expected at most {top}") for n, got, top in limits if got > top
    ]
    if problems:
        raise PolicyError(problems)


def _only_enforceable(policy: Policy, sees_connect: bool) -> Policy:
    """Return the policy without clauses that nothing on the trace tier can judge."""
    weak = weaknesses(policy, Tier.TRACE, sees_connect=sees_connect)
    gone = {weakening.clause for weakening in weak if not weakening.in_force}
    sources = tuple(source for source in policy.sources if source.kind is ObjectKind.EXEC)
    return replace(policy, clauses=tuple(c for c in policy.clauses if c not in gone), sources=sources)


def _recognizers(policy: Policy) -> dict[str, Recognizer]:
    wanted: dict[str, set[int]] = {kind: set() for kind in layout.KINDS}
    for clause in policy.clauses:
        kind = KIND_OF_OPERATION[clause.operation]
        wanted[kind].add(clause.pattern)
        if clause.argument is not None:
            wanted["argument"].add(clause.argument)
        if isinstance(clause.unless, TargetIs):
            wanted[kind].add(clause.unless.pattern)
    for source in policy.sources:
        wanted[KIND_OF_SOURCE[source.kind]].add(source.pattern)
    for invalidator in policy.invalidators:
        wanted[KIND_OF_OPERATION[invalidator.operation]].add(invalidator.pattern)
    wanted["exec"] |= {transform.pattern for transform in policy.transforms}
    wanted["exec"] |= {gate.pattern for gate in policy.gates}
    wanted["exec"] |= set(policy.lineages)
    return {kind: build_recognizer(kind, policy.patterns, sorted(some)) for kind, some in wanted.items() if some}


@dataclass(frozen=True, slots=True)
class _Code:
    """Functions and what they became; hooks that do the same share it."""

    functions: tuple[bc.Function, ...]
    insns: tuple[Insn, ...]
    starts: dict[int, str]

    @classmethod
    def of(cls, functions: Iterable[bc.Function]) -> _Code:
        chosen = _reachable(tuple(functions))
        return cls(chosen, *select(chosen))


class _Build:
    """Collects the maps and programs of one policy on one tier."""

    def __init__(self, judge: Judge, tier: Tier) -> None:
        self._judge = judge
        self._tier = tier
        self._maps: dict[str, MapSpec] = {}
        self._programs: list[Program] = []
        self._hooks: list[Hook] = []
        self._functions: dict[str, tuple[bc.Function, ...]] = {}
        self._shared: dict[files.Program, _Code] = {}

    def compiled(self) -> Compiled:
        policy = self._judge.policy
        session = layout.session_bytes(len(policy.gates), len(policy.invalidators))
        self._add_maps(TASKS, SCRATCH, RECORDS, EVENTS, MapSpec("session", MapType.BPF_MAP_TYPE_ARRAY, 4, session, 1))
        self._add_maps(*(recognizer.map_spec() for recognizer in self._judge.recognizers.values()))
        if self._judge.inbox_words:
            self._add_maps(INBOX)
        self._lineage()
        if "exec" in self._judge.recognizers:
            self._execs()
        if self._tier is Tier.TRACE:
            self._cgroup()
        else:
            if self._judge.flowing:
                self._add_maps(files.OBJECTS)
            self._files()
            self._network()
            self._confine()
        return Compiled(
            policy,
            self._tier,
            Object(tuple(self._maps.values()), tuple(self._programs)),
            tuple(self._hooks),
            self._functions,
        )

    def _lineage(self) -> None:
        if self._tier is Tier.TRACE:
            self._fixed("task_newtask", "tp_btf", lineage.inherit(self._judge, "inherit", can_deny=False))
        else:
            self._fixed("task_alloc", self._kind, lineage.inherit(self._judge, "inherit", can_deny=True))
            if self._judge.gains_labels:
                self._fixed("task_newtask", "tp_btf", lineage.catch_up(self._judge, "catch_up"))
                take_along = lineage.take_along(self._judge, "take_along")
                self._fixed("bprm_check_security", self._kind, take_along, "take_along")
        self._fixed("sched_process_exit", "tp_btf", lineage.exit_program(self._judge, "process_exit"))

    def _execs(self) -> None:
        if self._tier is not Tier.TRACE:
            self._deciding("bprm_check_security", execs.exec_check)
        commit = execs.exec_commit(self._judge, "exec_commit", is_checked=self._tier is not Tier.TRACE)
        self._policy_hook("sched_process_exec", "tp_btf", _Code.of(commit), kills=True)

    def _files(self) -> None:
        judge = self._judge
        file_clauses = judge.clauses(files.FILE_OPERATIONS)
        changes = any(c.operation in (Operation.WRITE, Operation.UNLINK) for _, c in file_clauses)
        changes = changes or judge.closes_on_write
        if "file" in judge.recognizers or judge.flowing:
            self._deciding("file_open", files.file_open)
        if judge.flowing or judge.closes_on_write or judge.receives:
            self._deciding("file_permission", files.file_permission)
        if judge.flowing:
            self._deciding("mmap_file", files.mmap_file)
        stamps = bool(judge.flowing) and any(s.kind is ObjectKind.FILE for s in judge.policy.sources)
        if changes:
            for hook in ("path_mknod", "path_mkdir", "path_symlink"):
                self._deciding(hook, files.create)
            for hook in ("path_unlink", "path_rmdir"):
                self._deciding(hook, files.remove)
            self._deciding("path_truncate", files.path_truncate)
            self._deciding("file_truncate", files.file_truncate, is_optional=True)
        if changes or stamps:
            self._deciding("path_rename", files.rename)
            self._deciding("path_link", files.link)

    def _network(self) -> None:
        judge = self._judge
        connects = bool(judge.clauses([Operation.CONNECT]))
        if connects:
            self._deciding("socket_connect", network.socket_connect)
            self._deciding("unix_stream_connect", network.unix_connect)
        if connects or judge.flowing:
            self._deciding("unix_may_send", network.unix_send)
            self._deciding("socket_sendmsg", network.socket_sendmsg)
        if judge.receives or judge.flowing:
            self._deciding("socket_recvmsg", network.socket_recvmsg)
        if judge.flowing:
            self._add_maps(network.SOCKETS, network.ENDPOINTS)

    def _confine(self) -> None:
        self._deciding("ptrace_access_check", confine.attach)
        self._deciding("file_ioctl", confine.type_ahead)
        self._deciding("file_ioctl_compat", confine.type_ahead, is_optional=True)
        if confine.names_places(self._judge):
            self._deciding("sb_mount", confine.mount)
            self._deciding("move_mount", confine.move_mount)
            self._deciding("sb_pivotroot", confine.pivot_root)

    def _cgroup(self) -> None:
        if not self._judge.clauses([Operation.CONNECT]):
            return
        for hook, attach_type, family in (
            ("connect4", AttachType.BPF_CGROUP_INET4_CONNECT, kernel.AF_INET),
            ("connect6", AttachType.BPF_CGROUP_INET6_CONNECT, kernel.AF_INET6),
            ("sendmsg4", AttachType.BPF_CGROUP_UDP4_SENDMSG, kernel.AF_INET),
            ("sendmsg6", AttachType.BPF_CGROUP_UDP6_SENDMSG, kernel.AF_INET6),
        ):
            code = _Code.of(network.cgroup_connect(self._judge, "cgroup_connect", family))
            self._policy_hook(hook, "cgroup", code, attach_type=attach_type, unmarked=1, empty=0)

    # Programs

    @property
    def _kind(self) -> HookKind:
        return "lsm" if self._tier is Tier.LSM else "fmod_ret"

    def _deciding(self, hook: str, make: files.Program, *, is_optional: bool = False) -> None:
        """Add a hook whose result the kernel obeys."""
        denied = -kernel.EPERM
        if make not in self._shared:
            self._shared[make] = _Code.of(make(self._judge, make.__name__, denied))
        self._policy_hook(hook, self._kind, self._shared[make], empty=denied, is_optional=is_optional)

    def _policy_hook(
        self,
        hook: str,
        kind: HookKind,
        code: _Code,
        *,
        attach_type: AttachType | None = None,
        unmarked: int = 0,
        empty: int = 0,
        kills: bool = False,
        is_optional: bool = False,
    ) -> None:
        prog_array = f"{hook}_slots"
        self._add_maps(slots(prog_array))
        enter = dispatcher(f"enter_{hook}", prog_array, unmarked=unmarked, empty=empty, kills=kills)
        self._add_program(enter.name, hook, kind, _Code.of([enter]), attach_type)
        self._add_program(hook, hook, kind, code, attach_type)
        self._hooks.append(Hook(enter.name, kind, hook, prog_array, is_optional))

    def _fixed(self, hook: str, kind: HookKind, functions: tuple[bc.Function, ...], name: str | None = None) -> None:
        """Add a program that is the same for every policy, and so is attached itself."""
        self._add_program(name or hook, hook, kind, _Code.of(functions), None)
        self._hooks.append(Hook(name or hook, kind))

    def _add_program(self, name: str, hook: str, kind: HookKind, code: _Code, attach_type: AttachType | None) -> None:
        prog_type, attach_type, attach_to = _attachment(kind, hook, attach_type)
        self._functions[name] = code.functions
        program = Program(name, prog_type, code.insns, attach_type, attach_to, functions=code.starts)
        self._programs.append(program)

    def _add_maps(self, *specs: MapSpec) -> None:
        for spec in specs:
            self._maps[spec.name] = spec


FMOD_RET_NAMES = {"bprm_check_security": "security_bprm_check"}
"""Where the kernel's function is not `security_` and the name of the hook."""


def _attachment(
    kind: HookKind, hook: str, attach_type: AttachType | None
) -> tuple[ProgType, AttachType | None, str | None]:
    match kind:
        case "lsm":
            return ProgType.BPF_PROG_TYPE_LSM, AttachType.BPF_LSM_MAC, hook
        case "fmod_ret":
            function = FMOD_RET_NAMES.get(hook, f"security_{hook}")
            return ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_MODIFY_RETURN, function
        case "tp_btf":
            return ProgType.BPF_PROG_TYPE_TRACING, AttachType.BPF_TRACE_RAW_TP, hook
        case "cgroup":
            return ProgType.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attach_type, None


def _reachable(functions: tuple[bc.Function, ...]) -> tuple[bc.Function, ...]:
    """Return the functions that the first one needs, in their order: the kernel refuses dead code."""
    by_name = {function.name: function for function in functions}
    wanted: list[str] = [functions[0].name]
    for name in wanted:
        for block in by_name[name].blocks:
            for operation in block.operations:
                if isinstance(operation, (bc.CallFunction, bc.FunctionReference)) and operation.function not in wanted:
                    wanted.append(operation.function)
    return tuple(by_name[name] for name in by_name if name in wanted)
