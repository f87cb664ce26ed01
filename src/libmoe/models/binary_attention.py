"""Binary linear attention in the place of a vision transformer's, saved and loaded with the model."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.registry import Info
from libmoe.layers import put
from libmoe.layers.binary_attention import BinaryLinearAttention, Mean
from libmoe.models.attention_experts import choose_attentions
from libmoe.models.forms import sizes
from libmoe.models.record import EDITS, match_tensors
from libmoe.models.replacing import edit_model
from libmoe.models.where import Where

KIND = "binary-attention"
OUTPUTS = ("o_proj", "out_proj")


class BinaryAttention(nn.Module):
    """:class:`~libmoe.layers.binary_attention.BinaryLinearAttention` between a model's own projections."""

    def __init__(self, attention: Any, output: str, kernel: int, mean: Mean) -> None:
        super().__init__()
        self.head_dim = int(attention.head_dim)
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.o_proj = getattr(attention, output)
        self.linear = BinaryLinearAttention(sizes(self.q_proj)[1] // self.head_dim, kernel, mean)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """``[B, L, D]``, and ``None`` in the place of attention weights, which there are none of.

        Raises:
            ConfigError: a mask is given.
        """
        if attention_mask is not None:
            raise ConfigError(
                "attention_mask: binary linear attention sums over all tokens of an image and cannot leave some out; "
                "give none"
            )
        projected = (proj(hidden_states) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in projected)
        return self.o_proj(self.linear(q, k, v).transpose(1, 2).flatten(2)), None


def add_binary_attention(
    model: nn.Module, *, kernel: int = 9, mean: Mean = "batch", where: Where = "all", seed: int | None = None
) -> nn.Module:
    """Replace attention of a vision transformer by binary linear attention, in place; returns the same model.

    The attention of ShiftAddViT (arXiv 2306.06446), to be fine-tuned afterwards: projections keep their weights, the
    convolution's are drawn, and what the model computes changes.  With the method ``shiftadd-moe`` in its FFNs, put in
    before, most of the model's products are additions and shifts.  It is saved and loaded like any other.

    Args:
        kernel, mean: as in :class:`~libmoe.layers.binary_attention.BinaryLinearAttention`.
        where: which attentions, as :func:`libmoe.models.where.select` reads it.
        seed: base seed of initial weights.

    Raises:
        ConfigError: attention that is causal, rotates positions, shares keys among heads, or has another form.
    """
    return edit_model(model, KIND, {"kernel": kernel, "mean": mean, "where": where}, seed)


@EDITS.register(
    Info(KIND, "linear attention of a vision transformer with queries and keys of 0 and 1", paper=9)
)
def _edit(
    model: nn.Module,
    *,
    kernel: int,
    mean: Mean,
    sites: Sequence[str] = (),
    where: Where | None = None,
    paths: Sequence[str] | None = None,
) -> dict[str, Any]:
    """``sites`` and ``where`` as for experts in attention; ``paths``: the attentions themselves."""
    if paths is None:
        paths = [found.path for found in choose_attentions(model, sites, where)]
    replaced: dict[str, nn.Module] = {}
    for path in paths:
        dense: Any = model.get_submodule(path)
        _refuse_text(model, path)
        replaced[path] = BinaryAttention(dense, _output(path, dense), kernel, mean)
        match_tensors(replaced[path], dense.q_proj.weight.device, dense.q_proj.weight.dtype)
    put(model, replaced)
    return {"kernel": kernel, "mean": mean, "paths": list(paths)}


def _output(path: str, attention: nn.Module) -> str:
    """Name of the output projection.

    Raises:
        ConfigError: attention that binary linear attention cannot take the place of.
    """
    linears = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
    output = next((name for name in OUTPUTS if isinstance(getattr(attention, name, None), nn.Linear)), None)
    inner = [linear for linear in linears if isinstance(linear, nn.Linear)]
    plain = (
        len(inner) == 3 and len({sizes(linear) for linear in inner}) == 1 and hasattr(attention, "head_dim")
    )
    if output is None or not plain or getattr(attention, "is_causal", True):
        what = (
            "of q_proj, k_proj and v_proj of one size and o_proj or out_proj, in which every token sees all"
        )
    elif "position_embeddings" in signature(attention.forward).parameters:
        what = "without rotated positions"
    else:
        return output
    raise ConfigError(
        f"{path} ({type(attention).__name__}) cannot become binary linear attention, which needs attention {what}; "
        "leave it out with where="
    )


def _refuse_text(model: nn.Module, path: str) -> None:
    """Raises ConfigError for attention in a model of text, which masks what comes later or is padding."""
    names = path.split(".")
    around = [model.get_submodule(".".join(names[:depth])) for depth in range(len(names))]
    read = [str(module.main_input_name) for module in around if hasattr(module, "main_input_name")]
    if read and read[-1] == "input_ids":
        raise ConfigError(
            f"{path} is attention of text, which masks tokens, and binary linear attention sums over all; choose those "
            "of images with where="
        )
