"""Generation keeps the choice that was made for the prompt, and merged weights are those of an instruction."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from instance_gated import ASKED, Make, Plans, choice, ids, learned
from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.peft import merge
from libmoe.peft.adapting import adapted

# transformers renamed it in 5.24.
CACHE = next(n for n in ("cache", "past_key_values") if n in inspect.signature(LlamaForCausalLM.forward).parameters)


def greedy(model: Any, prompt: Tensor, new: int, **inputs: Any) -> list[int]:
    """One token after the other without a cache; the prompt is the instruction all along."""
    tokens = prompt.unsqueeze(0)
    for _ in range(new):
        asked = (torch.arange(tokens.shape[1]) < len(prompt)).unsqueeze(0)
        with torch.no_grad(), options(side={"instruction": asked}):
            tokens = torch.cat([tokens, model(input_ids=tokens, **inputs).logits[:, -1:].argmax(-1)], 1)
    return tokens[0, len(prompt) :].tolist()


def test_generation_keeps_the_choice_made_for_the_prompt(frozen: Make) -> None:
    """With a cache, padding on the left and prompts that choose differently."""
    model = learned(frozen())
    prompts = [ids(seed, rows=1, length=length)[0] for seed, length in ((0, 5), (1, 8), (3, 2))]
    padded = torch.stack([F.pad(p, (8 - len(p), 0)) for p in prompts])
    mask = torch.stack([F.pad(torch.ones_like(p), (8 - len(p), 0)) for p in prompts])
    expected = [greedy(model, p, 6) for p in prompts]
    plans = Plans(model)
    found = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert found[:, 8:].tolist() == expected
    last = plans.choice()
    first = choice(model, padded, attention_mask=mask)
    assert len({tuple(sorted(e.tolist())) for e in first[0]}) > 1
    assert all(map(torch.equal, last, first))
    beams = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, num_beams=2)
    assert beams.shape == (3, 14)


def test_generation_about_an_image_keeps_the_choice_too(llava: Make) -> None:
    model = learned(llava())
    prompt = torch.cat([torch.full((4,), model.config.image_token_id), ids(rows=1)[0]])
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    found = model.generate(
        prompt.unsqueeze(0), pixel_values=pixels, attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=5, do_sample=False, eos_token_id=None,
    )  # fmt: skip
    assert found[0, len(prompt) :].tolist() == greedy(model, prompt, 5, pixel_values=pixels)


def test_two_generations_that_take_turns_keep_their_own_choices(frozen: Make) -> None:
    model = learned(frozen())
    prompts, caches = [ids(seed=s, rows=1, length=6) for s in (0, 1)], []
    with torch.no_grad():
        for prompt in prompts:
            output = model(input_ids=prompt, use_cache=True)
            caches.append(output[CACHE])
        for prompt, cache in zip(prompts, caches, strict=True):
            plans = Plans(model)
            model(input_ids=prompt[:, :1], **{CACHE: cache})
            assert all(map(torch.equal, plans.choice(), choice(model, prompt)))
        with pytest.raises(ConfigError, match="instruction this model has not seen"):
            model(input_ids=prompt[:, :1], **{CACHE: copy.deepcopy(caches[0])})


def test_merged_weights_reproduce_the_output_after_their_instruction(frozen: Make, llava: Make) -> None:
    for make, image in ((frozen, 0), (llava, 4)):
        model = learned(make())
        tokens = ids(rows=1)
        inputs = {}
        if image:
            tokens = torch.cat([torch.full((1, image), model.config.image_token_id), tokens], 1)
            inputs = {"pixel_values": torch.randn(1, 3, 28, 28)}
        asked = torch.arange(tokens.shape[1]).unsqueeze(0) < image + ASKED
        with torch.no_grad(), options(side={"instruction": asked}):
            expected = model(input_ids=tokens, **inputs).logits
        base = make()(input_ids=tokens, **inputs).logits
        merged = merge(model, tokens[0, : image + ASKED])
        found = merged(input_ids=tokens, **inputs).logits
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
        assert (found - base).abs().max() > 1e-3
        assert not adapted(merged) and merged.state_dict().keys() == make().state_dict().keys()
    with pytest.raises(ConfigError, match="no instance-gated experts to merge"):
        merge(merged, tokens[0])
