"""Everything that finished runs say about scaling, in one go; what they cannot say is named with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np

from libmoe.bench.scaling.budget import EXPERTS, Allocation, BudgetSolver
from libmoe.bench.scaling.fit import Fit, fit
from libmoe.bench.scaling.forms import Form, ScalingLaw
from libmoe.bench.scaling.holdout import Holdout, leave_largest_out
from libmoe.bench.scaling.intervals import Resampled, resample
from libmoe.bench.scaling.minima import Profile, Trend, isoflop_profiles, trends
from libmoe.bench.scaling.pictures import extrapolation_picture, frontier_picture, isoflop_picture
from libmoe.bench.scaling.runs import Runs
from libmoe.bench.scaling.serving import Family, RooflineServing, Serving
from libmoe.core.errors import ConfigError, DataError
from libmoe.core.files import finite

REACH = 10.0
"""How far beyond the runs sizes are looked at, either way."""


@dataclass(frozen=True)
class Ask:
    """What a budget should be solved for; nothing without ``flops`` or ``loss``.

    Attributes:
        flops: of training: loss against serving cost for this budget.
        loss: that must be reached: the cheapest way to, with ``demand`` tokens served.
        max_tokens: of training data; by default ten times what the runs had, as a law is worth little further out.
        experts: numbers to look among; a law that knows no experts keeps to the number of its runs.
        top_k: experts that a token uses.
    """

    flops: float | None = None
    loss: float | None = None
    demand: float = 0.0
    max_tokens: float | None = None
    experts: Sequence[int] = EXPERTS
    top_k: int = 2


@dataclass(frozen=True)
class Study:
    """A fit and what follows from it.

    Attributes:
        best: the loss-optimal size for ``ask.flops`` with its interval, one for each number of experts.
        frontier: loss against serving cost for ``ask.flops``.
        ways: models that reach ``ask.loss``, cheapest first.
        reasons: why a part is missing, by its name.
    """

    fit: Fit
    resampled: Resampled
    holdout: Holdout | None = None
    profiles: list[Profile] = field(default_factory=list)
    trends: list[Trend] = field(default_factory=list)
    best: list[dict[str, Any]] = field(default_factory=list)
    frontier: list[Allocation] = field(default_factory=list)
    ways: list[Allocation] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which knows no infinity: such costs are ``None``."""
        runs, form = self.fit.runs, self.fit.law.form
        constants = {}
        for name in form.constants:
            value, low, high = self.resampled.constant(name)
            constants[name] = {
                "value": value,
                # Draws begin where the fit ended, so they say nothing of a constant that it could not move.
                "low": None if name in self.fit.at_bound else low,
                "high": None if name in self.fit.at_bound else high,
                "fixed": name in self.fit.fixed, "at_bound": name in self.fit.at_bound,
            }  # fmt: skip
        content = {
            "law": form.name,
            "source": form.source,
            "unit": runs.unit,
            "runs": len(runs),
            "configurations": runs.configs,
            "left_out": runs.left_out,
            "level": self.resampled.level,
            "draws": len(self.resampled.laws),
            "constants": constants,
            "goodness": asdict(self.fit.goodness),
            "holdout": _holdout(self.holdout),
            "isoflop": [_profile(profile) for profile in self.profiles],
            "trends": [asdict(trend) for trend in self.trends],
            "best": self.best,
            "frontier": [asdict(a) for a in self.frontier],
            "ways": [asdict(a) for a in self.ways],
            "reasons": self.reasons,
        }
        return cast(dict[str, Any], finite(content))

    def pictures(self) -> dict[str, bytes]:
        """PNGs by name; none without matplotlib."""
        unit = self.fit.runs.unit
        drawn = {
            "isoflop": isoflop_picture(self.profiles, self.trends, unit) if self.profiles else None,
            "extrapolation": extrapolation_picture(self.holdout, unit) if self.holdout else None,
            "frontier": frontier_picture(self.frontier, unit) if self.frontier else None,
        }
        return {name: png for name, png in drawn.items() if png is not None}


