"""
What libbpf makes of an object, through its shared library: a second reader to compare ours with.

Programs are loaded and closed again, never attached or run.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from actplane.asm.uapi import MapType

_LOG_BYTES = 1 << 20
_LEVEL_DEBUG = 2
_LOG_REASONS, _LOG_STATISTICS = 1, 4
_PROCESSED = re.compile(r"^processed (\d+) insns", re.M)
_TIME = re.compile(r"^verification time (\d+) usec", re.M)
_ENTRIES = 4
_COUNTED = {
    kind
    for kind in MapType
    if not kind.name.endswith(("_STORAGE", "_STORAGE_DEPRECATED", "RINGBUF", "PERF_EVENT_ARRAY", "STRUCT_OPS", "ARENA"))
}
"""Maps that must have elements: where an object leaves their number to its program, a few will do."""

_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "bpf_object__open": (ctypes.c_void_p, ctypes.c_char_p),
    "bpf_object__load": (ctypes.c_int, ctypes.c_void_p),
    "bpf_object__close": (None, ctypes.c_void_p),
    "bpf_object__next_program": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
    "bpf_object__next_map": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
    "bpf_program__name": (ctypes.c_char_p, ctypes.c_void_p),
    "bpf_program__set_autoload": (ctypes.c_int, ctypes.c_void_p, ctypes.c_bool),
    "bpf_program__set_log_buf": (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t),
    "bpf_program__set_log_level": (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32),
    "bpf_program__insns": (ctypes.c_void_p, ctypes.c_void_p),
    "bpf_program__insn_cnt": (ctypes.c_size_t, ctypes.c_void_p),
    "bpf_map__name": (ctypes.c_char_p, ctypes.c_void_p),
    "bpf_map__fd": (ctypes.c_int, ctypes.c_void_p),
    "bpf_map__type": (ctypes.c_int, ctypes.c_void_p),
    "bpf_map__max_entries": (ctypes.c_uint32, ctypes.c_void_p),
    "bpf_map__set_max_entries": (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32),
    "bpf_map__set_pin_path": (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p),
    "libbpf_set_print": (ctypes.c_void_p, _PRINT),
    "libbpf_major_version": (ctypes.c_uint32,),
}


@dataclass(frozen=True)
class Loaded:
    """
    One program of an object as libbpf would load it, and whether the kernel accepted it.

    Shape:  `log` is empty if the kernel was not asked, or refused before its verifier; `said` are libbpf's
            own complaints; `maps` finds the names of maps by their descriptors in `code`.
    """

    code: bytes
    error: int
    log: str
    said: list[str]
    maps: dict[int, str] = field(default_factory=dict[int, str])

    @property
    def processed(self) -> int:
        """The instructions that the kernel processed, 0 if it does not say."""
        found = _PROCESSED.search(self.log)
        return int(found[1]) if found else 0

    @property
    def seconds(self) -> float:
        """How long the kernel's verifier took, 0 if it does not say."""
        found = _TIME.search(self.log)
        return int(found[1]) / 1e6 if found else 0.0

    @property
    def is_relocated(self) -> bool:
        """Whether libbpf got as far as filling everything in."""
        return not self.error or bool(self.log) or any("BPF program load failed" in line for line in self.said)


@cache
def library() -> ctypes.CDLL | None:
    """libbpf 1.0 or newer, None if it is not installed."""
    name = ctypes.util.find_library("bpf")
    if name is None:
        return None
    found = ctypes.CDLL(name, use_errno=True)
    if not hasattr(found, "libbpf_major_version"):
        return None
    for function, (result, *arguments) in _FUNCTIONS.items():
        getattr(found, function).restype = result
        getattr(found, function).argtypes = arguments
    return found


def load_each(path: str, names: list[str]) -> Iterator[tuple[str, Loaded | None]]:
    """Load programs of an object one at a time; None stands for a program or object that libbpf does not read."""
    lib = library()
    assert lib is not None
    said: list[str] = []
    printer = _printer(said)
    lib.libbpf_set_print(printer)
    for name in names:
        # Writing down reasons takes the kernel longer than its verifier does, so they are asked for if there are any.
        loaded = _open_and_load(lib, path, name, said, _LOG_STATISTICS)
        if loaded is not None and loaded.error and loaded.log:
            loaded = _open_and_load(lib, path, name, said, _LOG_REASONS)
        yield name, loaded


def _open_and_load(lib: ctypes.CDLL, path: str, name: str, said: list[str], log_level: int) -> Loaded | None:
    said.clear()
    handle = lib.bpf_object__open(path.encode())
    if not handle:
        return None
    try:
        return _load(lib, handle, name, said, log_level)
    finally:
        lib.bpf_object__close(handle)


def _load(lib: ctypes.CDLL, handle: int, name: str, said: list[str], log_level: int) -> Loaded | None:
    log = ctypes.create_string_buffer(_LOG_BYTES)
    chosen = None
    for program in _each(lib.bpf_object__next_program, handle):
        is_chosen = lib.bpf_program__name(program) == name.encode()
        lib.bpf_program__set_autoload(program, is_chosen)
        if is_chosen:
            chosen = program
            lib.bpf_program__set_log_buf(program, log, _LOG_BYTES)
            lib.bpf_program__set_log_level(program, log_level)
    if chosen is None:
        return None
    for map_ in _each(lib.bpf_object__next_map, handle):
        lib.bpf_map__set_pin_path(map_, None)
        if not lib.bpf_map__max_entries(map_) and lib.bpf_map__type(map_) in _COUNTED:
            lib.bpf_map__set_max_entries(map_, _ENTRIES)
    error = lib.bpf_object__load(handle)
    code = ctypes.string_at(lib.bpf_program__insns(chosen), lib.bpf_program__insn_cnt(chosen) * 8)
    maps = _each(lib.bpf_object__next_map, handle)
    names = {lib.bpf_map__fd(each): lib.bpf_map__name(each).decode() for each in maps}
    return Loaded(code, error, log.value.decode(errors="replace"), list(said), names)


def _each(following: Callable[[int, int | None], int | None], handle: int) -> Iterator[int]:
    item = following(handle, None)
    while item:
        yield item
        item = following(handle, item)


def _printer(said: list[str]) -> Any:
    """A function that keeps what libbpf would print; its arguments are a va_list, so the C library formats them."""
    format_ = ctypes.CDLL(None).vsnprintf
    format_.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]

    @_PRINT
    def keep(level: int, text: bytes, arguments: int) -> int:
        if level < _LEVEL_DEBUG:
            line = ctypes.create_string_buffer(1 << 16)
            format_(line, len(line), text, arguments)
            said.append(line.value.decode(errors="replace").strip())
        return 0

    return keep
