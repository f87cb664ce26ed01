"""Methods that a language model can be trained with from nothing, on text alone, and the options tests give them."""

from __future__ import annotations

from typing import Any

from libmoe.core.errors import ConfigError
from libmoe.methods import METHODS, create

ELSEWHERE = ("side_inputs", "adapts", "part", "widthless")
"""Facts of methods that need more: inputs besides text, experts that were trained before, another part of a model; or
that have no width by which they could be made as large as others."""


def comparable(name: str) -> bool:
    return not any(METHODS.info(name).facts.get(fact) for fact in ELSEWHERE)


def few_experts(name: str) -> dict[str, Any]:
    """Eight experts, two of them for a token, where the method has experts and leaves that open."""
    for wanted in ({"num_experts": 8, "top_k": 2}, {"num_experts": 8}):
        try:
            create(name, wanted)
        except ConfigError:
            continue
        return wanted
    return {}
