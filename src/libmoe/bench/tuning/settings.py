"""What a grid file says about tuning, and how much training that is."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from libmoe.core.errors import ConfigError, unknown

TRAIN_KNOBS = (
    "train.lr", "train.min_lr_ratio", "train.schedule", "train.warmup_steps", "train.decay_fraction",
    "train.weight_decay", "train.betas", "train.eps", "train.clip", "train.router_lr_scale", "train.expert_lr_scale",
)  # fmt: skip
"""Keys of a recipe that may be tuned: how a model is optimised.  All others decide its size, its data or its budget."""
OPTION = "method.options."
"""How the key of an option of the method begins."""


@dataclass(frozen=True)
class Rung:
    """One round of trials: ``count`` at most for each entry, of ``share`` of the entry's own steps."""

    share: float
    count: int

    def steps(self, whole: int) -> int:
        """Steps of a trial of an entry that trains ``whole`` steps; 0 where not even one is left."""
        return math.floor(self.share * whole + 0.5) if self.share * whole >= 1 else 0


@dataclass
class Tuning:
    """How the settings of each entry are chosen before the comparison begins.

    Attributes:
        knobs: values to try, by dotted key of the recipe (:data:`TRAIN_KNOBS`), or ``method.options.NAME``, which is
            left out for methods without such an option.  Numbers are kept in ascending order.
        strategy: ``sweep`` runs every trial for the whole share; ``successive_halving`` (Jamieson and Talwalkar,
            arXiv 1502.07943) begins with shorter ones and goes on with the best ``1 / eta`` of them.
        share: steps of a trial as a part of the entry's own steps; a trial is a whole run, warm-up and decay
            included.
        eta: of successive halving: how many times longer, and fewer, the trials of the next round are.
        trials: random draws from all combinations, the same for all entries; ``None`` tries every combination.
        seed: of all trials: data order, initial weights and draws.  It must be none of the comparison's.
    """

    knobs: dict[str, list[Any]]
    strategy: Literal["sweep", "successive_halving"] = "sweep"
    share: float = 0.25
    eta: int = 3
    trials: int | None = None
    seed: int = 1000

    def __post_init__(self) -> None:
        if not self.knobs:
            raise ConfigError(
                "tuning.knobs: at least one key is needed, for example {train.lr: [1e-3, 2e-3, 4e-3]}"
            )
        for key, values in self.knobs.items():
            if key not in TRAIN_KNOBS and not (key.startswith(OPTION) and key.count(".") == 2):
                raise unknown("key of tuning.knobs", key, [*TRAIN_KNOBS, f"{OPTION}NAME"])
            self.knobs[key] = _ordered([_number(value) for value in values])
            if not values or _repeated(self.knobs[key]):
                raise ConfigError(f"tuning.knobs.{key}: different values are needed, got {values}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"tuning.share must be greater than 0 and at most 1, got {self.share}")
        if self.eta < 2:
            raise ConfigError(f"tuning.eta must be at least 2, got {self.eta}")
        if self.trials is not None and not 1 <= self.trials <= self.combinations:
            raise ConfigError(
                f"tuning.trials must be between 1 and the {self.combinations} combinations of knobs, got {self.trials}"
            )

    @property
    def combinations(self) -> int:
        return math.prod(len(values) for values in self.knobs.values())

    @property
    def draws(self) -> int:
        """Different settings that an entry with every knob begins with."""
        return self.trials or self.combinations

    @property
    def rungs(self) -> list[Rung]:
        """Rounds of trials, the shortest first; the last one has the whole share and compares two trials or more."""
        counts = [self.draws]
        while self.strategy == "successive_halving" and counts[-1] // self.eta >= 2:
            counts.append(counts[-1] // self.eta)
        return [Rung(self.share / self.eta ** (len(counts) - 1 - i), n) for i, n in enumerate(counts)]

    @property
    def effort(self) -> float:
        """Training steps of one entry's trials as a part of one of its runs."""
        return sum(rung.count * rung.share for rung in self.rungs)

    def refuse_seeds(self, seeds: Collection[int]) -> None:
        """Settings that were chosen on a seed of the comparison would be flattered by it.

        Raises:
            ConfigError: the tuning's seed is one of ``seeds``.
        """
        if self.seed in seeds:
            raise ConfigError(
                f"tuning.seed={self.seed} is one of the comparison's seeds; choose another, for example "
                f"{max(seeds) + 1000}"
            )

    def describe(self, entries: int, seeds: int) -> str:
        """The effort in one line, for people: ``tuning: 9 entries x 3 trials x 25 % of the steps = ...``."""
        rounds = [
            f"{_count(rung.count, 'trial')} x {_percent(rung.share)} of the steps" for rung in self.rungs
        ]
        trials = rounds[0] if len(rounds) == 1 else f"({' + '.join(rounds)})"
        return (
            f"tuning: {entries} entries x {trials} = {_percent(self.effort)} of a run each, "
            f"{_percent(self.effort / seeds)} more training than {_count(seeds, 'seed')} alone"
        )

    def protocol(self) -> dict[str, Any]:
        """What the report says of it; ``trials`` and ``steps`` are those of one entry and of one trial."""
        halving = {"eta": self.eta} if self.strategy == "successive_halving" else {}
        return {
            "strategy": self.strategy,
            "knobs": self.knobs,
            "trials": sum(rung.count for rung in self.rungs),
            "steps": f"{_percent(self.share)} of the entry's own",
            "seed": self.seed,
            "judged_on": "bits per byte of the validation split, after the last step",
            **halving,
        }


def _number(value: Any) -> Any:
    """YAML reads 1e-3, which has no dot, as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _ordered(values: list[Any]) -> list[Any]:
    return sorted(values) if are_numbers(values) else values


def _repeated(values: list[Any]) -> bool:
    return any(value in values[:i] for i, value in enumerate(values))


def are_numbers(values: list[Any]) -> bool:
    """Only numbers have an order, and a list of them ends that could be widened."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %" if part < 10 else f"{100 * part:,.0f} %"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
