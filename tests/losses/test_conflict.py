"""The conflict elimination loss: which tokens conflict, where they are pushed, and when in a step it happens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from libmoe.core.context import ForwardContext, checkpoint_contexts, install, options, use
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.statistics import StepStatistics
from libmoe.experts import FFNExperts
from libmoe.layers import MoELayer
from libmoe.losses.base import Loss
from libmoe.losses.conflict import ConflictEliminationLoss, Similarity
from libmoe.losses.gradient import Seen
from libmoe.routers import TopKRouter
from libmoe.routers.soft import SoftRouter
from libmoe.testing import ContractError, check_loss
from libmoe.train.metrics import auxiliary_losses

D, H, N, K, T = 6, 5, 3, 2, 24


class Watched(ConflictEliminationLoss):
    """Keeps what it found in each backward pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.found: list[Similarity] = []

    def similarity(self, *args: Any) -> Similarity:
        self.found.append(super().similarity(*args))
        return self.found[-1]


def make_layer(loss: Loss | None, index: int = 0, k: int = K, seed: int = 0, **form: Any) -> MoELayer:
    torch.manual_seed(seed)
    experts = FFNExperts(N, D, H, bias=True, init_std=None, **form)
    layer = MoELayer(TopKRouter(D, N, k), experts, losses=[] if loss is None else [loss], index=index).double()
    nn.init.normal_(layer.router.gate.weight, std=0.5)
    return layer.train()


