"""What the experts of a model do: one self-contained interactive page of an analysis, its pictures and its tables.

A pure function of ``analysis.json`` (:mod:`.schema` has its keys); nothing is computed from a model here.
"""

from __future__ import annotations

from libmoe.report.experts.build import ExpertPaths, write_expert_report
from libmoe.report.experts.schema import FORMAT, Analysis

__all__ = ["FORMAT", "Analysis", "ExpertPaths", "write_expert_report"]
