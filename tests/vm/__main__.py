"""
Guests on the command line.

    python -m tests.vm run --kernel 6.12 --exec 'uname -r'      one command in one guest
    python -m tests.vm test --results build/test                the kernel tests in all guests
    python -m tests.vm fetch                                    all kernels into the cache
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.vm.guest import LSM_WITH_BPF, LSM_WITHOUT_BPF, Guest
from tests.vm.kernels import SERIES, GuestError, require_kernel
from tests.vm.suite import VARIANTS, run_suite


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description="Run commands on Debian's kernels.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    run = verbs.add_parser("run", help="boot one kernel and run one shell command in this directory")
    run.add_argument("--kernel", required=True, choices=SERIES, help="the kernel series")
    run.add_argument("--exec", required=True, metavar="COMMAND", help="the shell command")
    run.add_argument("--lsm", default=LSM_WITH_BPF, help="the kernel's lsm= list (default: %(default)s)")
    run.add_argument("--no-bpf-lsm", action="store_const", const=LSM_WITHOUT_BPF, dest="lsm", help="a list without bpf")
    run.add_argument("--share", type=Path, help="a directory the guest sees, writable, as /run/guest/share")
    run.add_argument("--memory", type=int, default=2048, metavar="MIB", help="memory (default: %(default)s)")
    run.add_argument("--cpus", type=int, default=2, help="processors (default: %(default)s)")
    run.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="default: %(default)s")

    test = verbs.add_parser("test", help="run the kernel tests in guests, one boot a variant")
    test.add_argument("variant", nargs="*", help=f"default: {' '.join(variant.name for variant in VARIANTS)}")
    test.add_argument("--results", type=Path, required=True, metavar="DIR", help="where results and coverage go")
    test.add_argument("--pytest", nargs="+", default=[], metavar="WORD", help="further arguments for pytest")

    fetch = verbs.add_parser("fetch", help="fetch kernels into the cache")
    fetch.add_argument("kernel", nargs="*", help="the kernel series (default: all)")
    fetch.add_argument("--refresh", action="store_true", help="fetch again even if it is there")

    arguments = parser.parse_args()
    try:
        if arguments.verb == "fetch":
            for series in arguments.kernel or SERIES:
                kernel = require_kernel(series, is_refresh=arguments.refresh)
                print(f"{series}: {kernel.version}: {kernel.image.parent}")
            return 0
        if arguments.verb == "test":
            return _test(arguments)
        return _run(arguments)
    except GuestError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 125


def _run(arguments: argparse.Namespace) -> int:
    guest = Guest(require_kernel(arguments.kernel), lsm=arguments.lsm, memory_mib=arguments.memory, cpus=arguments.cpus)
    with tempfile.TemporaryDirectory(prefix="guest-share-") as name:
        end = guest.run(arguments.exec, share=arguments.share or Path(name), timeout_seconds=arguments.timeout)
        return end.status


def _test(arguments: argparse.Namespace) -> int:
    outcomes = run_suite(arguments.variant, arguments.results, arguments.pytest)
    print("\n==== guests")
    for outcome in outcomes:
        print(outcome)
        for name in outcome.failed:
            print(f"    FAILED {name}")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
