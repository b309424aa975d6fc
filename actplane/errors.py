"""The one tree of exceptions. Each says where, what failed, what was got and what was expected."""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actplane.source import Diagnostic, Span, render_all

if TYPE_CHECKING:
    from typing import Any


class ActplaneError(Exception):
    """Everything that actplane raises on purpose."""


class PolicyError(ActplaneError):
    """A policy, or a file that holds one, is wrong. Carries every problem found, not the first."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__(render_all(diagnostics))
        self.diagnostics = tuple(diagnostics)

    @classmethod
    def at(cls, span: Span | None, message: str, hint: str = "") -> PolicyError:
        """Return an error with a single diagnostic."""
        return cls([Diagnostic(span, message, hint)])


class AssembleError(ActplaneError):
    """Assembler text is wrong. Carries every problem found."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__(render_all(diagnostics))
        self.diagnostics = tuple(diagnostics)


class EncodeError(ActplaneError):
    """An instruction has a field that its layout cannot hold."""


class DecodeError(ActplaneError):
    """Bytes are not a valid instruction. `offset_bytes` is where the bad slot starts."""

    def __init__(self, message: str, offset_bytes: int = 0) -> None:
        super().__init__(f"byte {offset_bytes}: {message}")
        self.offset_bytes = offset_bytes


class VerifyError(ActplaneError):
    """
    The mirror refuses a program: the instruction, what it claims, the state it met.

    `insn_index` is -1 if it is the program as a whole.
    """

    def __init__(
        self,
        insn_index: int,
        claim: str,
        state: str = "",
        *,
        rule: str = "",
        insn_text: str = "",
        span: Span | None = None,
        hint: str = "",
    ) -> None:
        where = f"insn {insn_index}" + (f" ({insn_text})" if insn_text else "") + ": " if insn_index >= 0 else ""
        lines = [f"{where}{claim}" + (f" [{rule}]" if rule else "")]
        if span is not None:
            lines[0] += f"     [{_line_at(span)}]"
        if state:
            lines.append(f"    state: {state}")
        if hint:
            lines.append(f"    hint: {hint}")
        super().__init__("\n".join(lines))
        self.insn_index = insn_index
        self.claim = claim
        self.state = state
        self.rule = rule
        self.span = span
        self.hint = hint


def _line_at(span: Span) -> str:
    """Return a line of a policy, of an assembler text or of C, and where it stands."""
    return f"{span.source.name}:{span.line}: {span.source.line(span.line).strip()}"


class KernelError(ActplaneError):
    """A system call failed. `call` names it with its command, `errno` is the kernel's number."""

    def __init__(self, call: str, errno: int, hint: str = "") -> None:
        name = _errno.errorcode.get(errno, str(errno))
        text = f"{call}: {name}: {os.strerror(errno)}"
        super().__init__(text + (f"\n    hint: {hint}" if hint else ""))
        self.call = call
        self.errno = errno
        self.hint = hint


class UnsupportedFeature(KernelError):
    """The running kernel lacks something. `since` names the first kernel that has it."""

    def __init__(self, name: str, since: str, errno: int = _errno.EOPNOTSUPP, hint: str = "") -> None:
        super().__init__(f"{name} (Linux {since} or newer)", errno, hint)
        self.name = name
        self.since = since


class RejectedByKernel(KernelError):
    """The kernel's verifier refused a program. `log` is what it said."""

    def __init__(self, call: str, errno: int, log: str, *, span: Span | None = None, hint: str = "") -> None:
        super().__init__(call, errno, hint)
        self.log = log
        self.span = span
        tail = "\n".join("    " + line for line in log.strip().splitlines()[-12:])
        place = ""
        if span is not None:
            place = f"\n    {_line_at(span)}"
        self.args = (f"{self.args[0]}{place}\n{tail}",)


class InternalError(ActplaneError):
    """A bug of ours. Never caught to go on."""

    def __init__(self, message: str, **facts: Any) -> None:
        detail = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        super().__init__(f"internal error: {message}" + (f" ({detail})" if detail else ""))
