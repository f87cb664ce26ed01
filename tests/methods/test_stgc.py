"""STGC: tokens leave experts that their gradient works against; nothing else differs from top-k routing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import libmoe
from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.layers import MoELayer, moe_layers
from libmoe.losses.conflict import ConflictEliminationLoss
from libmoe.methods import create

D, TOKENS, STEPS, LAST = 8, 64, 60, 20


def tasks(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of two groups that look almost alike and want opposite outputs; one weak feature tells them apart."""
    group_T = (torch.arange(TOKENS) < 0.4 * TOKENS).long()
    x_TD = 1 + 0.3 * torch.randn(TOKENS, D, generator=generator)
    x_TD[:, 0] = 0.3 * (2 * group_T - 1)
    return x_TD, (1 - 2 * group_T).unsqueeze(1).expand(-1, D).float(), group_T


def train(threshold: float, seed: int) -> tuple[float, float, float]:
    """Share of tokens whose expert is their group's own at the end; mean cosine and loss over the last steps.

    With one expert a token and gates that sum to 1 nothing but balance and this loss tells the router anything.
    """
    method = create("stgc", num_experts=2, top_k=1, expert_hidden=8, threshold=threshold)
    site = Site(D, 8, activation="gelu", gated=False, bias=True, init_std=0.3, seed=seed)
    layer: Any = method.build_layer(site).train()
    groups = [
        {"params": layer.router.parameters(), "lr": 0.05},
        {"params": layer.experts.parameters(), "lr": 0.003},
    ]
    optimizer, generator = torch.optim.Adam(groups), torch.Generator().manual_seed(seed + 99)
    cosines, losses = [], []
    for step in range(STEPS):
        x_TD, want_TD, group_T = tasks(generator)
        statistics = StepStatistics()
        with options(statistics=statistics, step=step, total_steps=STEPS):
            loss = F.mse_loss(layer(x_TD.unsqueeze(0))[0], want_TD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, pairs = statistics.losses.get((0, "conflict_elimination/similarity"), (0.0, 1))
        cosines.append(float(total / pairs))
        losses.append(loss.item())
    expert_T = layer.router.gate(x_TD).argmax(1)
    purity = float((expert_T == group_T).float().mean())
    return max(purity, 1 - purity), sum(cosines[-LAST:]) / LAST, sum(losses[-LAST:]) / LAST


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_that_conflict_end_in_different_experts_and_gradients_agree(seed: int) -> None:
    (mixed, cosine, loss), (pure, agreeing, lower) = train(-1.0, seed), train(0.0, seed)
    assert mixed < 0.8 and pure > 0.98
    assert agreeing > cosine + 0.2
    assert lower < loss


def make_model(**more: Any) -> nn.Module:
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    return libmoe.moeify(LlamaForCausalLM(config), "stgc", options=more, seed=0).train()


def trained(model: nn.Module, steps: int = 3) -> list[Tensor]:
    ids = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        with options(step=step, total_steps=steps):
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_threshold_minus_one_trains_a_model_as_the_baseline_to_the_last_bit() -> None:
    baseline, measuring = trained(make_model(conflict=0.0)), trained(make_model(threshold=-1.0))
    assert all(torch.equal(a, b) for a, b in zip(baseline, measuring, strict=True))
    on = trained(make_model(conflict_warmup=0.0))
    assert not all(torch.equal(a, b) for a, b in zip(baseline, on, strict=True))


def test_inference_is_that_of_top_k_routing() -> None:
    ids = torch.randint(31, (2, 12))
    ours = make_model().eval()
    plain = libmoe.moeify(
        LlamaForCausalLM(ours.config), "smoe", options={"num_experts": 4, "top_k": 2}, seed=0
    )
    plain.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, plain.eval()(input_ids=ids).logits)


def conflict(layer: MoELayer) -> ConflictEliminationLoss:
    return next(loss for loss in layer.losses if isinstance(loss, ConflictEliminationLoss))


def test_the_loss_is_averaged_over_layers_and_joins_the_balance_loss() -> None:
    layers = [layer for _, layer in moe_layers(make_model(conflict=0.6))]
    assert [conflict(layer).coefficient for layer in layers] == [0.3, 0.3]
    assert {loss.name: loss.coefficient for loss in layers[0].losses}["balance"] == 0.01


def test_options_are_checked_when_the_method_is_made() -> None:
    with pytest.raises(ConfigError, match="threshold is a cosine"):
        create("stgc", threshold=2.0)
