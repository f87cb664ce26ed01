"""The balance loss over the global batch (Demons in the Detail, arXiv 2501.11873)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import libmoe
from libmoe.core import statistics as step_statistics
from libmoe.core.context import ForwardContext, Options, options
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.layers import MoELayer
from libmoe.losses import BalanceLoss
from two_ranks import in_two_ranks

N, K, D = 4, 2, 8


def build() -> MoELayer:
    return libmoe.create("smoe", num_experts=N, top_k=K).build_layer(Site(D, 12, seed=0)).double()


def sharp() -> MoELayer:
    """Top-1 layer whose logits are its input."""
    layer = libmoe.create("smoe", num_experts=N, top_k=1).build_layer(Site(N, 12)).double()
    layer.router.gate = torch.nn.Identity()
    return layer


def value(layer: MoELayer, x: torch.Tensor, scope: str, statistics: StepStatistics | None = None) -> torch.Tensor:
    ctx = ForwardContext(opts=Options(statistics=statistics)).layer(0, tuple(x.shape[:-1]), True)
    routing = layer.route(x.flatten(0, -2), ctx)
    numerator, denominator = BalanceLoss(1.0, scope).compute(routing, ctx)
    return numerator / denominator


def counted(layer: MoELayer, batches: list[torch.Tensor]) -> StepStatistics:
    """Statistics after a pass that only counts."""
    statistics = StepStatistics()
    statistics.begin_counting()
    for x in batches:
        ctx = ForwardContext(opts=Options(statistics=statistics)).layer(0, tuple(x.shape[:-1]), True)
        layer.route(x.flatten(0, -2), ctx)
    statistics.end_counting()
    return statistics


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 5, D, generator=generator, dtype=torch.double) + i for i in range(count)]


def rank_main(rank: int, folder: Path, same_data: bool) -> None:
    sent = []
    all_reduce = dist.all_reduce
    step_statistics.dist.all_reduce = lambda t, *a, **k: (sent.append(t.numel()), all_reduce(t, *a, **k))[1]
    layer, x = build(), batches(2)[0 if same_data else rank]
    loss, micro = value(layer, x, "global_batch"), value(layer, x, "micro_batch")
    loss.backward()
    grad = layer.router.gate.weight.grad
    all_reduce(grad)
    answer = {"loss": loss.item(), "micro": micro.item(), "grad": (grad / 2).tolist(), "sent": sent}
    (folder / f"{rank}.json").write_text(json.dumps(answer))


def run_ranks(folder: Path, same_data: bool) -> list[dict]:
    in_two_ranks(rank_main, folder, same_data)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.distributed
def test_two_ranks_average_to_the_single_process_loss_and_router_gradient(tmp_path: Path) -> None:
    ranks, layer = run_ranks(tmp_path, same_data=False), build()
    whole = value(layer, torch.cat(batches(2)), "micro_batch")
    whole.backward()
    assert (ranks[0]["loss"] + ranks[1]["loss"]) / 2 == pytest.approx(whole.item(), abs=1e-6)
    gradient = torch.tensor(ranks[0]["grad"], dtype=torch.double)
    torch.testing.assert_close(gradient, layer.router.gate.weight.grad, rtol=1e-6, atol=1e-8)
    assert abs((ranks[0]["micro"] + ranks[1]["micro"]) / 2 - whole.item()) > 1e-3  # averaging losses is not it
    assert ranks[0]["sent"] == [N + 1]  # N counts and the number of tokens


@pytest.mark.distributed
def test_identical_data_on_all_ranks_make_global_and_micro_equal(tmp_path: Path) -> None:
    for rank in run_ranks(tmp_path, same_data=True):
        assert rank["loss"] == pytest.approx(rank["micro"], abs=1e-7)  # shares are counted in float32


def test_perfect_specialisation_costs_N_per_micro_batch_and_1_globally() -> None:
    layer = sharp()
    steps = [1e3 * torch.eye(N, dtype=torch.double)[e].expand(1, 6, N) for e in range(N)]
    statistics = counted(layer, steps)
    for x in steps:
        assert value(layer, x, "micro_batch").item() == pytest.approx(N, abs=1e-12)
        assert value(layer, x, "global_batch", statistics).item() == pytest.approx(1, abs=1e-12)


def test_frequencies_carry_no_gradient() -> None:
    layer, steps = build(), batches(3)
    statistics = counted(layer, steps)
    f_N = statistics.exact["global_batch"][0].count_N
    x_TD = steps[0].flatten(0, 1)
    p_N = (x_TD @ layer.router.gate.weight.t()).softmax(-1).mean(0)
    (expected,) = torch.autograd.grad(N * ((f_N / f_N.sum()) * p_N).sum(), layer.router.gate.weight)
    value(layer, steps[0], "global_batch", statistics).backward()
    torch.testing.assert_close(layer.router.gate.weight.grad, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("count_first", [False, True])
def test_accumulation_ends_with_the_whole_steps_frequencies_and_resets(count_first: bool) -> None:
    layer, steps = build(), batches(3)
    statistics = counted(layer, steps) if count_first else StepStatistics()
    values = [value(layer, x, "global_batch", statistics).item() for x in steps]
    whole = counted(layer, [torch.cat(steps)])
    expected = [value(layer, x, "global_batch", whole).item() for x in steps]
    assert values[-1] == pytest.approx(expected[-1], abs=1e-7)
    # Without a counting pass, earlier micro-batches know only what came before them.
    assert (values[0] == pytest.approx(expected[0], abs=1e-7)) is count_first
    before = dict(statistics.seen)
    value(layer, steps[0], "global_batch")  # an evaluation passes no statistics
    assert statistics.seen == before
    statistics.reset()
    assert not statistics.seen and not statistics.exact


def test_a_small_local_term_beside_the_global_one_adds_its_own_gradient() -> None:
    steps = batches(3)

    def gradient(*losses: BalanceLoss) -> torch.Tensor:
        layer = build().train()
        layer.losses = list(losses)
        statistics = counted(layer, steps)
        for x in steps:
            with options(statistics=statistics, totals={"token": 30}):
                (0 * layer(x).sum()).backward()
        return layer.router.gate.weight.grad

    both = gradient(BalanceLoss(1.0, "global_batch"), BalanceLoss(0.01, "micro_batch"))
    expected = gradient(BalanceLoss(1.0, "global_batch")) + 0.01 * gradient(BalanceLoss(1.0, "micro_batch"))
    torch.testing.assert_close(both, expected)
    assert not torch.allclose(both, gradient(BalanceLoss(1.0, "global_batch")))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_what_micro_batches_cost_more_is_the_covariance_of_shares_and_probabilities(shift: float) -> None:
    layer = build()
    steps = [x + shift * i for i, x in enumerate(batches(4))]
    statistics = counted(layer, steps)
    micro, whole, f, p = 0.0, 0.0, [], []
    for x in steps:
        ctx = ForwardContext().layer(0, tuple(x.shape[:-1]), True)
        routing = layer.route(x.flatten(0, -2), ctx)
        f.append(routing.plan.load_N().double() / (K * 10))
        p.append(routing.scores_TN.mean(0))
        micro += value(layer, x, "micro_batch").item() / 4
        whole += value(layer, x, "global_batch", statistics).item() / 4
    f_BN, p_BN = torch.stack(f), torch.stack(p)
    covariance = ((f_BN - f_BN.mean(0)) * (p_BN - p_BN.mean(0))).mean(0).sum()
    assert micro - whole == pytest.approx(N * covariance.item(), abs=1e-6)
