"""Balancing each sequence keeps experts from taking domains; balancing the whole batch does not (arXiv 2501.11873)."""

from __future__ import annotations

import torch

from libmoe.analysis.routing import LayerSummary, RoutingSummary
from libmoe.core.context import options
from trained_lm import DOMAINS, summed_loss, trained_lm, windows


def routed(scope: str) -> list[LayerSummary]:
    """On held-out text of four domains, after training with batches of eight sequences."""
    model = trained_lm(
        100, method__options__num_experts=8, method__options__balance=0.05, method__options__balance_scope=scope
    )
    summary = RoutingSummary(DOMAINS)
    for number, domain in enumerate(DOMAINS):
        (batch,) = windows(domain, 24)
        side = {"domain": torch.full((24,), number)}
        with torch.no_grad(), options(recorders=[summary], side=side):
            summed_loss(model, batch)
    return summary.layers()


def test_balanced_over_the_batch_experts_specialise_by_domain_at_the_same_load() -> None:
    by_sequence, by_batch = routed("sequence"), routed("global_batch")
    for apart, together in zip(by_sequence, by_batch, strict=True):
        assert together.mutual_information_bits > 2 * apart.mutual_information_bits
        assert together.max_violation < 1
