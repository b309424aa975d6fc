"""What each statement of the text syntaxes builds: operands as matched, to one instruction."""

from __future__ import annotations

from collections.abc import Mapping

from actplane.asm.insn import (
    Field,
    FunctionAddress,
    Insn,
    Kfunc,
    Label,
    MapFd,
    MapValue,
    Subprogram,
    Symbol,
)
from actplane.asm.isa import FORMS, LD_IMM64, Form, Kind
from actplane.asm.operands import Size
from actplane.asm.reading import REGISTERS, Operands
from actplane.asm.uapi import HelperId

# One function for each template of `syntax`.

# Tables are keyed by what stands in the text, and by the letter of the registers: r or w.
_ALU_REGISTER, _ALU_NUMBER, _JUMP_REGISTER, _JUMP_NUMBER = (
    {
        letter: {
            form.operator: form
            for form in FORMS
            if form.kind is kind and form.width == width and form.has_register_source is is_register
        }
        for letter, width in (("r", 64), ("w", 32))
    }
    for kind in (Kind.ALU, Kind.JUMP)
    for is_register in (True, False)
)
_ONLY = {form.kind: form for form in FORMS}
_ATOMIC = {
    (form.operation, form.operator, form.size): (form.code, form.imm.low) for form in FORMS if form.kind is Kind.ATOMIC
}
_SWAP = {(form.operation, form.bits): form.code for form in FORMS if form.kind is Kind.END}
_MOVSX = {(form.width, form.bits): form.code for form in FORMS if form.kind is Kind.MOVSX}
_NEG = {form.width: form.code for form in FORMS if form.kind is Kind.NEG}
_SIZES = {"8": Size.B, "16": Size.H, "32": Size.W, "64": Size.DW}
_LOADS = {
    f"{'s' if form.kind is Kind.LDXSX else 'u'}{form.size.bits}": form
    for form in FORMS
    if form.size and form.kind in (Kind.LDX, Kind.LDXSX)
}
_STORES, _NUMBER_STORES, _ABSOLUTE, _INDIRECT = (
    {form.size.ctype: form for form in FORMS if form.size and form.kind is kind}
    for kind in (Kind.STX, Kind.ST, Kind.LD_ABS, Kind.LD_IND)
)
_SOURCES = {form.name: form.src.low for form in FORMS if form.kind is Kind.LD_IMM64}


def alu_register(o: Operands) -> Insn:
    dst = o.match["dst"]
    form = _ALU_REGISTER[dst[0]][o.match["op"]]
    return Insn(form.code, REGISTERS[dst], o.same_width("src", dst[0]), form.off.low)


def alu_number(o: Operands) -> Insn:
    if o.code == LD_IMM64:
        return wide_number(o)
    dst = o.match["dst"]
    form = _ALU_NUMBER[dst[0]][o.match["op"]]
    imm, symbol = o.immediate("imm", dst[0] == "w")
    return Insn(form.code, REGISTERS[dst], 0, form.off.low, imm, symbol)


def negate(o: Operands) -> Insn:
    is_narrow = o.text("dst")[0] == "w"
    return Insn(_NEG[32 if is_narrow else 64], _same(o, "src"))


def _same(o: Operands, name: str, other: str = "dst") -> int:
    if o.text(name) != o.text(other):
        raise o.error(name, f"two registers where one is changed: got {o.text(name)}, expected {o.text(other)}")
    return o.register(name)


def sign_extend(o: Operands) -> Insn:
    is_narrow = o.text("dst")[0] == "w"
    kind, bits = o.text("type")[0], int(o.text("type")[1:])
    code = _MOVSX.get((32 if is_narrow else 64, bits)) if kind == "s" else None
    if code is None:
        raise o.error("type", f"no such move: got {o.text('type')}, expected s8, s16{'' if is_narrow else ' or s32'}")
    return Insn(code, o.register("dst"), o.same_width("src", o.text("dst")[0]), bits)


def cast(o: Operands) -> Insn:
    to, from_ = o.number("to", 0, 1), o.number("from", 0, 1)
    if to == from_:
        raise o.error("from", f"no cast from an address space to itself: got {from_}, expected {1 - to}")
    return Insn(_ONLY[Kind.ADDR_SPACE_CAST].code, o.register("dst"), o.register("src"), 1, to << 16 | from_)


