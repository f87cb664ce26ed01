"""What the experts of a model do: self-contained interactive pages of an analysis and of studies, pictures and tables.

A pure function of ``analysis.json`` (:mod:`.schema` has its keys) or of ``studies.json``; nothing is computed from a
model here.
"""

from __future__ import annotations

from libmoe.report.experts.build import write_expert_report
from libmoe.report.experts.schema import FORMAT, Analysis
from libmoe.report.experts.studies import write_study_report
from libmoe.report.experts.writing import ExpertPaths

__all__ = ["FORMAT", "Analysis", "ExpertPaths", "write_expert_report", "write_study_report"]
