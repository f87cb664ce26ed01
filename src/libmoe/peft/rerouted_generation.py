"""Generation by a model that goes on adapting its routing to the text (arXiv 2510.14853)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.peft.rerouting import Rerouting


def generate(
    routing: Rerouting,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    every: int = 128,
    **generation: Any,
) -> Tensor:
    """Prompts with up to ``max_new_tokens`` more: adapt, generate ``every`` tokens, adapt to all of it, and so on.

    Keys and values of the text so far are computed anew after each adaptation, which changed them.

    Args:
        attention_mask: 0 at padding, which stands on the left.
        generation: for the model's ``generate``; ``do_sample=False`` unless said otherwise.

    Returns:
        Token ids ``[B, <= L + max_new_tokens]``; after its end a row is padded.
    """
    if every < 1:
        raise ConfigError(f"every={every} must be at least 1 token")
    generation = {"do_sample": False} | generation
    ids, length = input_ids, input_ids.shape[1]
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    model: Any = routing.model
    ends, pad = _ends(model, generation)
    open_B = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    routing.reset(len(ids))
    while (left := length + max_new_tokens - ids.shape[1]) > 0 and bool(open_B.any()):
        routing.adapt(ids, mask)
        # Texts that have ended go along as copies of one that has not, and are cut off below.
        row_B = torch.where(open_B, torch.arange(len(ids), device=ids.device), open_B.int().argmax())
        longer = model.generate(
            ids[row_B], attention_mask=mask[row_B], max_new_tokens=min(every, left), **generation
        )
        new = longer[:, ids.shape[1] :]
        ended = torch.isin(new, ends.to(new.device))
        after_end = (ended.cumsum(1) - ended.int()) > 0
        real = open_B.unsqueeze(1) & ~after_end
        ids = torch.cat([ids, new.masked_fill(~real, pad)], 1)
        mask = torch.cat([mask, real.to(mask.dtype)], 1)
        open_B = open_B & ~ended.any(1)
    return ids


def _ends(model: Any, generation: dict[str, Any]) -> tuple[Tensor, int]:
    """Ids that end a text, and the one that pads it."""
    config = model.generation_config
    end = generation.get("eos_token_id", config.eos_token_id)
    ends = torch.tensor([] if end is None else end, dtype=torch.long).reshape(-1)
    pad = generation.get("pad_token_id", config.pad_token_id)
    return ends, int(pad if pad is not None else ends[0] if len(ends) else 0)
