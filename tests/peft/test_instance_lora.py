"""Instance-gated LoRA experts: one choice for each sample, from its instruction, for all layers and tokens."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from instance_gated import learned
from libmoe.core.context import options
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan, plan_from_tensors
from libmoe.core.statistics import StepStatistics
from libmoe.peft import GroupPlan, InstanceLoRA, LoRAExpertsLinear, add_instance_lora, merge
from libmoe.peft.adapting import adapted
from libmoe.testing import check_experts
from libmoe.train.parallel import recompute_blocks

Make = Callable[[], Any]
B, L, ASKED = 3, 9, 4  # samples, tokens, tokens of an instruction
VOCABULARY = 61
# transformers renamed it in 5.24.
CACHE = next(n for n in ("cache", "past_key_values") if n in inspect.signature(LlamaForCausalLM.forward).parameters)


def ids(seed: int = 0, rows: int = B, length: int = L) -> Tensor:
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def labels_of(tokens: Tensor) -> Tensor:
    return tokens.masked_fill(torch.arange(tokens.shape[1]) < ASKED, -100)


class Plans:
    """Keeps the plan that each linear got, while the block runs."""

    def __init__(self, model: nn.Module) -> None:
        self.found: dict[str, GroupPlan] = {}
        for path, linear in adapted(model).items():
            linear.gate = copy.deepcopy(linear.gate)
            linear.gate.register_forward_hook(lambda m, args, plan, path=path: self.found.update({path: plan}))

    def choice(self) -> tuple[Tensor, Tensor]:
        plan = next(iter(self.found.values()))
        return plan.expert_GK, plan.weight_GK


def choice(model: Any, tokens: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    plans = Plans(model)
    with torch.no_grad():
        model(input_ids=tokens, **inputs)
    return plans.choice()


# -- at the start ---------------------------------------------------------------------------------------------


def test_at_the_start_the_logits_are_those_of_the_frozen_model(frozen: Make, llava: Make) -> None:
    for make in (frozen, llava):
        model, tokens = make(), ids()
        before = model(input_ids=tokens).logits
        add_instance_lora(model, InstanceLoRA(rank=2))
        assert torch.equal(model.train()(input_ids=tokens).logits, before)


def test_only_the_experts_and_the_gate_are_trained(frozen: Make) -> None:
    model = learned(frozen()).train()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.rpartition(".")[2] for name in trained} == {"lora_A", "lora_B", "weight"}
    assert [name for name in trained if name.endswith("weight")] == ["instance_gate.weight"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), weight_decay=0.5)
    model(input_ids=ids(), labels=labels_of(ids())).loss.backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_further_parameters_may_stay_trainable(llava: Make) -> None:
    model = learned(llava(), trainable=["*multi_modal_projector*"])
    others = [n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n and "gate.w" not in n]
    assert others and all("multi_modal_projector" in name for name in others)


# -- one choice -----------------------------------------------------------------------------------------------


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


def gate_by_hand(model: Any, tokens: Tensor, count: int, n: int) -> Tensor:
    """Probabilities from the mean over ``n`` tokens, of which ``count`` are the instruction and the others padding."""
    u_LD = model.get_input_embeddings().weight[F.pad(tokens[:count], (0, n - count))]
    return (u_LD @ model.instance_gate.weight).mean(0).softmax(0)


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


# -- what is computed, and its gradients -----------------------------------------------------------------------


class Dense(nn.Module):
    """The layer as published: every expert is computed, and those not chosen have weight 0."""

    def __init__(self, linear: LoRAExpertsLinear) -> None:
        super().__init__()
        self.base, self.lora_A, self.lora_B = linear.base, linear.lora_A, linear.lora_B
        self.scale, self.soft_BE = linear.scale, torch.empty(0)

    def forward(self, x_BLI: Tensor) -> Tensor:
        h_BLEr = torch.einsum("bli,eir->bler", x_BLI, self.lora_A)
        return self.base(x_BLI) + self.scale * torch.einsum("bler,ero,be->blo", h_BLEr, self.lora_B, self.soft_BE)


def reference(model: Any, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients by the plain form."""
    model = copy.deepcopy(model)
    gate = model.instance_gate
    p_BE = torch.stack([gate_by_hand(model, row, ASKED, ASKED) for row in tokens])
    kept_BE = torch.zeros_like(p_BE).scatter(1, p_BE.topk(2, dim=1).indices, 1)
    soft_BE = p_BE * kept_BE / ((p_BE * kept_BE).sum(1, keepdim=True) + 1e-9)
    del model.instance_gate
    for path in list(adapted(model)):
        parent, _, name = path.rpartition(".")
        dense = Dense(model.get_submodule(path))
        dense.soft_BE = soft_BE
        setattr(model.get_submodule(parent), name, dense)
    output = model(input_ids=tokens, labels=labels)
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    grads = torch.autograd.grad(output.loss, [*parameters, gate.weight])
    return output.logits, dict(zip([*names, "instance_gate.weight"], grads, strict=True))


