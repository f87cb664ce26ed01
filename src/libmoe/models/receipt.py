"""Receipts: what an operation on a model changed and what was checked about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass
class Receipt:
    """What was done to a model.

    Attributes:
        operation: ``moeify``, ``import``, ``export``, ...
        params_before, params_after: distinct parameters of the whole model.
        max_abs_difference: largest difference found between old and new outputs, ``None`` when none were
            compared.
        checks: further findings by name (JSON values).
    """

    operation: str
    params_before: int
    params_after: int
    max_abs_difference: float | None = None
    checks: dict[str, Any] = field(default_factory=dict)


def count_parameters(model: nn.Module) -> int:
    """Distinct parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters())