def swap(o: Operands) -> Insn:
    name = o.text("op")
    bits = int(name.lstrip("lebswap"))
    return Insn(_SWAP[name.rstrip("0123456789"), bits], _same(o, "src"), imm=bits)


def load(o: Operands) -> Insn:
    type_ = o.match["type"]
    form = _LOADS.get(type_)
    if form is None:
        raise o.error("type", f"no such load: got {type_}, expected u64 (nothing is left to extend)")
    is_signed = type_[0] == "s"
    dst = o.narrow("dst", False, "(the sign is extended to 64 bits)") if is_signed else o.at_most("dst", type_)
    return _access(o, form.code, dst, REGISTERS[o.match["src"]])


def _access(o: Operands, code: int, dst: int, src: int, imm: int = 0) -> Insn:
    off, symbol = o.place()
    return Insn(code, dst, src, off, imm, symbol)


def _unsigned_type(o: Operands, *allowed: Size) -> Size:
    type_ = o.match["type"]
    size = _SIZES[type_[1:]]
    if type_[0] == "s" or (allowed and size not in allowed):
        expected = " or ".join(size.ctype for size in allowed or Size)
        raise o.error("type", f"type of the access: got {type_}, expected {expected}")
    return size


def store(o: Operands) -> Insn:
    type_ = o.match["type"]
    if type_[0] == "s":
        _unsigned_type(o)
    base = REGISTERS[o.match["base"]]
    if o.match["value"] in REGISTERS:
        return _access(o, _STORES[type_].code, base, o.at_most("value", type_))
    imm, symbol = o.immediate("value", type_ != "u64")
    if symbol is None:
        return _access(o, _NUMBER_STORES[type_].code, base, 0, imm)
    if isinstance(symbol, Field) or "(" in o.match["off"]:
        raise o.error("value", "one name of the kernel's at most in a store, and a field for its address alone")
    return Insn(_NUMBER_STORES[type_].code, base, 0, o.offset(), imm, symbol)


def load_absolute(o: Operands) -> Insn:
    return Insn(_packet(o, _ABSOLUTE).code, imm=o.signed_32("imm", False))


def load_indirect(o: Operands) -> Insn:
    form = _packet(o, _INDIRECT)
    return Insn(form.code, src=REGISTERS[o.match["src"]], imm=o.number("off", -0x80000000, 0x7FFFFFFF))


def _packet(o: Operands, forms: Mapping[str, Form]) -> Form:
    if o.match["dst"] not in ("r0", "w0"):
        raise o.error("dst", f"packet loads go to r0: got {o.text('dst')}")
    form = forms.get(o.match["type"])
    if form is None:
        raise o.error("type", f"type of the access: got {o.text('type')}, expected {' or '.join(forms)}")
    return form


def atomic(o: Operands) -> Insn:
    size = _unsigned_type(o, Size.W, Size.DW)
    found = {sign: form for (name, sign, s), form in _ATOMIC.items() if s is size and sign}.get(o.text("op"))
    if found is None:
        raise o.error("op", f"no such atomic operation: got {o.text('op')}, expected +=, |=, &= or ^=")
    return _access(o, found[0], o.register("base"), o.at_most("src", size.ctype), found[1])


def _fetching(o: Operands, operation: str, size: Size, base: str, src: int) -> Insn:
    code, imm = _ATOMIC[operation, "", size]
    return _access(o, code, o.register(base), src, imm)


def atomic_fetch(o: Operands) -> Insn:
    size = _unsigned_type(o, Size.W, Size.DW)
    _same(o, "src")
    prefix, _, operation = o.text("op").partition("_")
    _check_width(o, "op", prefix, size)
    return _fetching(o, operation, size, "base", o.at_most("src", size.ctype))


def _check_width(o: Operands, name: str, prefix: str, size: Size) -> None:
    # LLVM writes atomic_ for both widths, the kernel atomic64_ for 64 bits.
    if prefix == "atomic64" and size is not Size.DW:
        raise o.error(name, f"atomic64 of 32 bits: got {o.text('type')}, expected u64")


