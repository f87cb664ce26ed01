"""What to train: parameters, tokens and experts for a budget, with serving counted in (arXiv 2404.02852, Sec. 5).

The loss-optimal model of a budget is rarely the one to serve.  A smaller model with more experts, trained on more
tokens than its loss alone would ask for, reaches the same loss for the same training FLOPs and costs less per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from libmoe.bench.scaling.forms import Array, ScalingLaw
from libmoe.bench.scaling.serving import Family, FlopServing, Serving
from libmoe.core.errors import ConfigError

EXPERTS = (1, 4, 8, 16, 32)
"""Those of the paper."""
POINTS = 121
"""Sizes that are looked at between the smallest and the largest."""


@dataclass(frozen=True)
class Allocation:
    """One model that could be trained.

    Attributes:
        params: the law's ``N``.
        serve_cost: device-seconds per generated token; infinite when no number of devices holds the model.
        train_cost: device-seconds.
        total_cost: ``train_cost`` and the serving of all tokens asked for; ``None`` where no demand was given.
        efficient: nothing else on the same frontier is as good in both of its quantities and better in one.
    """

    experts: int
    params: float
    tokens: float
    loss: float
    train_flops: float
    active_params: float
    total_params: float
    train_cost: float
    serve_cost: float
    total_cost: float | None = None
    efficient: bool = False


@dataclass(frozen=True)
class BudgetSolver:
    """Allocations under one law, family of models and way of serving.

    Attributes:
        params_range: sizes to look among.  A law is worth little far outside the runs it was fitted to, and with
            ``d`` other than zero its loss need not even fall with size there.
        train_flops_per_second: that one device reaches in training.
    """

    law: ScalingLaw
    family: Family = field(default_factory=Family)
    serving: Serving = field(default_factory=FlopServing)
    params_range: tuple[float, float] = (1e6, 1e12)
    train_flops_per_second: float = 312e12 * 0.4

    def __post_init__(self) -> None:
        low, high = self.params_range
        if not 0 < low < high < math.inf:
            raise ConfigError(f"params_range must be two rising positive numbers, got {low:g} and {high:g}")
        if not self.train_flops_per_second > 0:
            raise ConfigError(f"train_flops_per_second must be positive, got {self.train_flops_per_second:g}")

    def at(self, params: float, tokens: float, experts: int = 1) -> Allocation:
        """What a model of this size and data would be."""
        flops = self.family.flops_per_param * params * tokens
        return Allocation(
            experts=experts,
            params=params,
            tokens=tokens,
            loss=float(self.law.predict(params, tokens, experts)),
            train_flops=flops,
            active_params=self.family.active_params(params, experts),
            total_params=self.family.total_params(params, experts),
            train_cost=flops / self.train_flops_per_second,
            serve_cost=self.serving.cost(self.family, params, experts),
        )

    def spending(self, flops: float, params: float, experts: int = 1) -> Allocation:
        """The model of this size that takes ``flops`` to train."""
        return self.at(params, self._tokens(flops, params), experts)

    def loss_optimal(self, flops: float, experts: int = 1) -> Allocation:
        """The size with the lowest loss for ``flops`` of training.

        Raises:
            ConfigError: the best size lies outside ``params_range``.
        """
        from scipy.optimize import minimize_scalar

        _positive("flops", flops)
        sizes = self._sizes()
        losses = self._losses(flops, np.exp(sizes), experts)
        best = int(np.argmin(losses))
        if best in (0, len(sizes) - 1):
            where = "smallest" if best == 0 else "largest"
            raise ConfigError(
                f"with {experts} experts and {flops:.3g} FLOPs the loss is lowest at the {where} size allowed, "
                f"{math.exp(sizes[best]):.3g} parameters; widen params_range if the law is to be trusted there"
            )
        found = minimize_scalar(
            lambda size: float(self._losses(flops, np.exp(size), experts)),
            bounds=(sizes[best - 1], sizes[best + 1]),
            method="bounded",
            options={"xatol": 1e-9},
        )
        return self.spending(flops, math.exp(found.x), experts)

    def with_loss(self, flops: float, experts: int, loss: float) -> Allocation:
        """The smallest model that reaches ``loss`` with ``flops`` (Algorithm 1): overtrained, cheap to serve.

        Raises:
            ConfigError: not even the loss-optimal size reaches it, or the smallest size allowed is better.
        """
        best = self.loss_optimal(flops, experts)
        if best.loss > loss:
            raise ConfigError(
                f"{experts} experts reach {best.loss:.4f} at best with {flops:.3g} FLOPs, not {loss:.4f}"
            )
        return self._left_of(
            best,
            flops,
            lambda size: float(self._losses(flops, np.exp(size), experts)) - loss,
            f"loss {loss:.4f}",
        )

    def with_cost(self, flops: float, experts: int, serve_cost: float) -> Allocation:
        """The best model that costs at most ``serve_cost`` per token to serve (Algorithm 2).

        Raises:
            ConfigError: even the smallest size allowed costs more.
        """
        best = self.loss_optimal(flops, experts)
        if best.serve_cost <= serve_cost:
            return best
        return self._left_of(
            best,
            flops,
            lambda size: serve_cost - self.serving.cost(self.family, math.exp(size), experts),
            f"cost {serve_cost:.3g}",
        )

    def frontier(self, flops: float, experts: Sequence[int] = EXPERTS) -> list[Allocation]:
        """Loss against serving cost for all sizes and numbers of experts that take ``flops`` to train.

        Only sizes up to the loss-optimal one are listed: larger ones are worse in loss and in cost.
        """
        listed: list[Allocation] = []
        for count in _counts(experts):
            best = self.loss_optimal(flops, count)
            sizes = np.exp(self._sizes())
            listed += [self.spending(flops, float(n), count) for n in sizes[sizes < best.params]]
            listed.append(best)
        return _marked(listed, lambda a: (a.loss, a.serve_cost))

    def for_loss(
        self, loss: float, demand: float, experts: Sequence[int] = EXPERTS, max_tokens: float = math.inf
    ) -> list[Allocation]:
        """All models that reach ``loss``, cheapest first by training and serving ``demand`` tokens together.

        The first is the one to train; the ones marked efficient are best for some other demand, from none (the
        least training) to endless (the cheapest to serve).

        Args:
            demand: tokens to generate over the model's life.
            max_tokens: of training data.

        Raises:
            ConfigError: no size allowed reaches ``loss``, or none that does can be served.
        """
        if not demand >= 0:
            raise ConfigError(f"demand must not be negative, got {demand:g}")
        _positive("max_tokens", max_tokens)
        listed: list[Allocation] = []
        for count in _counts(experts):
            sizes = np.exp(self._sizes())
            tokens = self._tokens_for(loss, sizes, count, max_tokens)
            listed += [self.at(float(n), float(d), count) for n, d in zip(sizes, tokens) if math.isfinite(d)]
        listed = [a for a in listed if math.isfinite(a.serve_cost)]
        if not listed:
            raise ConfigError(
                f"loss {loss:.4f} is out of reach of {self.params_range[0]:.3g} to {self.params_range[1]:.3g} "
                f"parameters that can be served, with up to {max_tokens:.3g} tokens"
            )
        priced = [replace(a, total_cost=a.train_cost + demand * a.serve_cost) for a in listed]
        return sorted(
            _marked(priced, lambda a: (a.train_cost, a.serve_cost)), key=lambda a: a.total_cost or 0.0
        )

    def _sizes(self) -> Array:
        low, high = self.params_range
        return np.linspace(math.log(low), math.log(high), POINTS)

    def _tokens(self, flops: float, params: float) -> float:
        return flops / (self.family.flops_per_param * params)

    def _losses(self, flops: float, params: Array, experts: int) -> Array:
        return self.law.predict(params, flops / (self.family.flops_per_param * params), experts)

    def _left_of(
        self, best: Allocation, flops: float, gap: Callable[[float], float], goal: str
    ) -> Allocation:
        """The size below the loss-optimal one where ``gap``, positive on its left, is zero."""
        from scipy.optimize import brentq

        low, high = math.log(self.params_range[0]), math.log(best.params)
        if gap(high) == 0:
            return best
        if gap(low) * gap(high) > 0:
            raise ConfigError(
                f"no size from {self.params_range[0]:.3g} parameters up with {best.experts} experts has {goal}; "
                "widen params_range"
            )
        return self.spending(flops, math.exp(brentq(gap, low, high, xtol=1e-12)), best.experts)

    def _tokens_for(self, loss: float, params: Array, experts: int, most: float) -> Array:
        """Tokens with which each size reaches ``loss``; infinite where even ``most`` do not (bisection)."""
        low, high = np.full_like(params, 0.0), np.full_like(params, math.log(min(most, 1e30)))
        reached = self.law.predict(params, np.exp(high), experts) <= loss
        for _ in range(60):
            middle = (low + high) / 2
            enough = self.law.predict(params, np.exp(middle), experts) <= loss
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.where(reached, np.exp(high), math.inf)


def _marked(
    listed: Sequence[Allocation], quantities: Callable[[Allocation], tuple[float, float]]
) -> list[Allocation]:
    """The same allocations, with those efficient that no other equals or beats in both quantities."""
    marked = list(listed)
    least = math.inf
    for place in sorted(range(len(listed)), key=lambda i: quantities(listed[i])):
        cost = quantities(listed[place])[1]
        if cost < least:
            marked[place] = replace(listed[place], efficient=True)
            least = cost
    return marked


def _counts(experts: Sequence[int]) -> Sequence[int]:
    if not experts or any(count < 1 for count in experts):
        raise ConfigError(f"experts must be numbers from 1 up, got {list(experts)}")
    return experts


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} must be positive, got {value:g}")
