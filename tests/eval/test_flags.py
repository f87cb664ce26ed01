"""What scores depend on besides the sample is said in the result, for all methods and for models of transformers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comparable import few_experts
from libmoe.eval.flags import CROSS_BATCH, NON_CAUSAL, flags_of
from libmoe.methods import METHODS
from libmoe.models import moeify


def kinds(model: nn.Module) -> set[str]:
    return {flag["kind"] for flag in flags_of(model)}


@pytest.mark.parametrize("method", METHODS.names())
def test_flags_agree_with_the_facts_of_every_method(method: str, dense: nn.Module) -> None:
    model = moeify(dense, method, options=few_experts(method, 4), seed=0)
    facts = METHODS.info(method).facts
    expected = set()
    if not facts.get("causal", True):
        expected |= {NON_CAUSAL, CROSS_BATCH}  # likelihoods are computed on padded batches without a mask
    if not facts.get("batch_independent", True):
        expected.add(CROSS_BATCH)
    assert kinds(model) == expected


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("expert-choice", {"group": "batch"}, {NON_CAUSAL, CROSS_BATCH}),
        ("switch", {"eval_capacity_factor": 2.0}, {NON_CAUSAL, CROSS_BATCH}),
        ("switch", {"capacity_factor": 1.0}, set()),  # drops while training only
    ],
)
def test_options_decide(method: str, options: dict[str, Any], expected: set[str], dense: nn.Module) -> None:
    assert kinds(moeify(dense, method, options={"num_experts": 4, **options}, seed=0)) == expected


def test_a_flag_names_method_and_layers_in_a_sentence(dense: nn.Module) -> None:
    flags = flags_of(moeify(dense, "soft-moe", options={"num_experts": 4}, where=[1], seed=0))
    assert [flag["kind"] for flag in flags] == [CROSS_BATCH, NON_CAUSAL]
    for flag in flags:
        assert flag["method"] == "soft-moe" and flag["layers"] == ["model.layers.1.mlp"]
        assert "soft-moe" in flag["text"] and "\n" not in flag["text"]
    assert json.loads(json.dumps(flags)) == flags


def test_encoders_may_see_the_whole_text() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2
    )
    model = moeify(T5ForConditionalGeneration(config), "soft-moe", options={"num_experts": 4}, seed=0)
    (flag,) = (flag for flag in flags_of(model) if flag["kind"] == NON_CAUSAL)
    assert all(path.startswith("decoder.") for path in flag["layers"])


# -- models of transformers --------------------------------------------------------------------------------------------


def switch_transformers(capacity: int) -> Any:
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    config = SwitchTransformersConfig(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2, num_experts=2,
        expert_capacity=capacity, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return SwitchTransformersForConditionalGeneration(config).eval()


def encoded(model: Any, ids: Tensor, padding: int) -> Tensor:
    """What the encoder makes of ``ids`` behind so many tokens of padding."""
    ids_BL = torch.cat([torch.zeros(padding, dtype=torch.long), ids]).unsqueeze(0)
    mask_BL = (torch.arange(ids_BL.shape[1]) >= padding).long().unsqueeze(0)
    with torch.no_grad():
        return model.encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state[0, padding:]


@pytest.mark.parametrize(("capacity", "flagged"), [(3, True), (1 << 30, False)])
def test_switch_transformers_are_flagged_where_padding_takes_places(capacity: int, flagged: bool) -> None:
    model = switch_transformers(capacity)
    assert (kinds(model) == {CROSS_BATCH}) == flagged
    ids = torch.tensor([5, 6, 7])
    alone, padded = encoded(model, ids, 0), encoded(model, ids, 6)
    assert torch.allclose(alone, padded, atol=1e-5) != flagged
    if flagged:
        (flag,) = flags_of(model)
        assert flag["method"] == "SwitchTransformersForConditionalGeneration"
        assert "takes 3 tokens" in flag["text"] and len(flag["layers"]) == 2


def nllb_moe(fraction: float, capacity: int = 2) -> Any:
    from transformers import NllbMoeConfig, NllbMoeModel

    config = NllbMoeConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=24, decoder_ffn_dim=24,
        encoder_attention_heads=2, decoder_attention_heads=2, num_experts=2, expert_capacity=capacity,
        encoder_sparse_step=1, decoder_sparse_step=1, moe_eval_capacity_token_fraction=fraction,
    )  # fmt: skip
    torch.manual_seed(0)
    return NllbMoeModel(config).eval()


@pytest.mark.parametrize(("fraction", "flagged"), [(1.0, False), (0.25, True), (-1.0, True)])
def test_nllb_moe_is_flagged_where_the_batch_shares_the_places(fraction: float, flagged: bool) -> None:
    model = nllb_moe(fraction)
    assert (kinds(model) == {CROSS_BATCH}) == flagged
    torch.manual_seed(1)
    ids_BL = torch.randint(4, 50, (4, 6))
    with torch.no_grad():
        together = model.encoder(input_ids=ids_BL).last_hidden_state
        alone = torch.cat([model.encoder(input_ids=row[None]).last_hidden_state for row in ids_BL])
    assert torch.allclose(together, alone, atol=1e-5) != flagged


def test_models_without_capacity_have_no_flags(dense: nn.Module) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    assert flags_of(dense) == flags_of(MixtralForCausalLM(config)) == []
