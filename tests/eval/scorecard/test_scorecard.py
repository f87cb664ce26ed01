"""Every field is measured, and a model beside itself has lost and gained nothing (arXiv 2412.14219)."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from comparable import KINDS, few_experts
from libmoe.core.errors import ConfigError
from libmoe.eval.scorecard import Preparation, Protocol, Scorecard, markdown, scorecard
from libmoe.eval.scorecard.energy import JOULES_PER_BYTE, JOULES_PER_FLOP
from libmoe.methods import METHODS
from libmoe.models import BackboneConfig, account, build_backbone, moeify


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small corpus of two domains."""
    folder = tmp_path_factory.mktemp("data")
    for domain in ("one", "two"):
        lines = [
            json.dumps({"text": f"{domain}: text number {i}, and a few more words about {i * i}."})
            for i in range(60)
        ]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.fixture
def small(data: str) -> Protocol:
    return Protocol(
        data=data, windows=1, seq_len=32, task_limit=4, prompt=24, new_tokens=3, batches=(1, 8, 64), repeats=2
    )


def backbone(seed: int = 0, tied: bool = False, **more: Any) -> nn.Module:
    config = BackboneConfig(
        architecture="llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=2048, max_position_embeddings=64, tie_word_embeddings=tied, **more,
    )  # fmt: skip
    return build_backbone(config, seed=seed).eval()


def numbers(value: Any) -> list[float]:
    """Every number inside a value."""
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, (list, tuple)):
        return [n for v in value for n in numbers(v)]
    return [float(value)] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize("method", [name for name in KINDS if name != "dense"])
def test_the_identity_has_all_fields_finite_and_changes_nothing(
    method: str, tokenizer: Any, small: Protocol
) -> None:
    model = moeify(backbone(), method, options=few_experts(method, 4), seed=0).eval()
    card = scorecard(model, tokenizer, base=model, protocol=small)
    found = card.to_dict()
    assert set(found) == {field.name for field in fields(Scorecard)}
    assert None not in found.values()
    assert all(math.isfinite(n) for n in numbers(found))
    assert card.bits_per_byte_delta == card.perplexity_change == 0
    assert card.tasks_delta == {"moe_cloze": 0.0}
    assert card.bytes_ratio == 1
    assert set(card.token_seconds) == set(card.tokens_per_second) == {1, 8, 64}
    assert min(card.prefill_seconds, *card.token_seconds.values()) > 0
    assert card.causal == METHODS.info(method).facts.get("causal", True) == (not card.batch_dependent)
    assert json.dumps(found, allow_nan=False)


def test_what_is_lost_shows(tokenizer: Any, small: Protocol) -> None:
    base = moeify(backbone(), "smoe", options={"num_experts": 4}, seed=0).eval()
    worse = copy.deepcopy(base)
    with torch.no_grad():
        worse.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    card = scorecard(worse.to(torch.bfloat16), tokenizer, base=base, protocol=small)
    assert card.bits_per_byte_delta is not None and card.bits_per_byte_delta > 0.1
    # Perplexity and bits per byte are one loss in two units.
    assert card.perplexity_change is not None and card.perplexity_change > 0
    assert card.bytes_ratio == pytest.approx(0.5, rel=1e-3)  # buffers keep their precision


def test_bytes_and_activity_are_those_of_the_experts_a_token_uses(tokenizer: Any, small: Protocol) -> None:
    model = moeify(backbone(), "smoe", options={"num_experts": 4, "top_k": 2}, seed=0).eval()
    card = scorecard(model, tokenizer, protocol=small)
    assert card.active_experts_mean == pytest.approx(2) and card.active_experts_worst == 2
    assert (
        card.total_bytes
        == card.resident_bytes
        == 4 * sum(p.numel() for p in model.parameters())
        + sum(b.nbytes for b in {b.data_ptr(): b for b in model.buffers()}.values())
    )
    cost = account(model, seq_len=24)
    idle = 4 * (cost.total_params - cost.active_params) + 4 * 2047 * 32  # and one row of the embedding
    cache = 2 * 2 * 24 * 32 * 4  # keys and values of two layers
    assert card.bytes_per_token == pytest.approx(card.total_bytes - idle + cache)
    assert card.flops_per_token == cost.flops_per_token
    assert card.energy_per_token == pytest.approx(
        card.flops_per_token * JOULES_PER_FLOP + card.bytes_per_token * JOULES_PER_BYTE
    )


