"""What a model costs: parameters, floating-point operations and bytes.

Everything but the MoE layers is counted by torch's own FLOP counter on a forward pass with fake tensors (shapes
without data), so that any architecture is counted as it runs.  The MoE layers, whose work depends on routing,
are counted by their own declarations at the load that routing aims at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from libmoe.core.errors import ConfigError
from libmoe.layers import MoELayer, moe_layers, replaced_forward
from libmoe.models.parts import has_connector
from libmoe.models.receipt import count_parameters

_Shapes = dict[int, list[tuple[int, int, int]]]  # by layer: tokens, width and sequence length of each call


@dataclass(frozen=True)
class Account:
    """Costs of a model at one sequence length.

    Attributes:
        total_params: distinct parameters.
        active_params: those one token uses: every expert counts by the share of tokens it is meant to get.
        router_params, expert_params: parts of the total.
        tokens: tokens of one example, an encoder's and a decoder's together.
        flops_per_token: of the forward pass; a multiplication and an addition are two.
        train_flops_per_token: three times that of a forward pass in training, once more that of the blocks when these
            are recomputed, and what losses compute.
        memory_bytes: ``weights``, ``gradients``, ``adamw`` (two moments), by the dtypes of the parameters.
    """

    total_params: int
    active_params: int
    router_params: int
    expert_params: int
    tokens: int
    flops_per_token: float
    train_flops_per_token: float
    memory_bytes: dict[str, int] = field(default_factory=dict)


def account(model: nn.Module, seq_len: int = 128, *, recompute: bool = False) -> Account:
    """Count what ``model`` costs on one example (``seq_len`` tokens of text; images and audio have their own).

    Attention is counted in full, as torch counts it, whether or not it is causal.

    Args:
        recompute: activation checkpointing repeats the forward pass of each block in training.

    Raises:
        ConfigError: an expert kind or router does not declare its cost, or the model cannot run on fake tensors.
    """
    layers = [layer for _, layer in moe_layers(model)]
    flops, outside, shapes, tokens = _dense_flops(model, layers, seq_len)
    calls = [(layer, *call) for layer in layers for call in shapes[layer.index]]
    more = sum(rows * _more_in_training(layer, dim, length) for layer, rows, dim, length in calls)
    flops += sum(rows * _layer_flops(layer, dim, length) for layer, rows, dim, length in calls)
    losses = sum(rows * _loss_flops(layer) for layer, rows, _, _ in calls)
    total = count_parameters(model)
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    trained = [p.numel() * p.element_size() for p in model.parameters() if p.requires_grad]
    return Account(
        total_params=total,
        active_params=active_parameters(model),
        router_params=sum(count_parameters(layer.router) for layer in layers),
        expert_params=sum(count_parameters(layer.experts) for layer in layers),
        tokens=tokens,
        flops_per_token=flops / tokens,
        train_flops_per_token=(3 * (flops + more) + recompute * (flops + more - outside) + losses) / tokens,
        memory_bytes={"weights": sum(sizes), "gradients": sum(trained), "adamw": 2 * sum(trained)},
    )


def active_parameters(model: nn.Module) -> int:
    """Distinct parameters that one token uses: every expert counts by the share of tokens it is meant to get.

    Raises:
        ConfigError: a router does not declare its load.
    """
    return round(count_parameters(model) - sum(_idle_params(layer) for _, layer in moe_layers(model)))


def flop_counter() -> FlopCounterMode:
    """Torch's counter, which knows attention on GPUs, taught the CPU's kernel too."""
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={cpu_attention: _attention_flops})


def _attention_flops(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _loads(layer: MoELayer) -> list[float]:
    try:
        return layer.router.expected_load()
    except NotImplementedError as error:
        raise ConfigError(f"cannot account for MoE layer {layer.index}: {error}") from None


def _idle_params(layer: MoELayer) -> float:
    """Parameters of experts a token does not use, and rows of tables; what experts share is always in use."""
    loads = [layer.parts * load for load in _loads(layer)]  # every part of a token takes experts of its own
    return layer.experts.idle_params(loads) + sum(table.weight[1:].numel() for table in _tables(layer))


def _tables(layer: MoELayer) -> list[nn.Embedding]:
    """Where a token looks one row up."""
    return [module for module in layer.modules() if isinstance(module, nn.Embedding)]


def _experts_flops(layer: MoELayer, load_N: Sequence[float], length: int) -> float:
    """Forward FLOPs per token of a sequence's ``length`` tokens, which some experts look at."""
    return layer.experts.flops_per_token(load_N) + layer.experts.flops_per_pair * length * sum(load_N)


