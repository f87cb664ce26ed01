"""The MoE layer: composition of its parts, route and execute apart, dtypes and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.experts import FFN, FFNExperts, SharedExpert
from libmoe.layers import MoELayer, moe_layers
from libmoe.losses import BalanceLoss
from libmoe.routers import TopKRouter

D, N = 6, 4


def make(**more: object) -> MoELayer:
    router = TopKRouter(D, N, 2)
    nn.init.normal_(router.gate.weight)
    return MoELayer(router, FFNExperts(N, D, 5, init_std=None), **more).double()


def by_hand(layer: MoELayer, x_TD: Tensor) -> Tensor:
    """Softmax top-2 with renormalised weights, token by token."""
    rows = []
    for x_D in x_TD:
        probability_N = (layer.router.gate.weight @ x_D).softmax(0)
        weight_K, expert_K = probability_N.topk(2)
        outputs = [layer.experts.materialise(e)(x_D) for e in expert_K.tolist()]
        rows.append(sum(w * y for w, y in zip(weight_K / weight_K.sum(), outputs, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 2, 3), (1, 1)])
def test_the_layer_is_the_weighted_sum_of_the_chosen_experts(shape: tuple[int, ...]) -> None:
    layer, x = make(), torch.randn(*shape, D, dtype=torch.float64)
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y.reshape(-1, D), by_hand(layer, x.reshape(-1, D)))


@pytest.mark.parametrize("shape", [(0,), (1, 0), (0, 4)])
def test_no_tokens_are_fine(shape: tuple[int, ...]) -> None:
    layer = make(losses=[BalanceLoss(1.0)]).train()
    y = layer(torch.randn(*shape, D, dtype=torch.float64, requires_grad=True))
    assert y.shape == (*shape, D)
    y.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in layer.parameters())


def test_hidden_states_need_not_be_contiguous() -> None:
    layer = make()
    x = torch.randn(3, 2, D, dtype=torch.float64).transpose(0, 1)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


def test_a_shared_expert_is_added_for_every_token() -> None:
    shared = SharedExpert(FFN(D, 3)).double()
    layer, x = make(), torch.randn(4, D, dtype=torch.float64)
    without = layer(x)
    layer.shared = shared
    torch.testing.assert_close(layer(x), without + shared(x))


def test_route_and_execute_work_apart() -> None:
    """Route on one activation, execute on another (shortcut connections), with a plan kept in between."""
    layer = make()
    earlier, later = torch.randn(2, 5, D, dtype=torch.float64)
    ctx = ForwardContext().layer(0, (1, 5), training=False)
    routing = layer.route(earlier, ctx)
    assert ctx.forward.routings[0] is routing
    y = layer.execute(later, routing)
    assert not torch.equal(y, layer(later))
    torch.testing.assert_close(layer.execute(earlier, routing), layer(earlier))


def test_a_plan_made_elsewhere_can_be_executed() -> None:
    layer, x = make(), torch.randn(3, D, dtype=torch.float64)
    plan = SparsePlan.from_topk(torch.tensor([[1], [1], [0]]), torch.ones(3, 1, dtype=torch.float64), N)
    expected = torch.stack([layer.experts.materialise(e)(x_D) for e, x_D in zip((1, 1, 0), x, strict=True)])
    torch.testing.assert_close(layer.execute(x, Routing(plan)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_output_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    layer = make(shared=SharedExpert(FFN(D, 3)), losses=[BalanceLoss(0.1)]).to(dtype).train()
    x = torch.randn(2, 3, D, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == dtype


def test_autocast_keeps_routing_in_full_precision() -> None:
    """Half-precision logits would choose other experts for close calls."""
    layer, logits = make().float().eval(), []

    def record(ctx: object, routing: Routing) -> None:
        logits.append(routing.logits_TN)

    x = torch.randn(64, D)
    with torch.no_grad(), options(recorders=[record]):
        plain = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = layer(x)
    assert torch.equal(*logits)
    assert mixed.dtype == torch.float32
    assert 0 < (plain - mixed).abs().max() < 0.05 * plain.abs().max()


def test_routers_and_experts_must_agree_on_their_number() -> None:
    with pytest.raises(ConfigError, match="router chooses among 4 experts but there are 3"):
        MoELayer(TopKRouter(D, 4, 2), FFNExperts(3, D, 5))


@pytest.mark.parametrize("k", [0, 5])
def test_more_experts_per_token_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=rf"top_k={k} must be between 1 and num_experts=4"):
        TopKRouter(D, 4, k)


class OneExpertEach(Router):
    """A router of a user: token t goes to expert ``t % N``, and nothing can be learned."""

    def route(self, x_TD: Tensor, ctx) -> Routing:
        expert_T1 = (torch.arange(len(x_TD)) % self.num_experts).unsqueeze(1)
        return Routing(SparsePlan.from_topk(expert_T1, torch.ones_like(x_TD[:, :1]), self.num_experts))


def test_a_router_needs_neither_parameters_nor_scores() -> None:
    layer = MoELayer(OneExpertEach(N), FFNExperts(N, D, 5, init_std=None)).train()
    x = torch.randn(6, D, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.any()
    torch.testing.assert_close(layer(x)[5], layer.experts.materialise(1)(x[5]))


def test_layers_are_found_in_their_order() -> None:
    model = nn.ModuleDict({name: make(index=i) for name, i in (("b", 2), ("a", 0), ("c", 1))})
    assert [(name, layer.index) for name, layer in moe_layers(model)] == [("a", 0), ("c", 1), ("b", 2)]


def test_the_layer_is_public() -> None:
    assert libmoe.MoELayer is MoELayer
