"""``check_router`` on routers from outside the package: good ones pass, each broken promise is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from libmoe.core.context import LayerContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.routers import TopKRouter
from libmoe.routers.noise import GaussianNoise, InputJitter, LearnedNoise
from libmoe.testing import ContractError, check_router

D, N = 8, 4


class Mine(Router):
    """A router as a user writes it."""

    def __init__(self, dim: int = D, num_experts: int = N, top_k: int = 2) -> None:
        super().__init__(num_experts)
        if top_k > num_experts:
            raise ConfigError("top_k is too large")
        self.top_k = top_k
        self.gate = nn.Linear(dim, num_experts, bias=False)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        scores_TN = self.gate(x_TD).float().sigmoid()
        expert_TK = ctx.memo("select", lambda: self.select(scores_TN.detach(), ctx))
        plan = SparsePlan.from_topk(expert_TK, scores_TN.gather(1, expert_TK), self.num_experts)
        return self.edit(Routing(plan, None, scores_TN))

    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        return scores_TN.topk(self.top_k).indices

    def edit(self, routing: Routing) -> Routing:
        return routing

    def expected_load(self) -> list[float]:
        return [self.top_k / self.num_experts] * self.num_experts


GOOD = {
    "of a user": Mine,
    "top-k": lambda: TopKRouter(D, N, 2),
    "softmax after top-k": lambda: TopKRouter(D, N, 2, softmax_after_topk=True),
    "fixed noise": lambda: TopKRouter(D, N, 2, noise=GaussianNoise(1.0)),
    "learned noise": lambda: TopKRouter(D, N, 2, noise=LearnedNoise(D, N)),
    "jitter": lambda: TopKRouter(D, N, 1, noise=InputJitter(0.1)),
    "capacity in training": lambda: TopKRouter(D, N, 2, capacity_factor=0.5),
    "capacity in eval": lambda: TopKRouter(D, N, 2, eval_capacity_factor=1.0),
    "all experts": lambda: TopKRouter(D, N, N),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_routers_pass(name: str) -> None:
    checked = check_router(GOOD[name], dim=D)
    assert "decides the same when recomputed" in checked
    assert "passes gradients from the plan to its parameters" in checked
    assert len(checked) >= 13


def test_instances_and_method_names_are_taken_too() -> None:
    router = Mine()
    before = router.gate.weight.clone()
    assert check_router(router, dim=D) == check_router(Mine, dim=D)
    assert torch.equal(router.gate.weight, before)
    assert "refuses more experts per token than there are" in check_router("smoe")


class WrongNumberOfExperts(Mine):
    def edit(self, routing: Routing) -> Routing:
        routing.plan.num_experts += 1
        return routing


class ExpertOutOfRange(Mine):
    def edit(self, routing: Routing) -> Routing:
        routing.plan.expert_A = routing.plan.expert_A + 1
        return routing


class IntegersOfTheWrongSize(Mine):
    def edit(self, routing: Routing) -> Routing:
        routing.plan.expert_A = routing.plan.expert_A.int()
        return routing


class NotRectangular(Mine):
    def edit(self, routing: Routing) -> Routing:
        routing.plan.token_A = routing.plan.token_A.flip(0)
        return routing


class NaNWeights(Mine):
    def edit(self, routing: Routing) -> Routing:
        routing.plan.weight_A = routing.plan.weight_A / 0 * 0
        return routing


class Detached(Mine):
    def edit(self, routing: Routing) -> Routing:
        return replace(routing, plan=routing.plan.map(torch.detach))


class HalfPrecisionScores(Mine):
    def edit(self, routing: Routing) -> Routing:
        return replace(routing, scores_TN=routing.scores_TN.bfloat16())


class NoMemo(Mine):
    """Draws noise that the recomputation draws again, differently."""

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        scores_TN = self.gate(x_TD).float().sigmoid()
        noisy_TN = scores_TN.detach() + (torch.rand_like(scores_TN) if self.training else 0)
        expert_TK = noisy_TN.topk(2).indices
        return Routing(SparsePlan.from_topk(expert_TK, scores_TN.gather(1, expert_TK), N), None, scores_TN)


class NoiseInEval(Mine):
    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        return (scores_TN + torch.rand_like(scores_TN)).topk(2).indices


class SelectsWithGradient(Mine):
    """Top-k outside ``no_grad`` saves another number of tensors when its answer is reused."""

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        scores_TN = self.gate(x_TD).float().sigmoid()
        weight_TK, expert_TK = scores_TN.topk(2)
        if ctx.forward.recomputing:
            expert_TK = ctx.recall("mine")
            weight_TK = scores_TN.gather(1, expert_TK).exp().log()
        ctx.memo("mine", lambda: expert_TK)
        return Routing(SparsePlan.from_topk(expert_TK, weight_TK, N), None, scores_TN)


class NoExpectedLoad(Mine):
    expected_load = Router.expected_load


class WrongExpectedLoad(Mine):
    def expected_load(self) -> list[float]:
        return [1.0] * N


class AcceptsAnyK(Mine):
    def __init__(self, dim: int = D, num_experts: int = N, top_k: int = 2) -> None:
        super().__init__(dim, num_experts, min(top_k, num_experts))


class FailsWithoutTokens(Mine):
    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        scores_TN.max()
        return super().select(scores_TN, ctx)


class SecretlyLooksAhead(Mine):
    def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
        return (scores_TN + scores_TN.view(*ctx.batch_shape, N).flip(1).flatten(0, 1)).topk(2).indices


class FalselyModest(Mine):
    causal = False


class FalselyDependent(Mine):
    batch_independent = False


class NotARouter(nn.Module):
    num_experts = N


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (WrongNumberOfExperts, "answers for a batch of 2 x 6 tokens: the plan has 5 experts, the router 4"),
        (ExpertOutOfRange, r"expert numbers 1..4 are not in 0..3"),
        (IntegersOfTheWrongSize, "token_A and expert_A must be int64"),
        (NotRectangular, "k=2 is set but token_A is not rectangular"),
        (NaNWeights, "weights are not finite"),
        (Detached, "passes gradients from the plan to its parameters: nothing in the plan has a gradient"),
        (HalfPrecisionScores, "scores_TN has dtype torch.bfloat16"),
        (NoMemo, "decides the same when recomputed: "),
        (SelectsWithGradient, "decides the same when recomputed: . tensors are saved instead of ."),
        (NoiseInEval, "decides the same twice in eval mode: "),
        (NoExpectedLoad, "expects a sensible load: raises NotImplementedError: NoExpectedLoad defines no"),
        (WrongExpectedLoad, "sums to 4 but each token gets 2"),
        (AcceptsAnyK, "refuses more experts per token than there are: top_k=5 of 4 experts is accepted"),
        (FailsWithoutTokens, "answers for a batch of 1 x 0 tokens: raises"),
        (SecretlyLooksAhead, r"is causal as declared: token \d+ of sequence 0 changed its .* causal=False"),
        (FalselyModest, "declares causal=False and is not: declares causal=False but no leak found"),
        (FalselyDependent, "declares batch_independent=False but no leak found"),
        (NotARouter, "NotARouter is not a subclass of libmoe.Router"),
    ],
)
def test_each_broken_promise_is_named(router: type, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_router(router, dim=D)


def test_the_report_has_one_line_for_each_failure() -> None:
    class Both(WrongExpectedLoad, SecretlyLooksAhead):
        pass

    with pytest.raises(ContractError) as caught:
        check_router(Both, dim=D)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith(f"Both: {len(lines)} of ")
    assert all(line.startswith("  - ") for line in lines)
    assert len(lines) == 3  # the expected load, the future, and padding on the left


def test_a_router_may_need_side_inputs() -> None:
    class ByRegion(Mine):
        def select(self, scores_TN: Tensor, ctx: LayerContext) -> Tensor:
            return (scores_TN + ctx.side_T("region").unsqueeze(1) * torch.arange(N)).topk(2).indices

    with pytest.raises(ContractError, match="'region'"):
        check_router(ByRegion, dim=D)
    check_router(ByRegion, dim=D, side=lambda batch: {"region": torch.arange(batch) % 3 - 1})
