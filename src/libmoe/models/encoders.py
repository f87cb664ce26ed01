"""Image encoders for vision-language models: from a checkpoint or drawn, at any image size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import CheckpointError, ConfigError, nearest, unknown
from libmoe.core.seeding import derive_seed
from libmoe.models.initialising import initialise
from libmoe.models.loading import load_any

if TYPE_CHECKING:
    from libmoe.models.several_encoders import Reading

_POSITIVE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
    "layers",
    "channel_pool",
)
POSITIONS = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")
"""Where encoders keep their table of positions."""


@dataclass
class VisionConfig:
    """The image encoder of a vision-language model.

    Attributes:
        checkpoint: a folder or a name on the hub with an encoder (``dinov2``, ``vit``) or a model that has one (CLIP,
            SigLIP).  It brings its own shape; ``None`` draws weights for the shape below.
        architecture: transformers' name of the encoder: ``siglip_vision_model``, ``dinov2``, ``vit``, ...
        hidden_size, num_hidden_layers, intermediate_size, num_attention_heads, patch_size: its shape;
            ``intermediate_size=None`` is four times ``hidden_size``.
        extra: further fields of the architecture's configuration.
        image_size: height and width in pixels; ``None`` for the checkpoint's own.  A checkpoint's positions are
            interpolated to another size.
        layers: blocks that are used, from the first; ``None`` for all.  (LLaVA leaves out the last one.)
        class_token: let the language model see the class token as well, where there is one.
        image_token: id in the text whose places the patches take; ``None`` for the last row of the embeddings.
        encoders: several encoders instead, whose patches come one after another, each through a connector of its own.
            Of the fields above only ``image_size`` (of the pixels that are read, which each encoder gets at its own
            size; ``None`` for the largest) and ``image_token`` are used then.
        mixing: what the patches of several encoders go through together: ``none``, or ``hga``, hierarchical group
            attention (MoCHA, arXiv 2507.22805).
        channel_pool: of one of several encoders: so many neighbouring features become their mean.
    """

    checkpoint: str | None = None
    architecture: str = "siglip_vision_model"
    hidden_size: int = 128
    num_hidden_layers: int = 4
    intermediate_size: int | None = None
    num_attention_heads: int = 4
    patch_size: int = 14
    extra: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    layers: int | None = None
    class_token: bool = False
    image_token: int | None = None
    encoders: list[VisionConfig] = field(default_factory=list)
    mixing: Literal["none", "hga"] = "none"
    channel_pool: int = 1

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"backbone.vision.{name} must be at least 1, got {value}")
        if self.mixing != "none" and not self.encoders:
            raise ConfigError(f"backbone.vision.mixing={self.mixing!r} mixes what backbone.vision.encoders make")
        if self.encoders and (self.checkpoint is not None or self.layers is not None):
            raise ConfigError("backbone.vision.checkpoint and layers belong to each of backbone.vision.encoders")
        if any(inner.encoders or inner.image_token is not None for inner in self.encoders):
            raise ConfigError("backbone.vision.encoders: encoders and image_token belong to backbone.vision itself")


def build_encoder(config: VisionConfig, seed: int | None = 0) -> nn.Module:
    """The encoder alone, or several as one module, in evaluation mode.

    Raises:
        ConfigError: an architecture that is no image encoder, an impossible shape, or fewer blocks than are wanted.
        CheckpointError: the checkpoint cannot be loaded.
    """
    if config.encoders:
        return _several(config, seed)
    if config.channel_pool > 1:
        raise ConfigError("backbone.vision.channel_pool: list the encoder under backbone.vision.encoders")
    return _single(config, seed)


def _several(config: VisionConfig, seed: int | None) -> nn.Module:
    from libmoe.models.several_encoders import SeveralEncoders, SeveralEncodersConfig

    seeds = [None if seed is None else derive_seed(seed, "encoder", number) for number in range(len(config.encoders))]
    encoders = [_single(inner, own) for inner, own in zip(config.encoders, seeds, strict=True)]
    readings = [_reading(encoder, inner) for encoder, inner in zip(encoders, config.encoders, strict=True)]
    size = config.image_size or max(reading.config["image_size"] for reading in readings)
    return SeveralEncoders.of(encoders, SeveralEncodersConfig.of(readings, config.mixing, size))


def _reading(encoder: Any, config: VisionConfig) -> Reading:
    """What the language model is to get of one of several encoders."""
    from libmoe.models.several_encoders import Reading

    states = _states(encoder)
    if states.dim() == 4:  # maps of convolutions
        tokens, drops, width = states[0, 0].numel(), 0, states.shape[1]
    else:
        patches, has_class_token = image_tokens(encoder)
        drops, width = int(has_class_token and not config.class_token), states.shape[2]
        tokens = patches + has_class_token - drops
    if config.channel_pool > width:
        raise ConfigError(f"backbone.vision.channel_pool={config.channel_pool}: the encoder makes {width} features")
    mean, std = _colours(config.checkpoint)
    pool = config.channel_pool
    return Reading(encoder.config.to_dict(), tokens, width // pool, drops, pool, mean, std)


def _colours(checkpoint: str | None) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the colours that an encoder was trained with, where a processor tells them."""
    from transformers import ImageProcessingMixin

    from libmoe.models.several_encoders import GREY

    if checkpoint is None:
        return GREY, GREY
    try:
        told, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint)
    except OSError as error:
        if Path(checkpoint).is_dir():  # a folder without one
            return GREY, GREY
        raise CheckpointError(f"{checkpoint!r} has no image processor: {' '.join(str(error).split())[:200]}") from None
    return told.get("image_mean") or GREY, told.get("image_std") or GREY


