"""The entropy-regularised assignment with a limit per token (arXiv 2202.09368 §3.3)."""

from __future__ import annotations

import pytest
import torch

from libmoe.routers.capped import capped_assignment, residual


def scores(groups: int, experts: int, tokens: int) -> torch.Tensor:
    return torch.randn(groups, tokens, experts, dtype=torch.float64).softmax(-1).transpose(1, 2)


@pytest.mark.parametrize("limit", [2, 3])
def test_converged_solution_meets_its_constraints(limit: int) -> None:
    k_G = torch.tensor([64, 64])
    log_GNL = capped_assignment(scores(2, 8, 256), k_G, limit, iterations=1000)
    a = log_GNL.exp()
    assert a.min() >= 0 and a.max() <= 1
    torch.testing.assert_close(a.sum(2), torch.full((2, 8), 64.0, dtype=a.dtype), rtol=2e-3, atol=0)
    assert a.sum(1).max() <= limit + 5e-3
    report = residual(log_GNL, k_G, limit)
    assert report.row_error < 2e-3 and report.column_excess < 5e-3


def test_too_few_iterations_for_a_small_strength_are_reported() -> None:
    k_G = torch.tensor([64])
    assert residual(capped_assignment(scores(1, 8, 256), k_G, 2, strength=0.001), k_G, 2).row_error > 0.2
    assert residual(capped_assignment(scores(1, 8, 256), k_G, 2, strength=0.01), k_G, 2).row_error < 0.1


def test_limit_of_all_experts_selects_as_without_limit() -> None:
    s = scores(1, 4, 32)
    capped = capped_assignment(s, torch.tensor([16]), 4, iterations=300).topk(16, dim=2).indices
    assert torch.equal(capped.sort(2).values, s.topk(16, dim=2).indices.sort(2).values)


def test_capping_keeps_most_of_the_gate_mass() -> None:
    s = scores(1, 8, 256)
    capped = capped_assignment(s, torch.tensor([64]), 3).topk(64, dim=2).indices
    assert s.gather(2, capped).sum() > 0.985 * s.topk(64, dim=2).values.sum()


def test_missing_tokens_of_shorter_groups_get_nothing() -> None:
    s = scores(2, 4, 16)
    real_GL = torch.ones(2, 16, dtype=torch.bool)
    real_GL[1, 10:] = False
    a = capped_assignment(s, torch.tensor([8, 5]), 2, real_GL, iterations=300).exp()
    assert torch.equal(a[1, :, 10:], torch.zeros(4, 6, dtype=a.dtype))
    alone = capped_assignment(s[1:, :, :10], torch.tensor([5]), 2, iterations=300).exp()
    torch.testing.assert_close(a[1:, :, :10], alone)
    assert a.isfinite().all()