def run(model: Any, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    output = model(input_ids=tokens, labels=labels_of(tokens))
    output.loss.backward()
    return output.logits, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def test_it_computes_and_learns_what_the_plain_form_with_all_experts_does(frozen: Make) -> None:
    model = learned(frozen(), num_experts=5, alpha=3.0)
    logits, grads = run(model, ids())
    expected, expected_grads = reference(model, ids(), labels_of(ids()))
    torch.testing.assert_close(logits, expected)
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], msg=name)
        assert grad.abs().max() > 0, name


def test_exactly_two_experts_of_each_layer_learn_from_a_sample(frozen: Make) -> None:
    model, tokens = learned(frozen(), num_experts=5), ids(rows=1)
    chosen = set(choice(model, tokens, labels=labels_of(tokens))[0][0].tolist())
    _, grads = run(model, tokens)
    for name, grad in grads.items():
        if "lora" in name:
            assert {e for e in range(5) if grad[e].any()} == chosen, name


def test_the_gate_learns_from_every_layer_through_its_two_weights(frozen: Make) -> None:
    """The gradient of the one matrix is the sum of what each layer sends back."""
    whole = run(learned(frozen()), ids())[1]["instance_gate.weight"]
    total = torch.zeros_like(whole)
    for path in adapted(learned(frozen())):
        model = learned(frozen())
        for other, linear in adapted(model).items():
            if other != path:
                linear.gate = copy.deepcopy(linear.gate)
                linear.gate.register_forward_hook(lambda m, args, plan: plan.map(Tensor.detach))
        part = run(model, ids())[1]["instance_gate.weight"]
        assert part.abs().max() > 0, path
        total += part
    torch.testing.assert_close(total, whole)


def test_one_expert_is_plain_lora_and_two_are_a_soft_mixture_of_both(frozen: Make) -> None:
    tokens = ids()
    plain = learned(frozen(), num_experts=1, top_k=1, alpha=6.0)
    with torch.no_grad():
        found = plain(input_ids=tokens).logits
        by_hand = frozen()
        for path, linear in adapted(plain).items():
            by_hand.get_submodule(path).weight += (6.0 / 2) * (linear.lora_A[0] @ linear.lora_B[0]).T
        torch.testing.assert_close(found, by_hand(input_ids=tokens).logits, rtol=1e-5, atol=1e-5)
    both = learned(frozen(), num_experts=2)
    expert_BK, weight_BK = choice(both, tokens)
    p_BE = torch.stack([gate_by_hand(both, row, L, L) for row in tokens])
    torch.testing.assert_close(weight_BK, p_BE.gather(1, expert_BK))


def test_recomputation_changes_nothing(frozen: Make) -> None:
    model = learned(frozen(), dropout=0.5).train()
    again = copy.deepcopy(model)
    recompute_blocks(again)
    torch.manual_seed(3)
    logits, grads = run(model, ids())
    torch.manual_seed(3)
    logits_again, grads_again = run(again, ids())
    assert torch.equal(logits, logits_again)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)


def test_forward_passes_may_overlap(frozen: Make) -> None:
    """Forward, forward, backward, backward: each pass keeps the choice of its own samples."""
    model = learned(frozen())
    losses = [model(input_ids=t, labels=labels_of(t)).loss for t in (ids(), ids(seed=5))]
    for loss in losses:
        loss.backward()
    expected = [run(learned(frozen()), t)[1] for t in (ids(), ids(seed=5))]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[0][name] + expected[1][name])


def test_autocast_computes_experts_in_bfloat16_and_the_gate_in_float32(frozen: Make) -> None:
    model = learned(frozen()).float()
    full = choice(model, ids())
    with torch.autocast("cpu", torch.bfloat16):
        low = choice(model, ids())
        loss = model(input_ids=ids(), labels=labels_of(ids())).loss
    assert all(map(torch.equal, full, low))
    loss.backward()
    assert model.instance_gate.weight.grad.isfinite().all()


