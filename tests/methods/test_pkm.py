"""Product-key memories (arXiv 2310.10837): property 5, and that they compose with other experts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import libmoe
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.experts import FFNExperts, ValueExperts
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss
from libmoe.routers import ProductKeyRouter
from libmoe.routers.product_key import sides
from libmoe.testing import check_experts, check_router

D = 12


def context(tokens: int):
    return ForwardContext().layer(0, (1, tokens), False)


def all_scores(router: ProductKeyRouter, x: torch.Tensor) -> torch.Tensor:
    """Scores of every expert with a key of its own: the product keys, written out."""
    q = torch.einsum("td,hed->the", x, router.query)
    first, second = router.sides
    keys = torch.cat(
        [
            router.key_a.unsqueeze(2).expand(-1, -1, second, -1),
            router.key_b.unsqueeze(1).expand(-1, first, -1, -1),
        ],
        dim=-1,
    ).flatten(1, 2)
    return torch.einsum("thd,hnd->thn", q, keys)


@pytest.mark.parametrize(("experts", "k"), [(36, 6), (36, 3), (36, 36), (24, 5), (7, 7)])
def test_the_search_finds_what_brute_force_finds(experts: int, k: int) -> None:
    router = ProductKeyRouter(D, experts, k, heads=3).double()
    x = torch.randn(40, D, dtype=torch.float64)
    found = router.search(*router.halves(x), context(40))
    expected = all_scores(router, x).topk(k, dim=-1)
    assert torch.equal(found, expected.indices)
    weight = router.route(x, context(40)).plan.weight_A
    assert torch.allclose(weight, expected.values.relu().flatten())


def test_with_relu_and_all_slots_it_is_a_dense_network_with_structured_keys() -> None:
    layer = libmoe.create("pkm", num_experts=16, top_k=16, heads=2).build_layer(Site(D, 24, seed=0)).double()
    x = torch.randn(9, D, dtype=torch.float64)
    hidden = F.relu(all_scores(layer.router, x))  # [T, H, M]: two networks that share their second matrix
    assert torch.allclose(layer(x.unsqueeze(0))[0], hidden.sum(1) @ layer.experts.value, atol=1e-12)


def test_softmax_weights_are_over_the_chosen() -> None:
    router = ProductKeyRouter(D, 16, 3, heads=2, gates="softmax").double()
    x = torch.randn(5, D, dtype=torch.float64)
    expected = all_scores(router, x).topk(3, dim=-1).values.softmax(-1)
    assert torch.allclose(router.route(x, context(5)).plan.weight_A, expected.flatten())


def test_whole_plans_equal_row_by_row_execution_in_outputs_and_gradients() -> None:
    experts = ValueExperts(6, D).double()
    token_A, expert_A = torch.tensor([2, 0, 2, 1, 2]), torch.tensor([5, 1, 1, 0, 5])
    kept_A = torch.tensor([True, True, False, True, True])
    x, results = torch.randn(4, D, dtype=torch.float64), []
    for run in (experts.execute, lambda x, plan: plan.execute(experts, x)):
        weight_A = torch.linspace(0.1, 0.9, 5, dtype=torch.float64).requires_grad_()
        y = run(x, SparsePlan(token_A, expert_A, weight_A, 4, 6, kept_A=kept_A))
        results.append((y, *torch.autograd.grad(y.square().sum(), (weight_A, experts.value))))
    for fast, slow in zip(*results, strict=True):
        assert torch.allclose(fast, slow)
    assert not results[0][0][3].any()


def test_values_and_product_keys_keep_their_contracts_and_compose_with_other_parts() -> None:
    check_experts(ValueExperts(5, 16), 16)
    check_router(lambda: ProductKeyRouter(16, 30, 3))
    layer = MoELayer(ProductKeyRouter(D, 25, 2, heads=2), FFNExperts(25, D, 1), losses=[])  # one unit each
    layer(torch.randn(2, 5, D)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_interventions_see_all_experts() -> None:
    router = ProductKeyRouter(D, 25, 2, heads=2)
    x = torch.randn(30, D)
    chosen = router.route(x, context(30)).plan.expert_A
    banned = int(chosen.mode().values)
    with libmoe.options(interventions=[BanExperts([banned])]):
        left = router.route(x, ForwardContext().layer(0, (1, 30), False)).plan.expert_A
    assert (chosen == banned).any() and not (left == banned).any()


def test_published_sizes_add_up_to_those_of_the_dense_layer() -> None:
    for dim, width, side in ((412, 2053, 62), (1024, 4110, 89)):
        with torch.device("meta"):
            layer = libmoe.create("pkm", num_experts=side**2, project=False).build_layer(Site(dim, width, seed=None))
        assert sum(p.numel() for p in layer.parameters()) == pytest.approx(2 * dim * width, rel=0.01)


def test_numbers_that_are_no_squares_and_options_without_meaning() -> None:
    assert (sides(36), sides(24), sides(7), sides(1)) == ((6, 6), (4, 6), (1, 7), (1, 1))
    with pytest.raises(ConfigError, match="expert_hidden=4"):
        libmoe.create("pkm", expert_hidden=4)
    routing = ProductKeyRouter(D, 16, 2).route(torch.randn(4, D), context(4))
    with pytest.raises(ConfigError, match="balance loss needs scores"):
        BalanceLoss(1.0).compute(routing, context(4))
