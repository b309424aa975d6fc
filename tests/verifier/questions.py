"""
Programs to ask both the mirror and a kernel about, by category, each found by a seed and a number
alone: so a run can stop anywhere and go on, and every disagreement can be asked again.

`wire` turns a question into plain data, which a loader in a guest needs nothing else to load.
"""

from __future__ import annotations

import base64
import gzip
import random
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from actplane.asm.assembler import assemble_object
from actplane.asm.insn import Insn, Kfunc, MapFd, MapValue
from actplane.asm.program import MapSpec, Program
from actplane.asm.uapi import AttachType
from actplane.codegen.compile import compile_policy
from actplane.codegen.tier import Tier
from actplane.dsl.compiler import compile_sources
from actplane.errors import ActplaneError, EncodeError
from actplane.loader.btf import Btf, TypeNotFound
from actplane.loader.debug_info import FUNC_INFO_BYTES, debug_info
from actplane.loader.relocate import relocate
from actplane.source import Source
from actplane.verifier import OwnTypes
from tests.verifier import corpus
from tests.verifier.jump_table_grammar import jumping_sentence
from tests.verifier.policy_texts import policy_text
from tests.verifier.program_grammar import MAPS, mutation, sentence
from tests.verifier.small_programs import PROGRAMS_ABOUT_RULES

DOCS = Path(__file__).parents[2] / "docs"
CASES = Path(__file__).parents[1] / "cases"

LARGEST_MUTATED_SLOTS = 400
LARGEST_PROCESSED = 6_000
"""Programs of the corpus on which some kernel processed more are left to the benchmark."""

_NOT_ASKED = frozenset({"EXT", "STRUCT_OPS", "LWT_IN", "LWT_OUT", "LWT_XMIT", "LWT_SEG6LOCAL"})
"""EXT needs another program, struct_ops a map of its own; lightweight tunnels are left alone."""

_HOOK_PREFIX = {
    AttachType.BPF_TRACE_RAW_TP: (8, "btf_trace_"),
    AttachType.BPF_TRACE_ITER: (12, "bpf_iter_"),
    AttachType.BPF_LSM_MAC: (12, "bpf_lsm_"),
    AttachType.BPF_LSM_CGROUP: (12, "bpf_lsm_"),
    AttachType.BPF_TRACE_FENTRY: (12, ""),
    AttachType.BPF_TRACE_FEXIT: (12, ""),
    AttachType.BPF_MODIFY_RETURN: (12, ""),
}
"""The BTF kind of a hook (8: typedef, 12: function) and what its name begins with."""


@dataclass(frozen=True)
class Question:
    """One program with everything that the mirror and a kernel need to judge it."""

    category: str
    number: int
    program: Program
    maps: Mapping[str, MapSpec]
    own: OwnTypes | None = None
    flags: int = 0
    raw_maps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The maps as the corpus describes them, where they come from there."""
    debug: Mapping[str, Any] = field(default_factory=dict)
    """The corpus's BTF and function information."""
    origin: str = ""

    def wire(self) -> dict[str, Any]:
        """Return the question as plain data for `Asker`."""
        insns, map_refs, kfuncs = _raw(self.program.insns)
        hook = None
        if self.program.attach_type in _HOOK_PREFIX and self.program.attach_to is not None:
            kind, prefix = _HOOK_PREFIX[self.program.attach_type]
            hook = [kind, prefix + self.program.attach_to]
        return {
            "category": self.category,
            "number": self.number,
            "prog_type": int(self.program.prog_type),
            "attach_type": int(self.program.attach_type or 0),
            "hook": hook,
            "flags": self.flags | (16 if self.program.is_sleepable else 0),
            "license": self.program.license,
            "insns": insns.hex(),
            "map_refs": map_refs,
            "kfuncs": kfuncs,
            "maps": {**{name: _raw_map(spec) for name, spec in self.maps.items()}, **self.raw_maps},
            "debug": dict(self.debug),
        }


def _raw(insns: Sequence[Insn]) -> tuple[bytes, list[tuple[int, str]], list[tuple[int, str]]]:
    """Encode without any check, so that bad instructions reach the kernel too; list what is to be filled in."""
    out = bytearray()
    map_refs, kfuncs = [], []
    for insn in insns:
        slot = len(out) // 8
        low, high = insn.imm & 0xFFFFFFFF, insn.imm >> 32 & 0xFFFFFFFF
        if isinstance(insn.symbol, MapFd | MapValue):
            map_refs.append((slot, insn.symbol.name))
            low, high = 0, insn.symbol.offset_bytes if isinstance(insn.symbol, MapValue) else 0
        elif isinstance(insn.symbol, Kfunc):
            kfuncs.append((slot, insn.symbol.name))
            low = 0
        out += struct.pack("<BBhI", insn.code, insn.src << 4 | insn.dst, insn.off, low)
        if insn.slots == 2:
            out += struct.pack("<BBhI", 0, 0, 0, high)
    return bytes(out), map_refs, kfuncs


