"""What is wrong with a model's routing, on what evidence, and what usually helps."""

from __future__ import annotations

from libmoe.report.experts.rules import RULES
from libmoe.report.experts.schema import Analysis
from libmoe.report.experts.symptoms import Finding

ORDER = ("serious", "watch", "note")


def findings(analysis: Analysis) -> list[Finding]:
    """All findings, the gravest first."""
    found = [finding for rule in RULES for finding in rule(analysis)]
    return sorted(found, key=lambda finding: ORDER.index(finding.weight))
