"""Expert choice: experts pick their tokens (Zhou et al., arXiv 2202.09368)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Router, Routing
from libmoe.routers.capped import capped_assignment, residual
from libmoe.routers.gates import LinearGate
from libmoe.routers.groups import Group, group_layout, group_of, softmax_within
from libmoe.routers.noise import Noise, noisy
from libmoe.routers.picks import PickRounding, Picks
from libmoe.routers.selection_predictor import SelectionPredictor, choice_of_tokens

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext

Axis = Literal["experts", "tokens"]
EvalPolicy = Literal["group", "token", "predictor"]
PickGates = Literal["score", "picked", "one"]


class ExpertChoiceRouter(Router):
    """Each expert takes the ``k = round(c n / N)`` tokens of a group that score highest for it.

    The steps, each a method to override::

        scores_TN = self.score(logits_TN, ...)            softmax over experts
        k_G = self.picks(size_G, ctx)                     tokens of each expert
        rank_GNL = self.rank(scores_GNL, real_GL, k_G)    what experts choose by: the scores
        weight_A = self.weigh(scores_TN, logits_TN, ...)  scores of the picks

    ``S = softmax(x W)`` over experts; top-k of S along the *tokens* of the group; the gate is S at the pick,
    not renormalised (eq. 1-3).  n counts real tokens only, and padding is never picked.  A token may be picked
    by no expert, whose output is 0, or by several.  Load is balanced by construction.

    Args:
        dim, num_experts: D, N.
        capacity_factor: c, the average number of experts per token.
        score_axis: ``experts`` as above; ``tokens`` takes the softmax over the tokens of the group instead.
        group: tokens that compete: those of a ``sequence`` (documents packed in a row are sequences of their
            own) or of the whole ``batch`` in this forward pass.
        gates: the weight of a pick: its ``score``; the softmax of the expert's logits over the tokens it ``picked``
            (arXiv 2306.04073); or ``one``.
        tokens_per_expert: k itself, for a group of any length; c then only says what to count costs by.
        rounding, multiple, min_capacity: how k becomes a whole number, see :class:`~libmoe.routers.picks.Picks`.
        scale_input: multiply an expert's input by the weight, not its output.
        noise: a :class:`~libmoe.routers.noise.Noise` on the logits while training.
        max_experts_per_token: b; pick from the capped assignment (:mod:`libmoe.routers.capped`) with
            ``strength`` and ``iterations``.  ``extras`` then has ``row_error`` and ``column_excess`` of the
            solution and ``violation_rate``, the share of tokens that more than b experts picked after all.
        eval_policy: outside training, ``group`` picks as in training, so that a token decoded by itself is a
            group of one and every expert picks it.  Two are causal, and approximations that are not the paper's: with
            ``token`` each token takes its own ``round(c)`` best experts; with ``predictor`` those, perhaps none, of
            which a :class:`~libmoe.routers.selection_predictor.SelectionPredictor` says that they would pick it.
        predictor_hidden: width of the predictor's hidden layer.  Its logits are in ``extras["predicted_TN"]``.
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
        gates: PickGates = "score",
        tokens_per_expert: int | None = None,
        rounding: PickRounding | None = None,
        multiple: int = 0,
        min_capacity: int = 1,
        predictor_hidden: int = 64,
        scale_input: bool = False,
        noise: Noise | None = None,
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
        for what, value, kind in (("value of gates", gates, PickGates), ("eval_policy", eval_policy, EvalPolicy)):
            if value not in get_args(kind):
                raise unknown(what, value, get_args(kind))
        if eval_policy != "group" and (score_axis == "tokens" or gates == "picked"):
            raise ConfigError(
                f"eval_policy={eval_policy!r} looks at one token: it needs score_axis='experts' and gates='score' or "
                f"'one', not {score_axis!r} and {gates!r}"
            )
        self.capacity_factor, self.gates = capacity_factor, gates
        self.counts = Picks(exact=tokens_per_expert, rounding=rounding, multiple=multiple, minimum=min_capacity)
        self.scale_input, self.noise = scale_input, noise
        self.score_axis, self.group, self.eval_policy = score_axis, group, eval_policy
        self.max_experts_per_token = max_experts_per_token
        self.strength, self.iterations = strength, iterations
        self.batch_independent = group == "sequence"
        self.gate = gate if gate is not None else LinearGate(dim, num_experts)
        predicts = eval_policy == "predictor"
        self.predictor = SelectionPredictor(dim, num_experts, predictor_hidden) if predicts else None

    def score(self, logits_TN: Tensor, index_GL: Tensor, real_GL: Tensor) -> Tensor:
        if self.score_axis == "experts":
            return logits_TN.softmax(dim=-1)
        p_GLN = logits_TN[index_GL].masked_fill(~real_GL.unsqueeze(2), float("-inf")).softmax(dim=1)
        return torch.zeros_like(logits_TN).index_copy(0, index_GL[real_GL], p_GLN[real_GL])

    def picks(self, size_G: Tensor, ctx: LayerContext) -> Tensor:
        """int64 ``[G]``: how many tokens each expert takes of groups of these sizes."""
        # An intervention that forces k experts per token forces the average.
        forced = ctx.top_k(0)
        return self.counts.count(size_G, self.num_experts, forced or self.capacity_factor, exactly=not forced)

    def rank(self, scores_GNL: Tensor, real_GL: Tensor, k_G: Tensor) -> tuple[Tensor, dict[str, float]]:
        """``[G, N, L]``: what experts choose by, ``-inf`` for what they must not, and facts for ``extras``."""
        limit = self.max_experts_per_token
        if limit is None or limit >= self.num_experts:
            return scores_GNL, {}
        log_GNL = capped_assignment(scores_GNL, k_G, limit, real_GL, self.strength, self.iterations)
        return log_GNL, vars(residual(log_GNL, k_G, limit)).copy()

    def pick(
        self, scores_TN: Tensor, index_GL: Tensor, real_GL: Tensor, ctx: LayerContext
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Tokens and experts of the picks, expert by expert in each group.  Runs without gradient."""
        scores_TN = ctx.edit_scores(scores_TN)
        size_G = real_GL.sum(dim=1)
        k_G = self.picks(size_G, ctx)
        score_GNL = scores_TN[index_GL].masked_fill(~real_GL.unsqueeze(2), float("-inf")).transpose(1, 2)
        rank_GNL, extras = self.rank(score_GNL, real_GL, k_G)
        rank_GNL = rank_GNL.masked_fill(score_GNL.isneginf(), float("-inf"))
        most = int(k_G.max()) if len(k_G) else 0
        value_GNK, place_GNK = rank_GNL.topk(most, dim=-1)
        valid_GNK = (torch.arange(most, device=k_G.device) < k_G.view(-1, 1, 1)) & ~value_GNK.isneginf()
        group_A, expert_A, _ = valid_GNK.nonzero(as_tuple=True)
        token_A = index_GL[group_A, place_GNK[valid_GNK]]
        if "column_excess" in extras:
            picks_T = torch.bincount(token_A, minlength=len(scores_TN))
            over = (picks_T > self.max_experts_per_token).sum().item()
            extras["violation_rate"] = over / max(1, int(size_G.sum()))
        return token_A, expert_A, extras

    def weigh(
        self,
        scores_TN: Tensor,
        logits_TN: Tensor,
        picks: tuple[Tensor, Tensor],
        layout: tuple[Tensor, Tensor],
    ) -> Tensor:
        """``[A]``: weights of the picks (their tokens and experts), differentiable."""
        if self.gates == "score":
            return scores_TN[picks]
        if self.gates == "one":
            return torch.ones_like(scores_TN[picks])
        owner_A = group_of(*layout, len(scores_TN))[picks[0]] * self.num_experts + picks[1]
        return softmax_within(logits_TN[picks], owner_A, len(layout[0]) * self.num_experts)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        logits_TN, _ = noisy(lambda x_TD, ctx: self.gate(x_TD), self.noise if self.training else None, x_TD, ctx)
        num_tokens = len(logits_TN)
        predicted_TN = None if self.predictor is None else self.predictor(x_TD)
        if not self.training and self.eval_policy != "group":
            one = self.gates == "one"
            return choice_of_tokens(logits_TN, predicted_TN, self.capacity_factor, ctx, one, self.scale_input)
        index_GL, real_GL = ctx.memo("layout", lambda: group_layout(num_tokens, logits_TN.device, ctx, self.group))
        scores_TN = self.score(logits_TN, index_GL, real_GL)
        picks: tuple[Tensor, Tensor, dict[str, Any]] = ctx.memo(
            "pick", lambda: self.pick(scores_TN.detach(), index_GL, real_GL, ctx)
        )
        token_A, expert_A, extras = picks
        weight_A = self.weigh(scores_TN, logits_TN, (token_A, expert_A), (index_GL, real_GL))
        plan = SparsePlan(
            token_A, expert_A, weight_A, num_tokens, self.num_experts, scale_input=self.scale_input
        )
        predicted = {} if predicted_TN is None else {"predicted_TN": predicted_TN}
        return Routing(plan, logits_TN, scores_TN, extras | predicted)

    def expected_load(self) -> list[float]:
        return [self.capacity_factor / self.num_experts] * self.num_experts

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, capacity_factor={self.capacity_factor}, group={self.group!r}"
