"""How fast a model reads a prompt and writes what follows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, DataError
from libmoe.core.memory import out_of_memory
from libmoe.eval.heldout import evaluating

WARM_UP = 2
"""Calls before the first that is timed: kernels are chosen and memory is taken then."""


@dataclass(frozen=True)
class Latency:
    """Medians of wall-clock times in seconds.

    Attributes:
        prompt: tokens of the prompt, and so of the cache under the first decoded token.
        prefill: reading one prompt.
        token: by batch, one step that decodes a token of each of its sequences.
        cache_bytes: keys and values (or states) of one prompt.
    """

    prompt: int
    prefill: float
    token: dict[int, float]
    cache_bytes: int


def latency(
    model: Any, text: Tensor, prompt: int, new_tokens: int, batches: tuple[int, ...], repeats: int
) -> Latency:
    """Time ``model`` on prompts cut from ``text``, token ids ``[M]`` that are repeated where they do not suffice.

    Raises:
        ConfigError: the model's window is too short, or it decodes without a cache.
        DataError: memory does not suffice for a batch.
    """
    longest = getattr(model.config, "max_position_embeddings", None) or prompt + new_tokens + WARM_UP
    prompt = min(prompt, longest - new_tokens - WARM_UP)
    if prompt < 1:
        raise ConfigError(
            f"new_tokens={new_tokens} leave no room for a prompt in a window of {longest} tokens"
        )
    device = model.get_input_embeddings().weight.device
    with evaluating(model):
        ids_BL = _prompts(text, 1, prompt).to(device)
        prefill = _median(lambda: _read(model, ids_BL), repeats, device)
        cache_bytes = _cache_bytes(_read(model, ids_BL)[1])
        token = {}
        for batch in batches:
            try:
                token[batch] = _decode(model, _prompts(text, batch, prompt).to(device), new_tokens)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise DataError(
                    f"memory does not suffice to decode {batch} sequences; choose smaller batches"
                ) from error
    return Latency(prompt, prefill, token, cache_bytes)


def _prompts(text: Tensor, batch: int, length: int) -> Tensor:
    needed = batch * length
    return text.repeat(-(-needed // len(text)))[:needed].view(batch, length)


def _read(model: nn.Module, ids_BL: Tensor, **cache: Any) -> tuple[Tensor, dict[str, Any]]:
    """The likeliest next tokens ``[B, 1]``, and the argument that carries the cache into the next call."""
    output = model(input_ids=ids_BL, use_cache=True, **cache)
    # The longer name is that of releases of transformers up to 5.23; later ones warn where they see it.
    name = next((n for n in ("cache", "past_key_values") if getattr(output, n, None) is not None), None)
    if name is None:
        raise ConfigError(
            f"{type(model).__name__} returns no cache, so its time per output token cannot be measured"
        )
    return output.logits[:, -1:].argmax(-1), {name: getattr(output, name)}


def _decode(model: nn.Module, ids_BL: Tensor, new_tokens: int) -> float:
    """Seconds of one decoding step, the median over ``new_tokens`` of them."""
    state = _read(model, ids_BL)

    def step() -> None:
        nonlocal state
        state = _read(model, state[0], **state[1])

    return _median(step, new_tokens, ids_BL.device)


def _median(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    for _ in range(WARM_UP):
        work()
    seconds = []
    for _ in range(repeats):
        _wait(device)
        begun = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cache_bytes(cache: dict[str, Any]) -> int:
    """Bytes of every tensor that a cache holds."""
    (held,) = cache.values()
    layers = getattr(held, "layers", [])
    return sum(
        value.nbytes for layer in layers for value in vars(layer).values() if isinstance(value, Tensor)
    )
