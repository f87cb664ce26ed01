"""Equal budgets: what every entry of a grid is sized and trained for, and how far from it it ends up."""

from __future__ import annotations

from libmoe.bench.match.costs import measure
from libmoe.bench.match.kept import read_sizes, write_sizes
from libmoe.bench.match.matched import Matched
from libmoe.bench.match.matching import match_sizes

__all__ = ["Matched", "match_sizes", "measure", "read_sizes", "write_sizes"]
