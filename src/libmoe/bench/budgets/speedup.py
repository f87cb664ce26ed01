"""How much less compute a method needs for the same loss (Artetxe et al., arXiv 2112.10684 section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from libmoe.core.errors import DataError
from libmoe.stats import bootstrap

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Final losses of one family of runs that differ in compute: in size, in length or in both.

    Points of one run on its way are no such curve unless its learning rate had decayed at each of them.

    Attributes:
        compute: training FLOPs of each point, all different.
        loss: ``[points][seeds]``; bits per byte, nats, or any score of which less is better.

    Raises:
        DataError: no two numbers belong together, or one is not finite.
    """

    compute: Sequence[float]
    loss: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        seeds = {len(row) for row in self.loss}
        if len(self.compute) != len(self.loss) or len(seeds) != 1 or 0 in seeds:
            raise DataError(
                f"a curve needs a loss for each of its {len(self.compute)} points and for each seed, got rows of "
                f"{[len(row) for row in self.loss]}"
            )
        if len(set(self.compute)) < len(self.compute) or min(self.compute) <= 0:
            raise DataError(
                f"compute of a curve must be different positive numbers, got {list(self.compute)}"
            )
        if not np.isfinite(self.loss).all():
            raise DataError("a loss of the curve is not finite; leave the point out and say so")

    @property
    def seeds(self) -> int:
        return len(self.loss[0])

    def mean(self, seeds: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Logarithm of compute, rising, and mean loss over ``seeds`` (which may repeat)."""
        order = np.argsort(self.compute)
        loss_PS = np.asarray(self.loss, dtype=np.float64)[order]
        return np.log(np.asarray(self.compute, dtype=np.float64)[order]), loss_PS[:, seeds].mean(axis=1)


@dataclass(frozen=True)
class Speedup:
    """Compute of the baseline over compute of the method, where both have the same loss.

    Attributes:
        loss: at which they are compared.
        compute: training FLOPs the method needs for it.
        factor: 2 means the baseline needs twice as much.
        low, high: interval for the factor; NaN with one seed or where only a bound is known.
        bound: ``more than`` where the baseline never got so low, ``less than`` where its cheapest run was lower
            already: then nothing was measured but that, and the factor is that of its nearest run.  ``None`` where
            it was interpolated.
    """

    loss: float
    compute: float
    factor: float
    low: float
    high: float
    bound: Literal["more than", "less than"] | None

    def __str__(self) -> str:
        """``2.15x (1.8x to 2.41x)``, ``more than 2.15x``."""
        if self.bound is not None:
            return f"{self.bound} {self.factor:.3g}x"
        return f"{self.factor:.3g}x" + (
            "" if math.isnan(self.low) else f" ({self.low:.3g}x to {self.high:.3g}x)"
        )


def compute_speedup(
    baseline: Curve, method: Curve, *, level: float = 0.95, resamples: int = 1999, seed: int = 0
) -> list[Speedup]:
    """The speed-up at the loss of each point of ``method``, in the order of its compute.

    Between two points of the baseline the loss is linear in the logarithm of compute; a curve that rises in between
    counts as flat.  The interval is ``log factor +- t`` standard errors, from resampling seeds: the same seeds for
    both curves, because runs of one seed share data order and initial weights.  The standard error is widened by
    ``sqrt(n / (n - 1))``, which resampling n seeds falls short of.

    Raises:
        DataError: the curves have different numbers of seeds, or the baseline has fewer than two points.
    """
    if baseline.seeds != method.seeds:
        raise DataError(
            f"the curves have {baseline.seeds} and {method.seeds} seeds; keep those that both have, in the same order"
        )
    if len(baseline.compute) < 2:
        raise DataError(
            "a speed-up needs a baseline at two amounts of compute at least; train it longer or larger too"
        )
    everyone = np.arange(method.seeds)
    spread = _spread(method.seeds, level)
    found = []
    log_base, loss_base = baseline.mean(everyone)
    log_own, loss_own = method.mean(everyone)
    best = np.minimum.accumulate(loss_base)
    for point, (own, target) in enumerate(zip(log_own, loss_own, strict=True)):
        log_factor, bound = _reaches(log_base, best, target) - own, None
        margin = math.nan
        if target < best[-1]:
            log_factor, bound = log_base[-1] - own, "more than"
        elif target > best[0]:
            log_factor, bound = log_base[0] - own, "less than"
        elif method.seeds > 1:

            def log_speedup(seeds: NDArray[np.int64], point: int = point) -> float:
                x, y = method.mean(seeds)
                log_compute, loss = baseline.mean(seeds)
                return _reaches(log_compute, np.minimum.accumulate(loss), y[point]) - x[point]

            with np.errstate(invalid="ignore"):  # some resampled baselines never get there
                drawn = bootstrap(
                    log_speedup, method.seeds, resamples=resamples, method="percentile", seed=seed
                )
            margin = spread * drawn.stderr if math.isfinite(drawn.stderr) else math.inf
        with np.errstate(over="ignore"):
            low, high = (float(np.exp(log_factor + side)) for side in (-margin, margin))
        found.append(Speedup(float(target), math.exp(own), math.exp(log_factor), low, high, bound))  # type: ignore[arg-type]
    return found


def _spread(seeds: int, level: float) -> float:
    """Standard errors to each side."""
    from scipy.stats import t

    return (
        float(t.ppf((1 + level) / 2, seeds - 1)) * math.sqrt(seeds / (seeds - 1)) if seeds > 1 else math.nan
    )


def _reaches(log_compute: Floats, best: Floats, target: float) -> float:
    """Logarithm of the least compute with ``target``; beyond either end the nearest segment that falls goes on.

    Args:
        best: lowest loss up to each amount of compute.
    """
    falling = np.flatnonzero(best[1:] < best[:-1]) + 1  # the right end of each segment
    if target > best[0]:
        anchor, ends = 0, falling[:1]
    elif target < best[-1]:
        anchor, ends = len(best) - 1, falling[-1:]
    else:
        anchor = int(np.flatnonzero(best <= target)[0])
        ends = falling[falling == anchor]
    if not len(ends):  # reached at once, or by no compute at all
        return (
            float(log_compute[anchor])
            if target == best[anchor]
            else math.copysign(math.inf, best[anchor] - target)
        )
    end = ends[0]
    slope = (log_compute[end] - log_compute[end - 1]) / (best[end - 1] - best[end])
    return float(log_compute[anchor] + (best[anchor] - target) * slope)
