"""StableMoE (arXiv 2204.08396): two stages of routing, and what neither may do."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import libmoe
from driven import TinyLM, chain, drive
from libmoe.analysis.metrics.change import first_changed
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts.sublayers import SublayerExperts
from libmoe.layers import MoELayer
from libmoe.losses.distillation import RouterDistillationLoss
from libmoe.losses.overload import OverloadLoss
from libmoe.methods.stable_moe import settle
from libmoe.models.accounting import account
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.testing import check_loss, check_method

N, D, V = 4, 16, 30


def build(training: bool = True, settled: bool = False, **given: Any) -> MoELayer:
    layer = libmoe.create("stable-moe", num_experts=N, **given).build_layer(
        Site(D, 24, seed=0, init_std=0.2, vocab_size=V)
    )
    if settled:
        settle(layer)
    nn.init.normal_(layer.router.gate.weight)
    return layer.double().train(training)


def context(ids_BL: Tensor) -> ForwardContext:
    return ForwardContext({"input_ids": ids_BL})


def route(layer: MoELayer, x_TD: Tensor, ids_T: Tensor) -> Routing:
    return layer.route(x_TD, context(ids_T[None]).layer(0, (1, len(ids_T)), layer.training))


def table(ids_T: Tensor, expert_T: Tensor) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for token, expert in zip(ids_T.tolist(), expert_T.tolist(), strict=True):
        found.setdefault(token, set()).add(expert)
    return found


# -- stage 2 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_in_stage_2_the_expert_is_a_function_of_the_token_id_alone(training: bool) -> None:
    layer = build(training, settled=True)
    ids_T = torch.randint(V, (300,))
    plan = route(layer, torch.randn(300, D).double(), ids_T).plan
    again = route(layer, torch.randn(300, D).double(), ids_T.flip(0)).plan
    found = table(ids_T, plan.expert_A)
    assert all(len(experts) == 1 for experts in found.values())
    assert found == table(ids_T.flip(0), again.expert_A)
    assert len({e for experts in found.values() for e in experts}) > 1
    layer.router.settled.fill_(False)
    before = route(layer.train(), torch.randn(300, D).double(), ids_T).plan
    assert any(len(experts) > 1 for experts in table(ids_T, before.expert_A).values()), "stage 1 looks at the token"


def test_weights_in_stage_2_are_still_the_sigmoid_of_the_affinity() -> None:
    layer, x_TD, ids_T = build(settled=True), torch.randn(50, D).double(), torch.randint(V, (50,))
    plan = route(layer, x_TD, ids_T).plan
    affinity_TN = x_TD @ layer.router.gate.weight.T
    torch.testing.assert_close(plan.weight_A, affinity_TN[torch.arange(50), plan.expert_A].sigmoid())
    assert (plan.expert_A != affinity_TN.argmax(1)).any()


def test_after_the_switch_the_token_gate_has_no_gradient_and_centroids_and_experts_have() -> None:
    ids_BL = torch.randint(V, (2, 20))
    gradients = {}
    for settled in (False, True):
        layer = build(settled=settled, zero_init=False)
        with libmoe.core.context.use(context(ids_BL)):
            layer(torch.randn(2, 20, D).double()).square().sum().backward()
        gradients[settled] = {name: p.grad for name, p in layer.named_parameters()}
    student = [name for name in gradients[True] if name.startswith("router.student.")]
    assert len(student) == 2
    assert all(gradients[True][name] is None for name in student)
    assert all(gradients[False][name].abs().sum() > 0 for name in student)
    for name in ("router.gate.weight", "experts.w_in", "experts.w_out"):
        assert gradients[True][name].abs().sum() > 0


def test_no_loss_reaches_the_gate_in_stage_2() -> None:
    layer, x_TD, ids_T = build(settled=True, capacity_factor=None), torch.randn(40, D).double(), torch.randint(V, (40,))
    ctx = context(ids_T[None]).layer(0, (1, 40), True)
    routing = layer.router.route(x_TD, ctx)
    for loss in layer.losses[:2]:
        numerator, _ = loss.compute(routing, ctx)
        assert not numerator.requires_grad
    assert float(layer.losses[1].compute(routing, ctx)[0]) == 0


def test_routes_never_move_again_after_a_tenth_of_training_and_those_of_switch_do() -> None:
    """The last step at which a token's expert changed, of the same tokens in the same model."""
    steps, last = 60, {}
    probe = chain(40, 8, 16, seed=99)
    for name in ("stable-moe", "switch"):
        torch.manual_seed(0)
        model = TinyLM(name, num_experts=N, capacity_factor=None)
        seen: list[np.ndarray] = []

        def look(info: Any, model: TinyLM = model, seen: list[np.ndarray] = seen) -> None:
            chosen: list[Tensor] = []
            with torch.no_grad(), options(recorders=[lambda ctx, routing: chosen.append(routing.plan.expert_A)]):
                model(probe)  # in training mode, as tokens are routed while training
            seen.append(chosen[0].numpy()[:, None])

        drive(model, model.method, lambda step, model=model: model.loss(chain(40, 8, 16, seed=step)), steps, each=look)
        changes = [first_changed(before, after).mean() for before, after in pairwise(seen)]
        last[name] = max((step + 2 for step, share in enumerate(changes) if share), default=0)
    assert last["stable-moe"] <= steps // 10 + 1
    assert last["switch"] > steps // 2


