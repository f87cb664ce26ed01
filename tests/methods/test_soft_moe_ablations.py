"""Ablations of Soft MoE (arXiv 2308.00951): identity and uniform mixing, on one side or both; noise; counting slots."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from libmoe.core import context
from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.experts import ModuleExperts
from libmoe.layers.moe import MoELayer
from libmoe.methods import create
from libmoe.testing import check_method, check_router
from soft_plans import plan_of

DIM, L, N, P = 8, 5, 3, 2
ABLATIONS = [("uniform", "uniform"), ("uniform", "soft"), ("soft", "uniform")]


def make_layer(dispatch: Any = "soft", combine: Any = "soft", **options: Any) -> MoELayer:
    given = {"num_experts": N, "slots_per_expert": P, "dispatch": dispatch, "combine": combine} | options
    return create("soft-moe", given).build_layer(Site(DIM, 16, init_std=0.5)).double().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, L, DIM, dtype=torch.float64)


def test_identity_routing_gives_token_i_to_the_expert_of_slot_i(x: Tensor) -> None:
    layer = make_layer("identity", "identity")
    experts = [layer.experts.materialise(t // P) for t in range(L)]
    expected = torch.stack([experts[t](x[:, t]) for t in range(L)], dim=1)
    torch.testing.assert_close(layer(x), expected)


def test_uniform_mixing_on_both_sides_gives_every_token_the_mean_of_what_experts_make_of_the_mean(
    x: Tensor,
) -> None:
    layer = make_layer("uniform", "uniform")
    mean = x.mean(1, keepdim=True)
    expected = sum(layer.experts.materialise(e)(mean) for e in range(N)) / N
    torch.testing.assert_close(layer(x), expected.expand_as(x))


def test_soft_combine_of_uniform_slots_weighs_experts_of_the_mean_by_token(x: Tensor) -> None:
    layer, soft = make_layer("uniform", "soft"), make_layer()
    soft.load_state_dict(layer.state_dict())
    combine_GLN = plan_of(soft, x).combine_GLS.view(2, L, N, P).sum(3)
    mean = x.mean(1, keepdim=True)
    y_GND = torch.cat([layer.experts.materialise(e)(mean) for e in range(N)], dim=1)
    torch.testing.assert_close(layer(x), combine_GLN @ y_GND)


def test_uniform_combine_of_soft_slots_gives_every_token_the_mean_of_all_slots(x: Tensor) -> None:
    layer, soft = make_layer("soft", "uniform"), make_layer()
    soft.load_state_dict(layer.state_dict())
    slot_GSD = plan_of(soft, x).dispatch_GLS.mT @ x
    y_GSD = torch.cat(
        [layer.experts.materialise(e)(slot_GSD[:, P * e : P * (e + 1)]) for e in range(N)], dim=1
    )
    torch.testing.assert_close(layer(x), y_GSD.mean(1, keepdim=True).expand_as(x))


def test_only_soft_sides_teach_the_router(x: Tensor) -> None:
    for dispatch, combine in (
        ("uniform", "soft"),
        ("soft", "uniform"),
        ("soft", "soft"),
        ("identity", "soft"),
    ):
        layer = make_layer(dispatch, combine)
        layer(x).square().sum().backward()
        assert layer.router.phi.grad.abs().max() > 0 and layer.router.scale.grad.abs() > 0
    for dispatch, combine in (("uniform", "uniform"), ("identity", "identity"), ("identity", "uniform")):
        layer = make_layer(dispatch, combine)
        assert not list(layer.router.parameters()) and layer.experts.w_in.requires_grad


@pytest.mark.parametrize(("dispatch", "combine"), [*ABLATIONS, ("identity", "identity")])
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(dispatch: str, combine: str, left: bool, x: Tensor) -> None:
    layer, mask = make_layer(dispatch, combine), torch.ones(2, L, dtype=torch.long)
    real = slice(2, None) if left else slice(None, 4)
    mask[1] = 0
    mask[1, real] = 1
    with context.use(ForwardContext({"attention_mask": mask})):
        padded = layer(x)
    torch.testing.assert_close(padded[1, real], layer(x[1:, real])[0])
    torch.testing.assert_close(padded[0], layer(x)[0])
    assert not plan_of(layer, x, 0 * mask).dispatch_GLS.any()


def test_slots_beyond_the_last_token_are_empty_and_more_tokens_than_slots_are_refused(x: Tensor) -> None:
    layer = make_layer("identity", "identity")
    plan = plan_of(layer, x[:, :4])
    assert torch.equal(plan.dispatch_GLS, torch.eye(4, N * P, dtype=x.dtype).expand(2, 4, N * P))
    assert torch.equal(plan.combine_GLS, plan.dispatch_GLS)
    with pytest.raises(ConfigError, match="6 slots for 7 tokens; raise slots_per_expert"):
        layer(torch.zeros(1, 7, DIM, dtype=torch.float64))


def test_identity_routing_alone_sees_no_later_tokens(x: Tensor) -> None:
    changed = x.clone()
    changed[:, -1] += 1.0
    for dispatch, combine in [*ABLATIONS, ("identity", "identity"), ("identity", "soft")]:
        layer = make_layer(dispatch, combine)
        same = torch.allclose(layer(x)[:, :-1], layer(changed)[:, :-1])
        assert same == layer.router.causal == (dispatch == combine == "identity")


def test_identity_experts_tell_the_ablations_apart(x: Tensor) -> None:
    """Doing nothing in the experts leaves tokens as they are, or their mean."""
    for kind, expected in (("identity", x), ("uniform", x.mean(1, keepdim=True).expand_as(x))):
        layer = make_layer(kind, kind)
        layer.experts = ModuleExperts([nn.Identity()] * N)
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("dispatch", "combine"), ABLATIONS)
def test_the_contract_holds(dispatch: str, combine: str) -> None:
    check_method("soft-moe", {"dispatch": dispatch, "combine": combine, "noise_std": 0.1})


def test_identity_routing_is_audited_as_causal() -> None:
    options = {"dispatch": "identity", "combine": "identity"}
    check_router(create("soft-moe", options).build_layer(Site(16, 8)).router)


def test_noise_is_on_the_logits_while_training_and_of_the_size_given() -> None:
    layer, quiet = make_layer(noise_std=0.5, num_experts=40), make_layer(num_experts=40)
    quiet.load_state_dict(layer.state_dict())
    x_TD = torch.randn(200, DIM, dtype=torch.float64)

    def logits(layer: MoELayer, training: bool) -> Tensor:
        ctx = ForwardContext().layer(0, (1, 200), training)
        return layer.train(training).router(x_TD, ctx).logits_TN

    noise_TS = (logits(layer, True) - logits(quiet, True)).detach()
    assert float(noise_TS.std()) == pytest.approx(0.5, rel=0.03) and abs(float(noise_TS.mean())) < 0.02
    assert torch.equal(logits(layer, False), logits(quiet, False))


def test_slots_are_given_or_counted_by_capacity_and_not_both() -> None:
    assert create("soft-moe", num_experts=8, seq_len=64, capacity_factor=2.0).slots == 16
    assert create("soft-moe", num_experts=8, seq_len=64, slots_per_expert=3).slots == 3
    with pytest.raises(ConfigError, match=r"capacity_factor=2\.0 and slots_per_expert=3"):
        create("soft-moe", num_experts=8, capacity_factor=2.0, slots_per_expert=3)
    with pytest.raises(ConfigError, match=r"noise_std=-1\.0"):
        create("soft-moe", noise_std=-1.0)
    with pytest.raises(ConfigError, match="'identity'"):
        make_layer("identty")
