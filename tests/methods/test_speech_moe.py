"""Defining properties of SpeechMoE (arXiv 2105.03036): the shared embedding and the two losses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from libmoe.controllers import AnnealToMinimum, StepInfo
from libmoe.core.context import ForwardContext, install, options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.layers import MoELayer
from libmoe.losses import Loss, MeanImportanceLoss, SparsityLoss
from libmoe.methods import create
from libmoe.routers import share_embedding
from libmoe.testing import check_loss
from two_ranks import in_two_ranks

N, DIM, E, T = 4, 12, 3, 30
SCOPES = ("sequence", "micro_batch", "global_batch")


def routing(p_TN: Tensor) -> Routing:
    best_T1 = p_TN.detach().argmax(1, keepdim=True)
    return Routing(SparsePlan.from_topk(best_T1, p_TN.gather(1, best_T1), p_TN.shape[1]), None, p_TN)


def value(loss: Loss, p_TN: Tensor, **inputs: Tensor) -> Tensor:
    numerator, denominator = loss.compute(routing(p_TN), ForwardContext(inputs).layer(0, (1, len(p_TN)), True))
    return numerator / denominator


SPARSITY, IMPORTANCE = SparsityLoss(1.0), MeanImportanceLoss(1.0, "micro_batch")


def test_both_losses_lie_between_their_bounds() -> None:
    one_TN = torch.eye(N, dtype=torch.float64)[torch.arange(T) % N]
    even_TN = torch.full((T, N), 1 / N, dtype=torch.float64)
    assert value(SPARSITY, one_TN).item() == pytest.approx(1.0)
    assert value(SPARSITY, even_TN).item() == pytest.approx(math.sqrt(N))
    assert value(IMPORTANCE, even_TN).item() == pytest.approx(1.0)
    assert value(IMPORTANCE, torch.eye(N).double()[torch.zeros(T).long()]).item() == pytest.approx(N)
    for heat in (0.1, 1.0, 10.0):
        p_TN = (heat * torch.randn(T, N, dtype=torch.float64)).softmax(1)
        assert 1 <= value(SPARSITY, p_TN) <= math.sqrt(N) and 1 <= value(IMPORTANCE, p_TN) <= N
        torch.testing.assert_close(value(SPARSITY, p_TN), (p_TN.sum(1) / p_TN.square().sum(1).sqrt()).mean())
        torch.testing.assert_close(value(IMPORTANCE, p_TN), N * p_TN.mean(0).square().sum())


def test_sparsity_ignores_the_scale_and_importance_the_order() -> None:
    p_TN = torch.randn(T, N, dtype=torch.float64).softmax(1)
    torch.testing.assert_close(value(SPARSITY, 7 * p_TN), value(SPARSITY, p_TN))
    for other_TN in (p_TN[torch.randperm(T)], p_TN[:, torch.randperm(N)]):
        torch.testing.assert_close(value(IMPORTANCE, other_TN), value(IMPORTANCE, p_TN))


def test_sure_tokens_spread_evenly_are_best_for_both_and_undecided_ones_for_one() -> None:
    one_TN = torch.eye(N, dtype=torch.float64).repeat(5, 1)
    even_TN = torch.full((T, N), 1 / N, dtype=torch.float64)
    assert (value(SPARSITY, one_TN) + value(IMPORTANCE, one_TN)).item() == pytest.approx(2.0)
    assert (value(SPARSITY, even_TN) + value(IMPORTANCE, even_TN)).item() == pytest.approx(math.sqrt(N) + 1)


@pytest.mark.parametrize("scope", SCOPES)
def test_importance_has_the_gradient_of_the_square(scope: Any) -> None:
    logits_TN = torch.randn(T, N, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(value(MeanImportanceLoss(1.0, scope), logits_TN.softmax(1)), logits_TN)[0]
    plain = torch.autograd.grad(N * logits_TN.softmax(1).mean(0).square().sum(), logits_TN)[0]
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("scope", SCOPES)
def test_losses_keep_the_contract_of_losses(scope: Any) -> None:
    check_loss(SparsityLoss(0.1), at_balance=2.0)
    check_loss(MeanImportanceLoss(0.1, scope), at_balance=1.0)


# -- the shared embedding --------------------------------------------------------------------------------


class Model(nn.Module):
    """Three residual layers; ``acoustic`` makes the embedding where the routers do not."""

    def __init__(self, acoustic: bool = False, **more: Any) -> None:
        super().__init__()
        chosen = {"num_experts": N, "expert_hidden": 8, "embedding_dim": E, **more}
        self.method = create("speech-moe", chosen)
        self.layers = nn.ModuleList(
            self.method.build_layer(Site(DIM, 8, index=i, count=3, init_std=0.5, seed=3)) for i in range(3)
        )
        for layer in self.layers:
            layer.router.gate.weight.data.mul_(30)
        self.acoustic = nn.Linear(DIM, E) if acoustic else None
        install(self)
        self.double().train()

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if self.acoustic is not None:
            share_embedding(self.acoustic(inputs_embeds))
        x = inputs_embeds
        for layer in self.layers:
            x = x + layer(x)
        return x


def plans(model: Model, x: Tensor, **inputs: Tensor) -> list[SparsePlan]:
    found: list[SparsePlan] = []
    with options(recorders=[lambda _, r: found.append(r.plan)]):
        model(x, **inputs)
    return found


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, T, DIM, dtype=torch.float64)


def test_without_the_embeddings_part_a_router_is_layer_local_top_1(x: Tensor) -> None:
    model, local = Model(), Model(embedding="none")
    with torch.no_grad():
        for ours, theirs in zip(model.layers, local.layers, strict=True):
            ours.router.gate.weight[:, :E] = 0
            theirs.router.gate.weight.copy_(ours.router.gate.weight[:, E:])
            theirs.experts.load_state_dict(ours.experts.state_dict())
    torch.testing.assert_close(model(x), local(x))
    plan, p_TN = plans(model, x)[0], (x.flatten(0, 1) @ local.layers[0].router.gate.weight.T).softmax(1)
    assert torch.equal(plan.expert_A, p_TN.argmax(1))
    torch.testing.assert_close(plan.weight_A, p_TN.amax(1))  # not renormalised


def test_routers_that_read_the_embedding_alone_agree_in_all_layers(x: Tensor) -> None:
    for model in (Model(), Model(acoustic=True, embedding="given")):
        with torch.no_grad():
            for layer in model.layers:
                layer.router.gate.weight[:, E:] = 0
                layer.router.gate.weight[:, :E] = model.layers[1].router.gate.weight[:, :E]
        first, *others = plans(model, x)
        assert len(first.expert_A.unique()) > 1
        for plan in others:
            assert torch.equal(plan.expert_A, first.expert_A)
            torch.testing.assert_close(plan.weight_A, first.weight_A)


@pytest.mark.parametrize("acoustic", [True, False])
def test_the_main_loss_and_both_losses_train_what_makes_the_embedding_unless_detached(
    x: Tensor, acoustic: bool
) -> None:
    for detach in (False, True):
        for losses in ({"sparsity": 0.0, "balance": 0.0}, {"sparsity": 0.1, "balance": 0.0},
                       {"sparsity": 0.0, "balance": 0.1}):  # fmt: skip
            kind = "given" if acoustic else "own"
            model = Model(acoustic=acoustic, embedding=kind, detach_embedding=detach, **losses)
            main = (model(x) ** 2).sum() if not any(losses.values()) else 0 * model(x).sum()
            main.backward()
            maker = model.acoustic if acoustic else model.layers[0].router.network
            moved = [p.grad is not None and bool(p.grad.abs().max() > 0) for p in maker.parameters()]
            assert moved == [not detach] * 2


def test_the_network_of_the_first_layer_runs_once_for_all_layers(x: Tensor) -> None:
    model = Model()
    calls: list[int] = []
    model.layers[0].router.network.register_forward_hook(lambda *_: calls.append(1))
    assert [layer.router.network is not None for layer in model.layers] == [True, False, False]
    model(x)
    assert len(calls) == 1


def auxiliary(model: Model, x: Tensor, **inputs: Tensor) -> dict[tuple[int, str], float]:
    statistics = StepStatistics()
    with options(statistics=statistics):
        model(x, **inputs)
    return statistics.mean_losses()


@pytest.mark.parametrize("scope", SCOPES)
def test_padding_changes_no_loss_and_no_output(x: Tensor, scope: str) -> None:
    model = Model(balance_scope=scope)
    padded = torch.cat([x, 5 * torch.randn(2, 7, DIM, dtype=torch.float64)], dim=1)
    mask = torch.cat([torch.ones(2, T), torch.zeros(2, 7)], dim=1).long()
    torch.testing.assert_close(model(padded, attention_mask=mask)[:, :T], model(x))
    found = auxiliary(model, padded, attention_mask=mask)
    assert found.keys() == {(i, name) for i in range(3) for name in ("sparsity", "mean_importance")}
    assert found == pytest.approx(auxiliary(model, x))


def test_a_missing_or_wrong_embedding_is_one_line(x: Tensor) -> None:
    with pytest.raises(ConfigError, match="MoE layer 0 finds no shared embedding"):
        Model(embedding="given")(x)
    model = Model(acoustic=True, embedding="given")
    model.acoustic = nn.Linear(DIM, E + 1).double()
    with pytest.raises(ConfigError, match=r"shape \(2, 30, 4\); expected \(2, 30, 3\)"):
        model(x)
    with pytest.raises(ConfigError, match="none is running"):
        share_embedding(x)
    with pytest.raises(ConfigError, match="scope 'rank' is not counted"):
        Model(balance_scope="rank")
    with pytest.raises(ConfigError, match="did you mean 'given'"):
        create("speech-moe", embedding="givn")


def test_gates_of_the_published_initialisation_lie_within_their_bound() -> None:
    layer: MoELayer = create("speech-moe", num_experts=8, gate_init="xavier").build_layer(Site(64, 64))
    bound = 0.5 * math.sqrt(6 / (8 + 64 + 16))
    weight = layer.router.gate.weight
    assert weight.shape == (8, 80) and bound * 0.95 < weight.abs().max() <= bound


# -- several processes, and coefficients -----------------------------------------------------------------


def half(rank: int, folder: Path, p_TN: Tensor) -> None:
    """Loss and gradient of one process's half, as DDP would average them."""
    mine = slice(0, 11) if rank == 0 else slice(11, T)  # unequal parts
    leaf_TN = p_TN[mine].clone().requires_grad_()
    ctx = ForwardContext().layer(0, (1, len(leaf_TN)), True)
    numerator, denominator = MeanImportanceLoss(1.0).compute(routing(leaf_TN), ctx)
    parts = torch.stack([numerator.detach(), denominator])
    dist.all_reduce(parts)
    (2 * numerator / T).backward()  # the step's tokens, by the number of processes that are averaged
    found = {"value": float(parts[0] / parts[1]), "gradient": (leaf_TN.grad / 2).tolist()}
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.distributed
def test_two_processes_have_the_importance_and_the_gradient_of_one(tmp_path: Path) -> None:
    p_TN = (2 * torch.randn(T, N, dtype=torch.float64)).softmax(1)
    in_two_ranks(half, tmp_path, p_TN)
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    leaf_TN = p_TN.clone().requires_grad_()
    alone = value(MeanImportanceLoss(1.0), leaf_TN)
    alone.backward()
    assert [r["value"] for r in results] == pytest.approx([alone.item()] * 2)
    gradient = torch.tensor(results[0]["gradient"] + results[1]["gradient"], dtype=torch.float64)
    torch.testing.assert_close(gradient, leaf_TN.grad)


