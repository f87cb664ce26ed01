"""The shape of an MLP-Mixer, known to transformers' ``AutoConfig`` once this module is imported."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig

from libmoe.core.errors import ConfigError


class MlpMixerConfig(PreTrainedConfig):
    """Of a Mixer for images of one size; token mixing has a weight for each place.

    Attributes:
        hidden_size: channels C.
        intermediate_size: hidden width of the channel-mixing FFNs.
        token_intermediate_size: of the token-mixing FFNs; ``None`` for half of C, as published.
        image_size, patch_size: of squares, in pixels; S is the square of their ratio.
        re_represented_layers: so many last blocks mix tokens in another shape, ``[patches, channels]``
            (arXiv 2109.02008 §3): longer channels, and fewer of them, make routing of channels cheaper.
        re_represented_patches, re_represented_channels: that shape; ``None`` for 2 S and C / 2, as published.
    """

    model_type = "mlp_mixer"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    intermediate_size: int = 3072
    token_intermediate_size: int | None = None
    hidden_act: str = "gelu"
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    re_represented_layers: int = 0
    re_represented_patches: int | None = None
    re_represented_channels: int | None = None
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    @property
    def num_patches(self) -> int:
        """S."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def token_hidden(self) -> int:
        """Hidden width of the token-mixing FFNs."""
        given = self.token_intermediate_size
        return max(1, self.hidden_size // 2) if given is None else given

    @property
    def re_represented(self) -> tuple[int, int]:
        """Patches S1 and channels C1 of the other shape."""
        patches, channels = self.re_represented_patches, self.re_represented_channels
        return (
            2 * self.num_patches if patches is None else patches,
            max(1, self.hidden_size // 2) if channels is None else channels,
        )

    def refuse_impossible(self) -> None:
        """Raise ConfigError where no Mixer has this shape."""
        size, patch = self.image_size, self.patch_size
        if patch < 1 or size < patch or size % patch:
            near = max(patch, size // patch * patch) if patch > 0 else size
            raise ConfigError(
                f"image_size={size} is no multiple of patch_size={patch}; the nearest below is {near}"
            )
        for name in ("hidden_size", "intermediate_size", "num_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.token_hidden < 1:
            raise ConfigError(f"token_intermediate_size={self.token_hidden} must be at least 1")
        if not 0 <= self.re_represented_layers <= self.num_hidden_layers:
            raise ConfigError(
                f"re_represented_layers={self.re_represented_layers} must be 0 to {self.num_hidden_layers}, the number "
                "of blocks"
            )
        if min(self.re_represented) < 1:
            raise ConfigError(f"re_represented patches and channels {self.re_represented} must be at least 1")


AutoConfig.register(MlpMixerConfig.model_type, MlpMixerConfig, exist_ok=True)
