"""The conflict elimination loss: tokens whose gradient points against their expert's are to leave it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.experts import FFNExperts
from libmoe.losses.base import LayerCall
from libmoe.losses.frequency import real_tokens
from libmoe.losses.gradient import GradientLoss, Seen
from libmoe.ops import grouped_linear
from libmoe.ops.base import hidden

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.dispatch import Segments
    from libmoe.core.routing import Router, Routing
    from libmoe.experts import Experts

Of = Literal["matrix", "bias"]


@dataclass(frozen=True)
class Similarity:
    """Cosine of each computed row's gradient with the mean gradient of its expert.

    ``cosine_R`` is 0 and ``valid_R`` false for padding and rows without gradient.
    """

    token_R: Tensor
    expert_R: Tensor
    cosine_R: Tensor
    valid_R: Tensor


class ConflictEliminationLoss(GradientLoss):
    """``L = -mean over conflicting (n, e) of log softmax(-z_n)_e`` (STGC, Yang et al., arXiv 2406.19905).

    Token n conflicts with its expert e when the cosine between its gradient and the mean gradient of e's tokens lies
    below ``threshold``.  The cross-entropy of the *negated* logits z with the current expert as label pushes
    ``z_ne`` down against the other logits.

    The gradient is that of the main loss with respect to the expert's output matrix: for a token with hidden
    activations a and gradient d at the matrix's output it is the outer product ``d a^T``, and with ``M = sum d a^T``
    its cosine is ``d^T M a / (|d| |a| |M|)``, exact without a matrix for any token.  The gate's weight is part of d:
    it weighs tokens in M and cancels in the cosine.

    The mean is over the conflicting pairs of one forward pass of one process, as is M, and so both depend on how a
    batch is split; forward passes count by their tokens.  Logs get ``conflict_elimination/similarity``, the mean
    cosine, and ``conflict_elimination/share``, the share of conflicting pairs, too.  The loss works against balance:
    watch loads.

    Args:
        coefficient: beta.  The paper averages over layers too: divide by their number for that.
        threshold: tau in [-1, 1]; at -1 nothing conflicts, and the loss only measures.
        warmup: fraction of training before the loss sets in, where the loop says how far training is.
        of: ``matrix``, or ``bias``: of a bias added to the output, whose gradient is d alone; cheaper, and of any
            experts.
        detach: as in :class:`~libmoe.losses.gradient.GradientLoss`.

    The sources give the rule and the form of the loss; threshold, weight and the parameters whose gradient is taken
    are not stated there.

    Raises:
        ConfigError: a number out of range; experts whose hidden activations are not at hand.
    """

    name = "conflict_elimination"

    def __init__(
        self,
        coefficient: float,
        threshold: float = 0.0,
        *,
        warmup: float = 0.0,
        of: Of = "matrix",
        detach: bool = True,
    ) -> None:
        super().__init__(coefficient, detach=detach)
        if not -1 <= threshold <= 1:
            raise ConfigError(f"{self.name}: threshold is a cosine between -1 and 1, got {threshold}")
        if not 0 <= warmup < 1:
            raise ConfigError(f"{self.name}: warmup is a fraction of training, at least 0 and below 1, got {warmup}")
        if of not in ("matrix", "bias"):
            raise ConfigError(f"{self.name}: of={of!r} is unknown; choose 'matrix' or 'bias'")
        self.threshold, self.warmup, self.of = threshold, warmup, of

    def attach_to(self, y_TD: Tensor, routing: Routing, ctx: LayerContext, call: LayerCall) -> Tensor:
        self.sparse(routing)
        if self.of == "matrix":
            _check_hidden(call.experts)
        if ctx.forward.options.total_steps and ctx.progress < self.warmup:
            return y_TD
        return super().attach_to(y_TD, routing, ctx, call)

    def compute_seeing(self, routing: Routing, ctx: LayerContext, seen: Seen) -> tuple[Tensor, Tensor]:
        found = self.similarity(self.sparse(routing), ctx, seen)
        conflict_R = found.valid_R & (found.cosine_R < self.threshold)
        pairs = found.valid_R.sum()
        self.note(ctx, found.cosine_R.sum(), pairs, "similarity")
        self.note(ctx, conflict_R.sum(), pairs, "share")
        logits_TN, tokens = real_tokens(self.logits(routing), ctx)
        nll_R = -(-logits_TN).log_softmax(-1)[found.token_R, found.expert_R]
        return tokens * (nll_R * conflict_R).sum() / conflict_R.sum().clamp_min(1), tokens

    def training_flops(self, router: Router, experts: Experts) -> float:
        """Hidden activations again, and two products with the output matrix's gradient."""
        again = super().training_flops(router, experts)
        if self.of == "bias" or not isinstance(experts, FFNExperts):
            return again
        w_in, w_out = experts.stacked.w_in[0].numel(), experts.stacked.w_out[0].numel()
        return again + sum(router.expected_load()) * (2.0 * w_in + 4.0 * w_out)

    @torch.no_grad()
    def similarity(self, plan: SparsePlan, ctx: LayerContext, seen: Seen) -> Similarity:
        """The cosines of all (token, expert) pairs that were computed, expert by expert; at least in float32."""
        token_R, order_R, segments = plan.dispatch.token_R, plan.order_R, plan.segments
        weight_R = plan.weight_A[order_R].detach().unsqueeze(1)
        dtype = torch.promote_types(seen.x_TD.dtype, torch.float32)
        grad_TO = seen.grad_TO.to(dtype)
        # Cosines do not see a common factor, but squares of tiny or huge gradients leave float32.
        delta_RO = (grad_TO / grad_TO.abs().amax().clamp_min(torch.finfo(dtype).tiny))[token_R]
        x_RD = seen.x_TD[token_R]
        if plan.scale_input:
            x_RD = x_RD * weight_R.to(x_RD.dtype)
        else:
            delta_RO = delta_RO * weight_R.to(dtype)
        if self.of == "matrix":
            a_RH = _hidden(seen.experts, x_RD, segments).to(dtype)
        else:
            a_RH = delta_RO.new_ones(len(token_R), 1)
        mask_T = ctx.mask_T
        if mask_T is not None:
            padding_R1 = ~mask_T[token_R].unsqueeze(1)
            delta_RO, a_RH = delta_RO.masked_fill(padding_R1, 0), a_RH.masked_fill(padding_R1, 0)
        own_R = delta_RO.norm(dim=1) * a_RH.norm(dim=1)
        cosine_R = torch.zeros_like(own_R)
        for start, stop in pairwise(segments.bounds):
            d, a = delta_RO[start:stop], a_RH[start:stop]
            total_OH = d.T @ a
            length_R = own_R[start:stop] * total_OH.norm()
            cosine_R[start:stop] = ((d @ total_OH) * a).sum(1) / length_R.clamp_min(torch.finfo(dtype).tiny)
        valid_R = own_R > 0
        return Similarity(token_R, plan.expert_A[order_R], cosine_R.clamp(-1, 1) * valid_R, valid_R)


def _check_hidden(experts: Experts) -> None:
    plain = isinstance(experts, FFNExperts) and type(experts).forward_rows is FFNExperts.forward_rows
    if not plain or experts.dropout:
        what = "experts with dropout" if plain else type(experts).__name__
        raise ConfigError(f"conflict_elimination loss does not know the hidden activations of {what}; use of='bias'")


def _hidden(experts: Experts, x_RD: Tensor, segments: Segments) -> Tensor:
    """Input of the output matrix for each row, computed again: ``[R, H]``."""
    assert isinstance(experts, FFNExperts)
    parts = experts.stacked.to(x_RD.dtype)
    h_RH = grouped_linear(x_RD, parts.w_in, segments, parts.b_in, experts.backend)
    return hidden(h_RH, parts.activation, parts.gated)
