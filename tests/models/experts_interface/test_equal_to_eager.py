"""LibMoE's kernels inside transformers' own models: every family that uses the experts interface, against eager."""

from __future__ import annotations

import pytest
import torch
import transformers

import experts_families
from experts_outcomes import (
    DOUBLE,
    SINGLE,
    assert_close,
    outcome,
    routed,
    run_experts,
    tokens,
)


def test_the_search_for_families_finds_them() -> None:
    """Each of them is built small and tested whole: what it needs more than ``TINY``, ``EXTRA`` has to say."""
    known = {"deepseek_v3", "ernie4_5_moe", "glm4_moe", "gpt_oss", "granitemoe", "hunyuan_v1_moe", "minimax"}
    known |= {"mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe"}
    assert known <= set(experts_families.FAMILIES)
    assert len(experts_families.FAMILIES["qwen3_omni_moe"]) == 2


@pytest.mark.parametrize("family", experts_families.FAMILIES)
def test_models_equal_eager_in_outputs_and_gradients(family: str, calls: dict[str, int]) -> None:
    model = experts_families.model_of(family)
    general = {
        name
        for name, source in experts_families.FAMILIES[family].items()
        if experts_families.goes_the_general_way(source)
    }
    tolerances = {
        torch.float64: SINGLE if family in experts_families.FLOAT32 else DOUBLE,
        torch.float32: SINGLE,
    }
    if family in experts_families.NO_FLOAT64:
        del tolerances[torch.float64]
    for dtype, tolerance in tolerances.items():
        model.to(dtype)
        expected_output, expected, ran = outcome(model, "eager")
        assert ran
        assert not any(calls.values())
        output, gradients, _ = outcome(model, "libmoe")
        own = sum(name in general for name in ran)
        assert calls == {"ffn": len(ran) - own, "grouped_linear": 2 * own}
        calls.update(ffn=0, grouped_linear=0)
        assert_close(output, expected_output, tolerance, 0.0, "output")
        # Gradients that nearly cancel, as those of a router do, carry the rounding of larger ones.
        largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
        for name, gradient in gradients.items():
            assert_close(gradient, expected[name], tolerance, 0.01 * largest, name)


@pytest.mark.parametrize("family", experts_families.FAMILIES)
def test_greedy_generation_gives_equal_tokens(family: str, calls: dict[str, int]) -> None:
    model = experts_families.model_of(family).float()
    if not isinstance(model, transformers.GenerationMixin):
        assert not type(model).__name__.endswith("ForCausalLM")
        return
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.set_experts_implementation("libmoe")
    ours = model.generate(tokens(length=5), **options)
    assert sum(calls.values()) >= 4
    model.set_experts_implementation("eager")
    assert ours.tolist() == model.generate(tokens(length=5), **options).tolist()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["all here", "some on other processes"])
@pytest.mark.parametrize(("family", "name"), experts_families.CLASSES)
def test_experts_alone_equal_those_of_transformers(family: str, name: str, elsewhere: bool) -> None:
    module = experts_families.experts_of(family, name).double()
    module._is_expert_parallel = elsewhere
    for count in (9, 1, 0):
        batch = routed(module, count, torch.float64, elsewhere)
        expected = run_experts(module, "batched_mm", *batch)
        for ours, theirs in zip(run_experts(module, "libmoe", *batch), expected, strict=True):
            assert_close(ours, theirs, SINGLE if family in experts_families.FLOAT32 else DOUBLE, 1e-3)
