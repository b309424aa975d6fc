"""
One session, from a compiled policy to the command's end.

The order is the point: everything that can be refused is refused before the command exists; the command's
process exists, stopped, before the programs are attached; it is marked before it may run; and
whatever is left of the session ends before the programs are taken away.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from actplane.codegen.compile import Compiled, compile_policy, weaknesses
from actplane.codegen.tier import Tier
from actplane.dsl import require_seed
from actplane.errors import ActplaneError, UnsupportedFeature
from actplane.ir.policy import Policy
from actplane.loader.btf import Btf
from actplane.loader.features import Features
from actplane.runtime import tiers
from actplane.runtime.cgroup import SessionCgroup, session_name
from actplane.runtime.engine import Engine, mirror
from actplane.runtime.events import EventReader
from actplane.runtime.guard import Guard
from actplane.runtime.launch import Command, FirstProcess
from actplane.runtime.privileges import home_variables, invoking_user, require_privileges
from actplane.runtime.reporter import Reporter, say
from actplane.runtime.stragglers import end_stragglers
from actplane.runtime.supervise import Ending, Outcome, Supervisor, blocked_signals


class NoBtf(ActplaneError):
    """The kernel does not describe its own types."""


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What to run, and how.

    `tier` None is the best that the kernel offers. `policy_path` and `feedback` are those of a policy file.
    """

    argv: Sequence[str]
    policy: Policy
    policy_path: Path | None = None
    feedback: Path | None = None
    events: Path | None = None
    tier: Tier | None = None
    allow_degraded: bool = False
    use_mirror: bool = True
    is_quiet: bool = False
    run_as_root: bool = False
    linger_seconds: float = 1.0


def kernel_types() -> Btf:
    """Return the running kernel's types. Raises NoBtf."""
    try:
        return Btf.vmlinux()
    except UnsupportedFeature as error:
        raise NoBtf(f"no BTF: {error}") from error


def compile_for_kernel(plan: Plan, btf: Btf) -> tuple[Compiled, int]:
    """
    Choose a tier and compile the policy for it; also return how many clauses are weaker than written.

    Raises: TierNotOffered, NotEnforceable, UnsupportedFeature, CannotProbe.
    """
    features = Features(read_btf=lambda: btf)
    tier = tiers.choose(features, plan.tier)
    sees_connect = tiers.sees_connect(tier, features)
    weakened = weaknesses(plan.policy, tier, sees_connect=sees_connect)
    if weakened and not plan.allow_degraded:
        raise tiers.NotEnforceable(tier, weakened)
    return compile_policy(plan.policy, tier, sees_connect=sees_connect), len(weakened)


def run(plan: Plan, environment: Mapping[str, str]) -> Ending:
    """
    Run a command under a policy and wait for its end.

    Raises: CommandError if the command cannot be executed, VerifyError, KernelError and other
            ActplaneErrors if the session cannot be set up; then the command has not run.
    Since:  5.14 (cgroup.kill).
    """
    require_seed(plan.policy)
    require_privileges()
    user = None if plan.run_as_root else invoking_user(environment)
    btf = kernel_types()
    compiled, weakened = compile_for_kernel(plan, btf)
    suffix = os.urandom(3).hex()
    session = f"{os.getpid()}-{suffix}"
    with ExitStack() as stack:
        reporter = stack.enter_context(Reporter(plan.events, plan.feedback, user))
        reporter.start(EventReader(compiled.policy, compiled.tier, session))
        engine = stack.enter_context(Engine.load(compiled, btf, mirror(btf) if plan.use_mirror else None))
        # Comes after the cgroup has been emptied, and before the programs are taken away.
        stack.callback(_end_stragglers, engine)
        signals = stack.enter_context(blocked_signals())
        cgroup = stack.enter_context(SessionCgroup.create(session_name(os.getpid(), suffix)))
        variables = {**environment, **_variables(plan, session, compiled.tier)}
        if user is not None:
            variables.update(home_variables(user, environment))
        command = Command(plan.argv, variables, user, signals.mask, signals.ignored)
        first = FirstProcess.start(command, cgroup.fd)
        stack.callback(first.close)
        engine.attach(cgroup.fd)
        guard = Guard.start(cgroup, lambda: end_stragglers(engine.is_marked))
        stack.callback(guard.dismiss)
        engine.mark(first.pidfd)
        if not plan.is_quiet:
            say(tiers.start_line(compiled.policy, compiled.tier, weakened))

        def read_reports() -> None:
            for record in engine.reports.consume():
                reporter.report(record)
            if engine.unmarked_tasks():
                # One of its processes is not judged, and it cannot be told which. So none go on.
                cgroup.kill()

        try:
            first.release()
        finally:
            # If the policy refused the very exec of the command, this is where it says so.
            read_reports()
        supervisor = Supervisor(first, guard, cgroup, signals.fd, engine.reports.fileno(), read_reports)
        outcome = supervisor.watch(plan.linger_seconds)
        _tell_end(outcome, engine)
    return outcome.ending


def _variables(plan: Plan, session: str, tier: Tier) -> dict[str, str]:
    """Return what the command finds in its environment beyond its caller's; `actplane run --help` lists it."""
    variables = {"ACTPLANE_SESSION": session, "ACTPLANE_TIER": tier.value}
    for name, path in (
        ("ACTPLANE_POLICY_FILE", plan.policy_path),
        ("ACTPLANE_FEEDBACK_FILE", plan.feedback),
        ("ACTPLANE_EVENTS_FILE", plan.events),
    ):
        if path is not None:
            variables[name] = os.path.abspath(path)
    return variables


def _end_stragglers(engine: Engine) -> None:
    count = len(end_stragglers(engine.is_marked))
    if count:
        plural = "es" if count > 1 else ""
        say(f"actplane: {count} process{plural} had left the session's cgroup; ended, as no policy would be in force")


def _tell_end(outcome: Outcome, engine: Engine) -> None:
    """Say what went otherwise than it should, if anything did."""
    if outcome.is_guard_lost:
        say("actplane: the session's guard was killed, so the session was ended")
    elif outcome.ended_processes:
        count = len(outcome.ended_processes)
        plural = "es" if count > 1 else ""
        say(
            f"actplane: the command left {count} process{plural} behind; ended, as no policy would be in force for them"
        )
    if engine.unmarked_tasks():
        say("actplane: the kernel had no memory to mark a new process, so the session was ended")
    dropped = engine.dropped_events()
    if dropped:
        say(f"actplane: {dropped} events were enforced and not reported: they came faster than they were read")
    missed = engine.recursion_misses()
    if missed:
        say(f"actplane: {missed} events were not judged: a program was already running on that CPU")
