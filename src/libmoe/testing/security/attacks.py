"""Buffer overflow: requests crafted to take the places that another request needs (arXiv 2402.05526)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.testing.security.serving import Answer, Service


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Who shares a batch.

    Attributes:
        rows: requests of a batch, one of which is the victim's.
        place: the victim's, from 0; -1 is the last, which is served last.  The attacker writes all others.
        queries: forward passes that an attacker may try out on one victim.
        vocabulary: token ids that requests may hold.
    """

    rows: int = 8
    place: int = -1
    queries: int = 40
    vocabulary: int

    def __post_init__(self) -> None:
        if self.rows < 2 or not -self.rows <= self.place < self.rows:
            raise ConfigError(
                f"rows={self.rows}, place={self.place}: a victim needs rows of at least 2, and a place among them"
            )
        if self.queries < 1 or self.vocabulary < 2:
            raise ConfigError(f"queries={self.queries} must be at least 1, vocabulary={self.vocabulary} at least 2")

    def batch(self, victim_L: Tensor, others_OL: Tensor) -> Tensor:
        """``[B, L]``: the victim at its place among the others."""
        place = self.place % self.rows
        return torch.cat([others_OL[:place], victim_L[None], others_OL[place:]])


Attack = Callable[[Service, Tensor, int, Setting, torch.Generator], Tensor]
"""From the service, a victim ``[L]``, the answer to be spoilt, the setting and randomness to the other requests."""


def rarity(answer: Answer, token: int) -> float:
    """``-ln p(token)`` of the next token: what the attacker raises."""
    return -float(answer.logits_V.double().log_softmax(0)[token])


def copies(service: Service, victim_L: Tensor, token: int, setting: Setting, draws: torch.Generator) -> Tensor:
    """All other requests repeat the victim's: they go to the same experts, and ask first.  No query."""
    return victim_L.expand(setting.rows - 1, -1)


def search(service: Service, victim_L: Tensor, token: int, setting: Setting, draws: torch.Generator) -> Tensor:
    """Knows nothing of the victim but how probable its answer has become (grey box).

    Half of the queries try requests that repeat one random token, which all go to the same experts; the others change a
    tenth of the tokens of the best so far, and keep what is better.
    """
    shape = setting.rows - 1, len(victim_L)
    best_OL = torch.randint(setting.vocabulary, shape, generator=draws)
    most = -float("inf")
    for query in range(setting.queries):
        if query < setting.queries // 2:
            tried_OL = torch.randint(setting.vocabulary, (1, 1), generator=draws).expand(shape)
        else:
            change_OL = torch.rand(shape, generator=draws) < 0.1
            tried_OL = torch.where(change_OL, torch.randint(setting.vocabulary, shape, generator=draws), best_OL)
        harm = rarity(service(setting.batch(victim_L, tried_OL), setting.place % setting.rows), token)
        if harm > most:
            best_OL, most = tried_OL, harm
    return best_OL


ATTACKS: dict[str, Attack] = {"copies": copies, "search": search}