def test_the_stage_is_saved_with_the_model_and_a_further_run_goes_on_in_it() -> None:
    layer = build(settled=True)
    other = build()
    other.load_state_dict(layer.state_dict())
    assert bool(other.router.settled)
    assert settle(build()) == 1
    with pytest.raises(ConfigError, match="has no DistilledRouter; put the method 'stable-moe'"):
        settle(nn.Linear(2, 2))


@pytest.mark.parametrize(("after", "switch"), [(0.0, 0), (0.1, 2), (0.5, 8), (1.0, None)])
def test_stage_2_begins_where_it_is_asked_to(after: float, switch: int | None) -> None:
    model = TinyLM("stable-moe", num_experts=N, settle_after=after)
    stages: list[float] = []
    steps = 15 if after != 0.1 else 20
    drive(
        model,
        model.method,
        lambda step: model.loss(chain(40, 2, 4, seed=step)),
        steps,
        each=lambda info: stages.append(info.metrics["settle/settled"]),
    )
    assert stages == [float(switch is not None and step >= switch) for step in range(steps)]


# -- stage 1 ----------------------------------------------------------------------------------------------


def test_stage_1_takes_the_expert_of_highest_affinity() -> None:
    layer, x_TD, ids_T = build(), torch.randn(50, D).double(), torch.randint(V, (50,))
    assert torch.equal(route(layer, x_TD, ids_T).plan.expert_A, (x_TD @ layer.router.gate.weight.T).argmax(1))


def test_who_chooses_in_evaluation_of_stage_1_is_an_option() -> None:
    x_TD, ids_T = torch.randn(200, D).double(), torch.randint(V, (200,))
    released, current = build(False), build(False, evaluate_with="current")
    assert all(len(experts) == 1 for experts in table(ids_T, route(released, x_TD, ids_T).plan.expert_A).values())
    assert torch.equal(route(current, x_TD, ids_T).plan.expert_A, (x_TD @ current.router.gate.weight.T).argmax(1))


def test_a_new_layer_is_exactly_the_identity_with_its_residual() -> None:
    x, ids = torch.randn(2, 9, D).double(), torch.randint(V, (2, 9))
    for sublayers in (1, 3):
        for zero_init in (True, False):
            layer = build(sublayers=sublayers, zero_init=zero_init)
            with libmoe.core.context.use(context(ids)):
                assert torch.equal(x + layer(x), x) == zero_init


def test_an_expert_of_three_sublayers_is_mixed_with_what_it_read() -> None:
    """``a S(x) + (1 - a) x`` for the stack S of pre-norm FFNs, by hand."""
    layer = build(sublayers=3, zero_init=False, capacity_factor=None)
    assert isinstance(layer.experts, SublayerExperts)
    x_TD, ids_T = torch.randn(20, D).double(), torch.randint(V, (20,))
    routing = route(layer, x_TD, ids_T)
    for x_D, y_D, expert, a in zip(
        x_TD, x_TD + layer.execute(x_TD, routing), routing.plan.expert_A, routing.plan.weight_A, strict=True
    ):
        h_D = x_D
        for part in layer.experts.sublayers:
            normed_D = (h_D - h_D.mean()) / (h_D.var(unbiased=False) + 1e-5).sqrt()
            gate, up = (part.w_in[expert] @ normed_D).chunk(2)
            h_D = h_D + part.w_out[expert] @ (torch.nn.functional.silu(gate) * up)
        torch.testing.assert_close(y_D, a * h_D + (1 - a) * x_D)


def test_tokens_beyond_capacity_come_out_exactly_as_they_went_in() -> None:
    for settled in (False, True):
        layer = build(settled=settled, zero_init=False, capacity_factor=0.5)
        x_TD, ids_T = torch.randn(40, D).double(), torch.randint(V, (40,))
        routing = route(layer, x_TD, ids_T)
        y_TD, kept_T = x_TD + layer.execute(x_TD, routing), routing.plan.kept_A
        assert 0 < int(kept_T.sum()) < 40
        assert torch.equal(y_TD[~kept_T], x_TD[~kept_T])
        assert (y_TD[kept_T] != x_TD[kept_T]).any(1).all()


# -- losses -----------------------------------------------------------------------------------------------


