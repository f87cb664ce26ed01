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
        bound: ``at least`` where the baseline never got so low, ``at most`` where its cheapest run was lower
            already; the factor is that of its nearest run.  ``None`` where it was interpolated.
    """

    loss: float
    compute: float
    factor: float
    low: float
    high: float
    bound: Literal["at least", "at most"] | None


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
    for point, (own, target) in enumerate(zip(log_own, loss_own, strict=True)):
        reached = _reaches(log_base, loss_base, target)
        log_factor, bound = float(np.clip(reached, log_base[0], log_base[-1]) - own), None
        margin = math.nan
        if reached > log_base[-1] or reached < log_base[0]:
            bound = "at least" if reached > log_base[-1] else "at most"
        elif method.seeds > 1:

            def log_speedup(seeds: NDArray[np.int64], point: int = point) -> float:
                x, y = method.mean(seeds)
                return _reaches(*baseline.mean(seeds), y[point]) - x[point]

            margin = (
                spread
                * bootstrap(
                    log_speedup, method.seeds, resamples=resamples, method="percentile", seed=seed
                ).stderr
            )
        low, high = math.exp(log_factor - margin), math.exp(log_factor + margin)
        found.append(Speedup(float(target), math.exp(own), math.exp(log_factor), low, high, bound))  # type: ignore[arg-type]
    return found


def _spread(seeds: int, level: float) -> float:
    """Standard errors to each side."""
    from scipy.stats import t

    return (
        float(t.ppf((1 + level) / 2, seeds - 1)) * math.sqrt(seeds / (seeds - 1)) if seeds > 1 else math.nan
    )


def _reaches(log_compute: Floats, loss: Floats, target: float) -> float:
    """Logarithm of the least compute with ``target``; beyond both ends the outer segment goes on."""
    best = np.minimum.accumulate(loss)
    # The segment that ends where the target is first reached, the last one if it never is.
    last = len(best) - 1
    end = next((i for i in range(1, last) if best[i] <= target), last)
    fall = best[end - 1] - best[end]
    if fall <= 0:
        return math.inf if target < best[end] else float(log_compute[end - 1])
    share = (best[end - 1] - target) / fall
    return float(log_compute[end - 1] + share * (log_compute[end] - log_compute[end - 1]))
