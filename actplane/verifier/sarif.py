"""Reports as a SARIF 2.1.0 log, for editors and code hosts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

from actplane import __version__
from actplane.source import Span
from actplane.verifier.pages import page_of
from actplane.verifier.report import Refusal, Report
from actplane.verifier.tables.refusals import CATALOGUE

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif_log(reports: Iterable[Report], artifact: str) -> dict[str, Any]:
    """
    Return one SARIF log with a result for every refusal, and the path that led there as its code flow.

    Source: OASIS, Static Analysis Results Interchange Format 2.1.0.
    """
    refusals = [(report, report.refusal) for report in reports if report.refusal is not None]
    ids = sorted({refusal.id for _, refusal in refusals})
    rules = [
        {
            "id": id_,
            "shortDescription": {"text": CATALOGUE[id_].title},
            "help": {"text": CATALOGUE[id_].hint, "markdown": page_of(id_)},
        }
        for id_ in ids
    ]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "actplane verify", "version": __version__, "rules": rules}},
                "results": [_result(report, refusal, ids, artifact) for report, refusal in refusals],
            }
        ],
    }


def _result(report: Report, refusal: Refusal, ids: list[str], artifact: str) -> dict[str, Any]:
    where = f", insn {refusal.slot} ({refusal.insn_text})" if refusal.slot >= 0 else ""
    place = {
        "physicalLocation": _physical(refusal.span, artifact),
        "logicalLocations": [_logical(report, refusal.slot)],
    }
    result: dict[str, Any] = {
        "ruleId": refusal.id,
        "ruleIndex": ids.index(refusal.id),
        "level": "error" if refusal.is_verdict else "warning",
        "message": {"text": f"{report.program}{where}: {refusal.claim} (Linux {report.kernel})"},
        "locations": [place],
        "properties": {"kernel": report.kernel, "state": refusal.state, "hint": refusal.hint},
    }
    if refusal.path:
        steps = [
            {
                "physicalLocation": _physical(step.span, artifact),
                "logicalLocations": [_logical(report, step.slot)],
                "message": {"text": step.text},
            }
            for step in refusal.path
        ]
        locations = [{"location": step} for step in (*steps, place)]
        result["codeFlows"] = [{"threadFlows": [{"locations": locations}]}]
    return result


def _physical(span: Span | None, artifact: str) -> dict[str, Any]:
    if span is None:
        return {"artifactLocation": {"uri": quote(artifact)}}
    return {
        "artifactLocation": {"uri": quote(span.source.name)},
        "region": {"startLine": span.line, "startColumn": span.column},
    }


def _logical(report: Report, slot: int) -> dict[str, Any]:
    if slot < 0:
        return {"fullyQualifiedName": report.program, "kind": "function"}
    return {"fullyQualifiedName": f"{report.program}:{slot}", "kind": "instruction"}
