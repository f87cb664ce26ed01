"""Measure one model, and the base model it is compared with."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import torch

from libmoe.core.errors import ConfigError
from libmoe.eval.flags import CROSS_BATCH, NON_CAUSAL, flags_of
from libmoe.eval.scorecard.activity import Activity, bytes_read, weight_bytes
from libmoe.eval.scorecard.card import Preparation, Scorecard
from libmoe.eval.scorecard.energy import energy
from libmoe.eval.scorecard.latency import latency
from libmoe.eval.scorecard.protocol import Protocol
from libmoe.eval.scorecard.quality import Examination, Quality
from libmoe.layers import moe_layers
from libmoe.models import account


def scorecard(
    model: Any,
    tokenizer: Any,
    base: Any = None,
    *,
    name: str = "model",
    base_name: str = "base",
    preparation: Preparation | None = None,
    protocol: Protocol | None = None,
) -> Scorecard:
    """Measure every field of the scorecard for a causal language model.

    Args:
        model: with LibMoE's layers, or dense.
        tokenizer: of ``model`` and ``base``.
        base: the model it was made from; ``None`` leaves out what compares the two.
        name, base_name: for the table.
        preparation: what making the model took; nothing by default.

    Raises:
        ConfigError: not a causal language model, or a standard MoE model that was not imported.
        DataError: memory does not suffice.
    """
    protocol = protocol or Protocol()
    for each in (model, base):
        if each is not None:
            _check(each)
    windows = (getattr(m.config, "max_position_embeddings", None) for m in (model, base) if m is not None)
    longest = min((size for size in windows if size), default=protocol.seq_len)
    examine = Examination(tokenizer, protocol, longest)
    activity = Activity(model)
    found = examine(model, [activity])
    before = examine(base) if base is not None else None
    batches = [batch for windows in examine.heldout.windows.values() for batch in windows]
    text = torch.cat([batch["input_ids"].flatten() for batch in batches])
    times = latency(model, text, protocol.prompt, protocol.new_tokens, protocol.batches, protocol.repeats)
    flags = {flag["kind"] for flag in flags_of(model)}
    moved = bytes_read(model, activity) + times.cache_bytes
    flops = account(model, seq_len=times.prompt).flops_per_token
    total = weight_bytes(model)
    return Scorecard(
        model=name,
        base=base_name if base is not None else None,
        bits_per_byte=found.bits_per_byte,
        perplexity=found.perplexity,
        tasks=found.tasks,
        **_deltas(found, before),
        resident_bytes=weight_bytes(model, model.get_input_embeddings().weight.device),
        total_bytes=total,
        bytes_ratio=total / weight_bytes(base) if base is not None else None,
        active_experts_mean=activity.mean,
        active_experts_worst=activity.worst,
        bytes_per_token=moved,
        flops_per_token=flops,
        energy_per_token=energy(flops, moved),
        prompt_tokens=times.prompt,
        prefill_seconds=times.prefill,
        token_seconds=times.token,
        tokens_per_second={batch: batch / seconds for batch, seconds in times.token.items()},
        preparation=preparation or Preparation(),
        batch_dependent=CROSS_BATCH in flags,
        causal=NON_CAUSAL not in flags,
        protocol=asdict(protocol),
        machine=_machine(model),
    )


def _check(model: Any) -> None:
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise ConfigError(f"a scorecard is of causal language models; {type(model).__name__} is none")
    foreign = [path for path, _ in model.named_modules() if path.rpartition(".")[2] == "experts"]
    if foreign and not list(moe_layers(model)):
        raise ConfigError(
            f"{foreign[0]} are experts of transformers; bring {type(model).__name__} in with libmoe.models.import_()"
        )


def _deltas(found: Quality, before: Quality | None) -> dict[str, Any]:
    if before is None:
        return dict.fromkeys(("bits_per_byte_delta", "perplexity_change", "tasks_delta"))
    return {
        "bits_per_byte_delta": found.bits_per_byte - before.bits_per_byte,
        "perplexity_change": found.perplexity / before.perplexity - 1,
        "tasks_delta": {task: value - before.tasks[task] for task, value in found.tasks.items()},
    }


def _machine(model: Any) -> dict[str, Any]:
    """What the times depend on."""
    device = model.get_input_embeddings().weight.device
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }
