"""Values and gradients of the losses on small numbers, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from libmoe.core.context import ForwardContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import MergePlan, SparsePlan
from libmoe.core.routing import Routing
from libmoe.losses import BalanceLoss, Loss, ZLoss
from libmoe.testing import check_loss

SCOPES = ("sequence", "micro_batch", "rank", "global_batch")
N = 4


def value(loss: Loss, routing: Routing, shape: tuple[int, int], **inputs: Tensor) -> Tensor:
    numerator, denominator = loss.compute(routing, ForwardContext(inputs).layer(0, shape, training=True))
    return numerator / denominator


def route(expert_TK: Tensor, logits_TN: Tensor) -> Routing:
    scores_TN = logits_TN.softmax(-1)
    plan = SparsePlan.from_topk(expert_TK, scores_TN.gather(1, expert_TK), logits_TN.shape[1])
    return Routing(plan, logits_TN, scores_TN)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_contract_of_losses(scope: str) -> None:
    check_loss(BalanceLoss(0.1, scope), at_balance=1.0)
    check_loss(ZLoss(0.1, scope), at_balance=math.log(N) ** 2)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_perfect_balance_costs_exactly_one_whatever_k(k: int, scope: str) -> None:
    expert_TK = (torch.arange(N).unsqueeze(1) + torch.arange(k)) % N
    routing = route(expert_TK.repeat(3, 1), torch.zeros(3 * N, N, dtype=torch.float64))
    assert value(BalanceLoss(1.0, scope), routing, (3, N)).item() == 1.0


@pytest.mark.parametrize("scope", SCOPES)
def test_all_tokens_to_one_expert_cost_N(scope: str) -> None:
    logits_TN = torch.zeros(6, N, dtype=torch.float64)
    logits_TN[:, 2] = 1000.0
    routing = route(torch.full((6, 1), 2), logits_TN)
    assert value(BalanceLoss(1.0, scope), routing, (2, 3)).item() == N


def test_balanced_choices_with_any_probabilities_cost_one() -> None:
    """f is uniform, so that N * sum f P is the sum of P, which is 1."""
    routing = route(torch.arange(N).unsqueeze(1), torch.randn(N, N, dtype=torch.float64))
    assert value(BalanceLoss(1.0, "micro_batch"), routing, (1, N)).item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("scope", ["sequence", "micro_batch"])
def test_closed_form_gradient(scope: str) -> None:
    """dL/dlogit[t, j] = N / T * p[t, j] * (f[j] - sum_i f[i] p[t, i]), with f of the token's group."""
    logits_TN = torch.randn(6, N, dtype=torch.float64, requires_grad=True)
    expert_TK = logits_TN.detach().topk(2).indices
    value(BalanceLoss(1.0, scope), route(expert_TK, logits_TN), (2, 3)).backward()
    p_TN = logits_TN.detach().softmax(-1)
    groups = [slice(0, 3), slice(3, 6)] if scope == "sequence" else [slice(0, 6)]
    for group in groups:
        chosen = expert_TK[group]
        f_N = torch.bincount(chosen.flatten(), minlength=N) / chosen.numel()
        expected = N / 6 * p_TN[group] * (f_N - (f_N * p_TN[group]).sum(1, keepdim=True))
        torch.testing.assert_close(logits_TN.grad[group], expected.double())


def test_frequencies_carry_no_gradient_even_if_weights_do() -> None:
    logits_TN = torch.randn(6, N, dtype=torch.float64, requires_grad=True)
    routing = route(logits_TN.detach().topk(2).indices, logits_TN)
    routing.scores_TN = routing.scores_TN.detach()
    numerator, _ = BalanceLoss(1.0).compute(routing, ForwardContext().layer(0, (2, 3), True))
    assert not numerator.requires_grad


@pytest.mark.parametrize("sequences", [2, 4])
def test_perfect_specialisation_costs_N_locally_and_1_globally(sequences: int) -> None:
    """Each sequence all to an expert of its own (arXiv 2501.11873)."""
    expert_T = torch.arange(sequences).repeat_interleave(5)
    logits_TN = 1000.0 * torch.eye(sequences, dtype=torch.float64)[expert_T]
    routing = route(expert_T.unsqueeze(1), logits_TN)
    assert value(BalanceLoss(1.0, "sequence"), routing, (sequences, 5)).item() == sequences
    assert value(BalanceLoss(1.0, "global_batch"), routing, (sequences, 5)).item() == 1.0