def tokens(count: int = T, seed: int = 1) -> Tensor:
    return torch.randn(1, count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def main_loss(y: Tensor) -> Tensor:
    """Every token has a loss of its own, whose gradients point in many directions."""
    target = torch.randn(y.shape[-2:], generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    return (y - target).square().mean()


def by_token(layer: MoELayer, x: Tensor, name: str) -> dict[tuple[int, int], Tensor]:
    """Gradient of the main loss due to each (token, expert) pair, one backward pass per token."""
    routing = layer.route(x[0], ForwardContext().layer(0, (1, x.shape[1]), True))
    found = {}
    for token in range(x.shape[1]):
        others = layer.execute(x[0], routing).detach()
        y = others.clone()
        y[token] = layer.execute(x[0], routing)[token]
        (grad,) = torch.autograd.grad(main_loss(y.unsqueeze(0)), getattr(layer.experts, name), retain_graph=True)
        for expert in routing.plan.expert_A.view(-1, K)[token].tolist():
            found[token, expert] = grad[expert].flatten().detach()
    return found


def cosines(gradients: dict[tuple[int, int], Tensor]) -> dict[tuple[int, int], float]:
    means = {e: torch.stack([g for (_, f), g in gradients.items() if f == e]).mean(0) for e in range(N)}
    return {pair: float(F.cosine_similarity(g, means[pair[1]], 0)) for pair, g in gradients.items()}


@pytest.mark.parametrize(("of", "name"), [("matrix", "w_out"), ("bias", "b_out")])
@pytest.mark.parametrize("gated", [True, False])
def test_the_cosine_is_that_of_explicit_gradients_token_by_token(of: Any, name: str, gated: bool) -> None:
    loss = Watched(1.0, of=of)
    layer = make_layer(loss, gated=gated)
    x = tokens()
    expected = cosines(by_token(layer, x, name))
    main_loss(layer(x)).backward()
    (found,) = loss.found
    pairs = zip(found.token_R.tolist(), found.expert_R.tolist(), found.cosine_R.tolist(), strict=True)
    ours = {(t, e): cosine for t, e, cosine in pairs}
    assert ours.keys() == expected.keys()
    assert max(abs(ours[pair] - expected[pair]) for pair in expected) < 1e-6
    assert min(expected.values()) < 0 < max(expected.values())


def planted(minority: int = 4) -> tuple[MoELayer, Watched, Tensor, Tensor]:
    """One expert; all tokens look alike, and a few want the opposite of what the others want."""
    loss = Watched(1.0)
    torch.manual_seed(0)
    layer = MoELayer(TopKRouter(D, 1, 1), FFNExperts(1, D, H, init_std=None), losses=[loss]).double().train()
    x = torch.ones(1, T, D, dtype=torch.float64) + 0.1 * tokens()
    want = torch.ones(1, T, D, dtype=torch.float64)
    want[:, :minority] = -1
    return layer, loss, x, want


def test_a_planted_conflict_flags_exactly_the_minority() -> None:
    layer, loss, x, want = planted()
    (10 * want - layer(x)).square().mean().backward()
    (found,) = loss.found
    flagged = found.token_R[found.cosine_R < 0]
    assert sorted(flagged.tolist()) == [0, 1, 2, 3]
    assert found.cosine_R[found.cosine_R >= 0].min() > 0.5


def elimination(x_TD: Tensor, gate_ND: Tensor, grad_TD: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The loss on a linear router by itself, and which token conflicts with which expert (bool [T, N])."""
    loss = Watched(1.0, threshold, of="bias")
    logits_TN = x_TD @ gate_ND.T
    expert_T1 = logits_TN.detach().argmax(1, keepdim=True)
    plan = SparsePlan.from_topk(expert_T1, torch.ones_like(expert_T1, dtype=x_TD.dtype), len(gate_ND))
    ctx = ForwardContext().layer(0, (1, len(x_TD)), training=True)
    numerator, tokens = loss.compute_seeing(Routing(plan, logits_TN), ctx, Seen(x_TD, grad_TD, nn.Identity()))
    (found,) = loss.found
    conflict_TN = torch.zeros(logits_TN.shape, dtype=torch.bool)
    conflict_TN[found.token_R, found.expert_R] = found.cosine_R < threshold
    return numerator / tokens, conflict_TN


def separable() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that have a feature of their own each, a linear router, and what the main loss sends back."""
    generator = torch.Generator().manual_seed(3)
    gate_ND, grad_TD = (
        torch.randn(n, m, generator=generator, dtype=torch.float64) for n, m in ((N, T), (T, D))
    )
    return torch.eye(T, dtype=torch.float64), gate_ND, grad_TD


def test_a_step_lowers_the_probability_of_every_conflicting_pair_and_leaves_the_others_alone() -> None:
    x_TD, gate_ND, grad_TD = separable()
    loss, conflict_TN = elimination(x_TD, gate_ND.requires_grad_(), grad_TD, 0.3)
    (step_ND,) = torch.autograd.grad(loss, gate_ND)
    before_TN, after_TN = ((x_TD @ g.T).softmax(1) for g in (gate_ND, gate_ND - 0.1 * step_ND))
    clear_T = ~conflict_TN.any(1)
    assert 0 < clear_T.sum() < T
    assert (after_TN < before_TN)[conflict_TN].all()
    assert torch.equal(after_TN[clear_T], before_TN[clear_T])
    assert not step_ND[:, clear_T].any()


def test_the_value_is_the_cross_entropy_of_the_negated_logits() -> None:
    x_TD, gate_ND, grad_TD = separable()
    value, conflict_TN = elimination(x_TD, gate_ND, grad_TD, 0.3)
    token_C, expert_C = conflict_TN.nonzero(as_tuple=True)
    torch.testing.assert_close(value, F.cross_entropy(-gate_ND.T[token_C], expert_C))


def test_threshold_minus_one_trains_as_without_the_loss_to_the_last_bit() -> None:
    trained = []
    for loss in (None, ConflictEliminationLoss(1.0, -1.0), ConflictEliminationLoss(1.0, 0.0)):
        layer = make_layer(loss).float()
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05)
        for step in range(4):
            optimizer.zero_grad()
            main_loss(layer(tokens(seed=step).float())).backward()
            optimizer.step()
        trained.append([p.detach() for p in layer.parameters()])
    baseline, measuring, on = trained
    assert all(torch.equal(a, b) for a, b in zip(baseline, measuring, strict=True))
    assert not torch.equal(baseline[0], on[0])


def two_passes(layer: MoELayer, x: Tensor, coefficient: float) -> Tensor:
    """The gate's gradient as the definition orders it: the main backward, the conflicts, then a small backward."""
    layer = copy.deepcopy(layer)
    layer.losses = []
    pairs = cosines(by_token(layer, x, "w_out"))
    main_loss(layer(x)).backward()
    logits_TN = layer.router.gate(x[0])
    nll_TN = -(-logits_TN).log_softmax(1)
    conflicts = [pair for pair, cosine in pairs.items() if cosine < 0]
    (coefficient * sum(nll_TN[pair] for pair in conflicts) / len(conflicts)).backward()
    return layer.router.gate.weight.grad


def test_one_backward_gives_what_two_passes_give() -> None:
    layer = make_layer(ConflictEliminationLoss(0.7))
    expected = two_passes(layer, tokens(), 0.7)
    main_loss(layer(tokens())).backward()
    torch.testing.assert_close(layer.router.gate.weight.grad, expected)


class Model(nn.Module):
    """Two layers and a loss of its own, as a model of transformers returns it."""

    def __init__(self, *losses: Loss) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make_layer(loss, i, seed=i) for i, loss in enumerate(losses))
        self.recompute = False
        install(self)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            forward = layer.forward
            if self.recompute:
                x = x + checkpoint(forward, x, use_reentrant=False, context_fn=checkpoint_contexts)
            else:
                x = x + forward(x)
        return main_loss(x)


def run(model: Model, *batches: Tensor, scale: float = 1.0, **ambient: Any) -> dict[str, Tensor]:
    with options(**ambient):
        for x in batches:
            (scale * model(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def two() -> Model:
    return Model(ConflictEliminationLoss(1.0), ConflictEliminationLoss(1.0))


def test_gradient_scalers_change_neither_the_conflicts_nor_the_loss_s_weight() -> None:
    once, scaled = run(two(), tokens()), run(two(), tokens(), scale=2.0**16)
    assert all(torch.equal(scaled[name], 2.0**16 * once[name]) for name in once)
    huge, tiny = (run(two().float(), tokens().float(), scale=s) for s in (1e30, 1e-30))
    for name in once:
        torch.testing.assert_close(huge[name] / 1e30, tiny[name] * 1e30, rtol=1e-4, atol=1e-6)


def test_recomputation_sees_each_gradient_once_and_changes_nothing() -> None:
    results = []
    for recompute in (False, True):
        model, statistics = Model(Watched(1.0), Watched(1.0)), StepStatistics()
        model.recompute = recompute
        results.append((run(model, tokens(), statistics=statistics), statistics.losses))
        assert [len(layer.losses[0].found) for layer in model.layers] == [1, 1]
    (plain, seen), (again, seen_again) = results
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert seen == seen_again


def test_micro_batches_count_by_their_tokens() -> None:
    """Conflicts are those within a forward pass; a step's loss is the mean of them, weighted by tokens."""
    short, long = tokens(8, seed=5), tokens(16, seed=6)
    both = run(two(), short, long, totals={"token": 24})
    alone = [run(two(), x, totals={"token": x.shape[1]}) for x in (short, long)]
    main = [run(Model(None, None), x) for x in (short, long)]
    for name in both:
        if "gate" in name:
            added = [a[name] - m[name] for a, m in zip(alone, main, strict=True)]
            expected = main[0][name] + main[1][name] + added[0] / 3 + 2 * added[1] / 3
            torch.testing.assert_close(both[name], expected)


def test_a_split_into_equal_halves_gives_the_gradient_of_the_whole() -> None:
    """The same tokens in both halves: the mean gradient of an expert is that of either half."""

    def gate(micro_batches: list[Tensor]) -> Tensor:
        layer = make_layer(ConflictEliminationLoss(1.0))
        with options(totals={"token": 2 * T}):
            for x in micro_batches:
                (layer(x).square().sum() / (2 * T)).backward()
        return layer.router.gate.weight.grad

    x = tokens()
    torch.testing.assert_close(gate([x, x]), gate([torch.cat([x, x], 1)]))


def hidden_gradient(loss: Loss | None) -> Tensor:
    """Gradient at the first layer's output, with a loss in the second."""
    first, second = make_layer(None), make_layer(loss, 1, seed=1)
    y = first(tokens())
    y.retain_grad()
    main_loss(y + second(y)).backward()
    return y.grad


def test_the_loss_trains_the_router_alone_unless_told_otherwise() -> None:
    main = hidden_gradient(None)
    assert torch.equal(hidden_gradient(ConflictEliminationLoss(1.0)), main)
    assert not torch.allclose(hidden_gradient(ConflictEliminationLoss(1.0, detach=False)), main)


def test_experts_are_untouched_and_reports_say_how_many_tokens_conflict() -> None:
    statistics = StepStatistics()
    loss = Watched(1.0, 0.1)
    found, plain = make_layer(loss), make_layer(None)
    with options(statistics=statistics):
        main_loss(found(tokens())).backward()
    main_loss(plain(tokens())).backward()
    assert torch.equal(found.experts.w_out.grad, plain.experts.w_out.grad)
    cosine_R = loss.found[0].cosine_R
    reported = auxiliary_losses(statistics)
    assert reported["conflict_elimination/similarity"] == pytest.approx(float(cosine_R.mean()), rel=1e-6)
    assert reported["conflict_elimination/share"] == pytest.approx(float((cosine_R < 0.1).double().mean()), rel=1e-6)
    assert reported["conflict_elimination"] > 0


def test_padding_neither_conflicts_nor_counts() -> None:
    cosines = []
    for padding in (0, 5):
        loss = Watched(1.0)
        layer = make_layer(loss)
        x = torch.cat([tokens(), 9 * tokens(padding, seed=7)], 1)
        with use(ForwardContext({"attention_mask": (torch.arange(T + padding) < T).long().unsqueeze(0)})):
            y = layer(x)
        (main_loss(y[:, :T]) + y[:, T:].square().sum()).backward()
        (found,) = loss.found
        assert int(found.valid_R.sum()) == K * T and len(found.valid_R) == K * (T + padding)
        cosines.append(found.cosine_R[found.valid_R])
    torch.testing.assert_close(*cosines)


def test_a_token_without_gradient_does_not_conflict() -> None:
    loss = Watched(1.0, 1.0)
    layer = make_layer(loss)
    layer(tokens())[0, : T - 3].square().sum().backward()
    (found,) = loss.found
    assert set(found.token_R[~found.valid_R].tolist()) == {T - 3, T - 2, T - 1}


def test_it_sets_in_after_the_warm_up_of_loops_that_say_where_they_are() -> None:
    plain = run(Model(None, None), tokens())
    loss = {"warmup": 0.5}
    for ambient, on in (({"step": 4, "total_steps": 10}, False), ({"step": 5, "total_steps": 10}, True), ({}, True)):
        model = Model(ConflictEliminationLoss(1.0, **loss), ConflictEliminationLoss(1.0, **loss))
        found = run(model, tokens(), **ambient)
        assert torch.equal(found["layers.1.router.gate.weight"], plain["layers.1.router.gate.weight"]) is not on


@pytest.mark.parametrize("threshold", [-1.0, 0.2])
def test_it_keeps_the_contract_of_losses(threshold: float) -> None:
    assert "ignores padding" in check_loss(ConflictEliminationLoss(1.0, threshold))


def test_the_contract_notices_a_loss_that_looks_at_padding() -> None:
    class Careless(ConflictEliminationLoss):
        def similarity(self, plan: SparsePlan, ctx: Any, seen: Seen) -> Similarity:
            return super().similarity(plan, ForwardContext().layer(0, ctx.batch_shape, training=True), seen)

    with pytest.raises(ContractError, match="ignores padding"):
        check_loss(Careless(1.0, 0.2))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: ConflictEliminationLoss(1.0, 1.5), "between -1 and 1, got 1.5"),
        (lambda: ConflictEliminationLoss(1.0, warmup=1.0), "below 1, got 1.0"),
        (lambda: ConflictEliminationLoss(1.0, of="gate"), "choose 'matrix' or 'bias'"),
        (lambda: make_layer(ConflictEliminationLoss(1.0), dropout=0.1)(tokens()), "dropout; use of='bias'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        make()


def test_soft_plans_have_no_experts_to_leave() -> None:
    layer = MoELayer(
        SoftRouter(D, N, 1), FFNExperts(N, D, H), losses=[ConflictEliminationLoss(1.0)]
    ).double()
    with pytest.raises(ConfigError, match="needs a sparse plan"):
        layer.train()(tokens())
