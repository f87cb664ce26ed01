"""The gradient of one optimiser step, equal however the batch is cut into micro-batches and processes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.context import options
from libmoe.core.seeding import derive_seed
from libmoe.core.statistics import StepStatistics, all_reduce_sum
from libmoe.core.tokens import before_targets
from libmoe.layers import moe_layers
from libmoe.train import parallel
from libmoe.train.parallel import World
from libmoe.train.recipe import Recipe

Batch = Mapping[str, Tensor]


MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids", "pixel_values")
SIDES = {"domain_ids": "domain", "modality_ids": "modality"}
"""What routers and recorders may know of the tokens besides, by its name in the batch."""


def side_inputs(batch: Batch) -> dict[str, Tensor]:
    """Side inputs of a forward pass: what the batch says of its tokens, and which are before a row's first answer."""
    side = {name: batch[key] for key, name in SIDES.items() if key in batch}
    predicted = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    return {**side, "instruction": before_targets(predicted)}


@dataclass(frozen=True)
class Totals:
    """Counts over the whole batch of a step, all processes and micro-batches together.

    ``predicted`` tokens have a label, ``tokens`` were seen, ``sequences`` are documents or parts of them, ``items``
    are images.  ``stop`` is how many processes were asked to stop.
    """

    predicted: int
    tokens: int
    sequences: int
    items: int
    stop: int


def count(batches: Sequence[Batch], stop: bool, world: World) -> Totals:
    """Add up the step's counts with one small reduction."""
    predicted = sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
    tokens = sum(int(b["attention_mask"].sum()) if "attention_mask" in b else b["input_ids"].numel() for b in batches)
    sequences = sum(map(_sequences, batches))
    items = sum(len(b["pixel_values"]) for b in batches if "pixel_values" in b)
    local = [predicted, tokens, sequences, items, int(stop)]
    if world.size > 1:
        local = all_reduce_sum(torch.tensor(local, device=world.device)).tolist()
    return Totals(*local)


def _sequences(batch: Batch) -> int:
    """A row begins a sequence, and so does every position 0 inside it; padded rows hold one each."""
    if "attention_mask" in batch:
        return len(batch["input_ids"])
    return len(batch["position_ids"]) + int((batch["position_ids"][:, 1:] == 0).sum())


def needs_counting(model: nn.Module, recipe: Recipe, num_micro: int) -> bool:
    """Whether a loss balances over the whole batch while a forward pass sees only a part of it."""
    losses = [loss for _, layer in moe_layers(model) for loss in layer.losses]
    wanted = any(loss.coefficient > 0 and loss.needs_step_counts for loss in losses)
    return recipe.train.exact_counts and num_micro > 1 and wanted


def seed_everything(device: torch.device, seed: int, *names: object) -> None:
    """Set torch's, numpy's and Python's generators to a state that depends on nothing but the names."""
    derived = derive_seed(seed, *names)
    # torch.manual_seed prepares every kind of device there could be, which takes most of a millisecond.
    torch.default_generator.manual_seed(derived)
    if device.type == "cuda":
        torch.cuda.manual_seed(derived)
    np.random.seed(derived % 2**32)
    random.seed(derived)


def next_token_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Summed cross-entropy in nats of the labelled tokens (label -100: none), each predicted from those before."""
    # Without an attention mask transformers reads the borders of packed documents from the positions.
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    logits_BLV = module(**inputs, use_cache=False).logits
    # Shifting the labels spares a copy of the logits.
    labels_BL = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    return F.cross_entropy(logits_BLV.float().flatten(0, 1), labels_BL.flatten(), reduction="sum")


def accumulate(
    module: nn.Module,
    batches: Sequence[Batch],
    totals: Totals,
    statistics: StepStatistics,
    recipe: Recipe,
    world: World,
    step: int,
    counting: bool,
) -> float:
    """Add the gradient of the mean loss over the step's batch; returns that loss in nats per token.

    The gradient of a process is ``size * (its summed loss) / (tokens of the whole batch)``; averaging over
    processes, as DDP and FSDP do, gives the gradient of the mean over the batch.

    Randomness of a forward pass (dropout, routing noise) depends on the seed, the step, the rank and the
    micro-batch alone: the counting pass draws what training draws, and a resumed run needs no saved generator.

    Args:
        module: the wrapped model, in training mode.
        counting: run all micro-batches once without gradients to count expert loads first.
    """

    def forward(index: int) -> Tensor:
        batch = {k: v.to(world.device, non_blocking=True) for k, v in batches[index].items()}
        seed_everything(world.device, recipe.seed, "step", step, world.rank, index)
        side = side_inputs(batch)
        with parallel.precision(world, recipe.train.dtype), options(side=side):
            return next_token_loss(module, batch)

    announced = {
        unit: count / world.size
        for unit, count in (("token", totals.tokens), ("sequence", totals.sequences), ("item", totals.items))
    }
    scale = world.size / max(totals.predicted, 1)
    loss = torch.zeros((), device=world.device)
    with options(statistics=statistics, totals=announced, step=step, total_steps=recipe.train.steps):
        if counting:
            statistics.begin_counting()
            with torch.no_grad(), parallel.gradient_sync(module, False):
                for index in range(len(batches)):
                    forward(index)
            statistics.end_counting()
        for index in range(len(batches)):
            with parallel.gradient_sync(module, index == len(batches) - 1):
                part = forward(index)
                (part * scale).backward()
            loss += part.detach()
    return float(all_reduce_sum(loss)) / max(totals.predicted, 1)
