"""Edits of finished decisions: swap, ablate, route at random or as settled beforehand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from intervened import IDS, by_token, run
from libmoe.core.context import checkpoint_contexts, options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import AblateExperts, FixedRouting, Intervention, RandomRouting, SwapExperts


def test_swapped_experts_do_each_others_work(llama: Callable) -> None:
    model = llama(layers=1).eval()
    _, plans = run(model)
    swapped, edited = run(model, SwapExperts([(0, 3)]))
    new = {0: 3, 3: 0, 1: 1, 2: 2}
    assert by_token(edited[0]) == [[new[e] for e in experts] for experts in by_token(plans[0])]
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter[[0, 3]] = parameter[[3, 0]]
    torch.testing.assert_close(run(model)[0], swapped)
    assert not torch.allclose(run(model, SwapExperts([(0, 3)]))[0], swapped)


def test_ablated_experts_give_nothing_and_nobody_takes_their_place(llama: Callable) -> None:
    model = llama(layers=1).eval()
    before, plans = run(model)
    ablated, edited = run(model, AblateExperts([2]))
    assert by_token(edited[0]) == by_token(plans[0])
    assert torch.equal(edited[0].kept_A, plans[0].expert_A != 2)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.w_out[2] = 0
    torch.testing.assert_close(run(model)[0], ablated)
    assert not torch.allclose(before, ablated)


def test_ablation_leaves_what_capacity_dropped(llama: Callable) -> None:
    model = llama(layers=1).eval()
    model.model.layers[0].mlp.router.eval_capacity_factor = 0.5
    _, plans = run(model)
    _, edited = run(model, AblateExperts([2]))
    assert not plans[0].kept_A.all()
    assert torch.equal(edited[0].kept_A, plans[0].kept_A & (plans[0].expert_A != 2))


@pytest.mark.parametrize("method", ["smoe", "soft-moe", "expert-choice", "hash", "remoe"])
def test_every_kind_of_plan_can_be_swapped_and_ablated(llama: Callable, method: str) -> None:
    model = llama(method=method).eval()
    before, _ = run(model)
    torch.testing.assert_close(run(model, SwapExperts([(0, 1)]), SwapExperts([(1, 0)]))[0], before)
    assert not torch.allclose(run(model, SwapExperts([(0, 1)]))[0], before)
    _, plans = run(model, AblateExperts(range(4)))
    layer = model.model.layers[0].mlp
    assert not layer.experts.execute(torch.randn(14, 16), plans[0]).any()


def test_random_experts_are_distinct_keep_the_weights_and_follow_the_seed(llama: Callable) -> None:
    model = llama(layers=3, num_experts=8, top_k=3).eval()
    _, plans = run(model)
    logits, edited = run(model, RandomRouting(1))
    assert torch.equal(edited[0].weight_A, plans[0].weight_A)
    assert all(len(set(experts)) == 3 for plan in edited.values() for experts in by_token(plan))
    assert by_token(edited[0]) != by_token(edited[1])
    assert torch.equal(run(model, RandomRouting(1))[0], logits)
    assert not torch.equal(run(model, RandomRouting(2))[0], logits)
    again = RandomRouting(1)
    assert not torch.equal(run(model, again)[0], run(model, again)[0])


def test_random_experts_of_a_router_with_variable_k(llama: Callable) -> None:
    _, plans = run(llama(method="remoe").eval())
    _, edited = run(llama(method="remoe").eval(), RandomRouting(layers=[0]))
    assert torch.equal(edited[0].token_A, plans[0].token_A)
    pairs = list(zip(edited[0].token_A.tolist(), edited[0].expert_A.tolist()))
    assert len(set(pairs)) == len(pairs)


def test_recomputation_meets_the_same_random_experts(llama: Callable) -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        model = llama()
        if checkpointing:
            kwargs = {"use_reentrant": False, "context_fn": checkpoint_contexts}
            model.gradient_checkpointing_enable(kwargs)
        edit = RandomRouting(5)
        with options(interventions=[edit]):
            model(IDS).logits.square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_fixed_experts_for_all_tokens_or_by_token_id(llama: Callable) -> None:
    model = llama().eval()
    _, plans = run(model, FixedRouting([3, 1], weights=[0.75, 0.25]))
    assert by_token(plans[1]) == [[3, 1]] * 14
    assert plans[1].weight_A.view(-1, 2).tolist() == [[0.75, 0.25]] * 14
    table = torch.arange(61).unsqueeze(1) % 4
    _, plans = run(model, FixedRouting(table))
    assert by_token(plans[0]) == [[token % 4] for token in IDS.flatten().tolist()]
    assert (plans[0].weight_A == 1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SwapExperts([(0, 1), (1, 2)]), r"pairs: expert 1 occurs twice"),
        (lambda: FixedRouting([]), r"experts of shape \(0,\)"),
        (lambda: FixedRouting([1, 1]), r"same expert twice"),
        (lambda: FixedRouting([1, 2], weights=[1.0]), r"weights: 1 do not fit 2 experts"),
    ],
)
def test_edits_that_cannot_be_meant_are_refused_at_once(make: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("edit", "method", "message"),
    [
        (SwapExperts([(0, 4)]), "smoe", r"cannot swap expert 4: layer 0 has experts 0\.\.3"),
        (AblateExperts([-1]), "smoe", r"cannot ablate expert -1: layer 0 has experts 0\.\.3"),
        (FixedRouting([7]), "smoe", r"cannot use expert 7: layer 0 has experts 0\.\.3"),
        (FixedRouting(torch.zeros(2, 1).long()), "smoe", r"the table ends at token 1, the batch has"),
        (RandomRouting(), "soft-moe", r"cannot route at random in layer 0: .* plans of kind 'soft'"),
    ],
)
def test_edits_that_do_not_fit_the_model_are_one_line(
    llama: Callable, edit: Intervention, method: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(llama(method=method).eval(), edit)
