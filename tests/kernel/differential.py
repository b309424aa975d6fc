"""
Ask the mirror and a kernel about the same programs, and compare what they say.

On the running kernel, as root; the same command goes on where it stopped:

    python -m tests.kernel.differential run --count 50000 --seed 1 --tally FILE

For another kernel, where everything is slow, in three steps, of which only the second runs there:

    python -m tests.kernel.differential pose --btf FILE --count 3000 --questions FILE
    python -m tests.kernel.differential ask --questions FILE --answers FILE
    python -m tests.kernel.differential join --kernel 6.1 --btf FILE --questions FILE --answers FILE --tally FILE

How many lines of the mirror's log are the kernel's:

    python -m tests.kernel.differential logs --count 300

One program again, with both answers in full:

    python -m tests.kernel.differential show --category grammar --seed 1 --number 17
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actplane.asm import disassemble
from actplane.errors import EncodeError, InternalError
from actplane.loader.btf import Btf
from actplane.runtime.host_profile import host_profile
from actplane.verifier import KernelProfile, Options, profile_of, verify
from actplane.verifier.kernel_log import parse_kernel_log
from tests.kernel.asker import Answer, Asker, NoAnswer
from tests.kernel.log_lines import agreement
from tests.kernel.tally import (
    BOTH_ACCEPT,
    BOTH_REFUSE,
    KERNEL_ONLY,
    LEFT_OUT,
    MIRROR_ONLY,
    NO_ANSWER,
    Tally,
    plain,
)
from tests.verifier.questions import FINITE, MAKERS, SHARES, Question, blob_of

_E2BIG = 7
STRICT_ALIGNMENT = 1
"""BPF_F_STRICT_ALIGNMENT; BPF_F_ANY_ALIGNMENT (2) beside it takes it back."""
MOST_INSNS = 150_000
"""Programs that cost more than that are left out: the limit itself is tested elsewhere, and takes half a minute."""
_SLOW_SECONDS = 0.15
"""What a kernel takes for about that many."""


@dataclass(frozen=True)
class Judgement:
    """The mirror's answer, short enough to be written down."""

    is_accepted: bool
    id: str
    slot: int
    claim: str
    seconds: float

    @property
    def gave_up(self) -> bool:
        return self.id == "too-many-instructions"


def judge(question: Question, types: Btf, profile: KernelProfile, max_insns: int = MOST_INSNS) -> Judgement:
    """Ask the mirror. A bug of the mirror's own is an answer too: id `crash`."""
    options = Options(
        is_strict=question.flags & 3 == STRICT_ALIGNMENT, keeps_all_states=bool(question.flags & 8), max_insns=max_insns
    )
    started = time.perf_counter()
    try:
        report = verify(question.program, question.maps, types, own=question.own, profile=profile, options=options)
    except (InternalError, ArithmeticError, LookupError, AttributeError, TypeError, ValueError, AssertionError) as bug:
        return Judgement(False, "crash", -1, f"{type(bug).__name__}: {bug}", time.perf_counter() - started)
    refusal = report.refusal
    seconds = report.statistics.seconds
    if refusal is None:
        return Judgement(True, "", -1, "", seconds)
    return Judgement(False, refusal.id, refusal.slot, refusal.claim, seconds)


def add(tally: Tally, question: Mapping[str, Any], mine: Judgement, kernel: Answer | None) -> str:
    """Count one program and return its outcome. `question` has category, number, origin, prog_type."""
    category = question["category"]
    if kernel is None:
        outcome = NO_ANSWER
    elif mine.gave_up and (kernel.is_accepted or kernel.errno != _E2BIG):
        outcome = LEFT_OUT
    elif kernel.is_accepted:
        outcome = BOTH_ACCEPT if mine.is_accepted else KERNEL_ONLY
    else:
        outcome = MIRROR_ONLY if mine.is_accepted else BOTH_REFUSE
    tally.count(category, outcome)
    if kernel is None or outcome == LEFT_OUT:
        return outcome
    tally.mirror_us.append(round(mine.seconds * 1e6))
    tally.kernel_us.append(round(kernel.seconds * 1e6))
    found = parse_kernel_log(kernel.log) if not kernel.is_accepted else None
    if outcome == BOTH_REFUSE:
        kind = "unmapped" if found is None else "same" if found.id == mine.id else "other"
        tally.reasons[kind] = tally.reasons.get(kind, 0) + 1
    if not kernel.is_accepted and found is None:
        last = plain(_last_words(kernel))
        tally.unmapped[last] = tally.unmapped.get(last, 0) + 1
    if outcome in (KERNEL_ONLY, MIRROR_ONLY) or mine.id == "crash":
        message = found.message if found is not None else _last_words(kernel)
        cause = f"mirror: {mine.id}: {plain(mine.claim)}" if mine.id else f"kernel: {plain(message)}"
        tally.causes[cause] = tally.causes.get(cause, 0) + 1
        tally.disagreements.append(
            {**question, "mirror": mine.id, "slot": mine.slot, "claim": mine.claim, "kernel": message}
        )
    return outcome


