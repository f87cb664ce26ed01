"""Each kind of plan against plain float64 loops: outputs and all gradients, on hostile shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from libmoe.core.plan import MergePlan, Plan, SoftPlan, SparsePlan
from libmoe.experts import CopyExperts, FFNExperts

D, H, N = 5, 3, 4
Shape = tuple[int, int]


def make_experts() -> FFNExperts:
    experts = FFNExperts(N, D, H, "gelu", bias=True, init_std=None).double()
    torch.nn.init.normal_(experts.b_in)
    torch.nn.init.normal_(experts.b_out)
    return experts


def one_expert(experts: FFNExperts, e: int, x_D: Tensor) -> Tensor:
    """Expert e on one token, written out."""
    return ffn(x_D, experts.w_in[e], experts.b_in[e], experts.w_out[e], experts.b_out[e])


def ffn(x_D: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
    h = w_in @ x_D + b_in
    return w_out @ (torch.nn.functional.gelu(h[:H]) * h[H:]) + b_out


def loop_sparse(plan: SparsePlan, experts: FFNExperts, x_TD: Tensor, x_AD: Tensor | None) -> Tensor:
    rows = [torch.zeros(D, dtype=torch.float64) for _ in range(plan.num_tokens)]
    for a, (t, e) in enumerate(zip(plan.token_A.tolist(), plan.expert_A.tolist(), strict=True)):
        if plan.kept_A is not None and not plan.kept_A[a]:
            continue
        x_D, weight = x_TD[t] if x_AD is None else x_AD[a], plan.weight_A[a]
        if plan.scale_input:
            rows[t] = rows[t] + one_expert(experts, e, weight * x_D)
        else:
            rows[t] = rows[t] + weight * one_expert(experts, e, x_D)
    return torch.stack(rows) if rows else x_TD.new_zeros(0, D)


def loop_soft(plan: SoftPlan, experts: FFNExperts, x_TD: Tensor, x_AD: None) -> Tensor:
    groups, length, slots = plan.dispatch_GLS.shape
    rows = []
    for g in range(groups):
        outputs = []
        for s in range(slots):
            slot_D = torch.zeros(D, dtype=torch.float64)
            for i in range(length):
                slot_D = slot_D + plan.dispatch_GLS[g, i, s] * x_TD[g * length + i]
            outputs.append(one_expert(experts, s // (slots // N), slot_D))
        for i in range(length):
            rows.append(sum(plan.combine_GLS[g, i, s] * outputs[s] for s in range(slots)))
    return torch.stack(rows) if rows else x_TD.new_zeros(0, D)


def loop_merge(plan: MergePlan, experts: FFNExperts, x_TD: Tensor, x_AD: None) -> Tensor:
    names = ("w_in", "b_in", "w_out", "b_out")
    length = plan.num_tokens // plan.gate_GN.shape[0]
    rows = []
    for t in range(plan.num_tokens):
        gate_N = plan.gate_GN[t // length]
        merged = [sum(gate_N[e] * getattr(experts, name)[e] for e in range(N)) for name in names]
        rows.append(ffn(x_TD[t], *merged))
    return torch.stack(rows) if rows else x_TD.new_zeros(0, D)


def weights(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def top_k(tokens: int, **more: object) -> SparsePlan:
    expert_TK = torch.rand(tokens, N).argsort(dim=1)[:, :2]
    return SparsePlan.from_topk(expert_TK, weights(tokens, 2), N, **more)


def dropped(tokens: int, **more: object) -> SparsePlan:
    return top_k(tokens, kept_TK=torch.rand(tokens, 2) < 0.5, **more)


def variable(tokens: int) -> SparsePlan:
    return SparsePlan.from_mask(weights(tokens, N), torch.rand(tokens, N) < 0.4)


def variable_dropped(tokens: int) -> SparsePlan:
    plan = variable(tokens)
    plan.kept_A = torch.rand(len(plan.token_A)) < 0.5
    plan.scale_input = True
    return plan


def all_to_one(tokens: int) -> SparsePlan:
    return SparsePlan.from_topk(torch.full((tokens, 1), 2), weights(tokens, 1), N)


def nothing_kept(tokens: int) -> SparsePlan:
    return top_k(tokens, kept_TK=torch.zeros(tokens, 2, dtype=torch.bool))


def soft(tokens: int) -> SoftPlan:
    return SoftPlan(weights(1, tokens, 2 * N), weights(1, tokens, 2 * N), N)


def soft_groups(tokens: int) -> SoftPlan:
    return SoftPlan(weights(tokens, 3, N), weights(tokens, 3, N), N)


def merge(tokens: int) -> MergePlan:
    return MergePlan(weights(1, N), tokens)


def merge_groups(tokens: int) -> MergePlan:
    return MergePlan(weights(max(tokens, 1), N), 2 * tokens)


LOOPS: dict[type[Plan], Callable] = {SparsePlan: loop_sparse, SoftPlan: loop_soft, MergePlan: loop_merge}
MAKERS: dict[str, Callable[[int], Plan]] = {
    "top-k": top_k,
    "dropped": dropped,
    "scaled input": lambda tokens: top_k(tokens, scale_input=True),
    "scaled input, dropped": lambda tokens: dropped(tokens, scale_input=True),
    "variable k": variable,
    "variable k, scaled input, dropped": variable_dropped,
    "all to one": all_to_one,
    "nothing kept": nothing_kept,
    "soft": soft,
    "soft groups": soft_groups,
    "merge": merge,
    "merge groups": merge_groups,
}


def check_against_loops(plan: Plan, x_TD: Tensor, x_AD: Tensor | None = None) -> None:
    experts = make_experts()
    weight_names = ("weight_A", "dispatch_GLS", "combine_GLS", "gate_GN")
    learned = {n: getattr(plan, n).requires_grad_() for n in weight_names if hasattr(plan, n)}
    leaves = {"x_TD": x_TD} | learned | dict(experts.named_parameters())
    if x_AD is not None:
        leaves["x_AD"] = x_AD
    found_TD = experts.execute(x_TD, plan, x_AD)
    expected_TD = LOOPS[type(plan)](plan, experts, x_TD, x_AD)
    torch.testing.assert_close(found_TD, expected_TD, rtol=1e-10, atol=1e-10)
    grad_TD = torch.randn_like(found_TD)
    found = torch.autograd.grad(found_TD, list(leaves.values()), grad_TD, allow_unused=True)
    if not expected_TD.requires_grad:  # no assignment at all: every gradient is zero
        expected = [torch.zeros_like(leaf) for leaf in leaves.values()]
    else:
        expected = torch.autograd.grad(expected_TD, list(leaves.values()), grad_TD, allow_unused=True)
    for name, ours, theirs in zip(leaves, found, expected, strict=True):
        zero = torch.zeros_like(leaves[name])
        ours, theirs = (zero if g is None else g for g in (ours, theirs))
        torch.testing.assert_close(
            ours, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("kind", MAKERS)
def test_plan_equals_plain_loops(kind: str, tokens: int) -> None:
    plan = MAKERS[kind](tokens)
    check_against_loops(plan, weights(plan.num_tokens, D).requires_grad_())


@pytest.mark.parametrize("kind", ["top-k", "variable k", "dropped", "soft", "merge"])
def test_plan_takes_rows_that_are_not_contiguous(kind: str) -> None:
    plan = MAKERS[kind](6)
    x_TD = weights(D, plan.num_tokens).t().requires_grad_()
    assert not x_TD.is_contiguous()
    check_against_loops(plan, x_TD)


@pytest.mark.parametrize("kind", ["top-k", "dropped", "variable k", "scaled input, dropped"])
def test_inputs_of_assignments_equal_plain_loops(kind: str) -> None:
    plan = MAKERS[kind](6)
    x_AD = weights(len(plan.token_A), D).requires_grad_()
    check_against_loops(plan, weights(6, D).requires_grad_(), x_AD)


@pytest.mark.parametrize("scale_input", [False, True])
@pytest.mark.parametrize("rectangular", [False, True])
def test_nothing_of_a_dropped_token_gets_through(rectangular: bool, scale_input: bool) -> None:
    """A padded token may hold NaN in its state, and so in its weights; dropping its assignments must contain it."""
    kept_TK = torch.ones(4, 2, dtype=torch.bool)
    kept_TK[2] = False
    plan = top_k(4, kept_TK=kept_TK, scale_input=scale_input)
    plan.k = 2 if rectangular else None
    plan.weight_A[4:6] = float("nan")
    plan.weight_A.requires_grad_()
    x_TD = weights(4, D)
    x_TD[2] = float("nan")
    x_TD.requires_grad_()
    experts = make_experts()
    y_TD = experts.execute(x_TD, plan)
    assert y_TD.isfinite().all()
    assert not y_TD[2].any()
    y_TD.sum().backward()
    assert all(p.grad.isfinite().all() for p in experts.parameters())
    assert plan.weight_A.grad.isfinite().all()
    assert not plan.weight_A.grad[4:6].any()
    assert not x_TD.grad[2].any()


@pytest.mark.parametrize("kind", ["top-k", "variable k", "soft", "merge"])
def test_half_precision_in_half_precision_out(kind: str) -> None:
    plan = MAKERS[kind](6)
    experts = make_experts().bfloat16()
    x_TD = weights(plan.num_tokens, D).bfloat16()
    y_TD = experts.execute(x_TD, plan)
    assert y_TD.dtype == torch.bfloat16
    expected_TD = LOOPS[type(plan)](plan, experts.double(), x_TD.double(), None)
    assert (y_TD.double() - expected_TD).abs().max() < 0.05 * expected_TD.abs().max()


def test_the_rectangular_combine_equals_the_general_one() -> None:
    plan = dropped(9)
    experts, x_TD = make_experts(), weights(9, D)
    general = dataclasses.replace(plan, k=None)
    torch.testing.assert_close(
        general.execute(experts, x_TD), plan.execute(experts, x_TD), rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("rectangular", [False, True])
def test_autocast_does_not_round_the_combine(rectangular: bool) -> None:
    plan = SparsePlan.from_topk(torch.tensor([[0, 1, 2]] * 5), torch.full((5, 3), 1 / 3), N)
    plan.k = 3 if rectangular else None
    x_TD = torch.randn(5, D)
    with torch.autocast("cpu", torch.bfloat16):
        y_TD = CopyExperts(N).execute(x_TD, plan)
    torch.testing.assert_close(y_TD, x_TD, rtol=1e-6, atol=1e-6)
