"""Defining properties of Soft MoE (arXiv 2308.00951)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from libmoe.core import context
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.experts import ModuleExperts
from libmoe.layers.moe import MoELayer
from libmoe.methods import METHODS, create
from soft_plans import plan_of

DIM, N, P = 8, 4, 2


class Constant(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x_RD: Tensor) -> Tensor:
        return self.value.expand_as(x_RD)


def make_layer(experts: list[nn.Module] | None = None, **options: object) -> MoELayer:
    options = {"num_experts": N, "slots_per_expert": P} | options
    layer = create("soft-moe", **options).build_layer(Site(DIM, 16, init_std=0.5))
    if experts is not None:
        layer.experts = ModuleExperts(experts)
    return layer.double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 6, DIM, dtype=torch.float64)


def test_dispatch_sums_to_one_over_tokens_and_combine_over_all_slots(x: Tensor) -> None:
    plan = plan_of(make_layer(), x)
    assert plan.dispatch_GLS.shape == plan.combine_GLS.shape == (2, 6, N * P)
    torch.testing.assert_close(plan.dispatch_GLS.sum(1), torch.ones(2, N * P, dtype=x.dtype))
    torch.testing.assert_close(plan.combine_GLS.sum(2), torch.ones(2, 6, dtype=x.dtype))
    assert plan.dispatch_GLS.min() > 0 and plan.combine_GLS.min() > 0


def test_one_sequence_gives_every_expert_and_slot_a_gradient(x: Tensor) -> None:
    layer = make_layer()
    layer(x[:1]).square().sum().backward()
    assert (layer.experts.w_in.grad.flatten(1).abs().sum(1) > 0).all()
    assert (layer.router.phi.grad.abs().sum(0) > 0).all()
    assert layer.router.scale.grad.abs() > 0


def test_one_identity_expert_with_one_slot_gives_the_mean_token_when_all_tokens_agree_on_it(
    x: Tensor,
) -> None:
    layer = make_layer([nn.Identity()], num_experts=1, slots_per_expert=1)
    with torch.no_grad():
        layer.router.scale.zero_()  # every token mixes in equally
    torch.testing.assert_close(layer(x), x.mean(1, keepdim=True).expand_as(x))


def test_one_identity_expert_with_one_slot_gives_every_token_the_same_mixture(x: Tensor) -> None:
    layer = make_layer([nn.Identity()], num_experts=1, slots_per_expert=1)
    mixture = torch.einsum("gls,gld->gsd", plan_of(layer, x).dispatch_GLS, x)
    torch.testing.assert_close(layer(x), mixture.expand_as(x))


def test_equal_linear_experts_give_the_mixing_matrix_times_the_tokens(x: Tensor) -> None:
    linear = nn.Linear(DIM, DIM, bias=False)
    layer = make_layer([linear] * N)
    plan = plan_of(layer, x)
    mixing = plan.combine_GLS @ plan.dispatch_GLS.transpose(1, 2)
    torch.testing.assert_close(layer(x), mixing @ x @ linear.weight.t())  # x itself, not the unit vectors


def test_constant_experts_give_the_constant(x: Tensor) -> None:
    value = torch.randn(DIM, dtype=torch.float64)
    torch.testing.assert_close(make_layer([Constant(value)] * N)(x), value.expand_as(x))


def test_slots_of_an_expert_are_its_own(x: Tensor) -> None:
    """Experts that return their number: a token gets the combine mass of each expert's slots."""
    layer = make_layer([Constant(torch.full((DIM,), float(e), dtype=torch.float64)) for e in range(N)])
    mass = plan_of(layer, x).combine_GLS.view(2, 6, N, P).sum(3)
    expected = mass @ torch.arange(N, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[..., 0], expected)


def test_permuting_tokens_permutes_outputs(x: Tensor) -> None:
    layer, order = make_layer(), torch.randperm(6)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


def test_other_sequences_change_nothing(x: Tensor) -> None:
    layer = make_layer()
    changed = x.clone()
    changed[1] = 100 * torch.randn(6, DIM, dtype=torch.float64)
    assert torch.equal(layer(x)[0], layer(changed)[0])


