"""Selection biases and group limits."""

from __future__ import annotations

import pytest
import torch

from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts
from libmoe.routers import BiasedRouter, GroupLimitedRouter


def choose(router: BiasedRouter, x_TD: torch.Tensor) -> torch.Tensor:
    plan = router.route(x_TD, ForwardContext().layer(0, (1, len(x_TD)), False)).plan
    return plan.expert_A.view(len(x_TD), -1)


def test_a_large_bias_decides_alone() -> None:
    router = BiasedRouter(8, 6, 2)
    router.selection_bias[torch.tensor([1, 4])] = 2.0
    assert torch.equal(choose(router, torch.randn(20, 8)).sort().values, torch.tensor([[1, 4]]).repeat(20, 1))


@pytest.mark.parametrize("cast", [torch.nn.Module.bfloat16, torch.nn.Module.half, torch.nn.Module.double])
def test_casting_the_model_leaves_the_bias_in_float32(cast: object) -> None:
    router = BiasedRouter(8, 6, 2)
    router.selection_bias.copy_(torch.linspace(0.1, 0.9, 6) + 1e-4)
    before = router.selection_bias.clone()
    cast(router)
    assert router.selection_bias.dtype == torch.float32 and torch.equal(router.selection_bias, before)
    assert router.gate.weight.dtype != torch.float32
    assert "selection_bias" in router.state_dict()


def test_groups_are_ranked_by_their_two_best_experts() -> None:
    router = GroupLimitedRouter(6, 6, 2, n_group=2, topk_group=1, gate=torch.nn.Identity())
    # The best expert is in group 0, but group 1 has the better pair.
    logits_TN = torch.tensor([[3.0, -3.0, -3.0, 1.0, 1.5, -3.0]])
    assert sorted(choose(router, logits_TN)[0].tolist()) == [3, 4]


def test_banned_experts_do_not_count_for_their_group() -> None:
    router = GroupLimitedRouter(6, 6, 2, n_group=2, topk_group=1, gate=torch.nn.Identity())
    logits_TN = torch.tensor([[3.0, 2.0, -1.0, 1.0, 1.5, -3.0]])
    assert sorted(choose(router, logits_TN)[0].tolist()) == [0, 1]
    with options(interventions=[BanExperts([0])]):
        assert sorted(choose(router, logits_TN)[0].tolist()) == [3, 4]


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"n_group": 4}, "n_group=4 must divide num_experts=6"),
        ({"n_group": 6}, "n_group=6"),
        ({"n_group": 3, "topk_group": 4}, "topk_group=4"),
        ({"n_group": 3, "topk_group": 1, "top_k": 3}, "cannot give top_k=3"),
    ],
)
def test_impossible_groups_are_refused(sizes: dict[str, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        GroupLimitedRouter(8, 6, **sizes)
