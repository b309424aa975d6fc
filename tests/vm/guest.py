"""
Boot a kernel under QEMU with this machine's file tree as its read-only root, and run one command.

KVM is not used: software emulation is slow (10 to 15 times) but works on every machine, nested ones
included. A boot takes some 10 s. The guest's paths are the host's, so a virtual environment works by
its absolute path; /tmp, /run and /var/tmp are fresh tmpfs.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from tests.vm.initramfs import archive
from tests.vm.kernels import GuestDied, GuestError, Kernel

REPOSITORY = Path(__file__).resolve().parents[2]
LSM_WITH_BPF = "landlock,lockdown,yama,integrity,bpf"
LSM_WITHOUT_BPF = "landlock,lockdown,yama,integrity"

# Where the host's share appears in the guest; what a command leaves there, the host finds again.
SHARE = "/run/guest/share"

BOOT_SECONDS = 180
ATTEMPTS = 3
SILENT_SECONDS = 90
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class End:
    """How a command in a guest ended: its exit status, and what became of earlier attempts."""

    status: int
    deaths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guest:
    """How to boot: the kernel, its LSM list, and the size of the machine."""

    kernel: Kernel
    lsm: str = LSM_WITH_BPF
    memory_mib: int = 2048
    cpus: int = 2
    has_network: bool = False

    def run(self, command: str, *, share: Path, timeout_seconds: float, output: TextIO | None = None) -> End:
        """
        Boot, run a shell command in the current directory, power off.

        Standard output and error go to `output` while they come, and to `share/output`.

        Raises: GuestDied if the guest does not come up or goes away ATTEMPTS times; GuestError if the
                command exceeds the timeout.
        """
        deaths: list[str] = []
        while True:
            try:
                return End(self._boot(command, share, timeout_seconds, output or sys.stdout), tuple(deaths))
            except GuestDied as death:
                # Emulated guests die now and then, and do well the next time.
                deaths.append(str(death))
                print(f"guest {self.kernel.series}: attempt {len(deaths)} of {ATTEMPTS}: {death}", file=sys.stderr)
                if len(deaths) == ATTEMPTS:
                    raise

    def _boot(self, command: str, share: Path, timeout_seconds: float, output: TextIO) -> int:
        share.mkdir(parents=True, exist_ok=True)
        for name in ("started", "heartbeat", "status"):
            (share / name).unlink(missing_ok=True)
        (share / "output").write_bytes(b"")
        (share / "command").write_text(command + "\n")
        (share / "settings").write_text(self._settings())
        with tempfile.TemporaryDirectory(prefix="guest-") as name:
            work = Path(name)
            (work / "initramfs").write_bytes(archive(self._files()))
            with _turn(), (work / "qemu").open("wb") as complaints:
                process = subprocess.Popen(
                    self._qemu(work, share), stdin=subprocess.DEVNULL, stdout=complaints, stderr=complaints
                )
                try:
                    self._follow(process, share, timeout_seconds, output)
                finally:
                    process.kill()
                    process.wait()
            if not (share / "status").exists():
                raise GuestDied(f"the guest died:\n{_tail(work / 'qemu')}{_tail(work / 'console')}")
            return int((share / "status").read_text())

    def _follow(self, process: subprocess.Popen[bytes], share: Path, timeout_seconds: float, output: TextIO) -> None:
        """Copy the command's output as it comes, until the machine is off."""
        start = time.monotonic()
        with (share / "output").open(errors="replace") as lines:
            while True:
                # Asked before the last read, so that nothing written before the end is lost.
                is_over = process.poll() is not None
                output.write(lines.read())
                output.flush()
                if is_over:
                    return
                seconds = time.monotonic() - start
                if seconds > BOOT_SECONDS and not (share / "started").exists():
                    raise GuestDied(f"the guest did not come up within {BOOT_SECONDS} s")
                if _age_seconds(share / "heartbeat") > SILENT_SECONDS:
                    raise GuestDied(f"the guest has been silent for {SILENT_SECONDS} s")
                if seconds > timeout_seconds:
                    raise GuestError(f"the command did not end within {timeout_seconds:.0f} s")
                time.sleep(POLL_SECONDS)

    def _settings(self) -> str:
        # Whatever of ours lies below a directory that the guest covers with a tmpfs must stay visible.
        covered = [Path("/tmp"), Path("/run"), Path("/var/tmp")]
        wanted = {REPOSITORY, REPOSITORY.parent / "shared", Path.cwd(), Path(sys.prefix), Path(sys.base_prefix)}
        keep = sorted(path for path in wanted if path.is_dir() and any(parent in covered for parent in path.parents))
        values = {
            "DIRECTORY": str(Path.cwd()),
            "KEEP": " ".join(map(str, keep)),
            "ACTPLANE_GUEST": self.kernel.series,
        }
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())

    def _files(self) -> dict[str, bytes]:
        busybox = shutil.which("busybox")
        if busybox is None:
            raise GuestError("busybox: command not found: try `make debs-vm`")
        files = {"init": (Path(__file__).parent / "init.sh").read_bytes(), "bin/busybox": Path(busybox).read_bytes()}
        files.update({f"modules/{module.name}": module.read_bytes() for module in self.kernel.modules})
        return files

    def _qemu(self, work: Path, share: Path) -> list[str]:
        # One thread for all processors: with a thread each, guests die or hang now and then while the
        # kernel rewrites its own code, which is what attaching a BPF program to a function does.
        words = f"console=ttyS0 quiet panic=-1 mitigations=off lsm={self.lsm}"
        network = ["-nic", "user,model=virtio-net-pci"] if self.has_network else ["-nic", "none"]
        return [
            *("qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "max"),
            *("-m", str(self.memory_mib), "-smp", str(self.cpus)),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-serial", f"file:{work / 'console'}"),
            *network,
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", f"local,path={share.resolve()},mount_tag=share,security_model=none,multidevs=remap"),
            *("-kernel", str(self.kernel.image), "-initrd", str(work / "initramfs"), "-append", words),
        ]


@contextmanager
def _turn() -> Iterator[None]:
    """Wait until a processor is free: more guests than processors only make each other time out."""
    slots = [
        (Path(tempfile.gettempdir()) / f"actplane-guest-{number}").open("wb") for number in range(os.cpu_count() or 1)
    ]
    try:
        while not any(_is_locked(slot) for slot in slots):
            time.sleep(POLL_SECONDS)
        yield
    finally:
        for slot in slots:
            slot.close()


def _is_locked(slot: BinaryIO) -> bool:
    try:
        fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _age_seconds(path: Path) -> float:
    """How long ago a file was last written; nothing for a file that is not there yet."""
    return time.time() - path.stat().st_mtime if path.exists() else 0.0


def _tail(path: Path, count: int = 40) -> str:
    """The last lines of a log, indented; nothing if there is no log."""
    if not path.exists():
        return ""
    return "".join(f"    {line}\n" for line in path.read_text(errors="replace").splitlines()[-count:])