def _raw_map(spec: MapSpec) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "type_id": int(spec.type),
        "key_size": spec.key_size,
        "value_size": spec.value_size,
        "max_entries": spec.max_entries,
        "flags": spec.flags,
        "frozen": spec.is_frozen,
    }
    if spec.contents is not None:
        size = spec.value_size
        raw["updates"] = [
            {"key": struct.pack("<I", index).hex(), "value": spec.contents[at : at + size].ljust(size, b"\0").hex()}
            for index, at in enumerate(range(0, len(spec.contents), size))
        ]
    return raw


def _debug_of(program: Program) -> dict[str, Any]:
    """Return the function information that the loader sends along, for programs of more than one function."""
    try:
        info = debug_info(program)
    except struct.error:
        # A mutated call goes to before the program; it has no function there to describe.
        return {}
    if len(info.func_info) <= FUNC_INFO_BYTES:
        return {}
    inline = base64.b64encode(info.btf).decode()
    return {"inline": inline, "func_info": info.func_info.hex(), "rec_size": FUNC_INFO_BYTES}


def blob_of(name: str) -> str:
    """Return a BTF blob of the corpus as text for the wire."""
    return base64.b64encode(gzip.decompress(corpus._members()[f"cases/btf/{name}.gz"])).decode()


Maker = Callable[[int, int, Btf], Question | None]
"""Takes a seed, a number and the kernel's types; None if that number has no question for this kernel."""


def _rng(category: str, seed: int, number: int) -> random.Random:
    return random.Random(f"{seed}/{category}/{number}")


def _grammar(seed: int, number: int, types: Btf) -> Question:
    return Question("grammar", number, sentence(_rng("grammar", seed, number)), MAPS)


def _grammar_mutated(seed: int, number: int, types: Btf) -> Question:
    rng = _rng("grammar, mutated", seed, number)
    return Question("grammar, mutated", number, _mutated(rng, sentence(rng), ()), MAPS)


def _jump_tables(seed: int, number: int, types: Btf) -> Question:
    return Question("jump tables", number, *jumping_sentence(_rng("jump tables", seed, number)))


def _jump_tables_mutated(seed: int, number: int, types: Btf) -> Question:
    rng = _rng("jump tables, mutated", seed, number)
    program, maps = jumping_sentence(rng)
    return Question("jump tables, mutated", number, _mutated(rng, program, ()), maps)


def _mutated(rng: random.Random, program: Program, others: Sequence[Program]) -> Program:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if others and rng.random() < 0.15:
            program = _spliced(rng, program, rng.choice(others))
        else:
            program = mutation(rng, program)
    return program


def _spliced(rng: random.Random, program: Program, other: Program) -> Program:
    """Return the program with a few plain instructions of another one set in."""
    plain = [insn for insn in other.insns if insn.symbol is None and insn.code & 7 in (1, 2, 3, 4, 7)]
    if not plain:
        return program
    start, at = rng.randrange(len(plain)), rng.randrange(len(program.insns))
    # Jumps keep their offsets, so what they skip changes: that is a mutation too.
    insns = [*program.insns[:at], *plain[start : start + rng.randrange(1, 4)], *program.insns[at:]]
    return replace(program, insns=tuple(insns))


@cache
def _corpus_cases() -> tuple[corpus.Case, ...]:
    if not corpus.ARCHIVE.exists():
        return ()
    return tuple(case for case in corpus.cases() if case.kind not in _NOT_ASKED and case.processed <= LARGEST_PROCESSED)


def corpus_question(case: corpus.Case, category: str, number: int) -> Question | None:
    """Return a program of the corpus as a question; None if it cannot be asked."""
    try:
        corpus.prepare(case)
    except corpus.BadEncoding:
        return None
    assert case.program is not None
    raw = case.raw
    if raw.get("ksym_refs"):
        return None
    debug = {}
    if raw.get("btf") and raw.get("func_info_hex"):
        debug = {"btf": raw["btf"], "func_info": raw["func_info_hex"], "rec_size": raw["func_info_rec_size"]}
    raw_maps = {f"m{index}": entry for index, entry in enumerate(raw["maps"])}
    # Where the corpus lacks the contents of a constant map, both are given zeros.
    maps = {
        name: replace(spec, contents=bytes(spec.value_size)) if spec.is_frozen and spec.contents is None else spec
        for name, spec in case.maps.items()
    }
    return Question(category, number, case.program, maps, case.own, raw["prog_flags"] & ~16, raw_maps, debug, case.id)


def _corpus(seed: int, number: int, types: Btf) -> Question | None:
    found = _corpus_cases()
    return corpus_question(found[number], "corpus", number) if number < len(found) else None


@cache
def _small_corpus_cases() -> tuple[corpus.Case, ...]:
    return tuple(case for case in _corpus_cases() if case.raw["insn_cnt"] <= LARGEST_MUTATED_SLOTS)


def _corpus_mutated(seed: int, number: int, types: Btf) -> Question | None:
    found = _small_corpus_cases()
    if not found:
        return None
    rng = _rng("corpus, mutated", seed, number)
    question = corpus_question(rng.choice(found), "corpus, mutated", number)
    if question is None or question.debug:
        # Function information says where functions start: such programs keep their length.
        others: tuple[Program, ...] = ()
    else:
        others = (sentence(rng),)
    return question and replace(question, program=_mutated(rng, question.program, others))


