"""Defining properties of Expert Choice (arXiv 2202.09368)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from libmoe.core import context
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import BanExperts, ForceTopK
from libmoe.core.plan import SparsePlan
from libmoe.core.site import Site
from libmoe.layers.moe import MoELayer
from libmoe.methods import METHODS, create

DIM, N = 8, 4


def make_layer(**options: object) -> MoELayer:
    site = Site(DIM, 16, init_std=0.5)
    return create("expert-choice", num_experts=N, **options).build_layer(site).double().eval()


def plan_of(layer: MoELayer, x: Tensor, inputs: dict[str, Tensor] | None = None) -> SparsePlan:
    ctx = ForwardContext(inputs).layer(0, tuple(x.shape[:2]), layer.training)
    return layer.route(x.flatten(0, 1), ctx).plan


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 12, DIM, dtype=torch.float64)


@pytest.mark.parametrize("c", [1.0, 2.0])
def test_every_expert_takes_k_tokens_of_every_group(c: float, x: Tensor) -> None:
    plan = plan_of(make_layer(capacity_factor=c), x)
    count_GN = torch.zeros(2, N).index_put(
        (plan.token_A // 12, plan.expert_A), torch.ones(1), accumulate=True
    )
    assert (count_GN == c * 12 / N).all()
    assert len(plan.token_A) == c * 24  # e k = c n


def test_whole_batch_as_one_group(x: Tensor) -> None:
    layer = make_layer(group="batch")
    assert plan_of(layer, x).load_N().tolist() == [12.0] * N
    assert not layer.router.batch_independent


def test_capacity_of_all_tokens_is_the_dense_mixture(x: Tensor) -> None:
    layer = make_layer(capacity_factor=N)
    p = layer.router.gate(x).softmax(-1)
    expected = sum(p[..., e : e + 1] * layer.experts.materialise(e)(x) for e in range(N))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_permuting_tokens_permutes_outputs(x: Tensor) -> None:
    layer, order = make_layer(), torch.randperm(12)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


def test_future_tokens_change_earlier_outputs(x: Tensor) -> None:
    layer = make_layer()
    assert METHODS.info("expert-choice").facts["causal"] is layer.router.causal is False
    changed = x.clone()
    changed[:, -1] = 20 * torch.randn(DIM, dtype=torch.float64)  # wins places at some expert
    assert not torch.allclose(layer(x)[:, :-1], layer(changed)[:, :-1])


def test_other_sequences_change_nothing(x: Tensor) -> None:
    layer = make_layer()
    changed = x.clone()
    changed[1] = 20 * torch.randn(12, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], layer(changed)[0], rtol=0, atol=0)


def test_group_of_one_token_depends_on_no_other_token(x: Tensor) -> None:
    layer = make_layer()
    alone = x.reshape(24, 1, DIM)
    assert plan_of(layer, alone).experts_per_token().tolist() == [N] * 24  # k is at least 1
    torch.testing.assert_close(layer(alone)[3], layer(alone[3:4])[0])


def test_token_picked_by_nobody_outputs_zero_and_its_experts_give_no_gradient(x: Tensor) -> None:
    layer = make_layer(capacity_factor=0.5)
    lonely_T = plan_of(layer, x).experts_per_token() == 0
    assert 0 < lonely_T.sum() < 24
    x.requires_grad_()
    y = layer(x).flatten(0, 1)
    assert torch.equal(y[lonely_T], torch.zeros_like(y[lonely_T]))
    y[lonely_T].sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_softmax_is_over_experts_and_top_k_over_tokens(x: Tensor) -> None:
    router = make_layer().router
    index_GL, real_GL = torch.arange(12).view(1, 12), torch.ones(1, 12, dtype=torch.bool)
    ctx = ForwardContext().layer(0, (1, 12), False)
    logits_TN = 2 * torch.randn(12, N, dtype=torch.float64)

    def picks(logits_TN: Tensor) -> set[tuple[int, int]]:
        token_A, expert_A, _ = router.pick(router.score(logits_TN, index_GL, real_GL), index_GL, real_GL, ctx)
        return set(zip(token_A.tolist(), expert_A.tolist(), strict=True))

    of_token = torch.randn(12, 1, dtype=torch.float64)
    assert picks(logits_TN + of_token) == picks(logits_TN)
    of_expert = torch.tensor([3.0, 0, 0, 0], dtype=torch.float64)
    before, after = picks(logits_TN), picks(logits_TN + of_expert)
    assert {p for p in before if p[1] > 0} != {p for p in after if p[1] > 0}


def test_gates_are_the_raw_probabilities(x: Tensor) -> None:
    layer = make_layer()
    plan = plan_of(layer, x)
    p_TN = layer.router.gate(x.flatten(0, 1)).softmax(-1)
    torch.testing.assert_close(plan.weight_A, p_TN[plan.token_A, plan.expert_A])


def test_variant_with_softmax_over_the_tokens_of_a_group(x: Tensor) -> None:
    layer = make_layer(score_axis="tokens")
    plan = plan_of(layer, x)
    p_TN = layer.router.gate(x).softmax(1).flatten(0, 1)
    torch.testing.assert_close(plan.weight_A, p_TN[plan.token_A, plan.expert_A])
    layer(x).sum().backward()
    assert layer.router.gate.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "options", [{}, {"score_axis": "tokens"}, {"max_experts_per_token": 3}, {"group": "batch"}]
)
def test_padding_is_never_picked_and_changes_nothing(options: dict[str, object], x: Tensor) -> None:
    layer = make_layer(**options)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 8:] = 0
    plan = plan_of(layer, x, {"attention_mask": mask})
    assert mask.flatten()[plan.token_A].all()
    other = x.clone()
    other[1, 8:] = 100.0
    changed = plan_of(layer, other, {"attention_mask": mask})
    assert torch.equal(plan.token_A, changed.token_A) and torch.equal(plan.weight_A, changed.weight_A)
    if options.get("group") != "batch":
        short = plan_of(layer, x[1:, :8])  # as if there were no padding
        assert set((plan.token_A[plan.token_A >= 12] - 12).tolist()) == set(short.token_A.tolist())


def test_row_of_padding_alone_is_no_error(x: Tensor) -> None:
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0] = 0
    plan = plan_of(make_layer(), x, {"attention_mask": mask})
    assert plan.token_A.min() >= 12
    assert len(plan_of(make_layer(), x, {"attention_mask": 0 * mask}).token_A) == 0


def test_documents_packed_in_a_row_do_not_compete(x: Tensor) -> None:
    layer = make_layer()
    positions = torch.cat([torch.arange(4), torch.arange(8)]).expand(2, 12)
    plan = plan_of(layer, x, {"position_ids": positions})
    first = plan_of(layer, x[:, :4])
    in_first = plan.token_A % 12 < 4
    assert len(plan.token_A) == 2 * 2 * 12
    assert set(zip(plan.token_A[in_first].tolist(), plan.expert_A[in_first].tolist(), strict=True)) == {
        (t // 4 * 12 + t % 4, e) for t, e in zip(first.token_A.tolist(), first.expert_A.tolist(), strict=True)
    }


def test_router_learns_without_an_auxiliary_loss(x: Tensor) -> None:
    layer = make_layer().train()
    assert all(loss.coefficient == 0 for loss in layer.losses)
    layer(x).square().sum().backward()
    assert layer.router.gate.weight.grad.abs().min() > 0


def test_capped_variant_reports_how_well_it_caps() -> None:
    x = torch.randn(1, 128, DIM, dtype=torch.float64)
    free, capped = make_layer(capacity_factor=1.0), make_layer(capacity_factor=1.0, max_experts_per_token=2)
    assert (plan_of(free, x).experts_per_token() > 2).any()
    ctx = ForwardContext().layer(0, (1, 128), False)
    routing = capped.route(x[0], ctx)
    over = (routing.plan.experts_per_token() > 2).double().mean().item()
    assert routing.extras["violation_rate"] == pytest.approx(over)
    assert over < (plan_of(free, x).experts_per_token() > 2).double().mean()
    assert routing.extras["row_error"] < 0.05 and routing.extras["column_excess"] < 0.1
    assert routing.plan.load_N().tolist() == [32.0] * N
    p_TN = capped.router.gate(x[0]).softmax(-1)
    torch.testing.assert_close(routing.plan.weight_A, p_TN[routing.plan.token_A, routing.plan.expert_A])


def test_token_policy_evaluates_causally_with_the_same_gates(x: Tensor) -> None:
    layer = make_layer(eval_policy="token")
    whole = layer(x)
    one_by_one = torch.cat([layer(x[:, t : t + 1]) for t in range(12)], dim=1)
    torch.testing.assert_close(whole, one_by_one)
    assert plan_of(layer, x).experts_per_token().tolist() == [2] * 24
    assert plan_of(layer.train(), x).load_N().tolist() == [12.0] * N  # training groups all the same


def test_interventions_ban_experts_and_force_the_average(x: Tensor) -> None:
    layer = make_layer()
    with context.options(interventions=[BanExperts([2])]):
        assert plan_of(layer, x).load_N().tolist() == [12.0, 12.0, 0.0, 12.0]
    with context.options(interventions=[ForceTopK(1)]):
        assert plan_of(layer, x).load_N().tolist() == [6.0] * N


def test_impossible_options_are_named() -> None:
    with pytest.raises(ConfigError, match="max_experts_per_token=1 must be at least the average"):
        make_layer(max_experts_per_token=1)
    with pytest.raises(ConfigError, match="capacity_factor=9"):
        make_layer(capacity_factor=9.0)
    with pytest.raises(ConfigError, match="'sequence', 'batch'"):
        make_layer(group="rank")
