"""Several image encoders in one vision-language model, each with a connector of its own.

As LLaVA lays it out: :class:`SeveralEncoders` stands where its one encoder does and :class:`Connectors` where its
connector does.  Importing this module makes the two known to transformers' ``AutoConfig`` and ``AutoModel``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import BaseModelOutputWithPooling

from libmoe.models.group_attention import GroupAttention

MIXINGS = ("none", "hga")
GREY = (0.5, 0.5, 0.5)
"""Mean and standard deviation of the colours in the pixels that the model is given."""


@dataclass(frozen=True)
class Reading:
    """What the language model gets of one encoder.

    Attributes:
        config: the encoder's, as a mapping with its ``model_type``.
        tokens: how many, of ``width`` features each.
        drops: first tokens that are left out (a class token).
        channel_pool: so many neighbouring features become their mean.
        mean, std: of the colours that the encoder was trained with.
    """

    config: dict[str, Any]
    tokens: int
    width: int
    drops: int = 0
    channel_pool: int = 1
    mean: Sequence[float] = GREY
    std: Sequence[float] = GREY

    def pixels(self, pixels_ICHW: Tensor) -> Tensor:
        """At the encoder's size (bicubic, antialiased) and with the mean and deviation it knows, in float32."""
        size, x = self.config["image_size"], pixels_ICHW.float()
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        grey, mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (GREY, self.mean, self.std))
        return (x * grey + grey - mean) / std

    def features(self, encoder: Any, pixels_ICHW: Tensor) -> Tensor:
        """What the last block hands over, ``[I, tokens, width]``; maps of convolutions row by row."""
        pixels = self.pixels(pixels_ICHW).to(encoder.dtype)
        states = encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        tokens_IPC = states.flatten(2).mT if states.dim() == 4 else states[:, self.drops :]
        return tokens_IPC if self.channel_pool == 1 else F.avg_pool1d(tokens_IPC, self.channel_pool)


class SeveralEncodersConfig(PreTrainedConfig):
    """Of encoders whose patches come one after another.

    Attributes:
        encoders: the fields of a :class:`Reading` of each.
        mixing: ``none``, or ``hga`` for :class:`~libmoe.models.group_attention.GroupAttention` over all patches.
        image_size: height and width of the pixels that are read; each encoder gets them at its own size.
        patch_size, hidden_size, num_channels: of the first encoder.
    """

    model_type = "several_encoders"

    encoders: list[dict[str, Any]] | None = None
    mixing: str = "none"
    image_size: int = 224
    patch_size: int = 16
    hidden_size: int = 768
    num_channels: int = 3
    initializer_range: float = 0.02

    @classmethod
    def of(cls, readings: Sequence[Reading], mixing: str, image_size: int) -> SeveralEncodersConfig:
        first = readings[0]
        return cls(
            encoders=[asdict(reading) for reading in readings],
            mixing=mixing,
            image_size=image_size,
            patch_size=first.config["patch_size"],
            hidden_size=first.width,
            num_channels=first.config["num_channels"],
        )

    @property
    def readings(self) -> list[Reading]:
        return [Reading(**entry) for entry in self.encoders or ()]

    @property
    def tokens(self) -> int:
        """Of an image, all encoders together."""
        return sum(reading.tokens for reading in self.readings)


class SeveralEncoders(PreTrainedModel):
    """Encoders that read the same pixels, as modules ``encoder_0``, ``encoder_1``, ...

    (Numbers by themselves would stand for blocks.)
    """

    config_class = SeveralEncodersConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: SeveralEncodersConfig) -> None:
        super().__init__(config)
        self.readings = config.readings
        for number, reading in enumerate(self.readings):
            self.add_module(f"encoder_{number}", AutoModel.from_config(AutoConfig.for_model(**reading.config)))
        self.post_init()

    @classmethod
    def of(cls, encoders: Sequence[nn.Module], config: SeveralEncodersConfig) -> SeveralEncoders:
        """From encoders that are there, which stay as they are."""
        with torch.device("meta"), no_init_weights():
            new = cls(config)
        for number, encoder in enumerate(encoders):
            new.add_module(f"encoder_{number}", encoder)
        return new.eval()

    def forward(self, pixel_values: Tensor, **unused: Any) -> BaseModelOutputWithPooling:
        """As "hidden states" a tuple with the features of each encoder, which :class:`Connectors` take."""
        features = tuple(
            reading.features(self.get_submodule(f"encoder_{number}"), pixel_values)
            for number, reading in enumerate(self.readings)
        )
        return BaseModelOutputWithPooling(hidden_states=(features,))


class Connector(nn.Module):
    """Two linears with an activation between them."""

    def __init__(self, width: int, out: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out, bias=bias)
        self.act = ACT2FN[activation]
        self.linear_2 = nn.Linear(out, out, bias=bias)

    def forward(self, image_features: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(image_features)))


class Connectors(nn.Module):
    """Each encoder's features through its connector, one after another and, where wanted, mixed: ``[I, M, D]``."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        vision, out = config.vision_config, config.text_config.hidden_size
        readings = vision.readings
        for number, reading in enumerate(readings):
            form = (reading.width, out, config.projector_hidden_act, config.multimodal_projector_bias)
            self.add_module(f"connector_{number}", Connector(*form))
        self.mixing = GroupAttention() if vision.mixing == "hga" else None
        self.groups = [number for number, reading in enumerate(readings) for _ in range(reading.tokens)]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        parts = [self.get_submodule(f"connector_{number}")(x_IPC) for number, x_IPC in enumerate(features)]
        x_IMD = torch.cat(parts, 1)
        return x_IMD if self.mixing is None else self.mixing(x_IMD, self.groups)


class SeveralEncodersForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA whose ``vision_config`` is a :class:`SeveralEncodersConfig`."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = Connectors(config)
        self.post_init()


AutoConfig.register(SeveralEncodersConfig.model_type, SeveralEncodersConfig, exist_ok=True)
AutoModel.register(SeveralEncodersConfig, SeveralEncoders, exist_ok=True)
