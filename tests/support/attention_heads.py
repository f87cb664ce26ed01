"""Layers of attention heads over given keys and values, and what they compute head by head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.experts import HeadExperts
from libmoe.layers import MoALayer
from libmoe.routers.dense_training import DenseTrainingRouter

B, L, D, N, H, WIDTH, G = 2, 6, 12, 4, 4, 3, 2


class Given(Router):
    """Returns a plan that was made before."""

    def __init__(self, plan: SparsePlan) -> None:
        super().__init__(plan.num_experts)
        self.plan = plan

    def route(self, x_TD: Tensor, ctx: Any) -> Routing:
        return Routing(self.plan)


def experts(**more: Any) -> HeadExperts:
    made = HeadExperts(
        N, D, H, WIDTH, groups=G, query_bias=True, output_bias=True, init_std=0.5, **more
    ).double()
    for bias in (made.b_q, made.b_o):
        nn.init.normal_(bias)
    return made


def layer_of(router: Router, **more: Any) -> MoALayer:
    gate = getattr(router, "gate", None)
    if gate is not None:
        nn.init.normal_(gate.weight)
    return MoALayer(router, experts(), **more).double()


def keys_and_values() -> tuple[Tensor, Tensor]:
    """``[B, G, L, d]``."""
    k, v = torch.randn(2, B, G, L, WIDTH, dtype=torch.float64)
    return k.requires_grad_(), v.requires_grad_()


def causal(k: Tensor, v: Tensor) -> Callable[[Tensor], Tensor]:
    """Grouped causal attention of torch over these keys and values."""

    def attention(q_TJd: Tensor) -> Tensor:
        q_BJLd = q_TJd.reshape(B, L, -1, WIDTH).transpose(1, 2)
        o_BJLd = F.scaled_dot_product_attention(q_BJLd, k, v, is_causal=True, enable_gqa=True)
        return o_BJLd.transpose(1, 2).reshape(q_TJd.shape)

    return attention


def table(plan: SparsePlan) -> Tensor:
    """Weight of each expert of each token, ``[T, N]``."""
    weight_A = plan.weight_A if plan.kept_A is None else torch.where(plan.kept_A, plan.weight_A, 0)
    empty_TN = torch.zeros(plan.num_tokens, plan.num_experts, dtype=torch.float64)
    return empty_TN.index_put((plan.token_A, plan.expert_A), weight_A, accumulate=True)


def by_hand(made: HeadExperts, weight_TN: Tensor, x_TD: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every head of every expert by itself."""
    later = torch.ones(L, L, dtype=torch.bool).triu(1)
    y_TD = torch.zeros_like(x_TD)
    for i in range(N):
        part_TD = made.b_o[i].expand_as(x_TD)
        for j in range(H):
            rows, group = slice(j * WIDTH, (j + 1) * WIDTH), j // (H // G)
            q_BLd = (x_TD @ made.w_q[i, rows].T + made.b_q[i, rows]).view(B, L, WIDTH)
            score_BLL = (q_BLd @ k[:, group].mT / WIDTH**0.5).masked_fill(later, -torch.inf)
            o_TE = (score_BLL.softmax(-1) @ v[:, group]).flatten(0, 1)
            part_TD = part_TD + o_TE @ made.w_o[i, :, rows].T
        y_TD = y_TD + weight_TN[:, i : i + 1] * part_TD
    return y_TD


def uneven(**more: Any) -> SparsePlan:
    """Tokens with 0 to 4 experts in turn, some of them dropped."""
    count_T = torch.arange(B * L) % (N + 1)
    mask_TN = torch.rand(B * L, N).argsort(1) < count_T[:, None]
    kept_TN = torch.rand(B * L, N) < 0.8
    plan = SparsePlan.from_mask(torch.rand(B * L, N).double(), mask_TN, kept_TN)
    return replace(plan, weight_A=plan.weight_A.requires_grad_(), **more)


def dense_router(training: bool, policy: str = "top-k", threshold: float = 0.48, **more: Any) -> Router:
    return DenseTrainingRouter(D, N, 2, policy=policy, threshold=threshold, **more).train(training)
