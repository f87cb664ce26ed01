"""MaskMoE (arXiv 2407.09816): what a token id may see, and what follows from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from driven import TinyLM, chain, drive
from libmoe.controllers import StepInfo
from libmoe.controllers.frequent_ids import FrequentIds, set_frequent
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.data import PackedLoader, TokenizedCorpus, load_corpus, load_tokenizer
from libmoe.layers import MoELayer
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.routers import TopKRouter
from libmoe.routers.visible import VisibleRouter, frequent_ids
from libmoe.testing.probes import per_token

N, D, V = 8, 16, 60
COMMON = 10  # ids 0 .. 9 are frequent


def build(training: bool = True, index: int = 0, **given: Any) -> MoELayer:
    given = {"frequent_visible": 3} | given
    layer = libmoe.create("maskmoe", num_experts=N, **given).build_layer(
        Site(D, 24, index=index, seed=0, init_std=0.2, vocab_size=V)
    )
    layer.router.frequent_V.copy_(torch.arange(V) < COMMON)
    nn.init.normal_(layer.router.gate.weight)
    return layer.double().train(training)


def context(ids_T: Tensor, index: int = 0) -> Any:
    return ForwardContext({"input_ids": ids_T[None]}).layer(index, (1, len(ids_T)), True)


def route(layer: MoELayer, x_TD: Tensor, ids_T: Tensor) -> Routing:
    return layer.route(x_TD, context(ids_T, layer.index))


def sets(layer: MoELayer) -> list[set[int]]:
    """A_v of every id."""
    visible_VN = layer.router.visible(context(torch.arange(V), layer.index), torch.device("cpu"))
    return [set(row.nonzero().flatten().tolist()) for row in visible_VN]


# -- what is in sight -------------------------------------------------------------------------------------


def test_rare_ids_see_one_expert_and_frequent_ones_several_in_every_layer_others() -> None:
    first, second = sets(build()), sets(build(index=1))
    assert [len(seen) for seen in first] == [3] * COMMON + [1] * (V - COMMON)
    assert first != second and first == sets(build())
    assert sets(build(mask_seed=1)) != first
    drawn = torch.tensor([[expert in seen for expert in range(N)] for seen in sets(build(rare_visible=3))])
    assert (drawn.double().mean(0) - 3 / N).abs().max() < 0.2, "experts are drawn alike"


@pytest.mark.parametrize("training", [True, False])
def test_a_token_uses_experts_in_its_sight_alone_and_a_rare_one_always_the_same(training: bool) -> None:
    layer, ids_T = build(training), torch.randint(V, (600,))
    plan = route(layer, torch.randn(600, D).double(), ids_T).plan
    seen, used = sets(layer), [set() for _ in range(V)]
    for token, expert in zip(ids_T[plan.token_A].tolist(), plan.expert_A.tolist(), strict=True):
        used[token].add(expert)
    assert all(used[v] <= seen[v] for v in range(V))
    assert all(len(used[v]) <= 1 for v in range(COMMON, V))
    assert max(len(used[v]) for v in range(COMMON)) > 1


def test_probability_is_spread_over_what_is_in_sight_and_nowhere_else() -> None:
    layer, ids_T, x_TD = build(), torch.randint(V, (100,)), torch.randn(100, D).double()
    routing, seen = route(layer, x_TD, ids_T), sets(layer)
    logits_TN = x_TD @ layer.router.gate.weight.T
    for t, token in enumerate(ids_T.tolist()):
        inside = sorted(seen[token])
        outside = [e for e in range(N) if e not in inside]
        assert (routing.scores_TN[t, outside] == 0).all()
        torch.testing.assert_close(routing.scores_TN[t, inside], logits_TN[t, inside].softmax(0))
        assert routing.plan.weight_A[t] == routing.scores_TN[t].max()


def test_all_experts_in_sight_is_the_plain_router() -> None:
    layer, ids_T, x_TD = build(frequent_visible=N, rare_visible=N), torch.randint(V, (50,)), torch.randn(50, D).double()
    plain = TopKRouter(D, N, 1, renormalise=False, gate=layer.router.gate)
    ours, theirs = route(layer, x_TD, ids_T), plain.route(x_TD, context(ids_T))
    for name, value in per_token(theirs.plan).items():
        assert torch.equal(per_token(ours.plan)[name], value)
    assert torch.equal(ours.scores_TN, theirs.scores_TN)


def test_one_expert_in_sight_of_all_is_a_random_hash_with_weight_1() -> None:
    layer, ids_T = build(frequent_visible=1), torch.randint(V, (300,))
    first, second = (route(layer, torch.randn(300, D).double(), ids_T) for _ in range(2))
    assert (first.plan.weight_A == 1).all() and torch.equal(first.plan.expert_A, second.plan.expert_A)
    load_N = torch.tensor([sum(e in seen for seen in sets(layer)) for e in range(N)])
    assert load_N.max() < 3 * V / N and (load_N > 0).sum() >= N - 2


def test_the_gate_learns_exactly_nothing_from_rare_tokens() -> None:
    for low, high in ((COMMON, V), (0, COMMON)):
        layer, ids_T = build(), torch.randint(low, high, (80,))
        x_TD = torch.randn(80, D).double()
        layer.execute(x_TD, route(layer, x_TD, ids_T)).square().sum().backward()
        grad = layer.router.gate.weight.grad
        assert bool((grad == 0).all()) == (low == COMMON)
        assert layer.experts.w_in.grad.abs().sum() > 0


def test_a_token_with_fewer_experts_in_sight_than_k_uses_those() -> None:
    layer, ids_T = build(top_k=2), torch.tensor([0, 30, 1, 31])
    assert route(layer, torch.randn(4, D).double(), ids_T).plan.experts_per_token().tolist() == [2, 1, 2, 1]


def test_tokens_without_ids_see_everything() -> None:
    layer, x_TD = build(), torch.randn(50, D).double()
    routing = layer.route(x_TD, ForwardContext().layer(0, (1, 50), True))
    assert torch.equal(routing.plan.expert_A, (x_TD @ layer.router.gate.weight.T).argmax(1))


def test_padding_may_have_any_id_and_a_token_may_not() -> None:
    layer, ids = build(), torch.tensor([[0, 30, 99, -100]])
    ctx = ForwardContext({"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0, 0]])}).layer(0, (1, 4), True)
    layer.route(torch.randn(4, D).double(), ctx)
    with pytest.raises(ConfigError, match="token id 99 is not among the 60"):
        route(layer, torch.randn(3, D).double(), ids[0, :3])


# -- who is frequent --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mass", "expected"), [(0.0, []), (0.3, [2]), (0.4, [2]), (0.41, [2, 0]), (0.7, [2, 0]), (0.95, [2, 0, 3, 1])]
)
def test_frequent_ids_make_up_a_share_of_all_tokens(mass: float, expected: list[int]) -> None:
    count_V = torch.tensor([30, 10, 40, 20, 0])
    assert frequent_ids(count_V, mass).nonzero().flatten().tolist() == sorted(expected)
    assert not frequent_ids(count_V, 1.0)[4], "an id that does not occur is rare"


def test_training_counts_the_corpus_before_its_first_step() -> None:
    corpus = load_corpus("embedded", domains=["novel", "code"])
    tokenized = TokenizedCorpus.build(corpus, load_tokenizer("embedded"), progress=False)
    loader = PackedLoader(tokenized["train"], seq_len=64, batch_size=2, mixture={"novel": 0.25, "code": 0.75})
    share_V = loader.token_shares()
    assert float(share_V.sum()) == pytest.approx(1.0)
    train = tokenized["train"]
    by_hand = {d: torch.bincount(torch.from_numpy(train[d].ids).long()).double() for d in train}
    token = int(by_hand["code"].argmax())
    expected = sum(w * by_hand[d][token] / by_hand[d].sum() for d, w in (("novel", 0.25), ("code", 0.75)))
    assert float(share_V[token]) == pytest.approx(float(expected), rel=1e-9)

    layer = libmoe.create("maskmoe").build_layer(Site(D, 24, vocab_size=2048))
    (controller,) = libmoe.create("maskmoe").build_controllers()
    info = StepInfo(layer, token_shares=loader.token_shares)
    controller.start(info)
    frequent_V = layer.router.frequent_V
    assert float(share_V[frequent_V[: len(share_V)]].sum()) == pytest.approx(0.5, abs=0.02)
    controller.after_step(info)
    assert 0 < info.metrics["frequent_ids/share"] < 0.2, "few ids make half of a text"
    FrequentIds().start(StepInfo(layer))
    assert torch.equal(layer.router.frequent_V, frequent_V), "who cannot count leaves them as they are"


def test_the_masks_are_saved_with_the_model() -> None:
    layer, other = build(), build(index=0)
    other.router.frequent_V.fill_(True)
    other.load_state_dict(layer.state_dict())
    assert sets(other) == sets(layer)
    with pytest.raises(ConfigError, match="no router with a mask"):
        set_frequent(nn.Linear(2, 2), torch.ones(3))
    with pytest.raises(ConfigError, match="do not fit a router for 60"):
        set_frequent(layer, torch.ones(61), 1.0)


def test_over_training_a_rare_id_visits_one_expert_and_frequent_ids_more_but_only_those_they_see() -> None:
    vocabulary = 40
    model = TinyLM("maskmoe", vocabulary, num_experts=N, frequent_visible=3)
    text = chain(vocabulary, 60, 24)
    set_frequent(model, torch.bincount(text.flatten(), minlength=vocabulary), 0.5)
    frequent_V = model.layer.router.frequent_V
    visited: list[set[int]] = [set() for _ in range(vocabulary)]

    def note(ctx: Any, routing: Routing) -> None:
        for token, expert in zip(ctx.token_ids_T.tolist(), routing.plan.expert_A.tolist(), strict=True):
            visited[token].add(expert)

    with options(recorders=[note]):
        drive(model, model.method, lambda step: model.loss(text[torch.arange(6) * 10 + step % 10]), 60)
    rare = [len(visited[v]) for v in range(vocabulary) if not frequent_V[v]]
    common = [len(visited[v]) for v in range(vocabulary) if frequent_V[v]]
    assert 2 < len(common) < vocabulary / 2
    assert set(rare) <= {0, 1} and max(common) <= 3 and sum(n > 1 for n in common) > len(common) / 2


# -- its place --------------------------------------------------------------------------------------------


def test_a_model_tells_the_size_of_its_vocabulary_and_a_layer_alone_must_be_told() -> None:
    config = BackboneConfig("llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, vocab_size=77)
    model = libmoe.moeify(build_backbone(config), "maskmoe", seed=0)
    routers = [m for m in model.modules() if isinstance(m, VisibleRouter)]
    assert [len(router.frequent_V) for router in routers] == [77, 77]
    with pytest.raises(ConfigError, match="set vocab_size"):
        libmoe.create("maskmoe").build_layer(Site(D, 24))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frequent_visible": 9}, "frequent_visible=9 must be between 1 and num_experts=8"),
        ({"rare_visible": 0}, "rare_visible=0 must be between 1"),
        ({"frequent_mass": 1.5}, "frequent_mass=1.5 is a share"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        libmoe.create("maskmoe", **given).build_layer(Site(D, 24, vocab_size=V))