def _last_words(kernel: Answer) -> str:
    lines = [line for line in kernel.log.splitlines() if line and not line.startswith("processed ")]
    return lines[-1] if lines else f"errno {kernel.errno}, no log"


def about(question: Question) -> dict[str, Any]:
    """Return what a tally keeps of a question."""
    return {
        "category": question.category,
        "number": question.number,
        "origin": question.origin,
        "prog_type": question.program.prog_type.name.removeprefix("BPF_PROG_TYPE_"),
    }


def plan(seed: int, count: int, types: Btf, categories: Sequence[str]) -> dict[str, int]:
    """Return how many questions of each category a run of `count` asks: the finite ones whole, the rest shared out."""
    return {name: FINITE[name](seed, types) for name in FINITE if name in categories or not categories} | {
        name: round(count * share) for name, share in SHARES.items() if name in categories or not categories
    }


def questions(seed: int, types: Btf, wanted: Mapping[str, int], done: dict[str, int]) -> Iterator[Question]:
    """Yield what is still to be asked, and note in `done` how far each category is."""
    for category, count in wanted.items():
        for number in range(done.get(category, 0), count):
            question = MAKERS[category](seed, number, types)
            if question is not None:
                yield question
            done[category] = number + 1


def run(arguments: argparse.Namespace) -> int:
    """Compare on the running kernel."""
    types, profile = Btf.vmlinux(), host_profile()
    path: Path = arguments.tally
    tally = Tally.read(path) if path.exists() else Tally(profile.name, arguments.seed)
    wanted = plan(tally.seed, arguments.count, types, arguments.category)
    saved = time.monotonic()
    with Asker(blob_of, types) as asker:
        for question in questions(tally.seed, types, wanted, tally.done):
            answer_both(tally, question, asker, types, profile)
            if time.monotonic() - saved > 15:
                tally.write(path)
                saved = time.monotonic()
    tally.write(path)
    print("\n".join(tally.table()))
    return 0


def compared(category: str, seed: int, count: int, types: Btf, profile: KernelProfile) -> Tally:
    """Ask the mirror and the running kernel the first questions of one category."""
    tally = Tally(profile.name, seed)
    with Asker(blob_of, types) as asker:
        for question in questions(seed, types, {category: count}, {}):
            answer_both(tally, question, asker, types, profile)
    return tally


def answer_both(tally: Tally, question: Question, asker: Asker, types: Btf, profile: KernelProfile) -> str:
    """Ask the kernel, then the mirror, and count what they say. Returns the outcome."""
    try:
        kernel = asker.ask(question.wire())
    except NoAnswer:
        return add(tally, about(question), Judgement(False, "", -1, "", 0.0), None)
    if kernel.is_accepted and kernel.seconds > _SLOW_SECONDS:
        tally.count(question.category, LEFT_OUT)
        return LEFT_OUT
    # That a program is too costly is soon seen; the kernel has said already that it is.
    limit = 20_000 if kernel.errno == _E2BIG else MOST_INSNS
    return add(tally, about(question), judge(question, types, profile, limit), kernel)


def pose(arguments: argparse.Namespace) -> int:
    """Write questions for another kernel."""
    types = Btf(arguments.btf.read_bytes())
    wanted = plan(arguments.seed, arguments.count, types, arguments.category)
    if arguments.most_finite:
        wanted = {name: min(n, arguments.most_finite) if name in FINITE else n for name, n in wanted.items()}
    blobs: set[str] = set()
    with gzip.open(arguments.questions, "wt") as out:
        for question in questions(arguments.seed, types, wanted, {}):
            wire = question.wire()
            needed = {raw["btf"] for raw in wire["maps"].values() if raw.get("btf")}
            needed |= {raw["inner"]["btf"] for raw in wire["maps"].values() if (raw.get("inner") or {}).get("btf")}
            needed |= {wire["debug"]["btf"]} if "btf" in wire["debug"] else set()
            for name in sorted(needed - blobs):
                print(json.dumps({"blob": name, "data": blob_of(name)}), file=out)
            blobs |= needed
            print(json.dumps({"about": about(question), "wire": wire}), file=out)
    return 0


def ask(arguments: argparse.Namespace) -> int:
    """Ask the running kernel the questions of a file and write its answers, a line for each."""
    blobs: dict[str, str] = {}
    with (
        Asker(blobs.__getitem__) as asker,
        gzip.open(arguments.questions, "rt") as lines,
        arguments.answers.open("w") as out,
    ):
        for line in lines:
            entry = json.loads(line)
            if "blob" in entry:
                blobs[entry["blob"]] = entry["data"]
                continue
            try:
                found = asker.ask(entry["wire"])
                answer = {**vars(found), "log": found.tail}
            except NoAnswer as reason:
                answer = {"none": str(reason)}
            print(json.dumps(answer), file=out, flush=True)
    return 0


