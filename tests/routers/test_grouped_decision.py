"""Gates by which a group of tokens decides together, in routers of several kinds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.routers import LinearGate, SigmoidRouter, TopKRouter, TopPRouter
from libmoe.routers.gates import ContextGate
from libmoe.routers.grouped_decision import IdGate, PooledGate, refuse_scope_of_sequences
from libmoe.routers.noise import GaussianNoise, InputJitter
from libmoe.testing import check_router

D, N = 16, 6
ROUTERS: dict[str, Callable[..., Router]] = {
    "top-k": lambda gate: TopKRouter(D, N, 2, gate=gate),
    "sigmoid": lambda gate: SigmoidRouter(D, N, 2, gate=gate),
    "top-p": lambda gate: TopPRouter(D, N, 2, threshold=0.5, gate=gate),
}
GATES: dict[str, Callable[[], ContextGate]] = {
    "first": lambda: PooledGate(LinearGate(D, N), "first"),
    "mean": lambda: PooledGate(LinearGate(D, N), "mean", GaussianNoise(1.0)),
    "task": lambda: IdGate(LinearGate(4, N), "task", nn.Embedding(3, 4), InputJitter(0.5)),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("router", ROUTERS)
def test_any_router_decides_once_for_a_group_and_takes_over_what_its_gate_declares(router: str, gate: str) -> None:
    made = ROUTERS[router](GATES[gate]())
    assert (made.causal, made.decided_by) == (gate != "mean", "task" if gate == "task" else None)
    check_router(made, dim=D)
    with options(side={"task": torch.tensor([2, 0, 2, 1])}):
        ctx = ForwardContext().layer(0, (4, 5), training=True)
    routing = made.train()(torch.randn(20, D), ctx)
    assert routing.scores_TN is not None
    scores_BLN = routing.scores_TN.view(4, 5, N)
    assert (scores_BLN == scores_BLN[:, :1]).all(), "noise too is drawn once for a group"
    assert (torch.equal(scores_BLN[0], scores_BLN[2])) == (gate == "task")


@pytest.mark.parametrize("pool", ["first", "mean"])
def test_a_batch_without_tokens_and_a_row_of_padding_alone_have_an_answer(pool: str) -> None:
    gate = PooledGate(LinearGate(D, N), pool)  # type: ignore[arg-type]
    assert gate(torch.zeros(0, D), ForwardContext().layer(0, (1, 0), False)).shape == (0, N)
    mask = torch.tensor([[0, 0], [0, 1]])
    logits_TN = gate(torch.randn(4, D), ForwardContext({"attention_mask": mask}).layer(0, (2, 2), False))
    assert logits_TN.isfinite().all()


def test_the_gradient_of_the_mean_is_spread_over_the_real_tokens() -> None:
    gate, x_TD = PooledGate(LinearGate(D, N), "mean"), torch.randn(6, D, requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    gate(x_TD, ForwardContext({"attention_mask": mask}).layer(0, (2, 3), False))[0, 0].backward()
    torch.testing.assert_close(x_TD.grad[:2], (gate.gate.weight[0] / 2).expand(2, D))
    assert (x_TD.grad[2:] == 0).all()


def test_balance_within_a_sequence_that_decides_as_one_is_refused() -> None:
    refuse_scope_of_sequences(0.0, "sequence")
    refuse_scope_of_sequences(0.1, "micro_batch")
    with pytest.raises(ConfigError, match="use 'micro_batch' or 'global_batch'"):
        refuse_scope_of_sequences(0.1, "sequence")
