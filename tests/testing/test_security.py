"""Buffer overflow (arXiv 2402.05526): what a batch can do to one of its requests, and what ends it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import libmoe
from libmoe.core.context import install, options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import SampleExperts
from libmoe.core.plan import SparsePlan
from libmoe.methods import METHODS
from libmoe.routers import ExpertChoiceRouter, SinkhornRouter, TopKRouter, VariableKRouter
from libmoe.routers.places import Places
from libmoe.testing import audit
from libmoe.testing.probes import Stack, site
from libmoe.testing.security import (
    Exposure,
    Service,
    Serving,
    Setting,
    audit_model,
    copies,
    defences,
    expose,
    limited,
    search,
    serve,
)
from libmoe.testing.security.exposure import EXPOSED, share
from libmoe.testing.security.serving import BUILT

V, L, D, N = 16, 12, 32, 8
ROWS = 8
SETTING = Setting(rows=ROWS, queries=24, vocabulary=V)


class Adder(nn.Module):
    """Says after each token what it and the one before add up to, modulo V: what two MoE layers have to know."""

    def __init__(self, method: str = "smoe", **given: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(vocab_size=V)
        self.this, self.before, self.head = nn.Embedding(V, D), nn.Embedding(V, D), nn.Linear(D, V)
        made = libmoe.create(method, {"num_experts": N, "top_k": 2, "expert_hidden": 32} | given)
        self.layers = Stack([made.build_layer(site(D, index, 2)) for index in range(2)]).layers
        install(self)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Any = None) -> Any:
        real_BL1 = torch.ones_like(input_ids).unsqueeze(2) if attention_mask is None else attention_mask.unsqueeze(2)
        before_BLD = F.pad(self.before(input_ids) * real_BL1, (0, 0, 1, 0))[:, :-1]
        h_BLD = self.this(input_ids) + before_BLD
        for layer in self.layers:
            h_BLD = h_BLD + layer(h_BLD)
        return SimpleNamespace(logits=self.head(h_BLD))


def requests(count: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (count, L), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained() -> Adder:
    """Trained without a limit until its answers are right."""
    model = Adder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0)
    for step in range(250):
        ids_RL = requests(32, seed=step + 1)
        sums_RL = (ids_RL[:, 1:] + ids_RL[:, :-1]) % V
        loss = F.cross_entropy(model(ids_RL).logits[:, 1:].transpose(1, 2), sums_RL)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids_RL = requests(256)
    with torch.no_grad():
        right = model(ids_RL).logits[:, -1].argmax(1) == (ids_RL[:, -1] + ids_RL[:, -2]) % V
    assert right.float().mean() > 0.95
    return model.double().eval()


def answer(model: nn.Module, serving: Serving, batch_BL: Tensor, row: int) -> Any:
    with serve(model, serving):
        return Service(model, serving)(batch_BL, row)


def by_company(rows: list[Exposure]) -> dict[str, Exposure]:
    return {row.company: row for row in rows}


# -- what the paper's mechanism says ----------------------------------------------------------------------


def test_without_a_limit_no_company_changes_an_answer(trained: Adder) -> None:
    ids_RL = requests(100 * (ROWS - 1) + 1, seed=5)
    victim_L, others = ids_RL[0], ids_RL[1:].view(100, ROWS - 1, L)
    answers = [answer(trained, Serving(), SETTING.batch(victim_L, other), ROWS - 1) for other in others]
    first = answers[0]
    assert {(a.experts, a.dropped) for a in answers} == {(2 * 2 * L, 0)}
    assert max(float((a.logits_V - first.logits_V).abs().max()) for a in answers) <= 1e-12


def test_copies_of_the_victim_take_its_places(trained: Adder) -> None:
    ids_RL = requests(8 + ROWS)
    lost = []
    for victim_L in ids_RL[:8]:
        usual = answer(trained, EXPOSED, SETTING.batch(victim_L, ids_RL[9:]), ROWS - 1)
        copied = answer(trained, EXPOSED, SETTING.batch(victim_L, victim_L.expand(ROWS - 1, -1)), ROWS - 1)
        assert copied.experts + copied.dropped == usual.experts + usual.dropped == 2 * 2 * L
        lost.append(usual.experts - copied.experts)
    assert sum(lost) > 8 * L / 4 and sum(n > 0 for n in lost) >= 6, lost


@pytest.mark.parametrize("priority", ["token", "choice"])
@pytest.mark.parametrize("k", [1, 2])
def test_who_is_served_first_is_out_of_reach_but_for_second_choices(k: int, priority: Any) -> None:
    model = Adder(top_k=k, router_init_scale=20.0).double().eval()
    for router in limited(model):
        router.places = Places(priority=priority)
    victim_L = requests(1)[0]
    reached = False
    for seed in range(20):
        others_OL = torch.randint(V, (ROWS - 1, L), generator=torch.Generator().manual_seed(seed))
        for others in (others_OL, others_OL[:, :1].expand(-1, L)):
            first = answer(model, EXPOSED, torch.cat([victim_L[None], others]), 0)
            alone = answer(model, Serving(capacity_factor=None), victim_L[None], 0)
            reached |= first.dropped > 0
            if not first.dropped:
                torch.testing.assert_close(first.logits_V, alone.logits_V)
    assert reached == (k == 2 and priority == "choice")


def test_a_larger_capacity_drops_no_more_and_room_for_all_drops_nothing() -> None:
    layer = libmoe.create("smoe", {"num_experts": N, "top_k": 2}).build_layer(site(D)).double()
    model = Stack([layer]).eval()
    victim_LD, others = torch.randn(L, D).double(), torch.randn(ROWS - 1, L, D).double()
    batches = [torch.cat([others, victim_LD[None]]), victim_LD.expand(ROWS, -1, -1)]
    for x_BLD in batches:
        dropped, outputs = [], []
        for factor in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, N / 2):
            plans: list[SparsePlan] = []
            with serve(model, Serving(capacity_factor=factor)), options(
                recorders=[lambda ctx, routing, plans=plans: plans.append(routing.plan)]
            ):
                outputs.append(model(x_BLD)[-1])
            mine_A = plans[0].token_A >= L * (ROWS - 1)
            dropped.append(int((mine_A & ~plans[0].kept_A).sum()))
        assert dropped == sorted(dropped, reverse=True) and dropped[0] > 0 == dropped[-1], dropped
        with torch.no_grad():
            torch.testing.assert_close(outputs[-1], model(victim_LD[None])[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda group: ExpertChoiceRouter(16, 4, 2.0, group=group),
        lambda group: SinkhornRouter(16, 4, 2, places=Places(group=group)),
        lambda group: TopKRouter(16, 4, 2, eval_capacity_factor=1.0, places=Places(group=group)),
        lambda group: VariableKRouterOfTwo(group),
    ],
)
def test_what_is_shared_over_the_batch_leaks_without_an_overflow_and_not_per_request(make: Any) -> None:
    """Expert choice and balanced assignment drop nobody, and still a token depends on those it competes with."""
    assert not audit(make("batch")).batch_independent
    assert audit(make("sequence")).batch_independent
    assert make("sequence").batch_independent and not make("batch").batch_independent


class VariableKRouterOfTwo(VariableKRouter):
    def __init__(self, group: Any) -> None:
        super().__init__(16, 4, 2.0, eval_capacity_factor=0.5, group=group)

    def choose(self, scores_TN: Tensor) -> Tensor:
        return scores_TN > 0.25


def test_a_queue_of_its_own_gives_each_sequence_its_places() -> None:
    """By hand: the best of each expert's requests within the sequence."""
    router = VariableKRouterOfTwo("sequence").double().eval()
    x_BLD = torch.randn(3, 5, 16).double()
    ctx = libmoe.core.context.ForwardContext().layer(0, (3, 5), False)
    mask_TN = router.route(x_BLD.flatten(0, 1), ctx).plan
    for sequence in range(3):
        alone = router.route(x_BLD[sequence], libmoe.core.context.ForwardContext().layer(0, (1, 5), False)).plan
        here_A = mask_TN.token_A // 5 == sequence
        assert torch.equal(mask_TN.kept_A[here_A], alone.kept_A)
    assert not mask_TN.kept_A.all()


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "dense"])  # which routes nothing
def test_with_places_per_request_no_company_reaches_the_victim(name: str) -> None:
    """Whatever the router, and with the few places of which others would take some."""
    layers = [libmoe.create(name).build_layer(site(D, index, 2)) for index in range(2)]
    model = OverIds(Stack(layers)).double().eval()
    ids_RL = requests(2 * ROWS)
    serving = Serving(capacity_factor=1.0 if limited(model) else BUILT, group="sequence")
    usual = answer(model, serving, ids_RL[:ROWS], ROWS - 1)
    for others in (ids_RL[ROWS - 1 : ROWS].expand(ROWS - 1, -1), ids_RL[ROWS + 1 :], torch.full((ROWS - 1, L), 3)):
        now = answer(model, serving, torch.cat([others, ids_RL[ROWS - 1 : ROWS]]), ROWS - 1)
        assert now.experts == usual.experts
        torch.testing.assert_close(now.logits_V, usual.logits_V, atol=1e-10, rtol=0)


