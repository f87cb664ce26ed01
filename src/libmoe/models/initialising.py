"""Initial weights that depend on a seed and on names alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from libmoe.core.seeding import seeded
from libmoe.models.masked_autoencoder import complete


@torch.no_grad()
def initialise(model: Any, seed: int, inside: str = "") -> None:
    """Draw weights anew as the architecture does, each module's from a seed of its own.

    Args:
        inside: path of a module: only what is in it; the whole model by default.
    """
    from transformers import PreTrainedModel

    def visit(module: nn.Module, name: str, owner: Any) -> None:
        owner = module if isinstance(module, PreTrainedModel) else owner
        for child_name, child in module.named_children():
            visit(child, f"{name}.{child_name}", owner)
        with seeded(seed, "backbone", name):
            owner._init_weights(module)  # after its children's, as some architectures rescale theirs
            complete(module)

    root = model.get_submodule(inside)
    for module in root.modules():  # what transformers took note of when it drew them: some would not be drawn again
        module.__dict__.pop("_is_hf_initialized", None)
    visit(root, f".{inside}" if inside else "", model)
    model.tie_weights()
