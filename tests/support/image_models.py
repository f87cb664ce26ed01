"""Small dense models that read images, and batches of text with images for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from libmoe.models.backbones import BackboneConfig, build_backbone
from libmoe.models.encoders import VisionConfig

IMAGE, PATCHES = 96, 16
"""Id of the image token, and how many of them an image takes."""


def image_model(encoder_width: int = 32, **backbone: Any) -> Any:
    """Its matrices are large, so that what it sees matters."""
    vision = VisionConfig(
        None, "siglip_vision_model", hidden_size=encoder_width, num_hidden_layers=1, image_size=56
    )
    config = BackboneConfig(hidden_size=32, num_hidden_layers=2, vocab_size=IMAGE + 1, vision=vision, **backbone)
    model = build_backbone(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model.eval()


def image_batch(image: bool = True) -> dict[str, Tensor]:
    """Two rows of text, with an image near the beginning; the last row ends in padding."""
    ids = torch.randint(0, IMAGE, (2, 28))
    mask = torch.ones_like(ids)
    mask[-1, 24:] = 0
    if not image:
        return {"input_ids": ids, "attention_mask": mask}
    ids[:, 3 : 3 + PATCHES] = IMAGE
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 56, 56)}