def join(arguments: argparse.Namespace) -> int:
    """Ask the mirror the questions of a file, and compare with another kernel's answers."""
    types, profile = Btf(arguments.btf.read_bytes()), profile_of(arguments.kernel)
    tally = Tally(arguments.kernel, arguments.seed)
    with gzip.open(arguments.questions, "rt") as lines, arguments.answers.open() as answers:
        asked = (entry["about"] for entry in map(json.loads, lines) if "blob" not in entry)
        for asked_about, answer in zip(asked, map(json.loads, answers), strict=False):
            if "none" in answer:
                tally.count(asked_about["category"], NO_ANSWER)
                continue
            question = MAKERS[asked_about["category"]](arguments.seed, asked_about["number"], types)
            if question is None or about(question) != asked_about:
                raise SystemExit(f"{asked_about}: the questions were posed by another version of this program")
            kernel = Answer(**answer)
            add(
                tally,
                asked_about,
                judge(question, types, profile, 20_000 if kernel.errno == _E2BIG else MOST_INSNS),
                kernel,
            )
    tally.write(arguments.tally)
    print("\n".join(tally.table()))
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """Compare the mirror's log with the kernel's at log level 2, line by line."""
    types, profile = Btf.vmlinux(), host_profile()
    found: dict[str, list[int]] = {}
    with Asker(blob_of, types) as asker:
        for category, count in plan(arguments.seed, arguments.count, types, arguments.category).items():
            step = max(count // arguments.count, 1)
            for number in range(0, count, step):
                question = MAKERS[category](arguments.seed, number, types)
                pair = both_logs(question, asker, types, profile) if question is not None else None
                if pair is not None:
                    row = found.setdefault(category, [0, 0, 0])
                    equal, lines = agreement(*pair)
                    row[0], row[1], row[2] = row[0] + 1, row[1] + equal, row[2] + lines
    for category, (programs, equal, lines) in found.items():
        print(f"{category:24} {programs:5} programs {lines:7} lines, {100 * equal / lines:.1f} % equal")
    return 0


LARGEST_LOG = 200_000


def both_logs(
    question: Question, asker: Asker, types: Btf, profile: KernelProfile
) -> tuple[list[str], tuple[str, ...]] | None:
    """Return the kernel's log and the mirror's; None if there is none, or one that is very long."""
    try:
        answer = asker.ask(question.wire(), log_level=2)
    except NoAnswer:
        return None
    if len(answer.log) > LARGEST_LOG:
        return None
    options = Options(
        is_strict=question.flags & 3 == STRICT_ALIGNMENT,
        keeps_all_states=bool(question.flags & 8),
        max_insns=MOST_INSNS,
        wants_log=True,
    )
    report = verify(question.program, question.maps, types, own=question.own, profile=profile, options=options)
    return answer.log.splitlines(), report.log


def show(arguments: argparse.Namespace) -> int:
    """Print one program and both answers."""
    types, profile = Btf.vmlinux(), host_profile()
    question = MAKERS[arguments.category[0]](arguments.seed, arguments.number, types)
    assert question is not None
    program = question.program
    print(
        f"{program.prog_type.name} {program.attach_type} {program.attach_to} flags {question.flags} {question.origin}"
    )
    slot = 0
    for insn in program.insns:
        try:
            text = disassemble([insn])
        except EncodeError:
            text = repr(insn)
        print(f"  {slot:3}: {text}")
        slot += insn.slots
    print(judge(question, types, profile))
    with Asker(blob_of, types) as asker:
        try:
            answer = asker.ask(question.wire(), log_level=arguments.log_level)
            print(answer.log)
            print(f"accepted {answer.is_accepted}, errno {answer.errno}")
        except NoAnswer as reason:
            print(f"no answer: {reason}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, handler in (("run", run), ("logs", logs), ("pose", pose), ("ask", ask), ("join", join), ("show", show)):
        verb = verbs.add_parser(name, help=handler.__doc__)
        verb.set_defaults(handler=handler)
        if name in ("run", "logs", "pose", "show"):
            verb.add_argument("--category", action="append", default=[], choices=MAKERS, help="default: all")
        if name in ("run", "logs", "pose"):
            verb.add_argument(
                "--count", type=int, default=50_000, help="how many programs, beside the finite categories"
            )
        if name != "ask":
            verb.add_argument("--seed", type=int, default=1)
        if name in ("run", "join"):
            verb.add_argument("--tally", type=Path, required=True, help="the file of results")
        if name == "join":
            verb.add_argument("--kernel", required=True, help="the profile's name")
        if name in ("pose", "ask", "join"):
            verb.add_argument("--questions", type=Path, required=True)
        if name in ("ask", "join"):
            verb.add_argument("--answers", type=Path, required=True)
        if name in ("pose", "join"):
            verb.add_argument("--btf", type=Path, required=True, help="that kernel's types")
        if name == "pose":
            verb.add_argument("--most-finite", type=int, default=0, help="at most so many of a finite category")
        if name == "show":
            verb.add_argument("--number", type=int, required=True)
            verb.add_argument("--log-level", type=int, default=2)
    arguments = parser.parse_args()
    return int(arguments.handler(arguments))


if __name__ == "__main__":
    sys.exit(main())
