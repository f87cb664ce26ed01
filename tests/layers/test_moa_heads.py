"""What makes a mixture of attention heads one: who computes, what is shared, and in which order heads stand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_heads import (
    WIDTH,
    B,
    D,
    Given,
    H,
    L,
    N,
    causal,
    dense_router,
    experts,
    keys_and_values,
    layer_of,
    uneven,
)
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.experts import HeadExperts
from libmoe.layers import MoALayer
from libmoe.models.accounting import flop_counter
from libmoe.routers.dense_training import DenseTrainingRouter


def test_experts_that_are_not_chosen_compute_nothing() -> None:
    """Products grow with the number of assignments alone, and weights of the others may be anything."""
    x, (k, v), flops = torch.randn(B, L, D).double(), keys_and_values(), {}
    for chosen in (1, 2, 3, N):
        expert_TK = torch.rand(B * L, N).argsort(1)[:, :chosen]
        layer = layer_of(Given(SparsePlan.from_topk(expert_TK, torch.rand(B * L, chosen).double(), N)))
        layer.experts.backend = "reference"
        with flop_counter() as counter, torch.no_grad():
            layer(x, causal(k, v))
        flops[chosen] = counter.get_total_flops()
    mixing, look = 2 * D, layer.experts.flops_per_pair * L
    each = B * L * (layer.experts.flops_per_row()[0] + look)
    assert each == B * L * (4 * H * WIDTH * D + 4 * H * WIDTH * L)
    assert [flops[chosen] - B * L * mixing * chosen for chosen in (1, 2, 3)] == [each, 2 * each, 3 * each]
    assert flops[N] == N * each + B * L * 2 * N * D  # the biases of all outputs in one product

    expert_TK = torch.stack([torch.arange(B * L) % 2, torch.full((B * L,), 2)], 1)
    layer = layer_of(Given(SparsePlan.from_topk(expert_TK, torch.rand(B * L, 2).double(), N)))
    expected = layer(x, causal(k, v))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[3] = torch.nan
    assert torch.equal(layer(x, causal(k, v)), expected) and expected.isfinite().all()


def test_what_a_token_chooses_changes_no_other_token() -> None:
    """Keys and values are not routed (arXiv 2210.05144)."""
    x, (k, v) = torch.randn(B, L, D).double(), keys_and_values()
    expert_TK, weight_TK = torch.rand(B * L, N).argsort(1)[:, :2], torch.rand(B * L, 2).double()
    other_TK = expert_TK.clone()
    other_TK[3] = (expert_TK[3] + 1) % N
    first, second = (
        layer_of(Given(SparsePlan.from_topk(chosen, weight_TK, N))) for chosen in (expert_TK, other_TK)
    )
    second.load_state_dict(first.state_dict())
    change_T = (first(x, causal(k, v)) - second(x, causal(k, v))).abs().amax(-1).flatten()
    assert torch.nonzero(change_T > 1e-12).flatten().tolist() == [3]


def test_experts_have_no_order() -> None:
    layer, x, (k, v) = layer_of(dense_router(False)).eval(), torch.randn(B, L, D).double(), keys_and_values()
    expected = layer(x, causal(k, v))
    order_N = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter[order_N])
    torch.testing.assert_close(layer(x, causal(k, v)), expected)


@pytest.mark.parametrize("width", [1, N])
def test_attention_is_asked_once_even_for_nobody(width: int) -> None:
    """It may update a cache, so that every call of the layer must reach it, and once."""
    nobody = torch.zeros(B * L, N, dtype=torch.bool)
    plan = SparsePlan.from_mask(torch.rand(B * L, N).double(), nobody)
    if width == N:
        every_TN = torch.arange(N).expand(B * L, -1)
        plan = SparsePlan.from_topk(every_TN, torch.zeros(B * L, N).double(), N, ~nobody & nobody)
    layer, shapes = layer_of(Given(plan)), []

    def attention(q_TJd: Tensor) -> Tensor:
        shapes.append(q_TJd.shape)
        return q_TJd

    x_BLD = torch.randn(B, L, D).double()
    assert not layer(x_BLD, attention).any() and shapes == [(B * L, width * H, WIDTH)]
    nothing = SparsePlan.from_topk(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2).double(), N)
    assert layer_of(Given(nothing))(x_BLD[:0], attention).shape == (0, L, D) and len(shapes) == 2


def test_heads_that_read_the_same_keys_stand_beside_each_other() -> None:
    """As grouped-query attention wants them, whatever the number of a token's experts."""
    layer, seen = layer_of(dense_router(False)).eval(), []
    with torch.no_grad():
        for j in range(H):  # queries tell the number of their head
            layer.experts.w_q[:, j * WIDTH : (j + 1) * WIDTH] = 0
            layer.experts.b_q[:, j * WIDTH : (j + 1) * WIDTH] = j
    layer(torch.randn(B, L, D).double(), lambda q_TJd: seen.append(q_TJd) or q_TJd)
    assert (seen[0] == torch.tensor([0, 1, 0, 1, 2, 3, 2, 3])[:, None]).all()


def test_dense_heads_are_cut_so_that_every_expert_has_some_of_each_group() -> None:
    made = experts()
    heads = N * H
    number_O = torch.arange(heads).repeat_interleave(WIDTH).double()
    made.load_dense(number_O[:, None].expand(-1, D), number_O.expand(D, -1), number_O, torch.ones(D).double())
    held = [made.b_q[i].view(H, WIDTH)[:, 0].tolist() for i in range(N)]
    assert held == [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]]
    assert torch.equal(made.w_q, made.b_q[:, :, None].expand(-1, -1, D))
    assert torch.equal(made.w_o, N * made.b_q[:, None].expand(-1, D, -1)) and (made.b_o == 1).all()


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="heads=3: an expert needs a multiple of the 2 heads of keys"):
        HeadExperts(N, D, 3, WIDTH, groups=2)
    with pytest.raises(ConfigError, match="need the keys and values of their sequence"):
        experts().execute(torch.zeros(B * L, D).double(), uneven())
    with pytest.raises(ConfigError, match="the router chooses among 8 experts but there are 4"):
        MoALayer(DenseTrainingRouter(D, 8, 2), experts())
