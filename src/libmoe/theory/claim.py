"""What a theory says of an experiment, and what the experiment says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from libmoe.stats import Mean, clustered_mean

Verdict = Literal["holds", "open", "fails"]


@dataclass(frozen=True)
class Claim:
    """One measured claim.

    Attributes:
        says: the claim, in words.
        direction: ``above`` or ``below`` the bound, as the paper has it.
        bound: the number that tells.
        measured: mean over seeds with its 95 % interval; without an interval for one seed.
        source: where the paper has it, or whose number the bound is.
    """

    says: str
    direction: Literal["above", "below"]
    bound: float
    measured: Mean
    source: str

    @property
    def verdict(self) -> Verdict:
        """``holds`` or ``fails`` where the whole interval lies on one side; with one seed, where the value does."""
        low, high = self.measured.low, self.measured.high
        if math.isnan(low):
            low = high = self.measured.value
        if self.direction == "below":
            low, high, bound = -high, -low, -self.bound
        else:
            bound = self.bound
        return "holds" if low > bound else "fails" if high < bound else "open"


def claim(
    says: str, direction: Literal["above", "below"], bound: float, values: Sequence[float], source: str
) -> Claim:
    """A claim from one value for each seed."""
    return Claim(says, direction, bound, clustered_mean(values), source)


@dataclass(frozen=True)
class Theory:
    """A paper's theory as an experiment.

    Attributes:
        paper: number in the catalogue.
        title: what it is about.
        run: from seeds, and whether the size is that of a quick look, to claims.
        seconds: that a seed takes on two cores, and quickly, about.
        extensions: by name, further experiments on the same data.
    """

    paper: int
    title: str
    run: Callable[[Sequence[int], bool], list[Claim]]
    seconds: tuple[float, float]
    extensions: Mapping[str, Theory] = field(default_factory=dict)
