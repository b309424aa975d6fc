"""
Ask the running kernel about programs that come as plain data (`Question.wire`), and read its answer.

Programs are loaded and closed again, never attached or run.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import os
import resource
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from actplane.asm.program import MapSpec
from actplane.asm.uapi import MapType, ProgType
from actplane.errors import KernelError
from actplane.loader.attributes import MapCreate, MapFreeze, MapUpdateElem, ProgLoad
from actplane.loader.btf import Btf
from actplane.loader.btf_write import load_btf
from actplane.loader.maps import Map
from actplane.loader.syscall import Handle, bpf

LOG_BYTES = 1 << 20
_OPEN_AT_ONCE = 400
_FUNC = 12
_NO_FD = 2**31 - 1
_ENOTSUPP = 524
_OWNED = frozenset({MapType.BPF_MAP_TYPE_PROG_ARRAY, MapType.BPF_MAP_TYPE_INSN_ARRAY})


class NoAnswer(Exception):
    """The kernel could not even be asked: it lacks a map, a type or a hook, or forbids the program's kind."""


@dataclass(frozen=True)
class Answer:
    """What the kernel said of one program; `message` is the end of its log."""

    is_accepted: bool
    errno: int
    seconds: float
    log: str = ""

    @property
    def tail(self) -> str:
        """The last lines of the log, which name the reason."""
        return "\n".join(self.log.splitlines()[-24:])