def atomic_compare(o: Operands) -> Insn:
    size = _unsigned_type(o, Size.W, Size.DW)
    _check_width(o, "type", "atomic64" if "atomic64" in o.match.string else "", size)
    _check_r0(o)
    return _fetching(o, "cmpxchg", size, "base", o.at_most("src", size.ctype))


def _check_r0(o: Operands) -> None:
    for name in ("dst", "r0"):
        if o.text(name)[1:] != "0":
            raise o.error(name, f"cmpxchg compares with r0 and returns there: got {o.text(name)}")


def exchange_64(o: Operands) -> Insn:
    return _fetching(o, "xchg", Size.DW, "base", _same(o, "src"))


def exchange_32(o: Operands) -> Insn:
    return _fetching(o, "xchg", Size.W, "base", _same(o, "src"))


def compare_64(o: Operands) -> Insn:
    _check_r0(o)
    return _fetching(o, "cmpxchg", Size.DW, "base", o.register("src"))


def compare_32(o: Operands) -> Insn:
    _check_r0(o)
    return _fetching(o, "cmpxchg", Size.W, "base", o.register("src"))


def load_acquire(o: Operands) -> Insn:
    size = _unsigned_type(o)
    form = _ORDERED[Kind.LOAD_ACQUIRE, size]
    return _access(o, form.code, o.at_most("dst", size.ctype), o.register("src"), form.imm.low)


def store_release(o: Operands) -> Insn:
    size = _unsigned_type(o)
    form = _ORDERED[Kind.STORE_RELEASE, size]
    return _access(o, form.code, o.register("base"), o.at_most("src", size.ctype), form.imm.low)


_ORDERED: dict[tuple[Kind, Size | None], Form] = {
    (form.kind, form.size): form for form in FORMS if form.kind in (Kind.LOAD_ACQUIRE, Kind.STORE_RELEASE)
}


def _wide(o: Operands, source: str, imm: int, symbol: Symbol | None = None) -> Insn:
    return Insn(LD_IMM64, o.register("dst"), _SOURCES[source], 0, imm, symbol)


def wide_number(o: Operands) -> Insn:
    low, high = -(1 << 63), (1 << 64) - 1
    if "(" in o.text("imm"):
        imm, symbol = o.symbol("imm", low, high)
        return _wide(o, "ld_imm64", imm & high, symbol)
    return _wide(o, "ld_imm64", o.number("imm", low, high) & high)


