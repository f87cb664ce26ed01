"""MH-MoE (arXiv 2411.16205): parts of tokens that are routed by themselves, at equal FLOPs and parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.layers import MultiHead
from libmoe.methods.mh_moe import mh_moe_parity
from libmoe.models.accounting import account
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.routers import TopKRouter
from libmoe.testing import check_method
from libmoe.testing.probes import Stack

D, H, HEADS = 12, 30, 3


def build(**options: Any) -> MultiHead:
    given = {"num_experts": 6, "heads": HEADS, "top_k": 2, "expert_hidden": 10} | options
    layer = libmoe.create("mh-moe", given).build_layer(Site(D, H, seed=0, init_std=0.3))
    return layer.double().eval()


def tokens(batch: int = 2, length: int = 5) -> Tensor:
    return torch.randn(batch, length, D, dtype=torch.float64)


def plan_of(layer: MultiHead, x_BLD: Tensor, **inputs: Tensor) -> SparsePlan:
    context = ForwardContext(inputs)
    with use(context):
        layer(x_BLD)
    return context.routings[0].plan


def test_one_head_with_identity_linears_is_the_plain_layer() -> None:
    options = {"num_experts": 6, "top_k": 2, "expert_hidden": 10}
    layer = build(heads=1)
    plain = libmoe.create("smoe", options).build_layer(Site(D, H, seed=0, init_std=0.3)).double().eval()
    for linear in (layer.head, layer.merge):
        nn.init.eye_(linear.weight)
    x = tokens()
    assert torch.allclose(layer(x), plain(x), atol=1e-12)
    assert torch.allclose(build(heads=1, head=False, merge=False)(x), plain(x), atol=1e-12)


def test_parts_of_a_token_lie_beside_each_other_and_go_to_experts_of_their_own() -> None:
    layer = build(merge=False, head=False)
    x = tokens()
    changed = x.clone()
    changed[1, 2, : D // HEADS] += 1.0
    moved = (layer(changed) - layer(x)).abs() > 1e-12
    assert moved[1, 2, : D // HEADS].all() and int(moved.sum()) == D // HEADS
    plan = plan_of(layer, tokens(4, 20))
    chosen = plan.expert_A.view(80, HEADS, 2).sort(-1).values
    assert (chosen[:, 0] != chosen[:, 1]).any(), "the parts of a token never part"


def test_permuting_tokens_permutes_outputs() -> None:
    layer, x, order = build(), tokens(1, 9), torch.randperm(9)
    assert torch.allclose(layer(x)[:, order], layer(x[:, order]), atol=1e-12)


def test_a_part_computes_what_the_inner_layer_computes() -> None:
    layer, x = build(), tokens(1, 4)
    parts = layer.head(x).view(1, 4 * HEADS, D // HEADS)
    plain = libmoe.create("smoe", num_experts=6, top_k=2, expert_hidden=10)
    inner = plain.build_layer(Site(D // HEADS, H, seed=0, init_std=0.3)).double().eval()
    inner.load_state_dict(layer.layer.state_dict())
    assert torch.allclose(layer(x), layer.merge(inner(parts).view(1, 4, D)), atol=1e-12)


@pytest.mark.parametrize(
    ("heads", "k", "hidden", "experts"), [(2, 2, 768, 40), (3, 3, 512, 96)], ids=["two heads", "three heads"]
)
def test_published_sizes_have_the_flops_and_parameters_of_the_layer_they_replace(
    heads: int, k: int, hidden: int, experts: int
) -> None:
    """Counted by the library's own accounting; what is left of the difference is gates and weighted sums."""
    backbone = BackboneConfig(
        "llama", hidden_size=768, num_hidden_layers=1, intermediate_size=2048, num_attention_heads=12, vocab_size=64
    )

    def cost(name: str, **options: Any) -> Any:
        with torch.device("meta"):
            return account(libmoe.moeify(build_backbone(backbone), name, options=options), 16)

    plain = cost("switch", num_experts=8, expert_hidden=2048)
    ours = cost("mh-moe", heads=heads, top_k=k, expert_hidden=hidden, num_experts=experts)
    gates = 2 * 768 * (8 - experts), 2 * 768 * (1 - k)  # of a token: its parts' gates and sums, against one
    assert round(ours.flops_per_token) + sum(gates) == round(plain.flops_per_token)
    linears = 2 * 768**2
    assert ours.expert_params + linears == pytest.approx(plain.expert_params, rel=0.035)
    # Each part activates experts of its own: a token uses heads * k of them.
    active = ours.active_params - (ours.total_params - ours.expert_params)
    assert active == pytest.approx(heads * k * 3 * (768 // heads) * hidden)


def test_parity_is_the_papers_rule() -> None:
    d = 100
    assert mh_moe_parity(d, 4 * d, 5, 1, heads=3, part_top_k=1) == (3 * d, 4 * 5 - 1)  # d_moe = 4 d, k = 1
    for k, n in ((1, 8), (2, 16)):
        width, number = mh_moe_parity(d, 300, n, k, heads=2, part_top_k=k)
        assert width == pytest.approx(300 - d / k)
        assert number == pytest.approx((300 * n * d - d * d) * 2 / (d * width))
    assert mh_moe_parity(768, 2048, 8, 1, heads=2, part_top_k=2, gated=True).hidden == 768
    assert mh_moe_parity(768, 2048, 8, 1, heads=3, part_top_k=3, gated=True).hidden == 512
    with pytest.raises(ConfigError, match="too thin for heads"):
        mh_moe_parity(d, d // 2, 8, 1, heads=2, part_top_k=1)


def test_the_default_width_is_that_of_equal_flops() -> None:
    layer = libmoe.create("mh-moe").build_layer(Site(768, 2048, seed=0))
    assert layer.layer.experts.hidden == 768
    with pytest.raises(ConfigError, match="set expert_hidden"):
        libmoe.create("mh-moe").build_layer(Site(768, 400, seed=0))


def test_a_token_touches_up_to_heads_times_k_experts() -> None:
    layer = build(num_experts=64, heads=3, top_k=2)
    plan = plan_of(layer, tokens(4, 50))
    distinct = torch.tensor([len(set(row.tolist())) for row in plan.expert_A.view(200, 6)])
    assert distinct.max() == 6 and distinct.min() >= 2 and distinct.double().mean() > 4


def test_without_the_merge_parts_are_independent_and_with_it_all_features_meet() -> None:
    x_D = torch.randn(D, dtype=torch.float64)
    for merge in (False, True):
        layer = build(merge=merge, head=False)
        jacobian = torch.autograd.functional.jacobian(lambda x, layer=layer: layer(x.view(1, 1, D))[0, 0], x_D)
        same = torch.block_diag(*[torch.ones(D // HEADS, D // HEADS)] * HEADS).bool()
        assert (jacobian[same] != 0).any()
        assert bool((jacobian[~same] != 0).any()) == merge


def test_initial_linears_are_xaviers() -> None:
    layer = libmoe.create("mh-moe", expert_hidden=8).build_layer(Site(256, 64, seed=0))
    bound = math.sqrt(6 / 512)
    assert float(layer.head.weight.detach().abs().max()) == pytest.approx(bound / math.sqrt(2), rel=0.01)
    assert float(layer.merge.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert layer.head.bias is None


def test_capacity_and_balance_count_parts_and_padding_takes_no_place() -> None:
    layer = build(heads=2, inner="smoe", inner_options={"capacity_factor": 1.0}, top_k=1).train()
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 4:] = 0
    statistics, inputs = StepStatistics(), {"attention_mask": mask}
    with libmoe.options(statistics=statistics):
        plan = plan_of(layer, tokens(2, 12), **inputs)
    assert statistics.seen[0].tokens == 32 and statistics.seen[0].count_N.sum() == 32
    real_A = mask.flatten().bool().repeat_interleave(2)
    assert not plan.kept_A[~real_A].any()
    slots = math.ceil(32 / 6)
    assert torch.bincount(plan.expert_A[plan.kept_A], minlength=6).max() <= slots


def test_the_loss_weighs_as_much_under_announced_totals_as_without() -> None:
    """Loops count tokens of the model, and the layer counts parts of them."""
    x, grads = tokens(2, 6).float(), []
    for totals in ({}, {"token": 12.0, "sequence": 2.0}):
        model = Stack([build(balance=1.0).float().train()])
        with libmoe.options(totals=totals):
            (0.0 * model(x)).sum().backward()
        grads.append(model.layers[0].layer.router.gate.weight.grad)
    assert torch.allclose(*grads) and grads[0].abs().max() > 0


def test_documents_and_ids_of_a_token_hold_for_its_parts() -> None:
    ids, positions = torch.arange(8).view(1, 8), torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    context = ForwardContext({"input_ids": ids, "position_ids": positions})
    ctx = context.layer(0, (1, 16), True, parts=2)
    assert ctx.token_ids_T.tolist() == [i for i in range(8) for _ in range(2)]
    assert ctx.sequence_T.tolist() == [0] * 6 + [1] * 10
    with libmoe.options(side={"domain": torch.tensor([3])}):
        assert ForwardContext().layer(0, (1, 16), True, parts=2).side_T("domain").tolist() == [3] * 16


@pytest.mark.parametrize(
    "options", [{"inner": "hash"}, {"inner": "remoe"}, {"inner": "expert-choice"}], ids=lambda o: str(o["inner"])
)
def test_any_method_can_route_the_parts(options: dict[str, Any]) -> None:
    check_method("mh-moe", options | {"num_experts": 4})


def test_options_reach_the_inner_method_and_nonsense_is_refused() -> None:
    layer = build(inner="switch", top_k=1, balance=0.5)
    assert [loss.coefficient for loss in layer.layer.losses] == [0.5, 0.0]
    assert isinstance(layer.layer.router, TopKRouter) and layer.layer.router.capacity_factor == 1.25
    for options, message in (
        ({"heads": 5}, "heads=5 must divide"),
        ({"inner": "smeo"}, "'smoe'"),
        ({"inner": "dense", "top_k": 1, "num_experts": 1}, "no meaning for 'dense'|no plain MoE layer"),
        ({"inner_options": {"noise": "learned"}}, "name it with inner"),
        ({"inner": "mh-moe"}, "no plain MoE layer"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(**options)
    shared = libmoe.create("mh-moe", shared_hidden=7, expert_hidden=4).build_layer(Site(D, H, seed=0))
    assert shared.shared.ffn.w_out.shape == (D, 7)
