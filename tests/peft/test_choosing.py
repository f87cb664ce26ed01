"""Which LoRA experts a sample gets: one choice, from its instruction alone, for all layers and tokens."""

from __future__ import annotations

import pytest
import torch

from instance_gated import ASKED, B, L, Make, Plans, choice, gate_by_hand, ids, labels_of, learned
from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.core.statistics import StepStatistics
from libmoe.peft import InstanceLoRA, add_instance_lora


def test_all_layers_and_tokens_of_a_sample_share_two_experts_and_weights_that_sum_to_1(frozen: Make) -> None:
    model = learned(frozen())
    plans = Plans(model)
    model(input_ids=ids())
    assert len(plans.found) == 8  # q, k, v, o of two layers
    expert_BK, weight_BK = plans.choice()
    assert expert_BK.shape == (B, 2) and (weight_BK.sum(1) - 1).abs().max() < 1e-6
    for plan in plans.found.values():
        assert torch.equal(plan.expert_GK, expert_BK) and torch.equal(plan.weight_GK, weight_BK)
        spread = plan.spread()
        assert torch.equal(spread.expert_A.view(B, L, 2), expert_BK.unsqueeze(1).expand(-1, L, -1))


def test_the_instruction_alone_decides(frozen: Make) -> None:
    model, tokens = learned(frozen()), ids()
    before = choice(model, tokens, labels=labels_of(tokens))
    answers = torch.where(torch.arange(L) < ASKED, tokens, ids(seed=1))
    assert all(map(torch.equal, before, choice(model, answers, labels=labels_of(answers))))
    asked = torch.where(torch.arange(L) >= ASKED, tokens, ids(seed=1))
    changed = choice(model, asked, labels=labels_of(asked))
    assert (changed[1] - before[1]).abs().min() > 1e-4
    assert not torch.equal(changed[0], before[0])


def test_the_image_does_not_decide(llava: Make) -> None:
    model = learned(llava())
    tokens = torch.cat([torch.full((B, 4), model.config.image_token_id), ids()], 1)
    generator = torch.Generator().manual_seed(0)
    pixels, others = (torch.randn(B, 3, 28, 28, generator=generator) for _ in range(2))
    seen, other = (model(input_ids=tokens, pixel_values=p).logits for p in (pixels, others))
    assert not torch.allclose(seen, other)
    before = choice(model, tokens, pixel_values=pixels)
    assert all(map(torch.equal, before, choice(model, tokens, pixel_values=others)))
    for mine, text in zip(before, choice(model, ids()), strict=True):
        torch.testing.assert_close(mine, text)  # nor that there is one


def test_a_side_input_says_what_the_instruction_is(frozen: Make) -> None:
    model, tokens = learned(frozen()), ids()
    with options(side={"instruction": torch.arange(L).expand(B, L) < ASKED}):
        said = choice(model, tokens)
    assert all(map(torch.equal, said, choice(model, tokens, labels=labels_of(tokens))))
    assert not torch.equal(said[1], choice(model, tokens)[1])
    with options(side={"instruction": torch.ones(B, L + 1)}), pytest.raises(ConfigError, match=r"expected \(3, 9\)"):
        model(input_ids=tokens)


def test_a_batch_of_different_instructions_computes_what_each_does_alone(frozen: Make) -> None:
    model, tokens = learned(frozen()), ids()
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0  # padding on the left
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        together = model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits
        for row, start in ((0, 0), (1, 3), (2, 0)):
            alone = model(input_ids=tokens[row : row + 1, start:]).logits[0]
            torch.testing.assert_close(together[row, start:], alone)


def test_padding_counts_as_published_only_when_asked(frozen: Make) -> None:
    tokens = ids()
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    for include, n in ((False, 5), (True, L)):
        model = learned(frozen(), include_padding=include)
        _, weight_BK = choice(model, tokens, attention_mask=mask)
        top_K = gate_by_hand(model, tokens[1], 5, n).topk(2).values
        torch.testing.assert_close(weight_BK[1], top_K / top_K.sum())


def test_the_gate_starts_as_published_or_scaled_to_unit_embeddings(frozen: Make) -> None:
    std = {}
    for scaled in (False, True):
        model = add_instance_lora(frozen(), InstanceLoRA(num_experts=600, rank=1, scale_init=scaled), seed=0)
        std[scaled] = model.instance_gate.weight.std().item()
    assert std[False] == pytest.approx(1, rel=0.02) and std[True] == pytest.approx(16**-0.5, rel=0.02)


def test_recorders_and_statistics_see_the_choice_as_a_layer_of_its_own(frozen: Make) -> None:
    model, tokens, statistics, seen = learned(frozen()), ids(), StepStatistics(), []
    mask = torch.ones_like(tokens)
    mask[0, 4:] = 0
    with options(statistics=statistics, recorders=[lambda ctx, routing: seen.append((ctx, routing))]):
        expert_BK, _ = choice(model, tokens, attention_mask=mask)
    load_N = torch.bincount(expert_BK.flatten(), torch.tensor([4, 4, 9, 9, 9, 9]).double(), minlength=4)
    assert torch.equal(statistics.seen[0].count_N.double(), load_N) and float(statistics.seen[0].tokens) == 22
    ((ctx, routing),) = seen
    assert ctx.index == 0 and torch.equal(routing.plan.expert_A.view(B, L, 2)[:, 5], expert_BK)
    assert routing.scores_TN.shape == (B * L, 4)