class OverIds(nn.Module):
    """A stack of layers under an embedding."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(V, D), stack.layers
        install(self)

    def forward(self, input_ids: Tensor) -> Any:
        h_BLD = 2 * self.embed(input_ids)
        for layer in self.layers:
            h_BLD = h_BLD + layer(h_BLD)
        return SimpleNamespace(logits=h_BLD)


# -- the attack and the defences, measured ----------------------------------------------------------------


def test_the_attack_succeeds_where_places_are_few_and_fails_where_there_is_room(trained: Adder) -> None:
    conditions = {
        "few": EXPOSED,
        "all": Serving(capacity_factor=None),
        "own": Serving(capacity_factor=1.0, group="sequence"),
    }
    rows = expose(trained, requests(40, seed=3), SETTING, conditions, victims=12)
    few, everyone, own = (by_company([r for r in rows if r.serving == name]) for name in conditions)
    assert few["copies"].flipped.value > few["strangers"].flipped.value
    assert few["search"].harm.value > few["strangers"].harm.value, "knowing nothing of the victim but its answer"
    assert few["copies"].lost.value > 0.25 > abs(few["strangers"].lost.value)
    for row in (*everyone.values(), *own.values()):
        assert row.flipped.value == row.lost.value == 0 and abs(row.harm.value) < 1e-9


def test_random_order_takes_from_copies_what_they_do(trained: Adder) -> None:
    conditions = {"last": EXPOSED, "shuffled": replace(EXPOSED, shuffle=True)}
    last, shuffled = expose(
        trained, requests(40, seed=3), SETTING, conditions, victims=24, companies=["copies"], repeats=8
    )
    assert shuffled.flipped.value < last.flipped.value and shuffled.lost.value < 0.5 * last.lost.value


def test_the_attack_fades_as_places_grow(trained: Adder) -> None:
    factors = (1.0, 1.25, 2.0, 4.0)
    conditions = {str(factor): Serving(capacity_factor=factor, group="batch") for factor in factors}
    rows = expose(trained, requests(40, seed=3), SETTING, conditions, victims=24, companies=["copies"])
    flips = [row.flipped.value for row in rows]
    assert flips[0] > flips[2] >= flips[3] == 0, flips


def test_the_search_does_more_harm_the_more_it_may_ask(trained: Adder) -> None:
    victim_L = requests(1, seed=4)[0]
    harms = []
    for queries in (1, 60):
        setting = Setting(rows=ROWS, queries=queries, vocabulary=V)
        with serve(trained, EXPOSED):
            service = Service(trained, EXPOSED)
            token = int(service(victim_L[None], 0).logits_V.argmax())
            others_OL = search(service, victim_L, token, setting, torch.Generator().manual_seed(0))
            harms.append(-float(service(setting.batch(victim_L, others_OL), ROWS - 1).logits_V.log_softmax(0)[token]))
            assert service.calls == queries + 2
    assert harms[1] > harms[0]


# -- its parts --------------------------------------------------------------------------------------------


def test_serving_leaves_the_model_as_it_was(trained: Adder) -> None:
    trained.train()
    before = [(r.eval_capacity_factor, r.places) for r in limited(trained)]
    with pytest.raises(ZeroDivisionError), serve(trained, Serving(capacity_factor=0.5, group="sequence")):
        assert {r.eval_capacity_factor for r in limited(trained)} == {0.5} and not trained.layers.training
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert before == [(r.eval_capacity_factor, r.places) for r in limited(trained)] and trained.layers.training
    trained.eval()


def test_drawn_experts_come_in_proportion_to_their_scores_and_weigh_as_before() -> None:
    router = TopKRouter(D, 4, 1, renormalise=False).double().eval()
    with torch.no_grad():
        router.gate.weight.mul_(30)
    x_TD = torch.randn(1, D).double().expand(20_000, -1)
    with options(interventions=[SampleExperts()]):
        ctx = libmoe.core.context.ForwardContext().layer(0, (1, len(x_TD)), False)
        plan = router.route(x_TD, ctx).plan
    scores_N = router.gate(x_TD[:1]).softmax(1)[0]
    torch.testing.assert_close(plan.load_N().double() / len(x_TD), scores_N, atol=0.015, rtol=0)
    torch.testing.assert_close(plan.weight_A, scores_N[plan.expert_A])


def test_the_audit_of_a_model_names_what_leaks(trained: Adder) -> None:
    report = audit_model(trained)
    assert report.causal and report.batch_independent and report.padding_invariant and not report.evidence
    with serve(trained, EXPOSED):
        report = audit_model(trained)
    assert not report.batch_independent and not report.causal
    assert "of layer 0 when" in report.evidence
    assert set(defences(trained, True)) == {
        "even share of places", "random order", "experts drawn", "places per request", "twice as many places",
        "places for all",
    }  # fmt: skip
    assert list(defences(Adder("random"), True)) == []
    assert "as built" in defences(Adder("expert-choice"), False)


def test_an_interval_of_shares_knows_how_few_victims_there_were() -> None:
    assert share([1.0] * 8).low == pytest.approx(0.676, abs=1e-3) and share([1.0] * 8).high == 1
    assert share([0.0] * 8).high == pytest.approx(1 - 0.676, abs=1e-3)
    assert share([1.0, 0.0] * 50)[2:4] == pytest.approx((0.404, 0.596), abs=1e-3)


def test_impossible_settings_are_refused(trained: Adder) -> None:
    with pytest.raises(ConfigError, match="place=8"):
        Setting(rows=8, place=8, vocabulary=V)
    with pytest.raises(ConfigError, match="queries=0"):
        Setting(queries=0, vocabulary=V)
    with pytest.raises(ConfigError, match=r"capacity_factor=1\.0: no router"), serve(Adder("random"), EXPOSED):
        pass
    with pytest.raises(ConfigError, match="3 requests are too few; give 8"):
        expose(trained, requests(3), SETTING, {"": Serving()}, victims=2)
    with pytest.raises(ConfigError, match=r"'copy'.*'copies'"):
        expose(trained, requests(8), SETTING, {"": Serving()}, companies=["copy"])


def test_company_is_put_around_the_victim() -> None:
    victim_L, others_OL = torch.zeros(2), torch.arange(1, 3)[:, None].expand(-1, 2)
    for place in range(-3, 3):
        batch_BL = Setting(rows=3, place=place, vocabulary=V).batch(victim_L, others_OL)
        assert (batch_BL[place] == 0).all() and sorted(batch_BL[:, 0].tolist()) == [0, 1, 2]
    assert copies(None, victim_L, 0, Setting(rows=3, vocabulary=V), None).shape == (2, 2)
