"""An entry of a grid: a method with its options, and what it changes of the grid's recipe and budget."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from libmoe.bench.budgets.quantities import DEPENDS, Budget, Solve
from libmoe.core.errors import ConfigError
from libmoe.methods import create


@dataclass
class Entry:
    """One line of the comparison.

    Attributes:
        method: registered name; ``options`` are the method's own.
        key: name in tables and folders; the method's name when empty.
        label: words for people; the key when empty.
        match, solve, tolerance: its own budget; ``None`` takes the grid's.
        tokens_per_param: training tokens for each total parameter; decides the steps of this entry.
        recipe: changes to the grid's recipe for this entry alone (for example its own learning rate).
    """

    method: str
    key: str = ""
    label: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    match: str | None = None
    solve: Solve | None = None
    tolerance: float | None = None
    tokens_per_param: float | None = None
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key = self.key or self.method
        self.label = self.label or self.key
        if not re.fullmatch(r"\w[\w.+-]*", self.key):
            raise ConfigError(
                f"entry {self.key!r}: a key names a folder; use letters, digits and . _ + - only"
            )
        decided_elsewhere = {"seed": "seeds", "name": "key"}
        for key in self.recipe:
            if key in decided_elsewhere:
                raise ConfigError(
                    f"entry {self.key!r}: recipe.{key} is decided by {decided_elsewhere[key]!r}"
                )
        for name, value in (("tolerance", self.tolerance), ("tokens_per_param", self.tokens_per_param)):
            if value is not None and (value < 0 or (name == "tokens_per_param" and not value)):
                raise ConfigError(f"entry {self.key!r}: {name} must be positive, got {value}")
        refuse_method(self.recipe, f"entry {self.key!r}: recipe", "put it beside the entry's 'method'")

    def check(self) -> None:
        """Raises ConfigError for an unknown method or a wrong option."""
        try:
            create(self.method, self.options)
        except ConfigError as error:
            raise ConfigError(f"entry {self.key!r}: {error}") from None

    def refuse_budget(self) -> None:
        """Raises ConfigError when the entry, the baseline, asks for a budget of its own."""
        for name in ("match", "solve", "tolerance"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"{name} has no effect on the baseline, which sets the budget; leave it out"
                )

    def refuse_other_steps(self, budget: Budget) -> None:
        """Raises ConfigError when something besides ``tokens_per_param`` decides the steps."""
        if any("steps" in DEPENDS[goal.quantity] for goal in budget.goals):
            raise ConfigError("both match and tokens_per_param decide the steps; leave one of them out")
        if "steps" in self.recipe.get("train", {}):
            raise ConfigError(
                "both recipe.train.steps and tokens_per_param decide the steps; leave one of them out"
            )


def refuse_method(recipe: Any, where: str, fix: str) -> None:
    """Raises ConfigError when a recipe names a method or its options, which the entries decide: it would be ignored."""
    method = recipe.get("method") if isinstance(recipe, dict) else None
    for key in ("name", "options"):
        if isinstance(method, dict) and key in method:
            raise ConfigError(f"{where}.method.{key} has no effect in a grid; {fix}")
