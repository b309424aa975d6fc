"""What the mirror answers: accepted with numbers, or refused with the instruction and the reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Final

from actplane.errors import VerifyError
from actplane.source import Span


@dataclass(frozen=True, slots=True)
class Step:
    """One decision on the way to a refusal: at which slot, what was taken, in words, and where that was written."""

    slot: int
    text: str
    span: Span | None = None

    def __str__(self) -> str:
        place = f"     [{self.span.source.name}:{self.span.line}]" if self.span is not None else ""
        return f"{self.slot}: {self.text}{place}"


_NO_VERDICTS: Final = frozenset({"arena-not-modelled", "budget-exhausted", "target-not-modelled", "unsupported"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    Why a program is refused.

    `id` is stable and names a page in docs/verifier/. `slot` is the instruction as the kernel counts
    (ld_imm64 takes two), -1 if the program as a whole is at fault. `claim` says what the instruction
    needs and what it met; `state` shows the registers and stack that matter, in the kernel's log
    syntax; `path` is the branches that led there.
    """

    id: str
    slot: int
    claim: str
    insn_text: str = ""
    state: str = ""
    path: tuple[Step, ...] = ()
    span: Span | None = None
    hint: str = ""

    @property
    def is_verdict(self) -> bool:
        """Whether kernels refuse the program for this; else the mirror cannot tell, or gave up."""
        return self.id not in _NO_VERDICTS

    def error(self) -> VerifyError:
        """Return the exception that says the same."""
        return VerifyError(
            self.slot,
            self.claim,
            self.state,
            rule=self.id,
            insn_text=self.insn_text,
            span=self.span,
            hint=self.hint,
        )

    def __str__(self) -> str:
        lines = [str(self.error())]
        if self.path:
            lines.append("    path:")
            for step, times in _counted(self.path):
                lines.append(f"      {step}" + (f"     ({times} times)" if times > 1 else ""))
        return "\n".join(lines)


def _counted(path: tuple[Step, ...]) -> list[tuple[Step, int]]:
    """Return the steps of a path; what is taken again and again, as in a loop, once with how often."""
    return [(step, len(list(again))) for step, again in groupby(path)]


@dataclass(frozen=True, slots=True)
class Statistics:
    """
    What the verification cost.

    Units:  `insns_processed` counts every instruction of every path, as the kernel does;
            `stack_bytes` maps the first slot of a function to the stack it uses; `seconds` is wall time.
    """

    insns_processed: int = 0
    total_states: int = 0
    peak_states: int = 0
    max_states_per_insn: int = 0
    stack_bytes: dict[int, int] = field(default_factory=dict[int, int])
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """The mirror's answer about one program for one kernel profile."""

    program: str
    kernel: str
    refusal: Refusal | None
    statistics: Statistics
    log: tuple[str, ...] = ()

    @property
    def is_accepted(self) -> bool:
        return self.refusal is None

    def require(self) -> Report:
        """Return the report itself. Raises VerifyError if the program is refused."""
        if self.refusal is not None:
            raise self.refusal.error()
        return self

    def as_json(self) -> dict[str, Any]:
        """Return plain data for a program to read; docs/verify.md says what each key means."""
        refusal = None
        if self.refusal is not None:
            refusal = {
                "id": self.refusal.id,
                "is_verdict": self.refusal.is_verdict,
                "insn": self.refusal.slot,
                "insn_text": self.refusal.insn_text,
                "claim": self.refusal.claim,
                "state": self.refusal.state,
                "path": [
                    {"insn": step.slot, "text": step.text, "where": str(step.span) if step.span else None}
                    for step in self.refusal.path
                ],
                "where": str(self.refusal.span) if self.refusal.span else None,
                "hint": self.refusal.hint,
            }
        return {
            "program": self.program,
            "kernel": self.kernel,
            "accepted": self.is_accepted,
            "refusal": refusal,
            "statistics": asdict(self.statistics),
            "log": list(self.log),
        }

    def __str__(self) -> str:
        if self.refusal is not None:
            said = "refused" if self.refusal.is_verdict else "no verdict"
            return f"{self.program}: {said} for Linux {self.kernel}\n{self.refusal}"
        numbers = self.statistics
        return (
            f"{self.program}: accepted for Linux {self.kernel}: {numbers.insns_processed} instructions processed, "
            f"{numbers.total_states} states kept, {numbers.seconds * 1000:.1f} ms"
        )
