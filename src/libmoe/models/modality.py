"""Which modality each token of a model's text input has, told to routers and recorders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.core.context import current
from libmoe.core.tokens import image_token

TEXT, IMAGE, PADDING = range(3)


def tell_modality(model: Any) -> None:
    """Let each forward pass of ``model`` have the side input ``modality``, unless the caller gives one.

    Where the model reads images, tokens are :data:`IMAGE` at the image token of ``input_ids``, else :data:`TEXT`, and
    :data:`PADDING` under the attention mask (``[B, L]``).  Elsewhere every token is text (``[B]``).  Generation
    needs nothing else: what is decoded is text.
    """
    image = image_token(model)

    def tell(module: nn.Module, args: tuple, kwargs: dict) -> None:
        context = current()
        if context is None or context.tokens.ids is None or "modality" in context.options.side:
            return
        side = context.options.side | {"modality": modality(context.tokens.ids, context.tokens.mask, image)}
        context.options = replace(context.options, side=side)

    for module in model.modules():  # a part may be called by itself
        if getattr(module, "main_input_name", None) == "input_ids":
            module.register_forward_pre_hook(tell, with_kwargs=True)


def modality(ids_BL: Tensor, mask_BL: Tensor | None, image: int | None) -> Tensor:
    """int64 ``[B, L]``, or ``[B]`` of zeros without an image token."""
    if image is None:
        return ids_BL.new_zeros(len(ids_BL))
    found_BL = torch.where(ids_BL == image, IMAGE, TEXT)
    if mask_BL is None or mask_BL.shape[1] < ids_BL.shape[1]:
        return found_BL
    return found_BL.masked_fill(mask_BL[:, -ids_BL.shape[1] :] == 0, PADDING)
