"""What instance-gated LoRA experts compute and learn, against the plain form in which every expert is computed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from instance_gated import ASKED, L, Make, choice, gate_by_hand, ids, labels_of, learned
from libmoe.peft import LoRAExpertsLinear
from libmoe.peft.adapting import adapted
from libmoe.train.parallel import recompute_blocks


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
