"""
The layouts of `union bpf_attr`, one class for each command, declared once and with the kernel's own
field names.

A field that is not named is zero, and so is the tail that a kernel older than a field expects to
find empty. Numbers that do not fit are an error, never cut.

Source: include/uapi/linux/bpf.h of Linux 6.18.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_int32, c_uint8, c_uint32, c_uint64
from typing import Any, ClassVar

from actplane.asm.uapi import Command
from actplane.errors import InternalError

OBJECT_NAME_LENGTH = 16
"""BPF_OBJ_NAME_LEN: the bytes of a program's or map's name, with its final zero."""


class Layout(ctypes.Structure):
    """
    A C structure with checked, named fields.

    A field of eight bytes that holds a pointer takes `bytes` or a ctypes buffer as well as a number;
    the structure then keeps the buffer alive as long as itself.

    >>> Example = type("Example", (Layout,), {"_fields_": [("size", c_uint32), ("data", c_uint64)]})
    >>> Example(size=2**32)
    Traceback (most recent call last):
    actplane.errors.InternalError: internal error: Example.size does not fit its field (value=4294967296)
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._buffers: list[object] = []
        for name, value in fields.items():
            self.set(name, value)

    def set(self, name: str, value: Any) -> None:
        """Set one field. Raises InternalError if there is none of that name, or it cannot hold the value."""
        if name not in {field[0] for field in self._fields_}:
            raise InternalError(f"{type(self).__name__} has no field {name!r}")
        if isinstance(value, bytes) and not isinstance(getattr(self, name), bytes):
            value = ctypes.create_string_buffer(value, max(len(value), 1))
        if isinstance(value, ctypes.Array | ctypes.Structure):
            self._buffers.append(value)
            value = ctypes.addressof(value)
        try:
            setattr(self, name, value)
        except (TypeError, ValueError) as error:
            raise InternalError(f"{type(self).__name__}.{name}: {error}", value=value) from error
        if getattr(self, name) != value:
            raise InternalError(f"{type(self).__name__}.{name} does not fit its field", value=value)

    def as_bytes(self) -> bytes:
        """Return the structure as it lies in memory."""
        return bytes(self)


class Attr(Layout):
    """The attributes of one command of bpf()."""

    command: ClassVar[Command]


