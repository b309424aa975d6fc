"""`actplane doctor`: what this kernel really allows, found out by doing it."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from actplane.cli.exits import Exit
from actplane.cli.options import add_policy_options, policy_of
from actplane.errors import ActplaneError, PolicyError

if TYPE_CHECKING:
    from actplane.codegen.tier import Tier
    from actplane.loader.features import Features


@dataclass(frozen=True, slots=True)
class Check:
    """
    One thing that was looked at. `answer` is yes, no, unknown, or info for what is neither good nor bad.

    `is_needed`: without a yes here, no session can be run.
    """

    name: str
    answer: str
    detail: str
    hint: str = ""
    is_needed: bool = False

    @property
    def is_problem(self) -> bool:
        return self.is_needed and self.answer != "yes"


def add_parser(subparsers: Any, description: str) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help=description,
        description="Say what this kernel really allows, by loading, not by lists of names.",
        epilog="Exit status: 1 if no session could be run here, or the policy has errors; else 0.",
        allow_abbrev=False,
    )
    add_policy_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    from actplane.ir.policy import Effect, Operation
    from actplane.loader.features import Features
    from actplane.runtime import tiers

    features = Features()
    checks = [*_machine(), *_kernel(features)]
    tier, tier_checks = _tiers(features)
    checks += tier_checks
    checks.append(_policy(options, tier, features))
    means: list[str] = []
    if tier is not None:
        seen = set(Operation) if tiers.sees_connect(tier, features) else set(Operation) - {Operation.CONNECT}
        means = tiers.summary([(effect, operation) for effect in Effect for operation in seen], tier)
    problems = sum(check.is_problem for check in checks)
    if options.json:
        value = {
            "ok": not problems,
            "tier": tier.value if tier is not None else None,
            "checks": [asdict(check) for check in checks],
            "in_force": means,
        }
        print(json.dumps(value))
    else:
        _print(checks, tier, means, problems)
    return Exit.FAILED if problems else Exit.OK


def _print(checks: list[Check], tier: Tier | None, means: list[str], problems: int) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = {"yes": "yes", "no": "no", "unknown": "?", "info": ""}[check.answer]
        print(f"{check.name:<{width}}  {mark:<4} {check.detail}".rstrip())
        if check.hint and check.answer != "yes":
            print(f"{'':<{width}}       hint: {check.hint}")
    if tier is not None:
        print(f"\nSessions run on tier {tier.value}:")
        for line in means:
            print(f"  {line}")
    print(f"\n{problems} problem{'' if problems == 1 else 's'}")


def _machine() -> Iterator[Check]:
    from actplane.runtime.privileges import invoking_user, missing_capabilities

    system = os.uname()
    yield Check("kernel", "info", f"{system.sysname} {system.release} {system.machine}")
    missing = missing_capabilities()
    detail = f"effective user id {os.geteuid()}" + (f", without {', '.join(missing)}" if missing else "")
    yield Check("privileges", "no" if missing else "yes", detail, "run it as root or through sudo", is_needed=True)
    try:
        user = invoking_user(os.environ)
        who = f"commands run as {user.name or 'user'} (uid {user.uid})" if user else "commands run as this user"
        yield Check("started through sudo", "info", who)
    except ActplaneError as error:
        yield Check("started through sudo", "unknown", str(error).partition("\n")[0], is_needed=True)


def _kernel(features: Features) -> Iterator[Check]:
    from actplane.loader.features import Feature
    from actplane.runtime.cgroup import NoCgroup, own_directory
    from actplane.runtime.session import NoBtf, kernel_types
    from actplane.runtime.tiers import security_modules

    try:
        started = time.perf_counter()
        btf = kernel_types()
        yield Check("BTF", "yes", f"{len(btf)} types, read in {(time.perf_counter() - started) * 1000:.0f} ms")
    except NoBtf as error:
        first, _, hint = str(error).partition("\n    hint: ")
        yield Check("BTF", "no", first, hint, is_needed=True)
    names = security_modules()
    listed = ",".join(names) or "the list cannot be read"
    yield Check("security modules", "info", listed + ("" if "bpf" in names else " (no bpf)"))
    try:
        place = own_directory()
        writable = os.access(place, os.W_OK)
        yield Check("cgroup2", "yes" if writable else "no", str(place), "it must be writable", is_needed=True)
    except NoCgroup as error:
        first, _, hint = str(error).partition("\n    hint: ")
        yield Check("cgroup2", "no", first, hint, is_needed=True)
    for feature, since in ((Feature.TASK_STORAGE, "5.11"), (Feature.RINGBUF, "5.8")):
        finding = features.probe(feature)
        hint = f"it needs Linux {since} or newer"
        yield Check(feature.value, finding.answer.value, finding.reason, hint, is_needed=True)


def _tiers(features: Features) -> tuple[Tier | None, list[Check]]:
    from actplane.loader.features import Answer
    from actplane.runtime import tiers

    best: Tier | None = None
    checks = []
    for tier in tiers.BEST_FIRST:
        finding = tiers.probe(tier, features)
        if finding and best is None:
            best = tier
        checks.append(Check(f"tier {tier.value}", finding.answer.value, finding.reason, tiers.how_to_get(tier)))
    any_tier = Answer.YES if best else Answer.NO
    detail = f"the best is {best.value}" if best else "none of the tiers"
    checks.append(Check("a tier", any_tier.value, detail, is_needed=True))
    return best, checks


def _policy(options: argparse.Namespace, tier: Tier | None, features: Features) -> Check:
    from actplane.codegen.compile import weaknesses
    from actplane.dsl import compile_sources
    from actplane.runtime import tiers

    try:
        text = policy_of(options)
    except PolicyError as error:
        is_asked_for = options.policy is not None or options.domain is not None
        first, _, hint = str(error).partition("\n    hint: ")
        return Check("policy", "no" if is_asked_for else "info", first, hint, is_needed=is_asked_for)
    name = str(text.path) if text.path is not None else "--rule"
    try:
        policy = compile_sources(text.sources, root=text.root).policy
    except PolicyError as error:
        count = len(error.diagnostics)
        detail = f"{name} has {count} error{'' if count == 1 else 's'}"
        return Check("policy", "no", detail, "see `actplane check`", is_needed=True)
    rules = len(policy.rules)
    detail = f"{name} compiles: {rules} rule{'' if rules == 1 else 's'}"
    if tier is not None:
        weak = len(weaknesses(policy, tier, sees_connect=tiers.sees_connect(tier, features)))
        if weak:
            detail += f"; {weak} clause{'' if weak == 1 else 's'} cannot be enforced as written on tier {tier.value}"
    return Check("policy", "yes", detail)
