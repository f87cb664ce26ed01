"""What a model costs, checked against what torch counts when the model really runs."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.utils.checkpoint import set_checkpoint_early_stop

from intended import as_intended
from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.experts import FFNExperts, ValueExperts
from libmoe.layers import moe_layers
from libmoe.methods import METHODS
from libmoe.models import account, build_backbone, moeify
from libmoe.models.accounting import flop_counter
from libmoe.testing.probes import default_side
from libmoe.train.parallel import recompute_blocks

FOUR = {"num_experts": 4, "top_k": 2}


def counted(model, inputs) -> int:
    with torch.no_grad(), flop_counter() as counter:
        model(**inputs)
    return counter.get_total_flops()


def text(model, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 97, (1, length))
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}


@pytest.mark.parametrize("method", ["dense", "smoe"])
@pytest.mark.parametrize("architecture", ["llama", "bert", "vit", "gpt2", "t5", "whisper", "deepseek_v3"])
def test_flops_are_those_of_a_real_forward_pass(tiny, batch_of, architecture, method) -> None:
    model = moeify(tiny(architecture), method, options=FOUR if method == "smoe" else {})
    is_text = architecture not in ("vit", "whisper")
    inputs = text(model, 12) if is_text else {name: value[:1] for name, value in batch_of(model).items()}
    cost = account(model, seq_len=12)
    assert cost.flops_per_token * cost.tokens == pytest.approx(counted(model, inputs), rel=0.01)
    assert cost.train_flops_per_token == pytest.approx(3 * cost.flops_per_token)


@pytest.mark.parametrize("architecture", ["llama", "vit", "gpt2", "t5"])
def test_what_checkpointing_adds_are_the_blocks_once_more_and_not_the_head(tiny, batch_of, architecture) -> None:
    model = moeify(tiny(architecture), "dense").train()
    inputs = {name: value[:1] for name, value in batch_of(model).items()} if architecture == "vit" else text(model, 12)
    taken = []
    for recompute in (False, True):
        if recompute:
            recompute_blocks(model)
        # Torch stops a block's repetition at its last product, whose result nobody asks for; formulas count it whole.
        with flop_counter() as counter, set_checkpoint_early_stop(False):
            model(**inputs).logits.sum().backward()
        taken.append(counter.get_total_flops())
    plain, again = (account(model, 12, recompute=recompute) for recompute in (False, True))
    added = again.train_flops_per_token - plain.train_flops_per_token
    assert 0 < added < plain.flops_per_token
    assert added * plain.tokens == pytest.approx(taken[1] - taken[0], rel=0.01)


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_costs_what_it_declares_at_the_load_it_aims_at(tiny, name) -> None:
    """Untrained routers do not yet load experts as they aim to."""
    model = moeify(tiny("llama", hidden_size=64, intermediate_size=256), name, seed=0)
    for _, layer in moe_layers(model):
        layer.router.forward = functools.partial(as_intended, layer.router)
    cost = account(model, seq_len=128)
    with options(side=default_side(1)):
        real = counted(model, text(model, 128))
    for _, layer in moe_layers(model):
        if isinstance(layer.experts, ValueExperts):  # torch counts no weighted sums of table rows
            real += 128 * layer.router.mixing_flops(64)
    assert cost.flops_per_token * cost.tokens == pytest.approx(real, rel=0.05)
    assert 0 < cost.active_params <= cost.total_params == sum(p.numel() for p in model.parameters())


def test_attention_is_counted_by_either_implementation(tiny) -> None:
    costs = [account(tiny("llama", extra={"attn_implementation": kind}), 64) for kind in ("sdpa", "eager")]
    assert costs[0].flops_per_token == costs[1].flops_per_token
    scores_and_values = 2 * 2 * 2 * 64 * 32  # two layers, two products, multiply and add, keys, width
    linears = account(tiny("llama"), 1).flops_per_token - 2 * 2 * 2 * 1 * 32
    assert costs[0].flops_per_token == linears + scores_and_values


def test_dense_flops_are_two_per_weight_and_token(tiny) -> None:
    model = tiny("llama", tie_word_embeddings=False)
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    attention = 2 * 2 * 2 * 16 * 32
    assert account(model, 16).flops_per_token == 2 * matrices + attention


def test_active_parameters_are_those_one_token_uses(tiny) -> None:
    model = moeify(tiny("llama"), "smoe", options=FOUR)
    cost = account(model, 8)
    experts = sum(p.numel() for _, layer in moe_layers(model) for p in layer.experts.parameters())
    assert cost.expert_params == experts
    assert cost.active_params == cost.total_params - experts // 2
    assert cost.router_params == 2 * 4 * 32


def test_experts_that_cost_nothing_count_for_nothing(tiny) -> None:
    model = moeify(tiny("llama"), "moe-plus-plus")
    bank = next(m for m in model.modules() if isinstance(m, FFNExperts))
    per_expert = sum(p[0].numel() for p in bank.parameters())
    cost, plain = account(model, 8), account(moeify(tiny("llama"), "smoe"), 8)
    assert cost.active_params < plain.active_params < cost.active_params + 2 * 2 * per_expert


def test_memory_follows_the_dtypes_of_the_parameters(tiny) -> None:
    model = moeify(tiny("llama"), "smoe")
    cost = account(model, 8)
    assert cost.memory_bytes == {
        "weights": 4 * cost.total_params,
        "gradients": 4 * cost.total_params,
        "adamw": 8 * cost.total_params,
    }
    model.requires_grad_(False)
    assert account(model.bfloat16(), 8).memory_bytes == {
        "weights": 2 * cost.total_params,
        "gradients": 0,
        "adamw": 0,
    }


def test_models_without_memory_are_counted_alike(tiny, config_of) -> None:
    with torch.device("meta"):
        model = moeify(build_backbone(config_of("llama")), "smoe", options=FOUR)
    assert account(model, 8) == account(moeify(tiny("llama"), "smoe", options=FOUR), 8)


def test_counting_leaves_the_model_as_it_was(tiny, answer) -> None:
    model = moeify(tiny("llama"), "smoe", options=FOUR).train()
    account(model, 8)
    assert model.training
    assert all("forward" not in vars(layer) for _, layer in moe_layers(model))
    assert answer(model.eval()).isfinite().all()


def test_what_cannot_run_is_named(tiny, monkeypatch) -> None:
    model = moeify(tiny("gpt2", max_position_embeddings=16), "smoe", options=FOUR)

    def silent(self):
        raise NotImplementedError("TopKRouter defines no expected_load()")

    monkeypatch.setattr(type(model.transformer.h[0].mlp.c_fc.router), "expected_load", silent)
    with pytest.raises(
        ConfigError, match="cannot account for MoE layer 0: TopKRouter defines no expected_load"
    ):
        account(model, 8)
