"""What a gate says can be shifted, scaled and cut; the router's own rule goes on from there, with gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from intervened import IDS, by_token, run
from libmoe.core.context import checkpoint_contexts, options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import AblateExperts, BanExperts, Intervention, PruneExperts, ShiftLogits

ROUTERS = {
    "smoe": {},
    "deepseek-v3": {"num_experts": 4},
    "remoe": {},
    "expert-choice": {},
    "softmax-token-choice": {},
    "noisy-top-k": {},
}


@pytest.mark.parametrize("method", ROUTERS)
def test_no_shift_changes_no_bit(llama: Callable, method: str) -> None:
    model = llama(method=method, **ROUTERS[method]).eval()
    plain = run(model)[0]
    assert torch.equal(run(model, ShiftLogits({0: torch.zeros(4), 1: torch.zeros(2, 4)}))[0], plain)


def test_a_shift_is_a_bias_of_the_gate(llama: Callable) -> None:
    delta_BN = torch.randn(2, 4)
    model = llama().eval()
    shifted, plans = run(model, ShiftLogits({1: delta_BN}))
    for row in range(2):
        biased = llama().eval()
        biased.model.layers[1].mlp.router.gate.bias = nn.Parameter(delta_BN[row])
        logits, _ = run(biased, ids=IDS[row : row + 1])
        torch.testing.assert_close(shifted[row], logits[0])
    assert by_token(plans[0]) == by_token(run(model)[1][0])


def gradient_of_shift(model: nn.Module) -> Tensor:
    delta_N = torch.zeros(4, dtype=torch.double, requires_grad=True)
    with options(interventions=[ShiftLogits({0: delta_N})]):
        loss = model(IDS).logits.logsumexp(-1).mean()
    (grad_N,) = torch.autograd.grad(loss, delta_N)
    return grad_N


@pytest.mark.parametrize("options", [{}, {"renormalise": False}, {"order": "topk-softmax"}], ids=str)
def test_a_constant_shift_changes_nothing_and_the_gradient_sums_to_zero(llama: Callable, options: dict) -> None:
    model = llama(**options).double().eval()
    torch.testing.assert_close(run(model, ShiftLogits({0: torch.full((4,), 3.7)}))[0], run(model)[0])
    grad_N = gradient_of_shift(model)
    assert grad_N.abs().max() > 1e-8
    assert abs(grad_N.sum().item()) < 1e-6 * grad_N.abs().max().item()


def test_the_gradient_of_experts_nobody_chose_is_zero_unless_the_softmax_comes_first(llama: Callable) -> None:
    with options(interventions=[PruneExperts([3])]):  # not chosen by anyone, and out of the softmax
        assert gradient_of_shift(llama(order="topk-softmax").double().eval())[3] == 0
    unchosen = ShiftLogits({0: torch.tensor([0.0, 0.0, 0.0, -4.0])})
    found = {}
    for name, chosen in {"after": {"order": "topk-softmax"}, "before": {"renormalise": False}}.items():
        model = llama(**chosen).double().eval()
        assert not any(3 in experts for experts in by_token(run(model, unchosen)[1][0]))
        with options(interventions=[unchosen]):
            found[name] = gradient_of_shift(model)[3]
    assert found["after"] == 0 and found["before"].abs() > 1e-10


def test_recomputation_meets_the_same_shift(llama: Callable) -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        model = llama()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
        delta_BN = torch.randn(2, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
        with options(interventions=[ShiftLogits({1: delta_BN})]):
            model(IDS).logits.square().sum().backward()
        return [delta_BN.grad, *(p.grad for p in model.parameters() if p.grad is not None)]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, recomputed)


def slice_experts(model: nn.Module, layer: int, left: list[int]) -> nn.Module:
    """The model whose layer has these experts alone, rows of the gate included."""
    mlp = model.model.layers[layer].mlp
    with torch.no_grad():
        mlp.router.gate.weight = nn.Parameter(mlp.router.gate.weight[left])
        for name, parameter in list(mlp.experts.named_parameters()):
            setattr(mlp.experts, name, nn.Parameter(parameter[left]))
    mlp.router.num_experts = mlp.experts.num_experts = len(left)
    return model


@pytest.mark.parametrize("options", [{}, {"renormalise": False}, {"order": "topk-softmax"}], ids=str)
def test_masking_experts_and_slicing_them_off_give_identical_outputs(llama: Callable, options: dict) -> None:
    masked, plans = run(llama(**options).eval(), PruneExperts([1], layers=[0]))
    sliced, _ = run(slice_experts(llama(**options).eval(), 0, [0, 2, 3]))
    torch.testing.assert_close(masked, sliced, rtol=0, atol=1e-6)
    assert not any(1 in experts for experts in by_token(plans[0]))
    assert (plans[0].k, plans[0].num_experts) == (2, 4)


def test_pruning_experts_that_are_never_chosen_changes_nothing(llama: Callable) -> None:
    model = llama().eval()
    away = ShiftLogits({0: torch.tensor([0.0, -50.0, 0.0, 0.0])})  # from now on nobody chooses expert 1
    with options(interventions=[away]):
        assert torch.equal(run(model, PruneExperts([1], layers=[0]))[0], run(model)[0])
        assert not torch.equal(run(model, PruneExperts([2], layers=[0]))[0], run(model)[0])


def test_pruning_moves_the_weight_of_what_is_gone_and_a_ban_does_not(llama: Callable) -> None:
    model = llama(renormalise=False).eval()
    sums = [run(model, edit)[1][0].weight_A.sum() for edit in (PruneExperts([1]), BanExperts([1]), AblateExperts([]))]
    assert sums[0] > sums[1] and sums[2] > sums[1]


@pytest.mark.parametrize(
    ("edit", "method", "message"),
    [
        (ShiftLogits({0: torch.zeros(5)}), "smoe", r"delta of layer 0 has shape \(5,\); expected \(4,\) or \(2, 4\)"),
        (ShiftLogits({0: torch.zeros(3, 4)}), "smoe", r"delta of layer 0 has shape \(3, 4\)"),
        (ShiftLogits({0: torch.zeros(4)}), "soft-moe", r"ShiftLogits cannot edit layer 0: its router has no logits"),
        (ShiftLogits({1: torch.zeros(4)}), "hash", r"ShiftLogits cannot edit layer 1: its router has no logits"),
        (PruneExperts([9]), "smoe", r"cannot prune expert 9: layer 0 has experts 0\.\.3"),
        (PruneExperts([0, 1, 2]), "smoe", r"layer 0 selects expert . although it is banned"),
    ],
)
def test_edits_that_do_not_fit_the_model_are_one_line(
    llama: Callable, edit: Intervention, method: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(llama(method=method).eval(), edit)