def test_scale_of_tokens_and_of_phi_does_not_matter(x: Tensor) -> None:
    layer = make_layer()
    plan = plan_of(layer, x)
    for scaled in (plan_of(layer, 7.0 * x), None):
        if scaled is None:
            with torch.no_grad():
                layer.router.phi.mul_(50.0)
            scaled = plan_of(layer, x)
        torch.testing.assert_close(scaled.dispatch_GLS, plan.dispatch_GLS, rtol=0, atol=1e-5)
        torch.testing.assert_close(scaled.combine_GLS, plan.combine_GLS, rtol=0, atol=1e-5)


def test_without_normalisation_wide_layers_saturate() -> None:
    x = torch.randn(1, 16, 1024, dtype=torch.float64)
    peaks = {}
    for normalise in (True, False):
        layer = create("soft-moe", num_experts=16, slots_per_expert=1, normalise=normalise).build_layer(
            Site(1024, 4)
        )
        layer.double()
        with torch.no_grad():
            layer.router.phi.mul_(10.0)  # as after some training
        peaks[normalise] = plan_of(layer, x).combine_GLS.amax(2).mean().item()
    assert peaks[False] > 0.9 and peaks[True] < 0.1


@pytest.mark.parametrize(("experts", "slots"), [(2, 4), (4, 2), (8, 1)])
def test_expert_rows_depend_on_slots_not_on_experts(experts: int, slots: int, x: Tensor) -> None:
    rows = []
    layer = make_layer(num_experts=experts, slots_per_expert=slots)
    compute = layer.experts.forward_rows
    layer.experts.forward_rows = lambda x_RD, segments: rows.append(len(x_RD)) or compute(x_RD, segments)
    layer(x)
    assert rows == [2 * 8]
    assert sum(layer.router.expected_load()) == pytest.approx(8 / 128)


def test_last_token_changes_the_first_output(x: Tensor) -> None:
    layer = make_layer()
    assert METHODS.info("soft-moe").facts["causal"] is layer.router.causal is False
    changed = x.clone()
    changed[:, -1] += 1.0
    assert (layer(x)[:, 0] - layer(changed)[:, 0]).abs().max() > 1e-6


def test_padding_leaks_into_no_slot(x: Tensor) -> None:
    layer = make_layer()
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with context.use(ForwardContext({"attention_mask": mask})):
        padded = layer(x)
    torch.testing.assert_close(padded[1, :4], layer(x[1:, :4])[0])
    torch.testing.assert_close(padded[0], layer(x)[0])


def test_row_of_padding_alone_gives_no_nan(x: Tensor) -> None:
    layer, mask = make_layer().train(), torch.tensor([[1] * 6, [0] * 6])
    assert torch.equal(plan_of(layer, x, mask).dispatch_GLS[1], torch.zeros(6, N * P, dtype=x.dtype))
    x.requires_grad_()
    with context.use(ForwardContext({"attention_mask": mask})):
        y = layer(x)
    y[0].sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_any_length_is_processed_with_the_same_parameters() -> None:
    layer = make_layer()
    for length in (1, 3, 50):
        assert layer(torch.randn(2, length, DIM, dtype=torch.float64)).shape == (2, length, DIM)


def test_slots_are_counted_out_by_length_and_capacity() -> None:
    def slots(**options: object) -> int:
        return create("soft-moe", num_experts=8, **options).slots

    assert slots() == 16  # 8 x 16 = 128 slots for the default 128 tokens
    assert slots(seq_len=64) == 8
    assert slots(seq_len=64, capacity_factor=0.5) == 4
    assert slots(seq_len=64, top_k=2) == 16
    assert slots(seq_len=4) == 1
    assert slots(seq_len=64, slots_per_expert=3) == 3
    assert sum(create("soft-moe").build_layer(Site(DIM, 16)).router.expected_load()) == pytest.approx(1.0)


def test_load_is_the_mass_of_real_tokens(x: Tensor) -> None:
    layer, statistics = make_layer(), StepStatistics()
    with context.options(statistics=statistics):
        with context.use(ForwardContext({"attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])})):
            layer(x)
    assert statistics.seen[0].count_N.sum().item() == pytest.approx(10)


def test_balance_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"balance=0\.01"):
        create("soft-moe", balance=0.01)
