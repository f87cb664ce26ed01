"""The contract of losses of the main loss's gradient: known only in backward, and computed there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.losses.base import LayerCall, Loss, total_units

if TYPE_CHECKING:
    from collections.abc import Callable

    from libmoe.core.context import LayerContext
    from libmoe.core.routing import Router, Routing
    from libmoe.experts.base import Experts


@dataclass(frozen=True)
class Seen:
    """What a layer sees in backward: its input ``x_TD``, its experts and the gradient at its output, ``grad_TO``.

    Nothing here carries a gradient.  The scale of ``grad_TO`` is the loop's (gradient scalers, accumulation).
    """

    x_TD: Tensor
    grad_TO: Tensor
    experts: Experts


class GradientLoss(Loss):
    """Base of losses that depend on the gradient of the main loss, token by token.

    The main loss's backward pass itself computes such a loss: where the gradient arrives at the layer's output, it is
    handed to :meth:`compute_seeing`, the result is differentiated with respect to the logits alone, and that gradient
    flows on into the router beside the main loss's.  Any loop works, with one ``backward`` per micro-batch, and
    recomputation, gradient scalers and data parallelism need no care.

    The gradient that arrives is that of all that is attached above: with the main loss, auxiliary losses of later
    layers as far as they flow into hidden states.  Losses of this kind do not, unless ``detach`` is off.

    Args:
        detach: the loss trains the router alone; off, it flows through the logits into the hidden states too.  The
            router is asked a second time for that, about detached states: it must answer the same.
    """

    def __init__(self, coefficient: float, *, detach: bool = True) -> None:
        super().__init__(coefficient, "micro_batch")
        self.detach = detach

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        raise ConfigError(f"{self.name} loss depends on gradients and exists in backward alone; see compute_seeing()")

    def compute_seeing(self, routing: Routing, ctx: LayerContext, seen: Seen) -> tuple[Tensor, Tensor]:
        """``(numerator, denominator)``, both scalars; the first is differentiable in ``routing.logits_TN`` alone."""
        raise NotImplementedError(f"{type(self).__name__} defines no compute_seeing()")

    def training_flops(self, router: Router, experts: Experts) -> float:
        """The router's products once more, if it is asked about detached states."""
        return 2.0 * sum(p.numel() for p in router.parameters() if p.dim() > 1) if self.detach else 0.0

    def attach_to(self, y_TD: Tensor, routing: Routing, ctx: LayerContext, call: LayerCall) -> Tensor:
        logits_TN = self.logits(call.router(call.x_TD.detach(), ctx) if self.detach else routing)
        experts = call.experts  # not the call: its input is kept by autograd, which recomputation can free

        def gradient(logits_TN: Tensor, x_TD: Tensor, grad_TO: Tensor) -> Tensor:
            leaf_TN = logits_TN.detach().requires_grad_()
            device = leaf_TN.device.type
            with torch.enable_grad(), torch.autocast(device, enabled=False):
                now = replace(routing, logits_TN=leaf_TN)
                numerator, denominator = self.compute_seeing(now, ctx, Seen(x_TD, grad_TO.detach(), experts))
                value = self.coefficient_now(ctx) * numerator / total_units(self.unit, denominator, ctx)
                (found_TN,) = torch.autograd.grad(value, leaf_TN)
            self.note(ctx, numerator, denominator)
            return found_TN * ctx.forward.loss_gradient.value

        return _InBackward.apply(y_TD, logits_TN, call.x_TD.detach(), gradient)


class _InBackward(torch.autograd.Function):
    """``y`` unchanged; in backward the logits get a gradient that is made from the one of ``y``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, logits_TN: Tensor, x_TD: Tensor, gradient: Callable[..., Tensor]) -> Tensor:
        ctx.save_for_backward(logits_TN, x_TD)
        ctx.gradient = gradient
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        logits_TN, x_TD = ctx.saved_tensors
        found_TN = ctx.gradient(logits_TN, x_TD, grad_y) if ctx.needs_input_grad[1] else None
        return grad_y, found_TN, None, None