class MapCreate(Attr):
    command = Command.BPF_MAP_CREATE
    _fields_ = (
        ("map_type", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("inner_map_fd", c_uint32),
        ("numa_node", c_uint32),
        ("map_name", c_char * OBJECT_NAME_LENGTH),
        ("map_ifindex", c_uint32),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("map_extra", c_uint64),
    )


class _MapElement(Attr):
    _fields_ = (("map_fd", c_uint32), ("key", c_uint64), ("value", c_uint64), ("flags", c_uint64))


class MapLookupElem(_MapElement):
    command = Command.BPF_MAP_LOOKUP_ELEM


class MapLookupAndDeleteElem(_MapElement):
    command = Command.BPF_MAP_LOOKUP_AND_DELETE_ELEM


class MapUpdateElem(_MapElement):
    command = Command.BPF_MAP_UPDATE_ELEM


class MapDeleteElem(_MapElement):
    command = Command.BPF_MAP_DELETE_ELEM


class MapGetNextKey(Attr):
    command = Command.BPF_MAP_GET_NEXT_KEY
    _fields_ = (("map_fd", c_uint32), ("key", c_uint64), ("next_key", c_uint64))


class MapFreeze(Attr):
    command = Command.BPF_MAP_FREEZE
    _fields_ = (("map_fd", c_uint32),)


class ProgLoad(Attr):
    command = Command.BPF_PROG_LOAD
    _fields_ = (
        ("prog_type", c_uint32),
        ("insn_cnt", c_uint32),
        ("insns", c_uint64),
        ("license", c_uint64),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_uint64),
        ("kern_version", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_name", c_char * OBJECT_NAME_LENGTH),
        ("prog_ifindex", c_uint32),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("func_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("line_info", c_uint64),
        ("line_info_cnt", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("core_relo_cnt", c_uint32),
        ("fd_array", c_uint64),
        ("core_relos", c_uint64),
        ("core_relo_rec_size", c_uint32),
        ("log_true_size", c_uint32),
    )


class ProgTestRun(Attr):
    command = Command.BPF_PROG_TEST_RUN
    _fields_ = (
        ("prog_fd", c_uint32),
        ("retval", c_uint32),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("data_in", c_uint64),
        ("data_out", c_uint64),
        ("repeat", c_uint32),
        ("duration", c_uint32),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("ctx_in", c_uint64),
        ("ctx_out", c_uint64),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class _Path(Attr):
    _fields_ = (("pathname", c_uint64), ("bpf_fd", c_uint32), ("file_flags", c_uint32), ("path_fd", c_int32))


class ObjPin(_Path):
    command = Command.BPF_OBJ_PIN


class ObjGet(_Path):
    command = Command.BPF_OBJ_GET


class ObjGetInfoByFd(Attr):
    command = Command.BPF_OBJ_GET_INFO_BY_FD
    _fields_ = (("bpf_fd", c_uint32), ("info_len", c_uint32), ("info", c_uint64))


class ProgGetFdById(Attr):
    command = Command.BPF_PROG_GET_FD_BY_ID
    _fields_ = (("prog_id", c_uint32), ("next_id", c_uint32), ("open_flags", c_uint32))


class MapGetFdById(Attr):
    command = Command.BPF_MAP_GET_FD_BY_ID
    _fields_ = (("map_id", c_uint32), ("next_id", c_uint32), ("open_flags", c_uint32))


class LinkGetFdById(Attr):
    command = Command.BPF_LINK_GET_FD_BY_ID
    _fields_ = (("link_id", c_uint32), ("next_id", c_uint32), ("open_flags", c_uint32))


class _NextId(Attr):
    _fields_ = (("start_id", c_uint32), ("next_id", c_uint32))


class ProgGetNextId(_NextId):
    command = Command.BPF_PROG_GET_NEXT_ID


class MapGetNextId(_NextId):
    command = Command.BPF_MAP_GET_NEXT_ID


class LinkGetNextId(_NextId):
    command = Command.BPF_LINK_GET_NEXT_ID


class RawTracepointOpen(Attr):
    command = Command.BPF_RAW_TRACEPOINT_OPEN
    _fields_ = (("name", c_uint64), ("prog_fd", c_uint32))


class BtfLoad(Attr):
    command = Command.BPF_BTF_LOAD
    _fields_ = (
        ("btf", c_uint64),
        ("btf_log_buf", c_uint64),
        ("btf_size", c_uint32),
        ("btf_log_size", c_uint32),
        ("btf_log_level", c_uint32),
    )


class LinkCreate(Attr):
    command = Command.BPF_LINK_CREATE
    _fields_ = (
        ("prog_fd", c_uint32),
        ("target_fd", c_uint32),
        ("attach_type", c_uint32),
        ("flags", c_uint32),
    )


class LinkUpdate(Attr):
    command = Command.BPF_LINK_UPDATE
    _fields_ = (("link_fd", c_uint32), ("new_prog_fd", c_uint32), ("flags", c_uint32), ("old_prog_fd", c_uint32))


class LinkDetach(Attr):
    command = Command.BPF_LINK_DETACH
    _fields_ = (("link_fd", c_uint32),)


class EnableStats(Attr):
    command = Command.BPF_ENABLE_STATS
    _fields_ = (("type", c_uint32),)


class ProgInfo(Layout):
    """`struct bpf_prog_info`. A kernel that is older than a field leaves it zero."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * OBJECT_NAME_LENGTH),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
        ("verified_insns", c_uint32),
        ("attach_btf_obj_id", c_uint32),
        ("attach_btf_id", c_uint32),
    )


class MapInfo(Layout):
    """`struct bpf_map_info`, as far as every supported kernel fills it in."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * OBJECT_NAME_LENGTH),
        ("ifindex", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("btf_id", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
    )


class LinkInfo(Layout):
    """`struct bpf_link_info`: the common head, then the two words of the kinds of links used here."""

    _fields_ = (("type", c_uint32), ("id", c_uint32), ("prog_id", c_uint32), ("kind", c_uint64 * 4))
