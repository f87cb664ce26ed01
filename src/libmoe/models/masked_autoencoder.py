"""Masked autoencoders of images (ViTMAE): what a decoder starts with, and features of whole images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown

Pool = Literal["mean", "first"]


def complete(module: Any) -> None:
    """Draw what a masked autoencoder's decoder begins with: positions, and a token in the place of masked patches.

    transformers fills both with zeros where it draws weights, as they are about to be loaded; positions are not
    trained, so that a decoder which is not loaded could never tell patches apart.  Other modules stay as they are.
    """
    positions = getattr(module, "decoder_pos_embed", None)
    if isinstance(positions, nn.Parameter):
        module.initialize_weights(positions.shape[1] - 1)


@contextmanager
def unmasked(model: Any) -> Iterator[None]:
    """While the block runs, every patch enters the encoder of a masked autoencoder.

    Raises:
        ConfigError: ``model`` masks nothing.
    """
    configs = {
        id(m.config): m.config for m in model.modules() if hasattr(getattr(m, "config", None), "mask_ratio")
    }
    if not configs:
        raise ConfigError(
            f"{type(model).__name__} is no masked autoencoder: its configuration has no mask_ratio"
        )
    before = {key: config.mask_ratio for key, config in configs.items()}
    try:
        for config in configs.values():
            config.mask_ratio = 0.0
        yield
    finally:
        for key, config in configs.items():
            config.mask_ratio = before[key]


@torch.no_grad()
def image_features(model: Any, pixel_values: Tensor, pool: Pool = "mean", batch_size: int = 256) -> Tensor:
    """Features ``[I, D]`` of whole images, ``[I, C, H, W]``, in evaluation mode: nothing is masked.

    Args:
        model: a dense masked autoencoder with or without its decoder (``ViTMAEForPreTraining``, ``ViTMAEModel``).
        pool: the ``mean`` of the last block's patches, or the ``first`` token, [CLS].

    Raises:
        ConfigError: an unknown pool, or no masked autoencoder.
    """
    if pool not in ("mean", "first"):
        raise unknown("value of pool", pool, ["mean", "first"])
    encoder, training = model.base_model, model.training
    found = []
    try:
        encoder.eval()
        with unmasked(model):
            for pixels in pixel_values.split(batch_size):
                patches = pixels.shape[-2:].numel() // model.config.patch_size**2
                order_BP = torch.arange(patches, device=pixels.device).expand(
                    len(pixels), -1
                )  # as they stand
                states_BLD = encoder(pixel_values=pixels, noise=order_BP).last_hidden_state
                found.append(states_BLD[:, 0] if pool == "first" else states_BLD[:, 1:].mean(1))
    finally:
        model.train(training)
    return torch.cat(found)