def test_micro_minus_global_is_the_covariance_of_frequencies_and_probabilities() -> None:
    """For groups of equal size the two differ by ``N * sum_i Cov_b(f_i, P_i)`` (arXiv 2501.11873)."""
    logits_TN = 2 * torch.randn(12, N, dtype=torch.float64)
    routing = route(logits_TN.topk(2).indices, logits_TN)
    f_BN = torch.nn.functional.one_hot(routing.plan.expert_A.view(3, 8), N).double().mean(1)
    p_BN = routing.scores_TN.view(3, 4, N).mean(1)
    covariance = (f_BN * p_BN).mean(0) - f_BN.mean(0) * p_BN.mean(0)
    local, whole = (value(BalanceLoss(1.0, scope), routing, (3, 4)) for scope in ("sequence", "global_batch"))
    torch.testing.assert_close(local - whole, N * covariance.sum())


def test_dropped_assignments_still_count() -> None:
    logits_TN = torch.randn(6, N, dtype=torch.float64)
    routing = route(logits_TN.topk(2).indices, logits_TN)
    before = value(BalanceLoss(1.0), routing, (2, 3))
    routing.plan.kept_A = torch.rand(12) < 0.5
    assert torch.equal(value(BalanceLoss(1.0), routing, (2, 3)), before)


def test_tokens_may_have_different_numbers_of_experts() -> None:
    logits_TN = torch.zeros(4, N, dtype=torch.float64)
    mask_TN = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    logits_TN[:, 0] = math.log(5.0)  # p = 5/8, 1/8, 1/8, 1/8
    routing = Routing(SparsePlan.from_mask(logits_TN.exp(), mask_TN), logits_TN, logits_TN.softmax(-1))
    expected = N * (2 * 5 + 2 + 1 + 1) / 6 / 8
    assert value(BalanceLoss(1.0, "micro_batch"), routing, (1, 4)).item() == pytest.approx(expected)


def test_weights_per_expert() -> None:
    logits_TN = torch.randn(6, N, dtype=torch.float64)
    routing = route(logits_TN.topk(1).indices, logits_TN)
    weights = (1.0, 0.0, 2.0, 0.5)
    f_N = torch.bincount(routing.plan.expert_A, minlength=N) / 6
    expected = N * (torch.tensor(weights).double() * f_N * routing.scores_TN.mean(0)).sum()
    torch.testing.assert_close(value(BalanceLoss(1.0, "micro_batch", weights), routing, (2, 3)), expected)
    with pytest.raises(ConfigError, match="3 weights given for 4 experts"):
        value(BalanceLoss(1.0, "micro_batch", (1.0, 0.0, 2.0)), routing, (2, 3))


@pytest.mark.parametrize("loss", [BalanceLoss(1.0, "sequence"), BalanceLoss(1.0, "rank"), ZLoss(1.0)])
def test_nan_in_padding_does_not_reach_the_value(loss: Loss) -> None:
    logits_TN = torch.randn(6, N, dtype=torch.float64)
    expert_TK = logits_TN.topk(2).indices
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    before = value(loss, route(expert_TK, logits_TN), (2, 3), attention_mask=mask)
    poisoned_TN = logits_TN.masked_fill(mask.view(-1, 1) == 0, float("nan"))
    assert torch.equal(value(loss, route(expert_TK, poisoned_TN), (2, 3), attention_mask=mask), before)


def test_z_loss_closed_form() -> None:
    logits_TN = torch.randn(5, N, dtype=torch.float64, requires_grad=True)
    z = value(ZLoss(1.0), route(torch.zeros(5, 1, dtype=torch.long), logits_TN), (1, 5))
    lse_T1 = logits_TN.detach().exp().sum(1, keepdim=True).log()
    torch.testing.assert_close(z.detach(), lse_T1.square().mean())
    z.backward()
    torch.testing.assert_close(logits_TN.grad, 2 * lse_T1 * logits_TN.detach().softmax(-1) / 5)
    zero = route(torch.zeros(5, 1, dtype=torch.long), torch.zeros(5, N, dtype=torch.float64))
    assert value(ZLoss(1.0), zero, (1, 5)).item() == pytest.approx(math.log(N) ** 2, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BalanceLoss(0.1, "sequense"), "unknown loss scope 'sequense'; did you mean 'sequence'"),
        (lambda: ZLoss(-0.1), "z: coefficient must not be negative"),
        (
            lambda: value(BalanceLoss(1.0), Routing(MergePlan(torch.rand(1, N), 3)), (1, 3)),
            "balance loss needs",
        ),
        (lambda: value(ZLoss(1.0), Routing(MergePlan(torch.rand(1, N), 3)), (1, 3)), "z loss needs logits"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
