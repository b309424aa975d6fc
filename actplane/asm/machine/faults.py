"""What a program can do wrong when it is loaded or runs, and where it did it."""

from __future__ import annotations

from actplane.errors import ActplaneError
from actplane.source import Span


class Fault(ActplaneError):
    """
    A program did what its machine cannot carry out: a bad access, an undefined register, a bad call.

    Raised without a place by memory and helpers; the execution adds the program, the index of the
    instruction (as in `Program.insns`) and its text, and raises it again.
    """

    def __init__(
        self,
        reason: str,
        *,
        program: str = "",
        insn_index: int | None = None,
        insn_text: str = "",
        span: Span | None = None,
        hint: str = "",
    ) -> None:
        text = reason
        if insn_index is not None:
            where = f"{program}: insn {insn_index}" if program else f"insn {insn_index}"
            text = f"{where} ({insn_text}): {reason}" if insn_text else f"{where}: {reason}"
        if span is not None:
            text += f"     [line {span.line}: {span.source.line(span.line).strip()}]"
        if hint:
            text += f"\n    hint: {hint}"
        super().__init__(text)
        self.reason = reason
        self.program = program
        self.insn_index = insn_index
        self.insn_text = insn_text
        self.span = span
        self.hint = hint

    def at(self, program: str, insn_index: int, insn_text: str, span: Span | None = None) -> Fault:
        """Return the same fault with its place."""
        return type(self)(
            self.reason, program=program, insn_index=insn_index, insn_text=insn_text, span=span, hint=self.hint
        )


class InstructionLimit(Fault):
    """A run took more instructions than it was given."""


class LoadError(ActplaneError):
    """A program refers to what its machine does not have."""
