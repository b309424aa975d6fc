"""Reading and writing BTF, on blobs of our own."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actplane.errors import DecodeError, UnsupportedFeature
from actplane.loader import btf as btf_module
from actplane.loader.btf import Btf, TypeNotFound
from actplane.loader.btf_types import VOID, BtfType, Enumerator, Kind, Linkage, Member
from actplane.loader.btf_write import BtfWriter
from actplane.verifier.domains.types import BtfKind

names = st.text(st.characters(codec="ascii", categories=("L", "N", "Pc")), max_size=12)
ids = st.integers(0, 40)
words = st.integers(0, 2**32 - 1)
signed_words = st.integers(-(2**31), 2**31 - 1)


def one_of_kind(*kinds: Kind) -> st.SearchStrategy[Kind]:
    return st.sampled_from(kinds)


plain_members = st.lists(st.builds(Member, names, ids, words), max_size=4).map(tuple)
bit_members = st.lists(st.builds(Member, names, ids, st.integers(0, 2**24 - 1), st.integers(0, 255)), max_size=4)
params = st.lists(st.builds(Member, names, ids), max_size=5).map(tuple)
unsigned_items = st.lists(st.builds(Enumerator, names, words), max_size=4).map(tuple)
signed_items = st.lists(st.builds(Enumerator, names, signed_words), max_size=4).map(tuple)
unsigned_items64 = st.lists(st.builds(Enumerator, names, st.integers(0, 2**64 - 1)), max_size=4).map(tuple)
composites = one_of_kind(Kind.BTF_KIND_STRUCT, Kind.BTF_KIND_UNION)
types = st.one_of(
    st.builds(BtfType, st.just(Kind.BTF_KIND_INT), names, words, encoding=words),
    st.builds(BtfType, st.just(Kind.BTF_KIND_FLOAT), names, words),
    st.builds(BtfType, st.just(Kind.BTF_KIND_FWD), names, is_flagged=st.booleans()),
    st.builds(BtfType, st.just(Kind.BTF_KIND_ARRAY), names, target=ids, index=ids, count=words),
    st.builds(BtfType, composites, names, words, members=plain_members),
    st.builds(BtfType, composites, names, words, members=bit_members.map(tuple), is_flagged=st.just(True)),
    st.builds(BtfType, st.just(Kind.BTF_KIND_ENUM), names, words, enumerators=unsigned_items),
    st.builds(BtfType, st.just(Kind.BTF_KIND_ENUM), names, words, enumerators=signed_items, is_flagged=st.just(True)),
    st.builds(BtfType, st.just(Kind.BTF_KIND_ENUM64), names, words, enumerators=unsigned_items64),
    st.builds(BtfType, st.just(Kind.BTF_KIND_FUNC_PROTO), names, target=ids, members=params),
    st.builds(BtfType, st.just(Kind.BTF_KIND_FUNC), names, target=ids, linkage=st.sampled_from(list(Linkage))),
    st.builds(BtfType, st.just(Kind.BTF_KIND_DECL_TAG), names, target=ids, linkage=st.integers(-1, 9)),
    st.builds(
        BtfType,
        one_of_kind(
            Kind.BTF_KIND_PTR,
            Kind.BTF_KIND_TYPEDEF,
            Kind.BTF_KIND_VOLATILE,
            Kind.BTF_KIND_CONST,
            Kind.BTF_KIND_RESTRICT,
            Kind.BTF_KIND_TYPE_TAG,
        ),
        names,
        target=ids,
    ),
)


@given(st.lists(types, max_size=30))
def test_what_is_written_is_read_back(written: list[BtfType]) -> None:
    writer = BtfWriter()
    given_ids = [writer.add(item) for item in written]
    btf = Btf(writer.encode())
    assert given_ids == list(range(1, len(written) + 1))
    assert [btf.type_at(type_id) for type_id in given_ids] == written
    assert len(btf) == len(written) + 1


@given(st.lists(types, max_size=30))
def test_a_name_finds_the_first_type_of_its_kind(written: list[BtfType]) -> None:
    writer = BtfWriter()
    for item in written:
        writer.add(item)
    btf = Btf(writer.encode())
    for item in written:
        if item.name:
            expected = [i + 1 for i, other in enumerate(written) if (other.kind, other.name) == (item.kind, item.name)]
            assert list(btf.ids_of(item.kind, item.name)) == expected
            assert btf.find(item.kind, item.name) == expected[0]


@given(st.lists(types, min_size=1, max_size=10), st.data())
def test_a_blob_that_is_cut_off_is_refused(written: list[BtfType], data: st.DataObject) -> None:
    writer = BtfWriter()
    for item in written:
        writer.add(item)
    blob = writer.encode()
    with pytest.raises(DecodeError):
        Btf(blob[: data.draw(st.integers(0, len(blob) - 1))])


@given(st.binary(max_size=200))
def test_rubbish_in_the_type_section_is_refused_or_read_but_never_crashes(section: bytes) -> None:
    section = section[: len(section) // 4 * 4]
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(section), len(section), 1)
    try:
        btf = Btf(header + section + b"\0")
        for type_id in range(len(btf)):
            btf.type_at(type_id)
    except (DecodeError, KeyError):
        pass


@pytest.fixture
def kernel() -> Btf:
    """A small kernel: struct file { struct path f_path; union { u32 a; u64 b; }; int flag:3; char comm[16]; ... }."""
    writer = BtfWriter()
    u32 = writer.integer("unsigned int", 4)
    u64 = writer.integer("unsigned long", 8)
    char = writer.integer("char", 1)
    dentry = writer.add(BtfType(Kind.BTF_KIND_STRUCT, "dentry", 8, members=(Member("d_name", u64),)))
    pointer = writer.add(BtfType(Kind.BTF_KIND_PTR, target=dentry))
    path_members = (Member("mnt", pointer, 0), Member("dentry", pointer, 64))
    path = writer.add(BtfType(Kind.BTF_KIND_STRUCT, "path", 16, members=path_members))
    const_path = writer.add(BtfType(Kind.BTF_KIND_CONST, target=path))
    path_t = writer.add(BtfType(Kind.BTF_KIND_TYPEDEF, "path_t", target=const_path))
    union = writer.add(BtfType(Kind.BTF_KIND_UNION, "", 8, members=(Member("a", u32), Member("b", u64))))
    comm = writer.add(BtfType(Kind.BTF_KIND_ARRAY, target=char, index=u32, count=16))
    paths = writer.add(BtfType(Kind.BTF_KIND_ARRAY, target=path_t, index=u32, count=2))
    flexible = writer.add(BtfType(Kind.BTF_KIND_ARRAY, target=u32, index=u32, count=0))
    members = (
        Member("f_path", path_t, 64),
        Member("", union, 192),
        Member("flag", u32, 256, 3),
        Member("comm", comm, 288),
        Member("paths", paths, 448),
        Member("rest", flexible, 704),
    )
    file = writer.add(BtfType(Kind.BTF_KIND_STRUCT, "file", 88, is_flagged=True, members=members))
    writer.add(BtfType(Kind.BTF_KIND_FWD, "file"))
    items = (Enumerator("MODE_OFF", 0), Enumerator("MODE_ERROR", -2))
    writer.add(BtfType(Kind.BTF_KIND_ENUM, "mode", 4, is_flagged=True, enumerators=items))
    big = (Enumerator("BIG", 2**63),)
    writer.add(BtfType(Kind.BTF_KIND_ENUM64, "", 8, enumerators=big))
    file_pointer = writer.add(BtfType(Kind.BTF_KIND_PTR, target=file))
    proto = writer.func_proto(u32, (Member("file", file_pointer),))
    opened = writer.func("bpf_lsm_file_open", proto)
    writer.add(BtfType(Kind.BTF_KIND_DECL_TAG, "bpf_kfunc", target=opened, linkage=-1))
    variable = writer.add(BtfType(Kind.BTF_KIND_VAR, "counter", target=u64, linkage=1))
    writer.add(BtfType(Kind.BTF_KIND_DATASEC, ".data", 8, members=(Member("counter", variable, 64, 0, 8),)))
    return Btf(writer.encode())


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        ("f_path", 8),
        ("f_path.mnt", 8),
        ("f_path.dentry", 16),
        ("a", 24),
        ("b", 24),
        ("comm", 36),
        ("comm[4]", 40),
        ("paths[1].dentry", 80),
        ("rest[3]", 100),
    ],
)
def test_a_field_is_found_through_embedded_types(kernel: Btf, path: str, offset: int) -> None:
    assert kernel.field_offset("file", path) == offset
    assert kernel.field_offset("struct file", path) == offset


@pytest.mark.parametrize(
    ("struct_name", "path", "message"),
    [
        ("file", "flag", "'flag' is a bit field"),
        ("file", "f_path.dentry.d_name", "'d_name' lies behind a pointer"),
        ("file", "f_path.name", "path has no field 'name'"),
        ("file", "comm[16]", "'comm' has no element 16"),
        ("file", "a[0]", "'a' has no element 0"),
        ("file", "comm[x]", "expected a field name"),
        ("file", "", "expected a field name"),
        ("inode", "i_ino", "no struct or union 'inode'"),
        ("mode", "x", "no struct or union 'mode'"),
    ],
)
def test_a_field_that_is_not_there_is_named(kernel: Btf, struct_name: str, path: str, message: str) -> None:
    with pytest.raises(TypeNotFound, match=message.replace("[", r"\[")):
        kernel.field_offset(struct_name, path)


def test_sizes(kernel: Btf) -> None:
    assert kernel.size_of(kernel.composite("file")) == 88
    assert kernel.size_of(kernel.composite("path_t")) == 16
    assert kernel.field_size("file", "comm") == 16
    assert kernel.field_size("file", "paths") == 32
    assert kernel.field_size("file", "f_path.dentry") == 8
    with pytest.raises(TypeNotFound, match="has no size"):
        kernel.size_of(0)


def test_enumerators(kernel: Btf) -> None:
    assert kernel.enum_value("mode", "MODE_ERROR") == -2
    assert kernel.enum_value("", "MODE_OFF") == 0
    assert kernel.enum_value("", "BIG") == 2**63
    for enum_name in ("mode", ""):
        with pytest.raises(TypeNotFound, match="no enumerator 'MODE_ON'"):
            kernel.enum_value(enum_name, "MODE_ON")
    with pytest.raises(TypeNotFound):
        kernel.enum_value("", "f_path")


def test_functions_and_tags(kernel: Btf) -> None:
    proto = kernel.func_proto("bpf_lsm_file_open")
    assert [param.name for param in proto.members] == ["file"]
    assert kernel.tags_of(kernel.find(Kind.BTF_KIND_FUNC, "bpf_lsm_file_open")) == [("bpf_kfunc", -1)]
    assert kernel.tags_of(kernel.composite("file")) == ()
    with pytest.raises(TypeNotFound, match="BTF_KIND_FUNC 'bpf_lsm_nothing'"):
        kernel.func_proto("bpf_lsm_nothing")


def test_data_sections_name_their_variables(kernel: Btf) -> None:
    section = kernel.type_at(kernel.find(Kind.BTF_KIND_DATASEC, ".data"))
    assert [(member.name, member.offset_bits, member.size_bytes) for member in section.members] == [("counter", 64, 8)]


def test_ids_that_are_not_there(kernel: Btf) -> None:
    assert kernel.type_at(0) is VOID
    for type_id in (-1, len(kernel)):
        with pytest.raises(KeyError):
            kernel.type_at(type_id)


def test_a_kind_from_the_future_is_refused_by_its_number() -> None:
    section = struct.pack("<III", 0, 25 << 24, 0)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1)
    with pytest.raises(DecodeError, match="unknown kind 25"):
        len(Btf(header + section + b"\0"))


def test_a_blob_of_the_other_byte_order_is_refused() -> None:
    with pytest.raises(DecodeError, match="got magic 0x9feb"):
        Btf(b"\xeb\x9f\x01\0" + bytes(40))


@pytest.mark.parametrize(
    ("types_bytes", "strings", "message"),
    [
        (400, b"\0", "expected all of both sections"),
        (3, b"\0", "both sections"),
        (0, b"\0a", "start and end with a zero"),
    ],
)
def test_sections_that_do_not_fit_are_refused(types_bytes: int, strings: bytes, message: str) -> None:
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, types_bytes, 0, len(strings))
    with pytest.raises(DecodeError, match=message):
        Btf(header + strings)


def test_a_kernel_built_without_types_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(btf_module, "VMLINUX_PATH", tmp_path / "vmlinux")
    Btf.vmlinux.cache_clear()
    with pytest.raises(UnsupportedFeature, match="CONFIG_DEBUG_INFO_BTF"):
        Btf.vmlinux()
    (tmp_path / "vmlinux").write_bytes(BtfWriter().encode())
    assert len(Btf.vmlinux()) == 1
    Btf.vmlinux.cache_clear()


def test_the_mirror_asks_in_its_own_numbers() -> None:
    """The mirror knows this class by shape alone, so the kinds it asks for must be ours."""
    assert {kind.name: int(kind) for kind in BtfKind} == {
        kind.name.removeprefix("BTF_KIND_").replace("UNKN", "VOID"): int(kind) for kind in Kind
    }


def test_equal_types_are_written_once() -> None:
    writer = BtfWriter()
    assert writer.byte_array(8) == writer.byte_array(8)
    assert writer.integer("int", 4) != writer.integer("int", 4, is_signed=True)
