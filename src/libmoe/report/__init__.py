"""Report of a finished grid: one self-contained page, its numbers as JSON and CSV, its pictures as PNG and SVG.

A pure function of the grid folder's files; nothing is trained, downloaded or looked up.
"""

from __future__ import annotations

from libmoe.report.build import ReportPaths, write_report
from libmoe.report.summary import summarise

__all__ = ["ReportPaths", "summarise", "write_report"]