def _map_number(o: Operands, prefix: str) -> int | None:
    text = o.text("map")
    if not text.startswith(prefix):
        return None
    try:
        number = int(text.removeprefix(prefix), 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise o.error("map", f"map: got {text!r}, expected {prefix}N")
    return number


def wide_map(o: Operands) -> Insn:
    for prefix, source in (("fd:", "ld_map_fd"), ("idx:", "ld_map_idx")):
        number = _map_number(o, prefix)
        if number is not None:
            return _wide(o, source, number)
    return _wide(o, "ld_map_fd", 0, MapFd(o.text("map")))


def wide_map_value(o: Operands) -> Insn:
    offset = o.number("off", 0, (1 << 32) - 1)
    for prefix, source in (("fd:", "ld_map_value"), ("idx:", "ld_map_idx_value")):
        number = _map_number(o, prefix)
        if number is not None:
            return _wide(o, source, offset << 32 | number)
    return _wide(o, "ld_map_value", offset << 32, MapValue(o.text("map"), offset))


def wide_function(o: Operands) -> Insn:
    slots, name = o.target(32)
    return _wide(o, "ld_func", slots, FunctionAddress(name) if name else None)


def wide_btf(o: Operands) -> Insn:
    fd = o.number("fd", 0, (1 << 32) - 1) if "fd" in o.match.re.groupindex else 0
    return _wide(o, "ld_btf_id", fd << 32 | o.number("imm", 0, (1 << 32) - 1))


def wide_pseudo(o: Operands) -> Insn:
    source = o.number("source", 0, max(_SOURCES.values()))
    form = next(f for f in FORMS if f.kind is Kind.LD_IMM64 and f.src.low == source)
    imm = o.number("imm", -(1 << 63), (1 << 64) - 1)
    if source == _SOURCES["ld_func"] and 0 <= imm < 1 << 32:
        imm -= (imm >> 31) << 32
    elif source != _SOURCES["ld_func"]:
        imm &= (1 << 64) - 1
    if imm not in form.imm:
        raise o.error("imm", f"number out of range: got {imm}, expected {form.imm.expected}")
    return Insn(LD_IMM64, o.register("dst"), source, 0, imm)


def jump(o: Operands) -> Insn:
    dst, value = o.match["dst"], o.match["value"]
    if value in REGISTERS:
        form = _JUMP_REGISTER[dst[0]][o.match["cmp"]]
        return _branch(o, form.code, REGISTERS[dst], o.same_width("value", dst[0]))
    form = _JUMP_NUMBER[dst[0]][o.match["cmp"]]
    imm, symbol = o.immediate("value", dst[0] == "w")
    if symbol is None:
        return _branch(o, form.code, REGISTERS[dst], 0, imm)
    slots, label = o.target()
    if label:
        hint = "load the number into a register first"
        raise o.error("to", f"label beside a name of the kernel's: got {label}, expected an offset like +3", hint)
    return Insn(form.code, REGISTERS[dst], 0, slots, imm, symbol)


def _branch(o: Operands, code: int, dst: int, src: int, imm: int = 0) -> Insn:
    slots, label = o.target()
    return Insn(code, dst, src, slots, imm, Label(label) if label else None)


def goto(o: Operands) -> Insn:
    return _branch(o, _ONLY[Kind.JA].code, 0, 0)


def may_goto(o: Operands) -> Insn:
    return _branch(o, _ONLY[Kind.MAY_GOTO].code, 0, 0)


def goto_long(o: Operands) -> Insn:
    slots, label = o.target(32)
    return Insn(_ONLY[Kind.GOTOL].code, imm=slots, symbol=Label(label) if label else None)


def goto_register(o: Operands) -> Insn:
    return Insn(_ONLY[Kind.GOTOX].code, o.register("dst"))


_CALL = _ONLY[Kind.CALL_HELPER].code
_LOCAL, _KFUNC = _ONLY[Kind.CALL_SUBPROGRAM].src.low, _ONLY[Kind.CALL_KFUNC].src.low


def call_named(o: Operands) -> Insn:
    name, number = o.text("name"), o.number("imm", -(1 << 31), (1 << 31) - 1)
    if name in HelperId.__members__:
        # bpftool writes behind the name where the function lies in the kernel that runs.
        if HelperId[name] != number and o.code is None:
            raise o.error("imm", f"number of {name}: got {number}, expected {int(HelperId[name])}")
        return Insn(_CALL, imm=int(HelperId[name]))
    if name == "unknown":
        return Insn(_CALL, imm=number)
    if o.code is not None:
        # In a listing, a name that is no helper's is a kernel function's; its id is that kernel's.
        return Insn(_CALL, src=_KFUNC, symbol=Kfunc(name))
    raise o.error("name", f"unknown helper {name!r}", f"a kernel function is called with `call {name}#kfunc`")


def call(o: Operands) -> Insn:
    slots, name = o.target(32)
    if name in HelperId.__members__:
        return Insn(_CALL, imm=int(HelperId[name]))
    return Insn(_CALL, src=_LOCAL, imm=slots, symbol=Subprogram(name) if name else None)


def call_local(o: Operands) -> Insn:
    slots, name = o.target(32)
    return Insn(_CALL, src=_LOCAL, imm=slots, symbol=Subprogram(name) if name else None)


def call_number(o: Operands) -> Insn:
    return Insn(_CALL, imm=o.signed_32("imm", False))


def _fd_index(o: Operands) -> int:
    return o.number("fd", 0, (1 << 15) - 1) if "fd" in o.match.re.groupindex else 0


def call_kfunc(o: Operands) -> Insn:
    return Insn(_CALL, src=_KFUNC, off=_fd_index(o), symbol=Kfunc(o.text("name")))


def call_kfunc_number(o: Operands) -> Insn:
    return Insn(_CALL, src=_KFUNC, off=_fd_index(o), imm=o.signed_32("imm", False))


def callx(o: Operands) -> Insn:
    return Insn(_ONLY[Kind.CALLX].code, o.register("src"))


def exit_(o: Operands) -> Insn:
    return Insn(_ONLY[Kind.EXIT].code)