def test_a_tied_head_reads_the_whole_table(tokenizer: Any, small: Protocol) -> None:
    model = moeify(backbone(tied=True), "smoe", options={"num_experts": 2, "top_k": 2}, seed=0).eval()
    card = scorecard(model, tokenizer, protocol=small)
    assert card.bytes_per_token == pytest.approx(card.total_bytes + 2 * 2 * 24 * 32 * 4)


def test_experts_without_parameters_are_not_active(tokenizer: Any, small: Protocol) -> None:
    model = moeify(backbone(), "moe-plus-plus", options={"num_experts": 4}, seed=0).eval()
    card = scorecard(model, tokenizer, protocol=small)
    assert card.active_experts_worst == 2 and 0 < card.active_experts_mean < 2


def test_a_dense_model_without_a_base(tokenizer: Any, small: Protocol) -> None:
    card = scorecard(backbone(), tokenizer, protocol=small, preparation=Preparation(calibration_tokens=5))
    assert card.base is card.bytes_ratio is card.bits_per_byte_delta is card.tasks_delta is None
    assert card.active_experts_mean == card.active_experts_worst == 0
    assert card.preparation.calibration_tokens == 5 and not card.preparation.retraining
    assert card.causal and not card.batch_dependent


def test_a_table_of_several(tokenizer: Any, small: Protocol) -> None:
    model = moeify(backbone(), "smoe", options={"num_experts": 4}, seed=0).eval()
    small = replace(small, task_limit=2, prompt=8, new_tokens=1, batches=(1, 2), repeats=1)
    cards = [
        scorecard(model, tokenizer, base, name=n, protocol=small) for n, base in (("a|b", model), ("c", None))
    ]
    lines = markdown(cards).splitlines()
    assert lines[0] == "|  | a\\|b | c |"
    assert "| - against the base | +0.0000 | - |" in lines
    assert "| weights, MB |" in markdown(cards) and "time per output token at batch 2, ms" in markdown(cards)
    assert all(line.replace("\\|", "").count("|") == 4 for line in lines)


def test_what_cannot_be_measured_is_said(tokenizer: Any, small: Protocol) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM, T5Config, T5ForConditionalGeneration

    mixtral = MixtralConfig(
        vocab_size=2048, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="bring MixtralForCausalLM in with"):
        scorecard(MixtralForCausalLM(mixtral), tokenizer, protocol=small)
    t5 = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration is none"):
        scorecard(T5ForConditionalGeneration(t5), tokenizer, protocol=small)
    with pytest.raises(ConfigError, match="leave no room for a prompt in a window of 64 tokens"):
        scorecard(backbone(), tokenizer, protocol=replace(small, new_tokens=90))
    with pytest.raises(ConfigError, match="at least one task"):
        Protocol(tasks=())


def test_the_command_measures_a_standard_moe_model(
    data: str, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    from libmoe.cli.scorecard import run

    config = MixtralConfig(
        vocab_size=2048, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=3, max_position_embeddings=64,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = str(tmp_path / "model")
    options: dict[str, Any] = {"data": data, "limit": 2, "batches": [1, 2]}
    run(model, model, tmp_path / "card.json", **options, calibration_tokens=7, retrained=True)
    printed = capsys.readouterr()
    assert "experts per token, mean" in printed.out and "card.json" in printed.err
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["active_experts_mean"] == pytest.approx(3) and card["bytes_ratio"] == 1
    assert card["preparation"] == {"calibration_tokens": 7, "calibration_seconds": 0.0, "retraining": True}
    run(model, None, tmp_path / "card.md", **options, as_json=True)
    assert json.loads(capsys.readouterr().out)["base"] is None
    assert (tmp_path / "card.md").read_text().startswith("|  | ")