def _policies(seed: int) -> Iterator[str]:
    for path in sorted(CASES.glob("*.case")):
        text = re.search(r"^=== policy\n(.*?)(?=^=== |\Z)", path.read_text(), re.S | re.M)
        if text is not None:
            yield text[1]
    for number in range(GENERATED_POLICIES):
        yield policy_text(_rng("policy", seed, number))


GENERATED_POLICIES = 120


@cache
def _emitted(seed: int, types: Btf) -> tuple[tuple[Program, Mapping[str, MapSpec]], ...]:
    """Every program that codegen emits for the policies of the tests' cases and for generated ones."""
    found: dict[tuple[object, ...], tuple[Program, Mapping[str, MapSpec]]] = {}
    for text in _policies(seed):
        for tier in Tier:
            try:
                compiled = compile_policy(compile_sources([Source("policy", text)], resolve=None).policy, tier)
            except ActplaneError:
                continue
            maps = {spec.name: spec for spec in compiled.object.maps}
            for program in compiled.object.programs:
                try:
                    program = relocate(program, types)
                    key = (program.prog_type, program.attach_to, _raw(program.insns)[0])
                except TypeNotFound:
                    continue
                found.setdefault(key, (program, maps))
    return tuple(found.values())


def _codegen(seed: int, number: int, types: Btf) -> Question | None:
    found = _emitted(seed, types)
    if number >= len(found):
        return None
    program, maps = found[number]
    return Question("codegen", number, program, maps, debug=_debug_of(program))


def _codegen_mutated(seed: int, number: int, types: Btf) -> Question | None:
    rng = _rng("codegen, mutated", seed, number)
    program, maps = rng.choice(_emitted(seed, types))
    changed = _mutated(rng, program, ())
    return Question("codegen, mutated", number, changed, maps, debug=_debug_of(changed))


@cache
def _documented() -> tuple[tuple[Program, Mapping[str, MapSpec], str], ...]:
    """Every example of the documentation that is a program."""
    found = []
    for path in sorted(DOCS.glob("**/*.md")):
        for index, text in enumerate(re.findall(r"```bpf\n(.*?)```", path.read_text(), re.S)):
            try:
                parsed = assemble_object(text, name=path.name)
            except ActplaneError:
                continue
            maps = {spec.name: spec for spec in parsed.maps}
            found += [(program, maps, f"{path.name}#{index}") for program in parsed.programs]
    return tuple(found)


def _documentation(seed: int, number: int, types: Btf) -> Question | None:
    found = _documented()
    if number >= len(found):
        return None
    program, maps, origin = found[number]
    try:
        program = relocate(program, types)
    except (TypeNotFound, EncodeError):
        return None
    return Question("documentation", number, program, maps, debug=_debug_of(program), origin=origin)


def _documentation_mutated(seed: int, number: int, types: Btf) -> Question | None:
    rng = _rng("documentation, mutated", seed, number)
    question = _documentation(seed, rng.randrange(len(_documented())), types)
    if question is None:
        return None
    changed = _mutated(rng, question.program, (sentence(rng),))
    return replace(
        question, category="documentation, mutated", number=number, program=changed, debug=_debug_of(changed)
    )


def _rules(seed: int, number: int, types: Btf) -> Question:
    small = PROGRAMS_ABOUT_RULES[number]
    program, maps = small.program()
    declared = small.types(program)
    if declared is None:
        return Question("rules", number, program, maps, debug=_debug_of(program), origin=small.name)
    blob, functions = declared
    info = b"".join(struct.pack("<II", *pair) for pair in sorted(functions.items()))
    debug = {"inline": base64.b64encode(blob).decode(), "func_info": info.hex(), "rec_size": FUNC_INFO_BYTES}
    return Question("rules", number, program, maps, OwnTypes(Btf(blob), functions), debug=debug, origin=small.name)


MAKERS: Mapping[str, Maker] = {
    "rules": _rules,
    "grammar": _grammar,
    "grammar, mutated": _grammar_mutated,
    "jump tables": _jump_tables,
    "jump tables, mutated": _jump_tables_mutated,
    "corpus": _corpus,
    "corpus, mutated": _corpus_mutated,
    "codegen": _codegen,
    "codegen, mutated": _codegen_mutated,
    "documentation": _documentation,
    "documentation, mutated": _documentation_mutated,
}

FINITE = {
    "rules": lambda seed, types: len(PROGRAMS_ABOUT_RULES),
    "corpus": lambda seed, types: len(_corpus_cases()),
    "codegen": lambda seed, types: len(_emitted(seed, types)),
    "documentation": lambda seed, types: len(_documented()),
}
"""Categories that end, and how many questions they have."""

SHARES = {
    "grammar": 0.27,
    "grammar, mutated": 0.19,
    "jump tables": 0.02,
    "jump tables, mutated": 0.01,
    "corpus, mutated": 0.35,
    "codegen, mutated": 0.06,
    "documentation, mutated": 0.1,
}
"""How the questions of a run are spread over the categories that do not end."""