class Asker:
    """A door to the kernel that keeps maps and BTF open between questions."""

    def __init__(self, blob_of: Callable[[str], str], types: Btf | None = None) -> None:
        self._blob_of = blob_of
        self._types = types or Btf.vmlinux()
        self._open: OrderedDict[str, Handle | None] = OrderedDict()
        self._log = ctypes.create_string_buffer(LOG_BYTES)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for handle in self._open.values():
            if handle is not None:
                handle.close()
        self._open.clear()

    def ask(self, wire: Mapping[str, Any], *, log_level: int = 0) -> Answer:
        """
        Load a program and close it again. A refused one is loaded twice, the second time with a log.

        Raises: NoAnswer.
        """
        # Not later: what this question opens must stay open until it is asked.
        while len(self._open) > _OPEN_AT_ONCE:
            _, oldest = self._open.popitem(last=False)
            if oldest is not None:
                oldest.close()
        attr = self._attributes(wire)
        if log_level:
            self._want_log(attr, log_level)
        started = time.perf_counter()
        try:
            fd = bpf(attr)
        except KernelError as error:
            seconds, number = time.perf_counter() - started, error.errno
        else:
            seconds = time.perf_counter() - started
            os.close(fd)
            return Answer(True, 0, seconds, self._text() if log_level else "")
        if not log_level:
            self._want_log(attr, 1)
            try:
                os.close(bpf(attr))
            except KernelError as error:
                if error.errno != errno.ENOSPC:
                    number = error.errno
            else:
                return Answer(True, 0, seconds)
        log = self._text()
        if "arena's user address must be set" in log:
            raise NoAnswer("an arena must be mapped first")
        if not log.strip() and number in (errno.EPERM, _ENOTSUPP):
            raise NoAnswer(f"errno {number} and no log")
        if log.startswith("processed ") and number in (errno.EINVAL, _ENOTSUPP):
            raise NoAnswer("the verifier is content, something after it is not")
        return Answer(False, number, seconds, log)

    def _want_log(self, attr: ProgLoad, level: int) -> None:
        self._log[0] = b"\0"
        attr.set("log_level", level)
        attr.set("log_buf", self._log)
        attr.set("log_size", LOG_BYTES)

    def _text(self) -> str:
        return self._log.value.decode(errors="replace")

    def _attributes(self, wire: Mapping[str, Any]) -> ProgLoad:
        insns = bytearray.fromhex(wire["insns"])
        for slot, name in wire["map_refs"]:
            raw = wire["maps"].get(name)
            if raw is not None and raw["type_id"] in _OWNED:
                # The first program that uses one owns it: no other may use it afterwards, or none of another kind.
                raw = {**raw, "name": f"{wire['category']} {wire['number']}"}
            struct.pack_into("<I", insns, slot * 8 + 4, self._map(raw).fd if raw is not None else _NO_FD)
        for slot, name in wire["kfuncs"]:
            found = self._types.id_of(_FUNC, name) if name else None
            if found is not None:
                struct.pack_into("<I", insns, slot * 8 + 4, found)
        if wire["prog_type"] == ProgType.BPF_PROG_TYPE_STRUCT_OPS:
            raise NoAnswer("a struct_ops program belongs to a map, which is not made here")
        attr = ProgLoad(
            prog_type=wire["prog_type"],
            expected_attach_type=wire["attach_type"],
            insns=bytes(insns),
            insn_cnt=len(insns) // 8,
            license=wire["license"].encode() + b"\0",
            prog_flags=wire["flags"],
        )
        if wire["hook"]:
            kind, name = wire["hook"]
            hook = self._types.id_of(kind, name)
            if hook is None:
                raise NoAnswer(f"this kernel has no {name}")
            attr.set("attach_btf_id", hook)
        if wire["debug"]:
            info = bytes.fromhex(wire["debug"]["func_info"])
            attr.set("prog_btf_fd", self._own_types(wire["debug"]).fd)
            attr.set("func_info", info)
            attr.set("func_info_rec_size", wire["debug"]["rec_size"])
            attr.set("func_info_cnt", len(info) // wire["debug"]["rec_size"])
        return attr

    def _own_types(self, debug: Mapping[str, Any]) -> Handle:
        inline = debug.get("inline")
        if inline is None:
            return self._btf(debug["btf"])
        return self._kept(f"btf {inline}", lambda: load_btf(base64.b64decode(inline)))

    def _btf(self, name: str) -> Handle:
        return self._kept(f"btf {name}", lambda: load_btf(base64.b64decode(self._blob_of(name))))

    def _map(self, raw: Mapping[str, Any]) -> Handle:
        return self._kept(repr(sorted(raw.items())), lambda: self._create(raw))

    def _kept(self, key: str, make: Callable[[], Handle]) -> Handle:
        if key in self._open:
            self._open.move_to_end(key)
        else:
            try:
                self._open[key] = make()
            except KernelError as error:
                self._open[key] = None
                if "BTF" in str(error) or "MAP" in str(error):
                    raise NoAnswer(str(error).splitlines()[0]) from error
                raise
        found = self._open[key]
        if found is None:
            raise NoAnswer(f"this kernel could not make {key.split()[0]}")
        return found

    def _create(self, raw: Mapping[str, Any]) -> Handle:
        if raw["type_id"] in MapType._value2member_map_ and not raw.get("btf"):
            storage = MapType(raw["type_id"])
            if storage.name.endswith("_STORAGE") and "CGROUP" not in storage.name:
                return Map.create(MapSpec("storage", storage, raw["key_size"], raw["value_size"], 0, raw["flags"]))
        attr = MapCreate(
            map_type=raw["type_id"],
            key_size=raw["key_size"],
            value_size=raw["value_size"],
            max_entries=raw["max_entries"],
            map_flags=raw["flags"],
            map_extra=raw.get("map_extra") or 0,
        )
        if raw.get("inner"):
            attr.set("inner_map_fd", self._map(raw["inner"]).fd)
        if raw.get("btf"):
            attr.set("btf_fd", self._btf(raw["btf"]).fd)
            attr.set("btf_key_type_id", raw.get("btf_key_type_id") or 0)
            attr.set("btf_value_type_id", raw.get("btf_value_type_id") or 0)
        created = Handle(bpf(attr))
        for update in raw.get("updates") or ():
            if update.get("key") and update.get("value"):
                key, value = bytes.fromhex(update["key"]), bytes.fromhex(update["value"])
                bpf(MapUpdateElem(map_fd=created.fd, key=key, value=value))
        if raw.get("frozen"):
            bpf(MapFreeze(map_fd=created.fd))
        return created
