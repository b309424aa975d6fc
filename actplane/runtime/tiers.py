"""
Which tier this kernel really offers, and what is in force on it.

The list of security modules and the release say what a kernel might do; `loader.features` finds out by loading.
"""

from __future__ import annotations

from collections.abc import Iterable

from actplane.codegen.tier import Tier, Weakening
from actplane.errors import ActplaneError, PolicyError, UnsupportedFeature
from actplane.ir.policy import Effect, Operation, Policy
from actplane.loader.features import LSM_LIST, Answer, Feature, Features, Finding
from actplane.source import Diagnostic, Severity

BEST_FIRST = (Tier.LSM, Tier.FMOD_RET, Tier.TRACE)

_NEEDED_BY = {
    Tier.LSM: (Feature.LSM_FIRES, Feature.INODE_STORAGE),
    Tier.FMOD_RET: (Feature.FMOD_RET_FIRES,),
    Tier.TRACE: (Feature.TP_BTF_SIGNAL,),
}

_NEEDED_ALWAYS = {Feature.TASK_STORAGE: "5.11", Feature.RINGBUF: "5.8"}

_HOW_TO_GET = {
    Tier.LSM: "it needs a kernel that allows BPF trampolines, and CONFIG_BPF_LSM",
    Tier.FMOD_RET: "it needs a kernel that allows BPF trampolines, and CONFIG_FUNCTION_ERROR_INJECTION",
    Tier.TRACE: "it needs tracepoint programs that may send signals",
}


def how_to_get(tier: Tier) -> str:
    """Return what would have to change for this kernel to offer a tier."""
    if tier is Tier.LSM and "bpf" not in security_modules():
        return "boot with `bpf` in the list of security modules (lsm=...,bpf on the kernel's command line)"
    return _HOW_TO_GET[tier]


def security_modules() -> list[str]:
    """Return the kernel's list of active security modules; empty if it cannot be read."""
    try:
        return LSM_LIST.read_text(encoding="ascii").strip().split(",")
    except OSError:
        return []


class TierNotOffered(ActplaneError):
    """The kernel does not do what a tier needs."""

    def __init__(self, tier: Tier, finding: Finding) -> None:
        super().__init__(
            f"tier {tier.value}: this kernel does not offer it: {finding.reason}\n    hint: {how_to_get(tier)}"
        )
        self.tier = tier
        self.finding = finding


class NotEnforceable(PolicyError):
    """The policy asks for what the tier cannot do."""

    def __init__(self, tier: Tier, weakenings: Iterable[Weakening]) -> None:
        super().__init__(diagnose(tier, weakenings, Severity.ERROR))


class CannotProbe(ActplaneError):
    """Nothing can be said about the kernel: no program at all may be loaded."""


def require_kernel(features: Features) -> None:
    """
    Check what every tier needs.

    Raises: UnsupportedFeature naming the first kernel that has it; CannotProbe if it cannot be told.
    """
    for feature, since in _NEEDED_ALWAYS.items():
        finding = features.probe(feature)
        if finding.answer is Answer.NO:
            raise UnsupportedFeature(feature.value, since, hint="sessions need a newer kernel than this one")
        if not finding:
            raise CannotProbe(f"this kernel cannot be probed: {finding.reason}")


def probe(tier: Tier, features: Features) -> Finding:
    """Say whether the kernel offers a tier: yes, or the first thing that it does not do."""
    for feature in _NEEDED_BY[tier]:
        finding = features.probe(feature)
        if not finding:
            return Finding(finding.answer, f"{feature.value}: {finding.answer.value}: {finding.reason}")
    return Finding(Answer.YES)


def choose(features: Features, wanted: Tier | None = None) -> Tier:
    """
    Return the tier to use: the one asked for, else the best that the kernel offers.

    Raises: TierNotOffered with the last refusal if there is none, else as `require_kernel`.
    """
    require_kernel(features)
    finding = Finding(Answer.UNKNOWN)
    for tier in BEST_FIRST if wanted is None else (wanted,):
        finding = probe(tier, features)
        if finding:
            return tier
    raise TierNotOffered(tier, finding)


def sees_connect(tier: Tier, features: Features) -> bool:
    """Say whether a tier can judge connections on this kernel: on Tier.TRACE, cgroup programs have to find the mark."""
    return tier is not Tier.TRACE or bool(features.probe(Feature.CGROUP_TASK_STORAGE))


def diagnose(tier: Tier, weakenings: Iterable[Weakening], severity: Severity) -> list[Diagnostic]:
    """Return what to say about every clause that a tier cannot enforce as written, at its place."""
    found: list[Diagnostic] = []
    for weakening in weakenings:
        instead = weakening.in_force or "nothing of it"
        hint = f"with --allow-degraded, {instead} would be in force"
        if severity is Severity.WARNING:
            hint = f"in force: {instead}"
        message = f"`{weakening.clause.text}`: tier {tier.value} cannot enforce this: {weakening.problem}"
        found.append(Diagnostic(weakening.clause.span, message, hint, severity))
    return found


_NOT_AVAILABLE = "not available"

_TRACE = {
    (Effect.KILL, Operation.EXEC): "killed before the new program's first instruction",
    (Effect.BLOCK, Operation.EXEC): "killed instead, before the new program's first instruction",
    (Effect.NOTIFY, Operation.EXEC): "reported",
    (Effect.KILL, Operation.CONNECT): "killed before it happens",
    (Effect.BLOCK, Operation.CONNECT): "denied before it happens",
    (Effect.NOTIFY, Operation.CONNECT): "reported",
}

_WITH_HOOKS = {
    Effect.KILL: "killed before it happens",
    Effect.BLOCK: "denied before it happens",
    Effect.NOTIFY: "reported",
}


def in_force(effect: Effect, operation: Operation, tier: Tier) -> str:
    """
    Return what an effect on an operation amounts to on a tier, in words.

    >>> in_force(Effect.BLOCK, Operation.WRITE, Tier.TRACE)
    'not available'
    """
    if tier is Tier.TRACE:
        return _TRACE.get((effect, operation), _NOT_AVAILABLE)
    return _WITH_HOOKS[effect]


def summary(pairs: Iterable[tuple[Effect, Operation]], tier: Tier) -> list[str]:
    """
    Return what effects mean on a tier, one phrase for all operations of an effect that mean the same.

    >>> every = [(Effect.BLOCK, operation) for operation in Operation]
    >>> summary(every, Tier.LSM)
    ['block exec, open, read, write, unlink, connect, recv: denied before it happens']
    """
    wanted = set(pairs)
    grouped: dict[tuple[Effect, str], list[str]] = {}
    for effect in reversed(Effect):
        for operation in Operation:
            if (effect, operation) in wanted:
                grouped.setdefault((effect, in_force(effect, operation, tier)), []).append(operation.value)
    return [f"{effect.value} {', '.join(names)}: {words}" for (effect, words), names in grouped.items()]


def start_line(policy: Policy, tier: Tier, weakened: int) -> str:
    """
    Return the line that a session starts with: its tier, and what each effect means there.

    `policy` is the one in force; `weakened` counts the clauses that are in force in a weaker form or not at all.
    """
    phrases = summary(((clause.effect, clause.operation) for clause in policy.clauses), tier)
    line = f"actplane: tier {tier.value}; " + ("; ".join(phrases) or "no clause is in force")
    if weakened:
        line += f"; weaker than written: {weakened} clause{'s' if weakened > 1 else ''} (see `actplane check`)"
    return line
