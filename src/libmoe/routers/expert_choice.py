"""Expert choice: experts pick their tokens (Zhou et al., arXiv 2202.09368)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.routers.capped import capped_assignment, residual
from libmoe.routers.gates import LinearGate

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Axis = Literal["experts", "tokens"]
Group = Literal["sequence", "batch"]
EvalPolicy = Literal["group", "token"]


class ExpertChoiceRouter(Router):
    """Each expert takes the ``k = round(c n / N)`` tokens of a group that score highest for it, at least one.

    ``S = softmax(x W)`` over experts; top-k of S along the *tokens* of the group; the gate is S at the pick,
    not renormalised (eq. 1-3).  n counts real tokens only, and padding is never picked.  A token may be picked
    by no expert, whose output is 0, or by several.  Load is balanced by construction.

    Args:
        dim, num_experts: D, N.
        capacity_factor: c, the average number of experts per token.
        score_axis: ``experts`` as above; ``tokens`` takes the softmax over the tokens of the group instead.
        group: tokens that compete: those of a ``sequence`` (documents packed in a row are sequences of their
            own) or of the whole ``batch`` in this forward pass.
        max_experts_per_token: b; pick from the capped assignment (:mod:`libmoe.routers.capped`) with
            ``strength`` and ``iterations``.  ``extras`` then has ``row_error`` and ``column_excess`` of the
            solution and ``violation_rate``, the share of tokens that more than b experts picked after all.
        eval_policy: outside training, ``group`` picks as in training, so that a token decoded by itself is a
            group of one and every expert picks it; with ``token`` each token takes its own ``round(c)`` best
            experts, which is causal but an approximation that is not the paper's.
    """

    causal = False

    def __init__(
        self,
        dim: int,
        num_experts: int,
        capacity_factor: float = 2.0,
        *,
        score_axis: Axis = "experts",
        group: Group = "sequence",
        max_experts_per_token: int | None = None,
        strength: float = 0.01,
        iterations: int = 100,
        eval_policy: EvalPolicy = "group",
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__(num_experts)
        if not 0 < capacity_factor <= num_experts:
            raise ConfigError(
                f"capacity_factor={capacity_factor} must be greater than 0 and at most num_experts={num_experts}"
            )
        if max_experts_per_token is not None and max_experts_per_token < capacity_factor:
            raise ConfigError(
                f"max_experts_per_token={max_experts_per_token} must be at least the average, "
                f"capacity_factor={capacity_factor}"
            )
        if strength <= 0 or iterations < 1:
            raise ConfigError(f"strength={strength} must be above 0 and iterations={iterations} at least 1")
        if eval_policy == "token" and score_axis == "tokens":
            raise ConfigError("eval_policy='token' needs score_axis='experts', not 'tokens'")
        self.capacity_factor = capacity_factor
        self.score_axis, self.group, self.eval_policy = score_axis, group, eval_policy
        self.max_experts_per_token = max_experts_per_token
        self.strength, self.iterations = strength, iterations
        self.batch_independent = group == "sequence"
        self.gate = gate if gate is not None else LinearGate(dim, num_experts)

    def layout(self, num_tokens: int, device: torch.device, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        """``index_GL`` of the real tokens of each group and ``real_GL``, ``False`` where a shorter group ends."""
        mask_T = ctx.mask_T
        if mask_T is None:
            mask_T = torch.ones(num_tokens, dtype=torch.bool, device=device)
        group_T = torch.zeros(num_tokens, dtype=torch.long, device=device)
        if self.group == "sequence":
            group_T = ctx.sequence_T.to(device)
        _, size_G = torch.unique_consecutive(group_T[mask_T], return_counts=True)
        longest = int(size_G.max()) if len(size_G) else 0
        real_GL = torch.arange(longest, device=device) < size_G.unsqueeze(1)
        index_GL = torch.zeros_like(real_GL, dtype=torch.long)
        index_GL[real_GL] = mask_T.nonzero().squeeze(1)
        return index_GL, real_GL

    def score(self, logits_TN: Tensor, index_GL: Tensor, real_GL: Tensor) -> Tensor:
        if self.score_axis == "experts":
            return logits_TN.softmax(dim=-1)
        p_GLN = logits_TN[index_GL].masked_fill(~real_GL.unsqueeze(2), float("-inf")).softmax(dim=1)
        return torch.zeros_like(logits_TN).index_copy(0, index_GL[real_GL], p_GLN[real_GL])

    def pick(
        self, scores_TN: Tensor, index_GL: Tensor, real_GL: Tensor, ctx: LayerContext
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Tokens and experts of the picks, expert by expert in each group.  Runs without gradient."""
        scores_TN = ctx.edit_scores(scores_TN)
        size_G = real_GL.sum(dim=1)
        # An intervention that forces k experts per token forces the average.
        average = ctx.top_k(0) or self.capacity_factor
        k_G = (average * size_G / self.num_experts).round().long().clamp_min(1).minimum(size_G)
        score_GNL = scores_TN[index_GL].masked_fill(~real_GL.unsqueeze(2), float("-inf")).transpose(1, 2)
        rank_GNL, extras = score_GNL, {}
        limit = self.max_experts_per_token
        if limit is not None and limit < self.num_experts:
            log_GNL = capped_assignment(score_GNL, k_G, limit, real_GL, self.strength, self.iterations)
            extras = vars(residual(log_GNL, k_G, limit)).copy()
            rank_GNL = log_GNL.masked_fill(score_GNL.isneginf(), float("-inf"))
        most = int(k_G.max()) if len(k_G) else 0
        value_GNK, place_GNK = rank_GNL.topk(most, dim=-1)
        valid_GNK = (torch.arange(most, device=k_G.device) < k_G.view(-1, 1, 1)) & ~value_GNK.isneginf()
        group_A, expert_A, _ = valid_GNK.nonzero(as_tuple=True)
        token_A = index_GL[group_A, place_GNK[valid_GNK]]
        if extras:
            picks_T = torch.bincount(token_A, minlength=len(scores_TN))
            extras["violation_rate"] = (picks_T > limit).sum().item() / max(1, int(size_G.sum()))
        return token_A, expert_A, extras

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        logits_TN = self.gate(x_TD)
        num_tokens = len(logits_TN)
        if not self.training and self.eval_policy == "token":
            scores_TN = logits_TN.softmax(dim=-1)
            k = ctx.top_k(max(1, round(self.capacity_factor)))
            expert_TK = ctx.memo("pick", lambda: ctx.edit_scores(scores_TN.detach()).topk(k, dim=-1).indices)
            plan = SparsePlan.from_topk(expert_TK, scores_TN.gather(1, expert_TK), self.num_experts)
            return Routing(plan, logits_TN, scores_TN)
        index_GL, real_GL = ctx.memo("layout", lambda: self.layout(num_tokens, logits_TN.device, ctx))
        scores_TN = self.score(logits_TN, index_GL, real_GL)
        picks: tuple[Tensor, Tensor, dict[str, Any]] = ctx.memo(
            "pick", lambda: self.pick(scores_TN.detach(), index_GL, real_GL, ctx)
        )
        token_A, expert_A, extras = picks
        plan = SparsePlan(token_A, expert_A, scores_TN[token_A, expert_A], num_tokens, self.num_experts)
        return Routing(plan, logits_TN, scores_TN, dict(extras))

    def expected_load(self) -> list[float]:
        return [self.capacity_factor / self.num_experts] * self.num_experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, capacity_factor={self.capacity_factor}, group={self.group!r}"