def study(
    form: Form,
    runs: Runs,
    *,
    fixed: Mapping[str, float] | None = None,
    draws: int = 299,
    level: float = 0.95,
    share: float = 0.2,
    ask: Ask | None = None,
    family: Family | None = None,
    serving: Serving | None = None,
) -> Study:
    """Fit, resample, hold out, profile and solve.

    Args:
        share: of the configurations that are held out.
        family: how models grow; by default measured from the runs.
        serving: by default the roofline of an A100.

    Raises:
        DataError: the runs cannot determine the constants of ``form``.
        ConfigError: an argument is out of range.
    """
    fitted = fit(form, runs, fixed=fixed)
    resampled = resample(fitted, draws=draws, level=level)
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    try:
        found["holdout"] = leave_largest_out(form, runs, share=share, fixed=fixed)
    except DataError as error:
        reasons["holdout"] = str(error)
    try:
        found["profiles"] = isoflop_profiles(runs, level=level)
        found["trends"] = trends(found["profiles"], level=level)
    except DataError as error:
        reasons["isoflop"] = str(error)
    if ask is not None and (ask.flops is not None or ask.loss is not None):
        solver = BudgetSolver(
            fitted.law,
            family or Family.measured(runs, ask.top_k),
            serving or RooflineServing(),
            (float(runs.params_R.min()) / REACH, float(runs.params_R.max()) * REACH),
        )
        _solve(solver, resampled, ask, found, reasons)
    return Study(fitted, resampled, **found, reasons=reasons)


def _solve(
    solver: BudgetSolver, resampled: Resampled, ask: Ask, found: dict[str, Any], reasons: dict[str, str]
) -> None:
    experts: Sequence[int] = ask.experts
    if "E" not in solver.law.form.effects:
        counts = np.unique(resampled.fit.runs.experts_R)
        if len(counts) > 1 or np.isnan(counts).any():
            reasons["budget"] = (
                f"law {solver.law.form.name!r} knows no experts, and the runs do not all have one known number of "
                "them; choose methods that have, or another law"
            )
            return
        experts = (int(counts[0]),)
    if ask.flops is not None:
        try:
            found["best"] = [_best(solver, resampled, ask.flops, count) for count in experts]
            found["frontier"] = solver.frontier(ask.flops, experts)
        except ConfigError as error:
            reasons["frontier"] = str(error)
    if ask.loss is not None:
        try:
            most = ask.max_tokens if ask.max_tokens is not None else REACH * resampled.fit.runs.tokens_R.max()
            found["ways"] = solver.for_loss(ask.loss, ask.demand, experts, float(most))
        except ConfigError as error:
            reasons["ways"] = str(error)


def _best(solver: BudgetSolver, resampled: Resampled, flops: float, experts: int) -> dict[str, Any]:
    best = solver.loss_optimal(flops, experts)
    sizes = np.geomspace(*solver.params_range, 400)
    tokens = flops / (solver.family.flops_per_param * sizes)

    def lowest(law: ScalingLaw) -> tuple[float, float]:
        losses = law.predict(sizes, tokens, experts)
        return float(sizes[np.argmin(losses)]), float(losses.min())

    _, low, high = resampled.interval(lowest)
    return asdict(best) | {"params_interval": [low[0], high[0]], "loss_interval": [low[1], high[1]]}


def _holdout(holdout: Holdout | None) -> dict[str, Any] | None:
    if holdout is None:
        return None
    numbers = {name: getattr(holdout, name) for name in ("reach", "bias", "error", "worst")}
    return numbers | {"configurations": holdout.held.configs, "runs": len(holdout.held)}


def _profile(profile: Profile) -> dict[str, Any]:
    found = asdict(profile.minimum)
    return {"flops": profile.flops, "experts": profile.experts} | {
        k: np.asarray(v).tolist() if k in ("sizes", "losses") else v for k, v in found.items()
    }
