"""Methods that a language model can be trained with from nothing, on text alone, and the options tests give them."""

from __future__ import annotations

from typing import Any

from libmoe.core.errors import ConfigError
from libmoe.methods import METHODS, create

ELSEWHERE = ("side_inputs", "adapts", "part", "widthless")
"""Facts of methods that need more: inputs besides text, experts that were trained before, another part of a model; or
that have no width by which they could be made as large as others."""


KINDS = [
    "dense", "smoe", "switch", "deepseek-v3", "moe-plus-plus", "remoe", "hash", "expert-prototyping", "top-p-routing",
    "adamoe", "mh-moe", "stable-moe", "granular-upcycling", "soft-moe", "expert-choice",
]  # fmt: skip
"""One method of each kind: for what does not depend on the method but on its kind, and takes a second each."""


def comparable(name: str) -> bool:
    return not any(METHODS.info(name).facts.get(fact) for fact in ELSEWHERE)


def few_experts(name: str, number: int = 8) -> dict[str, Any]:
    """So many experts, two of them for a token, where the method has experts and leaves that open."""
    if name == "soft-moe":  # takes no k, but for the width of its experts
        return {"num_experts": number}
    for wanted in ({"num_experts": number, "top_k": 2}, {"num_experts": number}):
        try:
            create(name, wanted)
        except ConfigError:
            continue
        return wanted
    return {}