def _single(config: VisionConfig, seed: int | None) -> Any:
    if config.checkpoint is not None:
        model = load_any(config.checkpoint, dtype=torch.float32)
        encoder: Any = getattr(model, "vision_model", None) or getattr(model, "vision_tower", None) or model
    else:
        encoder = _drawn(config, seed)
    if getattr(encoder, "main_input_name", None) != "pixel_values":
        raise ConfigError(f"backbone.vision: {type(encoder).__name__} is no image encoder")
    return _fitted(encoder, config.layers, config.image_size).eval()


def image_tokens(encoder: Any) -> tuple[int, bool]:
    """What an image becomes: how many patches, and whether a class token comes before them.

    Raises:
        ConfigError: there are other tokens besides (registers).
    """
    from libmoe.models.several_encoders import SeveralEncoders

    if isinstance(encoder, SeveralEncoders):
        return encoder.config.tokens, False
    states, patches = _states(encoder), (encoder.config.image_size // encoder.config.patch_size) ** 2
    if states.dim() == 4:
        raise ConfigError(
            f"{type(encoder).__name__} makes maps; list it under backbone.vision.encoders, even by itself"
        )
    tokens = states.shape[1]
    if tokens - patches not in (0, 1):
        raise ConfigError(
            f"{type(encoder).__name__} makes {tokens} tokens of {patches} patches; only a class token may come on top"
        )
    return patches, tokens > patches


@torch.no_grad()
def _states(encoder: Any) -> Tensor:
    """What the encoder makes of an empty image."""
    size = encoder.config.image_size
    pixels = torch.zeros(1, encoder.config.num_channels, size, size, device=encoder.device, dtype=encoder.dtype)
    return encoder(pixel_values=pixels).last_hidden_state


def _drawn(config: VisionConfig, seed: int | None) -> Any:
    from transformers import CONFIG_MAPPING, AutoModel

    if config.architecture not in CONFIG_MAPPING:
        raise unknown("backbone.vision.architecture", config.architecture, CONFIG_MAPPING)
    cls = CONFIG_MAPPING[config.architecture]
    known = cls().to_dict()
    for name in config.extra:
        if name not in known:
            guess = nearest(name, known)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise ConfigError(f"backbone.vision.extra: {config.architecture!r} has no field {name!r}{hint}")
    hidden = config.intermediate_size or 4 * config.hidden_size
    shape = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "patch_size": config.patch_size,
        "image_size": config.image_size or 4 * config.patch_size,
        "intermediate_size": hidden,
        "mlp_ratio": hidden // config.hidden_size,
    }
    try:
        encoder = AutoModel.from_config(cls(**{k: v for k, v in shape.items() if k in known} | config.extra))
    except Exception as error:  # whatever an architecture's constructor thinks of its numbers
        raise ConfigError(f"backbone.vision {config.architecture!r}: {' '.join(str(error).split())[:300]}") from None
    if seed is not None and encoder.device.type != "meta":
        initialise(encoder, seed)
    return encoder


def _fitted(encoder: Any, layers: int | None, size: int | None) -> Any:
    """The same encoder with its first ``layers`` blocks alone and for images of ``size`` x ``size`` pixels."""
    from transformers.initialization import no_init_weights

    before, patch = encoder.config, encoder.config.patch_size
    layers, size = layers or before.num_hidden_layers, size or before.image_size
    if (layers, size) == (before.num_hidden_layers, before.image_size):
        return encoder
    if hasattr(before, "depths") and layers != before.num_hidden_layers:
        raise ConfigError(f"backbone.vision.layers: {type(encoder).__name__} has stages, which are used together")
    if layers > before.num_hidden_layers:
        raise ConfigError(f"backbone.vision.layers={layers}: the encoder has {before.num_hidden_layers} blocks")
    if size % patch:
        raise ConfigError(f"backbone.vision.image_size={size} is not a multiple of the patch size {patch}")
    # What backbones of detectors are told about their stages names every block.
    told = {k: v for k, v in before.to_dict().items() if k not in ("stage_names", "out_features", "out_indices")}
    with no_init_weights():
        new = type(encoder)(type(before).from_dict(told | {"num_hidden_layers": layers, "image_size": size}))
    tensors, wanted = encoder.state_dict(), new.state_dict()
    for name in POSITIONS:
        if name in wanted and wanted[name].shape != tensors[name].shape:
            tensors[name] = _interpolated(tensors[name], size // patch)
    new.load_state_dict({name: tensors[name] for name in wanted if not name.endswith("position_ids")}, strict=False)
    return new


def _interpolated(table: Tensor, grid: int) -> Tensor:
    """Positions ``[.., P (+ 1 for a class token), D]`` for ``grid`` x ``grid`` patches, bicubically."""
    flat_PD = table.reshape(-1, table.shape[-1])
    before = int(len(flat_PD) ** 0.5)
    first = len(flat_PD) - before**2
    if first not in (0, 1):
        raise ConfigError(f"positions of an image encoder for {len(flat_PD)} tokens form no square grid")
    image_1DHW = flat_PD[first:].T.reshape(1, -1, before, before)
    new_1DHW = F.interpolate(image_1DHW.float(), size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    new_PD = torch.cat([flat_PD[:first], new_1DHW[0].flatten(1).T.to(table.dtype)])
    return new_PD.reshape(*table.shape[:-2], *new_PD.shape)
