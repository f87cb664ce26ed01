"""MLP-Mixer for images: token-mixing and channel-mixing FFNs in turns, either of which may become experts.

Of an image [S patches, C channels], the token-mixing FFN takes the C channels as items of width S, the channel-mixing
FFN the S patches as items of width C (Tolstikhin et al., arXiv 2105.01601 §2).  Both are ordinary FFNs on an ordinary
tensor, so that an MoE layer in the place of either routes channels or patches (Lou et al., arXiv 2109.02008 §3).
``where: last:4`` is both of the last two blocks, ``*.token_mixing*`` or ``*.channel_mixing*`` one of every block.
Importing this module makes the model known to transformers' ``AutoModel`` and ``AutoModelForImageClassification``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel, initialization
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithNoAttention, ImageClassifierOutputWithNoAttention

from libmoe.core.errors import ConfigError
from libmoe.models.mlp_mixer_config import MlpMixerConfig


class MlpMixerMLP(nn.Module):
    """Two linears with an activation between them, on the last axis."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation_fn = ACT2FN[activation]
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class ReRepresentation(nn.Module):
    """``[B, X, Y]`` to ``[B, Y', X']``: transposed, with a linear map along each axis."""

    def __init__(self, x: int, y: int, new_x: int, new_y: int) -> None:
        super().__init__()
        self.first = nn.Linear(y, new_y, bias=False)
        self.second = nn.Linear(x, new_x, bias=False)

    def forward(self, x_BXY: Tensor) -> Tensor:
        return self.second(self.first(x_BXY).mT)


class TokenMixing(nn.Module):
    """An FFN over the channels of each image, ``[B, S, C]`` to the same, in another shape where one is wanted.

    What its FFN sees are no tokens of the model: routing context that is about these is not passed on to it.
    """

    main_input_name = "hidden_states"

    def __init__(self, config: MlpMixerConfig, re_represented: bool) -> None:
        super().__init__()
        patches, channels = config.num_patches, config.hidden_size
        self.before: nn.Module | None = None
        self.after: nn.Module | None = None
        width = patches
        if re_represented:
            width, count = config.re_represented
            self.before = ReRepresentation(patches, channels, width, count)
            self.after = ReRepresentation(count, width, channels, patches)
        self.mlp = MlpMixerMLP(width, config.token_hidden, config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.before is None or self.after is None:
            return self.mlp(hidden_states.mT).mT
        return self.after(self.mlp(self.before(hidden_states)))


class MlpMixerLayer(GradientCheckpointingLayer):
    """``U = X + token_mixing(norm(X))``, ``Y = U + channel_mixing(norm(U))``."""

    def __init__(self, config: MlpMixerConfig, re_represented: bool) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.token_mixing = TokenMixing(config, re_represented)
        self.channel_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.channel_mixing = MlpMixerMLP(config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        # The residual passes by both re-representations, so that the stream keeps its C channels whatever C1 is.
        hidden_states = hidden_states + self.token_mixing(self.token_norm(hidden_states))
        return hidden_states + self.channel_mixing(self.channel_norm(hidden_states))


class MlpMixerPreTrainedModel(PreTrainedModel):
    """What both models below share."""

    config_class = MlpMixerConfig
    base_model_prefix = "mixer"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ReRepresentation):
            # Four narrow maps in a row would leave next to nothing of a branch, and routers would see no difference.
            for linear in (module.first, module.second):
                initialization.normal_(linear.weight, mean=0.0, std=linear.in_features**-0.5)


class MlpMixerModel(MlpMixerPreTrainedModel):
    """Pixels to the last block's patches, normalised: ``[B, num_channels, H, W]`` to ``[B, S, C]``."""

    def __init__(self, config: MlpMixerConfig) -> None:
        super().__init__(config)
        config.refuse_impossible()
        patch, first = config.patch_size, config.num_hidden_layers - config.re_represented_layers
        self.patch_embeddings = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch)
        self.layers = nn.ModuleList(
            [MlpMixerLayer(config, i >= first) for i in range(config.num_hidden_layers)]
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **unused: Any
    ) -> BaseModelOutputWithNoAttention:
        """Raises ConfigError for images of another size."""
        size, channels = self.config.image_size, self.config.num_channels
        if pixel_values.shape[1:] != (channels, size, size):
            raise ConfigError(
                f"pixel_values of shape {tuple(pixel_values.shape)}: this Mixer reads images of ({channels}, {size}, "
                f"{size}) alone"
            )
        states = [self.patch_embeddings(pixel_values).flatten(2).mT]
        for layer in self.layers:
            states.append(layer(states[-1]))
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutputWithNoAttention(
            last_hidden_state=self.layernorm(states[-1]), hidden_states=tuple(states) if wanted else None
        )


class MlpMixerForImageClassification(MlpMixerPreTrainedModel):
    """A linear classifier on the mean of the patches."""

    def __init__(self, config: MlpMixerConfig) -> None:
        super().__init__(config)
        self.mixer = MlpMixerModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutputWithNoAttention:
        """``labels``: int64 ``[B]``, classes for the cross-entropy loss."""
        outputs = self.mixer(pixel_values, output_hidden_states)
        logits = self.classifier(outputs.last_hidden_state.mean(1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutputWithNoAttention(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states
        )


AutoModel.register(MlpMixerConfig, MlpMixerModel, exist_ok=True)
AutoModelForImageClassification.register(MlpMixerConfig, MlpMixerForImageClassification, exist_ok=True)
