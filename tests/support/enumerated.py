"""What a router's gradient is on average, over everything that SparseMixer can draw for one token and one expert."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from libmoe.core.context import ForwardContext
from libmoe.routers.sparsemixer import Quadrature, SparseMixerRouter, _Draw

Function = Callable[[Tensor], Tensor]


def expected_gradient(
    logits_N: Tensor, expert_ND: Tensor, loss: Function, rule: Quadrature, jitter: float = 1e3
) -> Tensor:
    """``[N]``: with experts that give the rows of ``expert_ND`` whatever they read."""
    count = len(logits_N)
    router = SparseMixerRouter(count, count, 1, jitter=jitter, quadrature=rule).double().train()
    router.gate = nn.Identity()
    total_N = torch.zeros_like(logits_N)
    p_N = (logits_N / rule.temperature).softmax(0)
    for expert in range(count):
        spared = rule.best_whole and expert == int(logits_N.argmax())
        for factor, share in ((1.0, 1.0 if spared else rule.whole), (rule.shrunken, 0.0 if spared else 1 - rule.whole)):
            drawn = _Draw(
                torch.tensor([[expert]]),
                torch.tensor([[factor]], dtype=torch.double),
                torch.zeros(1, 1, count, dtype=torch.bool),
            )
            router.draw = lambda logits, ctx, drawn=drawn: drawn
            z_TN = logits_N[None].clone().requires_grad_()
            plan = router.route(z_TN, ForwardContext().layer(0, (1, 1), True)).plan
            (gradient_TN,) = torch.autograd.grad(loss(plan.weight_A[0] * expert_ND[expert]), z_TN)
            total_N = total_N + p_N[expert] * share * gradient_TN[0]
    return total_N


def true_gradient(
    logits_N: Tensor, expert_ND: Tensor, loss: Function, *, temperature: float = 1.0, through_weights: bool = True
) -> Tensor:
    """Of ``sum_i p_i loss(p_i E_i)``; ``through_weights=False`` differentiates the first p alone."""
    z_N = logits_N.clone().requires_grad_()
    p_N = (z_N / temperature).softmax(0)
    weight_N = p_N if through_weights else p_N.detach()
    value = torch.stack([p * loss(w * e) for p, w, e in zip(p_N, weight_N, expert_ND, strict=True)]).sum()
    return torch.autograd.grad(value, z_N)[0]
