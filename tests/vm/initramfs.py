"""
Writing an initramfs: the cpio "newc" archive that the kernel unpacks into its first root.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping


def archive(files: Mapping[str, bytes]) -> bytes:
    """
    A cpio archive of executable files, with the directories on their way.

    >>> archive({"init": b"#!"})[:6]
    b'070701'
    >>> len(archive({"bin/sh": b"x"})) % 4
    0
    """
    parts: list[bytes] = []
    for number, (name, mode, content) in enumerate(_entries(files), start=1):
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, nlink, mtime, filesize, four device numbers, namesize, check
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        parts += [_padded(header + encoded), _padded(content)]
    return b"".join(parts)


def _entries(files: Mapping[str, bytes]) -> Iterator[tuple[str, int, bytes]]:
    for directory in _directories(files):
        yield directory, stat.S_IFDIR | 0o755, b""
    for name, content in files.items():
        yield name, stat.S_IFREG | 0o755, content
    yield "TRAILER!!!", 0, b""


def _directories(names: Iterable[str]) -> list[str]:
    """
    >>> _directories(["a/b/c", "d"])
    ['a', 'a/b']
    """
    pieces = (name.split("/")[:-1] for name in names)
    return sorted({"/".join(piece[: depth + 1]) for piece in pieces for depth in range(len(piece))})


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
