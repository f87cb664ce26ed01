"""Which tokens a model is working on: ids, padding mask and positions as its caller gave them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


def image_token(model: Any) -> int | None:
    """The id that stands for an image in the text that ``model`` reads; ``None`` for a model without images."""
    return getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))


def as_matrix(value: Any) -> Tensor | None:
    """``value`` if it is a tensor with two dimensions."""
    return value if isinstance(value, Tensor) and value.dim() == 2 else None


def cache_of(values: Mapping[str, Any]) -> Any:
    """What generation keeps between tokens, under its newer or its older name; ``None`` for nothing."""
    names = (name for name in ("cache", "past_key_values") if name in values)
    return next((values[name] for name in names if values[name] is not None), None)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Inputs about the tokens of one (sub)model, each ``[B, >= L]`` or ``None``.

    ``apart``: they are not those of the root model but patches of an image, say, or what a decoder reads; a row is
    then one such item.  ``cache``: what generation keeps of earlier tokens of the same rows, or will keep of these; the
    same object from the first of them to the last.
    """

    ids: Tensor | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None
    apart: bool = False
    cache: Any = None

    @classmethod
    def of(cls, inputs: Mapping[str, Any], outer: Tokens | None = None) -> Tokens:
        """From a model's named arguments; what is missing there is taken from the model around it."""
        names = {"ids": "input_ids", "mask": "attention_mask", "positions": "position_ids"}
        found = {field_name: as_matrix(inputs.get(argument)) for field_name, argument in names.items()}
        if outer is not None:
            found = {name: getattr(outer, name) if value is None else value for name, value in found.items()}
        cache = cache_of(inputs)
        if outer is not None:
            cache = outer.cache if cache is None else cache
        return cls(**found, apart=outer is not None and outer.apart, cache=cache)


def named_inputs(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``module`` by name."""
    if not args:
        return kwargs
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs


def targets(module: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
    """What the model's own loss predicts, ``[B, <= L]`` with -100 for nothing; ``None`` without labels.

    Causal models predict the next token, so that the first label of a row is nobody's target.
    """
    shifted = as_matrix(inputs.get("shift_labels"))
    labels = as_matrix(inputs.get("labels"))
    if shifted is not None or labels is None:
        return shifted
    config = getattr(module, "config", None)
    aligned = getattr(config, "is_encoder_decoder", False) or "MaskedLM" in type(module).__name__
    return labels if aligned else labels[:, 1:]


def before_targets(targets: Tensor) -> Tensor:
    """bool ``[B, L]``: the tokens from which a row's first target is predicted, all of a row without targets.

    Args:
        targets: ``[B, L]`` as from :func:`targets`: what each token predicts, -100 for nothing.
    """
    earlier_BL = (targets != -100).cumsum(1).roll(1, 1)
    earlier_BL[:, 0] = 0
    return earlier_BL == 0