def overload(expert_T: Tensor, scores_TN: Tensor) -> Tensor:
    plan = SparsePlan.from_topk(expert_T[:, None], torch.ones(len(expert_T), 1).double(), scores_TN.shape[1])
    ctx = ForwardContext().layer(0, (1, len(expert_T)), True)
    numerator, tokens = OverloadLoss(1.0, "micro_batch").compute(Routing(plan, None, scores_TN), ctx)
    return numerator / tokens


def test_equal_loads_cost_nothing_and_gradients_have_the_sign_of_the_excess() -> None:
    scores_TN = torch.rand(8, N, dtype=torch.double, requires_grad=True)
    assert overload(torch.arange(N).repeat(2), scores_TN).item() == pytest.approx(0, abs=1e-12)
    expert_T = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    overload(expert_T, scores_TN).backward()
    chosen_T = scores_TN.grad[torch.arange(8), expert_T]
    excess_T = torch.tensor([1.0] * 4 + [0.0] * 2 + [-0.5] * 2).double() / 8  # (n - 2) / 2 per token
    torch.testing.assert_close(chosen_T, excess_T)
    assert float(scores_TN.grad.abs().sum()) == pytest.approx(float(excess_T.abs().sum())), "other scores are left"


def test_the_balance_loss_is_that_of_the_paper_divided_by_the_tokens() -> None:
    layer, x_TD, ids_T = build(), torch.randn(30, D).double(), torch.randint(V, (30,))
    ctx = context(ids_T[None]).layer(0, (1, 30), True)
    numerator, tokens = layer.losses[0].compute(layer.router.route(x_TD, ctx), ctx)
    gate_TN = (x_TD @ layer.router.gate.weight.T).sigmoid()
    choice_T, mean = gate_TN.argmax(1), 30 / N
    paper = sum(
        ((choice_T == i).sum() - mean) / mean * gate_TN[choice_T == i, i].sum() for i in range(N)
    )
    torch.testing.assert_close(numerator, paper)
    assert float(tokens) == 30 and layer.losses[0].coefficient == layer.losses[1].coefficient == 0.3


def test_distillation_teaches_the_token_gate_and_nobody_else() -> None:
    layer, ids_T = build(), torch.randint(V, (30,))
    x_TD = torch.randn(30, D, dtype=torch.double, requires_grad=True)
    ctx = context(ids_T[None]).layer(0, (1, 30), True)
    routing = layer.router.route(x_TD, ctx)
    numerator, tokens = layer.losses[1].compute(routing, ctx)
    (numerator / tokens).backward()
    assert x_TD.grad is None and layer.router.gate.weight.grad is None
    student = layer.router.student
    logits_TN = student.table.weight[ids_T] @ student.centroids.T
    expected = torch.nn.functional.cross_entropy(logits_TN, routing.plan.expert_A)
    torch.testing.assert_close(numerator / tokens, expected)
    expected_grad = torch.autograd.grad(expected, student.centroids)[0]
    torch.testing.assert_close(student.centroids.grad, expected_grad)


@pytest.mark.parametrize("scope", ["sequence", "micro_batch", "rank"])
def test_the_losses_keep_the_contract(scope: str) -> None:
    router = build(capacity_factor=None).router
    check_loss(OverloadLoss(0.3, scope), at_balance=0.0)
    check_loss(RouterDistillationLoss(0.3), router.route)


def test_deep_experts_and_several_choices_keep_the_contract() -> None:
    check_method("stable-moe", {"sublayers": 3, "top_k": 2, "evaluate_with": "current"})


# -- its place --------------------------------------------------------------------------------------------


def test_a_model_tells_the_size_of_its_vocabulary_and_a_layer_alone_must_be_told() -> None:
    config = BackboneConfig("llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, vocab_size=77)
    model = libmoe.moeify(build_backbone(config), "stable-moe", seed=0)
    tables = [m.student.table.num_embeddings for m in model.modules() if hasattr(m, "student")]
    assert tables == [77, 77]
    with pytest.raises(ConfigError, match="set vocab_size"):
        libmoe.create("stable-moe").build_layer(Site(D, 24))
    with pytest.raises(ConfigError, match="token id 30 is not among the 30"):
        route(build(), torch.randn(1, D).double(), torch.tensor([30]))


def test_the_table_is_looked_up_and_costs_no_products() -> None:
    config = BackboneConfig("llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, vocab_size=500)
    thin, wide = (
        account(libmoe.moeify(build_backbone(config), "stable-moe", options={"token_dim": width}, seed=0))
        for width in (1, 21)
    )
    assert wide.router_params - thin.router_params == 2 * 20 * (500 + 8)
    assert wide.flops_per_token - thin.flops_per_token == 2 * 2 * 20 * 8
    assert wide.active_params - thin.active_params == 2 * 20 * (1 + 8), "a token uses one row"
