"""What an implementation computes, and how far it is from the float64 reference."""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.bench.kernels.floors import flops
from libmoe.bench.kernels.implementations import Prepared
from libmoe.bench.kernels.problem import Problem
from libmoe.bench.kernels.routing import Routing
from libmoe.core.dispatch import Segments
from libmoe.ops import Rows, StackedFFN, ffn

REFERENCE_FLOPS = {"cpu": 4e11, "cuda": 1e14}
"""Arithmetic that the reference may cost; of a larger problem the first tokens are compared."""
TOLERANCE = {"fp32": 1e-2, "bf16": 5e-2}
"""Above this relative error an implementation computes something else, and its time means nothing."""


def compute(prepared: Prepared, problem: Problem, routing: Routing) -> tuple[Tensor, ...]:
    """One forward pass, or in training one pass forward and backward with fresh leaves and gradients.

    Returns:
        ``y``, in training also the gradients of ``x``, of the routing weights and of the implementation's parameters.
    """
    if not problem.case.training:
        with torch.inference_mode():
            return (prepared.run(problem.x_TD, *routing),)
    x_TD, weight_TK = (t.detach().requires_grad_() for t in (problem.x_TD, routing.weight_TK))
    y_TD = prepared.run(x_TD, routing.expert_TK, weight_TK)
    y_TD.backward(problem.dy_TD)
    leaves = (x_TD, weight_TK, *prepared.parameters)
    results = (y_TD.detach(), *(t.grad for t in leaves))
    for parameter in prepared.parameters:
        parameter.grad = None
    return results


def reference(problem: Problem, routing: Routing) -> tuple[Tensor, ...]:
    """``y`` and the gradients of ``x``, the routing weights, ``w_in`` and ``w_out`` in float64.

    The ``reference`` backend computes one expert at a time, so that autograd allocates no gradient of all experts
    for each of them.
    """
    x_TD, dy_TD, weight_TK = (t.double() for t in (problem.x_TD, problem.dy_TD, routing.weight_TK))
    y_TD, dx_TD, dweight_TK = torch.zeros_like(x_TD), torch.zeros_like(x_TD), torch.zeros_like(weight_TK)
    training = problem.case.training
    dw_in, dw_out = (torch.zeros_like(w, dtype=torch.float64) for w in (problem.w_in, problem.w_out))
    for expert in range(problem.case.shape.num_experts):
        token_R, slot_R = (routing.expert_TK == expert).nonzero(as_tuple=True)
        one = slice(expert, expert + 1)
        leaves = (
            x_TD[token_R],
            weight_TK[token_R, slot_R],
            problem.w_in[one].double(),
            problem.w_out[one].double(),
        )
        x_RD, weight_R, w_in, w_out = (t.requires_grad_(training) for t in leaves)
        rows = Rows(Segments((0, len(token_R))))
        y_RD = ffn(x_RD, StackedFFN(w_in, w_out), rows, backend="reference") * weight_R.unsqueeze(1)
        y_TD.index_add_(0, token_R, y_RD.detach())
        if training:
            gradients = torch.autograd.grad(y_RD, (x_RD, weight_R, w_in, w_out), dy_TD[token_R])
            dx_TD.index_add_(0, token_R, gradients[0])
            dweight_TK[token_R, slot_R] = gradients[1]
            dw_in[expert], dw_out[expert] = gradients[2][0], gradients[3][0]
    return (y_TD, dx_TD, dweight_TK, dw_in, dw_out) if training else (y_TD,)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """``|found - wanted| / |wanted|`` in the Frobenius norm: the relative root mean square error."""
    difference = (found.double() - wanted).norm()
    size = wanted.norm()
    return float(difference / size) if size > 0 else float(difference)


class Judge:
    """Compares implementations with the reference, which is computed once for a problem.

    ``tokens`` is how many of the problem's tokens are compared.
    """

    def __init__(self, problem: Problem) -> None:
        case = problem.case
        share = REFERENCE_FLOPS[case.device] / flops(case.shape, case.training)
        self.tokens = max(1, min(case.shape.tokens, int(share * case.shape.tokens)))
        self.problem = problem.first(self.tokens)
        self.wanted = reference(self.problem, self.problem.routings[0])

    def error(self, prepared: Prepared) -> float:
        """The largest relative error over the output and all gradients.

        Raises:
            ArithmeticError: the result is not finite, or so far off that something else was computed.
        """
        y, *rest = compute(prepared, self.problem, self.problem.routings[0])
        if rest:
            rest = [*rest[:2], *prepared.gradients(*rest[2:])]
        errors = [
            relative_error(found, wanted) for found, wanted in zip((y, *rest), self.wanted, strict=True)
        ]
        worst = max(errors)
        if not worst <= TOLERANCE[self.problem.case.dtype]:
            of = ("output", "input", "routing weights", "w_in", "w_out")[errors.index(worst)]
            what = "the output" if of == "output" else f"the gradient of the {of}"
            raise ArithmeticError(f"{what} is {worst:.2g} away from the float64 reference")
        return worst
