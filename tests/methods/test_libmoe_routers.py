"""What LIBMoE (arXiv 2411.00918) asks of its five routers together, and of their recomputation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import libmoe
from libmoe.core.context import ForwardContext, checkpoint_contexts, use
from libmoe.core.site import Site
from libmoe.experts import FFN
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss, ZLoss
from libmoe.methods import METHODS

FIVE = ("smoe", "sigmoid", "xmoe", "perturbed-cosine", "hyper-router")
OURS = (*FIVE, "switch", "deepseek-moe", "deepseek-v3", "random", "hash")
N, D, H = 8, 16, 24


def build(name: str, seed: int | None = None, **options: object) -> MoELayer:
    return libmoe.create(name, num_experts=N, **options).build_layer(Site(D, H, seed=seed))


def context(batch: int, length: int) -> ForwardContext:
    return ForwardContext({"input_ids": torch.arange(batch * length).view(batch, length)})


@pytest.mark.parametrize("name", [n for n in OURS if METHODS.info(n).facts["exact_upcycling"]])
def test_identical_experts_equal_the_dense_ffn(name: str) -> None:
    layer, ffn = build(name, expert_hidden=H).double().eval(), FFN(D, H).double()
    for expert in range(N):
        layer.experts.load_ffn(expert, ffn)
    x = torch.randn(3, 7, D, dtype=torch.double)
    with use(context(3, 7)):
        torch.testing.assert_close(layer(x), ffn(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["switch", "deepseek-moe", "deepseek-v3"])
def test_methods_whose_gates_do_not_sum_to_1_say_so(name: str) -> None:
    layer = build(name).eval()
    with use(context(3, 7)) as forward:
        layer(torch.randn(3, 7, D))
    plan = forward.routings[0].plan
    total_T = torch.zeros(plan.num_tokens).index_add(0, plan.token_A, plan.weight_A.detach())
    assert (total_T - 1).abs().min() > 1e-3
    assert not METHODS.info(name).facts["exact_upcycling"]


def test_one_seed_gives_all_five_the_same_experts_and_gates_of_one_shape() -> None:
    layers = {name: build(name, seed=3) for name in FIVE}
    for layer in layers.values():
        assert torch.equal(layer.experts.w_in, layers["smoe"].experts.w_in)
        assert torch.equal(layer.experts.w_out, layers["smoe"].experts.w_out)
    assert torch.equal(layers["sigmoid"].router.gate.weight, layers["smoe"].router.gate.weight)
    assert not torch.equal(build("smoe", seed=4).router.gate.weight, layers["smoe"].router.gate.weight)


@pytest.mark.parametrize("name", FIVE)
def test_uniform_routing_has_balance_1_and_zero_logits_have_z_ln_N_squared(name: str) -> None:
    """A gate that gives equal logits, and choices that go round: each expert gets as many tokens."""
    layer = build(name, top_k=1).double().eval()
    balance, z = layer.losses
    assert isinstance(balance, BalanceLoss) and isinstance(z, ZLoss)
    assert (balance.coefficient, z.coefficient) == (0.01, 0.001)
    layer.router.gate = torch.nn.Identity()
    layer.router.select = lambda scores_TN, ctx: (torch.arange(len(scores_TN)) % N).unsqueeze(1)
    ctx = context(2, N).layer(0, (2, N), False)
    routing = layer.router.route(torch.zeros(2 * N, N, dtype=torch.double), ctx)
    for loss, expected in ((balance, 1.0), (z, math.log(N) ** 2)):
        numerator, denominator = loss.compute(routing, ctx)
        assert (numerator / denominator).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", OURS)
def test_recomputation_gives_identical_gradients(name: str) -> None:
    layer = build(name, seed=0).train()
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(5)
        layer.zero_grad()
        x = torch.linspace(-2, 2, 2 * 9 * D).cos().view(2, 9, D).requires_grad_()
        with use(context(2, 9)):
            if recompute:
                y = checkpoint(layer, x, use_reentrant=False, context_fn=checkpoint_contexts)
            else:
                y = layer(x)
            y.square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in layer.parameters())])
    assert all(g is not None for g in gradients[0])
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("name", FIVE)
def test_autocast_leaves_logits_in_float32(name: str) -> None:
    gate, x_TD = build(name).router.gate, torch.randn(50, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = gate(x_TD)
    assert low.dtype == torch.float32 and torch.equal(low, gate(x_TD))


@pytest.mark.parametrize("name", OURS)
def test_layers_build_without_allocating_weights(name: str) -> None:
    """Sizes are matched on models that live on the meta device."""
    with torch.device("meta"):
        layer = build(name)
    sizes = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    assert sizes == {key: tuple(value.shape) for key, value in build(name).state_dict().items()}


@pytest.mark.parametrize("name", OURS)
def test_a_saved_layer_routes_as_before(name: str) -> None:
    layer, other = build(name, seed=0).eval(), build(name, seed=1).eval()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 9, D)
    with use(context(2, 9)):
        assert torch.equal(layer(x), other(x))
