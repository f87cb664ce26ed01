"""The scale of the main loss in backward, so that losses attached to the graph can share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class LossGradient:
    """Gradient of the total loss with respect to each attached loss; backward fills in the main loss's own."""

    value: Tensor | float


class _NoteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, note: LossGradient) -> Tensor:
        ctx.note = note
        return loss.clone()  # not a view: transformers' Trainer multiplies it in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.note.value = grad
        return grad, None


def note_main_loss(output: Any, note: LossGradient) -> Any:
    """``output`` with its loss passed through the identity that notes the gradient; ``None`` if it has no loss."""

    def is_loss(value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad

    if is_loss(output):
        return _NoteGradient.apply(output, note)
    if isinstance(output, dict):  # transformers' ModelOutput is one
        if is_loss(output.get("loss")):
            output["loss"] = _NoteGradient.apply(output["loss"], note)
    elif isinstance(output, tuple) and output and is_loss(output[0]):
        return (_NoteGradient.apply(output[0], note), *output[1:])
    return None
