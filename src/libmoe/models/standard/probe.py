"""What a model answers to fixed inputs, to compare it before and after a change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PROBE_LENGTH = 16


@torch.no_grad()
def probe(model: Any) -> Tensor | None:
    """What the model answers to fixed token ids, in evaluation; ``None`` for a model that reads no text."""
    if model.main_input_name != "input_ids" or model.device.type == "meta":
        return None
    training = model.training
    generator = torch.Generator().manual_seed(0)
    text = model.config.get_text_config()
    length = min(PROBE_LENGTH, getattr(text, "max_position_embeddings", None) or PROBE_LENGTH)
    ids = torch.randint(text.vocab_size, (2, length), generator=generator)
    inputs = {"input_ids": ids.to(model.device)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    try:
        output = model.eval()(**inputs)
    finally:
        model.train(training)
    return output[0].float()


def difference(before: Tensor | None, after: Tensor | None) -> float | None:
    return None if before is None or after is None else float((before - after).abs().max())
