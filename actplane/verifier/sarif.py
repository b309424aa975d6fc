"""Reports as a SARIF 2.1.0 log, for editors and code hosts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from actplane.verifier.refusals import CATALOGUE
from actplane.verifier.report import Refusal, Report

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif_log(reports: Iterable[Report], artifact: str) -> dict[str, Any]:
    """
    Return one SARIF log with a result for every refusal.

    Source: OASIS, Static Analysis Results Interchange Format 2.1.0.
    """
    refusals = [(report, report.refusal) for report in reports if report.refusal is not None]
    ids = sorted({refusal.id for _, refusal in refusals})
    rules = [
        {
            "id": id_,
            "shortDescription": {"text": CATALOGUE[id_].title},
            "help": {"text": CATALOGUE[id_].hint},
        }
        for id_ in ids
    ]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "actplane verify", "rules": rules}},
                "results": [_result(report, refusal, ids, artifact) for report, refusal in refusals],
            }
        ],
    }


def _result(report: Report, refusal: Refusal, ids: list[str], artifact: str) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": artifact}}
    if refusal.span is not None:
        place = {
            "artifactLocation": {"uri": refusal.span.source.name},
            "region": {"startLine": refusal.span.line, "startColumn": refusal.span.column},
        }
    return {
        "ruleId": refusal.id,
        "ruleIndex": ids.index(refusal.id),
        "level": "error",
        "message": {"text": f"{report.program}, insn {refusal.slot} ({refusal.insn_text}): {refusal.claim}"},
        "locations": [
            {
                "physicalLocation": place,
                "logicalLocations": [{"fullyQualifiedName": f"{report.program}:{refusal.slot}", "kind": "instruction"}],
            }
        ],
    }
