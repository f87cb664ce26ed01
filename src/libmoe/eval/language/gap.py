"""From training loss to accuracy in two steps, over models that differ in sparsity (arXiv 2508.18672).

Sparser models have a lower training loss, but not always a lower task loss (they generalise worse) nor a higher
accuracy at equal task loss.  Each step is a straight line over models, and what a model misses on it is its gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from libmoe.core.errors import DataError, unknown


@dataclass(frozen=True)
class Measured:
    """One model: its loss on training data, the loss of right answers of a task, and its accuracy there."""

    name: str
    training_loss: float
    task_loss: float
    accuracy: float


class Line(NamedTuple):
    """A least-squares line, with the rank correlation of what it was fitted to (NaN where one side is constant)."""

    slope: float
    intercept: float
    rank_correlation: float

    def __call__(self, x: float) -> float:
        return self.intercept + self.slope * x


class Difference(NamedTuple):
    """How much more error one model makes than another, in parts that add up to ``error``.

    Attributes:
        training_loss: what the difference in training loss predicts.
        generalisation: a task loss that is higher than the training loss predicts.
        accuracy: an error that is higher than the task loss predicts.
    """

    error: float
    training_loss: float
    generalisation: float
    accuracy: float


@dataclass(frozen=True)
class Gaps:
    """Both steps and each model's gap in them; positive is worse.

    Attributes:
        to_task_loss, to_error: task loss as a function of training loss, error (1 - accuracy) as one of task loss.
        generalisation: task loss beyond what the training loss predicts, by model.
        accuracy: error beyond what the task loss predicts, by model.
    """

    models: dict[str, Measured]
    to_task_loss: Line
    to_error: Line
    generalisation: dict[str, float]
    accuracy: dict[str, float]

    def difference(self, model: str, other: str) -> Difference:
        """Why ``model`` makes more errors than ``other``: ``e = b (a dL + g) + h`` with both slopes a and b.

        Raises:
            ConfigError: an unknown model.
        """
        for name in (model, other):
            if name not in self.models:
                raise unknown("model", name, self.models)
        one, two = self.models[model], self.models[other]
        return Difference(
            error=two.accuracy - one.accuracy,
            training_loss=self.to_error.slope
            * self.to_task_loss.slope
            * (one.training_loss - two.training_loss),
            generalisation=self.to_error.slope * (self.generalisation[model] - self.generalisation[other]),
            accuracy=self.accuracy[model] - self.accuracy[other],
        )


def decompose(models: Sequence[Measured], reference: Sequence[str] | None = None) -> Gaps:
    """Fit both steps and measure each model against them.

    Args:
        models: trained on the same data.
        reference: the models that the lines are fitted to (dense ones, say); ``None`` for all.

    Raises:
        ConfigError: an unknown reference.
        DataError: the lines are not determined.
    """
    by_name: Mapping[str, Measured] = {model.name: model for model in models}
    for name in reference or ():
        if name not in by_name:
            raise unknown("model", name, by_name)
    fitted = [by_name[name] for name in (reference if reference is not None else by_name)]
    first = _line("training_loss", [m.training_loss for m in fitted], [m.task_loss for m in fitted])
    second = _line("task_loss", [m.task_loss for m in fitted], [1 - m.accuracy for m in fitted])
    return Gaps(
        dict(by_name),
        first,
        second,
        {name: m.task_loss - first(m.training_loss) for name, m in by_name.items()},
        {name: 1 - m.accuracy - second(m.task_loss) for name, m in by_name.items()},
    )


def _line(name: str, x: Sequence[float], y: Sequence[float]) -> Line:
    from scipy.stats import rankdata

    if len(set(x)) < 2:
        raise DataError(f"a line needs two models that differ in {name}; there are {len(set(x))}")
    slope, intercept = np.polyfit(x, y, 1)
    with np.errstate(invalid="ignore"):
        ranks = np.corrcoef(rankdata(x), rankdata(y))[0, 1] if len(set(y)) > 1 else np.nan
    return Line(float(slope), float(intercept), float(ranks))
