"""Fair comparison: the same data, seeds and budget for every method, run as one grid."""

from __future__ import annotations

from libmoe.bench.entry import Entry
from libmoe.bench.grid import Grid, load_grid
from libmoe.bench.run import run_grid

__all__ = ["Entry", "Grid", "load_grid", "run_grid"]
