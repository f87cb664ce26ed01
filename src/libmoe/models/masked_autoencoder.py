"""Masked autoencoders of images (ViTMAE): positions to start with, and features of whole images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.models.forms import child

Pool = Literal["mean", "first"]
TABLES = ("position_embeddings", "decoder_pos_embed")
"""What masked autoencoders call their fixed positions."""


def sincos_positions(grid: int, width: int) -> Tensor:
    """``[1 + grid^2, width]``: sines and cosines of column and row, after a row of zeros for the class token.

    The first half tells the column, the second the row, each as ``sin(w p)``, then ``cos(w p)``, at ``width / 4``
    frequencies w from 1 to nearly 1e-4 (He et al., arXiv 2111.06377, as published with its code).

    Raises:
        ConfigError: the width is no multiple of 4.
    """
    if width < 4 or width % 4:
        raise ConfigError(f"positions of width {width}: sines in two directions take a multiple of 4")
    place = torch.arange(grid, dtype=torch.float64)
    angle_GF = place[:, None] * 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    wave_GW = torch.cat([angle_GF.sin(), angle_GF.cos()], dim=1)
    row_P, column_P = (
        p.flatten() for p in torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    )
    table_PW = torch.cat([wave_GW[column_P], wave_GW[row_P]], dim=1)
    return torch.cat([table_PW.new_zeros(1, width), table_PW]).float()


@torch.no_grad()
def complete(module: nn.Module, std: float) -> None:
    """Give a module of a drawn masked autoencoder what transformers leaves out: positions, tokens, scale of patches.

    A table of positions that is not trained and holds zeros alone would keep patches from being told apart, in the
    encoder and in the decoder, for ever.  Every module without such a table stays as it is.

    Args:
        std: of the class token and of the token in the place of masked patches.
    """
    tables = [getattr(module, name, None) for name in TABLES]
    empty = [t for t in tables if isinstance(t, nn.Parameter) and not t.requires_grad and not t.any()]
    for table in empty:
        patches = table.shape[-2] - 1
        table.copy_(sincos_positions(round(patches**0.5), table.shape[-1]))
    if not empty:
        return
    for name in ("cls_token", "mask_token"):
        token = getattr(module, name, None)
        if isinstance(token, nn.Parameter):
            nn.init.normal_(token, std=std)
    projection = child(module, "patch_embeddings.projection")
    if projection is not None:
        # As a linear map of a patch's pixels, which would be faint beside positions otherwise.
        nn.init.xavier_uniform_(projection.weight.flatten(1))


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
