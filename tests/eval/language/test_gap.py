"""The way from training loss to accuracy falls into parts that add up, and an optimum is only claimed where one is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from libmoe.core.errors import ConfigError, DataError
from libmoe.eval.language import Measured, decompose, fit_optimum, tokens_per_parameter
from libmoe.models import account, moeify

TPP = np.array([1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0])


def u_curve(tpp: np.ndarray, best: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    clean = 0.8 + 0.05 * np.log(tpp / best) ** 2
    return clean + noise * np.random.default_rng(seed).standard_normal(len(tpp))


@pytest.mark.parametrize("best", [5.0, 20.0, 50.0])
def test_a_planted_u_curve_is_recovered(best: float) -> None:
    found = fit_optimum(TPP, u_curve(TPP, best))
    assert found.verdict == "optimum" and found.tpp == pytest.approx(best, rel=1e-9)
    c0, c1, c2 = found.coefficients
    assert c2 == pytest.approx(0.05) and c0 + c1 * math.log(7) + c2 * math.log(7) ** 2 == pytest.approx(
        u_curve(np.array([7.0]), best)[0]
    )


def test_with_noise_the_interval_covers_the_planted_optimum() -> None:
    found = [fit_optimum(TPP, u_curve(TPP, 20.0, noise=0.03, seed=seed), resamples=300) for seed in range(60)]
    assert sum(f.low <= 20.0 <= f.high for f in found) >= 0.9 * len(found)
    assert sum(f.verdict == "optimum" for f in found) >= 0.9 * len(found)
    assert all(TPP[0] <= f.low <= f.tpp <= f.high <= TPP[-1] for f in found)


@pytest.mark.parametrize("falls", ["line", "flattens", "steepens"])
@pytest.mark.parametrize("rising", [False, True])
def test_monotone_data_yield_the_boundary_verdict(falls: str, rising: bool) -> None:
    x = np.log(TPP)
    loss = {"line": -x, "flattens": np.exp(-x), "steepens": -np.exp(x / 3)}[falls]
    found = fit_optimum(TPP, loss[::-1] if rising else loss)
    assert found.verdict == "boundary"


def test_on_a_noisy_plateau_no_optimum_is_claimed() -> None:
    claims = 0
    for seed in range(60):
        noise = 0.03 * np.random.default_rng(seed).standard_normal(len(TPP))
        claims += fit_optimum(TPP, 0.5 / TPP + noise, resamples=200).verdict == "optimum"
    assert claims <= 3


def test_an_optimum_that_noise_may_have_made_is_uncertain() -> None:
    loss = 1 + 0.001 * np.log(TPP / 12) ** 2 + np.array([0.02, -0.02, 0.03, -0.03, -0.05, 0.03, -0.02, 0.02])
    assert fit_optimum(TPP, loss).verdict == "uncertain"


def test_repeated_measurements_narrow_the_interval() -> None:
    once = fit_optimum(TPP, u_curve(TPP, 20.0, 0.05))
    often = np.tile(TPP, 8)
    many = fit_optimum(often, u_curve(often, 20.0, 0.05))
    assert math.log(many.high / many.low) < math.log(once.high / once.low)
    assert many == fit_optimum(often, u_curve(often, 20.0, 0.05))


def test_too_little_data_is_refused() -> None:
    with pytest.raises(DataError, match="four different values of tpp; there are 3"):
        fit_optimum([1, 2, 3, 3], [1, 2, 3, 4])
    with pytest.raises(DataError, match="positive and finite"):
        fit_optimum([0, 1, 2, 3], [1, 2, 3, 4])


def models(task: float = 0.0, error: float = 0.0) -> list[Measured]:
    """Four models on both lines, of which the last, the sparsest, has the given gaps."""
    found = []
    for name, training in (("dense", 3.0), ("e8", 2.8), ("e64", 2.6), ("e256", 2.4)):
        extra = (task, error) if name == "e256" else (0.0, 0.0)
        loss = 0.5 * training - 0.4 + extra[0]
        found.append(Measured(name, training, loss, 1 - (0.6 * loss - 0.1 + extra[1])))
    return found


def test_without_gaps_both_steps_are_lines_and_nothing_is_left() -> None:
    found = decompose(models())
    assert found.to_task_loss[:2] == pytest.approx((0.5, -0.4)) and found.to_error[:2] == pytest.approx(
        (0.6, -0.1)
    )
    assert found.to_task_loss.rank_correlation == pytest.approx(1.0)
    assert [*found.generalisation.values(), *found.accuracy.values()] == pytest.approx([0.0] * 8, abs=1e-12)


def test_planted_gaps_are_found_against_reference_models() -> None:
    found = decompose(models(task=0.2, error=0.05), reference=["dense", "e8", "e64"])
    assert found.generalisation["e256"] == pytest.approx(0.2) and found.accuracy["e256"] == pytest.approx(
        0.05
    )
    assert found.generalisation["e8"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("reference", [None, ["dense", "e8", "e64"]])
def test_the_parts_of_a_difference_add_up_to_the_difference_in_accuracy(reference: list[str] | None) -> None:
    all_of_them = {model.name: model for model in models(task=0.2, error=0.05)}
    found = decompose(list(all_of_them.values()), reference)
    for one in all_of_them:
        for other in all_of_them:
            parts = found.difference(one, other)
            assert parts.error == pytest.approx(all_of_them[other].accuracy - all_of_them[one].accuracy)
            assert sum(parts[1:]) == pytest.approx(parts.error, abs=1e-12)


def test_a_lower_training_loss_with_a_higher_task_loss_shows_in_the_rank_correlation() -> None:
    assert decompose(models(task=0.5)).to_task_loss.rank_correlation < 0.5


def test_undetermined_lines_and_unknown_models_are_refused() -> None:
    with pytest.raises(DataError, match="two models that differ in training_loss"):
        decompose(models()[:1])
    with pytest.raises(ConfigError, match="unknown model 'e25'; did you mean 'e256'"):
        decompose(models(), reference=["e25"])
    with pytest.raises(ConfigError, match="unknown model 'e9'"):
        decompose(models()).difference("e8", "e9")


def test_tokens_per_parameter_count_all_experts_and_tell_embeddings_apart(moe: nn.Module) -> None:
    found = tokens_per_parameter(moe, 1_000_000)
    total = sum(p.numel() for p in moe.parameters())
    table = moe.get_input_embeddings().weight.numel()
    tables = table if moe.get_output_embeddings().weight is moe.get_input_embeddings().weight else 2 * table
    assert found.total == pytest.approx(1e6 / total) and found.total_body == pytest.approx(
        1e6 / (total - tables)
    )
    assert found.active > found.total and found.active_body > found.total_body
    assert found.active == pytest.approx(1e6 / account(moe).active_params)


@pytest.mark.parametrize(
    ("width", "experts", "total", "active"), [(512, 8, 320e6, 170e6), (1024, 16, 1.9e9, 470e6)]
)
def test_models_of_the_sweep_have_their_published_sizes(
    width: int, experts: int, total: float, active: float
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config: Any = LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=16, num_attention_heads=width // 64,
        num_key_value_heads=width // 64, vocab_size=99_500, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = moeify(
            LlamaForCausalLM(config),
            "smoe",
            options={"num_experts": experts, "top_k": 2, "expert_hidden": 2 * width},
        )
    cost = account(model)
    assert cost.total_params == pytest.approx(total, rel=0.02) and cost.active_params == pytest.approx(
        active, rel=0.02
    )
    # About 125 billion tokens: the wider model has seen about 66 per parameter.
    assert tokens_per_parameter(model, 125e9).total == pytest.approx(125e9 / total, rel=0.02)
