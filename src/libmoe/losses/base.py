"""The contract of auxiliary losses.

A loss maps a routing to ``(numerator, denominator)``; its value over a batch is the sum of numerators over the
sum of denominators, so it does not depend on how the batch was cut into micro-batches or ranks.  The MoE layer
attaches ``coefficient * numerator / total`` to its output with an identity in the forward pass: whatever loop
calls ``backward`` optimises it, and nothing has to be collected.  A factor that the loop puts on the model's own
loss before backward applies to attached losses too (:mod:`libmoe.core.main_loss`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.core.plan import SparsePlan

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.core.main_loss import LossGradient
    from libmoe.core.routing import Router, Routing
    from libmoe.experts.base import Experts

Scope = Literal["sequence", "micro_batch", "rank", "global_batch"]
SCOPES: tuple[Scope, ...] = ("sequence", "micro_batch", "rank", "global_batch")
LOCAL_SCOPES: tuple[Scope, ...] = ("sequence", "micro_batch")
"""Those of which one forward pass sees everything."""


@dataclass(frozen=True)
class LayerCall:
    """One call of an MoE layer: what went in, ``x_TD``, and the parts that work on it."""

    x_TD: Tensor
    router: Router
    experts: Experts


class Loss:
    """Base of auxiliary losses.

    Args:
        coefficient: weight in the total loss; greater than 0 means on.
        scope: the tokens over which batch statistics such as expert frequencies are taken.

            * ``sequence``: each sequence by itself;
            * ``micro_batch``: one forward pass (depends on how the batch is split, by definition);
            * ``rank``: this process's part of the optimiser step;
            * ``global_batch``: the whole optimiser step over all processes (arXiv 2501.11873).

    Class attributes: ``name`` for logs; ``unit`` says what the denominator counts (``token``: real tokens); ``scopes``
    are those that the loss knows; ``counts_steps``: over more than one forward pass it uses the step's loads.
    """

    name: str = "loss"
    unit: str = "token"
    scopes: tuple[Scope, ...] = SCOPES
    counts_steps: bool = False

    def __init__(self, coefficient: float, scope: Scope = "sequence") -> None:
        if scope not in SCOPES:
            raise unknown("loss scope", scope, SCOPES)
        if scope not in self.scopes:
            known = " or ".join(map(repr, self.scopes))
            raise ConfigError(f"{self.name}: scope {scope!r} is not counted by this loss; use {known}")
        if coefficient < 0:
            raise ConfigError(f"{self.name}: coefficient must not be negative, got {coefficient}")
        self.coefficient = coefficient
        self.scope: Scope = scope

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        """``(numerator, denominator)``, both scalars; only the numerator carries a gradient."""
        raise NotImplementedError(f"{type(self).__name__} defines no compute()")

    def attach_to(self, y_TD: Tensor, routing: Routing, ctx: LayerContext, call: LayerCall) -> Tensor:
        """The layer's output with this loss attached to it.

        A loss that depends on the gradient of the main loss at the output, token by token, is a
        :class:`~libmoe.losses.gradient.GradientLoss`.
        """
        numerator, denominator = self.compute(routing, ctx)
        self.note(ctx, numerator, denominator)
        value = self.coefficient_now(ctx) * numerator / total_units(self.unit, denominator, ctx)
        return attach(y_TD, value, ctx.forward.loss_gradient) if value.requires_grad else y_TD

    def coefficient_now(self, ctx: LayerContext) -> float:
        """The coefficient, for losses that set in while training runs."""
        return self.coefficient

    def note(self, ctx: LayerContext, numerator: Tensor, denominator: Tensor, what: str = "") -> None:
        """Add to the step's statistics: the loss itself, or something it measures besides."""
        statistics = ctx.forward.options.statistics
        if statistics is not None and not ctx.forward.recomputing:
            name = f"{self.name}/{what}" if what else self.name
            statistics.add_loss(ctx.index, name, numerator, denominator)

    def training_flops(self, router: Router, experts: Experts) -> float:
        """What a token costs in training besides forward and backward passes of the model."""
        return 0.0

    @property
    def needs_step_counts(self) -> bool:
        """Whether the loss uses loads of the whole optimiser step."""
        return self.counts_steps and self.scope not in LOCAL_SCOPES

    # -- what routers give -------------------------------------------------------------------------------
    def scores(self, routing: Routing) -> Tensor:
        """``[T, N]``.  Raises ConfigError where the router gives none."""
        if routing.scores_TN is None:
            raise ConfigError(f"{self.name} loss needs scores; this router gives none")
        return routing.scores_TN

    def logits(self, routing: Routing) -> Tensor:
        """``[T, N]``.  Raises ConfigError where the router gives none."""
        if routing.logits_TN is None:
            raise ConfigError(f"{self.name} loss needs logits; this router gives none")
        return routing.logits_TN

    def sparse(self, routing: Routing) -> SparsePlan:
        """Raises ConfigError for a plan of another kind."""
        if not isinstance(routing.plan, SparsePlan):
            raise ConfigError(f"{self.name} loss needs a sparse plan; this router makes a {routing.plan.kind} plan")
        return routing.plan

    def choices(self, routing: Routing) -> Tensor:
        """The experts of each token, best first, int64 ``[T, K]``.  Raises ConfigError where their number varies."""
        plan = self.sparse(routing)
        if plan.k is None:
            raise ConfigError(f"{self.name} loss needs the same number of choices for each token")
        return plan.expert_A.view(-1, plan.k)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(coefficient={self.coefficient:g}, scope={self.scope!r})"


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor, gradient: LossGradient) -> Tensor:
        ctx.gradient, ctx.loss_dtype, ctx.device = gradient, loss.dtype, loss.device
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad_y, torch.as_tensor(ctx.gradient.value, dtype=ctx.loss_dtype, device=ctx.device), None


def attach(y: Tensor, loss: Tensor, gradient: LossGradient) -> Tensor:
    """``y`` unchanged; in backward ``loss`` receives ``gradient``, as if it were part of the main loss."""
    return _Attach.apply(y, loss, gradient)


def total_units(unit: str, local: Tensor, ctx: LayerContext) -> Tensor | float:
    """Denominator of the step for a loss counted in ``unit``.

    The training loop announces totals of the whole step (divided by the number of ranks whose gradients are
    averaged).  A layer whose tokens are not the root model's (patches of images) counts items instead of sequences,
    and as many tokens for each as it sees.  Under a loop that passes ``num_items_in_batch`` (transformers' Trainer)
    a micro-batch weighs its own share of that number, as in the main loss.  Otherwise each forward is a batch of
    its own.
    """
    totals = ctx.forward.options.totals
    announced = totals.get(unit)
    if announced is not None and unit == "token":  # the loss counts parts of tokens where the layer does
        announced = announced * ctx.parts
    if ctx.tokens.apart and "item" in totals:
        announced = totals["item"] * (1 if unit == "sequence" else ctx.batch_shape[1])
    if announced is not None:
        return max(announced, 1e-9)
    items, targets = ctx.forward.items_in_batch, ctx.forward.targets
    if items is not None and targets is not None:
        share = (targets != -100).sum() / items
        return local.clamp_min(1e-9) / share.clamp_min(1e-9)
    return local.clamp_min(1e-9)


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
