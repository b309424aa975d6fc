"""Executing programs named by the first and last of many rules, with the first and last of many labels."""

from __future__ import annotations

from tests.kernel.trials.runner import Trials, execute, work

trial = Trials()
CHOSEN = (0, 1, 31, 32, 63, 64, 69)


def run(label: int, program: int) -> int:
    return execute(f"{work()}/bin/s{label}", "-c", f"{work()}/bin/p{program}; exit $?")


@trial
def with_its_label() -> int:
    return max(run(number, number) for number in CHOSEN)


@trial
def with_another_label() -> int:
    return max(run(number, (number + 1) % 70) for number in CHOSEN)


@trial
def of_the_last_rules() -> int:
    return max(run(number % 70, number) for number in (255, 256, 299))


if __name__ == "__main__":
    trial.run()
