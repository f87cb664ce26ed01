"""Task-level MoE (arXiv 2110.03742): tasks and sentences decide as one, and a task can be cut out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.context import ForwardContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.site import Site
from libmoe.experts import FFN
from libmoe.experts.joined import join
from libmoe.layers import MoELayer, moe_layers
from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.models.extracting import extract_group
from libmoe.models.receipt import count_parameters
from libmoe.testing import audit, check_method

N, D, TASKS, V = 8, 16, 5, 50


def build(training: bool = True, **given: Any) -> MoELayer:
    method = libmoe.create("task-moe", {"num_experts": N, "tasks": TASKS, "draw_second": "never", **given})
    layer = method.build_layer(Site(D, 24, seed=0, init_std=0.2))
    for gate in (module for module in layer.router.modules() if type(module).__name__ == "LinearGate"):
        nn.init.normal_(gate.weight)
    return layer.double().train(training)


def route(layer: MoELayer, x_BLD: Tensor, tasks: Tensor | None = None, **inputs: Tensor) -> Routing:
    with options(side={} if tasks is None else {"task": tasks}):
        ctx = ForwardContext(inputs).layer(0, tuple(x_BLD.shape[:2]), layer.training)
    return layer.route(x_BLD.flatten(0, 1), ctx)


def by_row(plan: SparsePlan, rows: int) -> list[set[tuple[int, ...]]]:
    """The pairs of experts that the tokens of each row use."""
    return [set(map(tuple, row.tolist())) for row in plan.expert_A.view(rows, -1, 2)]


def language_model(architecture: str = "llama", **given: Any) -> Any:
    """Untrained, with matrices so large that what it reads matters."""
    config = BackboneConfig(architecture, 32, 2, intermediate_size=48, num_attention_heads=4, vocab_size=V)
    model = libmoe.moeify(build_backbone(config, seed=0), "task-moe", options={"tasks": TASKS, **given}, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8 if architecture == "llama" else 3)
    return model.eval()


# -- tasks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_all_tokens_of_a_task_have_the_same_experts_and_weights_whatever_they_are(training: bool) -> None:
    layer, tasks = build(training), torch.arange(TASKS).repeat(2)
    first, second = (route(layer, torch.randn(len(tasks), 6, D).double(), tasks) for _ in range(2))
    assert torch.equal(first.plan.expert_A, second.plan.expert_A)
    assert torch.equal(first.plan.weight_A, second.plan.weight_A)
    rows = by_row(first.plan, len(tasks))
    assert all(len(row) == 1 for row in rows) and rows[:TASKS] == rows[TASKS:]
    assert len({pair for row in rows for pair in row}) > 1, "tasks differ"
    with options(side={"task": torch.tensor([[0, 3]])}):  # a number for each token
        mixed = layer.route(torch.randn(2, D).double(), ForwardContext().layer(0, (1, 2), training)).plan
    assert [set(map(tuple, mixed.expert_A.view(2, 2)[i : i + 1].tolist())) for i in (0, 1)] == [rows[0], rows[3]]


def test_the_choice_is_top_2_of_the_softmax_of_the_embedding() -> None:
    layer, tasks = build(), torch.tensor([4, 1])
    routing = route(layer, torch.randn(2, 3, D).double(), tasks)
    gate = layer.router.gate
    for t in range(6):
        g_N = (gate.gate.weight @ gate.table.weight[tasks[t // 3]]).softmax(0)
        best = g_N.topk(2)
        assert routing.plan.expert_A.view(-1, 2)[t].tolist() == best.indices.tolist()
        torch.testing.assert_close(routing.plan.weight_A.view(-1, 2)[t], best.values / best.values.sum())


def test_the_gradient_reaches_the_embeddings_of_tasks_that_are_there_and_no_others() -> None:
    layer, tasks = build(balance=0.0), torch.tensor([0, 3])
    x_BLD = torch.randn(2, 4, D).double()
    layer.execute(x_BLD.flatten(0, 1), route(layer, x_BLD, tasks)).square().sum().backward()
    moved = layer.router.gate.table.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [True, False, False, True, False]


def test_all_tokens_of_one_task_load_exactly_two_experts_with_everything() -> None:
    plan = route(build(), torch.randn(3, 7, D).double(), torch.full((3,), 2)).plan
    assert sorted(plan.load_N().tolist()) == [0.0] * (N - 2) + [21.0] * 2
    assert plan.kept_A is None, "and nothing is dropped by default"
    crowded = route(build(capacity_factor=1.0), torch.randn(3, 7, D).double(), torch.full((3,), 2)).plan
    assert int(crowded.kept_A.sum()) == 2 * 6, "a capacity for even loads drops most of it: ceil(2 * 21 / 8) places"


def test_the_second_expert_is_left_to_chance_while_training_alone() -> None:
    x_BLD, tasks = torch.randn(4, 50, D).double(), torch.arange(4)
    plan = route(build(draw_second="train"), x_BLD, tasks).plan
    kept_BLK = plan.kept_A.view(4, 50, 2)
    assert kept_BLK[..., 0].all() and not kept_BLK[..., 1].all()
    share_B = plan.weight_A.view(4, 50, 2)[:, 0, 1]
    expected_B = (2 * share_B).clamp_max(1).float()
    assert ((kept_BLK[..., 1].float().mean(1) - expected_B).abs() < 0.3).all()
    assert route(build(False, draw_second="train"), x_BLD, tasks).plan.kept_A is None


def test_a_task_that_is_missing_or_unknown_is_refused_by_name_and_padding_may_have_any() -> None:
    layer, x_BLD = build(), torch.randn(1, 4, D).double()
    with pytest.raises(ConfigError, match="no side input 'task'"):
        route(layer, x_BLD)
    with pytest.raises(ConfigError, match="side input 'task' says 5; this router knows 0 to 4"):
        route(layer, x_BLD, torch.tensor([5]))
    mask = torch.tensor([[1, 1, 0, 0]])
    route(layer, x_BLD, torch.tensor([[1, 1, -1, 99]]), attention_mask=mask)


# -- sentences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_a_sentence_has_one_choice_and_the_order_of_its_tokens_does_not_matter_to_the_mean(pool: str) -> None:
    layer, x_BLD = build(granularity="sentence", pool=pool), torch.randn(6, 9, D).double()
    plan = route(layer, x_BLD).plan
    assert all(len(row) == 1 for row in by_row(plan, 6)) and len({min(row) for row in by_row(plan, 6)}) > 1
    turned = route(layer, x_BLD.flip(1)).plan
    assert (by_row(turned, 6) == by_row(plan, 6)) == (pool == "mean")
    for b in range(6):
        r_D = x_BLD[b].mean(0) if pool == "mean" else x_BLD[b, 0]
        expected = (layer.router.gate.gate.weight @ r_D).topk(2).indices.tolist()
        assert by_row(plan, 6)[b] == {tuple(expected)}


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_sentences_are_those_of_packed_documents_and_padding_is_in_none(pool: str) -> None:
    layer, x_LD = build(False, granularity="sentence", pool=pool), torch.randn(9, D).double()
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = route(layer, x_LD[None], position_ids=positions).plan.expert_A.view(9, 2)
    for part in (slice(0, 4), slice(4, 9)):
        alone = route(layer, x_LD[None, part]).plan.expert_A.view(-1, 2)
        assert torch.equal(packed[part], alone)
        for left in (False, True):
            junk = 100 * torch.randn(3, D).double()
            rows = [junk, x_LD[part]] if left else [x_LD[part], junk]
            mask = torch.cat([torch.full((len(row),), int(row is not junk)) for row in rows])[None]
            padded = route(layer, torch.cat(rows)[None], attention_mask=mask).plan.expert_A.view(-1, 2)
            assert torch.equal(padded[mask[0].bool()], alone)


def test_the_mean_of_a_sentence_sees_the_future_and_its_first_token_does_not() -> None:
    for pool, causal in (("mean", False), ("first", True)):
        check_method("task-moe", {"granularity": "sentence", "pool": pool})
        assert audit(libmoe.create("task-moe", granularity="sentence", pool=pool)).causal is causal


def generated(model: Any, ids: Tensor, mask: Tensor, **more: Any) -> Tensor:
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True, **more,
    )  # fmt: skip
    return torch.stack(found.logits, 1)


@pytest.mark.parametrize("architecture", ["llama", "t5"])
@pytest.mark.parametrize("granularity", ["task", "sentence"])
def test_generation_with_a_cache_is_the_full_forward_pass(architecture: str, granularity: str) -> None:
    model = language_model(architecture, granularity=granularity, pool="first")
    ids, mask = torch.randint(1, V, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    mask[1, :3] = 0
    with options(side={"task": torch.tensor([0, 3, 1])}):
        cached, full = (generated(model, ids, mask, use_cache=cache) for cache in (True, False))
    torch.testing.assert_close(cached, full, rtol=1e-4, atol=1e-4)
    assert not any(len(getattr(layer.router.gate, "kept", ())) for _, layer in moe_layers(model)), "nothing is left"


def test_what_cannot_be_generated_with_a_cache_is_refused() -> None:
    ids = torch.randint(1, V, (2, 5))
    with pytest.raises(ConfigError, match="use_cache=False"):
        generated(language_model(granularity="sentence", pool="mean"), ids, torch.ones_like(ids))
    model = language_model(granularity="sentence", pool="first")
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values  # made inside, not seen from its beginning
        with pytest.raises(ConfigError, match="seen from its beginning"):
            model(ids[:, :1], past_key_values=cache)


# -- sub-networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["plain", "shared"])
def test_the_network_of_a_task_is_cut_out_and_computes_what_the_full_model_does(top: str) -> None:
    model = language_model(**({"shared_hidden": 20} if top == "shared" else {}))
    ids, before = torch.randint(V, (3, 7)), {n: p.clone() for n, p in model.state_dict().items()}
    for task in (0, 4):
        cut = extract_group(model, task)
        assert (len(cut.replaced), cut.left) == (2, [])
        with torch.no_grad(), options(side={"task": torch.full((3,), task)}):
            expected = model(ids).logits
        with torch.no_grad():
            torch.testing.assert_close(cut.model(ids).logits, expected, rtol=1e-5, atol=1e-5)
            with options(side={"task": torch.full((3,), 1)}):
                other = model(ids).logits
        assert (other - expected).abs().max() > 1e-2, "another task is another network"
        assert not list(moe_layers(cut.model)) and not hasattr(cut.model, "libmoe")
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items()), "the model is left as it is"
    cut.model(ids).logits.sum().backward()
    assert all(p.grad is None for p in model.parameters()), "and shares nothing with what was cut out"


def test_the_size_of_a_tasks_network_does_not_depend_on_how_many_experts_there_were() -> None:
    sizes = {count_parameters(extract_group(language_model(num_experts=n), 1).model) for n in (2, 8, 16)}
    assert len(sizes) == 1
    assert count_parameters(language_model(num_experts=16)) > 3 * sizes.pop()


def test_an_encoder_by_token_stays_and_the_decoder_is_cut_out() -> None:
    model = language_model("t5", encoder_granularity="token", num_experts=4)
    cut = extract_group(model, 2)
    assert all(path.startswith("encoder") for path in cut.left) and len(cut.left) == 2
    assert all(path.startswith("decoder") for path in cut.replaced) and len(cut.replaced) == 2
    ids, start = torch.randint(1, V, (2, 6)), torch.randint(1, V, (2, 4))
    with torch.no_grad(), options(side={"task": torch.full((2,), 2)}):
        expected = model(input_ids=ids, decoder_input_ids=start).logits
    with torch.no_grad():
        found = cut.model(input_ids=ids, decoder_input_ids=start).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_has_no_network_of_its_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layer that a group's number decides"):
        extract_group(language_model(granularity="token"), 0)
    with pytest.raises(ConfigError, match="this router knows 0 to 4"):
        extract_group(language_model(), TASKS)
    with pytest.raises(ConfigError, match="gated by the token cannot be folded"):
        extract_group(language_model(shared_hidden=8, shared_gate=True), 0)


@pytest.mark.parametrize(("activation", "gated"), [("relu", False), ("gelu", False), ("silu", True)])
@pytest.mark.parametrize("bias", [False, True])
def test_two_experts_are_exactly_one_of_double_width(activation: str, gated: bool, bias: bool) -> None:
    ffns = [FFN(D, width, activation, gated, bias, 0.5).double() for width in (12, 12)]
    for ffn in ffns:
        for name in ("b_in", "b_out") if bias else ():
            nn.init.normal_(getattr(ffn, name))
    joined, x_TD = join(ffns, [0.7, 0.3]), torch.randn(20, D).double()
    assert joined.w_out.shape == (D, 24)
    torch.testing.assert_close(joined(x_TD), 0.7 * ffns[0](x_TD) + 0.3 * ffns[1](x_TD))


def test_networks_of_different_forms_are_not_joined() -> None:
    with pytest.raises(ConfigError, match="networks of 2 forms cannot be joined"):
        join([FFN(D, 8), FFN(D, 8, gated=False)], [1.0, 1.0])
    with pytest.raises(ConfigError, match="1 networks with 2 weights"):
        join([FFN(D, 8)], [1.0, 1.0])


# -- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"granularity": "sentense"}, "did you mean 'sentence'"),
        ({"encoder_granularity": "words"}, "choose one of 'task', 'sentence', 'token'"),
        ({"pool": "last", "granularity": "sentence"}, "choose one of 'first', 'mean'"),
        ({"tasks": 0}, "tasks=0"),
        ({"balance_scope": "sequence"}, "balance_scope='sequence'"),
        ({"top_k": 3}, "takes two experts"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        libmoe.create("task-moe", given).build_layer(Site(D, 24))
