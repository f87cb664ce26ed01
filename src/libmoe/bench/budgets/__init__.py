"""Budgets: what is held equal between methods, how it is met, and what is refused."""

from __future__ import annotations

from libmoe.bench.budgets.calibration import Calibrator, Clock, Steps
from libmoe.bench.budgets.memory import estimate_memory
from libmoe.bench.budgets.quantities import NAMED, Budget, Goal, Knob, Quantity, Solve, parse_budget, words
from libmoe.bench.budgets.search import nearest_integer
from libmoe.bench.budgets.solving import Design, Solver
from libmoe.bench.budgets.speedup import Curve, Speedup, compute_speedup
from libmoe.bench.budgets.sweeps import Sweep

__all__ = [
    "NAMED",
    "Budget",
    "Calibrator",
    "Clock",
    "Curve",
    "Design",
    "Goal",
    "Knob",
    "Quantity",
    "Solve",
    "Solver",
    "Speedup",
    "Steps",
    "Sweep",
    "compute_speedup",
    "estimate_memory",
    "nearest_integer",
    "parse_budget",
    "words",
]
