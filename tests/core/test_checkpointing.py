"""Activation checkpointing: bit-identical losses, gradients and counts, with noise, dropout and losses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.context import LayerContext, checkpoint_contexts, install, options
from libmoe.core.errors import TrainingError
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics

IDS = torch.randint(1, 61, (3, 10), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 6:] = 0


def train_once(
    model: nn.Module, context_fn: Callable | None = None, **more: Any
) -> tuple[Tensor, dict[str, Tensor], StepStatistics]:
    if context_fn is not None or more:
        settings = {"use_reentrant": False} | ({"context_fn": context_fn} if context_fn else {}) | more
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    torch.manual_seed(7)
    statistics = StepStatistics()
    with options(statistics=statistics):
        loss = model(input_ids=IDS, attention_mask=MASK, labels=IDS, use_cache=False).loss
        loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters()}, statistics


CASES: dict[str, dict[str, Any]] = {
    "plain": {"z_loss": 0.1},
    "fixed noise": {"noise": "gaussian"},
    "learned noise": {"noise": "learned"},
    "capacity": {"capacity_factor": 0.5},
    "straight-through": {"estimator": "straight-through"},
    "dense gradients": {"estimator": "dense", "noise": "gaussian"},
    "micro-batch balance": {"balance": 1.0, "balance_scope": "micro_batch"},
    "running balance": {"balance": 1.0, "balance_scope": "global_batch", "noise": "gaussian"},
    "shared expert": {"shared_hidden": 8},
}


@pytest.mark.parametrize("case", CASES)
def test_checkpointing_changes_no_bit(llama: Callable, case: str) -> None:
    loss, grads, statistics = train_once(llama(**CASES[case]))
    again, grads_again, statistics_again = train_once(llama(**CASES[case]), checkpoint_contexts)
    assert torch.equal(loss, again)
    for name, grad in grads.items():
        assert torch.equal(grads_again[name], grad), name
    for index, load in statistics.seen.items():
        assert torch.equal(statistics_again.seen[index].count_N, load.count_N)
        assert torch.equal(statistics_again.seen[index].tokens, load.tokens)
    assert statistics_again.losses.keys() == statistics.losses.keys()
    for key, pair in statistics.losses.items():
        assert all(map(torch.equal, statistics_again.losses[key], pair))


class NoisyThenDropout(nn.Module):
    """A block that draws routing noise and then dropout, both inside the checkpointed part."""

    def __init__(self) -> None:
        super().__init__()
        method = libmoe.create("smoe", num_experts=4, noise="gaussian")
        self.layer = method.build_layer(Site(8, 16, seed=0))
        self.dropout = nn.Dropout(0.5)

    def block(self, x: Tensor) -> Tensor:
        return self.dropout(self.layer(x))

    def forward(self, x: Tensor, recompute: bool) -> Tensor:
        if not recompute:
            return self.block(x)
        return torch.utils.checkpoint.checkpoint(
            self.block, x, use_reentrant=False, context_fn=checkpoint_contexts
        )


def test_routing_noise_does_not_shift_the_random_numbers_after_it() -> None:
    """Recomputation restores torch's random state and must then draw exactly what forward drew."""
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = NoisyThenDropout().train()
        install(model)
        model(torch.randn(2, 5, 8), recompute).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *grads))


class Looped(nn.Module):
    """Two layers used three times each, as in models that share weights over depth."""

    def __init__(self) -> None:
        super().__init__()
        method = libmoe.create(
            "smoe", num_experts=4, noise="gaussian", balance=1.0, balance_scope="micro_batch"
        )
        self.layers = nn.ModuleList(
            method.build_layer(Site(8, 16, index=i, count=2, seed=0)) for i in range(2)
        )

    def forward(self, x: Tensor, recompute: bool) -> Tensor:
        for layer in [*self.layers] * 3:
            if recompute:
                kwargs = {"use_reentrant": False, "context_fn": checkpoint_contexts}
                x = x + torch.utils.checkpoint.checkpoint(layer, x, **kwargs)
            else:
                x = x + layer(x)
        return x


def test_a_layer_used_several_times_repeats_each_of_its_decisions() -> None:
    results, chosen = [], []

    def record(ctx: LayerContext, routing: libmoe.Routing) -> None:
        chosen.append((ctx.index, ctx.call, routing.plan.expert_A, ctx.previous))

    for recompute in (False, True):
        torch.manual_seed(0)
        model = Looped().train()
        install(model)
        with options(recorders=[record]):
            y = model(torch.randn(2, 5, 8), recompute)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *results))
    assert [(index, call) for index, call, *_ in chosen] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
        (0, 2),
        (1, 2),
    ] * 2
    assert not torch.equal(chosen[0][2], chosen[2][2])  # each use has noise of its own
    assert [previous is not None for *_, previous in chosen[:6]] == [False, True] * 3


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputing_without_the_context_is_refused(llama: Callable, reentrant: bool) -> None:
    """Otherwise the mask, the noise and the choice of experts would silently be others."""
    with pytest.raises(TrainingError, match="context_fn=libmoe"):
        train_once(llama(noise="gaussian"), use_reentrant=reentrant)


def test_a_layer_by_itself_can_be_checkpointed() -> None:
    layer = libmoe.create("smoe", num_experts=4, noise="gaussian").build_layer(Site(8, 16, seed=0)).train()
    grads = []
    for recompute in (False, True):
        x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(3)
        kwargs = {"use_reentrant": False, "context_fn": checkpoint_contexts}
        y = torch.utils.checkpoint.checkpoint(layer, x, **kwargs) if recompute else layer(x)
        y.square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_recorders_see_each_layer_once(llama: Callable) -> None:
    seen: list[int] = []

    def record(ctx: LayerContext, routing: libmoe.Routing) -> None:
        seen.append(ctx.index)

    with options(recorders=[record]):
        train_once(llama(layers=3), checkpoint_contexts)
    assert seen == [0, 1, 2]


def test_layers_see_the_same_neighbours_when_recomputed(llama: Callable) -> None:
    model = llama(layers=3)
    previous: dict[bool, list] = {False: [], True: []}
    for layer in model.model.layers:
        router = layer.mlp.router
        inner = router.logits

        def logits(x_TD: Tensor, ctx: LayerContext, inner: Callable = inner) -> Tensor:
            before = ctx.previous
            previous[ctx.forward.recomputing].append((ctx.index, None if before is None else id(before)))
            own = inner(x_TD, ctx)
            return own if before is None else own + before.logits_TN

        router.logits = logits
    train_once(model, checkpoint_contexts)
    assert len(previous[False]) == 3
    assert sorted(previous[True]) == sorted(previous[False])


def test_contexts_are_freed_after_backward(llama: Callable) -> None:
    model, contexts = llama(), []

    def record(ctx: LayerContext, routing: libmoe.Routing) -> None:
        contexts.append(weakref.ref(ctx.forward))

    with options(recorders=[record]):
        train_once(model, checkpoint_contexts)
    gc.collect()
    assert contexts and all(context() is None for context in contexts)
