"""Does a law tell the future?  Fit it to the smaller runs and predict the largest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from libmoe.bench.scaling.fit import DELTA, Fit, fit
from libmoe.bench.scaling.forms import Array, Form
from libmoe.bench.scaling.runs import Runs
from libmoe.core.errors import ConfigError, DataError


@dataclass(frozen=True)
class Holdout:
    """A fit that never saw the largest runs, and how it predicts them.

    Attributes:
        fit: to the runs that were kept.
        held: the runs that were left out.
        predicted_R: their losses by the law.
        reach: training FLOPs of the largest held-out run over those of the largest that was fitted.
        bias: mean relative error; positive where the law expects a higher loss than was seen.
        error: mean absolute relative error.
        worst: largest absolute relative error.
    """

    fit: Fit
    held: Runs
    predicted_R: Array
    reach: float
    bias: float
    error: float
    worst: float


def leave_largest_out(
    form: Form,
    runs: Runs,
    *,
    share: float = 0.2,
    fixed: Mapping[str, float] | None = None,
    delta: float = DELTA,
) -> Holdout:
    """Hold out the configurations that took most training FLOPs, with all their seeds, and predict them.

    Args:
        share: of the configurations, rounded up; those that took as much as the smallest of them go out too.

    Raises:
        DataError: what is left cannot determine the constants.
        ConfigError: ``share`` is out of range.
    """
    if not 0 < share < 1:
        raise ConfigError(f"the share to hold out must be between 0 and 1, got {share:g}")
    held = _largest(runs, share)
    if held.all():
        raise DataError("all configurations took the same training FLOPs, so none is larger than the others")
    try:
        fitted = fit(form, runs.take(~held), fixed=fixed, delta=delta)
    except DataError as error:
        raise DataError(
            f"without the {len(np.unique(runs.config_R[held]))} largest configurations: {error}"
        ) from None
    out = runs.take(held)
    predicted_R = fitted.predict(out.params_R, out.tokens_R, np.nan_to_num(out.experts_R, nan=1.0))
    relative_R = predicted_R / out.loss_R - 1
    return Holdout(
        fit=fitted,
        held=out,
        predicted_R=predicted_R,
        reach=float(out.flops_R.max() / fitted.runs.flops_R.max()),
        bias=float(relative_R.mean()),
        error=float(np.abs(relative_R).mean()),
        worst=float(np.abs(relative_R).max()),
    )


def _largest(runs: Runs, share: float) -> NDArray[np.bool_]:
    """Which runs are held out; budgets that differ by less than a percent are one."""
    flops = np.array([runs.flops_R[runs.config_R == c].max() for c in np.unique(runs.config_R)])
    count = int(np.ceil(share * len(flops)))
    return runs.flops_R >= 0.99 * np.sort(flops)[-count]
