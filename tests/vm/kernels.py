"""
Debian kernels as packages: find, fetch, unpack, and keep what a boot needs.

Nothing is installed. The packages of other Debian releases come through a second, separate apt
list, from the mirror that this machine's own apt uses. Of a package of 100 MB a boot needs the
kernel image and a dozen modules; only those stay in the cache:

    CACHE/6.12/vmlinuz
    CACHE/6.12/modules/00-virtio_ring.ko ...     in the order in which they must be inserted
    CACHE/6.12/kernel.json                       {"version": "6.12.107+deb13-amd64", "packages": [...]}
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What the guest inserts before it can see its root: the 9p root and share, then what tests use.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "virtio_blk", "overlay", "ext4", "loop")


class GuestError(Exception):
    """A guest could not be prepared, did not come up, or died."""


class GuestDied(GuestError):
    """A guest did not come up, or went away before its command ended: worth another attempt."""


@dataclass(frozen=True)
class Series:
    """A kernel series: the Debian release that carries it, and its package names as patterns."""

    suite: str
    packages: tuple[str, ...]


SERIES = {
    "5.10": Series("bullseye", (r"linux-image-5\.10\.[0-9]+-[0-9]+-amd64",)),
    "6.1": Series("bookworm", (r"linux-image-6\.1\.[0-9]+-[0-9]+-amd64",)),
    "6.12": Series("trixie", (r"linux-image-6\.12\.[0-9]+\+deb13-amd64",)),
    # From 7.0 on the image and the modules are packages of their own.
    "7.2": Series("sid", (r"linux-binary-7\.2\.[0-9]+\+deb14-amd64", r"linux-modules-7\.2\.[0-9]+\+deb14-amd64")),
}


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel in the cache."""

    series: str
    version: str
    image: Path
    modules: tuple[Path, ...]


def cache_directory() -> Path:
    """Where kernels are kept: ACTPLANE_VM_CACHE, or the user's cache directory."""
    named = os.environ.get("ACTPLANE_VM_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "actplane" / "kernels"


def require_kernel(series: str, *, is_refresh: bool = False) -> Kernel:
    """
    The kernel of this series from the cache, fetched first if it is not there.

    Raises: GuestError if the series is unknown or its packages cannot be had.
    """
    if series not in SERIES:
        raise GuestError(f"kernel: unknown series: got {series!r}, expected one of {', '.join(SERIES)}")
    place = cache_directory() / series
    if is_refresh or not (place / "kernel.json").exists():
        _fetch(series, place)
    record = json.loads((place / "kernel.json").read_text())
    return Kernel(series, record["version"], place / "vmlinuz", tuple(sorted((place / "modules").iterdir())))


def _fetch(series: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"fetch-{series}-", dir=place.parent) as name:
        work = Path(name)
        packages = _download(SERIES[series], work / "apt")
        tree = work / "tree"
        for package in packages:
            _run("dpkg-deb", "-x", str(package), str(tree))
        unpacked = work / "kernel"
        version = _keep(tree, unpacked)
        record = {"version": version, "packages": [package.name for package in packages]}
        (unpacked / "kernel.json").write_text(json.dumps(record, indent=2) + "\n")
        # A rename is all or nothing: an interrupted fetch leaves no half kernel behind.
        shutil.rmtree(place, ignore_errors=True)
        unpacked.rename(place)


def mirror() -> str:
    """
    The URI of the Debian archive that this machine's apt is configured with.

    Raises: GuestError if apt knows no Debian archive.
    """
    targets = _run("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages")
    rows = [line.rpartition(" ") for line in targets.splitlines()]
    archives = [uri for label, _, uri in rows if label == "Debian"]
    # Before the first `apt-get update` the labels are unknown, and the addresses have to tell.
    archives += [uri for label, _, uri in rows if not label and "security" not in uri and "debian" in uri]
    if not archives:
        raise GuestError("apt: no Debian archive among the configured sources: expected at least one 'deb' line")
    return archives[0]


def _download(series: Series, work: Path) -> list[Path]:
    for directory in ("lists/partial", "cache/archives/partial", "debs"):
        (work / directory).mkdir(parents=True)
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.exists() else ""
    (work / "sources.list").write_text(f"deb {signed}{mirror()} {series.suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::Cache": work / "cache",
        "Acquire::Languages": "none",
        "APT::Architectures": "amd64",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    _run("apt-get", *options, "-q", "update")
    names = _run("apt-cache", *options, "pkgnames", "linux-").split()
    wanted = [_newest(names, pattern, series.suite) for pattern in series.packages]
    _run("apt-get", *options, "-q", "download", *wanted, cwd=work / "debs")
    return sorted((work / "debs").glob("*.deb"))


def _newest(names: Sequence[str], pattern: str, suite: str) -> str:
    matching = [name for name in names if re.fullmatch(pattern, name)]
    if not matching:
        raise GuestError(f"apt: no package in {suite} is called {pattern}")
    return max(matching, key=lambda name: [int(number) for number in re.findall(r"[0-9]+", name)])


def _keep(tree: Path, place: Path) -> str:
    """Move the image and the modules that a boot needs from an unpacked package; return the version."""
    base = tree / "usr" if (tree / "usr/lib/modules").exists() else tree
    (version,) = (entry.name for entry in (base / "lib/modules").iterdir())
    images = [tree / f"boot/vmlinuz-{version}", base / f"lib/modules/{version}/vmlinuz"]
    (place / "modules").mkdir(parents=True)
    shutil.move(next(image for image in images if image.exists()), place / "vmlinuz")
    _run("depmod", "-b", str(base), version)
    for index, module in enumerate(_in_order(base, version)):
        plain = lzma.decompress(module.read_bytes()) if module.suffix == ".xz" else module.read_bytes()
        (place / f"modules/{index:02}-{module.name.removesuffix('.xz')}").write_bytes(plain)
    return version


def _in_order(base: Path, version: str) -> list[Path]:
    """The files of MODULES and of all they depend on, each after what it needs, without duplicates."""
    files: dict[Path, None] = {}
    present = {file.name.partition(".")[0] for file in (base / "lib/modules" / version).rglob("*.ko*")}
    for name in MODULES:
        if name not in present:
            continue  # Built into this kernel. Were it missing, the guest would not come up, and say so.
        steps = _run("modprobe", "-d", str(base), "-S", version, "--show-depends", name)
        for line in steps.splitlines():
            verb, _, path = line.strip().partition(" ")
            if verb == "insmod":
                files[Path(path.split()[0])] = None
    return list(files)


def _run(*command: str, cwd: Path | None = None) -> str:
    # depmod and modprobe lie in /usr/sbin, which an ordinary user's PATH lacks on Debian.
    environment = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            command, check=True, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise GuestError(f"{command[0]}: command not found: try `make debs-vm`") from error
    except subprocess.CalledProcessError as error:
        raise GuestError(f"{' '.join(command)}: exit status {error.returncode}: {error.stderr.strip()}") from error
    return done.stdout
