"""A gate that is smooth in training and sparse in the end (DSelect-k)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.routers.gates import LinearGate
from libmoe.routers.variable import VariableKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Gating = Literal["example", "static"]


def smooth_step(t: Tensor, width: float = 1.0) -> Tensor:
    """0 up to ``-width / 2``, 1 from ``width / 2``, and a cubic between them that is smooth at both ends (eq. 4)."""
    u = (t / width).clamp(-0.5, 0.5)
    return 0.5 + u * (1.5 - 2 * u.square())


def code_probabilities(digits: Tensor) -> Tensor:
    """Probabilities of all 2^m codes whose m binary digits are 1 with ``digits [..., m]``: ``[..., 2^m]``.

    Code i is i written in binary, the first digit being the most significant one (eq. 5).
    """
    r = digits.new_ones(*digits.shape[:-1], 1)
    for digit in digits.unbind(-1):
        both = torch.stack([1 - digit, digit], dim=-1)
        r = (r.unsqueeze(-1) * both.unsqueeze(-2)).flatten(-2)
    return r


class DSelectRouter(VariableKRouter):
    """``q = sum_j softmax(w)_j r(z_j)``: k selectors, each a soft choice of one expert (arXiv 2106.03760 eq. 6).

    Selector j writes the number of an expert in ``m = ceil(log2 N)`` digits ``S(z_jl)``, S the smooth step: r is the
    probability of each number.  At first all digits are near 1/2 and all experts run; a digit whose z leaves
    ``(-width / 2, width / 2)`` is exactly 0 or 1, and a token whose digits all are uses at most k experts.  An expert
    of weight 0 is not computed, and as the step is flat where it is 0 or 1, neither value nor gradient knows the
    difference.  Nothing is drawn, ranked, renormalised or balanced.

    Where N is no power of 2 the numbers from N on stand for nobody: the weights sum to less than 1 until
    :class:`~libmoe.losses.selectors.ReachableMassLoss` has moved their probability to real experts.

    There are no logits.  ``extras["selectors_TJN"]`` is r.

    Args:
        dim, num_experts, top_k: D, N and the number of selectors k.
        gating: ``example``: z and w are linear in the token; ``static``: they are parameters, one set for each task.
        tasks: number of sets; with more than one the side input ``key`` names a token's.
        width: of the smooth step, gamma.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        gating: Gating = "example",
        tasks: int = 1,
        key: str = "task",
        width: float = 1.0,
    ) -> None:
        super().__init__(dim, num_experts, min(top_k, num_experts), gate=nn.Identity())
        if width <= 0 or tasks < 1:
            raise ConfigError(f"width={width} must be greater than 0 and tasks={tasks} at least 1")
        if gating == "example" and tasks > 1:
            raise ConfigError(f"tasks={tasks}: gates of tasks read no token; use gating='static'")
        self.top_k, self.gating, self.tasks, self.key, self.width = top_k, gating, tasks, key, width
        self.num_digits = max(0, math.ceil(math.log2(num_experts)))
        # Drawn as published: digits near 1/2, selectors nearly alike.
        edge, even = width / 100, 0.05
        if gating == "static":
            self.digits = nn.Parameter(torch.empty(tasks, top_k, self.num_digits).uniform_(-edge, edge))
            self.shares = nn.Parameter(torch.empty(tasks, top_k).uniform_(-even, even))
            return
        self.digits_gate = LinearGate(dim, top_k * self.num_digits, bias=True)
        self.shares_gate = LinearGate(dim, top_k, bias=True)
        with torch.no_grad():
            for parameter in self.digits_gate.parameters():
                parameter.uniform_(-edge, edge)
            self.shares_gate.weight.uniform_(-even, even)

    def raw(self, x_TD: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        """z ``[T, k, m]`` and w ``[T, k]`` in at least float32; the first dimension is 1 where all tokens share one."""
        if self.gating == "example":
            z_TJM = self.digits_gate(x_TD).view(len(x_TD), self.top_k, self.num_digits)
            return z_TJM, self.shares_gate(x_TD)
        dtype = torch.promote_types(torch.promote_types(x_TD.dtype, self.digits.dtype), torch.float32)
        digits, shares = self.digits.to(dtype), self.shares.to(dtype)
        if self.tasks == 1:
            return digits, shares
        task_T = ctx.side_T(self.key).to(x_TD.device, torch.long)
        if ctx.mask_T is not None:
            task_T = task_T.masked_fill(~ctx.mask_T.to(x_TD.device), 0)
        one_hot_TG = F.one_hot(task_T.clamp(0, self.tasks - 1), self.tasks).to(dtype)
        if task_T.device.type == "cpu" and bool((task_T != one_hot_TG.argmax(1)).any()):
            raise ConfigError(f"side input {self.key!r} names a task that is not among the {self.tasks} of this router")
        return torch.einsum("tg,gjm->tjm", one_hot_TG, digits), one_hot_TG @ shares

    def selectors(self, x_TD: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        """r ``[T, k, N]`` and the selectors' shares ``[T, k]``."""
        with torch.autocast(x_TD.device.type, enabled=False):
            z_TJM, w_TJ = self.raw(x_TD, ctx)
            r_TJN = code_probabilities(smooth_step(z_TJM, self.width))[..., : self.num_experts]
        return r_TJN.expand(len(x_TD), -1, -1), w_TJ.softmax(dim=-1).expand(len(x_TD), -1)

    def choose(self, scores_TN: Tensor) -> Tensor:
        return scores_TN > 0

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        r_TJN, share_TJ = self.selectors(x_TD, ctx)
        q_TN = (share_TJ.unsqueeze(2) * r_TJN).sum(dim=1)
        mask_TN = ctx.memo("select", lambda: self.select(q_TN.detach(), ctx))
        plan = SparsePlan.from_mask(q_TN, mask_TN)
        return Routing(plan, None, q_TN, {"selectors_TJN": r_TJN})

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}, gating={self.gating!r}"
