"""Scores of all evaluations in one file that can be asked, and models compared on the documents they share."""

from __future__ import annotations

from libmoe.eval.results.columns import RESULTS
from libmoe.eval.results.comparing import compare
from libmoe.eval.results.comparison import Comparison, Difference
from libmoe.eval.results.export import export
from libmoe.eval.results.picture import draw
from libmoe.eval.results.store import Results, default_store

__all__ = ["RESULTS", "Comparison", "Difference", "Results", "compare", "default_store", "draw", "export"]