def test_dropout_is_of_the_experts_input_alone(frozen: Make) -> None:
    torch.manual_seed(0)
    linear = LoRAExpertsLinear(nn.Linear(64, 8), 2, 4, nn.Identity(), dropout=0.5)
    linear.lora_B.data.normal_()
    x = torch.randn(1, 500, 64)
    choose = torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75]])
    noisy, clean = (linear.train(mode).forward_groups(x, *choose) for mode in (True, False))
    assert not torch.allclose(noisy, clean)
    slope = float((noisy * clean).sum() / clean.square().sum())
    assert slope == pytest.approx(1, abs=0.1)  # what is kept is doubled


# -- generation -----------------------------------------------------------------------------------------------


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


# -- merging --------------------------------------------------------------------------------------------------


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


# -- the parts ------------------------------------------------------------------------------------------------


def test_the_linear_keeps_the_contract_of_experts() -> None:
    torch.manual_seed(0)
    linear = LoRAExpertsLinear(nn.Linear(16, 16), 4, 3, nn.Identity(), alpha=5.0)
    linear.lora_B.data.normal_()
    assert "has the gradients of its materialised experts" in check_experts(linear, 16)
    bound = math.sqrt(6 / (1 + 5) / (16 * 3))  # fan_in of a stacked tensor is all but its first dimension
    assert linear.lora_A.abs().max() <= bound and linear.lora_A.abs().max() > 0.95 * bound


def test_another_gate_may_choose_token_by_token() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> SparsePlan:
            tokens = x.shape[:-1].numel()
            expert_TK = torch.stack([torch.arange(tokens) % 3, torch.full((tokens,), 3)], 1)
            return SparsePlan.from_topk(expert_TK, torch.full((tokens, 2), 0.5, dtype=x.dtype), 4)

    torch.manual_seed(0)
    linear = LoRAExpertsLinear(nn.Linear(6, 5), 4, 2, Gate()).double()
    linear.lora_B.data.normal_()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    expected = linear.base(x).clone()
    for t in range(8):
        for expert in (t % 3, 3):
            expected[t // 4, t % 4] += 0.5 * linear.materialise(expert)(x[t // 4, t % 4])
    torch.testing.assert_close(linear(x), expected)


def test_a_plan_for_groups_is_the_plan_of_its_tokens() -> None:
    torch.manual_seed(0)
    linear = LoRAExpertsLinear(nn.Linear(6, 5), 4, 2, nn.Identity()).double()
    linear.lora_B.data.normal_()
    plan = GroupPlan(torch.tensor([[0, 2], [3, 1]]), torch.rand(2, 2).double(), 10, 4)
    x = torch.randn(10, 6, dtype=torch.float64)
    torch.testing.assert_close(plan.execute(linear, x), plan.spread().execute(linear, x))
    mask = torch.arange(10) != 9
    torch.testing.assert_close(plan.load_N(mask), plan.spread().load_N(mask))
    torch.testing.assert_close(plan.load_N(), plan.spread().load_N())
    back = plan_from_tensors(plan.to_tensors())
    torch.testing.assert_close(back.execute(linear, x), plan.execute(linear, x))


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


def test_images_inside_a_model_are_no_samples(llava: Make) -> None:
    paths = list(adapted(learned(llava())))
    assert paths and all("language_model" in path for path in paths)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"targets": ["q_prj"]}, "unknown peft.targets 'q_prj'; did you mean 'q_proj'"),
        ({"targets": []}, r"peft.targets=\[\] adapts nothing"),
        ({"top_k": 5}, "peft.top_k=5 must be between 1 and num_experts=4"),
        ({"rank": 0}, "peft.rank=0 must be at least 1"),
        ({"dropout": 1.0}, "peft.dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(frozen: Make, change: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        add_instance_lora(frozen(), InstanceLoRA(**change))


def test_models_it_is_not_for_are_refused(frozen: Make) -> None:
    model = learned(frozen())
    with pytest.raises(ConfigError, match="has instance-gated experts already"):
        add_instance_lora(model)
    with pytest.raises(ConfigError, match="run inside their model"):
        model.model.layers[0].self_attn.q_proj(torch.randn(1, 2, 16).double())
    with pytest.raises(ConfigError, match="call the model with input_ids"):
        model(input_ids=None)
    two = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ConfigError, match="one stack"):
        add_instance_lora(T5ForConditionalGeneration(two), InstanceLoRA(targets=["q"]))
