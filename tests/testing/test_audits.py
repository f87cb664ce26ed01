"""Audits find leaks that are there, name the token, and accuse nobody else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from libmoe.core.context import LayerContext
from libmoe.core.plan import MergePlan, SoftPlan, SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.experts import FFNExperts
from libmoe.layers import MoELayer
from libmoe.routers import TopKRouter
from libmoe.routers.places import Places
from libmoe.testing import audit

D, N = 8, 4


class Gated(Router):
    def __init__(self) -> None:
        super().__init__(N)
        self.gate = nn.Linear(D, N, bias=False)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        scores_TN = self.scores(x_TD, ctx)
        expert_TK = scores_TN.topk(2).indices
        return Routing(SparsePlan.from_topk(expert_TK, scores_TN.gather(1, expert_TK), N), None, scores_TN)

    def scores(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        return self.gate(x_TD).softmax(-1)

    def per_sequence(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        return x_TD.view(*ctx.batch_shape, D)


class LooksAtTheNextToken(Gated):
    def scores(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        x_BLD = self.per_sequence(x_TD, ctx)
        following = torch.cat([x_BLD[:, 1:], x_BLD[:, -1:]], dim=1)
        return self.gate(x_BLD + 0.1 * following).flatten(0, 1).softmax(-1)


class LooksAtTheTokenBefore(Gated):
    def scores(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        x_BLD = self.per_sequence(x_TD, ctx)
        mask_BL1 = torch.ones_like(x_BLD[..., :1])
        if ctx.mask_T is not None:
            mask_BL1 = ctx.mask_T.view(*ctx.batch_shape, 1).to(x_BLD.dtype)
        before = torch.cat([torch.zeros_like(x_BLD[:, :1]), (x_BLD * mask_BL1)[:, :-1]], dim=1)
        return self.gate(x_BLD + before).flatten(0, 1).softmax(-1)


class AveragesTheSequence(Gated):
    def scores(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        x_BLD = self.per_sequence(x_TD, ctx)
        return self.gate(x_BLD + x_BLD.mean(1, keepdim=True)).flatten(0, 1).softmax(-1)


class NormalisesOverTheBatch(Gated):
    """Batch statistics of gates: an easy thing to write and a leak in both directions."""

    def scores(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        logits_TN = self.gate(x_TD)
        return (logits_TN - logits_TN.mean(0)).softmax(-1)


class ReadsTheFirstSequence(Gated):
    def scores(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        x_BLD = self.per_sequence(x_TD, ctx)
        return self.gate(x_BLD + x_BLD[:1, :1]).flatten(0, 1).softmax(-1)


class KnowsTheLength(Gated):
    """The number of tokens leaks, although no token's content does."""

    def scores(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        length = len(x_TD) if ctx.mask_T is None else int(ctx.mask_T.sum())
        return (self.gate(x_TD) * length / 10).softmax(-1)


class ReadsFutureIds(Gated):
    def scores(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        last_B = ctx.token_ids_T.view(ctx.batch_shape)[:, -1]
        shift_T = last_B.repeat_interleave(ctx.batch_shape[1]).unsqueeze(1)
        return (self.gate(x_TD) + shift_T * torch.arange(N) / 50).softmax(-1)


class SoftMixing(Router):
    """Mixing weights of a token depend on that token alone, and still its output sees the whole sequence."""

    def __init__(self) -> None:
        super().__init__(N)
        self.gate = nn.Linear(D, N, bias=False)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        weight_GLS = self.gate(x_TD).sigmoid().view(*ctx.batch_shape, N)
        if ctx.mask_T is not None:
            weight_GLS = weight_GLS * ctx.mask_T.view(*ctx.batch_shape, 1)
        return Routing(SoftPlan(weight_GLS, weight_GLS, N))


class MergesPerSequence(Router):
    def __init__(self) -> None:
        super().__init__(N)
        self.gate = nn.Linear(D, N, bias=False)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        x_BLD = x_TD.view(*ctx.batch_shape, D)
        weight_BL = torch.ones(ctx.batch_shape, dtype=x_TD.dtype)
        if ctx.mask_T is not None:
            weight_BL = ctx.mask_T.view(ctx.batch_shape).to(x_TD.dtype)
        mean_BD = (x_BLD * weight_BL.unsqueeze(2)).sum(1) / weight_BL.sum(1, keepdim=True)
        return Routing(MergePlan(self.gate(mean_BD).softmax(-1), len(x_TD)))


def capacity(**more: object) -> Router:
    return TopKRouter(D, N, 2, eval_capacity_factor=1.0, **more)


@pytest.mark.parametrize(
    ("make", "causal", "independent", "padding"),
    [
        (Gated, True, True, True),
        (lambda: TopKRouter(D, N, 2), True, True, True),
        (LooksAtTheTokenBefore, True, True, True),
        (LooksAtTheNextToken, False, True, False),
        (AveragesTheSequence, False, True, False),
        (NormalisesOverTheBatch, False, False, False),
        (ReadsTheFirstSequence, True, False, False),
        (KnowsTheLength, False, False, True),
        (ReadsFutureIds, False, True, False),
        (SoftMixing, False, True, True),
        (MergesPerSequence, False, True, True),
        (capacity, False, False, True),
        (lambda: capacity(places=Places(priority="token")), False, False, True),
    ],
)
def test_leaks_are_found(make, causal: bool, independent: bool, padding: bool) -> None:
    report = audit(make, dim=D)
    assert (report.causal, report.batch_independent, report.padding_invariant) == (
        causal,
        independent,
        padding,
    )
    assert len(report.evidence.splitlines()) == [causal, independent, padding].count(False)


def test_the_evidence_names_the_first_token_that_changed() -> None:
    report = audit(LooksAtTheNextToken, dim=D)
    assert report.evidence.startswith("token 3 of sequence 0 changed its")
    assert "when tokens 4..15 were replaced" in report.evidence
    report = audit(ReadsTheFirstSequence, dim=D)
    assert "of sequence 1 changed its" in report.evidence
    assert "when the other sequences were replaced" in report.evidence


def test_routers_layers_methods_and_names_can_be_audited() -> None:
    layer = MoELayer(LooksAtTheNextToken(), FFNExperts(N, D, 4))
    for target in (LooksAtTheNextToken(), layer, lambda: layer):
        assert not audit(target, dim=D).causal
    assert audit("smoe").causal


def test_an_audit_changes_neither_the_part_nor_the_random_state() -> None:
    router = Gated()
    weight, state = router.gate.weight.clone(), torch.get_rng_state()
    audit(router, dim=D)
    assert torch.equal(router.gate.weight, weight) and router.gate.weight.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    assert router.training


def test_parameters_that_start_at_zero_hide_nothing() -> None:
    class Asleep(Gated):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Parameter(torch.zeros(()))

        def scores(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
            x_BLD = self.per_sequence(x_TD, ctx)
            return self.gate(x_BLD + self.attention * x_BLD.mean(1, keepdim=True)).flatten(0, 1).softmax(-1)

    assert not audit(Asleep, dim=D).causal
