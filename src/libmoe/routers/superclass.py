"""A gate that is taught: while training, the class of a sample says which expert the router should have chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.routers.ids import side_below
from libmoe.routers.topk import TopKRouter

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext


class SuperclassRouter(TopKRouter):
    """Top-k that tells its losses the super-class of each sample, ``extras["target_TN"]`` (arXiv 2309.04354 §3).

    The choice itself never looks at labels, in training either: experts learn to live with the router's errors.

    Args:
        key: side input with the class of each sample while training, ``[B]``; with labels that are mixed (mixup,
            cutmix) their shares ``[B, Y]``, floating.  ``None``: nothing is told.
        classes: Y, classes that :attr:`superclass_Y` maps to experts; 0: labels are numbers of experts already.
        options: those of :class:`~libmoe.routers.topk.TopKRouter`.

    Attributes:
        superclass_Y: int64 buffer, saved with the model; -1 until it is set.
    """

    superclass_Y: Tensor

    def __init__(
        self, dim: int, num_experts: int, top_k: int = 1, *, key: str | None = "label", classes: int = 0, **options: Any
    ) -> None:
        super().__init__(dim, num_experts, top_k, **options)
        if classes < 0:
            raise ConfigError(f"classes={classes} must not be negative; 0 for labels that are experts' numbers")
        self.key = key
        unknown_Y = torch.full((classes,), -1, dtype=torch.long)
        self.register_buffer("superclass_Y", unknown_Y if classes else torch.arange(num_experts))

    def set(self, superclass_Y: Tensor) -> None:
        """Take a map from classes to experts.

        Raises:
            ConfigError: it is of another length, or names an expert that there is not.
        """
        if superclass_Y.shape != self.superclass_Y.shape:
            raise ConfigError(
                f"super-classes of {len(superclass_Y)} classes do not fit a router for {len(self.superclass_Y)}"
            )
        if bool(((superclass_Y < 0) | (superclass_Y >= self.num_experts)).any()):
            raise ConfigError(f"super-classes must be numbers of experts, 0 to {self.num_experts - 1}")
        self.superclass_Y.copy_(superclass_Y)

    def target(self, key: str, ctx: LayerContext, device: torch.device, dtype: torch.dtype) -> Tensor:
        """``[T, N]``: the share of each expert's super-class in the label of a token's sample."""
        if bool((self.superclass_Y < 0).any()):
            raise ConfigError("no super-classes are known yet; call libmoe.methods.mobile_vmoe.set_superclasses")
        of_class_YN = F.one_hot(self.superclass_Y, self.num_experts).to(device, dtype)
        shares = ctx.forward.options.side.get(key)
        if shares is None or not shares.is_floating_point():
            return of_class_YN[side_below(key, len(of_class_YN), ctx, device)]
        rows, length = ctx.batch_shape
        if shares.shape != (rows, len(of_class_YN)):
            raise ConfigError(
                f"side input {key!r} has shape {tuple(shares.shape)}; shares of labels are ({rows}, {len(of_class_YN)})"
            )
        return (shares.to(device, dtype) @ of_class_YN).repeat_interleave(length, 0)

    def route(self, x_TD: Tensor, ctx: LayerContext) -> Routing:
        routing = super().route(x_TD, ctx)
        if self.key is None or not ctx.training or routing.logits_TN is None:
            return routing
        target_TN = self.target(self.key, ctx, x_TD.device, routing.logits_TN.dtype)
        return replace(routing, extras={**routing.extras, "target_TN": target_TN})
