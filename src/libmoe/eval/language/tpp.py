"""Tokens per parameter, and the number of them at which a loss is lowest (arXiv 2508.18672)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from libmoe.core.errors import DataError
from libmoe.models import account


class TokensPerParameter(NamedTuple):
    """Training tokens over parameters; ``body`` leaves out embeddings, which outweigh the rest of small models."""

    total: float
    active: float
    total_body: float
    active_body: float


def tokens_per_parameter(model: nn.Module, tokens: float) -> TokensPerParameter:
    """Tokens per parameter of a model trained on ``tokens`` tokens; in the paper TPP is the one over all experts.

    Raises:
        ConfigError: the model cannot be accounted for.
    """
    cost = account(model)
    tables = [
        table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None
    ]
    embedding = sum({id(p): p.numel() for table in tables for p in table.parameters()}.values())
    return TokensPerParameter(
        tokens / cost.total_params,
        tokens / cost.active_params,
        tokens / (cost.total_params - embedding),
        tokens / (cost.active_params - embedding),
    )


@dataclass(frozen=True)
class Optimum:
    """Where a loss is lowest along tokens per parameter.

    Attributes:
        tpp, low, high: the minimum of the fitted curve and its interval, within the range of the data.
        verdict: ``optimum``: the loss rises on both sides.  ``boundary``: it falls up to an end of the range, beyond
            which nothing was measured.  ``uncertain``: the minimum lies inside, but its interval reaches an end, or a
            curve that only rises or only falls fits as well.
        coefficients: of ``c0 + c1 x + c2 x^2`` with ``x = ln tpp``.
    """

    tpp: float
    low: float
    high: float
    verdict: Literal["optimum", "boundary", "uncertain"]
    coefficients: tuple[float, float, float]


def fit_optimum(
    tpp: Sequence[float], loss: Sequence[float], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Optimum:
    """Fit a quadratic in ln tpp to a loss and find its minimum, with an interval by bootstrapping residuals.

    A quadratic turns somewhere even if the data do not, so the verdict ``optimum`` asks the data too: the lowest
    measured loss (a mean where one tpp was measured several times) must not lie at an end of the range, and the best
    monotone curve must fit worse than the quadratic.

    Args:
        tpp: tokens per parameter of each model.
        loss: anything that is better when lower; of an accuracy take ``1 - accuracy``.

    Raises:
        DataError: fewer than four different values of tpp, or one that is not positive.
    """
    given, y = np.asarray(tpp, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if len(given) != len(y) or not (given > 0).all() or not np.isfinite([given, y]).all():
        raise DataError("tpp and loss must be as many positive and finite numbers")
    x = np.log(given)
    values = np.unique(x)
    if len(values) < 4:
        raise DataError(f"a curve needs four different values of tpp; there are {len(values)}")
    centre = x.mean()
    powers = np.stack([np.ones_like(x), x - centre, (x - centre) ** 2], axis=1)
    solve = np.linalg.pinv(powers)
    fitted = solve @ y
    free = len(x) - 3
    residuals = (y - powers @ fitted) * np.sqrt(len(x) / free)
    rng = np.random.default_rng(seed)
    # A sweep has few models: without the uncertainty of their spread intervals would be far too narrow.
    spread = np.sqrt(free / rng.chisquare(free, size=(resamples, 1)))
    draws = spread * rng.choice(residuals, size=(resamples, len(x)))
    minima = _lowest(solve @ (powers @ fitted + draws).T, values[0] - centre, values[-1] - centre)
    low, high = np.quantile(minima, [(1 - level) / 2, (1 + level) / 2]) + centre
    best = float(_lowest(fitted[:, None], values[0] - centre, values[-1] - centre)[0] + centre)
    counts = np.array([np.sum(x == value) for value in values])
    means = np.array([y[x == value].mean() for value in values])
    at = np.array([(powers @ fitted)[x == value][0] for value in values])
    bent = float(counts @ (means - at) ** 2)
    straight = min(_monotone_misfit(means, counts), _monotone_misfit(-means, counts))
    if not 0 < int(np.argmin(means)) < len(values) - 1 or not _inside(best, best, values):
        verdict: Literal["optimum", "boundary", "uncertain"] = "boundary"
    else:
        verdict = "optimum" if _inside(low, high, values) and bent < straight else "uncertain"
    c0, c1, c2 = fitted
    plain = (float(c0 - c1 * centre + c2 * centre**2), float(c1 - 2 * c2 * centre), float(c2))
    return Optimum(float(np.exp(best)), float(np.exp(low)), float(np.exp(high)), verdict, plain)


def _lowest(coefficients: NDArray[np.float64], left: float, right: float) -> NDArray[np.float64]:
    """Where parabolas ``[3, n]`` are lowest between ``left`` and ``right``."""
    _, c1, c2 = coefficients
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = np.clip(-c1 / (2 * c2), left, right)
    ends = np.where(c1 * left + c2 * left**2 <= c1 * right + c2 * right**2, left, right)
    return np.where(c2 > 0, turn, ends)


def _monotone_misfit(means: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Weighted squared error of the best curve that never falls (pool adjacent violators)."""
    pools: list[tuple[float, float]] = []  # weight and mean
    for weight, mean in zip(counts.tolist(), means.tolist(), strict=True):
        pools.append((weight, mean))
        while len(pools) > 1 and pools[-2][1] > pools[-1][1]:
            (w, m), (v, n) = pools.pop(), pools.pop()
            pools.append((w + v, (w * m + v * n) / (w + v)))
    # The pools' means leave the spread within pools: total less between.
    return float(counts @ means**2) - sum(weight * mean**2 for weight, mean in pools)


def _inside(low: float, high: float, values: NDArray[np.float64]) -> bool:
    room = 1e-9 * (values[-1] - values[0])
    return bool(values[0] + room < low and high < values[-1] - room)