def _layer_flops(layer: MoELayer, dim: int, length: int) -> float:
    """Forward FLOPs per token of width ``dim``: experts, mixing, gate and shared experts."""
    experts = _experts_flops(layer, _loads(layer), length)
    experts -= layer.experts.flops_per_pair * length  # attention of one expert was counted as it ran
    inside = {id(p) for p in layer.experts.parameters()}
    inside |= {id(table.weight) for table in _tables(layer)}  # no product
    matrices = (p.numel() for p in layer.parameters() if id(p) not in inside and p.dim() > 1)
    return experts + layer.router.mixing_flops(dim) + 2.0 * sum(matrices)


def _more_in_training(layer: MoELayer, dim: int, length: int) -> float:
    """Forward FLOPs per token of what works while training and not afterwards, experts and gates; negative for less."""
    router, estimator, later = layer.router, layer.estimator, _loads(layer)
    training = router.training_load() if estimator is None else estimator.training_load(router)
    more = _experts_flops(layer, training, length) - _experts_flops(layer, later, length)
    return more + 2.0 * dim * (sum(training) - sum(later)) + router.more_training_flops()


def _loss_flops(layer: MoELayer) -> float:
    """FLOPs per token of auxiliary losses that compute with more than the router's answer."""
    return sum(loss.training_flops(layer.router, layer.experts) for loss in layer.losses if loss.coefficient > 0)


def _dense_flops(
    model: nn.Module, layers: list[MoELayer], seq_len: int
) -> tuple[float, float, _Shapes, int]:
    """FLOPs without the MoE layers, those outside blocks, what reaches the layers, and tokens of the example."""
    device = next(model.parameters()).device
    shapes: _Shapes = {layer.index: [] for layer in layers}

    def note(layer: MoELayer, hidden_states: Tensor) -> Tensor:
        dim = hidden_states.shape[-1]
        shapes[layer.index].append((hidden_states.numel() // dim, dim, hidden_states.shape[-2]))
        out = getattr(layer.experts, "out_dim", dim)
        return hidden_states if out == dim else hidden_states.new_zeros(*hidden_states.shape[:-1], out)

    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), _in_evaluation(model):
            inputs, tokens = example(model, seq_len, device)
            with (
                replaced_forward(layers, note),
                _first_block_rows(model, tokens is None) as blocks,
                flop_counter() as counter,
            ):
                model(**inputs)
                if hasattr(model, "get_image_features") and has_connector(model):
                    model.get_image_features(pixel_values=_pixels(model, device))
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"cannot account for {type(model).__name__} at seq_len={seq_len}: {' '.join(str(error).split())[:200]}"
        ) from None
    total, counts = float(counter.get_total_flops()), counter.get_flop_counts()
    inside = sum(sum(counts.get(f"{type(model).__name__}.{path}", {}).values()) for path in _recomputed(model))
    return total, total - inside, shapes, tokens if tokens is not None else sum(blocks)


def _recomputed(model: nn.Module) -> list[str]:
    """Paths of the blocks that activation checkpointing repeats, none inside another."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[str] = []
    for path, module in model.named_modules():  # a block before what is in it
        if isinstance(module, GradientCheckpointingLayer) and not any(path.startswith(f"{p}.") for p in found):
            found.append(path)
    return found


def example(model: Any, seq_len: int, device: torch.device) -> tuple[dict[str, Tensor], int | None]:
    """Inputs for one example and its tokens (``None``: known only once they reach the first block)."""
    config = model.config
    ids = torch.zeros(1, seq_len, dtype=torch.long, device=device)
    name = model.main_input_name
    if has_connector(model):  # the language model reads the image's tokens before the text
        ids = torch.zeros(1, seq_len + config.image_seq_length, dtype=torch.long, device=device)
        return {"input_ids": ids}, ids.numel()
    if name == "input_ids":
        decoder = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
        return {"input_ids": ids, **decoder}, seq_len * (1 + len(decoder))
    if name == "pixel_values":
        return {"pixel_values": _pixels(model, device)}, None
    if name == "input_features" and hasattr(config, "max_source_positions"):
        frames = 2 * config.max_source_positions  # Whisper's convolutions halve the length
        features = torch.zeros(1, config.num_mel_bins, frames, device=device, dtype=model.dtype)
        decoder = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
        return {"input_features": features, **decoder}, None
    raise ConfigError(f"cannot account for {type(model).__name__}, whose input is {name}")


def _pixels(model: Any, device: torch.device) -> Tensor:
    vision = getattr(model.config, "vision_config", model.config)
    size = vision.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(1, vision.num_channels, height, width, device=device, dtype=model.dtype)


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _first_block_rows(model: nn.Module, wanted: bool) -> Iterator[list[int]]:
    """Tokens that enter the first block of each stack (list of blocks)."""
    rows: list[int] = []

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        rows.append(hidden.numel() // hidden.shape[-1])

    stacks = [m for m in model.modules() if wanted and isinstance(m, nn.ModuleList) and len(m)]
    outer = [m for m in stacks if not any(m is not other and m in set(other.modules()) for other in stacks)]
    handles = [stack[0].register_forward_pre_hook(note, with_kwargs=True) for stack in outer]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
