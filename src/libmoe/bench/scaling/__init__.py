"""Scaling laws of finished runs, and what to train by them.

``fit`` a ``Form`` to ``Runs``, ``resample`` it for intervals, ``leave_largest_out`` to see whether it tells the future,
``isoflop_profiles`` for the best sizes without any law, ``BudgetSolver`` for what to train when serving counts.
``study`` does all of it.
"""

from __future__ import annotations

from libmoe.bench.scaling.budget import Allocation, BudgetSolver
from libmoe.bench.scaling.density import Density, best_tokens_per_param, density_for
from libmoe.bench.scaling.fit import Fit, Goodness, fit
from libmoe.bench.scaling.forms import FORMS, PUBLISHED, Form, ScalingLaw, form_named
from libmoe.bench.scaling.holdout import Holdout, leave_largest_out
from libmoe.bench.scaling.intervals import Resampled, resample
from libmoe.bench.scaling.minima import Minimum, Profile, Trend, isoflop_profiles, minimum, trends
from libmoe.bench.scaling.runs import Runs, read_runs, runs_from_rows
from libmoe.bench.scaling.serving import Accelerator, Family, FlopServing, RooflineServing, Serving
from libmoe.bench.scaling.study import Ask, Study, study

__all__ = [
    "FORMS",
    "PUBLISHED",
    "Accelerator",
    "Allocation",
    "Ask",
    "BudgetSolver",
    "Density",
    "Family",
    "Fit",
    "FlopServing",
    "Form",
    "Goodness",
    "Holdout",
    "Minimum",
    "Profile",
    "Resampled",
    "RooflineServing",
    "Runs",
    "ScalingLaw",
    "Serving",
    "Study",
    "Trend",
    "best_tokens_per_param",
    "density_for",
    "fit",
    "form_named",
    "isoflop_profiles",
    "leave_largest_out",
    "minimum",
    "read_runs",
    "resample",
    "runs_from_rows",
    "study",
    "trends",
]