def test_the_coefficient_vanishes_at_the_minimum_and_is_whole_a_third_above() -> None:
    controller = AnnealToMinimum({"sparsity": 0.15})
    for metric, expected in ((3.0, 0.0), (3.5, 0.075), (4.0, 0.15), (6.0, 0.15), (2.9999, 0.0)):
        assert controller.scale("sparsity", metric, 3) == pytest.approx(expected)


def test_annealed_coefficients_follow_the_losses_of_a_step(x: Tensor) -> None:
    model = Model(anneal=True, sparsity=0.15, balance=0.12)
    [controller] = model.method.build_controllers()
    info = StepInfo(model)
    controller.start(info)
    with options(statistics=info.statistics):
        model(x)
    means = info.statistics.mean_losses()
    controller.after_step(info)
    for name, largest in (("sparsity", 0.15), ("mean_importance", 0.12)):
        total = sum(v for (_, other), v in means.items() if other == name)
        expected = largest * min(3 * (total - 3) / 3, 1)
        assert info.metrics[f"anneal/{name}"] == pytest.approx(expected)
        losses = [loss for layer in model.layers for loss in layer.losses if loss.name == name]
        assert [loss.coefficient for loss in losses] == pytest.approx([expected] * 3)
    # At the ideal value the losses are worth nothing, and are measured all the same.
    ideal = StepInfo(model)
    for index in range(3):
        ideal.statistics.add_loss(index, "sparsity", torch.tensor(5.0), torch.tensor(5.0))
    controller.after_step(ideal)
    assert ideal.metrics["anneal/sparsity"] == 0
    assert (0, "sparsity") in auxiliary(model, x)
    other = AnnealToMinimum({"sparsity": 0.15, "mean_importance": 0.12})
    other.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert other.coefficients == controller.coefficients
