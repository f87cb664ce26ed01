"""What is held equal, and what is solved for it: ``match: total_params + train_flops`` in words and types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from libmoe.core.errors import ConfigError, unknown

Quantity = Literal[
    "active_params", "total_params", "flops", "memory", "train_flops", "tokens", "wall_clock", "none"
]
Knob = Literal["width", "experts", "steps"]
Solve = Literal["auto", "width", "experts", "steps"]
Yardstick = Literal["baseline", "reference"]

DEPENDS: dict[str, tuple[Knob, ...]] = {
    "active_params": ("width", "experts"),
    "total_params": ("width", "experts"),
    "flops": ("width", "experts"),
    "memory": ("width", "experts"),
    "train_flops": ("steps", "width", "experts"),
    "tokens": ("steps",),
    "wall_clock": ("steps",),
}
"""What each quantity can be solved by, the usual first.

Time does depend on the width, but a width that is searched for by timing noise would be another one next time.
"""


@dataclass(frozen=True)
class Goal:
    """One quantity that an entry must meet.

    Attributes:
        quantity: what is counted or measured.
        knob: what is changed until it is met.
        against: the entry that sets the target.
    """

    quantity: Quantity
    knob: Knob
    against: Yardstick = "baseline"


@dataclass(frozen=True)
class Budget:
    """Up to two goals.

    Attributes:
        same_data: a longer run repeats the baseline's training tokens instead of seeing new ones.
    """

    goals: tuple[Goal, ...] = ()
    same_data: bool = False

    @property
    def uses_reference(self) -> bool:
        return any(goal.against == "reference" for goal in self.goals)


NAMED = {
    "parameter_equal": Budget((Goal("total_params", "width"),)),
    "equal_ncd": Budget((Goal("total_params", "width"), Goal("train_flops", "steps")), same_data=True),
}
"""Budgets that papers have given a name.

* ``parameter_equal``: the total parameters of the dense baseline (Csordás et al., arXiv 2310.10837);
* ``equal_ncd``: its total parameters N, its training compute C and its unique data D; the steps that a sparse
  model has left over go over the same tokens again (arXiv 2506.12119, the strict scheme).
"""


def words(text: str) -> str:
    """``active_params`` as people write it."""
    return text.replace("_", " ")


def parse_budget(match: str, solve: Solve = "auto") -> Budget:
    """Read ``match``: a quantity, two of them joined by ``+``, or a named budget.

    Two quantities are solved by two knobs: width and steps where one of them concerns the run, width and number of
    experts (with the number of active experts where that must give) where both concern the model.  ``solve: width``
    then leaves the experts as they are and spreads the mismatch evenly.

    Raises:
        ConfigError: an unknown quantity, more than two, the same twice, or one that does not depend on ``solve``.
    """
    names = [name.strip() for name in match.split("+")]
    valid = [*get_args(Quantity), *NAMED]
    for name in names:
        if name not in valid:
            raise unknown("match", name, valid)
    if match in NAMED:
        if solve != "auto":
            raise ConfigError(f"match: {match!r} decides what is solved; leave out solve: {solve}")
        return NAMED[match]
    if names == ["none"]:
        return Budget()
    if alone := [name for name in names if name == "none" or name in NAMED]:
        raise ConfigError(f"match: {alone[0]!r} stands alone, got {match!r}")
    if len(names) > 2 or len(set(names)) < len(names):
        raise ConfigError(
            f"match: {match!r} must be one quantity or two different ones, such as 'active_params + tokens'"
        )
    return Budget(tuple(_goals(names, solve)))


def _goals(names: list[str], solve: Solve) -> list[Goal]:
    knobs = [_knob(name, solve) for name in names]
    if len(names) == 2 and knobs[0] == knobs[1]:
        of_model = all("width" in DEPENDS[name] for name in names)
        if not of_model or solve == "steps":
            raise ConfigError(
                f"match: {names[0]} and {names[1]} are both met by {knobs[0]}; replace one by a quantity of the model, "
                "such as active_params"
            )
        if solve == "auto":
            knobs[1] = "experts"
    return [
        # What the experts would be worth if all were used is asked of the sparse reference.
        Goal(name, knob, "reference" if name == "total_params" else "baseline")  # type: ignore[arg-type]
        for name, knob in zip(names, knobs, strict=True)
    ]


def _knob(name: str, solve: Solve) -> Knob:
    if solve == "auto":
        return DEPENDS[name][0]
    if solve in DEPENDS[name]:
        return solve
    raise ConfigError(f"match: {name} does not depend on {solve}; solve: {' or '.join(DEPENDS[name])}")
