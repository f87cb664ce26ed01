"""How sensitive the loss is to the output of each MoE layer, and how many experts that allows to drop.

AdapMoE (arXiv 2408.10284 §4.1).  If layer l's output changes by d, the loss changes by about ``d^T H d / 2``; the
Hessian is replaced by the diagonal Fisher matrix F, the mean of squared gradients, and the layer's sensitivity is
``s_l = sum(F)``.  F is the empirical one: gradients of the loss on given text, not on text that the model draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.analysis.observe import find_layers, observe
from libmoe.core.context import LayerContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.interventions.skipping import lighter_shares
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.layers import moe_layers

Batch = Mapping[str, Tensor]
SummedLoss = Callable[[nn.Module, Batch], Tensor]
"""From a model and a batch to the *summed* loss of its tokens: a mean would make gradients smaller with the batch."""


@dataclass
class OutputFisher:
    """Of one layer: ``diagonal_D``, the mean over ``tokens`` real tokens of the squared gradient at its output."""

    diagonal_D: Tensor
    tokens: int = 0

    @property
    def sensitivity(self) -> float:
        """``s_l``, for :class:`~libmoe.core.interventions.skipping.SensitivityGate`."""
        return float(self.diagonal_D.sum())

    def loss_change(self, change_TD: Tensor) -> float:
        """Predicted mean rise of the loss per token, ``d^T F d / 2``, for changes of the output."""
        return float((change_TD.double().square() @ self.diagonal_D).mean() / 2)


def output_sensitivity(model: nn.Module, loss: SummedLoss, batches: Iterable[Batch]) -> dict[int, OutputFisher]:
    """By MoE layer, of LibMoE's or any that can be observed.  Parameters and their gradients are left alone.

    Raises:
        ConfigError: the model has no MoE layer.
    """
    modules = {layer.index: layer for _, layer in moe_layers(model)}
    modules |= {layer.index: layer.block for layer in find_layers(model)}
    masks: dict[int, Tensor | None] = {}
    outputs: list[tuple[int, Tensor]] = []
    found: dict[int, OutputFisher] = {}

    def note(ctx: LayerContext, routing: Routing) -> None:
        masks[ctx.index] = ctx.mask_T

    def keep(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            outputs.append((index, y if y.requires_grad else y.requires_grad_()))

        return hook

    handles = [module.register_forward_hook(keep(index)) for index, module in modules.items()]
    training = model.training
    model.eval()
    try:
        with torch.enable_grad(), observe(model), options(recorders=[note]):
            for batch in batches:
                outputs.clear()
                gradients = torch.autograd.grad(loss(model, batch), [y for _, y in outputs])
                for (index, _), gradient in zip(outputs, gradients, strict=True):
                    _add(found, index, gradient.flatten(0, -2), masks.get(index))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for layer in found.values():
        layer.diagonal_D /= max(layer.tokens, 1)
    return dict(sorted(found.items()))


def _add(found: dict[int, OutputFisher], index: int, gradient_TD: Tensor, mask_T: Tensor | None) -> None:
    if mask_T is not None:
        gradient_TD = gradient_TD[mask_T]
    square_D = gradient_TD.double().square().sum(0)
    layer = found.setdefault(index, OutputFisher(torch.zeros_like(square_D)))
    layer.diagonal_D += square_D
    layer.tokens += len(gradient_TD)


def threshold_for(
    model: nn.Module, sensitivity: Mapping[int, float], experts: float, run: Callable[[], object]
) -> float:
    """The T at which a gate by ``sensitivity`` leaves so many experts per token, on average over its layers.

    Decisions are those without a gate; that earlier layers change what later ones see is left out.

    Args:
        run: calls the model on calibration text.

    Raises:
        ConfigError: fewer than one expert, more than there are, or nothing was routed.
    """
    values: list[Tensor] = []
    tokens = 0

    def record(ctx: LayerContext, routing: Routing) -> None:
        nonlocal tokens
        if ctx.index not in sensitivity or not isinstance(routing.plan, SparsePlan):
            return
        plan, mask_T = routing.plan, ctx.mask_T
        share_A, place_A = lighter_shares(plan)
        may_go_A = place_A > 0 if mask_T is None else (place_A > 0) & mask_T[plan.token_A]
        values.append((share_A[may_go_A].square() * sensitivity[ctx.index]).cpu())
        tokens += plan.num_tokens if mask_T is None else int(mask_T.sum())

    with torch.no_grad(), observe(model), options(recorders=[record]):
        run()
    value_A = torch.cat(values).sort().values if values else torch.zeros(0)
    most = 1 + len(value_A) / tokens if tokens else 0.0
    if not 1 <= experts <= most:
        raise ConfigError(f"experts={experts} must be between 1 and the {most:.3g} that tokens use on average")
    gone = round((most - experts) * tokens)
    return float(value_A[gone - 1]) if gone else 0.0
