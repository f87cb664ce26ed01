"""Peak memory of training, counted without training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.layers import MoELayer, moe_layers, replaced_forward
from libmoe.models import Account
from libmoe.train.recipe import Recipe
from libmoe.train.step import next_token_loss


def estimate_memory(model: nn.Module, cost: Account, recipe: Recipe) -> int:
    """Bytes of weights, gradients, AdamW's moments and what a micro-batch keeps for its backward pass.

    Everything but the routed experts is run on tensors without data, and what autograd keeps is added up.  What the
    experts keep follows from their declared cost at the load that routing aims at: the tokens, and the hidden units of
    each row before the activation.  Buffers of kernels and allocators are not in it, so that measured peaks
    are above it; and gradients grow while activations are given up, so that they can also be below.

    Raises:
        ConfigError: the recipe recomputes activations, or uses a precision or parallelism that is not modelled.
    """
    cfg = recipe.train
    for name, value, plain in (
        ("activation_checkpointing", cfg.activation_checkpointing, False),
        ("dtype", cfg.dtype, "fp32"),
        ("parallel", cfg.parallel, "fsdp"),
    ):
        if (value == plain) if name == "parallel" else (value != plain):
            raise ConfigError(
                f"match: memory cannot be counted with train.{name}={value}; set memory: measured"
            )
    rows = cfg.micro_batch_size or cfg.batch_size
    return sum(cost.memory_bytes.values()) + activation_bytes(model, rows, recipe.data.seq_len)


def activation_bytes(model: nn.Module, rows: int, seq_len: int) -> int:
    """Bytes that a forward pass over ``rows`` sequences in training keeps for its backward pass.

    Args:
        model: on any device, also without weights; it is left as it is.

    Raises:
        ConfigError: it cannot run without values.
    """
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that is freed would give its address to another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    routed: list[int] = []

    def shared_part_alone(layer: MoELayer, hidden_states: Tensor) -> Tensor:
        """The rest of the layer is only counted."""
        dim = hidden_states.shape[-1]
        routed.append(_routed_bytes(layer, hidden_states.numel() // dim, dim))
        return layer.with_shared(hidden_states, hidden_states)

    # Attention keeps other things on other devices, so tensors without data pretend to be where training would be.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = [layer for _, layer in moe_layers(model)]
    was_training = model.training
    # The context is given because a forward pass with gradients would draw a seed, and no tensor here has a value.
    with FakeTensorMode(), replaced_forward(layers, shared_part_alone), use(ForwardContext()):
        state = {
            name: torch.empty(t.shape, dtype=t.dtype, device=device, requires_grad=t.requires_grad)
            for name, t in [*model.named_parameters(), *model.named_buffers()]
        }
        weights = {tensor.untyped_storage()._cdata for tensor in state.values()}
        ids = torch.zeros(rows, seq_len, dtype=torch.long, device=device)
        places = torch.arange(seq_len, device=device).expand(rows, -1)
        batch = {"input_ids": ids, "labels": ids, "position_ids": places}
        try:
            model.train()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                next_token_loss(_Standing(model, state), batch)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"cannot estimate the memory of {type(model).__name__}: {' '.join(str(error).split())[:200]}; "
                "set memory: measured"
            ) from None
        finally:
            model.train(was_training)
    return sum(kept.values()) + sum(routed)


class _Standing(nn.Module):
    """A model that computes with other tensors in the place of its own."""

    def __init__(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.state = model, state

    def forward(self, **inputs: Any) -> Any:
        return functional_call(self.model, self.state, kwargs=inputs)


def _routed_bytes(layer: MoELayer, tokens: int, dim: int) -> int:
    loads, costs = layer.router.training_load(), layer.experts.flops_per_row()
    width = next((p.element_size() for p in layer.experts.parameters()), 4)
    # Of a row's products with matrices [H or 2H, D] and [D, H] the fused backends keep what goes into the activation,
    # and of tokens nothing row by row.
    share = 2 / 3 if getattr(layer.experts, "gated", True) else 1 / 2
    units = dim + share * sum(load * cost / (2 * dim) for load, cost in zip(loads, costs, strict=True))
    logits = 2 * 4 * layer.router.num_experts  # and their softmax, in float32
    return round(tokens * (units * width + logits))
