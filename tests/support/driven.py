"""A small training loop that moves controllers as the real one does, and a small language model for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.controllers import StepInfo
from libmoe.core import context
from libmoe.core.site import Site
from libmoe.core.statistics import StepStatistics
from libmoe.layers import MoELayer
from libmoe.methods import Method, create


class TinyLM(nn.Module):
    """Embeddings, a causal mean, one MoE layer and logits; ``[B, L]`` ids to ``[B, L, V]``."""

    def __init__(self, name: str, vocabulary: int = 40, dim: int = 16, hidden: int = 32, **options: Any) -> None:
        super().__init__()
        self.method: Method = create(name, **options)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.layer: MoELayer = self.method.build_layer(
            Site(dim, hidden, init_std=0.2, seed=0, vocab_size=vocabulary)
        )
        self.head = nn.Linear(dim, vocabulary)
        context.install(self)

    def forward(self, input_ids: Tensor) -> Tensor:
        x_BLD = self.embedding(input_ids)
        length = torch.arange(1, x_BLD.shape[1] + 1).view(1, -1, 1)
        x_BLD = x_BLD + 0.5 * x_BLD.cumsum(1) / length.sqrt()
        return self.head(x_BLD + self.layer(F.layer_norm(x_BLD, x_BLD.shape[-1:])))

    def loss(self, ids_BL: Tensor) -> Tensor:
        return F.cross_entropy(self(ids_BL)[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten())


def chain(vocabulary: int, batch: int, length: int, seed: int = 0, of: int = 0) -> Tensor:
    """int64 ``[B, L]``: walks of a sparse Markov chain (number ``of``) whose states are about Zipf-distributed."""
    table = torch.Generator().manual_seed(of)
    popularity_V = 1 / torch.arange(1, vocabulary + 1)
    next_V4 = torch.multinomial(popularity_V.expand(vocabulary, -1), 4, replacement=True, generator=table)
    draw = torch.Generator().manual_seed(1000 + seed)
    columns = [torch.multinomial(popularity_V, batch, replacement=True, generator=draw)]
    for _ in range(length - 1):
        jump_B = torch.multinomial(popularity_V, batch, replacement=True, generator=draw)
        step_B = next_V4[columns[-1], torch.randint(4, (batch,), generator=draw)]
        columns.append(torch.where(torch.rand(batch, generator=draw) < 0.2, jump_B, step_B))
    return torch.stack(columns, dim=1)


def drive(
    model: nn.Module,
    method: Method,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    lr: float = 1e-2,
    optimizer: torch.optim.Optimizer | None = None,
    each: Callable[[StepInfo], None] | None = None,
    until: int | None = None,
) -> StepInfo:
    """Train for ``steps`` (or stop at ``until`` of them); ``each`` sees the state after every step."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=lr)
    controllers = list(method.build_controllers())
    info = StepInfo(model, optimizer, total_steps=steps)
    for controller in controllers:
        controller.start(info)
    for step in range(steps if until is None else until):
        info.metrics = {}
        for controller in controllers:
            controller.before_step(info)
        statistics = StepStatistics()
        with context.options(statistics=statistics, step=step, total_steps=steps):
            optimizer.zero_grad()
            loss(step).backward()
        optimizer.step()
        info.step, info.loads = step + 1, statistics.reduced()
        for controller in controllers:
            controller.after_step(info)
        if each is not None:
            each(info)
    return info
