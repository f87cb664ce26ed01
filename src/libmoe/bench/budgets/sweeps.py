"""Families of entries that share a budget and differ in one number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from libmoe.core.errors import ConfigError
from libmoe.methods import create

Kind = Literal["isoflop", "granularity", "tokens_per_param"]


@dataclass
class Sweep:
    """Plain data that stands for entries of a grid, one for each value.

    Attributes:
        kind: what is varied, and what stays equal:

            * ``isoflop``: the number of experts, at equal forward FLOPs per token; total parameters grow
              (arXiv 2508.18672 varies E at fixed active parameters);
            * ``granularity``: each expert is split into so many thinner ones and as many times more are active, at
              equal active *and* total parameters (arXiv 2401.06066 section 3.1).  Gates grow with the experts, so
              both are off by about the same little; the finest split decides how much;
            * ``tokens_per_param``: the training tokens for each *total* parameter, at one size (the ratio of
              arXiv 2508.18672).
        values: numbers of experts; splits, 1 for none; or ratios.
        method, options: what is varied.
        key: the entries are called ``key-value``; the method's name when empty.
        tolerance: for these entries; ``None`` takes the grid's.
    """

    kind: Kind
    values: list[int | float]
    method: str = "smoe"
    options: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    tolerance: float | None = None

    def __post_init__(self) -> None:
        self.key = self.key or self.method
        if not self.values or len(set(self.values)) < len(self.values):
            raise ConfigError(f"sweep {self.key!r}: values must be different numbers, got {self.values}")
        for value in self.values:
            whole = self.kind == "tokens_per_param" or isinstance(value, int)
            if not whole or value <= 0:
                need = (
                    "positive numbers" if self.kind == "tokens_per_param" else "whole numbers of at least 1"
                )
                raise ConfigError(f"sweep {self.key!r}: {self.kind} takes {need}, got {value}")

    def entries(self) -> list[dict[str, Any]]:
        """Mappings with the keys of a grid's entries.

        Raises:
            ConfigError: an option of the method is wrong.
        """
        usual = create(self.method, self.options)
        made = []
        for value in self.values:
            options: dict[str, Any] = dict(self.options)
            entry: dict[str, Any] = {"method": self.method, "key": f"{self.key}-{self._suffix(value)}"}
            if self.kind == "isoflop":
                options["num_experts"] = value
                entry["match"] = "flops"
            elif self.kind == "granularity":
                options |= {"num_experts": usual.num_experts * value, "top_k": usual.top_k * value}
                entry |= {"match": "active_params + total_params", "solve": "width"}
            else:
                entry |= {"match": "active_params", "tokens_per_param": float(value)}
            made.append(entry | {"options": options, "tolerance": self.tolerance})
        return made

    def _suffix(self, value: float) -> str:
        return {"isoflop": "e", "granularity": "g", "tokens_per_param": "tpp"}[self.kind] + f"{value:g}"
